"""Plain tables and folders of audio as training rows: [`read_table`] returns clips, prompts and answers."""

import csv
import glob
import gzip
import hashlib
import math
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
from transformers.utils import logging

from sam_lab.common.files import AUDIO_SUFFIXES
from sam_lab.common.iteration import batched
from sam_lab.common.json_files import is_encodable, read_json
from sam_lab.common.names import name_in_line
from sam_lab.common.prompts import DEFAULT_PROMPT
from sam_lab.data.texts import text_problem
from sam_lab.data.undecoded import load_undecoded

logger = logging.get_logger(__name__)

AUDIO_COLUMNS = ("audio", "file", "path", "file_name")
PROMPT_COLUMNS = ("prompt", "question", "instruction")
ANSWER_COLUMNS = ("answer", "caption", "text", "label")
TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
METADATA_FILES = ("metadata.csv", "metadata.jsonl")
SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")
SCHEMA = pyarrow.schema([(name, pyarrow.string()) for name in ("audio", "prompt", "answer")])
CHUNK = 10_000  # rows that are Python objects at once


def read_table(source: str, split: str = "train", prompt: str = DEFAULT_PROMPT) -> datasets.Dataset:
    """Reads training rows from a file, a folder or the Hub.

    Args:
        source (`str`): One of

            - a `.csv`, `.tsv`, `.json`, `.jsonl` (each also with `.gz`) or `.parquet` file with a column of paths,
              relative to the file; cells of CSV are text exactly as written (`NA`, `007`), UTF-8;
            - a folder of audio files in the layout of `datasets`' audio folders: a `metadata.csv` or
              `metadata.jsonl` with the columns `file_name` and a text, or a subfolder for each class, whose name is
              the answer for all files below it; these may also stand in a subfolder named as the split;
            - the name of a dataset on the Hub.
        split (`str`, *optional*, defaults to `"train"`): Split of a folder or dataset that has several.
        prompt (`str`, *optional*): Prompt of the rows without a column of prompts, or with a blank one.

    Returns:
        `datasets.Dataset` with the columns `audio` (a path, or an undecoded row of an Audio column), `prompt` and
        `answer`. The audio is taken from the first of the columns `audio`, `file`, `path`, `file_name` that exists,
        the prompt from `prompt`, `question`, `instruction`, the answer from `answer`, `caption`, `text`, `label`.
        Where the audio is blank in every row, it is a table of text, with `None` as audio.

    Raises:
        FileNotFoundError: A file, folder or dataset that does not exist.
        ValueError: No column of audio or of answers, the message lists the columns; no row; a special token such as
            `<|endoftext|>` in a row's text; rows without an answer,
            or some rows without audio, the message has the first one's number and how many; a folder without audio or
            without the split; a file that cannot be read.
    """
    path = Path(os.path.expanduser(source))
    if not is_encodable(source):
        raise ValueError(f"source: {source!r} is a name that is not UTF-8, which a table cannot hold; rename it.")
    if path.is_dir():
        folder = _split_folder(path, split)
        metadata = _metadata(folder)
        if metadata is None:
            return _class_folders(folder, prompt)
        path = metadata
    suffix = next((end for end in TABLE_SUFFIXES if path.name.lower().removesuffix(".gz").endswith(end)), None)
    if suffix and not path.is_file():
        raise FileNotFoundError(f"source: there is no file {source!r}.")
    if path.exists() and not suffix:
        raise ValueError(
            f"source: got the file {source!r}, expected one with the suffix {', '.join(TABLE_SUFFIXES)}, or a folder."
        )
    if suffix and suffix != ".parquet":
        return _file_table(path, suffix, prompt)
    try:
        if suffix:
            table, _ = load_undecoded("parquet", "train", data_files=glob.escape(str(path)))
        else:
            table, _ = load_undecoded(source, split)
    except OSError as error:
        what = "could not be read" if suffix else "is neither a file nor a folder, nor a dataset that can be loaded"
        raise FileNotFoundError(f"source: {source!r} {what}: {error}") from error
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = error.__cause__ or error  # the first may only state that it failed
        raise ValueError(f"source: {source!r} cannot be loaded: {reason}") from error
    return _typed_table(table, source, prompt, path.parent if suffix else None)


