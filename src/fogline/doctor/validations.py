"""What ``fit`` makes of the held-out losses of a run: when it loses patience, and which weights it keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Validation = tuple[int, float, float]
"""Step, score and loss on held-out rows."""

LONGER = 10
"""Times the patience of the recipe: what is tried in its place, beside none."""


@dataclass(frozen=True)
class Stop:
    """Where patience was lost: after this step, with weights of this score."""

    step: int
    score: float


def stopped(validations: Sequence[Validation], patience: int | None) -> Stop | None:
    """Where a run with this patience ends early; None where it does not.

    >>> stopped([(0, 0.0, 0.7), (4, 0.2, 0.6), (8, 0.1, 0.65), (12, 0.9, 0.2)], patience=1)
    Stop(step=8, score=0.2)
    """
    lowest, score, waited = math.inf, -1.0, 0
    for step, value, loss in validations:
        better = math.isfinite(loss) and loss < lowest
        lowest, score, waited = (loss, value, 0) if better else (lowest, score, waited + 1)
        if patience is not None and waited >= patience:
            return Stop(step, score)
    return None


def kept(validations: Sequence[Validation], patience: int | None) -> float:
    """The score of the weights that a run with this patience keeps: those of the lowest loss until it ends.

    >>> kept([(0, 0.0, 0.7), (4, 0.2, 0.6), (8, 0.1, 0.65), (12, 0.9, 0.2)], patience=2)
    0.9
    """
    stop = stopped(validations, patience)
    finite = [(loss, score) for _, score, loss in validations if math.isfinite(loss)]
    return stop.score if stop is not None else min(finite)[1] if finite else -1.0
