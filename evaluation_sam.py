"""Scores of what a model says about a sound."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks_sam import read_esc50

# The 50 classes of ESC-50 and the words that name them. A line reads `label: form; form`; a form is one or more
# slots joined by `+`, a slot is words joined by `|`. A text names a label when, for one of its forms, every slot has
# one of its words in the text. These are loose on purpose ("a motor" names `engine`) and exclusive in sum: whatever
# names two of the fifty is wrong.
ESC50_FORMS_TEXT = """
airplane: airplane|airplanes|aeroplane|aeroplanes|plane|planes|aircraft|jet
breathing: breath|breaths|breathe|breathes|breathing
brushing_teeth: brush|brushes|brushing + tooth|teeth; toothbrush|toothbrushing
can_opening: can|cans|tin + open|opens|opening|opened
car_horn: horn|horns; honk|honks|honking
cat: cat|cats|kitten; meow|meows|meowing|mew
chainsaw: chainsaw|chainsaws
chirping_birds: bird|birds; chirp|chirps|chirping|tweet|tweets|tweeting + bird|birds|sparrow|sparrows
church_bells: bell|bells; church
clapping: clap|claps|clapping; applause|applaud|applauds|applauding
clock_alarm: alarm|alarms
clock_tick: tick|ticks|ticking
coughing: cough|coughs|coughing
cow: cow|cows|cattle; moo|moos|mooing
crackling_fire: fire|fires|campfire|fireplace; crackle|crackles|crackling|crackled
crickets: cricket|crickets
crow: crow|caw|caws|cawing
crying_baby: baby|babies|infant|infants + cry|cries|crying|cried|wail|wails|wailing
dog: dog|dogs|puppy; bark|barks|barking
door_wood_creaks: creak|creaks|creaking|creaky
door_wood_knock: knock|knocks|knocking
drinking_sipping: drink|drinks|drinking; sip|sips|sipping
engine: engine|engines|motor|motors
fireworks: firework|fireworks
footsteps: footstep|footsteps; step|steps|walk|walks|walking
frog: frog|frogs; croak|croaks|croaking
glass_breaking: glass|glasses + break|breaks|breaking|shatter|shatters|shattering|smash|smashes|smashing
hand_saw: handsaw|handsaws; saw|saws|sawing
helicopter: helicopter|helicopters|chopper
hen: hen|hens; cluck|clucks|clucking
insects: insect|insects; buzz|buzzes|buzzing; bee|bees|mosquito|mosquitoes
keyboard_typing: keyboard; type|types|typing|typed
laughing: laugh|laughs|laughing|laughter
mouse_click: mouse + click|clicks|clicking
pig: pig|pigs; oink|oinks|oinking
pouring_water: pour|pours|pouring|poured
rain: rain|rains|raining|rainfall
rooster: rooster|roosters|cockerel
sea_waves: wave|waves; sea|ocean
sheep: sheep|lamb|lambs; bleat|bleats|bleating
siren: siren|sirens
sneezing: sneeze|sneezes|sneezing
snoring: snore|snores|snoring
thunderstorm: thunder|thunders|thunderstorm|thunderstorms
toilet_flush: toilet; flush|flushes|flushing
train: train|trains
vacuum_cleaner: vacuum|vacuums|vacuuming
washing_machine: washing + machine
water_drops: drip|drips|dripping; drop|drops|droplet|droplets
wind: wind|winds|windy
"""


def _parse_forms(text: str) -> dict[str, list[list[frozenset[str]]]]:
    forms = {}
    for line in text.strip().splitlines():
        label, alternatives = line.split(": ")
        forms[label] = [
            [frozenset(slot.strip().split("|")) for slot in form.split(" + ")] for form in alternatives.split("; ")
        ]
    return forms


# label -> forms -> slots -> words
ESC50_FORMS = _parse_forms(ESC50_FORMS_TEXT)

MAX_WORDS = 25
CAPTION_PROMPT = "Close-ended question: Write an audio caption describing the sound."


def named_labels(text: str) -> set[str]:
    """The ESC-50 labels that a text names.

    The text is case-folded and cut into words `[a-z]+`; a label is named when, for one of its forms in
    [`ESC50_FORMS`], every slot has one of its words in the text, in any order.

    Args:
        text (`str`): A description, of any length.
    """
    words = set(re.findall("[a-z]+", text.casefold()))
    return {label for label, forms in ESC50_FORMS.items() if any(all(slot & words for slot in form) for form in forms)}


def names_label(text: str, label: str) -> bool:
    """Whether a description is right about a clip of ESC-50.

    Right: at most 25 words, the true label named (see [`named_labels`]), and no other of the fifty. A text that
    lists several classes is wrong, so guessing does not pay.

    Args:
        text (`str`): What the model said.
        label (`str`): The clip's class as ESC-50 writes it, such as `"door_wood_knock"`.

    Raises:
        ValueError: `label` is none of ESC-50's fifty.
    """
    if label not in ESC50_FORMS:
        raise ValueError(f"label: got {label!r}, expected one of ESC-50's 50 classes, such as 'dog' or 'rain'.")
    return len(re.findall("[a-z]+", text.casefold())) <= MAX_WORDS and named_labels(text) == {label}


def wilson_interval(correct: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The interval that covers a true rate with 95 % confidence (Wilson's score interval).

    Args:
        correct (`int`): Number of successes.
        count (`int`): Number of trials, at least 1.
        z (`float`, *optional*, defaults to 1.96): Standard deviations to either side.

    Returns:
        `tuple[float, float]`: Lower and upper bound, fractions from 0 to 1.

    Raises:
        ValueError: `count` is not positive, or `correct` is not from 0 to `count`.
    """
    if count < 1 or not 0 <= correct <= count:
        raise ValueError(f"correct, count: got {correct} of {count}, expected 0 <= correct <= count and count >= 1.")
    rate = correct / count
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


