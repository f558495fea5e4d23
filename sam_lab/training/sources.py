"""The data sources of a recipe: found, converted where they are published files, counted."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from pyarrow import parquet, types
from tqdm.auto import tqdm

from audio_sam import load_audio
from sam_lab.common.files import write_json
from sam_lab.common.processes import processes
from sam_lab.common.provenance import checkpoint_hash
from sam_lab.data.collation import BROKEN
from sam_lab.data.counts import SourceCounts
from sam_lab.data.coverage import check_audio_roots, coverage_table, parse_audio_roots
from sam_lab.data.openreasonaqa import build_openreasonaqa, report_table
from sam_lab.data.plain_tables import audio_file, read_table, rows_with_audio
from sam_lab.data.published import read_openaqa, read_reasonaqa
from sam_lab.data.records import read_summary, records_dataset, records_fingerprint, write_records
from sam_lab.data.streams import COLUMNS, RecordSource, find_shards
from sam_lab.training.recipe import PUBLISHED, Recipe


def prepare_data(recipe: Recipe, output: Path, names: Sequence[str]) -> dict[str, Path | datasets.Dataset]:
    """What the data sources become: folders of records, or tables. Published files are converted once, by the first
    process, and the coverage of their audio is printed.

    Raises:
        FileNotFoundError: The data of a source is not there; found out before any of them is converted.
        ValueError: It is empty, or too much of its audio is missing.
    """
    parse_audio_roots(recipe.audio_roots)  # also where no source needs them
    for name in names:
        _check_there(recipe, name)
    prepared: dict[str, Path | datasets.Dataset] = {}
    for name in names:
        try:
            prepared[name] = _prepare(recipe, output, name)
            if not count_rows(prepared[name]):
                raise ValueError("there are no rows, expected some.")
        except (FileNotFoundError, ValueError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"data.{name}: {str(recipe.path(name))!r}: {error}") from error
    return prepared


def _check_there(recipe: Recipe, name: str) -> None:
    source, path = recipe.data[name], recipe.path(name)
    if source.format == "records":
        missing, what = path if not (path / "summary.json").is_file() else None, "whole folder of records"
    elif source.format in ("table", "shards"):
        missing, what = path if not path.exists() and not _is_name(recipe, name) else None, "file or folder"
    else:
        check_audio_roots(parse_audio_roots([*source.audio_roots, *recipe.audio_roots]))
        files = [path, *mixed_files(recipe, name)]
        missing, what = next((file for file in files if not file.is_file()), None), "file"
    if missing is not None:
        raise FileNotFoundError(
            f"data.{name}.path: there is no {what} {str(missing)!r}; say where the data is with --set data_root=DIR."
        )


def _is_name(recipe: Recipe, name: str) -> bool:
    """Whether a table is a dataset on the Hub."""
    return recipe.data[name].format == "table" and not recipe.path(name).exists() and not recipe.path(name).suffix


def mixed_files(recipe: Recipe, name: str) -> list[Path]:
    """ReasonAQA's files of a data source that mixes them with OpenAQA's."""
    root = Path(recipe.data_root).expanduser()
    return [root / Path(file).expanduser() for file in recipe.data[name].reasonaqa]


def _prepare(recipe: Recipe, output: Path, name: str) -> Path | datasets.Dataset:
    source, path, is_first = recipe.data[name], recipe.path(name), processes().is_main_process
    if source.format == "table":
        table = read_table(source.path if _is_name(recipe, name) else str(path), source.split)
        kept = rows_with_audio(table, "table", source.max_missing)
        if is_first:
            print(f"{name}: the audio of {len(kept):,} of {len(table):,} rows is there", flush=True)
        return kept
    if source.format == "shards":
        if is_first:
            _say_coverage(recipe, name)
        processes().wait_for_everyone()
        return path
    if source.format == "records":
        if is_first:
            print(f"{name}: {path}\n{coverage_table(read_summary(path))}", flush=True)
        return path
    folder = records_folder(recipe, output) / name
    if is_first:
        _convert(recipe, name, folder)
    processes().wait_for_everyone()
    return folder


def _say_coverage(recipe: Recipe, name: str) -> None:
    """Looks for every file that shards name: nothing leaves these records out before the training meets them.

    Raises:
        ValueError: More are missing than the training bears.
    """
    if _hold_audio(recipe.path(name)):
        print(f"{name}: its shards hold the audio itself, which is looked at when it is trained on", flush=True)
        return
    records = RecordSource(recipe.path(name), 1).records()
    counts, error = SourceCounts(recipe.max_broken), None
    with ThreadPoolExecutor(16) as pool, tqdm(desc=f"looking for the audio of {name}", unit=" records") as progress:
        rows = ((audio_file(record["audio"]), record.get("source") or name) for record in records)
        while batch := list(islice(rows, 10_000)):
            is_there = pool.map(lambda row: not isinstance(row[0], str) or os.path.isfile(row[0]), batch)
            lost = [row for row, found in zip(batch, is_there) if not found]
            for kind, some in (("seen", batch), ("broken", lost)):
                for source, number in Counter(source for _, source in some).items():
                    counts.add(source, kind, number)
            if lost and error is None:
                error = FileNotFoundError(f"there is no file {lost[0][0]!r}")
            progress.update(len(batch))
    counts.check(error)  # by the rule of the training
    seen, missing = counts.total("seen"), counts.total("broken")
    print(f"{name}: the audio of {seen - missing:,} of {seen:,} records is there", flush=True)


def _hold_audio(source: Path) -> bool:
    """Whether shards have their clips' bytes, as `datasets` writes them: to look at those would be to read it all.

    By Parquet's footers: rows without bytes may have the path alone, unless no row of theirs has a path.
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


