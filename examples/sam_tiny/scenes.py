"""Scenes of one to three sounds, and questions that the way they are made answers, for make_sam_tiny.py.

A scene is a clip with its sounds, each with its label, its beginning and end in seconds and its level in dB. Questions
are of OpenAQA's and ReasonAQA's kinds: captions, labels, order, loudness, number and length (closed), full sentences
(open), yes/no, and multiple choice with lettered options. Every answer follows from the labels and the mixing alone.
"""

import random
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
from captions import (
    PHRASES,
    SENTENCE_PROMPTS,
    caption,
    gerund,
    headline,
    label_list,
    sentence,
    upper_first,
)

from processing_sam import SAMPLING_RATE, load_audio
from sam_lab.common.prompts import CLASSIFICATION_PROMPT, DEFAULT_PROMPT

SECONDS = 10.0  # of a scene, at most
MODES = ("together", "in turn", "three")
ORDER_PROMPTS = ("Which sound comes first?", "In which order are the sounds heard?")
LOUDER_PROMPT = "Which sound is louder?"
NUMBER_PROMPT = "How many different kinds of sound are there?"
LENGTH_PROMPT = "How long does the sound last?"
NUMBERS = ("One.", "Two.", "Three.")
LENGTHS = ("Less than two seconds.", "Two to five seconds.", "More than five seconds.")
CLOSED = "Close-ended question: "  # as LTU, on half of the closed questions
WHAT_CHOICE = "What is the primary sound event present in the clip?"
FIRST_CHOICE = "Which of these is heard first?"


@dataclass(frozen=True)
class Sound:
    """A sound in a scene.

    Args:
        label (`str`): One of `captions.PHRASES`.
        begin, end (`float`): In seconds.
        level (`float`): In dB, of its loud parts, against the other sounds of the scene.
    """

    label: str
    begin: float
    end: float
    level: float = 0.0


# -- Making -------------------------------------------------------------------------------------------------------


def trimmed(path: str) -> np.ndarray:
    """A clip without the digital silence at its ends, with a mean square of one over its loud parts."""
    waveform = load_audio(path)[: int(SECONDS * SAMPLING_RATE)]
    loud = np.flatnonzero(np.abs(waveform) > 1e-4 * max(np.abs(waveform).max(), 1e-9))
    waveform = waveform[loud[0] : loud[-1] + 1] if len(loud) else waveform
    power = np.convolve(waveform**2, np.ones(1600) / 1600, mode="same")
    return waveform / np.sqrt(max(np.quantile(power, 0.9), 1e-10))


def loud_seconds(path: str) -> float:
    """How long a clip sounds, without the digital silence at its ends."""
    return len(trimmed(path)) / SAMPLING_RATE


def write_scene(task: tuple[str, list[tuple[str, str]], int, str]) -> list[Sound]:
    """Mixes sounds into a clip, writes it as 16-bit FLAC, and returns its sounds.

    Args:
        task (`tuple`): The mode, `(label, path)` of each sound, a seed, and the file to write. `"together"`: they
            overlap, or may; `"in turn"` and `"three"`: each begins after the one before has ended.
    """
    mode, sources, seed, output = task
    rng = np.random.default_rng(seed)
    levels = [0.0, *rng.uniform(-8, 8, len(sources) - 1)]
    share = SECONDS / len(sources) - 0.5
    clips = []
    for (_, path), level in zip(sources, levels):
        clip = trimmed(path)
        if mode != "together":
            clip = clip[: int(share * SAMPLING_RATE)]
        clips.append(clip * 10 ** (level / 20))
    if mode == "together":
        length = min(max(map(len, clips)) + int(rng.uniform(0, 2) * SAMPLING_RATE), int(SECONDS * SAMPLING_RATE))
        begins = [int(rng.integers(0, max(length - len(clip), 0) + 1)) for clip in clips]
    else:
        begins, place = [], 0
        for clip in clips:
            begins.append(place)
            place += len(clip) + int(rng.uniform(0.1, 0.5) * SAMPLING_RATE)
        length = begins[-1] + len(clips[-1])
    mixture = np.zeros(length, np.float32)
    sounds = []
    for (label, _), clip, begin, level in zip(sources, clips, begins, levels):
        end = min(begin + len(clip), length)
        mixture[begin:end] += clip[: end - begin]
        sounds.append(Sound(label, begin / SAMPLING_RATE, end / SAMPLING_RATE, float(level)))
    mixture *= rng.uniform(0.1, 0.9) / max(np.abs(mixture).max(), 1e-9)
    soundfile.write(output, mixture, SAMPLING_RATE, subtype="PCM_16")
    return sounds


def draw_scenes(
    clips: list[tuple[str, str]], folder: Path, count: int, rng: random.Random
) -> list[tuple[str, list[tuple[str, str]], int, str]]:
    """`count` tasks for [`write_scene`] from `(label, path)` of clips: every label about equally often, modes in
    turn."""
    by_label: dict[str, list[str]] = {}
    for label, path in clips:
        by_label.setdefault(label, []).append(path)
    names = [name for name, paths in sorted(by_label.items()) if len(paths) >= 2]
    tasks = []
    for index in range(count):
        mode = MODES[index % len(MODES)]
        labels: list[str] = []
        while len(labels) < (3 if mode == "three" else 2):
            labels += unlike(labels, names, 1, rng)
        sources = [(label, rng.choice(by_label[label])) for label in labels]
        tasks.append((mode, sources, rng.randrange(2**31), str(folder / f"{index:05}.flac")))
    return tasks


