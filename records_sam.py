"""Records to train on: published files of questions and answers, plain tables, and what of their audio is there.

A *record* is a dict `{"audio": path or None, "prompt": text, "answer": text, "source": name of the dataset, "kind": one
of KINDS}`. [`read_openaqa`] and [`read_reasonaqa`] read the files as they are published, one record at a time;
[`write_records`] maps their authors' paths to yours, leaves out what has no audio and writes a folder of Parquet
shards with a summary; [`records_dataset`] reads such a folder. Plain tables are read by `tabular_sam.py`.
"""

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
from tqdm.auto import tqdm

from published_sam import read_openaqa, read_reasonaqa
from tabular_sam import DEFAULT_PROMPT, read_table, table_records

KINDS = ("closed", "open", "binary", "multiple_choice", "caption", "detail", "other")
SCHEMA = pyarrow.schema([(name, pyarrow.string()) for name in ("audio", "prompt", "answer", "source", "kind")])
SUMMARY_FILE = "summary.json"
REASONAQA_SOURCES = ("audiocaps", "clothov21")
PUBLISHED_COUNTS = {"OpenAQA closed": 1_917_894, "OpenAQA open": 3_763_814, "ReasonAQA (train)": 968_071}
TWO_AUDIO_COUNT = 203_565  # of ReasonAQA's training records
CHUNK = 10_000  # records whose audio is looked up at once; also the rows of a Parquet row group

# ---------------------------------------------------------------------------------------------------------------
# Audio
# ---------------------------------------------------------------------------------------------------------------


def parse_audio_roots(values: Iterable[str]) -> list[tuple[str, str]]:
    """Reads `FROM=TO`: files whose path begins with the folder FROM are under the folder TO here.

    Args:
        values (list of `str`): One a folder, as `--audio-root` gives them. An empty FROM (`=TO`) stands for all
            relative paths, such as ReasonAQA's.

    Raises:
        ValueError: No `=`, nothing behind it, or a FROM with two different TO.
    """
    roots: dict[str, str] = {}
    for value in values:
        source, equals, target = value.partition("=")
        if not equals or not target:
            raise ValueError(
                f"--audio-root: got {value!r}, expected FROM=TO, such as /data/sls/audioset=/mnt/audioset."
            )
        target = os.path.expanduser(target)
        if roots.setdefault(source, target) != target:
            raise ValueError(f"--audio-root: got {source!r} twice, as {roots[source]!r} and {target!r}, expected one.")
    return list(roots.items())


def map_audio(path: str, roots: Sequence[tuple[str, str]]) -> str:
    """The path here of an audio file there: the longest FROM that it lies in is replaced by its TO.

    Args:
        path (`str`): As the record has it.
        roots (list of `(FROM, TO)`): From [`parse_audio_roots`]. Whole folders match: `/data/a` is not in `/data/audio`.

    Returns:
        `str`: The new path, or the old one where nothing matches.
    """
    best = None
    for source, target in roots:
        head = source.rstrip("/") + "/" if source else ""
        inside = path.startswith(head) if head else not path.startswith("/")
        if inside and (best is None or len(head) > len(best[0])):
            best = head, target
    return path if best is None else os.path.join(best[1], path[len(best[0]) :].lstrip("/"))


