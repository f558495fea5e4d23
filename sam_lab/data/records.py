"""Records to train on: published files of questions and answers, plain tables, and folders of them.

A *record* is a dict `{"audio": path or None, "prompt": text, "answer": text, "source": name of the dataset, "kind": one
of KINDS}`. [`read_openaqa`] and [`read_reasonaqa`] read the files as they are published, one record at a time;
[`write_records`] maps their authors' paths to yours, leaves out what has no audio and writes a folder of Parquet
shards with a summary; [`records_dataset`] reads such a folder. Plain tables are read by `plain_tables.py`.
"""

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
from tqdm.auto import tqdm

from sam_lab.common.files import locked, publish, unfinished, write_json
from sam_lab.common.iteration import batched
from sam_lab.data.coverage import KINDS, AudioCoverage, check_coverage, check_max_missing
from sam_lab.data.published import is_encodable

SCHEMA = pyarrow.schema([(name, pyarrow.string()) for name in ("audio", "prompt", "answer", "source", "kind")])
SUMMARY_FILE = "summary.json"
MARKER_FILE = ".records"  # there while the shards of a folder are being replaced
CHUNK = 10_000  # records whose audio is looked up at once; also the rows of a Parquet row group

# ---------------------------------------------------------------------------------------------------------------
# Folders of records
# ---------------------------------------------------------------------------------------------------------------


