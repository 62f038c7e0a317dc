"""The sweep: training while the learning rate grows, until the loss says that it is too large."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from fogline.data.source import Batch
from fogline.descent.step import EagerStep, Machine

_SMOOTHING = 5  # steps on either side: symmetric, so that the curve is not shifted
_BLOWN = 3.0  # standard deviations of the noise, and a rise of a tenth


@dataclass(frozen=True)
class Sweep:
    """One pass over growing learning rates.

    Attributes:
        rates, losses: of every step taken.
        smoothed: losses averaged over a symmetric window.
        lowest: the rate at the lowest smoothed loss.
        blew_up: the loss rose beyond the noise before the range ended.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    lowest: float
    blew_up: bool


def sweep(
    machine: Machine,
    step: EagerStep,
    batches: Iterator[Batch],
    low: float,
    high: float,
    steps: int,
    check: Callable[[], None],
) -> Sweep:
    """Take ``steps`` steps at rates growing from low to high by a constant factor; stops when the loss has blown up."""
    rates, losses = [], []
    first: list[float] = []
    for k in range(steps):
        check()
        rate = low * (high / low) ** (k / max(1, steps - 1))
        outcome = step.take(k, next(batches), rate)
        loss = float(outcome.loss)
        if not math.isfinite(loss) or outcome.finite is False:
            break
        rates.append(rate)
        losses.append(loss)
        first = losses[: max(5, steps // 10)]
        if len(losses) > len(first) and _blown(first, losses):
            break
    smoothed = _smooth(losses)
    lowest = rates[min(range(len(smoothed)), key=smoothed.__getitem__)] if rates else low
    return Sweep(rates, losses, smoothed, lowest, len(rates) < steps)


def _blown(first: list[float], losses: list[float]) -> bool:
    """The last three losses lie above the start by more than its noise and a tenth of its distance to the lowest."""
    start = sorted(first)[len(first) // 2]
    noise = sum(abs(a - b) for a, b in pairwise(first)) / max(1, len(first) - 1)
    margin = _BLOWN * noise + 0.1 * abs(start - min(losses))
    return all(loss > start + margin for loss in losses[-3:])


def _smooth(losses: list[float]) -> list[float]:
    return [
        sum(window) / len(window)
        for k in range(len(losses))
        for window in [losses[max(0, k - _SMOOTHING) : k + _SMOOTHING + 1]]
    ]