def validation_rows(recipe: Recipe, source: Path | datasets.Dataset) -> datasets.Dataset:
    """The rows that a recipe evaluates on, drawn at random, without those whose clip cannot be read.

    All of them are read once, so that no training gets to its first evaluation to fail there.

    Raises:
        ValueError: More than `max_broken` of the clips cannot be read.
    """
    count = max(recipe.evaluation_rows, recipe.generated_rows)
    if _are_shards(source):  # which may be larger than memory
        total, rng = count_rows(source), np.random.default_rng(recipe.seed)
        drawn = RecordSource(source, 1).pick(rng.choice(total, min(count, total), replace=False).tolist())
        rows = _table(drawn[index] for index in rng.permutation(len(drawn)))
    else:
        rows = first_rows(as_table(source).shuffle(seed=recipe.seed), count)

    def problem(clip: Any) -> str | None:
        try:
            if clip is not None:
                load_audio(clip)
        except BROKEN as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = list(pool.map(problem, rows["audio"][:]))
    broken = [text for text in problems if text is not None]
    if len(broken) > recipe.max_broken * len(rows):
        raise ValueError(
            f"validation: {len(broken)} of the {len(rows)} clips drawn of {recipe.validation!r} cannot be read, "
            f"expected at most {recipe.max_broken:.2%}; repair them or leave their rows out. The first: {broken[0]}"
        )
    if broken and processes().is_main_process:
        print(
            f"validation: {len(broken)} of {len(rows)} clips cannot be read and are left out: {broken[0]}", flush=True
        )
    return rows.select([index for index, text in enumerate(problems) if text is None])


def claim_inputs(recipe: Recipe, output: Path, sources: dict[str, Path | datasets.Dataset]) -> None:
    """Writes down which weights and rows a run is of (`inputs.json`), or finds the same ones there.

    The texts of all rows, their order and the names of their clips' files count, and not where they lie.

    Raises:
        ValueError: A run that goes on would go on with others; the message says with which.
    """
    found = {f"rows.{name}": _rows_hash(source) for name, source in sources.items()}  # `data.*` was another hash
    if Path(recipe.model).expanduser().is_dir():  # a Hub's model is named by its id
        found["model"] = checkpoint_hash(Path(recipe.model).expanduser())
    path = output / "inputs.json"
    there = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    changed = sorted(key for key, value in found.items() if there.get(key, value) != value)
    changed = [key.replace("rows.", "data.", 1) for key in changed]  # as the recipe calls them
    if changed:
        raise ValueError(
            f"output: {output} was begun with other contents of {', '.join(changed)}; put back what was there, or "
            "choose another folder."
        )
    write_json({**there, **found}, path)


def _rows_hash(source: Path | datasets.Dataset) -> str:
    digest = hashlib.sha256()
    for clip, *texts in _rows_to_hash(source):
        digest.update(json.dumps([os.path.basename(clip) if isinstance(clip, str) else None, *texts]).encode())
    return digest.hexdigest()


