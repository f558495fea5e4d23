"""Records to train on: published files of questions and answers, plain tables, and folders of them.

A *record* is a dict `{"audio": path or None, "prompt": text, "answer": text, "source": name of the dataset, "kind":
one of KINDS}`. [`read_openaqa`] and [`read_reasonaqa`] read the files as they are published, one record at a time;
[`write_records`] maps their authors' paths to local ones, skips records without audio and writes a folder of Parquet
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
from sam_lab.common.json_files import is_encodable
from sam_lab.data.coverage import KINDS, AudioCoverage, check_max_missing, check_missing
from sam_lab.data.texts import text_problem

SCHEMA = pyarrow.schema([(name, pyarrow.string()) for name in ("audio", "prompt", "answer", "source", "kind")])
SUMMARY_FILE = "summary.json"
MARKER_FILE = ".records"  # exists while the shards of a folder are being replaced
CHUNK = 10_000  # records whose audio is looked up at once; also the rows of a Parquet row group

# -- Folders of records -------------------------------------------------------------------------------------------


def records_fingerprint(files: Iterable[str | Path], **settings: Any) -> str:
    """An identifier of files and settings: it changes when a file or a setting does.

    Args:
        files (list of `str`): The files; their names, sizes and times of change are used.
        settings: Any JSON values, such as `seed=0`.
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
    """Writes records whose audio exists as Parquet shards, and a summary when all is written.

    A folder with a summary is whole. Existing shards and their summary are replaced when all records are read and
    enough of them have audio: the records may come from the same folder, and an interrupted call does not change it.

    Args:
        records (iterable of `dict`): Read once, and not at all where the folder is reused.
        folder (`str`): Gets `part-00000.parquet`, ... and `summary.json`; shards that an older summary names are
            replaced, others are an error.
        audio_roots (list of `(FROM, TO)`, *optional*): From [`parse_audio_roots`]; local paths are written.
        rows_per_shard (`int`, *optional*, defaults to 100,000): Rows of a file.
        max_missing (`float`, *optional*, defaults to 0.05): Largest share of records, from 0 to 1 and itself allowed,
            that may be skipped because their audio file does not exist: of all, and of each source of at least 100.
        check_audio (`bool`, *optional*, defaults to `True`): Look the files up; without it all records are written.
        fingerprint (`str`, *optional*): From [`records_fingerprint`]. A whole folder of the same fingerprint, audio
            roots and check is reused. Audio that was added later is not noticed: delete the summary then.
        counts (`dict`, *optional*): By collection (`"OpenAQA"`, `"ReasonAQA"`), the `counts` that its reader fills
            while the records are read; `collections` in the summary.
        missing_sources (list of `str`, *optional*): Sources whose audio may be missing, even all of it.

    Returns:
        `dict`: The summary: `rows` (written), `missing` (skipped), `by_source`, `by_kind`, `examples` and
        `unused_roots` as in [`AudioCoverage.summary`], `collections`, `fingerprint`, `audio_roots`, `check_audio`,
        `shards` (`file` and `rows` of each).

    Raises:
        ValueError: The folder is a file, or has other shards or another summary; `max_missing` is not a share; too
            many records without audio, with a table by source; no record; an invalid one.
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
        check_missing(old, max_missing, missing_sources)
        return old
    own_shards(folder)
    coverage = AudioCoverage(audio_roots, check_audio)
    rows: list[dict[str, Any]] = []
    shards: list[dict[str, Any]] = []

    def write_shard() -> None:
        name = f"part-{len(shards):05d}.parquet"
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows[:rows_per_shard], SCHEMA), unfinished(folder / name), row_group_size=CHUNK
        )
        shards.append({"file": name, "rows": min(len(rows), rows_per_shard)})
        del rows[:rows_per_shard]

    with tqdm(desc=f"writing {folder.name}", unit="record") as progress, ExitStack() as lock:
        for number, batch in enumerate(batched(records, CHUNK)):
            if number == 0:
                folder.mkdir(parents=True, exist_ok=True)
                lock.enter_context(locked(folder))
                old = reusable_summary(folder, settings) if fingerprint is not None else None
                if old is not None:  # another process has written it meanwhile
                    check_missing(old, max_missing, missing_sources)
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
        check_missing(summary, max_missing, missing_sources)
        _replace(folder, summary)
    return summary


def _discard_unfinished(folder: Path) -> None:
    for path in folder.glob("part-*.parquet.unfinished"):
        path.unlink()


def own_shards(folder: Path) -> list[Path]:
    """The shards in a folder that [`write_records`] may replace: those that its summary names. Without a summary all
    that have the columns of records, and all where an interrupted call has started to replace them.

    Raises:
        ValueError: The folder is a file, or has other shards or another summary.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder: {str(folder)!r} is a file, expected a folder or nothing; choose another.")
    shards = sorted(folder.glob("part-*.parquet"))
    if (folder / MARKER_FILE).exists():
        return shards
    named = {path.name for path in shards if _has_records(path)}
    if (folder / SUMMARY_FILE).exists():
        try:
            summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
            named &= {shard["file"] for shard in summary["shards"]}
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"folder: {str(folder)!r} has a {SUMMARY_FILE} that does not describe records; choose another folder."
            ) from None
    strange = [path.name for path in shards if path.name not in named]
    if strange:
        raise ValueError(
            f"folder: {str(folder)!r} has {strange[0]}, which is not a shard of records, or not named by its "
            f"{SUMMARY_FILE}; choose another folder, or delete the file if it is not needed."
        )
    return shards


def _has_records(path: Path) -> bool:
    try:
        return pyarrow.parquet.read_schema(path).equals(SCHEMA)
    except (pyarrow.ArrowInvalid, OSError):
        return path.stat().st_size == 0


def _replace(folder: Path, summary: dict[str, Any]) -> None:
    """Replaces existing shards and their summary by the unfinished shards and the new summary."""
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
                "characters; correct or remove the record."
            )
    if record["audio"] is not None and not isinstance(record["audio"], str):
        raise ValueError(
            f"records: number {number} has {type(record['audio']).__name__} as audio, expected a path or None."
        )
    problem = text_problem(record["prompt"], record["answer"], record["audio"] is not None)
    if problem is not None:
        raise ValueError(f"records: number {number} has {problem}")
    if record["kind"] not in KINDS:
        raise ValueError(
            f"records: number {number} is of kind {record['kind']!r}, expected one of {', '.join(KINDS)}."
        )


def read_summary(folder: str | Path) -> dict[str, Any]:
    """The summary of a folder that [`write_records`] has written.

    Raises:
        FileNotFoundError: The summary or a shard that it names is missing: the folder is not whole.
        ValueError: The file is not a summary of records.
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