# -- Questions ----------------------------------------------------------------------------------------------------


def words(label: str) -> set[str]:
    """The words of a label's headline that carry its meaning."""
    return {word.strip(",-") for word in PHRASES[label][0].lower().split() if len(word) > 3}


def unlike(labels: list[str], among: list[str], count: int, rng: random.Random) -> list[str]:
    """Labels that share no word with those given: a wrong answer must be wrong ("footsteps" would fit gravel)."""
    taken = set().union(*(words(label) for label in labels)) if labels else set()
    others = [name for name in among if name not in labels and not words(name) & taken]
    return rng.sample(others, min(count, len(others)))


def options(right: str, wrong: list[str], rng: random.Random) -> tuple[str, str]:
    """Lettered options as ReasonAQA has them, and the answer: `("a) cow mooing b) dog barking", "b) dog barking")`."""
    texts = [right, *wrong]
    rng.shuffle(texts)
    lettered = [f"{'abcdefgh'[place]}) {text}" for place, text in enumerate(texts)]
    return " ".join(lettered), lettered[texts.index(right)]


def classification(sounds: list[Sound]) -> list[tuple[str, str, str]]:
    """What the sounds are: caption and labels, the loudest first. All of these return `(prompt, answer, kind)`."""
    labels = [sound.label for sound in sorted(sounds, key=lambda sound: -sound.level)]
    return [(DEFAULT_PROMPT, caption(*labels), "caption"), (CLASSIFICATION_PROMPT, label_list(*labels), "labels")]


def closed(sounds: list[Sound], rng: random.Random) -> list[tuple[str, str, str]]:
    """Questions with one right answer: number, length, loudness, order."""
    rows = [(NUMBER_PROMPT, NUMBERS[len(sounds) - 1], "number")]
    if len(sounds) == 1:
        seconds = sounds[0].end - sounds[0].begin
        if all(abs(seconds - border) > 0.3 for border in (2, 5)):
            rows.append((LENGTH_PROMPT, LENGTHS[(seconds > 2) + (seconds > 5)], "length"))
        return rows
    if len(sounds) == 2 and abs(sounds[0].level - sounds[1].level) > 3:
        louder = max(sounds, key=lambda sound: sound.level)
        rows.append((LOUDER_PROMPT, f"{upper_first(gerund(louder.label))}.", "louder"))
    if in_turn(sounds):
        names = [gerund(sound.label) for sound in sounds]
        answers = (f"{upper_first(names[0])}.", f"First {', then '.join(names)}.")
        place = rng.randrange(2)
        rows.append((ORDER_PROMPTS[place], answers[place], "order"))
    return rows


def in_turn(sounds: list[Sound]) -> bool:
    """Whether each sound begins after the one before has ended."""
    return len(sounds) > 1 and all(a.end <= b.begin for a, b in pairwise(sounds))


def open_ended(sounds: list[Sound], rng: random.Random) -> list[tuple[str, str, str]]:
    """A full sentence about the sounds."""
    prompt = rng.choice(list(SENTENCE_PROMPTS))
    return [(prompt, sentence(prompt, *(sound.label for sound in sounds)), "sentence")]


def yes_or_no(sounds: list[Sound], among: list[str], rng: random.Random) -> list[tuple[str, str, str]]:
    """A question whose answer is yes and one whose answer is no: about one sound, or about the first of several in
    turn."""
    labels = [sound.label for sound in sounds]
    heard, absent = rng.choice(labels), unlike(labels, among, 1, rng)
    ask = "Is there the sound of {}? Answer yes or no."
    rows = [(ask.format(gerund(heard)), "Yes.", "binary")]
    rows += [(ask.format(gerund(label)), "No.", "binary") for label in absent]
    if in_turn(sounds) and rng.random() < 0.5:
        pair = [gerund(labels[0]), gerund(labels[-1])]
        is_true = rng.random() < 0.5
        before, after = pair if is_true else pair[::-1]
        rows.append((f"Does {before} come before {after}? Answer yes or no.", ("No.", "Yes.")[is_true], "binary"))
    return rows


def multiple_choice(sounds: list[Sound], among: list[str], rng: random.Random) -> list[tuple[str, str, str]]:
    """A question with four options: the sound, or, of several in turn, the first."""
    if len(sounds) > 1 and not in_turn(sounds):
        return []
    labels = [sound.label for sound in sounds]
    wrong = [*labels[1:], *unlike(labels, among, 4 - len(labels), rng)]
    text, answer = options(headline(labels[0]), [headline(name) for name in wrong], rng)
    return [(f"{FIRST_CHOICE if len(sounds) > 1 else WHAT_CHOICE} {text}", answer, "multiple_choice")]