def _file_table(path: Path, suffix: str, prompt: str) -> datasets.Dataset:
    """A CSV or JSON file, without `datasets`' readers, which guess types and interpret file names as patterns."""
    if suffix in (".csv", ".tsv"):
        items = _csv_rows(path, "," if suffix == ".csv" else "\t")
        names = list(next(items))
    else:
        names = list(dict.fromkeys(key for item in _json_rows(path) for key in item))
        items = _json_rows(path)
    if not names:
        raise ValueError(f"source: {str(path)!r} is empty, expected columns and rows.")
    reader = _RowReader(str(path), names, prompt, path.parent)
    rows = (reader(item, index) for index, item in enumerate(items))
    batches = (pyarrow.RecordBatch.from_pylist(chunk, SCHEMA) for chunk in batched(rows, CHUNK))
    table = pyarrow.Table.from_batches(batches, SCHEMA)
    reader.check(len(table))
    return datasets.Dataset(table)


def _csv_rows(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    """The header's names as the keys of the first item, then the rows."""
    lines = None
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as binary:
            text = (line.decode("utf-8-sig" if index == 0 else "utf-8") for index, line in enumerate(binary))
            lines = csv.reader(text, delimiter=delimiter, strict=True)
            lines_with_text = (fields for fields in lines if any(map(str.strip, fields)))
            header = next(lines_with_text, [])
            known = [name for name in header if name in AUDIO_COLUMNS + PROMPT_COLUMNS + ANSWER_COLUMNS]
            twice = [name for name in known if header.count(name) > 1]
            if twice:
                raise ValueError(f"the column {twice[0]!r} occurs twice, expected once; rename one")
            yield dict.fromkeys(header)
            for number, fields in enumerate(lines_with_text, 1):
                if len(fields) > len(header):
                    raise ValueError(
                        f"row {number} has {len(fields)} fields, expected the header's {len(header)}; put quotation "
                        f"marks around a field that holds {delimiter!r}"
                    )
                yield dict(zip(header, fields))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"source: {str(path)!r}, line {lines.line_num + 1}: not UTF-8 ({error.reason}); save the file as UTF-8."
        ) from None
    except (ValueError, csv.Error, OSError, EOFError, zlib.error) as error:
        line = f", line {lines.line_num}" if lines is not None else ""
        raise ValueError(f"source: {str(path)!r}{line}: {error}.") from None


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for _, item in read_json(path):
            yield item
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"source: {error}") from None


def _typed_table(table: datasets.Dataset, source: str, prompt: str, folder: Path | None) -> datasets.Dataset:
    """A table whose columns have types: from the Hub, or Parquet."""
    reader = _RowReader(source, table.column_names, prompt, folder)
    table = table.select_columns([name for name in (reader.audio, reader.prompts, reader.answer) if name])
    audio, label = table.features[reader.audio], table.features[reader.answer]
    if isinstance(label, datasets.ClassLabel):
        reader.classes = [name.replace("_", " ") for name in label.names]
    string = datasets.Value("string")  # explicit: a column of numbers that keeps its name would keep its type
    reader.is_path = isinstance(audio, datasets.Value) and "binary" not in audio.dtype
    features = datasets.Features({"audio": string if reader.is_path else audio, "prompt": string, "answer": string})
    rows = table.map(
        reader,
        with_indices=True,
        remove_columns=table.column_names,
        features=features,
        load_from_cache_file=False,
        desc="reading rows",
    )
    reader.check(len(rows))
    return rows