@torch.inference_mode()
def generate_answers(
    model, processor, clips: Sequence[Any], prompts: Sequence[str], batch_size: int = 32, max_new_tokens: int = 64
) -> list[str]:
    """Greedy answers to questions about clips.

    Args:
        model ([`SamForConditionalGeneration`]): The model; put into evaluation mode meanwhile.
        processor ([`SamAudioLanguageProcessor`]): Its processor.
        clips (list): One clip for each prompt, anything that [`load_audio`] reads; of those over 10.24 s the
            beginning is taken.
        prompts (list of `str`): The questions.
        batch_size (`int`, *optional*, defaults to 32): Questions that are answered together.
        max_new_tokens (`int`, *optional*, defaults to 64): Longest answer.

    Returns:
        `list[str]`: The answers, in the order of the questions.

    Raises:
        ValueError: Clips and prompts are not equally many.
    """
    if len(clips) != len(prompts):
        raise ValueError(f"clips, prompts: got {len(clips)} and {len(prompts)}, expected one clip for each prompt.")
    training = model.training
    model.eval()
    answers = []
    for begin in tqdm(range(0, len(clips), batch_size), desc="answering", unit="batch"):
        audio = [[clip] for clip in clips[begin : begin + batch_size]]
        texts = list(prompts[begin : begin + batch_size])
        inputs = processor(text=texts, audio=audio, overflow="truncate", return_tensors="pt").to(model.device)
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        new_tokens = tokens[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.batch_decode(new_tokens, skip_special_tokens=True)]
    model.train(training)
    return answers


def strip_option_letter(text: str) -> str:
    """A chosen option without its letter: "b) dog barking", "(B) dog barking" and "B. dog barking" give "dog barking".

    Args:
        text (`str`): What the model said.
    """
    return re.sub(r"^\s*(?:\([a-hA-H]\)|[a-hA-H]\s*[).:])\s*", "", text).strip()


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
        return said.strip("()") == truth.lstrip("(")[:1]
    return strip_option_letter(said) == strip_option_letter(truth)


