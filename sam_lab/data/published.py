"""Published files of questions and answers on sound: OpenAQA's and ReasonAQA's, read one record at a time.

Both are JSON lists of up to gigabytes. A record comes out as `records.py` describes it: `{"audio", "prompt",
"answer", "source", "kind"}`, the audio by its author's path.
"""

import codecs
import gzip
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from transformers.utils import logging

logger = logging.get_logger(__name__)

# OpenAQA's prefix of closed questions in the mix of all questions (LTU, combine_all_open_close.py). LTU's evaluation
# spells it "Close-ended question: "; both are kept as they are.
CLOSED_PREFIX = "Closed-ended question: "
# An answer with one of these says that there is none. The same records as with LTU's longer list
# (filter_not_answerable_qa.py), whose other entries contain one of these.
UNANSWERABLE = (
    "can't infer",
    "cannot",
    "difficult to determine",
    "difficult to infer",
    "do not provide sufficient",
    "does not provide",
    "enough",
    "impossible",
    "it is difficult to",
    "more context",
    "no indication",
    "no information",
    "no specific",
    "not clear",
    "not possible",
    "not provided",
    "not specified",
    "sorry",
    "unclear",
    "without additional",
    "without more information",
)
# What ReasonAQA's "caption first audio" stands for, worded for a model that hears one clip.
CAPTION_PROMPTS = (
    "caption the audio",
    "describe the audio in one sentence",
    "write a caption for this sound",
    "what can be heard in this recording?",
    "say in one sentence what this clip contains",
    "give a short description of the sound",
    "summarize what happens in the audio",
    "what is going on in this clip?",
)
# What the paper leaves open of its mix of both, OpenReasonAQA: see openreasonaqa.py.
READINGS = ("whole", "replacement")
CAPTION_RULES = ("all_open", "caption_words", "not_yes_no")

# ---------------------------------------------------------------------------------------------------------------
# JSON files larger than memory
# ---------------------------------------------------------------------------------------------------------------

_SPACE = re.compile(r"[ \t\n\r]*")
_LONGEST_RECORD = 1 << 24  # characters: a longer one is a missing quotation mark


def read_json(path: str | Path, chunk_size: int = 1 << 20) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads a JSON list of objects, or JSON lines, one object at a time.

    Args:
        path (`str`): The file, UTF-8; `.gz` is unpacked. It is a list if its first character is `[`, whatever its name.
        chunk_size (`int`, *optional*, defaults to 1 MiB): Bytes that are read at once.

    Yields:
        `tuple[int, dict]`: The number of the record in the file, from 1, and the record.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Neither form, or broken off in the middle; the message has the record's number and the byte.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"path: there is no file {str(path)!r}, expected a JSON list or JSON lines of records."
        )
    return _json_records(path, chunk_size)


def _json_records(path: Path, chunk_size: int) -> Iterator[tuple[int, dict[str, Any]]]:
    with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
        file.seek(len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0)
        while (first := file.read(1)).isspace():
            pass
        if first == b"[":
            yield from _list_records(file, str(path), chunk_size)
        elif first == b"{":
            file.seek(-1, os.SEEK_CUR)
            yield from _line_records(file, str(path))
        else:
            what = f"begins with {first!r}" if first else "is empty"
            raise ValueError(f"{path}: the file {what}, expected a JSON list of records or a record on each line.")


