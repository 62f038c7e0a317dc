"""Which labels are likely wrong, and what they should be, from what a run recorded before it learned them by heart.

Four things speak about a label, each on a scale of log-odds:

- the *margin* (logit of the label less the largest other) in the mean over the epochs before memorisation starts, in
  units of what it is for labels that are surely wrong, and no lower than that: how far an output lies beyond it says
  only how large outputs are;
- the share of these epochs in which the prediction was another class (*wrong*);
- how often labels of this class are wrong in this way, against how often the run mistakes this class for that one:
  pair by pair of classes, each shrunk towards the mean of all pairs as far as they do not differ by more than chance;
  both counted by the probabilities that come out, and again with those, five times;
- where inputs or an embedding are at hand, what the *neighbours* were labelled and predicted to be.

Memorisation starts where the median margin of the surely contradicted labels has come half way back from its lowest.
The sum of the probabilities is the number of wrong labels, which is estimated apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fogline._examples.counting import SURE, count_errors
from fogline._examples.dynamics import Floats, Record

_MARGIN, _PAIRS, _OWN = 3.0, 0.7, 0.6  # weights; benchmarks/labels.py says on what they were chosen
_MOST_CLASSES = 2048  # above, pairs of classes have too few examples to tell anything
_SOFT = 0.05
_ROUNDS = 5
_MOST_VOTES = 32  # epochs that are compared with each other


@dataclass(frozen=True)
class Ranking:
    """What was found of each example, (N,) each.

    Attributes:
        margin: mean before memorisation starts; for regression the residual's.
        wrong: epochs before then in which the prediction was wrong.
        probability: of a wrong label; NaN where nothing can be said.
        likely: the right label if this one is wrong; -1 where there is no other candidate.
        score: what is ranked by, the largest first.
        rare: probability that it is right, but unlike most of its class.
        window: epochs before memorisation starts.
        count: of wrong labels, and the interval of that.
    """

    margin: Floats
    wrong: NDArray[np.int64]
    probability: Floats
    likely: NDArray[np.int64]
    score: Floats
    rare: Floats
    window: int
    count: float
    interval: tuple[float, float]


def rank_labels(
    record: Record, neighbours: Sequence[NDArray[np.int64]] = (), by_inputs: NDArray[np.int64] | None = None
) -> Ranking:
    """Rank the labels of a classification.

    Args:
        record: with targets.
        neighbours: positions of the nearest of each example, (N, k), in one space or several.
        by_inputs: those of them that are nearest by their inputs, if they are there.

    Raises:
        ValueError: the labels were not recorded.
    """
    if record.targets is None or record.targets.ndim != 1:
        raise ValueError("expected a run that recorded one label an example, received one without targets")
    targets = record.targets.astype(np.int64)
    counted = count_errors(record, targets, by_inputs)
    sure = counted.sureness
    contradicted = sure.wrong & (sure.rank < SURE)
    window = _window(record, contradicted, counted.epoch)
    margin, seen = _mean(record, "margin", window)
    early, other = _votes(_some_epochs(record, window), targets)
    missed = sum(
        ((predicted >= 0) & (predicted != targets) for predicted in record.over("predicted", window)),
        start=np.zeros(record.count, dtype=np.int64),
    )
    share = missed / np.maximum(seen, 1)
    unit = abs(float(np.median(margin[contradicted]))) if contradicted.any() else float(np.median(np.abs(margin)))
    dynamic = -_MARGIN * np.maximum(margin / max(unit, 1e-6), -1.0) + share
    company = _company(neighbours, targets, early)
    own = dynamic - company
    dynamic += _of_pairs(np.where(seen > 0, own, -np.inf), targets, other, share, counted.value)
    score = np.where(seen > 0, dynamic - company, -np.inf)
    probability = calibrated(score, counted.value)
    alone = calibrated(np.where(seen > 0, dynamic, -np.inf), counted.value) if neighbours else probability
    rare = np.maximum(0.0, alone - probability).astype(np.float32)
    return Ranking(
        margin, missed, probability, other, score.astype(np.float32), rare, window, counted.value, counted.interval
    )


def _window(record: Record, contradicted: NDArray[np.bool_], first: int) -> int:
    """Epochs until the margins of the contradicted labels have come half way back from their lowest."""
    lowest = 0.0
    for at in range(first if contradicted.any() else len(record.epochs), len(record.epochs)):
        middle = float(np.nanmedian(record.values("margin", at)[contradicted].astype(np.float32)))
        if at > first and middle > lowest / 2:
            return at
        lowest = min(lowest, middle)
    return len(record.epochs)


def _mean(record: Record, name: str, window: int) -> tuple[Floats, NDArray[np.int64]]:
    """The mean of a column over the first epochs, 0 where it was not seen; and in how many it was."""
    total, count = np.zeros(record.count, dtype=np.float32), np.zeros(record.count, dtype=np.int64)
    for values in record.over(name, window):
        known = values.astype(np.float32)
        seen = np.isfinite(known)
        total += np.where(seen, known, 0.0)
        count += seen
    return total / np.maximum(count, 1), count


def _some_epochs(record: Record, window: int) -> NDArray[Any]:
    """The predictions of the first epochs, (epochs, N); of very many some evenly spaced ones."""
    places = np.unique(np.linspace(0, window - 1, min(window, _MOST_VOTES)).round().astype(int))
    return np.stack([record.values("predicted", int(at)) for at in places])


def _votes(
    predicted: NDArray[Any],  # (epochs, N), -1 where not seen
    targets: NDArray[np.int64],  # (N,)
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The class most often predicted, and the one most often predicted that is not the label (-1 where none was)."""
    early = np.full(predicted.shape[1], -1, dtype=np.int64)
    other = early.copy()
    most, most_other = np.zeros(len(early), dtype=np.int64), np.zeros(len(early), dtype=np.int64)
    for candidate in predicted[::-1]:  # of equally many votes those of early epochs count
        votes = (predicted == candidate).sum(0)
        better = (candidate >= 0) & (votes >= most)
        early[better], most[better] = candidate[better], votes[better]
        better = (candidate >= 0) & (candidate != targets) & (votes >= most_other)
        other[better], most_other[better] = candidate[better], votes[better]
    return early, other


