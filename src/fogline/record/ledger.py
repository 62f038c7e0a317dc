"""What was seen of the steps of a loop that is not ours: it waits here until the device is asked for the numbers."""

from __future__ import annotations

import math
from array import array

from torch import Tensor

from fogline.record.seen import Seen, Value
from fogline.record.signals import Recorder, numbers

_MOST_EVENTS = 20


class Ledger:
    """Turns what waits into rows, and what went wrong into events: each stretch once, and not without end.

    Attributes:
        waiting: steps in their order; each becomes a row if it has one.
        scores: held-out scores that wait, with step and name.
        not_finite: numbers of the steps whose loss or gradient was not finite.
        skipped: how many a gradient scaler skipped; they are not counted as steps.
        last_rate: learning rate of the latest row.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.store = recorder, recorder.store
        self.waiting: list[Seen] = []
        self.scores: list[tuple[int, str, Value]] = []
        self.not_finite: array[int] = array("q")
        self.skipped = 0
        self.last_rate = math.nan
        self._was_finite = True

    @property
    def may_have_skipped(self) -> bool:
        """Whether a step was skipped, or one that waits may turn out to have been."""
        return self.skipped > 0 or any(seen.skipped is not None for seen in self.waiting)

    def suspect(self, step: int, skipped: Tensor) -> None:
        """A step that was not taken before this one, for a gradient scaler skipped it or for another reason."""
        self.waiting.append(Seen(step, skipped=skipped, has_row=False, taken=False))

    def skip(self, step: int) -> None:
        """A gradient scaler left out a step before this one."""
        self.skipped += 1
        if self.skipped <= _MOST_EVENTS:
            self.store.event(step, "amp_skip", f"the gradient scaler found infinity and skipped one before step {step}")

    def read(self) -> int:
        """Hand what waits to the recorder; gives how many of the steps were skipped although they were counted."""
        waiting, self.waiting = self.waiting, []
        scores, self.scores = self.scores, []
        read = iter(numbers([v for seen in waiting for v in (seen.loss(), seen.rate, seen.norm, seen.skipped)]))
        moved = 0
        for seen, loss, rate, norm, skipped in zip(waiting, read, read, read, read, strict=True):
            step = seen.number - moved
            if skipped:
                self.skip(step)
                moved += seen.taken
            elif seen.has_row:
                self._check(step, loss, norm)
                self.last_rate = math.nan if rate is None else rate
                self.recorder.row((step, math.nan, seen.examples, seen.seconds, loss, rate, norm))
        for (step, name, _), value in zip(scores, numbers([value for *_, value in scores]), strict=True):
            self.store.scores(step, "valid", {name: value})
        return moved

    def _check(self, step: int, loss: float | None, norm: float | None) -> None:
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
