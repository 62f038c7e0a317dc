"""What goes wrong in a loop that is not ours, as events: each stretch once, and not without end."""

from __future__ import annotations

import math
from array import array

from fogline.record.store import Store

_MOST_EVENTS = 20


class Incidents:
    """Steps that were not finite, and steps that were skipped.

    Attributes:
        not_finite: numbers of the steps whose loss or gradient was not finite.
        skipped: how many a gradient scaler skipped; they are not counted as steps.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.not_finite: array[int] = array("q")
        self.skipped = 0
        self._was_finite = True

    def check(self, step: int, loss: float | None, norm: float | None) -> None:
        """Look at the numbers of a step; None is one that was not seen."""
        wrong = [
            f"the {name} is {value}"
            for name, value in (("loss", loss), ("gradient norm", norm))
            if value is not None and not math.isfinite(value)
        ]
        if wrong:
            self.not_finite.append(step)
            if self._was_finite and len(self.not_finite) <= _MOST_EVENTS:
                self.store.event(step, "nonfinite", f"step {step}: {' and '.join(wrong)}")
        self._was_finite = not wrong

    def skip(self, step: int) -> None:
        """A gradient scaler left out a step before this one."""
        self.skipped += 1
        if self.skipped <= _MOST_EVENTS:
            self.store.event(step, "amp_skip", f"the gradient scaler found infinity and skipped one before step {step}")
