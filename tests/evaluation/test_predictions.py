"""Answers in batches, over processes and after a kill; truncated clips."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from tiny import tiny_model, tiny_processor, tone

from audio_sam import SamFeatureExtractor
from sam_lab.common.answers import generate_answers
from sam_lab.evaluation import predictions as predictions_module
from sam_lab.evaluation.items import Item
from sam_lab.evaluation.predictions import load_clip, predict, read_parts

ROOT = Path(__file__).parents[2]
LABELS = ["dog", "cow", "rain", "cat", "hen", "frog", "crow", "pig", "wind"]
SETTINGS = {"model": "tiny"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Nine clips: tones of different pitch, the last but one longer than 10.24 s, the last no sound at all."""
    folder = tmp_path_factory.mktemp("clips")
    for number, label in enumerate(LABELS[:-1]):
        soundfile.write(
            folder / f"{label}.wav", tone(11.0 if number == 7 else 0.5, frequency=200 * (number + 1)), 16000
        )
    (folder / "wind.wav").write_bytes(b"not a sound")
    return folder


@pytest.fixture(scope="module")
def items(clips):
    """Their prompts differ in length, so that the batches are in another order than the items."""
    return [
        Item(label, str(clips / f"{label}.wav"), "Why? " * (n % 3 + 1), (label,)) for n, label in enumerate(LABELS)
    ]


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(), tiny_processor()


def process(index, count):
    """What `predict` wants of accelerate's state, for processes that run one after another."""
    return SimpleNamespace(
        process_index=index, num_processes=count, is_main_process=index == 0, wait_for_everyone=lambda: None
    )


def answered(tiny, items, folder, batch_size=2, state=None, **options):
    candidates = {item.id: ["Dog", "A cow is mooing"] for item in items}
    options = {"candidates": candidates, "batch_size": batch_size, "max_new_tokens": 4, **options}
    return predict(*tiny, items, folder, SETTINGS, state=state or process(0, 1), **options)


@pytest.fixture(scope="module")
def expected(tiny, items, tmp_path_factory):
    return answered(tiny, items, tmp_path_factory.mktemp("expected"))[0]


def near(records, others):
    """The same but for the rounding of another batch's sums."""
    for one, other in zip(records, others, strict=True):
        one, other = dict(one), dict(other)
        assert one.pop("sums", []) == pytest.approx(other.pop("sums", []), abs=1e-3)
        assert one == other
    return True


def test_records_are_those_of_plain_generation(tiny, items, expected):
    assert [record["id"] for record in expected] == LABELS
    plain = generate_answers(*tiny, [i.audio for i in items[:8]], [i.prompt for i in items[:8]], 8, max_new_tokens=4)
    assert [record["text"] for record in expected[:8]] == plain and len(set(plain)) > 1
    assert [record["long"] for record in expected[:8]] == [False] * 7 + [True]
    assert expected[8]["text"] is None and "is no known kind of audio file" in expected[8]["failed"]
    assert "sums" not in expected[8] and all(len(record["sums"]) == 2 for record in expected[:8])


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_batches_do_not_matter(tiny, items, expected, tmp_path, batch_size):
    assert near(answered(tiny, items, tmp_path, batch_size)[0], expected)


def test_order_does_not_matter(tiny, items, expected, tmp_path):
    assert near(answered(tiny, items[::-1], tmp_path)[0][::-1], expected)


@pytest.mark.parametrize("count", [2, 3])
def test_shards_are_merged_exactly(tiny, items, expected, tmp_path, count):
    for index in reversed(range(count)):
        records, speed = answered(tiny, items, tmp_path, state=process(index, count))
        assert index == 0 or records is None
    assert records == expected
    # The main process found what the others had written.
    assert 0 < speed["resumed"] < len(items)


def test_a_process_that_did_not_answer_is_noticed(tiny, items, tmp_path):
    with pytest.raises(RuntimeError, match=r"items have no answer, such as .* do all processes see"):
        answered(tiny, items, tmp_path, state=process(0, 2))


def test_too_little_memory_for_a_clip_is_its_own_failure(tiny, items, expected, tmp_path, monkeypatch):
    load = predictions_module.load_audio

    def fail(path, **options):
        if path == items[2].audio:
            raise MemoryError
        return load(path, **options)

    monkeypatch.setattr(predictions_module, "load_audio", fail)
    records, _ = answered(tiny, items, tmp_path)
    assert records[2] == {"id": "rain", "text": None, "failed": "MemoryError"}
    assert near(records[:2] + records[3:], expected[:2] + expected[3:])


class Killed(Exception):
    pass


@pytest.mark.parametrize("count", [1, 2])
def test_a_killed_run_goes_on(tiny, items, expected, tmp_path, monkeypatch, count):
    whole, calls = predictions_module.answer_batch, []

    def dying(*args):
        calls.append([item.id for item in args[2]])
        if len(calls) == 3:
            raise Killed
        return whole(*args)

    monkeypatch.setattr(predictions_module, "answer_batch", dying)
    with pytest.raises(Killed):
        answered(tiny, items, tmp_path)
    with open(tmp_path / "part-00000.jsonl", "a") as handle:
        handle.write('[{"id": "hen", "text": "cut o')  # as a machine that lost its power leaves it
    assert len(read_parts(tmp_path)) == 4
    done = {label for batch in calls[:2] for label in batch}
    for index in reversed(range(count)):  # also with another number of processes
        records, _ = answered(tiny, items, tmp_path, state=process(index, count))
    assert records == expected
    again = [label for batch in calls[3:] for label in batch]
    assert sorted(again) == sorted(set(LABELS) - done)
    calls.clear()
    assert answered(tiny, items, tmp_path)[0] == expected and calls == []  # nothing is left to do


def test_runs_are_not_mixed(tiny, items, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(predictions_module, "answer_batch", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(*tiny, items[:1], tmp_path, {"model": "that does not fit"}, state=process(0, 1))
    # A run that was broken off before it had an answer stands in nobody's way.
    answered(tiny, items[:1], tmp_path)
    with pytest.raises(ValueError, match=r"with other settings \(model tiny -> other\); delete the folder"):
        predict(*tiny, items[:1], tmp_path, {"model": "other"}, state=process(0, 1))
    with pytest.raises(ValueError, match="items: got 2 with 1 ids"):
        answered(tiny, [items[0], replace(items[1], id=items[0].id)], tmp_path)


# -- Clips --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
def test_a_file_that_breaks_off_is_a_failure_or_kept(tmp_path, name):
    noise = np.random.default_rng(0).normal(size=320000).astype(np.float32) / 10
    path, extractor = tmp_path / name, SamFeatureExtractor()
    soundfile.write(path, noise, 16000)
    waveform, reason = load_clip(str(path), extractor)
    assert len(waveform) == 164240 and reason is None  # what is used, and one frame to tell that it is longer
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    waveform, reason = load_clip(str(path), extractor)
    assert waveform is None and "breaks off after" in reason
    extractor.incomplete = "keep"
    waveform, reason = load_clip(str(path), extractor)
    assert 60000 < len(waveform) < 110000 and reason is None