def _rows_to_hash(source: Path | datasets.Dataset) -> Iterator[tuple[Any, ...]]:
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


def _convert(recipe: Recipe, name: str, folder: Path) -> None:
    source, path = recipe.data[name], recipe.path(name)
    roots = parse_audio_roots([*source.audio_roots, *recipe.audio_roots])
    if source.format == "openreasonaqa":
        options = {} if source.rows is None else {"size": source.rows}
        report = build_openreasonaqa(
            path,
            mixed_files(recipe, name),
            folder,
            **options,
            reading=source.reading,
            caption_rule=source.caption_rule,
            seed=recipe.seed,
            closed_prefix=source.closed_prefix,
            skip_unanswerable=source.skip_unanswerable,
            audio_roots=roots,
            max_missing=source.max_missing,
            missing_sources=source.missing_sources,
            tokenizer=str(Path(recipe.model).expanduser()),
        )
        print(f"{name}: {path}\n{coverage_table(report['coverage'])}\n\n{report_table(report)}", flush=True)
        return
    counts: dict[str, int] = {}
    summary = write_records(
        _read_published(recipe, name, counts),
        folder,
        audio_roots=roots,
        max_missing=source.max_missing,
        missing_sources=source.missing_sources,
        counts={"OpenAQA" if source.format == "openaqa" else "ReasonAQA": counts},
        fingerprint=records_fingerprint(
            [path],
            format=source.format,
            closed_prefix=source.closed_prefix,
            seed=recipe.seed,
            skip_unanswerable=source.skip_unanswerable,
        ),
    )
    print(f"{name}: {path}\n{coverage_table(summary)}", flush=True)


def _read_published(recipe: Recipe, name: str, counts: dict[str, int]) -> Iterator[dict[str, Any]]:
    source, path = recipe.data[name], recipe.path(name)
    if source.format == "openaqa":
        return read_openaqa(path, source.closed_prefix, recipe.seed, source.skip_unanswerable, counts=counts)
    return read_reasonaqa(path, recipe.seed, counts=counts)


def count_rows(source: Path | datasets.Dataset) -> int:
    """Rows of a folder of records, of shards or of a table."""
    if _are_shards(source):
        return RecordSource(source, 1).num_rows
    return read_summary(source)["rows"] if isinstance(source, Path) else len(source)


def _are_shards(source: Path | datasets.Dataset) -> bool:
    """Whether they were written by somebody else: [`write_records`] leaves a summary."""
    return isinstance(source, Path) and not (source / "summary.json").is_file()


def as_table(source: Path | datasets.Dataset) -> datasets.Dataset:
    """A data source as a table that can be indexed, with the column `source` where it has one.

    Raises:
        ValueError: Shards have paths and clips side by side as their audio, which no column of a table can hold.
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
    """The first rows of a table; all of them if there are fewer."""
    return table.select(range(min(count, len(table))))


def records_folder(recipe: Recipe, output: Path) -> Path:
    """Where what is made of published files is kept."""
    return Path(recipe.records).expanduser() if recipe.records else output / "records"


def planned_rows(recipe: Recipe, name: str, output: Path | None = None) -> tuple[int | None, str]:
    """How many rows a data source has, and where that comes from, without needing it.

    What is there is counted; of published files also the records without audio, which the training leaves out.
    """
    source, path = recipe.data[name], recipe.path(name)
    made = None if output is None else records_folder(recipe, output) / name
    if source.format in PUBLISHED:
        if made is not None and (made / "summary.json").is_file():
            return count_rows(made), "counted"
        if source.format != "openreasonaqa" and path.is_file():
            records = tqdm(_read_published(recipe, name, {}), desc=f"counting {path.name}", unit=" records")
            return sum(1 for _ in records), "counted, with those whose audio is not there"
    elif source.format == "table" and path.exists():
        return len(read_table(str(path), source.split)), "counted"
    elif source.format == "shards" and path.exists():
        return count_rows(path), "counted"
    elif source.format == "records" and (path / "summary.json").is_file():
        return count_rows(path), "counted"
    if source.format == "openreasonaqa" and source.reading == "replacement":
        return None, "unknown before the mix is drawn: what stays comes on top of what replaces"
    if source.rows is not None:
        return source.rows, "as the recipe says"
    if source.format == "openreasonaqa":
        return 3_800_000, "as many as are drawn"
    return None, f"unknown: {path} is not there"
