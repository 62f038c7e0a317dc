"""How many labels are wrong, from the predictions of the first epochs.

A run predicts most classes well before it has learned any label by heart. Order the examples that it predicts to be of
one class by how sure it is of that, the surest first. Labels that are wrong contradict it wherever in that order they
lie: a slip of the pen does not ask how clear the example is. What the run itself mistakes, it is mostly unsure of, so
those contradictions fall off steeply towards its surest predictions. At the rank r, a share from 0 to 1, of that
order, the density of contradictions is therefore taken as

    n + c exp(b (r - 1)),    n >= 0, c >= 0, b >= 2,

and ``n``, fitted by maximum likelihood, is the number of wrong labels. Nothing in it has a unit: neither the scale of
the outputs nor the number of classes matters. Predictions that were the same in two epochs on end are counted, which
takes out most of what the run is undecided about.

The estimate is taken from the epochs after the run has settled (the share of labels it agrees with grew by less than a
tenth in an epoch), as long as it does not fall: when it does, the run has begun to learn the wrong labels too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fogline._examples.dynamics import Floats, Record

_BINS = 40
_STEEPNESS = np.linspace(2.0, 20.0, 37)
_ROUNDS = 200
_FIRST = 2  # at the earliest, with the one before it: the first predictions are guesses
_SETTLED = 0.1
_EPOCHS = 10  # that are looked at, at most
_SHORTEST = 6e-8  # the smallest number above zero that float16 holds


@dataclass(frozen=True)
class Sureness:
    """What the run thought of each example in an epoch and the one before it.

    Attributes:
        rank: (N,) share of those predicted to be of the same class of which it was surer; NaN where it changed its
            prediction, or did not see the example.
        predicted: (N,) the class, -1 where the rank is NaN.
        wrong: (N,) whether the label is another.
    """

    rank: Floats
    predicted: NDArray[np.int64]
    wrong: NDArray[np.bool_]


@dataclass(frozen=True)
class Density:
    """The density of contradictions over the rank.

    Attributes:
        count: of wrong labels.
        deviation: standard deviation of that.
        steepness: b of the formula above.
    """

    count: float
    deviation: float
    steepness: float


@dataclass(frozen=True)
class Count:
    """How many labels are wrong.

    Attributes:
        value: the number.
        interval: it is within, nineteen times in twenty.
        epochs: the places of the epochs it was taken from.
        sureness: of the first of them.
    """

    value: float
    interval: tuple[float, float]
    epochs: tuple[int, ...]
    sureness: Sureness


def count_errors(record: Record, targets: NDArray[np.int64]) -> Count:
    """The number of wrong labels of a classification.

    Args:
        targets: (N,) labels.
    """
    total, first = len(record.epochs), settled(record)
    used: list[Density] = []
    start: Sureness | None = None
    for at in range(first, min(first + _EPOCHS, total)):
        sure = sureness(record, targets, at)
        found = density(sure)
        if used and found.count < _mean(used) - max(used[0].deviation, found.deviation) / 2:
            break
        start = start or sure
        used.append(found)
    assert start is not None
    value = _mean(used)
    deviation = min(each.deviation for each in used)
    interval = (max(0.0, value - 1.96 * deviation), min(value + 1.96 * deviation, float(record.count)))
    return Count(value, interval, tuple(range(first, first + len(used))), start)


def settled(record: Record) -> int:
    """The place of the first epoch that found the run settled; half way through where none did."""
    before = np.nan
    for at, right in enumerate(record.over("correct")):
        share = float(np.nanmean(right.astype(np.float32)))
        if at >= _FIRST and share - before < _SETTLED * share:
            return at
        before = share
    return min(max(_FIRST, len(record.epochs) // 2), len(record.epochs) - 1)


def _mean(found: list[Density]) -> float:
    """Weighted by precision."""
    weights = [1 / max(each.deviation, 1.0) ** 2 for each in found]
    return sum(w * each.count for w, each in zip(weights, found, strict=True)) / sum(weights)


def sureness(record: Record, targets: NDArray[np.int64], at: int) -> Sureness:
    """Of the epoch at this place and, unless it is the first, the one before it."""
    places = [at] if at == 0 else [at - 1, at]
    predicted = [record.values("predicted", place).astype(np.int64) for place in places]
    stable = (predicted[0] == predicted[-1]) & (predicted[0] >= 0)
    score = sum(_log_largest(record, place) for place in places)
    label = np.where(stable, predicted[-1], -1)
    rank = np.full(record.count, np.nan)
    known = np.flatnonzero(stable)
    rank[known] = rank_within(label[known], np.asarray(score)[known])
    return Sureness(rank, label, stable & (label != targets))


def _log_largest(record: Record, at: int) -> Floats:
    """Logarithm of the largest probability: that of the target, less the margin where that is negative."""
    confidence = record.values("confidence", at).astype(np.float32)
    margin = record.values("margin", at).astype(np.float32)
    logarithm = np.log(np.maximum(confidence, _SHORTEST))
    loss = record.values("loss", at).astype(np.float32)
    # Close to 1, float16 steps by 0.0005, where the loss of cross-entropy is exact; if it is that which was minimised.
    clear = np.isfinite(loss) & (confidence > 0.01)
    if clear.any() and np.median(np.abs(np.exp(-loss[clear]) - confidence[clear])) < 1e-3:
        logarithm = np.where(np.isfinite(loss), -np.maximum(loss, 0.0), logarithm)
    return np.asarray(np.minimum(logarithm - np.minimum(margin, 0.0), 0.0))


def rank_within(group: NDArray[np.int64], score: Floats) -> Floats:
    """The share of its group that has a larger score, for each; where equal, in the order of a fixed shuffle.

    >>> rank_within(np.array([0, 1, 0]), np.array([0.1, 0.5, 0.9]))
    array([0.75, 0.5 , 0.25])
    """
    shuffled = np.random.default_rng(0).permutation(len(group))
    order = shuffled[np.lexsort((-score[shuffled], group[shuffled]))]
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(group))
    ordered = group[order]
    rank[order] = (np.arange(len(group)) - starts[ordered] + 0.5) / sizes[ordered]
    return rank


def density(sure: Sureness) -> Density:
    """Fit the density of contradictions, scaled to all that were seen.

    Raises:
        ValueError: no example has a rank.
    """
    ranked = np.isfinite(sure.rank)
    if not ranked.any():
        raise ValueError("expected examples that were seen, received none")
    counts = np.histogram(sure.rank[sure.wrong], bins=_BINS, range=(0.0, 1.0))[0].astype(np.float64)
    fits = np.array([_fit(counts, steepness) for steepness in _STEEPNESS])  # (steepness, 3)
    likelihood, number, deviation = fits.T
    weights = np.exp(likelihood - likelihood.max())
    weights /= weights.sum()
    mean = float(weights @ number)
    spread = float(np.sqrt(weights @ (deviation**2 + (number - mean) ** 2)))
    scale = len(sure.rank) / int(ranked.sum())
    return Density(mean * scale, spread * scale, float(_STEEPNESS[likelihood.argmax()]))


def _fit(counts: NDArray[np.float64], steepness: float) -> tuple[float, float, float]:
    """Log-likelihood, n and its deviation for one b: a mixture of two known shapes, by expectation maximisation."""
    centres = (np.arange(_BINS) + 0.5) / _BINS
    shape = np.exp(steepness * (centres - 1))
    flat, steep = max(counts[: _BINS // 2].sum() * 2, 1.0), max(counts[-_BINS // 4 :].sum() * 4, 1.0)
    for _ in range(_ROUNDS):
        share = counts * _BINS / np.maximum(flat + steep * shape, 1e-12)
        before, flat, steep = flat, flat * share.mean(), steep * float(share @ shape / shape.sum())
        if abs(flat - before) < 1e-3 * (before + 1):
            break
    mean = (flat + steep * shape) / _BINS
    likelihood = float((counts * np.log(np.maximum(mean, 1e-300)) - mean).sum())
    columns = np.stack([np.ones(_BINS), shape]) / _BINS
    information = (columns / np.maximum(mean, 1e-9)) @ columns.T
    return likelihood, flat, float(np.sqrt(np.linalg.pinv(information)[0, 0]))