def evaluate_questions(
    model, processor, rows: Sequence[dict[str, Any]], folder: str | Path = ".", batch_size: int = 32
) -> dict[str, Any]:
    """How often a model's greedy answers to closed questions are right, by kind.

    Args:
        model ([`SamForConditionalGeneration`]): The model.
        processor ([`SamAudioLanguageProcessor`]): Its processor.
        rows (list of `dict`): `audio` (a path, relative to `folder`), `prompt`, `answer` and `kind`; the rule of each
            kind is that of [`answers_question`].
        folder (`str` or `Path`, *optional*): Where the paths begin.
        batch_size (`int`, *optional*, defaults to 32): Questions that are answered together.

    Returns:
        `dict`: `benchmark`, `protocol`, `metric`, `value`, `interval` (over all kinds), `count`, `by_kind`
        (`{kind: {"value", "interval", "count"}}`), `predictions`.

    Raises:
        ValueError: No rows, or a row without one of the keys.
    """
    keys = ("audio", "prompt", "answer", "kind")
    absent = next((key for key in keys if not rows or key not in rows[0]), None)
    if absent is not None:
        raise ValueError(f"rows: got {len(rows)} rows with no {absent!r}, expected some with {', '.join(keys)}.")
    clips = [str(Path(folder) / row["audio"]) for row in rows]
    answers = generate_answers(model, processor, clips, [row["prompt"] for row in rows], batch_size)
    predictions = [
        {
            **{key: row[key] for key in ("prompt", "kind")},
            "audio": Path(row["audio"]).name,
            "prediction": answer,
            "reference": row["answer"],
            "correct": answers_question(answer, row["answer"], row["kind"]),
        }
        for row, answer in zip(rows, answers)
    ]

    def score(part):
        correct = sum(prediction["correct"] for prediction in part)
        return {
            "value": correct / len(part),
            "interval": list(wilson_interval(correct, len(part))),
            "count": len(part),
        }

    kinds = sorted({row["kind"] for row in rows})
    return {
        "benchmark": "questions",
        "protocol": "answers_question",
        "metric": "accuracy",
        **score(predictions),
        "by_kind": {kind: score([each for each in predictions if each["kind"] == kind]) for kind in kinds},
        "predictions": predictions,
    }


def evaluate_esc50(
    model, processor, folder: str | Path, fold: int | None = None, prompt: str = CAPTION_PROMPT, batch_size: int = 32
) -> dict[str, Any]:
    """How often a model's greedy description of a clip of ESC-50 is right by [`names_label`].

    Args:
        model ([`SamForConditionalGeneration`]): The model.
        processor ([`SamAudioLanguageProcessor`]): Its processor.
        folder (`str` or `Path`): As in [`read_esc50`].
        fold (`int`, *optional*): One of the five folds; all of them by default.
        prompt (`str`, *optional*): What is asked; by default what `sam-alm describe` asks.
        batch_size (`int`, *optional*, defaults to 32): Clips that are described together.

    Returns:
        `dict`: `benchmark`, `protocol`, `metric`, `value` (a fraction), `interval` (95 %, Wilson's), `count`,
        `expected` (clips in the table), `missing`, `fold`, `predictions` (a dict a clip).
    """
    clips, missing = read_esc50(folder, fold)
    answers = generate_answers(model, processor, [str(file) for file, _ in clips], [prompt] * len(clips), batch_size)
    predictions = [
        {
            "audio": file.name,
            "prompt": prompt,
            "prediction": answer,
            "reference": label,
            "correct": names_label(answer, label),
        }
        for (file, label), answer in zip(clips, answers)
    ]
    correct = sum(prediction["correct"] for prediction in predictions)
    return {
        "benchmark": "esc50",
        "protocol": "names_label",
        "metric": "accuracy",
        "value": correct / len(predictions),
        "interval": list(wilson_interval(correct, len(predictions))),
        "count": len(predictions),
        "expected": len(predictions) + len(missing),
        "missing": missing,
        "fold": fold,
        "predictions": predictions,
    }


__all__ = [
    "ESC50_FORMS",
    "answers_question",
    "evaluate_esc50",
    "evaluate_questions",
    "generate_answers",
    "named_labels",
    "names_label",
    "read_esc50",
    "strip_option_letter",
    "wilson_interval",
]
