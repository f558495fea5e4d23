"""Which of the records' audio exists: their authors' paths are mapped to local ones, and files counted by source."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from sam_lab.common.text_tables import text_table

KINDS = ("closed", "open", "binary", "multiple_choice", "caption", "detail", "other")
# By collection: which records are counted, and how many were published.
PUBLISHED_COUNTS = {
    "OpenAQA": {"closed": 1_917_894, "open": 3_763_814},
    "ReasonAQA": {"records": 968_071},  # of train.json
}
# Records that readers skip, by the name of their count.
SKIPPED = {
    "two_audio": "on two clips",
    "unanswered": "with an empty answer",
    "unanswerable": "whose answer states that there is none",
}


def parse_audio_roots(values: Iterable[str]) -> list[tuple[str, str]]:
    """Parses `FROM=TO`: files whose path begins with the folder FROM lie in the local folder TO.

    Args:
        values (list of `str`): One for each folder, from `--audio-root`. An empty FROM (`=TO`) stands for all relative
            paths, such as ReasonAQA's. An equals sign that belongs to a folder is written `\\=`; without that, of
            several the one that has an existing folder as TO is used.

    Raises:
        ValueError: No `=`, nothing after it, several without a single fitting one, or a FROM with two different TO.
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
                f"--audio-root: got {value!r}, in which several = could divide FROM=TO; write \\= for each that "
                "belongs to a folder."
            )
        published, local = _normal(pairs[0][0]), os.path.normpath(os.path.expanduser(pairs[0][1]))
        if roots.setdefault(published, local) != local:
            raise ValueError(
                f"--audio-root: got {published!r} twice, as {roots[published]!r} and {local!r}, expected one."
            )
    return list(roots.items())


def _normal(path: str) -> str:
    """A published path without `.`, `//` and a `/` at its end; the folder itself is empty."""
    path = posixpath.normpath(path)
    return "" if path == "." else re.sub("^//", "/", path)


def map_audio(path: str, roots: Sequence[tuple[str, str]]) -> str:
    """The local path of a published audio path: the longest FROM that it lies in is replaced by its TO.

    Args:
        path (`str`): The record's path; `./a//b` lies in `a` as `a/b` does.
        roots (list of `(FROM, TO)`): From [`parse_audio_roots`]. Whole folders match: `/data/a` is not in
            `/data/audio`.

    Returns:
        `str`: The local path, or the published one where nothing matches.
    """
    return _mapped(path, roots)[0]


def _mapped(path: str, roots: Sequence[tuple[str, str]]) -> tuple[str, tuple[str, str] | None]:
    """The result of [`map_audio`], and the root that matches."""
    there, best, longest = _normal(path), None, ""
    for root in roots:
        head = _head(root[0])
        is_inside = there.startswith(head) if head else not there.startswith("/")
        if is_inside and (best is None or len(head) > len(longest)):
            best, longest = root, head
    return (path if best is None else os.path.join(best[1], there[len(longest) :])), best


@lru_cache(maxsize=256)
def _head(folder: str) -> str:
    folder = _normal(folder)
    return folder.rstrip("/") + "/" if folder else ""


def check_audio_roots(roots: Sequence[tuple[str, str]]) -> None:
    """Raises `ValueError` where a local folder does not exist."""
    for published, local in roots:
        if not os.path.isdir(local):
            raise ValueError(f"--audio-root: {published}={local}: there is no folder {local!r}; correct it.")