def _list_records(file: BinaryIO, name: str, chunk_size: int) -> Iterator[tuple[int, dict[str, Any]]]:
    decode = json.JSONDecoder().raw_decode
    to_text = codecs.getincrementaldecoder("utf-8")()
    text, at, base, number = "", 0, file.tell(), 0  # base: bytes before the text
    expected = "a record or ]"

    def more() -> bool:
        nonlocal text, at, base
        chunk = file.read(chunk_size)
        base += len(text[:at].encode())
        try:
            text, at = text[at:] + to_text.decode(chunk, final=not chunk), 0
        except UnicodeDecodeError as error:
            byte = file.tell() - len(error.object) + error.start
            raise ValueError(
                f"{name}: byte {byte}, after {number} records, is not UTF-8 ({error.reason}); the file may be cut off."
            ) from None
        return bool(chunk)

    def fail(what: str) -> ValueError:
        byte = base + len(text[:at].encode())
        return ValueError(f"{name}: {what}, at byte {byte}, after {number} records; download or write the file again.")

    while True:
        at = _SPACE.match(text, at).end()
        if at == len(text):
            if not more():
                raise fail(f"the list ends without ] (expected {expected}): the file is truncated")
        elif text[at] == "]" and expected != "a record":
            break
        elif text[at] == "," and expected == "a comma or ]":
            at, expected = at + 1, "a record"
        elif text[at] == "{" and expected != "a comma or ]":
            try:
                record, at = decode(text, at)
            except json.JSONDecodeError as error:
                # What a cut can cause: an open string, or an error at the end (16: longer than any escape or word).
                cut = error.msg.startswith("Unterminated string") or error.pos > len(text) - 16
                if not cut or len(text) - at > _LONGEST_RECORD:
                    raise fail(f"record {number + 1} is malformed ({error.msg})") from None
                if not more():
                    raise fail(f"the file ends within record {number + 1} ({error.msg}): it is truncated") from None
                continue
            number, expected = number + 1, "a comma or ]"
            yield number, record
        else:
            raise fail(f"got {text[at]!r}, expected {expected}")
    at += 1
    while True:
        at = _SPACE.match(text, at).end()
        if at < len(text):
            raise fail(f"got {text[at]!r} behind the end of the list")
        if not more():
            return


def _line_records(file: BinaryIO, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for line_number, line in enumerate(file, 1):
        if not line.strip():
            continue
        number += 1
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{name}: record {number} (line {line_number}) is malformed or cut off ({error}), expected a JSON "
                "object on each line, or one list of them."
            ) from None
        if not isinstance(record, dict):
            raise ValueError(f"{name}: record {number} (line {line_number}) is no object, expected one on each line.")
        yield number, record


def _check_fields(
    record: dict[str, Any], required: Sequence[str], texts: Sequence[str], where: str, form: str
) -> None:
    """Raises unless the required keys are there and texts are text that is not empty."""
    missing = [key for key in required if key not in record]
    if missing:
        raise ValueError(
            f"{where} lacks {', '.join(missing)}; it has {', '.join(record) or 'no key'}, expected {form}'s "
            f"{', '.join(required)}."
        )
    for key in texts:
        if not isinstance(record[key], str) or not record[key].strip():
            raise ValueError(f"{where} has {record[key]!r} as {key}, expected text that is not empty.")


def _check_texts(record: dict[str, Any], keys: Sequence[str], where: str) -> None:
    """Raises unless those of the keys that are there are text that can be written, or null."""
    for key in keys:
        value = record.get(key)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{where} has {value!r} as {key}, expected text.")
        if value is not None and not is_encodable(value):
            raise ValueError(
                f"{where} has half of a surrogate pair in its {key}, {value!r}, expected whole characters; correct the "
                "file or leave the record out."
            )


