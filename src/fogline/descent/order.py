"""The data order as a pure function: ``index = permute(seed, epoch, position)``, with O(1) memory and seek.

A keyed permutation of 0 .. n-1 is made from a generalised Feistel network on a x b pairs, a b just above n (Black and
Rogaway, 2002): a value is (left, right), and each round adds a keyed hash of one to the other, modulo its side. Values
that land at n or above go through again until they do not.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fogline.data.privacy import derived_seed

_ROUNDS = 6  # even: left and right end where they began


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
    >>> int(permute(7, 3, 2, 100)) == int(permute(7, 3, np.arange(100), 100)[2])
    True
    """
    values = np.asarray(position)
    if values.size and (values.min() < 0 or values.max() >= examples):
        raise ValueError(f"expected positions from 0 to {examples - 1}, received {values.min()} to {values.max()}")
    return _permuted(seed, epoch, values.astype(_word(examples)).ravel(), examples).reshape(values.shape)


def permuted_range(seed: int, epoch: int, start: int, stop: int, examples: int) -> NDArray[np.int64]:
    """Which examples stand at the positions ``start`` to ``stop``: ``permute`` of that range, without its checks."""
    return _permuted(seed, epoch, np.arange(start, stop, dtype=_word(examples)), examples)


def _word(examples: int) -> type[np.uint32] | type[np.uint64]:
    """Words in which a side of the network still fits the lower half; narrow ones are several times faster."""
    return np.uint32 if examples < 1 << 30 else np.uint64


def _permuted(seed: int, epoch: int, values: NDArray[Any], examples: int) -> NDArray[np.int64]:
    side = math.isqrt(examples - 1) + 1
    other = -(-examples // side)
    keys = [derived_seed(seed, epoch, turn) for turn in range(_ROUNDS)]
    walking = _feistel(values, side, other, keys)
    outside = np.flatnonzero(walking >= examples)
    while outside.size:
        walking[outside] = _feistel(walking[outside], side, other, keys)
        outside = outside[walking[outside] >= examples]
    return walking.astype(np.int64)


def _feistel(values: NDArray[Any], side: int, other: int, keys: list[int]) -> NDArray[Any]:
    """Rounds ``(l, r) -> (r, (l + f(r)) mod side of l)``; f is a multiplicative hash
    whose top half is scaled to the side.

    All in place: a block of positions stays in the cache. Numbers are arrays without dimensions, since NumPy takes as
    long to make an array of a number as to add it to thousands of others.
    """
    bits = values.dtype.itemsize * 8

    def word(number: int) -> NDArray[Any]:
        return np.array(number & (1 << bits) - 1, dtype=values.dtype)

    first, second, half = word(0x9E3779B97F4A7C15), word(0xC4CEB9FE1A85EC53), word(bits // 2)
    left = values // word(side)
    right = values - left * word(side)
    sides = word(other), word(side)
    hashed, shifted = np.empty_like(values), np.empty_like(values)
    for turn, key in enumerate(keys):
        size = sides[turn % 2]  # of what `left` holds in this round
        np.add(right, word(key), out=hashed)
        np.multiply(hashed, first, out=hashed)
        np.right_shift(hashed, half, out=shifted)
        np.bitwise_xor(hashed, shifted, out=hashed)
        np.multiply(hashed, second, out=hashed)
        np.right_shift(hashed, half, out=hashed)
        np.multiply(hashed, size, out=hashed)
        np.right_shift(hashed, half, out=hashed)
        np.add(left, hashed, out=left)
        np.subtract(left, size, out=shifted)
        np.minimum(left, shifted, out=left)  # what was below zero has become very large
        left, right = right, left
    np.multiply(left, word(side), out=left)
    result: NDArray[Any] = np.add(left, right, out=left)
    return result
