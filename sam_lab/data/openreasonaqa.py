"""OpenReasonAQA: OpenAQA with its caption-style questions replaced by ReasonAQA's yes/no and multiple-choice ones.

The paper (section 4.3) only states "we replace caption-style open-ended questions with the structured BQ/MCQ
reasoning questions from ReasonAQA, while maintaining a comparable training scale (3.8M pairs)". What it leaves open is
a parameter here: whether the 3.8 million are all pairs or only those that replace (`reading`), and which questions are
caption-style (`caption_rule`). ReasonAQA has only 362,681 yes/no and multiple-choice questions on one clip to train
on, so that either reading repeats them.
"""

import hashlib
import json
import re
import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import KW_ONLY, InitVar, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tqdm.auto import tqdm
from transformers import AutoTokenizer
from transformers.utils import logging

from audio_sam import check_choice
from processing_sam import PROMPT_TEMPLATE
from sam_lab.common.checks import check_integers
from sam_lab.common.files import locked, write_json
from sam_lab.common.iteration import batched
from sam_lab.common.text_tables import text_table
from sam_lab.data.coverage import AudioCoverage, check_max_missing, check_missing, collection_line, map_audio
from sam_lab.data.published import CAPTION_RULES, READINGS, read_openaqa, read_reasonaqa
from sam_lab.data.records import CHUNK, MARKER_FILE, own_shards, records_fingerprint, reusable_summary, write_records

logger = logging.get_logger(__name__)

REPLACING_KINDS = ("binary", "multiple_choice")
CAPTION_WORDS = re.compile(
    r"\b(caption|descri(be|bes|bing|ption)|summar(y|i[sz]e|i[sz]es|i[sz]ing)|overview|"
    r"what (can|do) (you|we|one) hear|what can be heard|what sounds?\b.*\b(hear|heard|present|are there))",
    re.IGNORECASE,
)
REPORT_FILE = "openreasonaqa.json"
TEMPORARY = f"{MARKER_FILE}-"  # prefix of the names of temporary folders
ROWS_A_FILE = 100_000  # of the temporary files, at least: one is in memory at a time
# The fates of a record.
KEPT, OPEN, GIVES_WAY, REPLACES, UNUSED, MISSING = range(6)


def is_caption_style(record: dict[str, Any], rule: str) -> bool:
    """Whether an open-ended question is one that the reasoning questions replace.

    Args:
        record (`dict`): A record of kind `"open"`.
        rule (`str`): `"all_open"`: always; `"caption_words"`: if it asks for a caption, a description, a summary or
            the sounds (CAPTION_WORDS); `"not_yes_no"`: unless its answer begins with yes or no.
    """
    if rule == "caption_words":
        return CAPTION_WORDS.search(record["prompt"]) is not None
    if rule == "not_yes_no":
        return re.match(r"\W*(yes|no)\b", record["answer"], re.IGNORECASE) is None
    return True


