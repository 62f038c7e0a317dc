"""The data order as a pure function: ``index = permute(seed, epoch, position)``, with O(1) memory and seek.

A keyed permutation of 0 .. n-1 is made from a Feistel network (Luby and Rackoff, 1988) on the next even number of bits,
walking the cycle until the value falls below n (Black and Rogaway, 2002). On average less than four walks are needed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fogline.data.privacy import derived_seed

Positions = NDArray[np.uint64]
_ROUNDS = 6


def permute(
    seed: int,
    epoch: int,
    position: int | NDArray[np.integer],  # one or many, each in 0 .. examples-1
    examples: int,
) -> NDArray[np.int64]:
    """Which example stands at a position of an epoch.

    Args:
        seed, epoch: the key; another epoch is another order.
        position: count of examples of the global batch since the epoch began; a scalar or an array.
        examples: size of the data.

    Returns:
        Example indices with the shape of ``position``.

    Raises:
        ValueError: a position outside the epoch.

    >>> sorted(permute(0, 0, np.arange(5), 5).tolist())
    [0, 1, 2, 3, 4]
    >>> int(permute(7, 3, 2, 100)) == permute(7, 3, np.arange(100), 100)[2]
    True
    """
    values = np.asarray(position)
    if values.size and (values.min() < 0 or values.max() >= examples):
        raise ValueError(f"expected positions from 0 to {examples - 1}, received {values.min()} to {values.max()}")
    half = max(1, (max(examples - 1, 1).bit_length() + 1) // 2)
    keys = [derived_seed(seed, epoch, turn) & 0xFFFFFFFF for turn in range(_ROUNDS)]
    walking = _feistel(values.astype(np.uint64).ravel(), half, keys)
    outside = np.flatnonzero(walking >= examples)
    while outside.size:
        walking[outside] = _feistel(walking[outside], half, keys)
        outside = outside[walking[outside] >= examples]
    return walking.astype(np.int64).reshape(values.shape)


def _feistel(values: Positions, half: int, keys: list[int]) -> Positions:
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + np.uint64(key)) & mask)
    return (left << shift) | right


def _mixed(values: Positions) -> Positions:
    """The 64-bit finaliser of MurmurHash3 (Appleby): every bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))
