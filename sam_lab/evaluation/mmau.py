"""MMAU (Sakshi et al., ICLR 2025): its questions as prompts, its official rule, and its scores beside guessing.

The official rule compares sets of words, so an option's letter misleads it: of 1,000 perfect answers written `a) ...`
it accepts 967, since a wrong choice may contain the article "a". [`strip_option_letter`] therefore runs before it.
"""

import os
import random
import re
import string
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from sam_lab.common.files import write_json
from sam_lab.common.json_files import read_json
from sam_lab.data.coverage import map_audio
from sam_lab.evaluation.items import Item, existing_path

logger = logging.get_logger(__name__)

MMAU_FILES = {"mini": "mmau-test-mini.json", "test": "mmau-test.json"}
GROUPS = ("task", "sub-category", "difficulty", "category")
PROMPT_STYLES = ("reasonaqa", "audio_flamingo", "plain")

# "b) dog", "(b) dog", "b: dog", "b. dog", also after "The answer is". A full stop or colon counts only before a space
# or a quote ("a.m. radio" and the chord "B:maj/1" have no option letter), and a bare letter never counts ("a dog").
_OPEN = r"[\s*\"'“‘]*"
_NOUN = r"(?:the\s+)?(?:correct\s+|right\s+|best\s+)?(?:answer|option|choice)(?:\s+is)?(?:\s*:\s*|\s+)"
_LEAD = rf"{_OPEN}(?:{_NOUN}){{0,2}}{_OPEN}"  # "The answer is option "
_LETTER = re.compile(
    rf"{_LEAD}(?P<letter>\([a-h]\)[.:]?|[a-h]\s?(?:\)[.:]?|[.:](?=[\s*\"'“‘])))[\s*]*(?=\W*\w)", re.IGNORECASE
)
_LETTER_ALONE = re.compile(rf"{_LEAD}\(?[a-h]\W*", re.IGNORECASE)
_QUOTED = re.compile("\"([^\"]*)\"|'([^']*)'|“([^”]*)”|‘([^’]*)’")


def strip_option_letter(text: str, choices: Sequence[str] = ()) -> str:
    """A chosen option without its letter: "b) dog", "(B) dog", "B. dog" and "The answer is b: dog" become "dog".

    A text without a letter from a to h that is followed by a bracket, full stop or colon is unchanged: "a dog barking"
    starts with an article, "The answer is dog" names no letter, and "b)" contains nothing else.

    Args:
        text (`str`): The model's answer.
        choices (list of `str`, *optional*): The question's choices, if known. A choice that itself looks lettered,
            such as "F. Scott Fitzgerald", stays whole.
    """
    match = _LETTER.match(text)
    if match is None:
        return text.strip()
    rest = text[match.start("letter") :].casefold()
    lettered = [choice.strip() for choice in choices if _LETTER.match(choice)]
    if any(rest.startswith(choice.casefold()) for choice in lettered):
        return text.strip()
    bare = text[match.end() :].strip().rstrip("*")
    quoted = _QUOTED.fullmatch(bare)
    return quoted[quoted.lastindex] if quoted else bare


# -- Questions ----------------------------------------------------------------------------------------------------


def mmau_prompt(question: str, choices: Sequence[str], style: str = "reasonaqa") -> str:
    """A question of MMAU with its choices, without the template. MMAU publishes no prompt.

    Args:
        question (`str`): The question.
        choices (list of `str`): One to 26 choices.
        style (`str`, *optional*, defaults to `"reasonaqa"`): `"reasonaqa"`, as in ReasonAQA's multiple-choice
            questions, in lower case: `what barks? a) a dog b) a cat`. `"audio_flamingo"`, as in later code of MMAU's
            authors: `What barks? Choose the correct option from the following options:` and lines `(A) A dog`.
            `"plain"`: the question and such lines.

    Raises:
        ValueError: Another style; no choices, or more than 26.
    """
    text = " ".join(question.split())
    return (text.lower() if style == "reasonaqa" else text) + _options(choices, style)


def lettered_choices(choices: Sequence[str], style: str) -> list[str]:
    """The choices as a prompt of a style writes them, such as `a) a dog` (`"reasonaqa"`) or `(A) A dog`."""
    texts = [" ".join(choice.split()) for choice in choices]
    if style == "reasonaqa":
        return [f"{letter}) {text.lower()}" for letter, text in zip(string.ascii_lowercase, texts)]
    return [f"({letter}) {text}" for letter, text in zip(string.ascii_uppercase, texts)]


