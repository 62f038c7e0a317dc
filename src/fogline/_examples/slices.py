"""Parts of the data that do worse than the rest: by class, by the columns of a table, by where they lie."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fogline._examples.dynamics import Floats, Record
from fogline._examples.ranking import Ranking
from fogline.record.store import Table

_PARTS = 4
_MOST_VALUES = 50
_SMALLEST = 10
_ROUNDS = 25


def badness(record: Record, ranking: Ranking | None) -> Floats:
    """(N,) how badly each example did: wrong predictions before memorisation, else the mean residual or loss."""
    if ranking is not None:
        return ranking.wrong / max(ranking.window, 1)
    name = "residual" if record.has("residual") else "loss"
    total = np.zeros(record.count)
    for values in record.over(name):
        total += np.abs(values.astype(np.float64))
    return total / len(record.epochs)


def worse_slices(badness: Floats, columns: Mapping[str, NDArray[Any]], level: float) -> Table:
    """Slices whose mean is larger than that of the rest, by more than chance.

    Each value of a column with few of them is a slice, each quarter of one with many numbers. A slice is tested by
    Welch's t against the rest, one-sided, and the probabilities are corrected for how many were tested (Benjamini and
    Hochberg, 1995), so that among the slices that are returned the share found by chance is at most ``level``.

    Args:
        badness: (N,) larger is worse; NaN where unknown.
        columns: (N,) each.
        level: of the false discovery rate.

    Returns:
        ``column``, ``value``, ``count``, ``mean``, ``rest`` (mean of the rest), ``p`` corrected; the worst first.
    """
    known = np.isfinite(badness)
    rows = []
    for name, values in columns.items():
        for label, members in _slices(values):
            inside, outside = badness[members & known], badness[~members & known]
            if len(inside) >= _SMALLEST and len(outside) >= _SMALLEST:
                rows.append((name, label, len(inside), inside.mean(), outside.mean(), _chance(inside, outside)))
    corrected = benjamini_hochberg(np.array([row[5] for row in rows]))
    kept = sorted(
        (p, -(row[3] - row[4]), at) for at, (row, p) in enumerate(zip(rows, corrected, strict=True)) if p < level
    )
    chosen = [(*rows[at][:5], p) for p, _, at in kept]
    names = ("column", "value", "count", "mean", "rest", "p")
    types = (object, object, np.int64, np.float64, np.float64, np.float64)
    return Table(
        {
            name: np.array([row[k] for row in chosen], dtype=kind)
            for k, (name, kind) in enumerate(zip(names, types, strict=True))
        }
    )


def benjamini_hochberg(chances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities corrected for their number.

    >>> benjamini_hochberg(np.array([0.01, 0.5, 0.02])).round(3).tolist()
    [0.03, 0.5, 0.03]
    """
    order = np.argsort(-chances)
    scaled = chances[order] * len(chances) / (len(chances) - np.arange(len(chances)))
    found = np.empty(len(chances))
    found[order] = np.minimum.accumulate(np.minimum(scaled, 1.0))
    return found


def _slices(values: NDArray[Any]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    if values.dtype.kind == "f":
        known = np.isfinite(values)
        if len(np.unique(values[known][:10_000])) > _MOST_VALUES:
            edges = np.unique(np.quantile(values[known], np.linspace(0, 1, _PARTS + 1)))
            place = np.searchsorted(edges, values, side="right").clip(1, len(edges) - 1)
            for part in range(1, len(edges)):
                yield f"{edges[part - 1]:.4g} to {edges[part]:.4g}", known & (place == part)
            return
        values = np.where(known, values, np.nan)
    texts = values.astype(str)
    distinct = np.unique(texts)
    if len(distinct) <= _MOST_VALUES:
        for value in distinct:
            yield str(value), texts == value


def _chance(inside: Floats, outside: Floats) -> float:
    """Of a difference at least this large in means that are equal; by the normal distribution."""
    error = math.sqrt(inside.var(ddof=1) / len(inside) + outside.var(ddof=1) / len(outside))
    difference = float(inside.mean() - outside.mean())
    if error == 0:
        return 0.0 if difference > 0 else 1.0
    return 0.5 * math.erfc(difference / error / math.sqrt(2))


def clusters(rows: Tensor, count: int) -> NDArray[np.int64]:
    """(N,) the cluster of each row: k-means from rows far from each other.

    >>> clusters(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), 2).tolist()
    [0, 0, 1, 1]
    """
    centres = rows[:1]
    far = (rows - centres).square().sum(1)
    for _ in range(count - 1):
        centres = torch.cat([centres, rows[far.argmax()][None]])
        far = torch.minimum(far, (rows - centres[-1]).square().sum(1))
    label = torch.zeros(len(rows), dtype=torch.long)
    for _ in range(_ROUNDS):
        label = torch.cat([torch.cdist(part, centres).argmin(1) for part in torch.split(rows, 65536)])
        sizes = torch.bincount(label, minlength=count).clamp(min=1)[:, None]
        centres = torch.zeros_like(centres).index_add_(0, label, rows) / sizes
    return label.numpy()
