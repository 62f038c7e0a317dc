"""Examples that are nearly the same, within the training data and across the split, and the groups that they form.

Two examples are compared by their distance in units of what is usual around them: the geometric mean, over both, of the
distance to their 32nd neighbour. So a crowd of dark pictures, all near each other, is no crowd of duplicates.

How near is near follows from the data. Where the number of neighbours within a distance r grows as r^D, by chance an
example has 32 x^D of them within x times the usual distance. D is read off from how much further the 32nd neighbour is
than the 16th, and x is chosen so that of a thousand examples one has such a neighbour by chance.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fogline._examples.dynamics import Floats
from fogline._examples.neighbours import nearest
from fogline.record.store import Table

_USUAL = 32
RARELY = 1e-3
OFTEN = 0.5


def near_by_chance(rows: Tensor, chance: float = RARELY) -> float:
    """The distance, in units of what is usual, within which an example has so many neighbours by chance."""
    far = nearest(rows, k=_USUAL)[1].astype(np.float64)
    last = far.shape[1]
    if last < 2:
        return 0.0
    ratio = np.maximum(far[:, -1], 1e-12) / np.maximum(far[:, last // 2 - 1], 1e-12)
    dimension = np.log(last / (last // 2)) / max(float(np.log(np.median(ratio))), 1e-3)
    return float((chance / last) ** (1 / dimension))


def pairs(rows: Tensor, labels: NDArray[np.int64] | None, within: float) -> Table:
    """Pairs of rows that are nearer to each other than usual, the nearest first.

    Args:
        rows: (N, d).
        labels: only pairs of one label are looked for; None looks at all.
        within: the largest distance, in units of what is usual.

    Returns:
        ``first`` < ``second``, positions of rows; ``distance`` in units of what is usual around them.
    """
    groups = [np.arange(len(rows))] if labels is None else [np.flatnonzero(labels == k) for k in np.unique(labels)]
    usual = _usual(rows)
    parts = [_of(rows, members, usual, within) for members in groups if len(members) > 1]
    first, second, far = (np.concatenate(column) for column in zip(*parts, strict=True)) if parts else _NONE
    order = np.lexsort((second, first, far))
    return Table({"first": first[order], "second": second[order], "distance": far[order]})


_NONE = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))


def _usual(rows: Tensor) -> Floats:
    """(N,) the distance to the 32nd neighbour; where there are fewer, to the last."""
    far = nearest(rows, k=_USUAL)[1][:, -1]
    return np.maximum(far, 1e-12)


def _of(
    rows: Tensor, members: NDArray[np.int64], usual: Floats, within: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    near, far = nearest(rows[torch.from_numpy(members)], k=_USUAL)
    one, other = np.repeat(members, near.shape[1]), members[near.ravel()]
    relative = far.ravel() / np.sqrt(usual[one] * usual[other])
    first, second = np.minimum(one, other), np.maximum(one, other)
    close = relative < within
    _, kept = np.unique(np.stack([first[close], second[close]]), axis=1, return_index=True)
    return first[close][kept], second[close][kept], relative[close][kept].astype(np.float32)


def groups(count: int, found: Table) -> NDArray[np.int64]:
    """(count,) the number of the group of each row: rows that pairs link, directly or over others, are one group.

    >>> groups(4, Table({"first": np.array([0, 2]), "second": np.array([1, 1]), "distance": np.zeros(2)})).tolist()
    [0, 0, 0, 1]
    """
    parent = np.arange(count)
    first, second = found["first"], found["second"]
    while True:  # each takes the smallest number among those it is linked to, and that one's, until nothing changes
        before = parent.copy()
        least = np.minimum(parent[first], parent[second])
        np.minimum.at(parent, first, least)
        np.minimum.at(parent, second, least)
        np.minimum.at(parent, before[first], least)
        np.minimum.at(parent, before[second], least)
        parent = parent[parent]
        if np.array_equal(before, parent):
            return np.unique(parent, return_inverse=True)[1]
