"""The data sources of a recipe: located, converted if they are published files, counted."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from pyarrow import parquet, types
from tqdm.auto import tqdm

from audio_sam import load_audio
from sam_lab.common.cores import num_cores
from sam_lab.common.iteration import batched
from sam_lab.common.processes import processes, say
from sam_lab.data.collation import BROKEN
from sam_lab.data.counts import SourceCounts
from sam_lab.data.coverage import check_audio_roots, coverage_table, parse_audio_roots
from sam_lab.data.openreasonaqa import build_openreasonaqa, report_table
from sam_lab.data.plain_tables import audio_file, read_table, rows_with_audio
from sam_lab.data.published import read_openaqa, read_reasonaqa
from sam_lab.data.records import read_summary, records_dataset, records_fingerprint, write_records
from sam_lab.data.streams import COLUMNS, RecordSource, find_shards
from sam_lab.data.texts import SPECIAL_TOKENS, text_problem
from sam_lab.training.recipe import PUBLISHED, Recipe

Rows = Path | datasets.Dataset  # a folder of records, shards, or a table

# -- Preparing ----------------------------------------------------------------------------------------------------


def prepare_data(recipe: Recipe, output: Path, names: Sequence[str]) -> dict[str, Rows]:
    """Turns data sources into folders of records, shards or tables. Published files are converted once, by the first
    process, which also prints the coverage of their audio.

    Raises:
        FileNotFoundError: The data of a source does not exist; raised before any source is converted.
        ValueError: A source is empty, or too much of its audio is missing.
    """
    parse_audio_roots(recipe.audio_roots)  # also if no source needs them
    for name in names:
        _check_exists(recipe, name)
    prepared: dict[str, Rows] = {}
    for name in names:
        try:
            prepared[name] = _prepare(recipe, output, name)
            if not count_rows(prepared[name]):
                raise ValueError("there are no rows, expected some.")
        except (FileNotFoundError, ValueError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"data.{name}: {str(recipe.path(name))!r}: {error}") from error
    return prepared


def _check_exists(recipe: Recipe, name: str) -> None:
    source, path = recipe.data[name], recipe.path(name)
    if source.format == "records":
        missing, what = path if not (path / "summary.json").is_file() else None, "whole folder of records"
    elif source.format in ("table", "shards"):
        missing, what = path if not path.exists() and not _is_on_hub(recipe, name) else None, "file or folder"
    else:
        check_audio_roots(_audio_roots(recipe, name))
        files = [path, *_mixed_files(recipe, name)]
        missing, what = next((file for file in files if not file.is_file()), None), "file"
    if missing is not None:
        raise FileNotFoundError(
            f"data.{name}.path: there is no {what} {str(missing)!r}; set the data's folder with --set data_root=DIR."
        )


def _is_on_hub(recipe: Recipe, name: str) -> bool:
    """Whether a table is a dataset on the Hub."""
    return recipe.data[name].format == "table" and not recipe.path(name).exists() and not recipe.path(name).suffix


def _audio_roots(recipe: Recipe, name: str) -> list[tuple[str, str]]:
    return parse_audio_roots([*recipe.data[name].audio_roots, *recipe.audio_roots])


def _mixed_files(recipe: Recipe, name: str) -> list[Path]:
    """ReasonAQA's files of a data source that mixes them with OpenAQA's."""
    root = Path(recipe.data_root).expanduser()
    return [root / Path(file).expanduser() for file in recipe.data[name].reasonaqa]


def _records_folder(recipe: Recipe, output: Path, name: str) -> Path:
    """The records made from a published data source."""
    return (Path(recipe.records).expanduser() if recipe.records else output / "records") / name


def _prepare(recipe: Recipe, output: Path, name: str) -> Rows:
    source, path = recipe.data[name], recipe.path(name)
    if source.format == "table":
        table = read_table(source.path if _is_on_hub(recipe, name) else str(path), source.split)
        return present_rows(table, name, source.max_missing)
    if source.format == "records":
        say(f"{name}: {path}\n{coverage_table(read_summary(path))}")
        return path
    folder = path if source.format == "shards" else _records_folder(recipe, output, name)
    if processes().is_main_process:
        if source.format == "shards":
            _check_shards(recipe, name)
        else:
            _convert(recipe, name, folder)
    processes().wait_for_everyone()
    return folder


def present_rows(table: datasets.Dataset, name: str, max_missing: float = 0.0) -> datasets.Dataset:
    """As [`rows_with_audio`]; the first process also prints how many rows have their audio."""
    present = rows_with_audio(table, name, max_missing)
    say(f"{name}: the audio of {len(present):,} of {len(table):,} rows is present")
    return present


def _check_shards(recipe: Recipe, name: str) -> None:
    """Looks for every audio file that shards name: no conversion has excluded records without audio.

    Raises:
        ValueError: More are missing than `max_broken` allows.
    """
    if _hold_audio(recipe.path(name)):
        say(f"{name}: its shards contain the audio, which is checked when it is trained on")
        return
    records = RecordSource(recipe.path(name), 1, SPECIAL_TOKENS).records()
    counts, error = SourceCounts(recipe.max_broken), None
    with ThreadPoolExecutor(16) as pool, tqdm(desc=f"looking for the audio of {name}", unit=" records") as progress:
        rows = ((audio_file(record["audio"]), record.get("source") or name) for record in records)
        for batch in batched(rows, 10_000):
            is_present = pool.map(lambda row: not isinstance(row[0], str) or os.path.isfile(row[0]), batch)
            missing = [row for row, found in zip(batch, is_present) if not found]
            for kind, some in (("seen", batch), ("broken", missing)):
                for source, number in Counter(source for _, source in some).items():
                    counts.add(source, kind, number)
            if missing and error is None:
                error = FileNotFoundError(f"there is no file {missing[0][0]!r}")
            progress.update(len(batch))
    counts.check(error)  # by the rule of the training
    seen = counts.total("seen")
    say(f"{name}: the audio of {seen - counts.total('broken'):,} of {seen:,} records is present")


def _hold_audio(source: Path) -> bool:
    """Whether shards contain their clips' bytes, as `datasets` writes them, which are too many to check beforehand.

    Decided by Parquet's footers. Null bytes are only accepted in a row group in which every path is null, too: other
    rows without bytes may refer to a file.
    """
    is_embedded = False
    for file in find_shards(source)[0]:
        if file.suffix != ".parquet":
            return False
        metadata = parquet.read_metadata(file)
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            columns = [group.column(index) for index in range(group.num_columns)]
            nulls = {
                column.path_in_schema: column.statistics.null_count if column.statistics is not None else None
                for column in columns
                if column.path_in_schema.split(".")[0] == "audio"
            }
            if nulls.keys() == {"audio"} and _is_binary(metadata.schema.to_arrow_schema().field("audio").type):
                is_embedded = True
                continue
            without_bytes, without_path = (nulls.get(f"audio.{name}") for name in ("bytes", "path"))
            if without_bytes is None or (without_bytes and without_path != group.num_rows):
                return False
            is_embedded = True
    return is_embedded


def _convert(recipe: Recipe, name: str, folder: Path) -> None:
    source, path, reading = recipe.data[name], recipe.path(name), _reading(recipe, name)
    audio = {
        "audio_roots": _audio_roots(recipe, name),
        "max_missing": source.max_missing,
        "missing_sources": source.missing_sources,
    }
    if source.format == "openreasonaqa":
        size = {} if source.rows is None else {"size": source.rows}
        rules = {"reading": source.reading, "caption_rule": source.caption_rule}
        tokenizer = str(Path(recipe.model).expanduser())
        files = _mixed_files(recipe, name)
        report = build_openreasonaqa(path, files, folder, **size, **rules, **reading, **audio, tokenizer=tokenizer)
        say(f"{name}: {path}\n{coverage_table(report['coverage'])}\n\n{report_table(report)}")
        return
    counts: dict[str, int] = {}
    summary = write_records(
        _read_published(recipe, name, counts),
        folder,
        **audio,
        counts={"OpenAQA" if source.format == "openaqa" else "ReasonAQA": counts},
        fingerprint=records_fingerprint([path], format=source.format, **reading),
    )
    say(f"{name}: {path}\n{coverage_table(summary)}")


def _reading(recipe: Recipe, name: str) -> dict[str, Any]:
    source = recipe.data[name]
    return {
        "closed_prefix": source.closed_prefix,
        "seed": recipe.seed,
        "skip_unanswerable": source.skip_unanswerable,
    }


def _read_published(recipe: Recipe, name: str, counts: dict[str, int]) -> Iterator[dict[str, Any]]:
    if recipe.data[name].format == "openaqa":
        return read_openaqa(recipe.path(name), **_reading(recipe, name), counts=counts)
    return read_reasonaqa(recipe.path(name), recipe.seed, counts=counts)


# -- Rows ---------------------------------------------------------------------------------------------------------


def validation_rows(recipe: Recipe, source: Rows, reading: dict[str, Any] | None = None) -> datasets.Dataset:
    """The rows that a recipe evaluates on, drawn at random, without those whose clip cannot be read.

    Reads all of them once, so that no training fails at its first evaluation.

    Args:
        recipe ([`Recipe`]): The recipe.
        source: The rows of its `validation`.
        reading (`dict`, *optional*): Options of [`load_audio`], from the feature extractor.

    Raises:
        ValueError: More than `max_broken` of the clips cannot be read, or a row's text has a special token.
    """
    count = max(recipe.evaluation_rows, recipe.generated_rows)
    if _are_shards(source):  # which may be larger than memory
        total, rng = count_rows(source), np.random.default_rng(recipe.seed)
        drawn = RecordSource(source, 1).pick(rng.choice(total, min(count, total), replace=False).tolist())
        rows = _table(drawn[index] for index in rng.permutation(len(drawn)))
    else:
        rows = first_rows(as_table(source).shuffle(seed=recipe.seed), count)

    for number, (prompt, answer, clip) in enumerate(zip(rows["prompt"][:], rows["answer"][:], rows["audio"][:]), 1):
        if (text := text_problem(prompt, answer, clip is not None)) is not None:
            raise ValueError(
                f"validation: row {number} of those drawn of {recipe.validation!r}, with the prompt {prompt[:80]!r} "
                f"and the answer {answer[:80]!r}, has {text}"
            )

    def problem(clip: Any) -> str | None:
        try:
            if clip is not None:
                load_audio(clip, **(reading or {}))
        except BROKEN as error:
            return str(error)
        return None

    with ThreadPoolExecutor(num_cores()) as pool:
        problems = list(pool.map(problem, rows["audio"][:]))
    broken = [text for text in problems if text is not None]
    if len(broken) > recipe.max_broken * len(rows):
        raise ValueError(
            f"validation: {len(broken)} of the {len(rows)} clips drawn of {recipe.validation!r} cannot be read, "
            f"expected at most {recipe.max_broken:.2%}; repair them or delete their rows. The first: {broken[0]}"
        )
    if broken:
        say(f"validation: {len(broken)} of {len(rows)} clips cannot be read and are skipped: {broken[0]}")
    return rows.select([index for index, text in enumerate(problems) if text is None])


def rows_hash(source: Rows) -> str:
    """A hash of all rows' texts, their order and the names of their audio files, wherever these are stored."""
    digest = hashlib.sha256()
    for clip, *texts in _rows_to_hash(source):
        digest.update(json.dumps([os.path.basename(clip) if isinstance(clip, str) else None, *texts]).encode())
    return digest.hexdigest()


