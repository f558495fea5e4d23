"""Any number of clips, one after another: from a folder of audio files, or from a `datasets` dataset, streamed or not.

A *clip* has a key that does not depend on the run or the number of processes: the path in its folder, or the number of
its row. The key identifies what was done already, and which process does the rest.
"""

import glob
import hashlib
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow

from sam_lab.common.files import AUDIO_SUFFIXES
from sam_lab.common.names import encodable, name_text
from sam_lab.data.plain_tables import AUDIO_COLUMNS
from sam_lab.data.undecoded import load_undecoded, undecoded

TABLE_KINDS = {
    **{".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json"},
    ".tar": "webdataset",
}
WEBDATASET_KEY = "__key__"  # the column with what the names of a sample's files have in common


@dataclass(frozen=True)
class Clip:
    """One clip.

    Args:
        key (`str`): Its name among the clips; their order is the order of the keys.
        audio: Anything that [`load_audio`] reads.
        path (`str`, *optional*): Its file, if it has a name.
        kept (`dict`): The columns of its row that are passed on.
    """

    key: str
    audio: Any
    path: str | None = None
    kept: dict[str, Any] = field(default_factory=dict)


class _Clips:
    fingerprint: str | None = None

    def count(self, process_index: int, num_processes: int, done: Collection[str] = ()) -> int | None:
        """How many clips `clips` yields."""
        return sum(1 for _ in self._share(process_index, num_processes, done))


class FolderClips(_Clips):
    """The audio files in a folder and its subfolders, sorted by path; links to folders are not followed.

    Attributes:
        skipped (`Counter`): How many files have which other suffix.
        schema (`pyarrow.Schema`): Columns that are passed on: none.
        fingerprint (`str`, *optional*): Of the clips that the keys stand for. A folder needs none: its keys are file
            names.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.skipped: Counter[str] = Counter()
        self.schema = pyarrow.schema([])
        names = []
        for place, _, files in os.walk(folder):
            for name in files:
                suffix = os.path.splitext(name)[1].lower()
                if suffix in AUDIO_SUFFIXES:
                    names.append(os.path.relpath(os.path.join(place, name), folder))
                else:
                    self.skipped[suffix] += 1
        # A name need not be text, but a key is. Of two files with the same one, the one that is no text has "./".
        self.names: dict[str, str] = {}
        for name in sorted(names, key=lambda name: (encodable(name) != name_text(name), os.fsencode(name))):
            key = encodable(name)
            self.names[key if key not in self.names else f"./{key}"] = name
        self.keys = sorted(self.names)

    def clips(self, process_index: int, num_processes: int, done: Collection[str] = ()) -> Iterator[Clip]:
        """This process's share of what is not done. It depends on each path alone, so that files which appear or
        disappear while processes start change nothing for the others."""
        for key in self._share(process_index, num_processes, done):
            yield Clip(key, os.path.join(self.folder, self.names[key]), key)

    def _share(self, process_index, num_processes, done):
        return (
            key for key in self.keys if zlib.crc32(key.encode()) % num_processes == process_index and key not in done
        )


class _RowClips(_Clips):
    """What [`TableClips`] and [`StreamClips`] share: the rows, the column of their undecoded audio, the columns that
    are passed on, and the folder of relative paths."""

    def __init__(self, table: Any, column: str, keep: Sequence[str], base: Path):
        self.table, self.column, self.keep, self.base = table, column, list(keep), base
        self.skipped: Counter[str] = Counter()
        self.schema = pyarrow.schema([table.features.arrow_schema.field(name) for name in keep])

    def clip(self, key: str, row: dict[str, Any]) -> Clip:
        """The clip of a row."""
        audio = row[self.column]
        path = audio.get("path") if isinstance(audio, dict) else audio
        if isinstance(audio, bytes) and WEBDATASET_KEY in row:
            path = f"{row[WEBDATASET_KEY]}.{self.column}"
            audio = {"bytes": audio, "path": path}
        elif isinstance(audio, str) and audio.startswith("hf://"):  # a stream of the Hub's files
            with fsspec.open(audio, "rb") as file:
                audio = {"bytes": file.read(), "path": path}
        elif isinstance(audio, str):
            audio = os.path.join(self.base, audio)
        elif isinstance(audio, dict) and not audio.get("bytes") and path is not None:
            audio = {**audio, "path": os.path.join(self.base, path)}
        return Clip(key, audio, path if isinstance(path, str) else None, {name: row[name] for name in self.keep})


class TableClips(_RowClips):
    """The rows of a `datasets.Dataset`; process `p` of `n` has the rows `p`, `p + n`, `p + 2 n` …"""

    @property
    def fingerprint(self) -> str:
        """Of the number of rows and of their paths: a key is a row's number, and the same numbers in another table are
        other clips."""
        digest = hashlib.sha256()
        column = WEBDATASET_KEY if WEBDATASET_KEY in self.table.column_names else self.column
        for part in self.table.select_columns([column]).with_format("arrow").iter(10_000):
            paths = part[column].combine_chunks()
            if pyarrow.types.is_struct(paths.type):  # bytes and path
                paths = paths.field("path")
            digest.update("".join(f"{path}\n" for path in paths.to_pylist()).encode("utf-8", "backslashreplace"))
        return f"{len(self.table)} rows, {digest.hexdigest()[:16]}"

    def clips(self, process_index: int, num_processes: int, done: Collection[str] = ()) -> Iterator[Clip]:
        """This process's share of what is not done."""
        for row in self._share(process_index, num_processes, done):
            yield self.clip(f"{row:010d}", self.table[row])

    def _share(self, process_index, num_processes, done):
        return (row for row in range(process_index, len(self.table), num_processes) if f"{row:010d}" not in done)