class AudioCoverage:
    """Finds the records' audio and counts by source and kind what is there; each file is looked up once.

    Args:
        audio_roots (list of `(FROM, TO)`, *optional*): From [`parse_audio_roots`].
        check_audio (`bool`, *optional*, defaults to `True`): Without it every file is taken to be there.
        num_threads (`int`, *optional*, defaults to 16): Threads that look files up.
    """

    def __init__(self, audio_roots: Sequence[tuple[str, str]] = (), check_audio: bool = True, num_threads: int = 16):
        self.audio_roots, self.check_audio, self.num_threads = list(audio_roots), check_audio, num_threads
        self.exists: dict[str, bool] = {}
        self.rows: Counter[tuple[str, str, bool]] = Counter()  # (source, kind, whether it is there)
        self.clips: dict[str, set[str]] = {}  # by source

    def __call__(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any] | None]:
        """The same records with the paths of here; `None` in the place of one whose audio is not there."""
        mapped = [
            record if record["audio"] is None else {**record, "audio": map_audio(record["audio"], self.audio_roots)}
            for record in records
        ]
        paths = [path for path in dict.fromkeys(record["audio"] for record in mapped) if path is not None]
        new = [path for path in paths if path not in self.exists]
        if self.check_audio and new:
            with ThreadPoolExecutor(self.num_threads) as pool:
                self.exists.update(zip(new, pool.map(os.path.isfile, new)))
        else:
            self.exists.update(dict.fromkeys(new, True))
        result = []
        for record in mapped:
            path, source = record["audio"], record["source"]
            found = path is None or self.exists[path]
            self.rows[source, record["kind"], found] += 1
            clips = self.clips.setdefault(source, set())
            if path is not None:
                clips.add(path)
            result.append(record if found else None)
        return result

    def summary(self) -> dict[str, Any]:
        """`rows` with audio, `missing` rows without, both also `by_source` (with the distinct `clips`, the
        `missing_clips`, and all rows by `kinds`) and `rows` `by_kind`."""
        by_source = {}
        for source, clips in sorted(self.clips.items()):
            ours = {(kind, there): count for (name, kind, there), count in self.rows.items() if name == source}
            present = sum(self.exists[clip] for clip in clips)
            kinds: Counter[str] = Counter()
            for (kind, _), count in ours.items():
                kinds[kind] += count
            by_source[source] = {
                "rows": sum(count for (_, there), count in ours.items() if there),
                "missing": sum(count for (_, there), count in ours.items() if not there),
                "clips": present,
                "missing_clips": len(clips) - present,
                "kinds": dict(sorted(kinds.items())),
            }
        by_kind: Counter[str] = Counter()
        for (_, kind, there), count in self.rows.items():
            by_kind[kind] += count if there else 0
        return {
            "rows": sum(entry["rows"] for entry in by_source.values()),
            "missing": sum(entry["missing"] for entry in by_source.values()),
            "by_source": by_source,
            "by_kind": {kind: by_kind[kind] for kind in KINDS if by_kind[kind]},
        }


def check_coverage(summary: dict[str, Any], max_missing: float) -> None:
    """Raises `ValueError`, with the table of [`coverage_table`], where no row or too few rows have their audio."""
    total = summary["rows"] + summary["missing"]
    if total == 0:
        raise ValueError("records: there are none, expected at least one; look at the files they are read from.")
    if summary["missing"] > max_missing * total or summary["rows"] == 0:
        raise ValueError(
            f"{summary['missing']:,} of {total:,} records have no audio file, more than max_missing={max_missing:.1%}. "
            "Say with --audio-root FROM=TO where the folders of the published paths are here, fetch what is missing, or "
            f"raise max_missing.\n{coverage_table(summary)}"
        )


