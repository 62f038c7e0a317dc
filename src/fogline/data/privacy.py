"""A random state of one's own, so that reading data leaves the caller's random numbers as they were."""

from __future__ import annotations

import random as python_random
from typing import Any

import numpy as np
import torch

_MASK = (1 << 64) - 1


def derived_seed(*words: int) -> int:
    """A 63-bit seed from whole numbers, by the SplitMix64 finaliser (Steele, Lea and Flood, 2014) over each word.

    >>> derived_seed(0, 1) != derived_seed(1, 0)
    True
    """
    state = 0
    for word in words:
        state = (state + (word & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


class PrivateRandom:
    """Context in which Python's, NumPy's and PyTorch's (CPU) global random states are private.

    On leaving, the caller's states return; on entering the same object again, the private ones continue.

    >>> before = torch.get_rng_state()
    >>> with PrivateRandom() as random:
    ...     random.seed(1)
    ...     _ = torch.rand(3)
    >>> bool((before == torch.get_rng_state()).all())
    True
    """

    def __init__(self) -> None:
        self._mine: Any = None
        self._callers: Any = None

    def seed(self, value: int) -> None:
        """Start the three generators anew."""
        python_random.seed(value)
        np.random.seed(value & 0xFFFFFFFF)
        torch.default_generator.manual_seed(value)  # torch.manual_seed would seed the accelerator too

    def __enter__(self) -> PrivateRandom:
        self._callers = _states()
        if self._mine is not None:
            _restore(self._mine)
        return self

    def __exit__(self, *error: object) -> None:
        self._mine = _states()
        _restore(self._callers)


def _states() -> tuple[Any, Any, torch.Tensor]:
    return python_random.getstate(), np.random.get_state(), torch.get_rng_state()


def _restore(states: tuple[Any, Any, torch.Tensor]) -> None:
    python_random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
