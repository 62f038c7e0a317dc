"""Whether somebody's scheduler is asked as often as its numbers were meant for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.optim import Optimizer

from fogline.doctor import loop_findings
from fogline.doctor.finding import Evidence, Finding

_UNIT_BY_EPOCH = ("StepLR", "MultiStepLR", "ExponentialLR", "ReduceLROnPlateau")
"""Their numbers are epochs by custom; those of the others are steps as often."""
_COLLAPSED = 1e-3
_FEWEST = 20
_HUNDREDTH = 0.0101
_EARLY = 0.2
_SAME = 0.1


class ScheduleLook:
    """Counts the calls of a scheduler against the steps of its optimizer.

    Attributes:
        epochs: looks at held-out data so far.
    """

    def __init__(self, scheduler: Any, optimizer: Optimizer) -> None:
        self.scheduler, self.optimizer = scheduler, optimizer
        self.kind = type(scheduler).__name__
        self.epochs = 0
        self._begun, self._began_at = self._count(), getattr(scheduler, "last_epoch", None)

    def _count(self) -> int:
        """How often it was asked; -1 where that cannot be told."""
        count = getattr(self.scheduler, "_step_count", None)
        if not isinstance(count, int):
            count = getattr(self.scheduler, "last_epoch", None)
        return count if isinstance(count, int) else -1

    def steps_first(self) -> bool:
        """Whether it was asked before the first step of the optimizer."""
        return self._count() > self._begun >= 0

    def at_an_epoch(self, step: int) -> Finding | None:
        """At the end of the first epoch: a schedule whose unit is the epoch was counted in batches."""
        self.epochs += 1
        if self.epochs > 1 or step < _FEWEST or not self._by_batch(step):
            return None
        share = self._share_of_the_first()
        if share >= _COLLAPSED and not self._passed_its_milestones(step):
            return None
        return loop_findings.schedule_unit(
            0.85,
            Evidence("learning rate after the first epoch, as a share of the first", share, "about 1", step),
            f"{self.kind} counts in epochs here, but step() is called at every batch: the learning rate has come down "
            "all the way before the first epoch is over.",
            "call scheduler.step() once an epoch",
        )

    def _passed_its_milestones(self, step: int) -> bool:
        """Whether every milestone lies within the first epoch: nobody plans the whole of a run for that."""
        milestones = getattr(self.scheduler, "milestones", None)
        return milestones is not None and max(milestones, default=step) < step and self._share_of_the_first() < 1

    def _by_batch(self, step: int) -> bool:
        return self.kind in _UNIT_BY_EPOCH and self._count() - self._begun >= 0.9 * step

    def _share_of_the_first(self) -> float:
        group = self.optimizer.param_groups[0]
        rate = float(group["lr"])
        bases = getattr(self.scheduler, "base_lrs", None) or [group.get("initial_lr", rate)]
        return rate / float(bases[0]) if float(bases[0]) > 0 else 1.0

    def at_the_end(self, step: int, rates: NDArray[np.float64]) -> Iterator[Finding]:
        """After the last step: how far the schedule came.

        Args:
            rates: the learning rates of the recorded steps.
        """
        count = self._count()
        if count < 0 or self._begun < 0:
            return
        asked = count - self._begun
        if asked == 0 and step >= _FEWEST and getattr(self.scheduler, "last_epoch", None) == self._began_at:
            yield loop_findings.schedule_unit(
                0.8 if self.epochs > 1 else 0.6,
                Evidence("calls of scheduler.step()", 0, "one an epoch, or one a batch", step),
                f"{self.kind} was made and never asked: the learning rate is the same from the first step to the last.",
                loop_findings.NEVER_ASKED,
            )
        yield from self._warms_up(step, asked, rates)
        yield from self._cycles(step, asked)
        yield from self._nothing_left(step, rates)

    def _warms_up(self, step: int, asked: int, rates: NDArray[np.float64]) -> Iterator[Finding]:
        """A rate that only rose, and ended far below the one that the optimizer was made with."""
        known = rates[rates >= 0]
        planned = max(getattr(self.scheduler, "base_lrs", None) or [0.0])
        rises = len(known) > 1 and bool((np.diff(known) >= 0).all())
        if asked and rises and known[-1] > known[0] and known[-1] < 0.5 * planned and asked < 0.5 * step:
            yield loop_findings.schedule_unit(
                0.85,
                Evidence("learning rate at the end, as a share of the planned one", known[-1] / planned, 1, step),
                f"{self.kind} was asked {asked} times in {step + 1} steps, and the learning rate was still in its "
                "warm-up when the loop ended: its numbers are meant for one call a step.",
                "call scheduler.step() after every optimizer.step()",
            )

    def _cycles(self, step: int, asked: int) -> Iterator[Finding]:
        period, total = getattr(self.scheduler, "T_max", None), getattr(self.scheduler, "total_steps", None)
        if self.kind == "CosineAnnealingLR" and period and asked >= 3 * period and asked >= 0.9 * step:
            yield loop_findings.schedule_unit(
                0.8,
                Evidence("calls of scheduler.step()", asked, f"at most T_max={period}", step),
                "CosineAnnealingLR was stepped at every batch far beyond its T_max: the learning rate does not fall "
                f"once over the run but swings down and up again every {2 * period} batches.",
                f"call scheduler.step() once an epoch, or make it with T_max={step + 1} batches",
            )
        planned = period if self.kind == "CosineAnnealingLR" else getattr(self.scheduler, "total_iters", None)
        if planned and 0 < asked < 0.2 * step and abs(planned - step - 1) <= _SAME * step and step >= _FEWEST:
            yield loop_findings.schedule_unit(
                0.85,
                Evidence("calls of scheduler.step()", asked, f"{planned}, one a step", step),
                f"{self.kind} was made for as many calls as there are steps and was called once an epoch: the learning "
                "rate has hardly changed.",
                "call scheduler.step() after every optimizer.step()",
            )
        if self.kind == "OneCycleLR" and total and asked < 0.2 * total and step + 1 >= 0.5 * total:
            yield loop_findings.schedule_unit(
                0.9,
                Evidence("calls of scheduler.step()", asked, f"total_steps={total}", step),
                "OneCycleLR was made for as many calls as there are batches and was called once an epoch: the learning "
                "rate never left its warm-up.",
                "call scheduler.step() after every optimizer.step()",
            )

    def _nothing_left(self, step: int, rates: NDArray[np.float64]) -> Iterator[Finding]:
        """Most of a run at next to no rate: a schedule of the whole run has half of it above a hundredth.

        Milestones that all lie in the first fifth of the run are as telling. Where an epoch is a single batch the two
        units are one; where nothing was scored it is not known what an epoch is.
        """
        known = rates[rates >= 0]
        if not self._by_batch(step) or step < _FEWEST or self.epochs >= step / 2 or not len(known):
            return
        share = float((known <= _HUNDREDTH * known.max()).mean())
        milestones = getattr(self.scheduler, "milestones", None)
        last = max(milestones, default=step) if milestones else step
        if share <= 0.5 and last >= _EARLY * step:
            return
        yield loop_findings.schedule_unit(
            0.75 if self.epochs > 1 else 0.6,
            Evidence("share of the steps at a hundredth of the largest learning rate, or less", share, 0.0, step)
            if share > 0.5
            else Evidence("last milestone, of so many calls", f"{last} of {step + 1}", "in the second half", step),
            f"{self.kind} counts in epochs here, but step() is called at every batch: the learning rate has come down "
            "all the way near the start of the run.",
            "call scheduler.step() once an epoch",
        )
