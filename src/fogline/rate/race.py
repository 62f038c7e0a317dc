"""The race: a few learning rates descend side by side for a few steps, annealed to zero, and are compared held-out.

All members see the same batches and are scored on the same rows, so differences between them are paired: the noise they
share cancels. While the winner is at an end of the field, the field is extended beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fogline.data.source import Batch
from fogline.descent.batches import Batches
from fogline.descent.objective import Objective
from fogline.descent.population import Choice, populate
from fogline.descent.schedules import curve
from fogline.recipe import Recipe

TOGETHER, IN_TURN = 12, 3
"""Rates in the field at first."""
RATIO_TOGETHER, RATIO_IN_TURN = 10 ** (1 / 3), 10**0.5
"""Between neighbours: many members in one program cost little more than a few, in turn each costs the same."""
USUAL_COST = 3.0
"""Of a step of a large field in one program, in steps of one member, for a model so small that calling costs most."""
LENGTHS = (10, 12, 16, 24, 32, 48, 64)
"""Steps of a probe: fewer tell too little, more add nothing (benchmarks/rate.py); few, so that a measured cost seldom
decides between two."""
_WARMUP = 0.1
_EXTENSIONS = 4


@dataclass(frozen=True)
class Probe:
    """One rate in the race.

    Attributes:
        rate: at the top of its schedule.
        losses: training loss of each step; NaN from where it was lost.
        scores: held-out loss behind the last step, on each of the common batches.
    """

    rate: float
    losses: list[float]
    scores: list[float]

    @property
    def score(self) -> float:
        """Mean held-out loss; infinite where it is no number."""
        mean = fmean(self.scores)
        return mean if math.isfinite(mean) else math.inf


@dataclass
class Race:
    """What came of it.

    Attributes:
        probes: in the order of their rates.
        steps: of each probe.
        ratio: between neighbouring rates.
        before: held-out loss of the first weights, on each of the common batches.
        together: whether the members stepped in one program, and ``why``.
        cost: in steps of one member, forward passes of the scoring as a third of a step.
    """

    probes: list[Probe]
    steps: int
    ratio: float
    before: list[float]
    together: bool
    why: str
    cost: float

    @property
    def open_end(self) -> str | None:
        """The end of the field that is best of all, "lower" or "upper"; None where the best lies inside."""
        best = self.best
        if not math.isfinite(best.score) or best is self.probes[0]:
            return "lower"
        return "upper" if best is self.probes[-1] else None

    @property
    def best(self) -> Probe:
        return min(self.probes, key=lambda probe: probe.score)

    @property
    def first(self) -> float:
        """Mean held-out loss of the first weights."""
        return fmean(self.before)

    def gain(self, probe: Probe) -> tuple[float, float]:
        """How far a probe came below the first weights on the same rows, and the standard error of that."""
        pairs = [a - b for a, b in zip(self.before, probe.scores, strict=True)]
        if not all(map(math.isfinite, pairs)):
            return -math.inf, 0.0
        return fmean(pairs), stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else 0.0


@dataclass
class Course:
    """What all heats of a race share."""

    objective: Objective
    batches: Batches
    recipe: Recipe
    held_out: Sequence[Batch]
    try_together: bool
    check: Callable[[], None]

    def populate(self, size: int, together: bool | None = None) -> Choice:
        return populate(self.objective, self.recipe, size, self.batches, together=together)

    def heat(self, choice: Choice, rates: Sequence[float], steps: int) -> list[Probe]:
        """The probes of these rates, each annealed to zero after a short warm-up."""
        at = curve("linear", steps, warmup=_WARMUP)
        stream = self.batches.stream(0)
        table: list[list[float]] = []
        for k in range(steps):
            self.check()
            table.append(choice.population.step(k, next(stream), [rate * at(k) for rate in rates]))
        scores = [choice.population.losses(batch) for batch in self.held_out]
        return [Probe(rate, [row[k] for row in table], [row[k] for row in scores]) for k, rate in enumerate(rates)]

    def score(self) -> list[float]:
        """Held-out losses of the first weights."""
        first = self.populate(1).population
        return [first.losses(batch)[0] for batch in self.held_out]


def race(course: Course, centre: float, budget: float) -> Race:
    """Race rates around ``centre`` for at most ``budget`` steps; at least one short field is always raced.

    Args:
        course: what is learned, on what, and what is compared.
        centre: where the best rate of a short descent is expected.
        budget: in steps of one member.
    """
    scoring = len(course.held_out) / 3
    before, spent = course.score(), scoring
    choice, steps, why, tried = _field(course, budget - spent)
    spent += tried
    size, ratio = choice.population.size, RATIO_TOGETHER if choice.together else RATIO_IN_TURN
    rates = [centre * ratio ** (k - size // 2) for k in range(size)]
    probes = course.heat(choice, rates, steps)
    spent += choice.steps * (steps + scoring)
    found = Race(probes, steps, ratio, before, choice.together, why, spent)
    found.cost += _extend(course, found, choice, budget - spent)
    return found


def _field(course: Course, budget: float) -> tuple[Choice, int, str, float]:
    """Who races: a large field in one program where that fits the budget, else a small one in turn.

    The number of steps follows from the budget and a usual cost, not from the cost just measured: two runs with one
    seed shall agree. The measured one only decides whether the field is a large one.

    Returns:
        The members, the steps of their probes, why they step together or not, and what trying cost.
    """
    scoring, tried = len(course.held_out) / 3, 0.0
    why = "to try whether one program is faster would take too much of the budget"
    if course.try_together:
        choice = course.populate(TOGETHER)
        tried = choice.trials * (1 + choice.steps)
        steps = _length((budget - choice.trials * (1 + USUAL_COST)) / USUAL_COST - scoring)
        if steps is not None and choice.together and choice.steps * (steps + scoring) <= budget - tried:
            return choice, steps, choice.why, tried
        why = f"{choice.why}, more than the budget has" if choice.together else choice.why
    left = budget - tried
    size = max(2, min(IN_TURN, int(left / (LENGTHS[0] + scoring))))
    steps = _length(left / (size + 1) - scoring) or LENGTHS[0]  # with room for one more
    return course.populate(size, together=False), steps, why, tried


def _extend(course: Course, found: Race, choice: Choice, budget: float) -> float:
    """Go on beyond an end that wins, while the budget lasts; returns what it cost."""
    more = max(1, choice.population.size // 2) if choice.together else 1
    share = more / choice.population.size
    cost, spent = choice.steps * share * (found.steps + len(course.held_out) / 3), 0.0
    for _ in range(_EXTENSIONS):
        end = found.open_end
        if end is None or spent + cost > budget:
            break
        outermost, factor = (found.probes[0], 1 / found.ratio) if end == "lower" else (found.probes[-1], found.ratio)
        rates = [outermost.rate * factor ** (k + 1) for k in range(more)]
        beyond = course.heat(course.populate(more, together=choice.together), rates, found.steps)
        found.probes = sorted([*found.probes, *beyond], key=lambda probe: probe.rate)
        spent += cost
    return spent


def _length(affordable: float) -> int | None:
    """The longest probe that is affordable, or None."""
    return max((length for length in LENGTHS if length <= affordable), default=None)
