"""Records to train on: published files of questions and answers, plain tables, and what of their audio is there.

A *record* is a dict `{"audio": path or None, "prompt": text, "answer": text, "source": name of the dataset, "kind": one
of KINDS}`. [`read_openaqa`] and [`read_reasonaqa`] read the files as they are published, one record at a time;
[`write_records`] maps their authors' paths to yours, leaves out what has no audio and writes a folder of Parquet
shards with a summary; [`records_dataset`] reads such a folder. Plain tables are read by `tabular_sam.py`.
"""

import glob
import hashlib
import itertools
import json
import os
import posixpath
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
from tqdm.auto import tqdm

from published_sam import is_encodable, read_openaqa, read_reasonaqa
from tabular_sam import DEFAULT_PROMPT, read_table, table_records

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

KINDS = ("closed", "open", "binary", "multiple_choice", "caption", "detail", "other")
SCHEMA = pyarrow.schema([(name, pyarrow.string()) for name in ("audio", "prompt", "answer", "source", "kind")])
SUMMARY_FILE = "summary.json"
MARKER_FILE = ".records"  # there while the shards of a folder are being replaced
# By collection: what is counted of its files, how many of it were published, and in which file.
PUBLISHED_COUNTS = {
    "OpenAQA": {"closed": 1_917_894, "open": 3_763_814},
    "ReasonAQA": {"records": 968_071},  # of train.json
}
# What readers leave out, as they count it.
LEFT_OUT = {
    "two_audio": "on two clips",
    "unanswered": "with an empty answer",
    "unanswerable": "whose answer says that there is none",
}
CHUNK = 10_000  # records whose audio is looked up at once; also the rows of a Parquet row group

# ---------------------------------------------------------------------------------------------------------------
# Audio
# ---------------------------------------------------------------------------------------------------------------


def parse_audio_roots(values: Iterable[str]) -> list[tuple[str, str]]:
    """Reads `FROM=TO`: files whose path begins with the folder FROM are under the folder TO here.

    Args:
        values (list of `str`): One a folder, as `--audio-root` gives them. An empty FROM (`=TO`) stands for all
            relative paths, such as ReasonAQA's. An equals sign that belongs to a folder is written `\\=`; without
            that, of several the one is taken that has an existing folder as TO.

    Raises:
        ValueError: No `=`, nothing behind it, several of which any could be meant, or a FROM with two different TO.
    """
    roots: dict[str, str] = {}
    for value in values:
        pieces = re.split(r"(?<!\\)=", value)
        pairs = [("=".join(pieces[:index]), "=".join(pieces[index:])) for index in range(1, len(pieces))]
        pairs = [tuple(side.replace("\\=", "=") for side in pair) for pair in pairs if pair[1]]
        if not pairs:
            raise ValueError(
                f"--audio-root: got {value!r}, expected FROM=TO, such as /data/sls/audioset=/mnt/audioset."
            )
        if len(pairs) > 1:
            pairs = [pair for pair in pairs if os.path.isdir(os.path.expanduser(pair[1]))]
        if len(pairs) != 1:
            raise ValueError(
                f"--audio-root: got {value!r}, in which several = could divide FROM=TO; write \\= for each that belongs "
                "to a folder."
            )
        source, target = _normal(pairs[0][0]), os.path.normpath(os.path.expanduser(pairs[0][1]))
        if roots.setdefault(source, target) != target:
            raise ValueError(f"--audio-root: got {source!r} twice, as {roots[source]!r} and {target!r}, expected one.")
    return list(roots.items())


def _normal(path: str) -> str:
    """A published path without `.`, `//` and a `/` at its end; the folder itself is empty."""
    path = posixpath.normpath(path)
    return "" if path == "." else re.sub("^//", "/", path)


def map_audio(path: str, roots: Sequence[tuple[str, str]]) -> str:
    """The path here of an audio file there: the longest FROM that it lies in is replaced by its TO.

    Args:
        path (`str`): As the record has it; `./a//b` lies in `a` as `a/b` does.
        roots (list of `(FROM, TO)`): From [`parse_audio_roots`]. Whole folders match: `/data/a` is not in `/data/audio`.

    Returns:
        `str`: The new path, or the old one where nothing matches.
    """
    root = _fitting_root(path, roots)
    return path if root is None else _moved(path, root)


def _moved(path: str, root: tuple[str, str]) -> str:
    return os.path.join(root[1], _normal(path)[len(_head(root[0])) :])