def _rows_to_hash(source: Rows) -> Iterator[tuple[Any, ...]]:
    """Audio's path, prompt, answer and source of every row, without reading the clips that a column may hold."""
    if not isinstance(source, Path):
        columns = ["prompt", "answer", *(name for name in ("audio", "source") if _is_text(source, name))]
        for rows in source.select_columns(columns).iter(batch_size=10_000):
            yield from _zipped(rows, rows.get("audio"))
        return
    for file in find_shards(source)[0]:
        if file.suffix != ".parquet":
            with open(file, "rb") as lines:
                for record in (json.loads(line) for line in lines if line.strip()):
                    yield audio_file(record["audio"]), record["prompt"], record["answer"], record.get("source")
            continue
        with parquet.ParquetFile(file) as table:
            names = [table.schema.column(index).path for index in range(len(table.schema))]
            names = [name for name in names if name in ("audio", "audio.path", "prompt", "answer", "source")]
            if "audio" in names and _is_binary(table.schema_arrow.field("audio").type):
                names.remove("audio")
            for batch in table.iter_batches(10_000, columns=names):
                rows = batch.to_pydict()
                clips = [clip["path"] if isinstance(clip, dict) else clip for clip in rows.get("audio", [])]
                yield from _zipped(rows, clips or None)


