"""The sweep: training while the learning rate grows, until the loss says that it is too large."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fogline.data.source import Batch
from fogline.descent.population import Population


@dataclass(frozen=True)
class Sweep:
    """One pass over growing learning rates.

    Attributes:
        rates: of every step taken.
        losses: after each of them, on the batch that all are compared on; NaN where it was not finite.
        first: the loss on that batch before any.
        lowest: the rate behind the lowest loss.
        blew_up: the range did not have to be walked to its end.
    """

    rates: list[float]
    losses: list[float]
    first: float
    lowest: float
    blew_up: bool


def sweep(
    member: Population,
    batches: Iterator[Batch],
    common: Batch,
    low: float,
    high: float,
    steps: int,
    check: Callable[[], None] = lambda: None,
) -> Sweep:
    """Take at most ``steps`` steps at rates growing from ``low`` to ``high`` by a constant factor.

    Every loss is that of one common batch, so that what differs is the weights and not the examples: the noise from
    batch to batch, which makes a sweep over training losses stop too early or too late, cancels. It stops where the
    loss is not finite, or is above the first by more than it ever came below it, and by more than rounding.

    Args:
        member: a population of one.
        batches: to train on.
        common: to compare on; not one of the first ``steps`` training batches.
    """
    first = member.losses(common)[0]
    rates: list[float] = []
    losses: list[float] = []
    for k in range(steps):
        check()
        rates.append(low * (high / low) ** (k / max(1, steps - 1)))
        trained = member.step(k, next(batches), rates[-1:])[0]
        losses.append(member.losses(common)[0] if math.isfinite(trained) else math.nan)
        gained = max(0.0, first - min((loss for loss in losses if math.isfinite(loss)), default=first))
        if not losses[-1] - first <= max(gained, 1e-3 * abs(first)):
            break
    finite = [k for k, loss in enumerate(losses) if math.isfinite(loss)]
    lowest = rates[min(finite, key=losses.__getitem__)] if finite else low
    return Sweep(rates, losses, first, lowest, len(rates) < steps or not math.isfinite(losses[-1]))
