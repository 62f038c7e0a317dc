"""Signals as series of numbers: the finite ones, and where they begin and end."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def finite(values: NDArray[Any]) -> NDArray[np.float64]:
    """The values that are."""
    numbers = values.astype(np.float64)
    return numbers[np.isfinite(numbers)]


def ends(values: NDArray[np.float64]) -> tuple[float, float]:
    """Means of the first and of the last tenth, as single losses are noisy; zeros where there is nothing.

    >>> ends(np.arange(20.0))
    (0.5, 18.5)
    """
    tenth = max(1, len(values) // 10)
    first, last = (float(part.mean()) if len(part) else 0.0 for part in (values[:tenth], values[-tenth:]))
    return first, last