class StreamClips(_RowClips):
    """The rows of a `datasets.IterableDataset`, by file and row of the file.

    Each process has whole files where there are at least as many as processes. Else every process reads all files and
    has every n-th row. A resumed run reads past what is done, and relies on unchanged files.
    """

    def clips(self, process_index: int, num_processes: int, done: Collection[str] = ()) -> Iterator[Clip]:
        """This process's share of what is not done."""
        num_files = self.table.num_shards
        by_file = num_files >= num_processes
        for file in range(process_index, num_files, num_processes) if by_file else range(num_files):
            for row, item in enumerate(self.table.shard(num_files, file)):
                key = f"{file:06d}-{row:010d}"
                if (by_file or row % num_processes == process_index) and key not in done:
                    yield self.clip(key, item)

    def count(self, process_index: int, num_processes: int, done: Collection[str] = ()) -> int | None:
        """Unknown: `None`."""
        return None


def open_clips(
    source: str,
    split: str = "train",
    audio_column: str | None = None,
    keep: Sequence[str] = (),
    streaming: bool = False,
) -> FolderClips | TableClips | StreamClips:
    """Finds the clips of a folder or a dataset.

    Args:
        source (`str`): One of

            - a folder with audio files in it or in its subfolders;
            - a folder that `datasets` wrote with `save_to_disk`, or with Parquet, Arrow, CSV, JSON or WebDataset
              files;
            - one such file;
            - the name of a dataset on the Hub.
        split (`str`, *optional*, defaults to `"train"`): Split of a dataset.
        audio_column (`str`, *optional*): The dataset's column of audio or of paths, relative to the file or folder. By
            default the first Audio column, else `audio`, `file`, `path` or `file_name`.
        keep (list of `str`, *optional*): Columns of the dataset that are passed on.
        streaming (`bool`, *optional*, defaults to `False`): Read a dataset row by row, without preparing it on disk.

    Returns:
        [`FolderClips`], [`TableClips`] or [`StreamClips`].

    Raises:
        FileNotFoundError: A path that does not exist, or a dataset that the Hub does not have.
        ValueError: A folder without audio or tables, a missing split or column, an option that does not fit.
    """
    path = Path(source)
    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if path.is_dir() and not saved:
        folder = FolderClips(path)
        if folder.keys:
            given = {"audio_column": audio_column, "keep": list(keep), "streaming": streaming}
            wrong = [name for name, value in given.items() if value]
            if wrong:
                raise ValueError(
                    f"{', '.join(wrong)}: given for {source!r}, a folder of audio files, expected a dataset; remove "
                    "it."
                )
            return folder
        if not folder.skipped.keys() & TABLE_KINDS.keys():
            found = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in folder.skipped.items())
            raise ValueError(
                f"source: the folder {source!r} has no audio files ({', '.join(AUDIO_SUFFIXES)}) and no dataset "
                f"({', '.join(TABLE_KINDS)}), found: {found or 'nothing'}."
            )
    table, columns = _load_table(source, path, saved, split, streaming)
    base = path if path.is_dir() else path.parent
    column = _audio_column(table.features, columns, audio_column, source)
    absent = [name for name in keep if name not in table.features]
    if absent or column in keep:
        raise ValueError(
            f"keep: got {(absent or [column])[0]!r}, expected columns of {source!r} other than its audio: "
            f"{', '.join(name for name in table.features if name != column)}."
        )
    names = [WEBDATASET_KEY] if column in columns and WEBDATASET_KEY in table.features else []
    table = table.select_columns(list(dict.fromkeys([column, *keep, *names])))
    if isinstance(table, datasets.IterableDataset):
        return StreamClips(table, column, keep, base)
    return TableClips(table, column, keep, base)


