"""Published files of questions and answers on sound: OpenAQA's and ReasonAQA's, read one record at a time.

Both are JSON lists of up to gigabytes. A record is returned as `records.py` describes it: `{"audio", "prompt",
"answer", "source", "kind"}`, with its author's path of the audio.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers.utils import logging

from sam_lab.common.json_files import is_encodable, read_json
from sam_lab.data.texts import text_problem

logger = logging.get_logger(__name__)

# OpenAQA's prefix of closed questions in the mix of all questions (LTU, combine_all_open_close.py). LTU's evaluation
# spells it "Close-ended question: "; both spellings stay as they are.
CLOSED_PREFIX = "Closed-ended question: "
# Phrases of answers that state that a question has none, and wordings of ReasonAQA's "caption first audio".
TEXTS = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
UNANSWERABLE, CAPTION_PROMPTS = TEXTS["unanswerable"], TEXTS["caption_prompts"]
# What the paper leaves open of its mix of both, OpenReasonAQA: see openreasonaqa.py.
READINGS = ("whole", "replacement")
CAPTION_RULES = ("all_open", "caption_words", "not_yes_no")

# -- Records ------------------------------------------------------------------------------------------------------


def _check_fields(
    record: dict[str, Any], required: Sequence[str], texts: Sequence[str], where: str, form: str
) -> None:
    """Raises unless the required keys exist and texts are text that is not empty."""
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
    """Raises unless the values of the keys that exist are text that can be written, or null."""
    for key in keys:
        value = record.get(key)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{where} has {value!r} as {key}, expected text.")
        if value is not None and not is_encodable(value):
            raise ValueError(
                f"{where} has half of a surrogate pair in its {key}, {value!r}, expected whole characters; correct "
                "the file or remove the record."
            )


def _check_special(prompt: str, answer: str, where: str) -> None:
    """Raises for a special token in the texts of a record on one clip."""
    problem = text_problem(prompt, answer, has_audio=True)
    if problem is not None:
        raise ValueError(f"{where} has {problem}")


def _share(seed: int, number: int) -> float:
    """A number in [0, 1) that depends on the two alone (splitmix64): the same however a file is read."""
    mask = (1 << 64) - 1
    z = (number * 0x9E3779B97F4A7C15 + seed * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)


# -- OpenAQA ------------------------------------------------------------------------------------------------------


def read_openaqa(
    path: str | Path,
    closed_prefix: float | None = 0.5,
    seed: int = 0,
    skip_unanswerable: bool = False,
    counts: dict[str, int] | None = None,
) -> Iterator[dict[str, Any]]:
    """Reads OpenAQA's files (LTU; `openaqa_5.6M.json`, `combine_cla.json`, ...) as they are published.

    A record there has the keys `instruction`, `input`, `audio_id`, `dataset`, `task`, `output`; without `dataset` the
    file's name is the source. An `input`, empty for questions on sound, is appended to the instruction as
    `"{instruction}\\n\\n### Input:\\n{input}"`: within our template that is LTU's text. The kind is `"open"`
    where the task is open-ended; else `"caption"` where the task or the instruction mentions a caption; else
    `"closed"`. Without a task only the prefix marks a closed question, the rest is `"other"`. Records with
    an empty answer are skipped; a warning at the end of the file counts them.

    Args:
        path (`str`): A JSON list of any size, or JSON lines.
        closed_prefix (`float`, *optional*, defaults to 0.5): How often a closed question (a caption too) begins with
            `"Closed-ended question: "`, as in LTU's mix of all questions; LTU's stages on closed questions alone have
            none: 0. A prefix that the file already has is removed first, so that the share holds for either kind of
            file; `None` does not change the questions.
        seed (`int`, *optional*, defaults to 0): With a record's number in the file, decides which get the prefix.
        skip_unanswerable (`bool`, *optional*, defaults to `False`): Skip records whose answer states that the question
            has none (LTU's `openaqa_5.0M_noqa`; its published models include them).
        counts (`dict`, *optional*): Is added to: how many `"records"` were read, how many of them are `"closed"`
            (captions too) and `"open"`, and how many were skipped: `"unanswered"`, `"unanswerable"`.

    Yields:
        `dict`: The records.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: `closed_prefix` outside 0 to 1; a record that lacks a key, has no text in it or a special token,
            named by number.
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
        _check_special(instruction, answer, where)
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
        logger.warning(f"{path}: {count:,} records have an empty answer and are skipped.")


def openaqa_kind(task: str, instruction: str) -> str:
    """The kind of an OpenAQA record: `"open"`, `"caption"`, `"closed"` or `"other"`; see [`read_openaqa`]."""
    task = re.sub(r"[-_\s]+", " ", task.lower()).strip()
    if "open ended" in task:
        return "open"
    if not task and not instruction.startswith(CLOSED_PREFIX):
        return "other"
    return "caption" if "caption" in task or "caption" in instruction.lower() else "closed"


# -- ReasonAQA ----------------------------------------------------------------------------------------------------


def read_reasonaqa(
    path: str | Path, seed: int = 0, counts: dict[str, int] | None = None, lowercase: bool = True
) -> Iterator[dict[str, Any]]:
    """Reads ReasonAQA's files (Mellow; `train.json`, `val.json`, `test.json`) as they are published.

    A record there has the keys `taskname`, `filepath1`, `filepath2`, `caption1`, `caption2`, `input`, `answer`,
    `subtype`. Records on two clips are skipped and counted: those with a second path or caption, of the subtypes CLD
    and ACD (differences), or with a placeholder that mentions the second clip. The placeholder `caption first audio`
    becomes one of CAPTION_PROMPTS, and the first caption is its answer (Mellow, a model of two clips, answers `the
    audio 1 is ...`). Records with an empty answer are skipped too; a warning at the end of the file counts them. The
    kind is [`reasonaqa_kind`]'s.

    Args:
        path (`str`): A JSON list of any size, or JSON lines.
        seed (`int`, *optional*, defaults to 0): With a record's number in the file, decides how a placeholder is
            worded.
        counts (`dict`, *optional*): Is added to: how many `"records"` were read, and how many of them were skipped:
            `"two_audio"` and `"unanswered"`.
        lowercase (`bool`, *optional*, defaults to `True`): Lower-case questions and answers, as Mellow does when it
            loads them.

    Yields:
        `dict`: The records; the source is `taskname`, `"audiocaps"` or `"clothov21"`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A record that lacks a key, has no text where some is needed, or a special token, named by its
            number.
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
        _check_special(prompt, answer, where)
        yield {
            "audio": record["filepath1"],
            "prompt": prompt,
            "answer": answer,
            "source": record["taskname"],
            "kind": kind,
        }
    _warn_unanswered(path, counts["unanswered"] - before)


def reasonaqa_kind(subtype: str, prompt: str, answer: str) -> str:
    """The kind of a ReasonAQA record on one clip: by its subtype, and where that is not decisive by its text.

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