def _fitting_root(path: str, roots: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    there = _normal(path)
    fitting = [root for root in roots if _is_inside(there, _head(root[0]))]
    return max(fitting, key=lambda root: len(_head(root[0])), default=None)


@lru_cache(maxsize=256)
def _head(source: str) -> str:
    source = _normal(source)
    return source.rstrip("/") + "/" if source else ""


def _is_inside(path: str, head: str) -> bool:
    return path.startswith(head) if head else not path.startswith("/")


def check_audio_roots(roots: Sequence[tuple[str, str]]) -> None:
    """Raises `ValueError` where a folder is not there."""
    for source, target in roots:
        if not os.path.isdir(target):
            raise ValueError(f"--audio-root: {source}={target}: there is no folder {target!r}; correct it.")


class AudioCoverage:
    """Finds the records' audio and counts by source and kind what is there; each file is looked up once.

    Args:
        audio_roots (list of `(FROM, TO)`, *optional*): From [`parse_audio_roots`].
        check_audio (`bool`, *optional*, defaults to `True`): Without it every file is taken to be there.
        num_threads (`int`, *optional*, defaults to 16): Threads that look files up.

    Raises:
        ValueError: A folder of `audio_roots` is not there.
    """

    def __init__(self, audio_roots: Sequence[tuple[str, str]] = (), check_audio: bool = True, num_threads: int = 16):
        self.audio_roots = [(source, target) for source, target in audio_roots]
        self.check_audio, self.num_threads = check_audio, num_threads
        if check_audio:
            check_audio_roots(self.audio_roots)
        self.used_roots: set[tuple[str, str]] = set()
        self.examples: dict[
            str, list[str]
        ] = {}  # by source, a missing file: as the record has it, and where it should be
        self.exists: dict[str, bool] = {}
        self.rows: Counter[tuple[str, str, bool]] = Counter()  # (source, kind, whether it is there)
        self.clips: dict[str, set[str]] = {}  # by source

    def __call__(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any] | None]:
        """The same records with the paths of here; `None` in the place of one whose audio is not there."""
        mapped = [
            record if record["audio"] is None else {**record, "audio": self._map(record["audio"])}
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
        for record, published in zip(mapped, (record["audio"] for record in records)):
            path, source = record["audio"], record["source"]
            found = path is None or self.exists[path]
            if not found:
                self.examples.setdefault(source, [published, path])
            self.rows[source, record["kind"], found] += 1
            clips = self.clips.setdefault(source, set())
            if path is not None:
                clips.add(path)
            result.append(record if found else None)
        return result

    def _map(self, path: str) -> str:
        root = _fitting_root(path, self.audio_roots)
        if root is None:
            return path
        self.used_roots.add(root)
        return _moved(path, root)

    def summary(self) -> dict[str, Any]:
        """`rows` with audio, `missing` rows without, both also `by_source` (with the distinct `clips`, the
        `missing_clips`, and all rows by `kinds`) and `rows` `by_kind`; `examples` of what is missing by source (the
        record's path, and the path here), and `unused_roots`, which no record's path lies in."""
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
            "examples": dict(sorted(self.examples.items())),
            "unused_roots": [f"{root[0]}={root[1]}" for root in self.audio_roots if root not in self.used_roots],
        }


def check_max_missing(max_missing: float) -> None:
    """Raises `ValueError` unless it is a share."""
    if not 0 <= max_missing <= 1:
        raise ValueError(f"max_missing: got {max_missing!r}, expected a share from 0 to 1, such as 0.05 for 5 %.")


def check_coverage(summary: dict[str, Any], max_missing: float, missing_sources: Sequence[str] = ()) -> None:
    """Raises `ValueError`, with the table of [`coverage_table`], where no row or too few rows have their audio: of all,
    and of each source of at least 100, but for `missing_sources`."""
    if summary["rows"] + summary["missing"] == 0:
        raise ValueError("records: there are none, expected at least one; look at the files they are read from.")
    sources = {name: entry for name, entry in summary["by_source"].items() if name not in missing_sources}
    judged = [(f" of {name}", entry["rows"], entry["missing"]) for name, entry in sources.items()]
    judged = [each for each in judged if each[1] + each[2] >= 100]
    judged.insert(0, ("", sum(each["rows"] for each in sources.values()), sum(e["missing"] for e in sources.values())))
    if summary["rows"] == 0:
        judged = [("", 0, summary["missing"])]
    for what, rows, missing in judged:
        total = rows + missing
        if total and (missing / total > max_missing or summary["rows"] == 0):
            raise ValueError(
                f"{missing:,} of {total:,} records{what} have no audio file, more than max_missing={max_missing:.1%}. "
                f"{_lost(summary, [what.removeprefix(' of ')] if what else list(sources))}Say with --audio-root FROM=TO where the folders of the "
                "published paths are here, fetch what is missing, raise max_missing, or name in missing_sources what you "
                f"do without.\n{coverage_table(summary)}"
            )


