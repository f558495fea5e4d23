"""What `sam-alm benchmark train` counts."""

import numpy as np
import pytest

from configuration_sam import SamConfig
from sam_lab.parsers import parse
from sam_lab.timing.train import (
    Training,
    benchmark_config,
    experiments,
    longest_text,
    make_batch,
    make_steps,
    pair_flops,
    text_lengths,
)


def arguments(*words):
    tiny = ["benchmark", "train", "--size", "tiny", "--rank", "2", "--global-batch", "4", "--steps", "2"]
    return parse([*tiny, "--device", "cpu", "--json", "unused.json", *words])[1]


def test_operations_of_a_pair():
    """Published and hand-made numbers: 97 GFLOP for the encoder, 0.43, 1.00 and 2.49 TFLOP for a pair of 64 slots and
    100 text positions with the logits of all."""
    for size, expected in (("130m", 0.43e12), ("780m", 1.00e12), ("2.7b", 2.49e12)):
        config = SamConfig.from_preset(size)
        assert pair_flops(config, 164, 164, 256, True) == pytest.approx(expected, rel=0.03)
    joint, frozen = (pair_flops(config, 164, 164, 256, flag) for flag in (True, False))
    assert (joint - frozen) / 2 == pytest.approx(97e9, rel=0.01)
    fewer = pair_flops(config, 164, 64, 256, True)
    assert joint - fewer == pytest.approx(100 * 4 * 2560 * 50288)  # forward, and backward to the hidden state
    # what a rank of 256 adds to in_proj (2560 to 10576) and out_proj (5120 to 2560), three times a forward pass
    adapters = pair_flops(config, 164, 164, 1, True)
    assert joint - adapters == pytest.approx(64 * 164 * 6 * 255 * (2560 + 10576 + 5120 + 2560))


@pytest.mark.parametrize(
    "words, mean", [([], 102), (["--lengths", "captions"], 38.7), (["--text-tokens", "101"], 101)]
)
def test_lengths_of_text(words, mean):
    lengths = text_lengths(arguments(*words), 20_000, np.random.default_rng(0))
    assert lengths.sum(axis=1).mean() == pytest.approx(mean, rel=0.01)
    assert lengths.min() >= 2 and lengths.sum(axis=1).max() <= longest_text(arguments(*words))


def test_a_cutoff_takes_the_answers_end():
    args = arguments("--text-cutoff", "108")
    lengths = text_lengths(args, 1000, np.random.default_rng(0))
    assert lengths.sum(axis=1).max() == 108 == longest_text(args) and lengths.min() > 0


def test_a_packed_batch_holds_what_the_rows_hold():
    config = benchmark_config("tiny", "concatenation")
    lengths = np.array([[20, 10], [30, 25], [21, 7]])
    plain, packed = (
        make_batch(config, lengths, arguments(*words), np.random.default_rng(1))
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
    config = benchmark_config("tiny", "concatenation")
    steps = make_steps(config, 16, args)
    assert [len(step) for step in steps] == [4] * 4
    found = sorted(length for step in steps for batch in step for length in batch["positions"])
    pool = text_lengths(args, 256, np.random.default_rng(args.seed)).sum(axis=1)
    assert found == sorted((64 + pool).tolist())
    padded = sum(batch["input_ids"].numel() for step in steps for batch in step)
    assert sum(found) / padded > 0.85  # grouped by length


@pytest.mark.parametrize("room", [0, 1, 2, 5, 23, 64, 100])
def test_the_search_finds_the_largest_that_fits(room):
    tried = []

    class Fake(Training):
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
    _, args = parse(["benchmark", "train", "--size", "2.7b", "--json", "unused.json"])
    (row,) = experiments(args, "concatenation", 100.0)
    # twice classification twice, closed once, the mixture once
    expected = [(4 * rows + 1_917_894 + 5_681_708) / 100 / 86400 for rows in (1_180_000, 1_470_000)]
    assert row["implementation"] == "E6" and row["gpu_days"] == pytest.approx(expected)
    assert "extrapolation" in row["work"]
    assert not list(experiments(args, "time_major", 100.0))