def _options(choices: Sequence[str], style: str) -> str:
    """The part of the prompt after the question."""
    if style not in PROMPT_STYLES:
        raise ValueError(f"style: got {style!r}, expected one of {', '.join(PROMPT_STYLES)}.")
    if not 1 <= len(choices) <= 26 or isinstance(choices, str):
        raise ValueError(f"choices: got {choices!r}, expected a list of 1 to 26 texts.")
    if style == "reasonaqa":
        return "".join(f" {choice}" for choice in lettered_choices(choices, style))
    lines = "".join(f"\n{choice}" for choice in lettered_choices(choices, style))
    return lines if style == "plain" else f" Choose the correct option from the following options:{lines}"


def read_mmau(
    data: str | Path,
    split: str = "mini",
    style: str = "reasonaqa",
    audio_roots: Sequence[tuple[str, str]] = (),
) -> list[Item]:
    """The questions of MMAU v05.15.25.

    Args:
        data (`str` or `Path`): The folder as it is published (`mmau-test-mini.json` beside `test-mini-audios/`,
            `mmau-test.json` beside `test-audios/`), or the JSON file itself. Audio may have any format.
        split (`str`, *optional*, defaults to `"mini"`): `"mini"` (or `"test-mini"`), 1,000 questions; `"test"`, 9,000,
            whose answers are not published: its items have no references.
        style (`str`, *optional*, defaults to `"reasonaqa"`): As in [`mmau_prompt`].
        audio_roots (list of `(FROM, TO)`, *optional*): From [`parse_audio_roots`], for audio in another folder:
            `test-mini-audios=/data/mmau`.

    Returns:
        `list[Item]`: In the file's order, with `groups` for task, sub-category, difficulty and category; `audio` is
        `None` if the file does not exist. Answers that are none of the choices, which files of before v05.15.25 have,
        are kept, with a warning that counts them: see [`score_mmau`].

    Raises:
        FileNotFoundError: The folder or file does not exist.
        ValueError: Another split; a malformed record, or one with a repeated id; questions of the other split.
    """
    if (split := split.removeprefix("test-")) not in MMAU_FILES:
        raise ValueError(f"split: got {split!r}, expected 'mini' or 'test'.")
    file = Path(data) / MMAU_FILES[split] if Path(data).is_dir() else Path(data)
    if not file.is_file():
        raise FileNotFoundError(
            f"data: there is no file {str(file)!r}, expected MMAU's folder with {MMAU_FILES[split]}, or that file."
        )
    items: dict[str, Item] = {}
    for number, record in read_json(file):
        _check_record(record, f"{file}: record {number}", split)
        if record["id"] in items:
            raise ValueError(
                f"{file}: record {number} has the id {record['id']!r} of an earlier one; download the file again."
            )
        path = os.path.normpath(record["audio_id"])
        mapped = map_audio(path, audio_roots)
        groups = {key: record[key] for key in GROUPS if key in record}
        answer = record.get("answer") or ""
        items[record["id"]] = Item(
            id=record["id"],
            audio=existing_path(os.path.join(file.parent, path) if mapped == path else mapped),
            prompt=mmau_prompt(record["question"], record["choices"], style),
            references=(answer,) if answer.strip() else (),
            choices=tuple(record["choices"]),
            # 13 records of test-mini have a list of one category
            groups={key: value[0] if isinstance(value, list) else value for key, value in groups.items()},
        )
    _warn_of_truths(list(items.values()), file)
    return list(items.values())


def _warn_of_truths(items: Sequence[Item], file: Path) -> None:
    unpublished = sum(not item.references for item in items)
    if 0 < unpublished < len(items):
        logger.warning(f"{file}: {unpublished} of {len(items)} questions have no answer and are not scored.")
    unmet = [item for item in items if item.references and not has_true_choice(item)]
    if unmet:
        first = unmet[0]
        logger.warning(
            f"{file}: {len(unmet)} of {len(items)} questions have an answer that is none of their choices, and count "
            f"as wrong whichever is chosen, such as {first.id!r}: {first.references[0]!r}, of {list(first.choices)}. "
            "MMAU corrected its files in v05.15.25; download them again."
        )


def has_true_choice(item: Item) -> bool:
    """Whether one of a question's choices is its answer, to the official rule: both have the same words, at least one.

    Without one every choice is wrong. (An answer without any word would be met by every text that has no word of a
    choice.)
    """
    true = _words(item.references[0])
    return bool(true) and any(_words(choice) == true for choice in item.choices)