def _zipped(rows: dict[str, list[Any]], clips: list[Any] | None) -> Iterator[tuple[Any, ...]]:
    nothing = [None] * len(rows.get("prompt", []))
    return zip(clips or nothing, rows.get("prompt", []), rows.get("answer", []), rows.get("source") or nothing)


def _is_text(table: datasets.Dataset, name: str) -> bool:
    feature = table.features.get(name)
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _is_binary(kind: Any) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind)


def count_rows(source: Rows) -> int:
    """Rows of a folder of records, of shards or of a table."""
    if _are_shards(source):
        return RecordSource(source, 1).num_rows
    return read_summary(source)["rows"] if isinstance(source, Path) else len(source)


def _are_shards(source: Rows) -> bool:
    """Whether they were not written by [`write_records`], which writes a summary."""
    return isinstance(source, Path) and not (source / "summary.json").is_file()


def as_table(source: Rows) -> datasets.Dataset:
    """A data source as a table that can be indexed, with the column `source` if it has one.

    Raises:
        ValueError: The audio of shards is paths in some rows and clips in others, which no column of a table can hold.
    """
    if _are_shards(source):
        return _table(RecordSource(source, 1).records())
    return records_dataset(source, streaming=False) if isinstance(source, Path) else source


def _table(records: Iterable[dict[str, Any]]) -> datasets.Dataset:
    rows = [{**{key: record[key] for key in COLUMNS}, "source": record.get("source")} for record in records]
    kinds = sorted({type(row["audio"]).__name__ for row in rows} - {"NoneType"})
    if len(kinds) > 1:
        raise ValueError(
            f"the records have audio as {' and as '.join(kinds)}, expected one of them in shards that are held as a "
            "table, for cache_features or validation; write all of them alike."
        )
    return datasets.Dataset.from_list(rows)