class AudioCoverage:
    """Finds the records' audio and counts by source and kind what exists; each file is looked up once.

    Args:
        audio_roots (list of `(FROM, TO)`, *optional*): From [`parse_audio_roots`].
        check_audio (`bool`, *optional*, defaults to `True`): Without it every file is assumed to exist.
        num_threads (`int`, *optional*, defaults to 16): Threads that look files up.

    Raises:
        ValueError: A folder of `audio_roots` does not exist.
    """

    def __init__(self, audio_roots: Sequence[tuple[str, str]] = (), check_audio: bool = True, num_threads: int = 16):
        self.audio_roots = [(published, local) for published, local in audio_roots]
        self.check_audio, self.num_threads = check_audio, num_threads
        if check_audio:
            check_audio_roots(self.audio_roots)
        self.used_roots: set[tuple[str, str] | None] = set()
        self.examples: dict[str, list[str]] = {}  # by source, a missing file: the published path and the local one
        self.exists: dict[str, bool] = {}
        self.rows: Counter[tuple[str, str, bool]] = Counter()  # (source, kind, whether it exists)
        self.clips: dict[str, set[str]] = {}  # by source

    def __call__(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any] | None]:
        """The same records with local paths; `None` in the place of one whose audio does not exist."""
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
        local, root = _mapped(path, self.audio_roots)
        self.used_roots.add(root)
        return local

    def summary(self) -> dict[str, Any]:
        """`rows` with audio, `missing` rows without, both also `by_source` (with the distinct `clips`, the
        `missing_clips`, and all rows by `kinds`) and `rows` `by_kind`; `examples` of what is missing by source (the
        published path and the local one), and `unused_roots`, which no record's path lies in."""
        found_rows, kinds, by_kind = Counter(), Counter(), Counter()
        for (source, kind, found), count in self.rows.items():
            found_rows[source, found] += count
            kinds[source, kind] += count
            by_kind[kind] += count if found else 0
        by_source = {}
        for source, clips in sorted(self.clips.items()):
            present = sum(self.exists[clip] for clip in clips)
            by_source[source] = {
                "rows": found_rows[source, True],
                "missing": found_rows[source, False],
                "clips": present,
                "missing_clips": len(clips) - present,
                "kinds": {kind: count for (name, kind), count in sorted(kinds.items()) if name == source},
            }
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


def check_missing(summary: dict[str, Any], max_missing: float, missing_sources: Sequence[str] = ()) -> None:
    """Raises `ValueError`, with the table of [`coverage_table`], where no record or too few have their audio: of all,
    and of each source of at least 100, without `missing_sources`."""
    if summary["rows"] + summary["missing"] == 0:
        raise ValueError("records: got none, expected at least one; check the files they are read from.")
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
                f"{_searched(summary, [what.removeprefix(' of ')] if what else list(sources))}Map the folders of the "
                "published paths to local ones with --audio-root FROM=TO, fetch what is missing, raise max_missing, "
                f"or name in missing_sources what may be missing.\n{coverage_table(summary)}"
            )


def _searched(summary: dict[str, Any], sources: Sequence[str]) -> str:
    """Sentences on which file was searched where."""
    examples = summary.get("examples", {})  # older folders have none
    text = ""
    for published, here in [examples[name] for name in sources if name in examples][:1]:
        where = "under this path, since no --audio-root fits" if published == here else f"as {here!r}"
        text = f"{published!r}, for example, was searched {where}. "
    if unused := summary.get("unused_roots"):
        text += f"No record's path lies in the folder of --audio-root {' or '.join(unused)}. "
    return text


def coverage_table(summary: dict[str, Any]) -> str:
    """A table of which audio exists by source, and of how many records of published collections were read.

    Args:
        summary (`dict`): From [`write_records`] or [`AudioCoverage`].

    Returns:
        `str`: Lines. A collection has its own only where its reader has counted it (`counts` of [`write_records`]).
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
        lines += ["", collection_line(collection, read)]
        for name, published in PUBLISHED_COUNTS.get(collection, {}).items():
            what = collection if name == "records" else f"{collection} {name}"
            if read.get(name):  # a file of closed questions has no open ones
                lines.append(f"{what}: {read[name]:,} read, {published:,} published")
    return "\n".join(lines)


def collection_line(collection: str, counts: Mapping[str, int]) -> str:
    """How many records a reader has read and, for each reason, how many it has skipped."""
    skipped = [f"{counts[name]:,} {words}" for name, words in SKIPPED.items() if name in counts]
    rest = counts["records"] - sum(counts.get(name, 0) for name in SKIPPED)
    return f"{collection}: {counts['records']:,} records in its files, skipped {', '.join(skipped)}: {rest:,} used"