@dataclass(eq=False, repr=False)
class OpenReasonAQA:
    """The mix: which records are in it and how often, found in one pass over the files; a second one yields them.

    Closed questions of OpenAQA (its closed captions too) always stay, once. With `reading="whole"` the mix has
    `size` records: the room beside the closed questions goes to one pass over the replacing records, then to
    open-ended questions that are not caption-style, drawn at random if they are too many; if room remains, the
    replacing records are repeated. With `reading="replacement"` all open-ended questions that are not caption-style
    stay, and `size` replacing records take the place of the others. Replacing records are repeated in whole passes
    and a last one drawn at random. All draws are seeded. Memory: some 30 bytes a record, and the paths of the clips.

    Args:
        openaqa (`str`): OpenAQA's file, closed and open questions.
        reasonaqa (list of `str`): ReasonAQA's files to take from, such as `train.json`.
        size (`int`, *optional*, defaults to 3,800,000): Number of records; `reading` defines which.
        reading (`str`, *optional*, defaults to `"whole"`): Or `"replacement"`.
        caption_rule (`str`, *optional*, defaults to `"all_open"`): Or `"caption_words"`, `"not_yes_no"`; see
            [`is_caption_style`].
        seed (`int`, *optional*, defaults to 0): Of every draw.
        replacing_kinds (list of `str`, *optional*): ReasonAQA's kinds that replace; yes/no and multiple choice.
        closed_prefix, skip_unanswerable: As in [`read_openaqa`].
        lowercase: As in [`read_reasonaqa`].
        audio_roots, check_audio, max_missing, missing_sources: As in [`write_records`]; records without audio are
            skipped before anything is counted or drawn.
        tokenizer (*optional*): A `tokenizer.json`, a folder, a Hub id or a `tokenizers.Tokenizer`, to count what
            `cutoff` would cut.
        cutoff (`int`, *optional*, defaults to 108): Longest text in tokens: prompt template, answer and end of text;
            LTU's (`cutoff_len`). A longer one loses its end of text. It is counted and changes nothing in the mix.

    Attributes:
        report (`dict`): What [`OpenReasonAQA.table`] prints, for JSON.

    Raises:
        FileNotFoundError: A file that does not exist.
        ValueError: An unknown reading or rule; a number outside its range; a tokenizer that cannot be loaded; the same
            file twice; a file without records; a size that the closed questions alone exceed; no replacing record; too
            many records without audio; a malformed record.
    """

    openaqa: str | Path
    reasonaqa: Sequence[str | Path]
    size: int = 3_800_000
    reading: str = "whole"
    caption_rule: str = "all_open"
    seed: int = 0
    _: KW_ONLY
    replacing_kinds: Sequence[str] = REPLACING_KINDS
    closed_prefix: float | None = 0.5
    skip_unanswerable: bool = False
    lowercase: bool = True
    audio_roots: Sequence[tuple[str, str]] = ()
    check_audio: bool = True
    max_missing: float = 0.05
    missing_sources: Sequence[str] = ()
    tokenizer: InitVar[Any] = None
    cutoff: int = 108

    def __post_init__(self, tokenizer):
        check_choice("reading", self.reading, READINGS)
        check_choice("caption_rule", self.caption_rule, CAPTION_RULES)
        if isinstance(self.reasonaqa, (str, Path)):
            raise ValueError(f"reasonaqa: got {str(self.reasonaqa)!r}, expected a list of files.")
        check_integers(1, size=self.size, cutoff=self.cutoff)
        check_integers(0, seed=self.seed)
        check_max_missing(self.max_missing)
        _check_files(self.openaqa, self.reasonaqa)
        self.counts: dict[str, dict[str, int]] = {}  # of the readers, by collection
        count_tokens = _token_counter(tokenizer)
        self._scan(count_tokens)
        self._draw()
        self.report = self._report(count_tokens is not None)

    def _read(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """All records of all files, in their order, with the collection's name."""
        self.counts = {"OpenAQA": {}, "ReasonAQA": {}}
        options = {"closed_prefix": self.closed_prefix, "skip_unanswerable": self.skip_unanswerable}
        records = read_openaqa(self.openaqa, seed=self.seed, counts=self.counts["OpenAQA"], **options)
        for record in _some(records, "openaqa", self.openaqa):
            yield "OpenAQA", record
        for file in self.reasonaqa:
            records = read_reasonaqa(file, self.seed, self.counts["ReasonAQA"], self.lowercase)
            for record in _some(records, "reasonaqa", file):
                yield "ReasonAQA", record

    def _scan(self, count_tokens: Callable[[list[str]], list[int]] | None) -> None:
        coverage = AudioCoverage(self.audio_roots, self.check_audio)
        groups: dict[tuple[str, str, str, int], int] = {}  # (collection, kind, source, what becomes of it)
        group, over = array("i"), array("b")
        progress = tqdm(desc="counting records", unit="record")
        without_task = 0
        for batch in batched(self._read(), CHUNK):
            found = coverage([record for _, record in batch])
            for (collection, record), there in zip(batch, found):
                without_task += collection == "OpenAQA" and record["kind"] == "other"
                fate = self._fate(collection, record) if there is not None else MISSING
                group.append(groups.setdefault((collection, record["kind"], record["source"], fate), len(groups)))
            if count_tokens is not None:
                texts = [PROMPT_TEMPLATE.format(prompt=record["prompt"]) + record["answer"] for _, record in batch]
                over.extend(length + 1 > self.cutoff for length in count_tokens(texts))
            progress.update(len(batch))
        progress.close()
        if without_task:
            logger.warning(
                f"openaqa: {without_task:,} records of {str(self.openaqa)!r} have no task. The caption rule applies "
                "to records whose task is open-ended, so these all stay, as closed questions do."
            )
        self.coverage = {**coverage.summary(), "collections": self.counts}
        check_missing(self.coverage, self.max_missing, self.missing_sources)
        self.groups = list(groups)
        self.group = np.frombuffer(group, np.int32)
        self.over = np.frombuffer(over, np.int8)

    def _fate(self, collection: str, record: dict[str, Any]) -> int:
        if collection == "ReasonAQA":
            return REPLACES if record["kind"] in self.replacing_kinds else UNUSED
        if record["kind"] != "open":
            return KEPT
        return GIVES_WAY if is_caption_style(record, self.caption_rule) else OPEN

    def _draw(self) -> None:
        """Sets `times`, how often each record is in the mix, and `replacing`, the report of those that replace."""
        rng = np.random.default_rng(self.seed)
        fate = np.array([fate for *_, fate in self.groups])[self.group]
        kept, others, pool = (np.flatnonzero(fate == value) for value in (KEPT, OPEN, REPLACES))
        if self.reading == "whole":
            room = self.size - len(kept)
            if room < 0:
                raise ValueError(
                    f"size: got {self.size:,}, expected at least the {len(kept):,} closed questions, which all stay."
                )
            others = np.sort(rng.permutation(others)[: max(room - len(pool), 0)])
            fill = room - len(others)
        else:
            fill = self.size
        if fill and not len(pool):
            raise ValueError(
                f"reasonaqa: no record with audio is of kind {' or '.join(self.replacing_kinds)}, expected "
                f"{fill:,} of them to take the place of others."
            )
        self.times = np.zeros(len(self.group), np.int32)
        self.times[kept] = self.times[others] = 1
        passes, rest = divmod(fill, len(pool)) if fill else (0, 0)
        self.times[pool] = passes
        self.times[rng.permutation(pool)[:rest]] += 1
        most = passes + (rest > 0)
        self.replacing = {"rows": fill, "distinct": len(pool), "times_at_least": passes, "times_at_most": most}

    def _report(self, counted: bool) -> dict[str, Any]:
        read = np.bincount(self.group, minlength=len(self.groups))
        rows = np.bincount(self.group, self.times, len(self.groups)).astype(int)
        cut = np.bincount(self.group, self.times * self.over, len(self.groups)).astype(int) if counted else None
        table: dict[tuple[str, str, str], Counter[str]] = {}
        for index, (collection, kind, source, fate) in enumerate(self.groups):
            entry = table.setdefault((collection, kind, source), Counter())
            entry["read"] += int(read[index])
            entry["missing"] += int(read[index]) if fate == MISSING else 0
            entry["gives_way"] += int(read[index]) if fate == GIVES_WAY else 0
            entry["rows"] += int(rows[index])
            if counted:
                entry["over_cutoff"] += int(cut[index])
        return {
            "rows": int(self.times.sum()),
            "size": self.size,
            "reading": self.reading,
            "caption_rule": self.caption_rule,
            "seed": self.seed,
            "replacing_kinds": list(self.replacing_kinds),
            "replacing": self.replacing,
            "two_audio_left_out": self.counts["ReasonAQA"]["two_audio"],
            "cutoff": self.cutoff,
            "over_cutoff": int(cut.sum()) if counted else None,
            "table": [
                {"collection": collection, "kind": kind, "source": source, **entry}
                for (collection, kind, source), entry in sorted(table.items())
            ],
            "coverage": self.coverage,
        }

    def records(self, temporary_folder: str | Path | None = None) -> Iterator[dict[str, Any]]:
        """The mix in random order, all orders being equally likely.

        The files are read again: each record is put into one of up to 256 temporary files that its place falls in, and
        these are sorted one by one.

        Args:
            temporary_folder (`str`, *optional*): Where the temporary files go; they are as large as the mix.

        Yields:
            `dict`: Records with local paths.

        Raises:
            ValueError: The files have changed.
        """
        total = int(self.times.sum())
        places = np.random.default_rng([self.seed, 1]).permutation(total)
        rows_a_file = max(ROWS_A_FILE, -(-total // 256))
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=temporary_folder) as folder:
            paths = [Path(folder, f"{index}.jsonl") for index in range(-(-total // rows_a_file))]
            with ExitStack() as stack:
                files = [stack.enter_context(path.open("w", encoding="utf-8")) for path in paths]
                begin = count = 0
                for count, (_, record) in enumerate(tqdm(self._read(), "mixing", len(self.times), unit="record"), 1):
                    if count > len(self.times):
                        break
                    end = begin + self.times[count - 1]
                    if begin < end:
                        if record["audio"] is not None:
                            record["audio"] = map_audio(record["audio"], self.audio_roots)
                        line = json.dumps(record, ensure_ascii=False)
                        for place in places[begin:end]:
                            files[place // rows_a_file].write(f"{place}\t{line}\n")
                    begin = end
            if count != len(self.times):
                raise ValueError("openaqa, reasonaqa: the files have changed since they were counted; start again.")
            for path in paths:
                with path.open(encoding="utf-8", newline="\n") as file:
                    lines = [line.split("\t", 1) for line in file]
                path.unlink()
                for _, line in sorted(lines, key=lambda pair: int(pair[0])):
                    yield json.loads(line)

    def table(self) -> str:
        """The report as text: what was read, gave way and is in the mix, by kind and source."""
        return report_table(self.report)


def report_table(report: dict[str, Any]) -> str:
    """Text for a report of [`OpenReasonAQA`]."""
    counted = report["over_cutoff"] is not None
    names = ["read", "missing", "gives_way", "rows"] + ["over_cutoff"] * counted
    titles = ["read", "no audio", "give way", "in the mix"] + [f"over {report['cutoff']}"] * counted
    rows = [["", *titles[:4], "share", *titles[4:]]]
    by_kind: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()

    def add(title: str, entry: Counter[str] | dict[str, Any]) -> None:
        counts = [f"{entry[name]:,}" for name in names]
        rows.append([title, *counts[:4], f"{entry['rows'] / max(report['rows'], 1):.1%}", *counts[4:]])

    for entry in report["table"]:
        add(f"{entry['collection']}  {entry['kind']}  {entry['source']}", entry)
        for counter in (by_kind.setdefault(entry["kind"], Counter()), total):
            counter.update({name: entry[name] for name in names})
    for kind, entry in sorted(by_kind.items()):
        add(f"all of kind {kind}", entry)
    add("all", total)
    replacing = report["replacing"]
    lines = [
        text_table(rows),
        "",
        f"reading {report['reading']}, caption rule {report['caption_rule']}, size {report['size']:,}, seed "
        f"{report['seed']}",
        f"{replacing['rows']:,} rows of {replacing['distinct']:,} distinct records of kind "
        f"{' or '.join(report['replacing_kinds'])}: each is in the mix {replacing['times_at_least']} to "
        f"{replacing['times_at_most']} times",
        *(collection_line(name, counts) for name, counts in report["coverage"].get("collections", {}).items()),
    ]
    if not counted:
        lines.append(f"rows over {report['cutoff']} tokens were not counted, as no tokenizer was passed")
    return "\n".join(lines)


def build_openreasonaqa(
    openaqa: str | Path, reasonaqa: Sequence[str | Path], folder: str | Path, **options: Any
) -> dict[str, Any]:
    """Writes the mix as a folder of records, as [`write_records`] does, with its report beside them.

    Args:
        openaqa, reasonaqa: As in [`OpenReasonAQA`].
        folder (`str`): Gets the shards, `summary.json` and `openreasonaqa.json`. A whole folder that was built from
            the same files with the same options is reused.
        options: Those of [`OpenReasonAQA`].

    Returns:
        `dict`: The report; [`report_table`] makes text of it.

    Raises:
        As [`OpenReasonAQA`] does.
    """
    folder = Path(folder)
    own_shards(folder)
    _check_files(openaqa, reasonaqa)
    settings = {name: value if isinstance(value, (int, float)) else str(value) for name, value in options.items()}
    if isinstance(tokenizer := options.get("tokenizer"), (str, Path)):  # by content: models of any size share it
        file = Path(tokenizer) / "tokenizer.json" if Path(tokenizer).is_dir() else Path(tokenizer)
        if file.is_file():
            settings["tokenizer"] = hashlib.sha256(file.read_bytes()).hexdigest()
    fingerprint = records_fingerprint([openaqa, *reasonaqa], **settings)
    report = folder / REPORT_FILE

    def finished() -> dict[str, Any] | None:
        if reusable_summary(folder, {"fingerprint": fingerprint}) is None or not report.is_file():
            return None
        return json.loads(report.read_text(encoding="utf-8"))

    if (found := finished()) is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder, name=".building"):
            if (found := finished()) is not None:  # another process has built it meanwhile
                return found
            mix = OpenReasonAQA(openaqa, reasonaqa, **options)
            report.unlink(missing_ok=True)  # so that no summary lies beside the report of another mix
            for path in folder.glob(f"{TEMPORARY}*"):
                shutil.rmtree(path)
            write_records(mix.records(folder), folder, check_audio=False, fingerprint=fingerprint)
            write_json(mix.report, report)
    except BaseException:
        with suppress(OSError):
            folder.rmdir()  # if nothing was written
        raise
    return mix.report


def _check_files(openaqa: str | Path, reasonaqa: Sequence[str | Path]) -> None:
    """Raises unless all files exist, each once."""
    seen = set()
    for name, file in [("openaqa", openaqa), *(("reasonaqa", file) for file in reasonaqa)]:
        if not Path(file).is_file():
            raise FileNotFoundError(f"{name}: there is no file {str(file)!r}.")
        if Path(file).resolve() in seen:
            raise ValueError(
                f"{name}: got {str(file)!r} twice, expected each file once; its records are repeated as needed."
            )
        seen.add(Path(file).resolve())


def _some(records: Iterator[dict[str, Any]], name: str, file: str | Path) -> Iterator[dict[str, Any]]:
    """The records, of which at least one must exist."""
    first = next(records, None)
    if first is None:
        raise ValueError(f"{name}: {str(file)!r} has no records to mix, expected some; check its content.")
    yield first
    yield from records


def _token_counter(tokenizer: Any) -> Callable[[list[str]], list[int]] | None:
    """A function that returns the lengths of texts in tokens, without special tokens."""
    if tokenizer is None:
        return None
    if isinstance(tokenizer, tokenizers.Tokenizer):
        tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())  # a copy: the caller's keeps its truncation
    else:
        try:
            if Path(tokenizer).is_file():
                tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer))
            else:
                tokenizer = AutoTokenizer.from_pretrained(tokenizer).backend_tokenizer
        except Exception as error:  # tokenizers has no special exception for a file of another format
            raise ValueError(
                f"tokenizer: got {str(tokenizer)!r}, expected a tokenizer.json, a folder or a Hub id that can be "
                f"loaded; {error}"
            ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: [len(encoding) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
