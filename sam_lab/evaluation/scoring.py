"""Classification metrics with a weight for each clip, and confidence intervals.

Every metric takes `weights` `[R, N]`, how often each of `N` clips counts in each of `R` samples, and returns `R`
values, so that the value over all clips and the values of a bootstrap are the same computation.
"""

import math
import re
from collections.abc import Callable, Sequence

import numpy as np
from tqdm.auto import tqdm

RESAMPLES = 1000
CHUNK = 100  # samples whose weights are in memory at once: 100 x 20,000 clips are 8 MB
CAPTION_PREFIX = re.compile(r"^\s*['‘“]*\s*audio\s+caption\s*:", re.IGNORECASE)

# -- From texts to scores -----------------------------------------------------------------------------------------


def strip_caption_prefix(text: str) -> str:
    """A description without double quotes and without a leading "Audio caption:" (in any case).

    LTU's scripts cut everything up to the last colon and then one or two characters, which damages an answer without
    the prefix, or one that contains a colon. Here only the prefix is removed.

    Args:
        text (`str`): The model's answer.
    """
    return CAPTION_PREFIX.sub("", text.replace('"', "")).strip()


def label_similarities(texts: Sequence[str], label_texts: Sequence[str], encoder) -> np.ndarray:
    """The cosine between each answer and each label, as in LTU (`src/ltu/eval/eval_*.py`).

    Both are lower-cased and embedded after "sound of "; answers first pass through [`strip_caption_prefix`].

    Args:
        texts (list of `str`): `N` answers.
        label_texts (list of `str`): `C` labels in words.
        encoder ([`TextEncoder`]): Anything whose `embed(texts)` returns unit vectors `[texts, d]`.

    Returns:
        `np.ndarray` of shape `[N, C]`, float32.
    """
    spoken = [f"sound of {strip_caption_prefix(text).lower()}" for text in texts]
    distinct = list(dict.fromkeys(spoken))  # a model gives many clips the same answer
    rows = {text: row for row, text in enumerate(distinct)}
    labels = encoder.embed([f"sound of {text.lower()}" for text in label_texts])
    return (encoder.embed(distinct) @ labels.T).numpy()[[rows[text] for text in spoken]]


def target_matrix(references: Sequence[Sequence[str]], labels: Sequence[str]) -> np.ndarray:
    """Which labels are true for which clip, `[N, C]`, bool.

    Raises:
        ValueError: A clip without a label, or with one that is not in `labels`.
    """
    columns = {label: column for column, label in enumerate(labels)}
    targets = np.zeros((len(references), len(labels)), dtype=bool)
    for row, names in enumerate(references):
        unknown = [name for name in names if name not in columns]
        if unknown or not names:
            raise ValueError(
                f"references: clip {row} has {unknown[0] if unknown else None!r}, expected one or more of the "
                f"{len(labels)} labels, such as {labels[0]!r}."
            )
        targets[row, [columns[name] for name in names]] = True
    return targets


# -- Metrics ------------------------------------------------------------------------------------------------------


def top_labels(scores: np.ndarray) -> np.ndarray:
    """The best label of each clip, `[N]`; -1 if a whole row is minus infinity: nothing was predicted.

    Raises:
        ValueError: A score is NaN.
    """
    if np.isnan(scores).any():
        raise ValueError(f"scores: {int(np.isnan(scores).any(axis=1).sum())} clips have NaN, expected numbers.")
    return np.where(np.isneginf(scores).all(axis=1), -1, scores.argmax(axis=1))


