"""Closed questions about clips, read from a table, and the rule by which an answer is correct."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from sam_lab.common.names import name_path
from sam_lab.evaluation.items import Item
from sam_lab.evaluation.mmau import strip_option_letter
from sam_lab.evaluation.tasks import Task

logger = logging.get_logger(__name__)

LETTER = re.compile(r"\(?[a-h]\)?")  # an option's, alone
QUESTIONS = Task("questions", "Questions", "", (), (), "questions", 0, False, "", None)


def answers_question(prediction: str, answer: str, kind: str) -> bool:
    """Whether the answer to a closed question is correct.

    Args:
        prediction (`str`): The model's answer.
        answer (`str`): The true answer.
        kind (`str`): `"binary"`: the first word decides; it must be yes or no. `"multiple_choice"`: the option's text
            is compared without its letter, or the letter if the prediction is nothing else, or the true answer is
            nothing else. For any other kind the whole texts are compared, ignoring case and the final full stop.
    """
    given, truth = (text.strip().rstrip(".").strip().casefold() for text in (prediction, answer))
    if kind == "binary":
        words, true_words = re.findall("[a-z]+", given), re.findall("[a-z]+", truth)
        return bool(words) and words[0] in ("yes", "no") and words[0] == true_words[0]
    if kind == "multiple_choice" and LETTER.fullmatch(truth):
        lettered = LETTER.fullmatch(given) or strip_option_letter(given) != given
        return bool(lettered) and given.lstrip("(")[:1] == truth.strip("()")
    if kind == "multiple_choice" and LETTER.fullmatch(given):
        return given.strip("()") == truth.lstrip("(")[:1] and strip_option_letter(truth) != truth
    return strip_option_letter(given) == strip_option_letter(truth)


def question_items(rows: Sequence[dict[str, Any]], folder: str | Path = ".") -> list[Item]:
    """Closed questions as items.

    Args:
        rows (list of `dict`): `audio` (a path, relative to `folder`), `prompt`, `answer` and `kind`, as in
            [`answers_question`].
        folder (`str` or `Path`, *optional*): The folder that the paths are relative to.

    Raises:
        ValueError: No rows, a row without one of the keys, a binary question whose answer is not yes or no, or an
            answer without a letter or digit, which nothing but silence would match.
    """
    keys = ("audio", "prompt", "answer", "kind")
    number, absent = next(((n, key) for n, row in enumerate(rows) for key in keys if not row.get(key)), (0, "audio"))
    if not rows or not rows[number].get(absent):
        raise ValueError(f"rows: got {len(rows)}, number {number} with no {absent!r}, expected {', '.join(keys)}.")
    items = []
    for number, row in enumerate(rows):
        kind = re.sub(r"[\s-]+", "_", row["kind"].strip()).casefold()
        kind = kind if kind in ("binary", "multiple_choice") else row["kind"]  # not by another rule for its spelling
        if kind == "binary" and not re.match(r"\W*(yes|no)\b", row["answer"], re.IGNORECASE):
            raise ValueError(
                f"rows: number {number} is binary and has the answer {row['answer']!r}, expected yes or no."
            )
        if not re.search(r"[^\W_]", row["answer"]):
            raise ValueError(f"rows: number {number} has the answer {row['answer']!r}, expected a word or a number.")
        path = Path(folder) / name_path(row["audio"])
        audio = str(path) if path.is_file() else None
        name = f"{number}: {row['audio']}"
        items.append(Item(name, audio, row["prompt"], (row["answer"],), groups={"kind": kind}))
    unmet = [item for item in items if not has_option(item)]
    if unmet:
        logger.warning(
            f"{len(unmet)} of {len(items)} questions have an answer that is not among the options of their prompt, "
            f"and count as wrong whichever is chosen, such as {unmet[0].references[0]!r} to {unmet[0].prompt!r}."
        )
    return items


def has_option(item: Item) -> bool:
    """Whether the prompt of a multiple-choice question names its answer, or the letter that is its answer."""
    if item.groups["kind"] != "multiple_choice":
        return True
    truth, prompt = (" ".join(text.split()).casefold() for text in (item.references[0], item.prompt))
    truth = truth.rstrip(".").strip()
    if LETTER.fullmatch(truth):
        return re.search(rf"(?<!\w){truth.strip('()')}\s?[).:]", prompt) is not None
    return strip_option_letter(truth) in prompt