class _RowReader:
    """Converts a table's rows, and remembers those without audio or answer until all are read."""

    def __init__(self, source: str, names: Sequence[str], prompt: str, folder: Path | None):
        self.source, self.prompt, self.folder = source, prompt, folder
        self.audio = _column("audio", AUDIO_COLUMNS, names, source)
        self.answer = _column("answer", ANSWER_COLUMNS, names, source)
        self.prompts = next((name for name in PROMPT_COLUMNS if name in names), None)
        self.classes: list[str] | None = None
        self.is_path = True  # else the audio itself may be in the column
        self.count: Counter[str] = Counter()  # rows without a value, by column
        self.first: dict[str, tuple[int, Any]] = {}

    def __call__(self, item: Mapping[str, Any], index: int) -> dict[str, Any]:
        value, clip = item.get(self.answer), item.get(self.audio)
        answer = self._text(value)
        if self.classes is not None:
            answer = self.classes[value] if value is not None and 0 <= value < len(self.classes) else None
        if answer is None:
            self._remember(self.answer, index, value)
        if _is_blank(clip):
            clip = None
            self._remember(self.audio, index, clip)
        elif self.is_path:
            if isinstance(clip, dict) and clip.get("path") and not clip.get("bytes"):
                clip = clip["path"]
            clip = self._need_text(self.audio, index, clip)
            clip = str(self.folder / os.path.expanduser(clip)) if self.folder else clip
        prompt = self.prompt
        if self.prompts and not _is_blank(item.get(self.prompts)):
            prompt = self._need_text(self.prompts, index, item[self.prompts])
        problem = text_problem(prompt, answer or "", clip is not None)
        if problem is not None:
            raise ValueError(f"source: {self.source!r} has in row {index + 1} {problem}")
        return {"audio": clip, "prompt": prompt, "answer": answer or ""}

    def _text(self, value: Any) -> str | None:
        """A text or number as text; `None` for anything else, or blank."""
        if isinstance(value, bool) or not isinstance(value, (str, int, float)) or _is_blank(value):
            return None
        return str(value) if is_encodable(str(value)) else None

    def _need_text(self, column: str, index: int, value: Any) -> str:
        text = self._text(value)
        if text is None:
            raise ValueError(
                f"source: {self.source!r} has {_short(value)} as {column} in row {index + 1}, expected text or a "
                "number."
            )
        return text

    def _remember(self, column: str, index: int, value: Any) -> None:
        self.count[column] += 1
        self.first.setdefault(column, (index + 1, value))

    def check(self, total: int) -> None:
        """Raises for no rows, a row without an answer, and audio in some rows only."""
        if not total:
            raise ValueError(f"source: {self.source!r} has columns but no rows, expected some.")
        answer = "an answer that is text or a number" if self.classes is None else "a label of a class"
        move = "write paths there, remove the rows, or move text to a separate table without audio"
        for column, what, allowed, advice in (
            (self.answer, answer, (0,), "write answers there, or filter the rows out"),
            (self.audio, "audio", (0, total), move),
        ):
            count = self.count[column]
            if count in allowed:
                continue
            number, value = self.first[column]
            raise ValueError(
                f"source: {self.source!r} has {count:,} of {total:,} rows without {what} in the column {column!r}, "
                f"the first is row {number} ({_short(value)}); {advice}."
            )


def _is_blank(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, dict):  # an undecoded row of an Audio column
        return not any(value.values())
    return value is None or value == b"" or (isinstance(value, float) and math.isnan(value))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _column(what: str, names: Sequence[str], there: Sequence[str], source: str) -> str:
    for name in names:
        if name in there:
            return name
    raise ValueError(
        f"source: {source!r} has the columns {', '.join(there)}, expected one of {', '.join(names)} for the {what}; "
        "rename it."
    )


# -- Folders: read here, since `datasets` makes an Audio column of them, which needs torchcodec even for paths ----


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _metadata(folder: Path) -> Path | None:
    files = {item.name.lower(): item for item in sorted(folder.iterdir()) if item.is_file()}
    return next((files[name] for name in METADATA_FILES if name in files), None)


def _split_folder(folder: Path, split: str) -> Path:
    """The subfolder of a split if it exists: it holds a table or folders, which distinguishes it from a class. Where
    all subfolders are named as splits, none of them is a class."""
    inner = folder / split
    if inner.is_dir() and (_metadata(inner) or any(item.is_dir() for item in inner.iterdir())):
        return inner
    inside = sorted(item.name for item in folder.iterdir() if item.is_dir() and not _is_hidden(item.name))
    if not inside or _metadata(folder) or any(name.lower() not in SPLITS for name in inside):
        return folder
    if split not in inside:
        raise ValueError(
            f"source: the folder {str(folder)!r} has the splits {', '.join(inside)}, expected {split!r} among them; "
            "pass the folder of a split."
        )
    return inner


def _class_folders(folder: Path, prompt: str) -> datasets.Dataset:
    rows: list[dict[str, str]] = []
    left: Counter[str] = Counter()  # files that are skipped, by suffix
    empty = []
    for item in sorted(item for item in folder.iterdir() if not _is_hidden(item.name)):
        if not item.is_dir():
            left[f"{item.suffix.lower() or 'without suffix'} outside of the classes"] += 1
            continue
        before = len(rows)
        for path in sorted(_files_below(item)):
            if path.suffix.lower() in AUDIO_SUFFIXES:
                answer = item.name.replace("_", " ")
                if (problem := text_problem(prompt, answer, True)) is not None:
                    raise ValueError(f"source: the class {item.name!r} of {str(folder)!r} has {problem}")
                rows.append({"audio": str(path), "prompt": prompt, "answer": answer})
            else:
                left[path.suffix.lower() or "without suffix"] += 1
        if len(rows) == before:
            empty.append(item.name)
    if not rows:
        raise ValueError(
            f"source: the folder {str(folder)!r} has neither a {' or '.join(METADATA_FILES)} nor subfolders with "
            f"audio files ({', '.join(AUDIO_SUFFIXES)}), expected one of them."
        )
    if left or empty:
        counts = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(left.items()))
        logger.warning(
            f"source: {left.total():,} files of {str(folder)!r} are skipped{f' ({counts})' if left else ''}; audio is "
            f"{', '.join(AUDIO_SUFFIXES)}." + (f" Classes without audio: {', '.join(empty)}." if empty else "")
        )
    unnamed = next((row["audio"] for row in rows if not is_encodable(row["audio"])), None)
    if unnamed is not None:
        raise ValueError(f"source: {unnamed!r} has a name that is not UTF-8, which a table cannot hold; rename it.")
    return datasets.Dataset.from_list(rows)