def is_encodable(text: str) -> bool:
    """Whether a text can be written: JSON's escapes can spell half of a surrogate pair, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _share(seed: int, number: int) -> float:
    """A number in [0, 1) that depends on the two alone (splitmix64): the same however a file is read."""
    mask = (1 << 64) - 1
    z = (number * 0x9E3779B97F4A7C15 + seed * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)


# ---------------------------------------------------------------------------------------------------------------
# OpenAQA
# ---------------------------------------------------------------------------------------------------------------


def read_openaqa(
    path: str | Path,
    closed_prefix: float | None = 0.5,
    seed: int = 0,
    skip_unanswerable: bool = False,
    counts: dict[str, int] | None = None,
) -> Iterator[dict[str, Any]]:
    """Reads OpenAQA's files (LTU; `openaqa_5.6M.json`, `combine_cla.json`, ...) as they are published.

    A record there has the keys `instruction`, `input`, `audio_id`, `dataset`, `task`, `output`; without `dataset` the
    file's name is the source. An `input`, empty for questions on sound, is put behind the instruction as
    `"{instruction}\\n\\n### Input:\\n{input}"`: within our template that gives LTU's own text. The kind is `"open"`
    where the task says open-ended; else `"caption"` where the task or the instruction speaks of a caption; else
    `"closed"`. Without a task only the prefix can tell that a question is closed, the rest is `"other"`. Records with
    an empty answer are left out; a warning at the end of the file counts them.

    Args:
        path (`str`): A JSON list of any size, or JSON lines.
        closed_prefix (`float`, *optional*, defaults to 0.5): How often a closed question (a caption too) begins with
            `"Closed-ended question: "`, as in LTU's mix of all questions; LTU's stages on closed questions alone have
            none: 0. A prefix that the file already has is taken off first, so that the share is this one for either
            kind of file; `None` leaves the questions as they are.
        seed (`int`, *optional*, defaults to 0): Decides with a record's number in the file which get the prefix.
        skip_unanswerable (`bool`, *optional*, defaults to `False`): Leave out records whose answer says that there is
            none (LTU's `openaqa_5.0M_noqa`; its published models have them).
        counts (`dict`, *optional*): Counts, on top of what it has, how many `"records"` were read, how many of them
            are `"closed"` (captions too) and `"open"`, and how many were left out: `"unanswered"`, `"unanswerable"`.

    Yields:
        `dict`: The records.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: `closed_prefix` outside 0 to 1; a record that lacks a key or has no text in it, named by number.
    """
    if closed_prefix is not None and not 0 <= closed_prefix <= 1:
        raise ValueError(f"closed_prefix: got {closed_prefix!r}, expected a probability from 0 to 1, or None.")
    counts = {} if counts is None else counts
    for name in ("records", "closed", "open", "unanswered", "unanswerable"):
        counts.setdefault(name, 0)
    return _openaqa_records(read_json(path), Path(path), closed_prefix, seed, skip_unanswerable, counts)


def _openaqa_records(numbered, path, closed_prefix, seed, skip_unanswerable, counts):
    before = counts["unanswered"]
    keys = ("instruction", "input", "audio_id", "output")
    for number, record in numbered:
        where = f"{path}: record {number}"
        _check_fields(record, keys, ("instruction", "audio_id"), where, "OpenAQA")
        _check_texts(record, (*keys, "dataset", "task"), where)
        instruction, answer = record["instruction"], record["output"] or ""
        kind = openaqa_kind(record.get("task") or "", instruction)
        counts["records"] += 1
        if kind != "other":
            counts["open" if kind == "open" else "closed"] += 1
        if not answer.strip():
            counts["unanswered"] += 1
            continue
        if skip_unanswerable and any(phrase in answer.lower() for phrase in UNANSWERABLE):
            counts["unanswerable"] += 1
            continue
        if closed_prefix is not None and kind in ("closed", "caption"):
            instruction = instruction.removeprefix(CLOSED_PREFIX)
            if _share(seed, number) < closed_prefix:
                instruction = CLOSED_PREFIX + instruction
        if (record["input"] or "").strip():
            instruction = f"{instruction}\n\n### Input:\n{record['input']}"
        yield {
            "audio": record["audio_id"],
            "prompt": instruction,
            "answer": answer,
            "source": record.get("dataset") or path.stem,
            "kind": kind,
        }
    _warn_unanswered(path, counts["unanswered"] - before)


def _warn_unanswered(path: Path, count: int) -> None:
    if count:
        logger.warning(f"{path}: {count:,} records have an empty answer and are left out.")


def openaqa_kind(task: str, instruction: str) -> str:
    """The kind of an OpenAQA record: `"open"`, `"caption"`, `"closed"` or `"other"`, as [`read_openaqa`] says."""
    task = re.sub(r"[-_\s]+", " ", task.lower()).strip()
    if "open ended" in task:
        return "open"
    if not task and not instruction.startswith(CLOSED_PREFIX):
        return "other"
    return "caption" if "caption" in task or "caption" in instruction.lower() else "closed"


# ---------------------------------------------------------------------------------------------------------------
# ReasonAQA
# ---------------------------------------------------------------------------------------------------------------


def read_reasonaqa(
    path: str | Path, seed: int = 0, counts: dict[str, int] | None = None, lowercase: bool = True
) -> Iterator[dict[str, Any]]:
    """Reads ReasonAQA's files (Mellow; `train.json`, `val.json`, `test.json`) as they are published.

    A record there has the keys `taskname`, `filepath1`, `filepath2`, `caption1`, `caption2`, `input`, `answer`,
    `subtype`. Left out and counted are records on two clips: those with a second path or caption, of the subtypes CLD
    and ACD (differences), or with a placeholder that speaks of the second clip. The placeholder `caption first audio`
    becomes one of CAPTION_PROMPTS, and the first caption is its answer (Mellow, which hears two clips, answers `the
    audio 1 is ...`). Records with an empty answer are left out too; a warning at the end of the file counts them. The
    kind is [`reasonaqa_kind`]'s.

    Args:
        path (`str`): A JSON list of any size, or JSON lines.
        seed (`int`, *optional*, defaults to 0): Decides with a record's number in the file how a placeholder is worded.
        counts (`dict`, *optional*): Counts, on top of what it has, how many `"records"` were read, and how many of
            them were left out: `"two_audio"` and `"unanswered"`.
        lowercase (`bool`, *optional*, defaults to `True`): Lower-case questions and answers, as Mellow does when it
            loads them.

    Yields:
        `dict`: The records; the source is `taskname`, `"audiocaps"` or `"clothov21"`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A record that lacks a key or has no text where some is needed, named by its number.
    """
    counts = {} if counts is None else counts
    for name in ("records", "two_audio", "unanswered"):
        counts.setdefault(name, 0)
    return _reasonaqa_records(read_json(path), Path(path), seed, counts, lowercase)


def _reasonaqa_records(numbered, path, seed, counts, lowercase):
    before = counts["unanswered"]
    keys = ("taskname", "filepath1", "filepath2", "caption1", "caption2", "input", "answer", "subtype")
    for number, record in numbered:
        where = f"{path}: record {number}"
        _check_fields(record, keys, ("taskname", "input", "subtype"), where, "ReasonAQA")
        _check_texts(record, keys, where)
        counts["records"] += 1
        prompt, answer = record["input"], record["answer"]
        placeholder = " ".join(prompt.lower().split()).rstrip(".")
        two = placeholder in ("caption second audio", "caption both audios")
        two = two or placeholder.startswith("explain the difference in ")
        if two or record["filepath2"] or record["caption2"] or re.match(r"(cld|acd)\b", record["subtype"].lower()):
            counts["two_audio"] += 1
            continue
        kind = reasonaqa_kind(record["subtype"], prompt, answer or "")
        if placeholder == "caption first audio":
            prompt = CAPTION_PROMPTS[int(_share(seed, number) * len(CAPTION_PROMPTS))]
            answer = record["caption1"] or answer
        _check_fields(record, keys, ("filepath1",), where, "ReasonAQA")
        if not (answer or "").strip():
            counts["unanswered"] += 1
            continue
        if lowercase:
            prompt, answer = prompt.lower(), answer.lower()
        yield {
            "audio": record["filepath1"],
            "prompt": prompt,
            "answer": answer,
            "source": record["taskname"],
            "kind": kind,
        }
    _warn_unanswered(path, counts["unanswered"] - before)


def reasonaqa_kind(subtype: str, prompt: str, answer: str) -> str:
    """The kind of a ReasonAQA record on one clip: by its subtype, and where that says nothing by its text.

    By subtype: `...MCQ`, `CLE` and `ACE` (entailment) are `"multiple_choice"`, `ClothoAQA` is `"binary"`, `...Detail`
    is `"detail"`, the bare `AudioCaps` and `Clotho` are `"caption"`. By text: the placeholder for a caption is
    `"caption"`, a question with the options `a)` and `b)` is `"multiple_choice"`, the answer yes or no makes it
    `"binary"`, all else is `"other"`.
    """
    name = subtype.lower().removesuffix(".json")
    if "mcq" in name or re.match(r"(cle|ace)\b", name):
        return "multiple_choice"
    if "clothoaqa" in name:
        return "binary"
    if "detail" in name:
        return "detail"
    if re.fullmatch(r"(audiocaps|clotho(v\d+)?)([-_ ]?captions?)?", name) or prompt.lower().startswith(
        "caption first"
    ):
        return "caption"
    if re.search(r"\ba\).*\bb\)", prompt.lower(), re.DOTALL):
        return "multiple_choice"
    return "binary" if answer.lower().strip(" .") in ("yes", "no") else "other"
