"""Fewer points that draw the same picture."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def thin(x: Numbers, y: Numbers, buckets: int = 500) -> tuple[Numbers, Numbers]:
    """Keep the lowest and the highest point of each bucket of neighbours, so that no spike is lost.

    Args:
        x: positions, rising, of shape (n,).
        y: values of shape (n,); those that are not finite are left out.
        buckets: how many groups; at most ``2 * buckets + 2`` points are kept, the first and last among them.

    >>> x, y = thin(np.arange(1000.0), np.sin(np.arange(1000.0)), buckets=10)
    >>> len(x) <= 22, x[0], x[-1]
    (True, np.float64(0.0), np.float64(999.0))
    """
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(y) <= 2 * buckets + 2:
        return x, y
    edges = np.linspace(0, len(y), buckets + 1).astype(int)
    keep = {0, len(y) - 1}
    for start, stop in itertools.pairwise(edges):
        keep.add(start + int(y[start:stop].argmin()))
        keep.add(start + int(y[start:stop].argmax()))
    chosen = np.array(sorted(keep))
    return x[chosen], y[chosen]


def smooth(y: Numbers, share: float = 0.02) -> Numbers:
    """The mean of the neighbours on both sides, which does not lag behind as an exponential average does.

    Args:
        y: values of shape (n,); those that are not finite count for nothing.
        share: width of the window as a share of the length. At the steep start it narrows and stays centred; at the
            end it is cut off, so that the last point is still a mean.

    >>> smooth(np.array([0.0, 1.0, 2.0, 3.0, 4.0]), share=0.6).tolist()
    [0.0, 1.0, 2.0, 3.0, 3.5]
    """
    half = int(len(y) * share / 2)
    finite = np.isfinite(y)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(y))
    reach = np.minimum(half, index)
    low, high = index - reach, np.minimum(index + reach + 1, len(y))
    number = counts[high] - counts[low]
    means: Numbers = np.divide(sums[high] - sums[low], number, out=np.full(len(y), np.nan), where=number > 0)
    return means
