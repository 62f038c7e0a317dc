"""Verified early in the run: a third and three times the rate, from the same state, on the same batches.

The rate was measured on the first weights; what the weights have become by now has the last word, once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from statistics import fmean, stdev
from typing import Any

from fogline.data.source import Batch
from fogline.descent.interrupts import poll
from fogline.descent.population import judging
from fogline.descent.prepare import Start
from fogline.descent.schedules import curve
from fogline.descent.state import Descent
from fogline.descent.step import EagerStep
from fogline.rate.held_out import held_out_batches

_AT = 0.1  # of the run: behind the warm-up, with nearly everything still ahead
_OTHERS = (1 / 3, 3.0)
_MUCH = 2.0  # what three times the rate must gain over the rate itself: where steps only add up, it gains three times


@dataclass(frozen=True)
class Verification:
    """Verify a run's learning rate.

    Attributes:
        step: of the run, at which it is done.
        length: steps of each trial.
        held_out: batches that the trials are compared on.
    """

    step: int
    length: int
    held_out: list[Batch]

    def __call__(self, descent: Descent) -> tuple[float, str]:
        """What the rate is to be multiplied by from here on, and why.

        Raises:
            StopRequested: a signal came meanwhile.
        """
        before = self._scores(EagerStep(descent.machine.copied(), descent.batches, deferred=False))
        kept = self._tried(descent, 1.0)
        lower, higher = (self._tried(descent, factor) for factor in _OTHERS)
        gained = _difference(before, kept)[0]
        over, error = _difference(kept, lower)
        if gained < 0 and over > 2 * error:
            why = f"the loss rises, and clearly less at a third of the rate ({_words(before, kept, lower)})"
            return _OTHERS[0], why
        over, error = _difference(kept, higher)
        if gained > 0 and over > max(2 * error, (_MUCH - 1) * gained):
            return _OTHERS[1], f"three times the rate gains {1 + over / gained:.1f} times as much"
        return 1.0, "neither a third nor three times the rate does clearly better"

    def _tried(self, descent: Descent, factor: float) -> list[float]:
        """Held-out losses behind a few steps at this multiple of the rate, annealed to zero."""
        step = EagerStep(descent.machine.copied(), descent.batches, deferred=False)
        at, rate = curve("linear", self.length), factor * descent.rate(descent.step)
        for k, batch in enumerate(islice(descent.batches.stream(descent.step), self.length)):
            poll()
            if step.take(descent.step + k, batch, rate * at(k)).finite is False:
                return [math.inf] * len(self.held_out)
        return self._scores(step)

    def _scores(self, step: EagerStep) -> list[float]:
        with judging(step.machine.objective):
            return [step.machine.objective(batch).item() for batch in self.held_out]


def verification(start: Start, evidence: Mapping[str, Any]) -> Verification | None:
    """That of a run whose rate was found with this evidence; None where its budget had no room for one."""
    length = evidence.get("verify_steps")
    if length is None:
        return None
    return Verification(max(1, round(_AT * evidence["planned_steps"])), length, list(held_out_batches(start)))


def _difference(first: list[float], second: list[float]) -> tuple[float, float]:
    """How far the second lies below the first on the same batches, and its standard error."""
    pairs = [a - b for a, b in zip(first, second, strict=True)]
    if not all(map(math.isfinite, pairs)):
        return (-math.inf if all(map(math.isfinite, first)) else math.inf), 0.0
    return fmean(pairs), stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else 0.0


def _words(before: list[float], kept: list[float], lower: list[float]) -> str:
    return f"held out {fmean(before):.4g}, then {fmean(kept):.4g} and {fmean(lower):.4g}"
