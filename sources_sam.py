"""The data sources of a recipe: found, converted where they are published files, counted."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState

from audio_sam import load_audio
from batches_sam import BROKEN
from provenance_sam import checkpoint_hash
from published_sam import read_openaqa, read_reasonaqa
from recipe_sam import Recipe
from records_sam import (
    coverage_table,
    parse_audio_roots,
    read_summary,
    read_table,
    records_dataset,
    records_fingerprint,
    write_json,
    write_records,
)
from tabular_sam import rows_with_audio

PATIENCE = timedelta(hours=4)  # of processes that wait for the first: it converts data, merges and generates


def processes() -> PartialState:
    """This process among those that train together; the first call brings them together."""
    options: dict[str, Any] = {} if torch.cuda.is_available() else {"cpu": True}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        options.update({"timeout": PATIENCE}, **({"backend": "gloo"} if "cpu" in options else {}))
    return PartialState(**options)


def prepare_data(recipe: Recipe, output: Path, names: Sequence[str]) -> dict[str, Path | datasets.Dataset]:
    """What the data sources become: folders of records, or tables. Published files are converted once, by the first
    process, and the coverage of their audio is printed.

    Raises:
        FileNotFoundError: The data of a source is not there.
        ValueError: It is empty, or too much of its audio is missing.
    """
    prepared: dict[str, Path | datasets.Dataset] = {}
    for name in names:
        source, path = recipe.data[name], recipe.path(name)
        if source.format == "table":
            is_name = not path.exists() and not path.suffix  # of a dataset on the Hub
            try:
                prepared[name] = read_table(source.path if is_name else str(path), source.split)
            except ValueError as error:
                raise ValueError(f"data.{name}: {str(path)!r}: {error}") from error
            rows = len(prepared[name])
            prepared[name] = rows_with_audio(prepared[name], f"data.{name}: {str(path)!r}", source.max_missing)
            if processes().is_main_process:
                print(f"{name}: the audio of {len(prepared[name]):,} of {rows:,} rows is there", flush=True)
        elif source.format == "records":
            prepared[name] = path
            if not (path / "summary.json").is_file():
                raise FileNotFoundError(
                    f"data.{name}.path: there is no folder of records {str(path)!r}, or it is not whole; say where the "
                    "data is with --set data_root=DIR."
                )
            if processes().is_main_process:
                print(f"{name}: {path}\n{coverage_table(read_summary(path))}", flush=True)
        else:
            if not path.is_file():
                raise FileNotFoundError(
                    f"data.{name}.path: there is no file {str(path)!r}; say where the data is with --set data_root=DIR."
                )
            prepared[name] = records_folder(recipe, output) / name
            if processes().is_main_process:
                _convert(recipe, name, records_folder(recipe, output) / name)
            processes().wait_for_everyone()
        if not count_rows(prepared[name]):
            raise ValueError(f"data.{name}: {str(path)!r} has no rows, expected some.")
    return prepared


def validation_rows(recipe: Recipe, source: Path | datasets.Dataset) -> datasets.Dataset:
    """The rows that a recipe evaluates on, drawn at random, without those whose clip cannot be read.

    All of them are read once, so that no training gets to its first evaluation to fail there.

    Raises:
        ValueError: More than `max_broken` of the clips cannot be read.
    """
    rows = as_table(source).shuffle(seed=recipe.seed)
    rows = first_rows(rows, max(recipe.evaluation_rows, recipe.generated_rows))

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

    Raises:
        ValueError: A run that goes on would go on with others; the message says with which.
    """
    found = {f"data.{name}": _rows_hash(source) for name, source in sources.items()}
    if Path(recipe.model).expanduser().is_dir():  # a Hub's model is named by its id
        found["model"] = checkpoint_hash(Path(recipe.model).expanduser())
    path = output / "inputs.json"
    there = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    changed = sorted(key for key, value in found.items() if there.get(key, value) != value)
    if changed:
        raise ValueError(
            f"output: {output} was begun with other contents of {', '.join(changed)}; put back what was there, or "
            "choose another folder."
        )
    write_json({**there, **found}, path)


def _rows_hash(source: Path | datasets.Dataset) -> str:
    digest = hashlib.sha256()
    if isinstance(source, Path):  # the summary counts every source and kind of what was written
        summary = {key: value for key, value in read_summary(source).items() if key != "fingerprint"}
        digest.update(json.dumps(summary, sort_keys=True).encode())
    else:
        for rows in source.select_columns(["prompt", "answer"]).iter(batch_size=10_000):
            digest.update(json.dumps(rows, sort_keys=True).encode())
    return digest.hexdigest()


def _convert(recipe: Recipe, name: str, folder: Path) -> None:
    source, path = recipe.data[name], recipe.path(name)
    counts: dict[str, int] = {}
    if source.format == "openaqa":
        collection = "OpenAQA"
        records = read_openaqa(path, source.closed_prefix, recipe.seed, source.skip_unanswerable, counts=counts)
    else:
        collection = "ReasonAQA"
        records = read_reasonaqa(path, recipe.seed, counts=counts)
    summary = write_records(
        records,
        folder,
        audio_roots=parse_audio_roots([*source.audio_roots, *recipe.audio_roots]),
        max_missing=source.max_missing,
        counts={collection: counts},
        fingerprint=records_fingerprint(
            [path],
            format=source.format,
            closed_prefix=source.closed_prefix,
            seed=recipe.seed,
            skip_unanswerable=source.skip_unanswerable,
        ),
    )
    print(f"{name}: {path}\n{coverage_table(summary)}", flush=True)


def count_rows(source: Path | datasets.Dataset) -> int:
    """Rows of a folder of records or of a table."""
    return read_summary(source)["rows"] if isinstance(source, Path) else len(source)


def as_table(source: Path | datasets.Dataset) -> datasets.Dataset:
    """A data source as a table that can be indexed."""
    return records_dataset(source, streaming=False) if isinstance(source, Path) else source


def first_rows(table: datasets.Dataset, count: int) -> datasets.Dataset:
    """The first rows of a table; all of them if there are fewer."""
    return table.select(range(min(count, len(table))))


def records_folder(recipe: Recipe, output: Path) -> Path:
    """Where what is made of published files is kept."""
    return Path(recipe.records).expanduser() if recipe.records else output / "records"


def planned_rows(recipe: Recipe, name: str, output: Path | None = None) -> tuple[int | None, str]:
    """How many rows a data source has, and where that comes from, without needing it."""
    source, path = recipe.data[name], recipe.path(name)
    made = None if output is None else records_folder(recipe, output) / name
    if source.format in ("openaqa", "reasonaqa") and made is not None and (made / "summary.json").is_file():
        return count_rows(made), "counted"
    if source.format == "records" and (path / "summary.json").is_file():
        return count_rows(path), "counted"
    if source.format == "table" and path.exists():
        return len(read_table(str(path), source.split)), "counted"
    if source.rows is not None:
        return source.rows, "as the recipe says"
    if path.exists():
        return None, f"unknown: {path} is counted when it is read"
    return None, f"unknown: {path} is not there"


__all__ = [
    "as_table",
    "claim_inputs",
    "count_rows",
    "first_rows",
    "planned_rows",
    "prepare_data",
    "processes",
    "validation_rows",
]
