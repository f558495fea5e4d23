"""The metrics against scikit-learn, numbers worked out by hand and closed forms."""

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

from sam_lab.evaluation.scoring import (
    accuracy,
    average_precision,
    bootstrap_interval,
    bootstrap_mean,
    label_similarities,
    mean_average_precision,
    micro_f1,
    strip_caption_prefix,
    target_matrix,
    top_is_true,
    top_labels,
    wilson_interval,
)


def table(seed=0, clips=60, labels=7, ties=False):
    """Random scores and targets; some clips have two labels, the last label has no clip."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(clips, labels))
    targets = np.eye(labels, dtype=bool)[generator.integers(labels - 1, size=clips)]
    targets[:: clips // 6, 2] = True
    return (scores.round() if ties else scores), targets


# -- Texts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("Audio caption: a dog barks", "a dog barks"),
        ("audio caption:a dog barks", "a dog barks"),
        ('"Audio caption: a dog barks"', "a dog barks"),
        ("“Audio caption: a dog barks", "a dog barks"),
        ("'AUDIO CAPTION : A dog", "A dog"),
        ("A dog barks", "A dog barks"),  # LTU's slice would give " dog barks" or "dog barks"
        ("a man says: hello", "a man says: hello"),  # LTU's split would give "ello"
        ("Audio caption: a man says: hello", "a man says: hello"),
        ('A man says "hello"', "A man says hello"),
        ("The audio caption: rain", "The audio caption: rain"),  # no prefix
        ("Audio caption", "Audio caption"),
        ("  ", ""),
    ],
)
def test_only_the_prefix_goes(text, bare):
    assert strip_caption_prefix(text) == bare


class Letters:
    """An encoder that counts letters, and keeps what it was asked."""

    name = "letters"

    def __init__(self):
        self.asked = []

    def embed(self, texts):
        self.asked += texts
        counts = torch.tensor([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])
        return torch.nn.functional.normalize(counts.float(), dim=1)


def test_answers_and_labels_are_compared_as_ltu_does():
    encoder = Letters()
    scores = label_similarities(["Audio caption: A Dog", "rain", "Audio caption: A Dog"], ["Dog", "hen"], encoder)
    assert encoder.asked == ["sound of dog", "sound of hen", "sound of a dog", "sound of rain"]  # each text once
    a, b = (Letters().embed([text])[0] for text in ("sound of a dog", "sound of hen"))
    assert scores.shape == (3, 2) and scores[0, 1] == pytest.approx(float(a @ b))
    assert (scores[0] == scores[2]).all() and scores[0].argmax() == 0


def test_targets():
    assert target_matrix([["b"], ["a", "b"]], ["a", "b"]).tolist() == [[False, True], [True, True]]
    with pytest.raises(ValueError, match="clip 1 has 'c', expected one or more of the 2 labels, such as 'a'"):
        target_matrix([["a"], ["c"]], ["a", "b"])
    with pytest.raises(ValueError, match="clip 0 has None"):
        target_matrix([[]], ["a", "b"])


# -- Metrics ------------------------------------------------------------------------------------------------------


def test_by_hand():
    scores = np.array([[0.9, 0.1], [0.8, 0.3], [0.2, 0.4], [0.7, 0.6]])
    targets = np.array([[1, 0], [0, 1], [0, 1], [1, 1]], dtype=bool)
    assert top_labels(scores).tolist() == [0, 0, 1, 0]
    assert accuracy(scores, targets)[0] == 0.75
    assert micro_f1(scores, targets)[0] == pytest.approx(2 * 3 / (4 + 5))  # 3 hits, 4 predicted, 5 true
    # first label, ranked: true, false, true, false; second: true, true, true, false
    assert mean_average_precision(scores, targets)[0] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_are_scikit_learns(ties):
    scores, targets = table(ties=ties)
    top = np.eye(targets.shape[1], dtype=bool)[scores.argmax(axis=1)]
    assert micro_f1(scores, targets)[0] == pytest.approx(f1_score(targets, top, average="micro"))
    single = targets.argmax(axis=1)
    one_hot = np.eye(targets.shape[1], dtype=bool)[single]
    assert accuracy(scores, one_hot)[0] == pytest.approx(accuracy_score(single, scores.argmax(axis=1)))
    expected = [average_precision_score(targets[:, k], scores[:, k]) for k in range(6)]
    assert mean_average_precision(scores, targets)[0] == pytest.approx(np.mean(expected))  # without the seventh


@pytest.mark.parametrize("ties", [False, True])
def test_weights_are_scikit_learns(ties):
    scores, targets = table(1, ties=ties)
    weights = np.random.default_rng(2).multinomial(60, [1 / 60] * 60, size=5)
    for k in range(6):
        ours = average_precision(scores[:, k], targets[:, k], weights)
        for value, weight in zip(ours, weights):
            expected = average_precision_score(targets[:, k], scores[:, k], sample_weight=weight)
            assert value == pytest.approx(expected)
    rows = [np.repeat(np.arange(60), weight) for weight in weights]  # a weight is a repetition
    for metric in (accuracy, micro_f1, mean_average_precision):
        assert metric(scores, targets, weights) == pytest.approx([metric(scores[r], targets[r])[0] for r in rows])


def test_a_clip_without_a_prediction_is_wrong():
    scores, targets = table(3)
    targets[0, -1] = True  # the last label, which an index of -1 would find
    silent = scores.copy()
    silent[:10] = -np.inf
    assert (top_labels(silent)[:10] == -1).all() and not top_is_true(silent, targets)[:10].any()
    top = np.eye(7, dtype=bool)[scores.argmax(axis=1)]
    top[:10] = False
    assert micro_f1(silent, targets)[0] == pytest.approx(f1_score(targets, top, average="micro"))
    assert accuracy(silent, targets)[0] == pytest.approx(top_is_true(scores, targets)[10:].sum() / 60)
    floored = np.where(np.isinf(silent), -1e9, silent)
    assert mean_average_precision(silent, targets)[0] == pytest.approx(mean_average_precision(floored, targets)[0])


def test_nan_is_refused():
    with pytest.raises(ValueError, match="scores: 1 clips have NaN"):
        top_labels(np.array([[0.0, np.nan], [1.0, 0.0]]))


def test_labels_without_clips_are_left_out():
    scores, targets = table()
    assert mean_average_precision(scores, np.zeros_like(targets)).tolist() == pytest.approx([np.nan], nan_ok=True)
    weights = np.zeros((1, 60))
    weights[0, targets[:, 0]] = 1  # a sample in which every clip has the first label
    only = [k for k in range(7) if targets[targets[:, 0], k].any()]
    expected = np.mean([average_precision(scores[:, k], targets[:, k], weights)[0] for k in only])
    assert mean_average_precision(scores, targets, weights)[0] == pytest.approx(expected)


# -- Intervals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_the_interval_of_a_rate_is_the_binomials(rate):
    """The sum of a resampled 0/1 column is binomial: its quantiles are known."""
    count = 400
    values = np.arange(count) < rate * count
    low, high = bootstrap_mean(values, resamples=4000)
    assert low == pytest.approx(binom.ppf(0.025, count, rate) / count, abs=0.006)
    assert high == pytest.approx(binom.ppf(0.975, count, rate) / count, abs=0.006)


@pytest.mark.slow
def test_the_interval_is_seeded_and_is_that_of_the_metric():
    scores, targets = table(4, clips=120)
    interval = bootstrap_interval(lambda weights: mean_average_precision(scores, targets, weights), 120)
    assert interval == bootstrap_interval(lambda weights: mean_average_precision(scores, targets, weights), 120)
    generator = np.random.default_rng(7)
    naive = []
    for _ in range(400):
        rows = generator.integers(120, size=120)
        present = [k for k in range(7) if targets[rows, k].any()]
        naive.append(np.mean([average_precision_score(targets[rows, k], scores[rows, k]) for k in present]))
    assert interval == pytest.approx(np.percentile(naive, [2.5, 97.5]), abs=0.015)
    assert interval[0] < mean_average_precision(scores, targets)[0] < interval[1]


def test_wilson_interval():
    low, high = wilson_interval(50, 100)  # the textbook's example
    assert low == pytest.approx(0.4038, abs=1e-4) and high == pytest.approx(0.5962, abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0 and wilson_interval(10, 10)[1] == 1
    with pytest.raises(ValueError, match="correct, count"):
        wilson_interval(3, 0)