def _of_pairs(
    score: Floats, targets: NDArray[np.int64], other: NDArray[np.int64], missed: Floats, count: float
) -> Floats:
    """How much more often than on average labels go wrong in this way, less what the run itself mistakes; log-odds.

    Args:
        score: log-odds of a wrong label by all else, (N,).
        targets, other: the label, and the class that is most often predicted instead, (N,).
        missed: share of the epochs in which another class was predicted, (N,).
        count: of wrong labels.
    """
    classes = int(max(targets.max(initial=0), other.max(initial=0))) + 1
    found = np.zeros(len(targets))
    if classes > _MOST_CLASSES or classes < 2:
        return found
    off, known = ~np.eye(classes, dtype=bool).ravel(), other >= 0
    pair = targets[known] * classes + other[known]
    for _ in range(_ROUNDS):
        wrong = calibrated(score + found, count)[known]
        planted, mistaken = (
            shrunk(np.bincount(pair, weights, classes**2).astype(np.float64), off)
            for weights in (wrong, (1 - wrong) * missed[known])
        )
        found[known] = _PAIRS * np.log(planted / mistaken)[pair]
    return found


def shrunk(counts: NDArray[np.float64], which: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Counts relative to their mean, shrunk towards 1 as far as they scatter no more than chance (gamma-Poisson).

    >>> shrunk(np.array([4.0, 4.0, 4.0]), np.array([True, True, True])).round(3)
    array([1., 1., 1.])
    """
    mean, variance = counts[which].mean(), counts[which].var()
    if mean <= 0:
        return np.ones_like(counts)
    prior = mean**2 / max(variance - mean, 1e-3 * mean)  # the shape of the gamma distribution
    return np.asarray((counts + prior) / (mean + prior))


def _company(neighbours: Sequence[NDArray[np.int64]], targets: NDArray[np.int64], early: NDArray[np.int64]) -> Floats:
    """Log-odds of the label against the strongest other one among the neighbours, in the mean over spaces.

    By what they were predicted to be, and by their own labels: those of a rare kind were predicted to be something
    else, but are labelled alike.
    """
    total = np.zeros(len(targets))
    for near in neighbours:
        total += (_odds(early[near], targets) + _OWN * _odds(targets[near], targets)) / len(neighbours)
    return total


def _odds(labels: NDArray[np.int64], targets: NDArray[np.int64]) -> Floats:
    """Log of the share of the label over that of the most frequent other one; ``labels`` (N, k)."""
    own = (labels == targets[:, None]).mean(1)
    strongest = np.zeros(len(targets))
    for candidate in labels.T:
        votes = (labels == candidate[:, None]).mean(1)
        strongest = np.maximum(strongest, np.where(candidate != targets, votes, 0.0))
    return np.asarray(np.log((own + _SOFT) / (strongest + _SOFT)))


def calibrated(score: Floats, count: float) -> Floats:
    """Probabilities from log-odds, shifted so that their sum is ``count``.

    >>> calibrated(np.array([0.0, 0.0, -np.inf]), 1.0)
    array([0.5, 0.5, 0. ], dtype=float32)
    """
    finite = score[np.isfinite(score)]
    if not len(finite) or count <= 0:
        return np.zeros(len(score), dtype=np.float32)
    low, high = -float(finite.max()) - 60.0, -float(finite.min()) + 60.0
    for _ in range(50):
        shift = (low + high) / 2
        low, high = (shift, high) if _logistic(finite + shift).sum() < count else (low, shift)
    return _logistic(score + (low + high) / 2).astype(np.float32)


def _logistic(score: Floats) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * score)))
