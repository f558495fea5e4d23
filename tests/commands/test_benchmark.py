"""`sam-alm benchmark`, with a tiny model on the CPU."""

import json

import pytest
import torch

from sam_lab.timing import train as timing

TRAIN = ["train", "--size", "tiny", "--rank", "2", "--global-batch", "4", "--steps", "2", "--device", "cpu"]
CONTRACT = {"work", "implementation", "size", "batch", "dtype", "state_dtype", "per_second", "floor_ms", "device"}


@pytest.fixture(autouse=True)
def threads():
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


def measured(command, tmp_path, *words):
    path = tmp_path / "results.json"
    command("benchmark", *words, "--json", path)
    rows = json.loads(path.read_text())
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"
    return rows


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--frozen-encoder", "--pack-to", "1300", "--waveforms", "--connector", "time_major", "--text-tokens", "40"],
        ["--recompute", "--all-logits", "--lengths", "captions", "--chunk-size", "32", "--pad-to-multiple-of", "16"],
    ],
)
def test_training_is_measured(command, words, tmp_path):
    (row,) = measured(command, tmp_path, *TRAIN, "--batch", "2", *words)
    assert CONTRACT <= row.keys()
    assert (row["work"], row["size"], row["batch"], row["accumulation"], row["device"]) == (
        "train",
        "tiny",
        2,
        2,
        "cpu",
    )
    assert row["per_second"] == pytest.approx(8 / sum(row["step_seconds"]))  # two steps of four pairs
    assert row["ms"] == pytest.approx(1000 * sum(row["step_seconds"]) / 4)
    shares = row["share_of_time"]
    assert sum(shares.values()) == pytest.approx(1)
    parts = {
        f"{part}, {way}" for part in ("encoder", "connector", "language model") for way in ("forward", "backward")
    }
    parts |= {"data", "rest", "optimiser", "head and loss, forward", "head and loss, backward"}
    frozen = "--frozen-encoder" in words
    assert shares.keys() == parts - ({"encoder, backward"} if frozen else set())
    assert all(share > 0 for share in shares.values())
    slots = 576 if frozen else 64
    if frozen:
        assert row["positions_per_pair"] == slots + 40 and row["labels_per_pair"] == 20
    assert row["positions_per_pair"] > slots and 0 <= row["padding"] < 0.5
    assert row["joint_encoder"] is not frozen


def test_the_largest_micro_batch_is_measured(command, tmp_path):
    rows = measured(command, tmp_path, *TRAIN, "--memory-limit-gib", "2", "--largest-batch", "3")
    assert [row["work"] for row in rows] == ["train: largest micro-batch", "train"]
    assert all(CONTRACT <= row.keys() for row in rows)
    assert [row["batch"] for row in rows] == [3, 3]


def test_what_was_measured_before_an_error_is_saved(command, tmp_path, monkeypatch):
    measure = timing.Training.measure

    def fails_at_4(self, batch):
        if batch == 4:
            raise torch.OutOfMemoryError("not really")
        if batch == 8:
            raise KeyboardInterrupt
        return measure(self, batch)

    monkeypatch.setattr(timing.Training, "measure", fails_at_4)
    with pytest.raises(KeyboardInterrupt):
        measured(command, tmp_path, *TRAIN, "--batch", "2", "4", "8")
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(row["batch"], row.get("error")) for row in rows] == [(2, None), (4, "out of memory")]


@pytest.mark.slow
def test_loading_is_measured(command, tmp_path):
    words = ["load", "--clips", "2", "--seconds", "0.1", "--workers", "0", "--batch", "2", "--device", "cpu"]
    rows = measured(command, tmp_path, *words)
    assert all(CONTRACT <= row.keys() for row in rows)
    assert [(row["implementation"], row["format"].split(",")[0]) for row in rows] == [
        (features, kind) for kind in ("flac", "ogg") for features in ("workers", "device")
    ]
    assert all(row["per_second"] == pytest.approx(row["clips"] / row["seconds"]) for row in rows)


def test_what_is_not_offered_is_refused(command, tmp_path):
    for words in (["decode"], [*TRAIN, "--rank", "0"], ["train", "--size", "7b"]):
        command("benchmark", *words, "--json", tmp_path / "x.json", status=2, error="error: ")
    command("benchmark", "load", status=2, error="error: ")
    assert not (tmp_path / "x.json").exists()