def _files_below(folder: Path) -> Iterator[Path]:
    """Files at any depth, through links to folders, but no folder twice."""
    seen = {os.path.realpath(folder.parent)}
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (Path(root, name) for name in files if not _is_hidden(name))


def clip_key(clip: str | bytes | dict[str, Any] | None) -> str | None:
    """A key that rows share exactly if they have the same clip; `None` for a row of text.

    Args:
        clip: The `audio` of [`read_table`]'s rows. Where its content is in the table, its path is only a name, which
            other clips may have too.
    """
    if clip is None or isinstance(clip, str):
        return clip
    content = clip
    if isinstance(clip, dict):
        if audio_file(clip):
            return audio_file(clip)
        content = np.asarray(clip["array"]).tobytes() if "array" in clip else clip.get("bytes") or b""
    return hashlib.sha256(content).hexdigest()


def audio_file(clip: Any) -> str | None:
    """The file of a row's `audio`; `None` where its content is in the table, or the row has none."""
    if isinstance(clip, dict):
        return None if clip.get("bytes") or "array" in clip else clip.get("path")
    return clip if isinstance(clip, str) else None


def rows_with_audio(table: datasets.Dataset, name: str, max_missing: float = 0.0) -> datasets.Dataset:
    """The rows whose audio file exists, or that need none.

    Args:
        table (`datasets.Dataset`): Rows, as [`read_table`] returns them.
        name (`str`): The table's name in errors.
        max_missing (`float`, *optional*, defaults to 0): Largest share of the rows that may be skipped.

    Raises:
        ValueError: No rows, or too many without their file; the message names some of the files.
    """
    clips = (clip for batch in table.select_columns("audio").iter(1000) for clip in batch["audio"])
    paths = [audio_file(clip) for clip in clips]  # never the clips: they may be larger than memory
    files = list(dict.fromkeys(path for path in paths if isinstance(path, str)))
    with ThreadPoolExecutor(16) as pool:
        missing = [path for path, found in zip(files, pool.map(os.path.isfile, files)) if not found]
    lost = set(missing)
    present = [row for row, path in enumerate(paths) if not isinstance(path, str) or path not in lost]
    num_lost = len(paths) - len(present)
    if not paths:
        raise ValueError(f"{name}: got no rows, expected at least one.")
    if not present or num_lost > max_missing * len(paths):
        more = ", ..." if len(missing) > 3 else ""
        raise ValueError(
            f"{name}: the audio of {num_lost:,} of {len(paths):,} rows does not exist "
            f"({', '.join(map(name_in_line, missing[:3]))}{more}), "
            f"more than max_missing={max_missing:g} allows; correct the paths, fetch the files or raise max_missing."
        )
    return table.select(present) if num_lost else table


def table_records(table: Iterable[Mapping[str, Any]], source: str, kind: str = "other") -> Iterator[dict[str, Any]]:
    """Makes records from rows with `audio`, `prompt` and `answer`, such as [`read_table`]'s.

    Args:
        table (iterable of `dict`): The rows; the audio is a path, as is that of undecoded Audio columns.
        source (`str`): The records' source, the name of their dataset.
        kind (`str`, *optional*, defaults to `"other"`): Their kind.

    Raises:
        ValueError: Audio that is in the table and not in a file.
    """
    for number, row in enumerate(table, 1):
        clip = row["audio"]
        path = clip["path"] if isinstance(clip, dict) and not clip.get("bytes") else clip
        if path is not None and not isinstance(path, str):
            raise ValueError(f"table: the audio of row {number} is {type(clip).__name__}, expected a path to a file.")
        yield {"audio": path, "prompt": row["prompt"], "answer": row["answer"], "source": source, "kind": kind}