def _check_record(record: dict[str, Any], where: str, split: str) -> None:
    for key in ("id", "audio_id", "question"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise ValueError(f"{where} has {record.get(key)!r} as {key}, expected text, as in MMAU's files.")
    if not isinstance(record.get("answer"), (str, type(None))):
        raise ValueError(f"{where} has {record['answer']!r} as answer, expected the text of one of the choices.")
    choices = record.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"{where} has {choices!r} as choices, expected a list of texts.")
    if "split" in record and (record["split"] == "test-mini") != (split == "mini"):
        raise ValueError(
            f"{where} is of the split {record['split']!r}, but {split!r} was requested; pass {MMAU_FILES[split]} as "
            "data."
        )


def shuffle_choices(items: Sequence[Item], seed: int = 0, style: str = "reasonaqa") -> list[Item]:
    """The same questions with shuffled choices, to measure how much a model's score depends on their order.

    In test-mini the first choice is the true one in 395 questions and the fourth in 126.

    Args:
        items (list of [`Item`]): From [`read_mmau`].
        seed (`int`, *optional*, defaults to 0): Determines the order together with a question's id, independently of
            the other items.
        style (`str`, *optional*, defaults to `"reasonaqa"`): The style that the items were read with.

    Raises:
        ValueError: A prompt of another style.
    """
    shuffled = []
    for item in items:
        old, choices = _options(item.choices, style), _shuffled(item, seed)
        if not item.prompt.endswith(old):
            raise ValueError(
                f"items: the prompt of {item.id!r} does not end with {old!r}, expected the style {style!r}; pass the "
                "style that they were read with."
            )
        prompt = item.prompt.removesuffix(old) + _options(choices, style)
        shuffled.append(replace(item, prompt=prompt, choices=choices))
    return shuffled


def _shuffled(item: Item, seed: int) -> tuple[str, ...]:
    return tuple(random.Random(f"{seed} {item.id}").sample(item.choices, len(item.choices)))


# -- Scores -------------------------------------------------------------------------------------------------------


def _words(text: str) -> set[str]:
    return set(re.findall(r"\b\w+\b", text.lower()))


def mmau_correct(prediction: str, answer: str, choices: Sequence[str]) -> bool:
    """Whether an answer is correct by MMAU's official rule, on the unmodified text.

    The prediction must contain all words of the true choice, and no word that occurs in wrong choices only. A word is
    a run of letters, digits and underscores, in any case. Order and repetition do not count, so a wrong choice of the
    same words, or with all words of the true one and none of another, is accepted too (9 questions of test-mini have
    one).

    Args:
        prediction (`str`): The model's answer, without its option letter: see [`strip_option_letter`].
        answer (`str`): The text of the true choice.
        choices (list of `str`): All choices.
    """
    words, true = _words(prediction), _words(answer)
    others = [each for each in map(_words, choices) if each != true]
    return bool(words) and true <= words and not words & (set().union(*others) - true)


def score_mmau(items: Sequence[Item], predictions: Sequence[str | None], seed: int = 0) -> dict[str, Any]:
    """Accuracy by [`mmau_correct`] with option letters stripped, beside baselines that do not use the audio.

    Args:
        items (list of [`Item`]): The questions.
        predictions (list of `str` or `None`): The model's answers; `None` or blank for no answer, which is wrong.
        seed (`int`, *optional*, defaults to 0): Seed of the shuffled baseline.

    Returns:
        `dict`: For the questions whose answer is published:

        - `value` (a fraction), `correct`, `count`, `unanswered` (counted as wrong), and the same `by_task`,
          `by_sub_category`, `by_difficulty` and `by_category`; `value` is `None` if no answer is published;
        - `without_truth`: number of questions that no choice answers: the answer is not published (these are not in
          `count`), or is none of the choices (these count as wrong, as in the official script, and are also in
          `answer_not_among_choices`);
        - `several_true_choices`: number of questions of which the rule accepts more than one choice;
        - `official`: the same by the official script, which excludes questions without a prediction (`None`);
        - `as_written`: the same without stripping letters; `letters_alone`: number of predictions that are only a
          letter, which are wrong by the rule;
        - `baselines`: `always_first`, `random` (its expectation) and `shuffled_choices` (the first of the choices
          shuffled by `seed`), each with `value` and `by_task`, how often that is the true choice, and the same
          `by_rule`, which a few wrong choices satisfy;
        - `is_correct`: `True`, `False`, or `None` without a published answer, in the order of the items.

    Raises:
        ValueError: No items, or not as many predictions as items.
    """
    if not items or len(items) != len(predictions):
        raise ValueError(
            f"items, predictions: got {len(items)} and {len(predictions)}, expected one prediction (or None) for each "
            "question, and at least one question."
        )
    asked = [(item, text) for item, text in zip(items, predictions) if item.references]
    known = [item for item, _ in asked]
    answered = [text is not None and bool(text.strip()) for _, text in asked]
    stripped = [strip_option_letter(text or "", item.choices) for item, text in asked]
    right = [_is_right(item, text) for item, text in zip(known, stripped)]
    if not all(answered):
        logger.warning("%d of %d questions have no answer and count as wrong.", answered.count(False), len(answered))
    by_official = [(item, hit) for (item, text), hit in zip(asked, right) if text is not None]
    unmet = [item for item in known if not has_true_choice(item)]
    flags = iter(right)
    return {
        **_share(known, right, answered),
        **{f"by_{key.replace('-', '_')}": _shares(known, right, key, answered) for key in GROUPS},
        "without_truth": len(items) - len(asked) + len(unmet),
        "answer_not_among_choices": len(unmet),
        "several_true_choices": sum(sum(_is_right(item, choice) for choice in item.choices) > 1 for item in known),
        "official": _share([item for item, _ in by_official], [hit for _, hit in by_official]),
        "as_written": _share(known, [_is_right(item, text or "") for item, text in asked]),
        "letters_alone": sum(
            _LETTER_ALONE.fullmatch(text) is not None and not hit for text, hit in zip(stripped, right)
        ),
        "baselines": _baselines(known, seed),
        "is_correct": [next(flags) if item.references else None for item in items],
    }