def _load_table(
    source: str, path: Path, saved: bool, split: str, streaming: bool
) -> tuple[datasets.Dataset | datasets.IterableDataset, list[str]]:
    if saved:
        if streaming:
            raise ValueError(f"streaming: given for {source!r}, which is prepared on disk already; remove it.")
        table = datasets.load_from_disk(source)
        if isinstance(table, datasets.DatasetDict):
            if split not in table:
                raise ValueError(f"split: got {split!r}, expected one of {', '.join(table)} of {source!r}.")
            table = table[split]
        return undecoded(table)
    name, files = source, None
    if path.is_file():
        if path.suffix not in TABLE_KINDS:
            raise ValueError(f"source: got the file {source!r}, expected a folder or one of {', '.join(TABLE_KINDS)}.")
        name, files = TABLE_KINDS[path.suffix], {split: glob.escape(str(path))}
    elif not path.is_dir() and (
        path.is_absolute() or source.startswith(".") or source.count("/") > 1 or path.suffix in TABLE_KINDS
    ):
        raise FileNotFoundError(f"source: there is no file or folder {source!r}.")
    try:
        table, columns = load_undecoded(name, split, streaming, files)
        if table.features is None:  # a stream of CSV or JSON: read from its first row
            first = next(iter(table))
            table = table.cast(datasets.Features.from_arrow_schema(pyarrow.Table.from_pylist([first]).schema))
        return table, columns
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"source: got {source!r}, which is not a file or folder and not available from the Hub: {error}"
        ) from error
    except StopIteration:
        raise ValueError(f"source: {source!r} has no rows in the split {split!r}.") from None
    except (datasets.exceptions.DatasetGenerationError, ValueError, tarfile.TarError) as error:
        reason = error.__cause__ or error  # the first only states that it failed
        raise ValueError(f"source: {source!r}, split {split!r}, cannot be read, or has no rows: {reason}") from error


def _audio_column(features: datasets.Features, audio: Sequence[str], given: str | None, source: str) -> str:
    columns = [*audio, *(name for name in AUDIO_COLUMNS if name in features)]
    if given is not None and given not in features:
        raise ValueError(
            f"audio_column: got {given!r}, expected one of {', '.join(features)}, the columns of {source!r}."
        )
    if given is None and not columns:
        raise ValueError(
            f"audio_column: {source!r} has no Audio column and none of {', '.join(AUDIO_COLUMNS)}; name one of its "
            f"columns: {', '.join(features)}."
        )
    return columns[0] if given is None else given
