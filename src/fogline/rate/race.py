"""The race: a few learning rates descend side by side for a few steps, annealed to zero, and are compared held-out.

All members begin with the run's own first weights, see the same batches and are scored on the same rows, so differences
between them are paired: the noise they share cancels. While the winner is at an end of the field, that is extended
beyond it.

The whole field runs for as long as the budget allows. Successive halving (Jamieson and Talwalkar, 2016,
arXiv:1502.07943) was tried in its place and behind it and did not pay: a probe that was annealed cannot go on, so the
better half begins anew (docs/LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from fogline.data.source import Batch
from fogline.descent.batches import Batches
from fogline.descent.objective import Objective
from fogline.descent.population import Each, InTurn, clock, obstacle, populate
from fogline.descent.schedules import curve
from fogline.recipe import Recipe

TOGETHER, IN_TURN = 12, 3
"""Rates in the field."""
RATIO_TOGETHER, RATIO_IN_TURN = 10 ** (1 / 3), 10**0.5
"""Between neighbours: many members in one program cost little more than a few, in turn each costs the same."""
USUAL_COST = 3.0
"""Of a step of a large field in one program, in steps of one member, for a model so small that calling costs most."""
LENGTHS = (10, 12, 16, 24, 32, 48, 64)
"""Steps of a probe of the field: fewer tell too little (benchmarks/rate.py)."""
_WARMUP = 0.1
_EXTENSIONS = 4
_TRIED = 3  # steps, to find out whether members can step in one program, and again to time a step of one


@dataclass(frozen=True)
class Probe:
    """One rate in the race.

    Attributes:
        rate: at the top of its schedule.
        losses: training loss of each step, the mean over draws; NaN from where one was lost.
        scores: held-out loss behind the last step, on each of the common batches, draw by draw.
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
        steps: of each of them.
        ratio: between neighbouring rates.
        before: held-out loss of the first weights, on each of the common batches.
        together: whether the members stepped in one program, and ``why``.
        cost: in steps of one member, as planned.
        times_one: how many times as long a step of the field took as a step of one; None in turn.
    """

    probes: list[Probe]
    steps: int
    ratio: float
    before: list[float]
    together: bool
    why: str
    cost: float
    times_one: float | None = None

    @property
    def open_end(self) -> str | None:
        """The end of the field that is best of it, "lower" or "upper"; None where the best lies inside."""
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
    """What all heats of a race share.

    Attributes:
        held_out: what probes are scored on.
        small: whether many members in one program cost little more than one.
        draws: orders of the data that each rate is tried on, where members step in one program.
    """

    objective: Objective
    batches: Batches
    recipe: Recipe
    held_out: Sequence[Batch]
    small: bool
    draws: int
    check: Callable[[], None]

    @property
    def scoring(self) -> float:
        """What it costs to score a member, in steps: a forward pass is a third of one."""
        return len(self.held_out) / 3

    def heat(self, rates: Sequence[float], steps: int, together: bool) -> tuple[list[Probe], float]:
        """The probes of these rates, each annealed to zero after a short warm-up, and the seconds of a step."""
        draws = self.draws if together else 1
        every = [*rates] * draws
        population = populate(self.objective, self.recipe, len(every), self.batches, together=together).population
        at, now = curve("linear", steps, warmup=_WARMUP), clock(self.batches)
        streams = [replace(self.batches, seed=self.recipe.seed + draw).stream(0) for draw in range(draws)]
        table: list[list[float]] = []
        seconds = []
        for k in range(steps):
            self.check()
            batches = [next(stream) for stream in streams]
            batch, started = batches[0] if draws == 1 else Each.of(batches, len(rates)), now()
            table.append(population.step(k, batch, [rate * at(k) for rate in every]))
            seconds.append(now() - started)
        scores = [population.losses(batch) for batch in self.held_out]
        own = [range(k, len(every), len(rates)) for k in range(len(rates))]  # the members of each rate
        probes = [
            Probe(rate, [fmean(row[m] for m in mine) for row in table], [row[m] for m in mine for row in scores])
            for rate, mine in zip(rates, own, strict=True)
        ]
        return probes, min(seconds)

    def score(self) -> list[float]:
        """Held-out losses of the first weights."""
        first = InTurn(self.objective, self.recipe, 1, self.batches)
        return [first.losses(batch)[0] for batch in self.held_out]

    def single(self) -> float:
        """Seconds of a step of one member."""
        _, seconds = self.heat([0.0], _TRIED - 1, together=False)
        return seconds


def race(course: Course, centre: float, budget: float) -> Race:
    """Race rates around ``centre`` for at most ``budget`` steps; at least one short field is always raced.

    A small model races in one program, where that can be done at all: by rule and not by the clock, and for as many
    steps as a usual cost allows, because two runs with one seed shall agree. What it did cost is measured beside.

    Args:
        course: what is learned, on what, and what is compared.
        centre: where the best rate of a short descent is expected.
        budget: in steps of one member.
    """
    plan = _planned(course, budget - course.scoring)
    rates = [centre * plan.ratio ** (k - plan.size // 2) for k in range(plan.size)]
    before = course.score() * (course.draws if plan.together else 1)
    probes, seconds = course.heat(rates, plan.steps, plan.together)
    cost = course.scoring + plan.tried + plan.cost(plan.size, course)
    found = Race(probes, plan.steps, plan.ratio, before, plan.together, plan.why, cost)
    if plan.together:
        found.times_one = seconds / course.single()
        members = plan.size * course.draws
        found.why = f"a step of {members} members in one program took {found.times_one:.1f} times as long as of one"
    _extend(course, plan, found, budget - cost)
    return found


@dataclass(frozen=True)
class _Plan:
    """Who races: ``size`` rates that are ``ratio`` apart, for ``steps`` steps.

    ``why`` they do not step together, and ``tried``, the steps that finding it out and timing them takes.
    """

    together: bool
    ratio: float
    size: int
    steps: int
    why: str
    tried: float

    def cost(self, size: int, course: Course) -> float:
        """Of so many rates."""
        return _price(size, course, self.together) * (self.steps + course.scoring)


def _price(size: int, course: Course, together: bool) -> float:
    """What a step at so many rates counts as: in one program half of the cost of a usual field is calling."""
    return USUAL_COST / 2 * (1 + size * course.draws / TOGETHER) if together else float(size)


def _planned(course: Course, budget: float) -> _Plan:
    """A large field in one program where the model is small and can be mapped, else a small one in turn."""
    why: str | None = "a step is mostly computing, which one program does not make less"
    tried = 0.0
    if course.small:
        why, tried = obstacle(course.objective, course.recipe, course.batches), float(_TRIED)
        left = budget - 2 * tried
        steps = _length(left / _price(TOGETHER, course, together=True) - course.scoring)
        if why is None and steps is not None:
            return _Plan(True, RATIO_TOGETHER, TOGETHER, steps, "", 2 * tried)
        why = why or "the budget is too small for many at once"
    left = budget - tried
    size = max(2, min(IN_TURN, int(left / (LENGTHS[0] + course.scoring))))
    steps = _length(left / (size + 1) - course.scoring) or LENGTHS[0]  # with room for one more
    assert why is not None
    return _Plan(False, RATIO_IN_TURN, size, steps, why, tried)


def _extend(course: Course, plan: _Plan, found: Race, left: float) -> None:
    """Go on beyond an end that wins, while the budget lasts."""
    size = TOGETHER // 2 if found.together else 1
    cost = plan.cost(size, course)
    for _ in range(_EXTENSIONS):
        end, left = found.open_end, left - cost
        if end is None or left < 0:
            return
        outermost, factor = (found.probes[0], 1 / found.ratio) if end == "lower" else (found.probes[-1], found.ratio)
        rates = [outermost.rate * factor ** (k + 1) for k in range(size)]
        beyond, _ = course.heat(rates, found.steps, found.together)
        found.probes = sorted([*found.probes, *beyond], key=lambda probe: probe.rate)
        found.cost += cost


def _length(affordable: float) -> int | None:
    """The longest probe that is affordable, or None."""
    return max((length for length in LENGTHS if length <= affordable), default=None)