def _is_right(item: Item, text: str) -> bool:
    return mmau_correct(text, item.references[0], item.choices)


def _share(items: Sequence[Item], right: Sequence[float], answered: Sequence[bool] | None = None) -> dict[str, Any]:
    result = {"value": sum(right) / len(items) if items else None, "correct": sum(right), "count": len(items)}
    return result if answered is None else {**result, "unanswered": answered.count(False)}


def _shares(items, right, key, answered=None) -> dict[str, dict[str, Any]]:
    result = {}
    for name in sorted({item.groups[key] for item in items if key in item.groups}):
        places = [place for place, item in enumerate(items) if item.groups.get(key) == name]
        picked = [[each[place] for place in places] for each in (items, right, answered) if each is not None]
        result[name] = _share(*picked)
    return result


def _baselines(items: Sequence[Item], seed: int) -> dict[str, dict[str, Any]]:
    """How often equally likely guesses at each question are correct."""
    guesses = {
        "always_first": [item.choices[:1] for item in items],
        "random": [item.choices for item in items],
        "shuffled_choices": [_shuffled(item, seed)[:1] for item in items],
    }
    result = {}
    for name, guessed in guesses.items():
        true, passing = (
            [sum(rule(item, guess) for guess in some) / len(some) for item, some in zip(items, guessed)]
            for rule in (lambda item, guess: guess == item.references[0], _is_right)
        )
        result[name] = {**_values(items, true), "by_rule": _values(items, passing)}
    return result


def _values(items: Sequence[Item], right: Sequence[float]) -> dict[str, Any]:
    by_task = {task: share["value"] for task, share in _shares(items, right, "task").items()}
    return {"value": _share(items, right)["value"], "by_task": by_task}


def write_mmau_submission(
    items: Sequence[Item], predictions: Sequence[str | None], source_json: str | Path, output: str | Path
) -> None:
    """Writes the file that MMAU's script and server score: the published records, each with `model_output`.

    Option letters are stripped ([`strip_option_letter`]). A question without an answer gets an empty text, which
    counts as wrong: the script excludes records without the key, and would divide by a smaller number.

    Args:
        items (list of [`Item`]): All questions of the split, in any order.
        predictions (list of `str` or `None`): The model's answers.
        source_json (`str` or `Path`): The published file that the items were read from.
        output (`str` or `Path`): The file to write, whole or not at all.

    Raises:
        FileNotFoundError: The published file does not exist.
        ValueError: Not as many predictions as items; items that are not the file's questions.
    """
    if len(items) != len(predictions):
        raise ValueError(f"items, predictions: got {len(items)} and {len(predictions)}, expected equally many.")
    records = [record for _, record in read_json(source_json)]
    outputs = {item.id: strip_option_letter(text or "", item.choices) for item, text in zip(items, predictions)}
    ids = {record["id"] for record in records}
    if len(outputs) != len(items) or outputs.keys() != ids:
        raise ValueError(
            f"items: got {len(items)}, {len(outputs.keys() & ids)} of them of the {len(ids)} questions of "
            f"{str(source_json)!r}, expected each question of the file once; the server scores whole splits."
        )
    write_json([{**record, "model_output": outputs[record["id"]]} for record in records], Path(output))
