"""Scenes of several sounds, and the questions about them."""

import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import script

from sam_lab.common.prompts import CLASSIFICATION_PROMPT, DEFAULT_PROMPT

captions = script("examples/sam_tiny/captions.py")
scenes = script("examples/sam_tiny/scenes.py")
Sound = scenes.Sound
LABELS = sorted(captions.PHRASES)


@pytest.fixture
def tones(tmp_path):
    """Two tones of a second behind half a second of silence: `(label, path)`."""
    times = np.arange(16000) / 16000
    for name, frequency in (("dog", 500), ("rain", 2000), ("cow", 4000)):
        tone = np.concatenate([np.zeros(8000), 0.3 * np.sin(2 * np.pi * frequency * times)])
        soundfile.write(tmp_path / f"{name}.wav", tone, 16000)
    return [(name, str(tmp_path / f"{name}.wav")) for name in ("dog", "rain", "cow")]


def loudness(waveform, sound, frequency):
    """Power of a tone within a sound's time."""
    part = waveform[int(sound.begin * 16000) : int(sound.end * 16000)]
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)))) ** 2
    places = np.fft.rfftfreq(len(part), 1 / 16000)
    return spectrum[np.abs(places - frequency) < 60].sum()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mode", scenes.MODES)
def test_a_scene_is_what_it_says(tones, tmp_path, mode, seed):
    sources = tones[: 3 if mode == "three" else 2]
    output = tmp_path / "scene.flac"
    sounds = scenes.write_scene((mode, sources, seed, str(output)))
    waveform, rate = soundfile.read(output)
    assert rate == 16000 and [sound.label for sound in sounds] == [label for label, _ in sources]
    assert all(abs(sound.end - sound.begin - 1.0) < 0.01 for sound in sounds), "the silence is cut off"
    assert max(sound.end for sound in sounds) <= len(waveform) / rate <= scenes.SECONDS
    powers = [loudness(waveform, sound, tone) for sound, tone in zip(sounds, (500, 2000, 4000))]
    for sound, power in zip(sounds[1:], powers[1:]):
        assert 10 * np.log10(power / powers[0]) == pytest.approx(sound.level - sounds[0].level, abs=0.5)
    assert scenes.in_turn(sounds) or mode == "together"
    if mode != "together":
        gap = waveform[int(sounds[0].end * 16000) + 10 : int(sounds[1].begin * 16000) - 10]
        assert len(gap) > 0.09 * 16000 and np.abs(gap).max() < 1e-3


def test_a_scene_follows_its_seed(tones, tmp_path):
    first = scenes.write_scene(("together", tones[:2], 5, str(tmp_path / "a.flac")))
    again = scenes.write_scene(("together", tones[:2], 5, str(tmp_path / "b.flac")))
    other = scenes.write_scene(("together", tones[:2], 6, str(tmp_path / "c.flac")))
    assert first == again != other
    assert (tmp_path / "a.flac").read_bytes() == (tmp_path / "b.flac").read_bytes()


def test_scenes_are_drawn_from_labels_that_differ(tmp_path):
    clips = [(label, f"{label}/{number}") for label in LABELS for number in range(2)] + [("whale", "alone")]
    clips = [clip for clip in clips if clip[0] != "whale" or clip[1] == "alone"]
    tasks = scenes.draw_scenes(clips, tmp_path, 300, random.Random(0))
    for mode, sources, _, output in tasks:
        labels = [label for label, _ in sources]
        assert len(set(labels)) == len(labels) == (3 if mode == "three" else 2)
        assert not any(scenes.words(a) & scenes.words(b) for a in labels for b in labels if a != b)
        assert all(path.startswith(f"{label}/") for label, path in sources) and Path(output).parent == tmp_path
    assert {mode for mode, *_ in tasks} == set(scenes.MODES)
    assert "whale" not in {label for _, sources, *_ in tasks for label, _ in sources}  # one clip: never tested apart
    assert len({seed for *_, seed, _ in tasks}) == 300


# -- Questions ----------------------------------------------------------------------------------------------------