def top_is_true(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Whether the best label of each clip is one of its true labels, `[N]`, bool."""
    top = top_labels(scores)
    return targets[np.arange(len(top)), top] & (top >= 0)


def accuracy(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The share of clips whose best label is true.

    Args:
        scores (`np.ndarray` of shape `[N, C]`): Higher is likelier; a row of minus infinity predicts nothing.
        targets (`np.ndarray` of shape `[N, C]`): Bool.
        weights (`np.ndarray` of shape `[R, N]`, *optional*): How often each clip counts; once by default.

    Returns:
        `np.ndarray` of shape `[R]`, as for all metrics.
    """
    weights = _weights(weights, len(scores))
    return weights @ top_is_true(scores, targets) / weights.sum(axis=1)


def micro_f1(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """F1 over all pairs of clip and label, where the best label of each clip is the prediction (as LTU for DCASE).

    It equals the accuracy if each clip has one label and one prediction. Arguments as in [`accuracy`].
    """
    weights = _weights(weights, len(scores))
    predicted = weights @ (top_labels(scores) >= 0)
    return 2 * (weights @ top_is_true(scores, targets)) / (predicted + weights @ targets.sum(axis=1))


def mean_average_precision(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Average precision of each label over the clips, as scikit-learn computes it, averaged over the labels.

    Labels of no clip (in a sample) are excluded from the mean; scikit-learn would count them as 0, with a warning.
    Equal scores are one threshold. Arguments as in [`accuracy`].
    """
    weights = _weights(weights, len(scores))
    total, count = np.zeros(len(weights)), np.zeros(len(weights))
    for column in np.flatnonzero(targets.any(axis=0)):
        values = average_precision(scores[:, column], targets[:, column], weights)
        present = ~np.isnan(values)
        total += np.where(present, values, 0)
        count += present
    return np.divide(total, count, out=np.full(len(weights), np.nan), where=count > 0)


def average_precision(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Average precision of one label, `[R]`: the mean, over the clips with the label, of the precision at their score.

    Args:
        scores (`np.ndarray` of shape `[N]`): Higher is likelier.
        targets (`np.ndarray` of shape `[N]`): Bool.
        weights (`np.ndarray` of shape `[R, N]`, *optional*): How often each clip counts; once by default.

    Returns:
        `np.ndarray` of shape `[R]`: NaN if no clip of the sample has the label.
    """
    weights = _weights(weights, len(scores))
    order = np.argsort(-scores, kind="stable")
    ranked = -scores[order]
    hits = np.flatnonzero(targets[order])  # precision is needed at these ranks only
    end = np.searchsorted(ranked, ranked[hits], side="right") - 1  # the last rank of the same score
    last_hit = np.searchsorted(hits, end, side="right") - 1
    # samples side by side in memory: twice as fast
    seen = np.cumsum(np.ascontiguousarray(weights.T)[order], axis=0)[end].T
    own = weights[:, order[hits]]
    found = np.cumsum(own, axis=1)
    precision = np.divide(found[:, last_hit], seen, out=np.zeros_like(seen), where=seen > 0)
    total = own.sum(axis=1)
    return np.divide((own * precision).sum(axis=1), total, out=np.full(len(own), np.nan), where=total > 0)


def _weights(weights: np.ndarray | None, count: int) -> np.ndarray:
    weights = np.ones((1, count)) if weights is None else weights
    return weights if weights.dtype.kind == "f" else weights.astype(np.float64)


METRICS = {"accuracy": accuracy, "micro_f1": micro_f1, "map": mean_average_precision}

# -- Intervals ----------------------------------------------------------------------------------------------------


def bootstrap_interval(
    statistic: Callable[[np.ndarray], np.ndarray], count: int, resamples: int = RESAMPLES, seed: int = 0
) -> list[float]:
    """The 95 % interval of a statistic over clips, from the percentiles of samples drawn with replacement.

    If all clips are correct, or all wrong, its width is 0: for few clips [`wilson_interval`] is more informative.

    Args:
        statistic (callable): Takes weights `[R, count]` and returns `[R]` values, as the metrics above do.
        count (`int`): Number of clips.
        resamples (`int`, *optional*, defaults to 1000): Number of samples.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.

    Returns:
        `list[float]`: Lower and upper bound. Samples whose value is NaN are excluded.
    """
    generator = np.random.default_rng(seed)
    values = []
    for begin in tqdm(range(0, resamples, CHUNK), desc="bootstrap", leave=False, disable=count < 1000):
        size = min(CHUNK, resamples - begin)
        drawn = generator.integers(count, size=(size, count))
        # float32 counts exactly up to 16 million clips
        weights = np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float32)
        values.append(statistic(weights))
    low, high = np.nanpercentile(np.concatenate(values), [2.5, 97.5])
    return [float(low), float(high)]


def bootstrap_mean(values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> list[float]:
    """[`bootstrap_interval`] of the mean of one value for each clip."""
    array = np.asarray(values, dtype=np.float64)
    return bootstrap_interval(lambda weights: weights @ array / len(array), len(array), resamples, seed)


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