def records_fingerprint(files: Iterable[str | Path], **settings: Any) -> str:
    """A name for what is read from files with some settings: it changes when a file or a setting does.

    Args:
        files (list of `str`): The files; their names, sizes and times of change are taken.
        settings: Anything that JSON can hold, such as `seed=0`.
    """
    stats = [(str(Path(file).resolve()), os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([stats, settings], sort_keys=True).encode()).hexdigest()[:16]


def write_records(
    records: Iterable[dict[str, Any]],
    folder: str | Path,
    audio_roots: Sequence[tuple[str, str]] = (),
    rows_per_shard: int = 100_000,
    max_missing: float = 0.05,
    check_audio: bool = True,
    fingerprint: str | None = None,
    counts: Mapping[str, Mapping[str, int]] | None = None,
    missing_sources: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes records whose audio is there as Parquet shards, and a summary when all is written.

    A folder with a summary is whole. Shards and summary of an earlier writing are replaced when all records are read
    and enough of them have audio: the records may come from the same folder, and a writing that was broken off leaves
    the folder as it was.

    Args:
        records (iterable of `dict`): They are read once, and not at all where the folder is reused.
        folder (`str`): Gets `part-00000.parquet`, ... and `summary.json`; shards that an older summary names are
            replaced, others are refused.
        audio_roots (list of `(FROM, TO)`, *optional*): From [`parse_audio_roots`]; the folder has the new paths.
        rows_per_shard (`int`, *optional*, defaults to 100,000): Rows of a file.
        max_missing (`float`, *optional*, defaults to 0.05): Largest share of records, from 0 to 1 and itself allowed,
            that may be left out because their audio file does not exist: of all, and of each source of at least 100.
        check_audio (`bool`, *optional*, defaults to `True`): Look for the files; without it all records are written.
        fingerprint (`str`, *optional*): Such as [`records_fingerprint`] gives. A whole folder of the same fingerprint,
            audio roots and check is left as it is. Audio that came later is not seen: delete the summary then.
        counts (`dict`, *optional*): By collection (`"OpenAQA"`, `"ReasonAQA"`), the `counts` that its reader fills
            while the records are read; the summary has them as `collections`.
        missing_sources (list of `str`, *optional*): Sources whose audio may be missing, even all of it.

    Returns:
        `dict`: The summary: `rows` (written), `missing` (left out), `by_source` and `by_kind` as in
        [`AudioCoverage.summary`], `examples`, `unused_roots`, `collections`, `fingerprint`, `audio_roots`, `check_audio`, `shards` (`file` and
        `rows` of each).

    Raises:
        ValueError: The folder is a file, or has shards or a summary of something else; `max_missing` is no share; too
            many records without audio, with a table by source; no record; one that is none.
    """
    folder = Path(folder)
    check_max_missing(max_missing)
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard: got {rows_per_shard}, expected a positive number.")
    settings = {
        "fingerprint": fingerprint,
        "audio_roots": [list(root) for root in audio_roots],
        "check_audio": check_audio,
    }
    old = reusable_summary(folder, settings) if fingerprint is not None else None
    if old is not None:
        check_coverage(old, max_missing, missing_sources)
        return old
    own_shards(folder)
    coverage = AudioCoverage(audio_roots, check_audio)
    progress = tqdm(desc=f"writing {folder.name}", unit="record")
    rows: list[dict[str, Any]] = []
    shards: list[dict[str, Any]] = []

    def write_shard() -> None:
        name = f"part-{len(shards):05d}.parquet"
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows[:rows_per_shard], SCHEMA), unfinished(folder / name), row_group_size=CHUNK
        )
        shards.append({"file": name, "rows": min(len(rows), rows_per_shard)})
        del rows[:rows_per_shard]

    lock = ExitStack()
    try:
        for number, batch in enumerate(batched(records, CHUNK)):
            if number == 0:
                folder.mkdir(parents=True, exist_ok=True)
                lock.enter_context(locked(folder))
                old = reusable_summary(folder, settings) if fingerprint is not None else None
                if old is not None:  # another process has written it meanwhile
                    check_coverage(old, max_missing, missing_sources)
                    return old
                _discard_unfinished(folder)  # of a process that was killed
                lock.callback(_discard_unfinished, folder)
            for index, record in enumerate(batch):
                _check_record(record, number * CHUNK + index + 1)
            rows += [record for record in coverage(batch) if record is not None]
            progress.update(len(batch))
            while len(rows) >= rows_per_shard:
                write_shard()
        if rows:
            write_shard()
        collections = {name: dict(read) for name, read in (counts or {}).items()}
        summary = {**coverage.summary(), "collections": collections, **settings, "shards": shards}
        check_coverage(summary, max_missing, missing_sources)
        _replace(folder, summary)
    finally:
        progress.close()
        lock.close()
    return summary


def _discard_unfinished(folder: Path) -> None:
    for path in folder.glob("part-*.parquet.unfinished"):
        path.unlink()


def own_shards(folder: Path) -> list[Path]:
    """The shards in a folder that [`write_records`] may replace: those that its summary names; where there is none, or
    it was broken off while it replaced them, all that have the columns of records.

    Raises:
        ValueError: The folder is a file, or has shards or a summary of something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder: {str(folder)!r} is a file, expected a folder or nothing; name another.")
    there = sorted(folder.glob("part-*.parquet"))
    if (folder / MARKER_FILE).exists():
        return there
    named = {path.name for path in there if _has_records(path)}
    if (folder / SUMMARY_FILE).exists():
        try:
            summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
            named &= {shard["file"] for shard in summary["shards"]}
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"folder: {str(folder)!r} has a {SUMMARY_FILE} that is none of a folder of records; name another folder."
            ) from None
    strange = [path.name for path in there if path.name not in named]
    if strange:
        raise ValueError(
            f"folder: {str(folder)!r} has {strange[0]}, which is no shard of records, or one that its {SUMMARY_FILE} does "
            "not name; name another folder, or delete the file if it is not needed."
        )
    return there


def _has_records(path: Path) -> bool:
    try:
        return pyarrow.parquet.read_schema(path).equals(SCHEMA)
    except (pyarrow.ArrowInvalid, OSError):
        return path.stat().st_size == 0


def _replace(folder: Path, summary: dict[str, Any]) -> None:
    """Puts the unfinished shards and the summary in the place of what an earlier writing left."""
    old = own_shards(folder)
    (folder / MARKER_FILE).touch()
    (folder / SUMMARY_FILE).unlink(missing_ok=True)
    for path in old:
        path.unlink()
    for shard in summary["shards"]:
        publish(folder / shard["file"])
    write_json(summary, folder / SUMMARY_FILE)
    (folder / MARKER_FILE).unlink()


def _check_record(record: dict[str, Any], number: int) -> None:
    if set(record) != set(SCHEMA.names):
        raise ValueError(
            f"records: number {number} has the keys {', '.join(map(str, record))}, expected {', '.join(SCHEMA.names)}."
        )
    for key in ("prompt", "answer", "source", "kind"):
        if not isinstance(record[key], str) or not record[key]:
            raise ValueError(f"records: number {number} has {record[key]!r} as {key}, expected text.")
    for key, value in record.items():
        if isinstance(value, str) and not is_encodable(value):
            raise ValueError(
                f"records: number {number} has half of a surrogate pair in its {key}, {value!r}, expected whole "
                "characters; correct it or leave the record out."
            )
    if record["audio"] is not None and not isinstance(record["audio"], str):
        raise ValueError(
            f"records: number {number} has {type(record['audio']).__name__} as audio, expected a path or None."
        )
    if record["kind"] not in KINDS:
        raise ValueError(
            f"records: number {number} is of kind {record['kind']!r}, expected one of {', '.join(KINDS)}."
        )


def read_summary(folder: str | Path) -> dict[str, Any]:
    """The summary of a folder that [`write_records`] has written.

    Raises:
        FileNotFoundError: There is none, or a shard that it names is missing: the folder is not whole.
        ValueError: It is another file of that name.
    """
    path = Path(folder) / SUMMARY_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"folder: {str(folder)!r} has no {SUMMARY_FILE}, which is written last; write the records (again)."
        )
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # not even JSON
        summary = None
    if not isinstance(summary, dict) or not {"rows", "shards"} <= summary.keys():
        raise ValueError(f"folder: {str(path)!r} is not what write_records writes; move it elsewhere.")
    missing = [shard["file"] for shard in summary["shards"] if not (path.parent / shard["file"]).is_file()]
    if missing:
        raise FileNotFoundError(
            f"folder: {str(folder)!r} lacks {missing[0]}, which its {SUMMARY_FILE} names; delete {SUMMARY_FILE} and "
            "write the records again."
        )
    return summary


def reusable_summary(folder: str | Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary of a whole folder that was written with these settings, or `None`."""
    try:
        summary = read_summary(folder)
    except FileNotFoundError:
        return None
    return summary if all(summary.get(key) == value for key, value in settings.items()) else None


def records_dataset(folder: str | Path, streaming: bool = True) -> datasets.IterableDataset | datasets.Dataset:
    """The records of a folder, in the order they were written.

    Args:
        folder (`str`): From [`write_records`].
        streaming (`bool`, *optional*, defaults to `True`): Read the shards as they are needed; else `datasets` copies
            them into its cache.

    Returns:
        `datasets.IterableDataset` (or `datasets.Dataset`) with the columns `audio`, `prompt`, `answer`, `source`,
        `kind`, all text; one shard of the dataset is one file.

    Raises:
        FileNotFoundError: The folder is not whole.
    """
    files = [glob.escape(str(Path(folder) / shard["file"])) for shard in read_summary(folder)["shards"]]
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming)
