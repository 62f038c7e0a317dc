"""How many labels are wrong, from the predictions of the first epochs.

A run predicts most classes well before it has learned any label by heart. Order the examples that it predicts to be of
one class by how sure it is of that, the surest first. Labels that are wrong contradict it wherever in that order they
lie: a slip of the pen does not ask how clear the example is. What the run itself mistakes, it is mostly unsure of. So
at the rank r, a share from 0 to 1, the density of contradictions is taken as

    n (1 + s (2 r - 1)) + c d(r)^g,    n >= 0, c >= 0, g one of 1, 1.5, 2, 3,

where d(r) = 1 - p(r) / p(0) is how much less probable the run finds its prediction there than at the top, and ``n``,
fitted by maximum likelihood and averaged over g, is the number of wrong labels. The slope s is what each visit to a
wrong label does to it: the run becomes less sure of what it predicts instead. It is read off from how far contradicted
examples fall back from one epoch to the next, beyond what is usual. Nothing here has a unit: neither the scale of the
outputs nor the number of classes matters. Predictions that were the same in two epochs on end are counted, which takes
out most of what the run is undecided about.

Where classes overlap the run is sure and contradicted, too. But there an example lies among others that bear its label,
and a label that is wrong by a slip lies among as many of its kind as there are anywhere. So where the ten nearest by
their inputs are known, the share of the surely contradicted that overlap explains is read off from how many more of
these bear the same label than of all that are predicted to be of that class: 2 in 10 more of what lies in an overlap,
none of wrong labels. The number is less by that share.

The epoch is the first that finds the run settled: the share of labels it agrees with grew by less than a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fogline._examples.dynamics import Floats, Record

BINS = 40
SURE = 0.5  # the surer half of a class
_POWERS = (1.0, 1.5, 2.0, 3.0)
_ROUNDS = 300
_FIRST = 2  # the first epoch that may count, with the one before it: the very first predictions are guesses
_SETTLED = 0.1
_FEW = 20
_PER_VISIT = 6.0  # with the density 1 + s (2 r - 1) the mean rank is 1/2 + s / 6
_MENDED = 0.1  # by so much the run's own mistakes fall back in an epoch: it mends them
_STEEPEST = 0.6
_AMONG = 0.2  # by so much more of the nearest bear the label of what lies in an overlap
_SHORTEST = 6e-8  # the smallest number above zero that float16 holds
CENTRES = (np.arange(BINS) + 0.5) / BINS


@dataclass(frozen=True)
class Sureness:
    """What the run thought of each example in an epoch and the one before it.

    Attributes:
        rank: (N,) share of those predicted to be of the same class of which it was surer; NaN where it changed its
            prediction, or did not see the example.
        predicted: (N,) the class, -1 where the rank is NaN.
        wrong: (N,) whether the label is another.
        doubt: (BINS,) how much less probable its predictions are to it at this rank than at the top: from 0 to 1.
        pull: how much further contradicted examples fell back in the order than others did, in its surer half.
    """

    rank: Floats
    predicted: NDArray[np.int64]
    wrong: NDArray[np.bool_]
    doubt: NDArray[np.float64]
    pull: float


@dataclass(frozen=True)
class Count:
    """How many labels are wrong.

    Attributes:
        value: the number.
        deviation: standard deviation of that.
        interval: it is within, nineteen times in twenty.
        epoch: the place of the epoch it was taken from.
        sureness: what the run thought there.
    """

    value: float
    deviation: float
    interval: tuple[float, float]
    epoch: int
    sureness: Sureness


def count_errors(record: Record, targets: NDArray[np.int64], near: NDArray[np.int64] | None = None) -> Count:
    """The number of wrong labels of a classification.

    Args:
        targets: (N,) labels.
        near: positions of the nearest of each example by their inputs, (N, k), where they are known. What the model
            makes of its inputs would not do: it has learned wrong labels by heart, and puts what bears one together.
    """
    at = settled(record)
    sure = sureness(record, targets, at)
    value, deviation = density(sure)
    if near is not None:
        share, off = overlap(sure, targets, near)
        value, deviation = value * (1 - share), float(np.hypot(deviation * (1 - share), value * off))
    interval = (max(0.0, value - 1.96 * deviation), min(value + 1.96 * deviation, float(record.count)))
    return Count(value, deviation, interval, at, sure)


def settled(record: Record) -> int:
    """The place of the first epoch that found the run settled; half way through where none did."""
    before = np.nan
    for at, right in enumerate(record.over("correct")):
        share = float(np.nanmean(right.astype(np.float32)))
        if at >= _FIRST and share - before < _SETTLED * share:
            return at
        before = share
    return min(max(_FIRST, len(record.epochs) // 2), len(record.epochs) - 1)


def sureness(record: Record, targets: NDArray[np.int64], at: int) -> Sureness:
    """Of the epoch at this place and, unless it is the first, the one before it."""
    places = [at] if at == 0 else [at - 1, at]
    predicted = [record.values("predicted", place).astype(np.int64) for place in places]
    stable = (predicted[0] == predicted[-1]) & (predicted[0] >= 0)
    known = np.flatnonzero(stable)
    scores = [_log_largest(record, place)[known] for place in places]
    label, contradicted = predicted[-1][known], predicted[-1][known] != targets[known]
    rank = np.full(record.count, np.nan)
    rank[known] = rank_within(label, sum(scores[1:], scores[0]))
    mean = np.exp(sum(scores[1:], scores[0]) / len(scores))
    pull = 0.0 if len(scores) < 2 else _pull(label, contradicted, scores)
    return Sureness(
        rank,
        np.where(stable, predicted[-1], -1),
        stable & (predicted[-1] != targets),
        _doubt(rank[known], mean),
        pull,
    )


def overlap(sure: Sureness, targets: NDArray[np.int64], near: NDArray[np.int64]) -> tuple[float, float]:
    """The share of what the run surely contradicts that lies in an overlap of classes, and its standard deviation.

    Args:
        targets: (N,) labels.
        near: positions of the nearest of each example, (N, k).
    """
    known, surely = sure.predicted >= 0, np.flatnonzero(sure.wrong & (sure.rank < SURE))
    if len(surely) < _FEW:
        return 0.0, 0.0
    classes = int(max(targets.max(), sure.predicted.max())) + 1
    pair = sure.predicted * classes + targets
    alike, pair = np.unique(pair[known], return_counts=True), pair[surely]
    predicted = np.bincount(sure.predicted[known], minlength=classes)[sure.predicted[surely]]
    usual = alike[1][np.searchsorted(alike[0], pair)] / predicted
    more = ((targets[near[surely]] == targets[surely, None]).mean(1) - usual) / _AMONG
    return float(np.clip(more.mean(), 0.0, 1.0)), float(more.std() / np.sqrt(len(more)))


def _doubt(rank: Floats, probability: Floats) -> NDArray[np.float64]:
    place = np.minimum((rank * BINS).astype(np.int64), BINS - 1)
    means = np.bincount(place, probability, BINS) / np.maximum(np.bincount(place, minlength=BINS), 1)
    falling = np.minimum.accumulate(np.where(means > 0, means, np.inf))
    return 1 - falling / falling[0] if np.isfinite(falling[0]) else CENTRES.copy()


def _pull(label: NDArray[np.int64], contradicted: NDArray[np.bool_], scores: list[Floats]) -> float:
    before, after = (rank_within(label, score) for score in scores)
    surer = before + after < 1
    if (contradicted & surer).sum() < _FEW or not (~contradicted & surer).any():
        return 0.0
    back = after - before
    return float(back[contradicted & surer].mean() - back[~contradicted & surer].mean())


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


def density(sure: Sureness) -> tuple[float, float]:
    """The number of wrong labels and its standard deviation, scaled to all examples.

    Raises:
        ValueError: no example has a rank.
    """
    ranked = int(np.isfinite(sure.rank).sum())
    if not ranked:
        raise ValueError("expected examples that were seen, received none")
    counts = np.histogram(sure.rank[sure.wrong], bins=BINS, range=(0.0, 1.0))[0].astype(np.float64)
    if not counts.any():
        return 0.0, 1.0
    scale = len(sure.rank) / ranked
    shapes = np.stack([(sure.doubt / max(sure.doubt.max(), 1e-9)) ** power + 1e-6 for power in _POWERS])
    number, deviation = _fit(counts, shapes, 0.0)
    pure = min(1.0, number / 2 / max(counts[: BINS // 2].sum(), 1.0))  # of the contradictions in the surer half
    slope = _PER_VISIT * (sure.pull - (1 - pure) * _MENDED)
    if slope > 0:
        number, deviation = _fit(counts, shapes, min(slope, _STEEPEST))
    return number * scale, deviation * scale


def _fit(counts: NDArray[np.float64], shapes: NDArray[np.float64], slope: float) -> tuple[float, float]:
    """n and its deviation: mixtures of two known shapes, (shapes, BINS), by expectation maximisation."""
    flat = 1 + slope * (2 * CENTRES - 1)
    total = shapes.sum(1)
    number = np.full(len(shapes), max(counts[: BINS // 2].sum() * 2, 1.0))
    mistakes = np.full(len(shapes), max(counts[-BINS // 4 :].sum() * 4, 1.0))
    for _ in range(_ROUNDS):
        share = counts * BINS / (number[:, None] * flat + mistakes[:, None] * shapes)
        number, mistakes = number * (share * flat).mean(1), mistakes * (share * shapes).sum(1) / total
    mean = np.maximum((number[:, None] * flat + mistakes[:, None] * shapes) / BINS, 1e-12)
    likelihood = (counts * np.log(mean) - mean).sum(1)
    weights = np.exp(likelihood - likelihood.max())
    weights /= weights.sum()
    estimate = float(weights @ number)
    of_flat, of_both, of_shape = (
        (product / BINS**2 / mean).sum(1) for product in (flat * flat, flat * shapes, shapes * shapes)
    )
    variance = of_shape / np.maximum(of_flat * of_shape - of_both**2, 1e-300)
    return estimate, float(np.sqrt(weights @ (variance + (number - estimate) ** 2)))