DOG_THEN_RAIN = [Sound("dog", 0.0, 1.0, 0.0), Sound("rain", 1.3, 4.0, -5.0)]
TOGETHER = [Sound("dog", 0.0, 2.0, 0.0), Sound("rain", 1.0, 4.0, 1.0)]


def test_what_is_heard_is_told_the_loudest_first():
    assert scenes.classification(DOG_THEN_RAIN) == [
        (DEFAULT_PROMPT, "Dog barking and rain falling.", "caption"),
        (CLASSIFICATION_PROMPT, "Labels: dog barking; rain falling", "labels"),
    ]
    assert scenes.classification(TOGETHER)[0][1] == "Rain falling and dog barking."


def test_closed_questions_by_hand():
    rng = random.Random(0)
    asked = {}
    for _ in range(20):
        for prompt, answer, kind in scenes.closed(DOG_THEN_RAIN, rng):
            asked[prompt] = (answer, kind)
    assert asked == {
        "How many different kinds of sound are there?": ("Two.", "number"),
        "Which sound is louder?": ("A dog barking.", "louder"),
        "Which sound comes first?": ("A dog barking.", "order"),
        "In which order are the sounds heard?": ("First a dog barking, then rain falling.", "order"),
    }
    assert [kind for *_, kind in scenes.closed(TOGETHER, rng)] == ["number"]  # neither louder by 3 dB, nor in turn
    three = [*DOG_THEN_RAIN, Sound("cow", 4.2, 5.0)]
    assert ("How many different kinds of sound are there?", "Three.", "number") in scenes.closed(three, rng)


@pytest.mark.parametrize(
    ("seconds", "answer"),
    [(0.5, "Less than two seconds."), (3.0, "Two to five seconds."), (9.0, "More than five seconds."), (1.9, None)],
)
def test_the_length_of_a_sound(seconds, answer):
    rows = scenes.closed([Sound("dog", 0.0, seconds)], random.Random(0))
    assert [row[1] for row in rows if row[2] == "length"] == ([answer] if answer else [])


@pytest.mark.parametrize("sounds", [DOG_THEN_RAIN, TOGETHER, [Sound("footsteps", 0.0, 1.0)]])
def test_yes_and_no_are_true(sounds):
    rng, counts = random.Random(0), {"Yes.": 0, "No.": 0}
    for _ in range(200):
        for prompt, answer, kind in scenes.yes_or_no(sounds, LABELS, rng):
            counts[answer] += 1
            assert kind == "binary" and prompt.endswith("Answer yes or no.")
            if "come before" in prompt:
                assert scenes.in_turn(sounds)
                assert (prompt.index("a dog barking") < prompt.index("rain falling")) == (answer == "Yes.")
                continue
            heard = any(captions.gerund(sound.label) in prompt for sound in sounds)
            assert heard == (answer == "Yes.")
            if sounds[0].label == "footsteps" and answer == "No.":
                assert "walking" not in prompt  # on gravel: no clear no
    assert 0.4 < counts["Yes."] / sum(counts.values()) < 0.6


@pytest.mark.parametrize("sounds", [DOG_THEN_RAIN, [*DOG_THEN_RAIN, Sound("cow", 4.2, 5.0)], [Sound("dog", 0, 1)]])
def test_the_right_option_is_the_answer_in_any_place(sounds):
    rng, places = random.Random(0), set()
    for _ in range(100):
        ((prompt, answer, kind),) = scenes.multiple_choice(sounds, LABELS, rng)
        lettered = prompt.split("? ", 1)[1]
        assert kind == "multiple_choice" and answer in lettered and answer[3:] == "dog barking"
        texts = [part.rsplit(" ", 1)[0] for part in lettered.split(") ")[1:-1]] + [lettered.split(") ")[-1]]
        assert len(texts) == len(set(texts)) == 4
        if len(sounds) > 1:
            assert "rain falling" in texts  # the later sound is among the wrong ones
        places.add(answer[0])
    assert places == set("abcd")
    assert scenes.multiple_choice(TOGETHER, LABELS, rng) == []
