"""What a descent of a program or of a variant came to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fogline.descent.prepare import Start
from fogline.doctor.validations import LONGER, Stop, Validation, stopped
from fogline.record.probes import Probed


@dataclass
class Descended:
    """One descent.

    Attributes:
        score: on rows that were not learned from, by the yardstick. Of a trial that of the weights ``fit`` would keep:
            those of the lowest held-out loss, the last ones where the task has no held-out rows. Of an observation that
            of the last weights; ``best`` is the best on the way.
        losses, norms: of every step; NaN where it was refused.
        refused: how many steps were.
        error: the exception that ended it, or "".
        risen: of a trial, whether no weights on the way had a lower held-out loss than the first ones, which ``fit``
            keeps then.
        validations: of the held-out rows, as often as ``fit`` has them; empty where they were not asked for. In an
            observation they end where a patience :data:`LONGER` times that of the recipe is lost.
    """

    score: float
    losses: NDArray[np.float64]
    norms: NDArray[np.float64]
    refused: int = 0
    error: str = ""
    best: float = -1.0
    risen: bool = False
    validations: list[Validation] = field(default_factory=list)


@dataclass
class Observation(Descended):
    """A descent that was looked at on the way.

    Attributes:
        start: what it began from; ``start.objective.model`` is the trained model.
        seed: of first weights and order.
        planned: steps of the run that it stands for.
        looks: (step, score, loss) on held-out rows on the way, the first before any step.
        train_score, train_loss: on learned rows, at the end, in evaluation mode.
        probes: pairs of successive steps that were measured.
        lr: the rate at the top of the schedule.
        cuts: steps after which the plateau schedule cut it.
        stop: where ``fit`` would have stopped early, for lack of patience; the observation goes on.
        validated_every: steps between the validations of the run.
        enough: asked after each look whether no more need be seen.
    """

    start: Start | None = None
    seed: int = 0
    planned: int = 0
    looks: list[tuple[int, float, float]] = field(default_factory=list)
    train_score: float = -1.0
    train_loss: float = math.nan
    probes: list[Probed] = field(default_factory=list)
    lr: float = 0.0
    cuts: list[int] = field(default_factory=list)
    stop: Stop | None = None
    validated_every: int = 0
    enough: Callable[[Observation], bool] = lambda seen: False

    @property
    def steps(self) -> int:
        return len(self.losses)

    def still_waits(self, patience: int | None) -> bool:
        """Note where this patience is lost; whether one :data:`LONGER` times that is not: there is more to be seen."""
        self.stop = self.stop or stopped(self.validations, patience)
        return self.stop is None or stopped(self.validations, LONGER * (patience or 0)) is None
