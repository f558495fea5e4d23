"""The scripts that measure, with a tiny model on the CPU: that they run, and that what they count is right."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from configuration_sam import SamConfig
from sam_lab.training.recipe import load_recipe

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import benchmark
import benchmark_training
import two_gpu_check

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

TRAIN = ["train", "--size", "tiny", "--rank", "2", "--global-batch", "4", "--steps", "2", "--device", "cpu"]
CONTRACT = {"work", "implementation", "size", "batch", "dtype", "state_dtype", "per_second", "floor_ms", "device"}


@pytest.fixture(autouse=True)
def threads():
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


def measured(tmp_path, *words):
    path = tmp_path / "results.json"
    benchmark.main([*words, "--json", str(path)])
    rows = json.loads(path.read_text())
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"
    return rows


def arguments(*words):
    return benchmark.parse([*TRAIN, "--json", "unused.json", *words])


# ---------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--frozen-encoder", "--pack-to", "1300", "--waveforms", "--connector", "time_major", "--text-tokens", "40"],
        ["--recompute", "--all-logits", "--lengths", "captions", "--chunk-size", "32", "--pad-to-multiple-of", "16"],
    ],
)
def test_training_is_measured(words, tmp_path):
    (row,) = measured(tmp_path, *TRAIN, "--batch", "2", *words)
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


def test_the_largest_micro_batch_is_measured(tmp_path):
    rows = measured(tmp_path, *TRAIN, "--memory-limit-gib", "2", "--largest-batch", "3")
    assert [row["work"] for row in rows] == ["train: largest micro-batch", "train"]
    assert all(CONTRACT <= row.keys() for row in rows)
    assert [row["batch"] for row in rows] == [3, 3]


def test_what_was_measured_before_an_error_is_kept(tmp_path, monkeypatch):
    measure = benchmark_training.Training.measure

    def fails_at_4(self, batch):
        if batch == 4:
            raise torch.OutOfMemoryError("not really")
        if batch == 8:
            raise KeyboardInterrupt
        return measure(self, batch)

    monkeypatch.setattr(benchmark_training.Training, "measure", fails_at_4)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, *TRAIN, "--batch", "2", "4", "8")
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(row["batch"], row.get("error")) for row in rows] == [(2, None), (4, "out of memory")]


def test_loading_is_measured(tmp_path):
    words = ["loader", "--clips", "2", "--seconds", "0.1", "--workers", "0", "--batch", "2", "--device", "cpu"]
    rows = measured(tmp_path, *words)
    assert all(CONTRACT <= row.keys() for row in rows)
    assert [(row["implementation"], row["format"].split(",")[0]) for row in rows] == [
        (features, kind) for kind in ("flac", "ogg") for features in ("workers", "device")
    ]
    assert all(row["per_second"] == pytest.approx(row["clips"] / row["seconds"]) for row in rows)


def test_the_clips_are_what_they_are_said_to_be(tmp_path):
    import soundfile

    files = benchmark.write_clips(tmp_path, 1, 0)
    for kind, subtype in (("flac", "PCM_16"), ("ogg", "VORBIS")):
        information = soundfile.info(files[kind][0])
        assert (information.samplerate, information.channels, information.subtype) == (44100, 2, subtype)
        assert information.duration == pytest.approx(10)
        sound = soundfile.read(files[kind][0])[0]
        assert np.abs(sound[:, 0] - sound[:, 1]).max() > 0.01  # really stereo


@pytest.mark.parametrize("words", [["decode"], TRAIN + ["--rank", "0"], ["train", "--size", "7b"], ["loader"]])
def test_what_is_not_offered_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([*words, *(["--json", "x.json"] if words != ["loader"] else [])])
    assert "error: " in capsys.readouterr().err
    assert not Path("x.json").exists()


# ---------------------------------------------------------------------------------------------------------------
# What is counted
# ---------------------------------------------------------------------------------------------------------------


def test_operations_of_a_pair():
    """Published and hand-made numbers: 97 GFLOP for the encoder, 0.43, 1.00 and 2.49 TFLOP for a pair of 64 slots and
    100 text positions with the logits of all."""
    for size, expected in (("130m", 0.43e12), ("780m", 1.00e12), ("2.7b", 2.49e12)):
        config = SamConfig.from_preset(size)
        assert benchmark_training.pair_flops(config, 164, 164, 256, True) == pytest.approx(expected, rel=0.03)
    joint, frozen = (benchmark_training.pair_flops(config, 164, 164, 256, flag) for flag in (True, False))
    assert (joint - frozen) / 2 == pytest.approx(97e9, rel=0.01)
    fewer = benchmark_training.pair_flops(config, 164, 64, 256, True)
    assert joint - fewer == pytest.approx(100 * 4 * 2560 * 50288)  # forward, and backward to the hidden state
    # what a rank of 256 adds to in_proj (2560 to 10576) and out_proj (5120 to 2560), three times a forward pass
    adapters = benchmark_training.pair_flops(config, 164, 164, 1, True)
    assert joint - adapters == pytest.approx(64 * 164 * 6 * 255 * (2560 + 10576 + 5120 + 2560))


@pytest.mark.parametrize(
    "words, mean", [([], 102), (["--lengths", "captions"], 38.7), (["--text-tokens", "101"], 101)]
)
def test_lengths_of_text(words, mean):
    lengths = benchmark_training.text_lengths(arguments(*words), 20_000, np.random.default_rng(0))
    assert lengths.sum(axis=1).mean() == pytest.approx(mean, rel=0.01)
    assert lengths.min() >= 2 and lengths.sum(axis=1).max() <= benchmark_training.longest_text(arguments(*words))


def test_a_cutoff_takes_the_answers_end():
    args = arguments("--text-cutoff", "108")
    lengths = benchmark_training.text_lengths(args, 1000, np.random.default_rng(0))
    assert lengths.sum(axis=1).max() == 108 == benchmark_training.longest_text(args) and lengths.min() > 0


def test_a_packed_batch_holds_what_the_rows_hold():
    config = benchmark_training.benchmark_config("tiny", "concatenation")
    lengths = np.array([[20, 10], [30, 25], [21, 7]])
    plain, packed = (
        benchmark_training.make_batch(config, lengths, arguments(*words), np.random.default_rng(1))
        for words in ([], ["--pack-to", "220"])
    )
    assert plain["input_ids"].shape == (3, 64 + 55) and "seq_idx" not in plain
    assert packed["input_ids"].shape == (2, 64 + 55 + 64 + 30)  # the longest with the next that fits
    for batch in (plain, packed):
        assert batch["pairs"] == 3 and sum(batch["positions"]) == 3 * 64 + 113
        assert int((batch["labels"] != -100).sum()) == 42 == batch["labels_count"]
        assert int(batch["attention_mask"].sum()) == 3 * 64 + 113
        assert int((batch["input_ids"] == 258).sum()) == 3 * 64
    assert sorted(packed["seq_idx"].unique().tolist()) == [0, 1, 3]  # at most two in a row; pads have their own


def test_steps_have_the_distributions_lengths():
    args = arguments("--steps", "4", "--global-batch", "64")
    config = benchmark_training.benchmark_config("tiny", "concatenation")
    steps = benchmark_training.make_steps(config, 16, args)
    assert [len(step) for step in steps] == [4] * 4
    found = sorted(length for step in steps for batch in step for length in batch["positions"])
    pool = benchmark_training.text_lengths(args, 256, np.random.default_rng(args.seed)).sum(axis=1)
    assert found == sorted((64 + pool).tolist())
    padded = sum(batch["input_ids"].numel() for step in steps for batch in step)
    assert sum(found) / padded > 0.85  # grouped by length


@pytest.mark.parametrize("room", [0, 1, 2, 5, 23, 64, 100])
def test_the_search_finds_the_largest_that_fits(room):
    tried = []

    class Fake(benchmark_training.Training):
        def __init__(self):
            pass

        def fits(self, batch):
            tried.append(batch)
            return batch <= room

    found = Fake().largest(64)
    most = min(room, 64)
    assert found <= most and found >= most * 8 / 9 and len(tried) <= 12 and max(tried) <= 64
    assert most > 8 or found == most


def test_experiments_are_extrapolated():
    args = benchmark.parse(["train", "--size", "2.7b", "--json", "unused.json"])
    (row,) = benchmark_training.experiments(args, "concatenation", 100.0)
    # twice classification twice, closed once, the mixture once
    expected = [(4 * rows + 1_917_894 + 5_681_708) / 100 / 86400 for rows in (1_180_000, 1_470_000)]
    assert row["implementation"] == "E6" and row["gpu_days"] == pytest.approx(expected)
    assert "extrapolation" in row["work"]
    assert not list(benchmark_training.experiments(args, "time_major", 100.0))


# ---------------------------------------------------------------------------------------------------------------
# Two processes
# ---------------------------------------------------------------------------------------------------------------


def runs(dtype, one, two, speeds=(10.0, 19.0)):
    common = {"size": "tiny", "batch": 2, "global_batch": 4, "dtype": dtype, "state_dtype": "float32", "device": "cpu"}
    return [{**common, "losses": losses, "per_second": speed} for losses, speed in zip((one, two), speeds)]


def test_two_processes_are_compared():
    row = two_gpu_check.compare(*runs("float32", [4.0, 2.0], [4.002, 1.9990]))
    assert row["largest_relative_difference"] == pytest.approx(5e-4) and row["within_1e-3"] is True
    assert row["times_as_fast"] == pytest.approx(1.9)
    assert two_gpu_check.compare(*runs("float32", [4.0, 2.0], [4.0, 2.01]))["within_1e-3"] is False
    assert "within_1e-3" not in two_gpu_check.compare(*runs("bfloat16", [4.0], [4.1]))
    with pytest.raises(ValueError):
        two_gpu_check.compare(*runs("float32", [4.0, 2.0], [4.0]))


def test_both_runs_have_the_same_recipe_and_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["two_gpu_check.py"])
    args = type("Arguments", (), {"batch": 3, "bf16_batch": 8, "rank": 2, "workers": 0, "fsdp": False})
    path = two_gpu_check.write_recipe(tmp_path / "fp32.yaml", args, EXAMPLES / "sam-tiny", "fp32", 5)
    recipe = load_recipe(path)
    assert recipe.lora_dropout == 0.0 and recipe.base_dtype == "float32"
    assert recipe.stages[0].global_batch_size == 6 and recipe.stages[0].trains == ["connector", "encoder", "lora"]
    table = (tmp_path / "fp32" / "table.csv").read_text().splitlines()
    assert len(table) == 1 + 5 * 6
    audio = table[1].split(",")[0]
    assert Path(audio).is_file() and recipe.data["rows"].path == str(tmp_path / "fp32" / "table.csv")
    for steps, every in ((4, 1), (40, 5)):  # few steps have losses too
        path = two_gpu_check.write_recipe(tmp_path / "bf16.yaml", args, EXAMPLES / "sam-tiny", "bf16", steps)
        assert load_recipe(path).logging_steps == every


def test_a_run_that_fails_or_hangs_is_told(tmp_path, monkeypatch):
    values = {"batch": 1, "bf16_batch": 1, "work": tmp_path, "size": "tiny", "seconds": 20.0, "fsdp": False}
    args = type("Arguments", (), values)
    monkeypatch.setattr(two_gpu_check, "command", lambda *_: [sys.executable, "-c", "raise SystemExit('went wrong')"])
    assert "went wrong" in two_gpu_check.run(1, "fp32", tmp_path / "none.yaml", args)["error"]
    args.seconds = 0.5
    monkeypatch.setattr(two_gpu_check, "command", lambda *_: [sys.executable, "-c", "import time; time.sleep(60)"])
    assert "ended after 0.5 s" in two_gpu_check.run(2, "bf16", tmp_path / "none.yaml", args)["error"]


def test_a_plot_without_matplotlib_says_so(tmp_path):
    rows = runs("float32", [4.0, 2.0], [4.0, 2.0])
    (tmp_path / "two.json").write_text(json.dumps([{**row, "implementation": "x"} for row in rows]))
    words = ["--plot-only", "--json", tmp_path / "two.json", "--plot", tmp_path / "two.png"]
    code = "import sys, runpy; sys.modules['matplotlib'] = None; sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, EXAMPLES / "two_gpu_check.py", *words], capture_output=True, text=True
    )
    assert done.returncode == 0 and "no plot: matplotlib is not installed" in done.stdout, done.stderr[-2000:]
    assert not (tmp_path / "two.png").exists()