def coverage_table(summary: dict[str, Any]) -> str:
    """A table of what is there by source, and how many records there are beside how many were published.

    Args:
        summary (`dict`): From [`write_records`] or [`AudioCoverage`].

    Returns:
        `str`: Lines. ReasonAQA's are the records of its two sources that are neither closed nor open questions.
    """
    rows = [("source", "rows", "missing", "covered", "clips", "missing clips")]
    entries = list(summary["by_source"].items())
    names = ("rows", "missing", "clips", "missing_clips")
    totals = {name: sum(entry[name] for _, entry in entries) for name in names}
    for source, entry in [*entries, ("all", totals)]:
        share = entry["rows"] / max(entry["rows"] + entry["missing"], 1)
        counts = [f"{entry[name]:,}" for name in names]
        rows.append((source, *counts[:2], f"{share:.1%}", *counts[2:]))
    found: Counter[str] = Counter()
    for source, entry in entries:
        for kind, count in entry["kinds"].items():
            if kind in ("open", "closed"):
                found[f"OpenAQA {kind}"] += count
            elif source in REASONAQA_SOURCES:
                found["ReasonAQA (train)"] += count
            elif kind == "caption":
                found["OpenAQA closed"] += count
    lines = [text_table(rows), ""]
    for name, published in PUBLISHED_COUNTS.items():
        note = f", {TWO_AUDIO_COUNT:,} of them on two clips" if name.startswith("Reason") else ""
        lines.append(f"{name}: {found[name]:,} read, {published:,} published{note}")
    return "\n".join(lines)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


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
) -> dict[str, Any]:
    """Writes records whose audio is there as Parquet shards, and a summary when all is written.

    A folder with a summary is whole: a writing that was broken off leaves none, and is done again.

    Args:
        records (iterable of `dict`): They are read once, and not at all where the folder is reused.
        folder (`str`): Gets `part-00000.parquet`, ... and `summary.json`; an older summary and shards are replaced.
        audio_roots (list of `(FROM, TO)`, *optional*): From [`parse_audio_roots`]; the folder has the new paths.
        rows_per_shard (`int`, *optional*, defaults to 100,000): Rows of a file.
        max_missing (`float`, *optional*, defaults to 0.05): Largest share of records that may be left out because
            their audio file does not exist.
        check_audio (`bool`, *optional*, defaults to `True`): Look for the files; without it all records are written.
        fingerprint (`str`, *optional*): Such as [`records_fingerprint`] gives. A whole folder of the same fingerprint,
            audio roots and check is left as it is. Audio that came later is not seen: delete the summary then.

    Returns:
        `dict`: The summary: `rows` (written), `missing` (left out), `by_source` and `by_kind` as in
        [`AudioCoverage.summary`], `fingerprint`, `audio_roots`, `check_audio`, `shards` (`file` and `rows` of each).

    Raises:
        ValueError: Too many records without audio, with a table by source; no record; one that is none.
    """
    folder = Path(folder)
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard: got {rows_per_shard}, expected a positive number.")
    settings = {
        "fingerprint": fingerprint,
        "audio_roots": [list(root) for root in audio_roots],
        "check_audio": check_audio,
    }
    old = reusable_summary(folder, settings) if fingerprint is not None else None
    if old is not None:
        check_coverage(old, max_missing)
        return old
    coverage = AudioCoverage(audio_roots, check_audio)
    progress = tqdm(desc=f"writing {folder.name}", unit="record")
    rows: list[dict[str, Any]] = []
    shards: list[dict[str, Any]] = []

    def write_shard() -> None:
        name = f"part-{len(shards):05d}.parquet"
        unfinished = folder / f"{name}.unfinished"
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows[:rows_per_shard], SCHEMA), unfinished, row_group_size=CHUNK
        )
        os.replace(unfinished, folder / name)
        shards.append({"file": name, "rows": min(len(rows), rows_per_shard)})
        del rows[:rows_per_shard]

    for number, batch in enumerate(batched(records, CHUNK)):
        if number == 0:  # not earlier: records that cannot be read leave a whole folder whole
            _clear(folder)
        for index, record in enumerate(batch):
            _check_record(record, number * CHUNK + index + 1)
        rows += [record for record in coverage(batch) if record is not None]
        progress.update(len(batch))
        while len(rows) >= rows_per_shard:
            write_shard()
    if rows:
        write_shard()
    progress.close()
    summary = {**coverage.summary(), **settings, "shards": shards}
    check_coverage(summary, max_missing)
    write_json(summary, folder / SUMMARY_FILE)
    return summary


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one shorter."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def write_json(value: Any, path: Path) -> None:
    """Writes JSON so that the file is there whole or not at all."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def _clear(folder: Path) -> None:
    """Makes the folder, without what an earlier writing left; the summary goes first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMMARY_FILE).unlink(missing_ok=True)
    for path in [*folder.glob("part-*.parquet"), *folder.glob("part-*.parquet.unfinished")]:
        path.unlink()


def _check_record(record: dict[str, Any], number: int) -> None:
    if set(record) != set(SCHEMA.names):
        raise ValueError(
            f"records: number {number} has the keys {', '.join(map(str, record))}, expected {', '.join(SCHEMA.names)}."
        )
    for key in ("prompt", "answer", "source", "kind"):
        if not isinstance(record[key], str) or not record[key]:
            raise ValueError(f"records: number {number} has {record[key]!r} as {key}, expected text.")
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
    """
    path = Path(folder) / SUMMARY_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"folder: {str(folder)!r} has no {SUMMARY_FILE}, which is written last; write the records (again)."
        )
    summary = json.loads(path.read_text(encoding="utf-8"))
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
    files = [str(Path(folder) / shard["file"]) for shard in read_summary(folder)["shards"]]
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming)


__all__ = [
    "DEFAULT_PROMPT",
    "KINDS",
    "AudioCoverage",
    "coverage_table",
    "map_audio",
    "parse_audio_roots",
    "read_openaqa",
    "read_reasonaqa",
    "read_summary",
    "read_table",
    "records_dataset",
    "records_fingerprint",
    "table_records",
    "write_records",
]
