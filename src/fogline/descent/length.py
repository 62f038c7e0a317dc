"""How long a descent goes on, and its learning rate over that length: a number of steps, a time, or until it is done.

``duration="auto"`` is open-ended: at a constant rate behind a warm-up until nothing more is gained, then a cool-down to
zero (warm-up, stable, decay: the length need not be known before; Haegele et al., 2024, arXiv:2405.18392).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from fogline.descent.schedules import curve, warmup_steps
from fogline.recipe import Duration, Recipe

EXPECTED = 2000
"""Steps an open-ended run is expected to have, where a number is needed before it begins."""
WARMUP = 50
"""Steps of warm-up of an open-ended run: its length, of which a share could be taken, is not known."""
_MOST_STEPS, _MOST_EPOCHS = 20_000, 200
_COOLING = 0.25  # of the steps before it: a fifth of the whole
_FEWEST_STEPS, _FEWEST_CHECKS = 300, 9
_FEWEST_FULL_STEPS = 50  # of all examples at once
_RECENT, _WORTH = 1 / 2, 0.005  # this last share of the run must have brought this share of everything gained


@dataclass
class Progress:
    """What an open-ended run has come to; plain JSON.

    Attributes:
        checks: (step, loss), held-out or the mean of training since the last check.
        cooling: the step at which the cool-down began; None before.
    """

    checks: list[tuple[int, float]] = field(default_factory=list)
    cooling: int | None = None


class Length:
    """The length of one descent.

    Attributes:
        open: whether it goes on until nothing more is gained.
        total: optimizer steps; None while that is not known.
        limit: seconds, where the length is one of time.
        fixed: what :meth:`multiplier` is of the step alone, where the length is known.
    """

    def __init__(self, recipe: Recipe, batch_size: int, examples: int | None) -> None:
        assert not isinstance(recipe.warmup, str)
        self.open = recipe.duration == "auto"
        duration = None if self.open else Duration.parse(recipe.duration)
        self.total = None if duration is None else duration.steps(batch_size, examples)
        self.limit = None if duration is None else duration.seconds
        self.progress = Progress()
        self._schedule, self._warmup = recipe.schedule, recipe.warmup
        self.fixed: Callable[[float], float] | None = None
        if self.total is not None:
            self.fixed = curve(recipe.schedule, self.total, warmup=recipe.warmup)
        self.most = most_steps(batch_size, examples)
        self._fewest = _FEWEST_FULL_STEPS if examples is not None and batch_size >= examples else _FEWEST_STEPS

    @property
    def settled(self) -> bool:
        """Whether it was found that nothing more is gained, and not only that it has taken long enough."""
        return self.progress.cooling is not None and self.progress.cooling < self._longest

    @property
    def _longest(self) -> float:
        return self.most / (1 + _COOLING)

    @property
    def expected(self) -> int | None:
        """Steps it will have as far as one can tell; None where its length is one of time."""
        return EXPECTED if self.open and self.total is None else self.total

    def position(self, step: int, seconds: float) -> tuple[float, float]:
        """Position and total in steps; both are estimates where the length is one of time or open."""
        if self.limit is None:
            return float(step), float(self.total or self.most)
        done = min(seconds / self.limit, 1.0)
        rate = max(step, 1) / max(done, 1e-6)
        return done * rate, max(rate, 1.0)

    def multiplier(self, step: int, seconds: float) -> float:
        """What the learning rate at the top of the schedule is multiplied by."""
        if self.limit is not None:
            position, total = self.position(step, seconds)
            return curve(self._schedule, total, warmup=self._warmup)(position)
        if self.fixed is not None:
            return self.fixed(step)
        start = self.progress.cooling
        if start is not None and self.total is not None and step >= start and self.total > start:
            return 1 - math.sqrt(min(1.0, (step - start) / (self.total - start)))
        rise = warmup_steps(EXPECTED, self._warmup)
        return min(1.0, (step + 1) / (rise + 1))

    def over(self, step: int, seconds: float) -> bool:
        """Whether it ends before this step."""
        if self.limit is not None:
            return seconds >= self.limit
        return self.total is not None and step >= self.total

    def check(self, step: int, loss: float) -> str | None:
        """Take note of a loss; begin the cool-down of an open-ended run where nothing more is gained.

        Returns:
            Why it begins, in words, if it does.
        """
        progress = self.progress
        if not self.open or progress.cooling is not None or not math.isfinite(loss):
            return None
        progress.checks.append((step, loss))
        why = self._finished(step)
        if why is not None:
            progress.cooling = step
            self._settle()
        return why

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self.progress)

    def load(self, values: dict[str, Any]) -> None:
        """What :meth:`state` gave."""
        checks = [(step, loss) for step, loss in values["checks"]]
        self.progress = Progress(checks, values["cooling"])
        if self.open:
            self._settle()

    def _settle(self) -> None:
        start = self.progress.cooling
        if start is not None:
            self.total = start + (max(1, round(_COOLING * start)) if self._schedule == "wsd" else 0)

    def _finished(self, step: int) -> str | None:
        if step >= self._longest:
            return f"the most steps of an open-ended run, {self.most:,}, are near"
        checks = self.progress.checks
        if step < self._fewest or len(checks) < _FEWEST_CHECKS:
            return None
        losses = [loss for at, loss in checks if at <= step * (1 - _RECENT)]
        if not losses:
            return None
        gained = checks[0][1] - min(loss for _, loss in checks)
        recent = min(losses) - min(loss for _, loss in checks)
        if recent >= _WORTH * gained and gained > 0:
            return None
        share = recent / gained if gained > 0 else 0.0
        return f"the last half of {step:,} steps brought {share:.1%} of all that was gained"


def most_steps(batch_size: int, examples: int | None) -> int:
    """The most steps of an open-ended run."""
    if examples is None:
        return _MOST_STEPS
    return max(EXPECTED, min(_MOST_STEPS, _MOST_EPOCHS * math.ceil(examples / batch_size)))