def first_rows(table: datasets.Dataset, count: int) -> datasets.Dataset:
    """The first rows of a table, or all of them if it has fewer (`datasets` 4.0's `take` fails then)."""
    return table.select(range(min(count, len(table))))


def planned_rows(recipe: Recipe, name: str, output: Path | None = None) -> tuple[int | None, str]:
    """The number of rows of a data source and where that number comes from, even if the data does not exist.

    Existing data is counted; for published files that includes records without audio, which training excludes.
    """
    source, path = recipe.data[name], recipe.path(name)
    if source.format in PUBLISHED:
        records = None if output is None else _records_folder(recipe, output, name)
        if records is not None and (records / "summary.json").is_file():
            return count_rows(records), "counted"
        if source.format != "openreasonaqa" and path.is_file():
            found = tqdm(_read_published(recipe, name, {}), desc=f"counting {path.name}", unit=" records")
            return sum(1 for _ in found), "counted, including those without audio"
    elif source.format == "table" and path.exists():
        return len(read_table(str(path), source.split)), "counted"
    elif (path / "summary.json").is_file() or (source.format == "shards" and path.exists()):
        return count_rows(path), "counted"
    if source.format == "openreasonaqa" and source.reading == "replacement":
        return None, "unknown before the mix is drawn: it contains the replacements and the questions that remain"
    if source.rows is not None:
        return source.rows, "as the recipe states"
    if source.format == "openreasonaqa":
        return 3_800_000, "as many as are drawn"
    return None, f"unknown: {path} does not exist"
