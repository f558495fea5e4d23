"""Questions of your own about clips, and when an answer is right."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam_lab.evaluation.items import Item
from sam_lab.evaluation.mmau import strip_option_letter
from sam_lab.evaluation.tasks import Benchmark

QUESTIONS = Benchmark("questions", "Questions", "", (), (), "questions", 0, False, "", None)


# ---------------------------------------------------------------------------------------------------------------
# ESC-50 and closed questions
# ---------------------------------------------------------------------------------------------------------------


def answers_question(prediction: str, answer: str, kind: str) -> bool:
    """Whether a closed question is answered right.

    Args:
        prediction (`str`): What the model said.
        answer (`str`): The truth.
        kind (`str`): `"binary"`: the first word decides, which must be yes or no. `"multiple_choice"`: the option's
            text counts, without its letter, or the letter where that is all. Of any other kind the whole text must be
            the same but for case and the full stop.
    """
    said, truth = (text.strip().rstrip(".").casefold() for text in (prediction, answer))
    if kind == "binary":
        words, true_words = re.findall("[a-z]+", said), re.findall("[a-z]+", truth)
        return bool(words) and words[0] in ("yes", "no") and words[0] == true_words[0]
    if kind == "multiple_choice" and re.fullmatch(r"\(?[a-h]\)?", said):
        return said.strip("()") == truth.lstrip("(")[:1] and strip_option_letter(truth) != truth
    return strip_option_letter(said) == strip_option_letter(truth)


def question_items(rows: Sequence[dict[str, Any]], folder: str | Path = ".") -> list[Item]:
    """Closed questions as items.

    Args:
        rows (list of `dict`): `audio` (a path, relative to `folder`), `prompt`, `answer` and `kind`; the rule of each
            kind is that of [`answers_question`].
        folder (`str` or `Path`, *optional*): Where the paths begin.

    Raises:
        ValueError: No rows, a row without one of the keys, or a binary question whose answer is not yes or no.
    """
    keys = ("audio", "prompt", "answer", "kind")
    number, absent = next(((n, key) for n, row in enumerate(rows) for key in keys if not row.get(key)), (0, "audio"))
    if not rows or not rows[number].get(absent):
        raise ValueError(f"rows: got {len(rows)}, number {number} with no {absent!r}, expected {', '.join(keys)}.")
    items = []
    for number, row in enumerate(rows):
        if row["kind"] == "binary" and not re.match(r"\W*(yes|no)\b", row["answer"], re.IGNORECASE):
            raise ValueError(
                f"rows: number {number} is binary and has the answer {row['answer']!r}, expected yes or no."
            )
        path = Path(folder) / row["audio"]
        audio = str(path) if path.is_file() else None
        items.append(
            Item(f"{number}: {row['audio']}", audio, row["prompt"], (row["answer"],), (), {"kind": row["kind"]})
        )
    return items
