"""Verified early in the run: a third or three times the rate, from the same state, on the same batches.

The rate was measured on the first weights; what the weights have become by now has the last word, once. A few steps say
little of what a whole run wants, so the rate is only moved where they leave little doubt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from statistics import fmean, stdev
from typing import Any

from fogline.data.source import Batch
from fogline.descent.batches import Batches
from fogline.descent.interrupts import poll
from fogline.descent.prepare import Start
from fogline.descent.schedules import curve
from fogline.descent.state import Descent
from fogline.descent.step import EagerStep, Machine
from fogline.descent.together import judging
from fogline.rate.held_out import held_out_batches

AT = 0.1
"""Of the run: behind the warm-up, with nearly everything still ahead."""
_SHARE, _SHORTEST, _LONGEST = 1 / 6, 3, 64  # of the budget; steps
LOWER, HIGHER = 1 / 3, 3.0
_MUCH = 2.0  # what three times the rate must gain over the rate itself: where steps only add up, it gains three times


@dataclass(frozen=True)
class Verification:
    """Verify a run's learning rate.

    Attributes:
        step: of the run, at which it is done.
        length: steps of each trial.
        held_out: batches that the trials are compared on.
        first: mean loss of the run's first weights on them.
        highest: the rate above which it may not be raised, by what the race saw; infinite where it saw no end.
    """

    step: int
    length: int
    held_out: list[Batch]
    first: float
    highest: float

    def __call__(self, descent: Descent) -> tuple[float, str]:
        """What the rate is to be multiplied by from here on, and why.

        Raises:
            StopRequested: a signal came meanwhile.
        """
        assert not isinstance(descent.recipe.lr, str)
        top = descent.recipe.lr * descent.counters.rate_factor
        return self.look(descent.machine, descent.batches, descent.rate(descent.step), top)

    def look(self, machine: Machine, batches: Batches, rate: float, top: float) -> tuple[float, str]:
        """The same, of a run at :attr:`step` by its parts.

        A trial at the rate itself says which of the two others may win: the lower where the loss rises, the higher
        where it falls, and only that is tried.

        Args:
            machine: left as it is.
            rate: that of this step.
            top: that of the top of the schedule.
        """
        before = self._scores(EagerStep(machine.copied(), batches, deferred=False))
        kept = self._tried(machine, batches, rate)
        gained, error = _difference(before, kept)
        if gained < -2 * error and not fmean(before) < self.first:
            lower = self._tried(machine, batches, LOWER * rate)
            over, error = _difference(kept, lower)
            if over > 2 * error:
                words = f"held out {fmean(before):.4g}, then {fmean(kept):.4g} and {fmean(lower):.4g}"
                return LOWER, f"nothing is gained yet, and clearly less lost at a third of the rate ({words})"
        elif gained > 0 and HIGHER * top <= self.highest:
            over, error = _difference(kept, self._tried(machine, batches, HIGHER * rate))
            if over > max(2 * error, (_MUCH - 1) * gained):
                return HIGHER, f"three times the rate gains {1 + over / gained:.1f} times as much"
        return 1.0, "neither a third nor three times the rate does clearly better"

    def _tried(self, machine: Machine, batches: Batches, rate: float) -> list[float]:
        """Held-out losses behind a few steps at this rate, annealed to zero."""
        step = EagerStep(machine.copied(), batches, deferred=False)
        at = curve("linear", self.length)
        for k, batch in enumerate(islice(batches.stream(self.step), self.length)):
            poll()
            if step.take(self.step + k, batch, rate * at(k)).finite is False:
                return [math.inf] * len(self.held_out)
        return self._scores(step)

    def _scores(self, step: EagerStep) -> list[float]:
        with judging(step.machine.objective):
            return [step.machine.objective(batch).item() for batch in self.held_out]


def verified_steps(budget: float, scoring: float) -> tuple[int, float]:
    """How long the trials are that a sixth of a budget buys, and what all of it costs, in steps.

    There are two trials and three scorings: before, and behind each.

    >>> verified_steps(60, scoring=4 / 3), verified_steps(1000, scoring=4 / 3)
    ((3, 10.0), (64, 132.0))
    """
    length = int((_SHARE * budget - 3 * scoring) / 2 + 1e-9)
    length = min(max(length, _SHORTEST), _LONGEST)
    return length, 2 * length + 3 * scoring


def verification(start: Start, evidence: Mapping[str, Any]) -> Verification | None:
    """That of a run whose rate was found with this evidence; None where none was measured."""
    length = evidence.get("verify_steps")
    if length is None:
        return None
    step, highest = max(1, round(AT * evidence["planned_steps"])), evidence["highest"]
    held_out, first = list(held_out_batches(start)), evidence["race"]["before"]
    return Verification(step, length, held_out, first, math.inf if highest is None else highest)


def _difference(first: list[float], second: list[float]) -> tuple[float, float]:
    """How far the second lies below the first on the same batches, and its standard error."""
    pairs = [a - b for a, b in zip(first, second, strict=True)]
    if not all(map(math.isfinite, pairs)):
        return (-math.inf if all(map(math.isfinite, first)) else math.inf), 0.0
    return fmean(pairs), stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else 0.0