def _lost(summary: dict[str, Any], sources: Sequence[str]) -> str:
    """Sentences on what was looked for where."""
    examples = summary.get("examples", {})  # folders that were written earlier have none
    text = ""
    for published, here in [examples[name] for name in sources if name in examples][:1]:
        where = "as it is, for no --audio-root fits it" if published == here else f"as {here!r}"
        text = f"{published!r}, for one, was looked for {where}. "
    if unused := summary.get("unused_roots"):
        text += f"No record's path lies in the folder of --audio-root {' or '.join(unused)}. "
    return text


def coverage_table(summary: dict[str, Any]) -> str:
    """A table of what is there by source, and of what was read of published collections beside how many there are.

    Args:
        summary (`dict`): From [`write_records`] or [`AudioCoverage`].

    Returns:
        `str`: Lines. A collection has one only where its reader has counted it (`counts` of [`write_records`]).
    """
    rows = [("source", "rows", "missing", "covered", "clips", "missing clips")]
    entries = list(summary["by_source"].items())
    names = ("rows", "missing", "clips", "missing_clips")
    totals = {name: sum(entry[name] for _, entry in entries) for name in names}
    for source, entry in [*entries, ("all", totals)]:
        share = entry["rows"] / max(entry["rows"] + entry["missing"], 1)
        counts = [f"{entry[name]:,}" for name in names]
        rows.append((source, *counts[:2], f"{share:.1%}", *counts[2:]))
    lines = [text_table(rows)]
    for collection, read in summary.get("collections", {}).items():
        lines += ["", left_out_line(collection, read)]
        for name, published in PUBLISHED_COUNTS.get(collection, {}).items():
            what = collection if name == "records" else f"{collection} {name}"
            if read.get(name):  # a file of closed questions has no open ones
                lines.append(f"{what}: {read[name]:,} read, {published:,} published")
    return "\n".join(lines)


def left_out_line(collection: str, counts: Mapping[str, int]) -> str:
    """How many records a reader has read and, for each reason to leave some out, how many that were."""
    left = [f"{counts[name]:,} {words}" for name, words in LEFT_OUT.items() if name in counts]
    rest = counts["records"] - sum(counts.get(name, 0) for name in LEFT_OUT)
    return f"{collection}: {counts['records']:,} records in its files, left out {', '.join(left)}: {rest:,} taken"


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
            pyarrow.Table.from_pylist(rows[:rows_per_shard], SCHEMA), _unfinished(folder / name), row_group_size=CHUNK
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


@contextmanager
def locked(folder: Path, seconds: float | None = None, name: str = ".lock") -> Iterator[None]:
    """Keeps other processes out of a folder that is there, which also hold its lock while they write.

    Args:
        folder (`Path`): The folder.
        seconds (`float`, *optional*): How long to wait for another process; by default until it is done.
        name (`str`, *optional*, defaults to `".lock"`): The file that is there meanwhile.

    Raises:
        TimeoutError: Another process holds it longer.
    """
    if fcntl is None:
        yield
        return
    path, begin = folder / name, time.monotonic()
    while True:
        lock = open(path, "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                break  # else the one before has deleted it
            lock.close()
        except BlockingIOError as error:
            lock.close()
            if seconds is not None and time.monotonic() - begin > seconds:
                raise TimeoutError(f"{folder}: another process is writing there.") from error
            time.sleep(0.2)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        fcntl.flock(lock, fcntl.LOCK_UN)  # a process that this one has started may keep the file open
        lock.close()


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one shorter."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def write_json(value: Any, path: Path) -> None:
    """Writes JSON so that the file is there whole or not at all."""
    unfinished = _unfinished(path)
    unfinished.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.unfinished")


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
        os.replace(_unfinished(folder / shard["file"]), folder / shard["file"])
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
