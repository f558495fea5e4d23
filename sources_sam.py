"""The data sources of a recipe: found, converted where they are published files, counted."""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState

from published_sam import read_openaqa, read_reasonaqa
from recipe_sam import Recipe
from records_sam import (
    coverage_table,
    parse_audio_roots,
    read_summary,
    read_table,
    records_dataset,
    records_fingerprint,
    write_records,
)

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
        elif source.format == "records":
            prepared[name] = path
            if not (path / "summary.json").is_file():
                raise FileNotFoundError(
                    f"data.{name}.path: there is no folder of records {str(path)!r}, or it is not whole; say where the "
                    "data is with --set data_root=DIR."
                )
        else:
            if not path.is_file():
                raise FileNotFoundError(
                    f"data.{name}.path: there is no file {str(path)!r}; say where the data is with --set data_root=DIR."
                )
            folder = Path(recipe.records).expanduser() if recipe.records else output / "records"
            prepared[name] = folder / name
            if processes().is_main_process:
                _convert(recipe, name, folder / name)
            processes().wait_for_everyone()
        if not count_rows(prepared[name]):
            raise ValueError(f"data.{name}: {str(path)!r} has no rows, expected some.")
    return prepared


def _convert(recipe: Recipe, name: str, folder: Path) -> None:
    source, path = recipe.data[name], recipe.path(name)
    if source.format == "openaqa":
        records = read_openaqa(path, source.closed_prefix, recipe.seed, source.skip_unanswerable)
    else:
        records = read_reasonaqa(path, recipe.seed)
    summary = write_records(
        records,
        folder,
        audio_roots=parse_audio_roots([*source.audio_roots, *recipe.audio_roots]),
        max_missing=source.max_missing,
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


def some_rows(source: Path | datasets.Dataset, count: int, seed: int) -> datasets.Dataset:
    """Rows of a data source, drawn at random; all of them if there are fewer."""
    table = as_table(source)
    return table.shuffle(seed=seed).select(range(min(count, len(table))))


def planned_rows(recipe: Recipe, name: str) -> tuple[int | None, str]:
    """How many rows a data source has, and where that comes from, without needing it."""
    source, path = recipe.data[name], recipe.path(name)
    if source.format == "records" and (path / "summary.json").is_file():
        return count_rows(path), "counted"
    if source.format == "table" and path.exists():
        return len(read_table(str(path), source.split)), "counted"
    if source.rows is not None:
        return source.rows, "as the recipe says"
    return None, f"unknown: {path} is not there"


__all__ = ["as_table", "count_rows", "planned_rows", "prepare_data", "processes", "some_rows"]
