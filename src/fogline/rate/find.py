"""Find a learning rate: a bracket around it, a race within the bracket, and what a longer descent wants."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from fogline.data.source import Batch, InMemory, Stream
from fogline.descent.length import EXPECTED
from fogline.descent.objective import Objective
from fogline.descent.optimizers import spec_of
from fogline.descent.population import InTurn
from fogline.descent.prepare import Start, as_asked, begin
from fogline.descent.randomness import PROBE, Surroundings, private_randomness, seed_step
from fogline.rate.bracket import Sweep, sweep
from fogline.rate.curvature import PRODUCTS, edge
from fogline.rate.held_out import held_out_batches
from fogline.rate.race import Course, Race, race
from fogline.rate.verify import verified_steps
from fogline.recipe import Duration, Recipe
from fogline.task import Task

SHARE, FLOOR = 0.05, 60
"""What measuring may cost: this share of the planned steps, or so many steps where that is more."""
# From the winner of a short race to the rate of a long descent. The constants were chosen on the calibration tasks of
# benchmarks/rate.py, where each may be a third off without changing the mean regret, and frozen before its evaluation.
GOOD_ENOUGH = 0.05
"""The winner is the highest rate that misses at most this share of the best gain: a long descent wants progress."""
HORIZON = 0.2
"""The best rate of an annealed descent falls with its length, here to this power (Bjorck et al., 2024,
arXiv:2409.19913, measured 0.32 for language models)."""
BELOW_CLIFF, LEAST_BELOW_CLIFF = 20.0, 12.0
"""The cliff is the lowest rate above the winner at which nothing is gained; a longer descent falls off it earlier."""
NEVER_LOWERED = 0.5
"""Of the value, for a run whose schedule does not lower the rate: the mean rate of a descent that is annealed, as the
probes are, is half of its highest. On the calibration tasks at a constant rate the mean regret is .030 with half, .089
with all and .042 with a quarter (benchmarks/rate.py --schedule constant)."""
_LOW, _HIGH = 1e-6, 10.0
_SWEEP_STEPS = 12
_BELOW_EDGE, _ABOVE_LOWEST = 0.3, 1.5  # where a race is won, from the edge and from the sweep's lowest loss
_ENOUGH_FOR_TWO = 240  # orders of the data
# Floating-point operations of a forward pass below which calling them costs more than computing them.
_SMALL_ON_CPU, _SMALL_ELSEWHERE = 1e6, 2e9
_WIDER = 40.0
_RAISED_BELOW_CLIFF = 6.0  # a rate that is raised early in the run has seen how it does: half of the distance will do


@dataclass(frozen=True)
class Rate:
    """A measured learning rate.

    Attributes:
        value: the rate to use at the top of the schedule.
        interval: (lowest, highest) rate between which the best one is expected.
        cost_steps: what it cost, in training steps; a step of many members in one program counts as the usual 3, and
            ``evidence["race"]["times_one"]`` says how many it took here.
        evidence: the bracket, the race with every probe's curve, and how the value came of them; JSON-able.
        warnings: what makes it doubtful.
    """

    value: float
    interval: tuple[float, float]
    cost_steps: int
    evidence: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def plot(self, *, dark: bool = False) -> Any:
        """The race as a figure, a ``plotly.graph_objects.Figure``: held-out loss by rate, and the probes' curves."""
        from fogline.plots.rate import rate_figure

        return rate_figure(self.value, self.interval, self.evidence, dark=dark)

    def __str__(self) -> str:
        low, high = self.interval
        text = f"{self.value:.3g} (between {low:.2g} and {high:.2g}; cost {self.cost_steps} steps)"
        return "\n".join([text, *(f"warning: {warning}" for warning in self.warnings)])


def find_lr(
    task: Task | nn.Module | Callable[[], nn.Module],
    recipe: Recipe | Any = None,
    *,
    loss: Any = None,
    valid: Any = None,
    metrics: Mapping[str, Any] | None = None,
    target: str | None = None,
    **recipe_fields: Any,
) -> Rate:
    """Measure the learning rate for a task and a recipe, as ``lr="auto"`` does.

    A bracket comes from the curvature (the rate beyond which the optimizer overshoots) or from a sweep over growing
    rates; within it a few rates race for 10 to 64 steps, each annealed to zero, and are compared by their held-out
    losses on the same rows. The winner of so short a race is too high for a long run; the value is the geometric mean
    of the winner's rate times ``(T / N) ** 0.2``, for a race of T steps and a run of N, and of 1/20 of the lowest rate
    that is too high to gain anything. A run whose schedule never lowers the rate gets half of that.

    All rates see the same order of the data; where the race has 240 steps or more (runs of about 6,000) small models
    try each of them on two orders. The first weights are always the run's own. Halving the field on the way was tried
    and did not pay (docs/LOG.md).

    A sixth of the budget is kept for the run itself: a tenth of the way into it, :func:`fogline.fit` verifies the rate
    against a third and three times of it from the state it has then (not where the training data is a stream, which
    cannot be read twice).

    Nothing is disturbed: weights, buffers, ``.grad``, random states and the train/eval modes of what was given are
    bitwise as before.

    Args:
        task, recipe, loss, valid, metrics, target, **recipe_fields: as in :func:`fogline.fit`; the recipe's ``lr`` is
            what is looked for and is not read.

    Returns:
        The rate. With what verifying it takes it costs at most 5 % of the recipe's steps, or 60 steps where that is
        more (``cost_steps`` says what it took without).

    Raises:
        ValueError, TypeError: what does not fit, as in :func:`fogline.fit`.

    >>> X = torch.linspace(-1, 1, 64)[:, None]
    >>> rate = find_lr(nn.Linear(1, 1), (X, 3 * X + 1), loss=nn.MSELoss(), optimizer="momentum", duration="200st")
    >>> rate.interval[0] < rate.value < rate.interval[1], rate.cost_steps <= 60
    (True, True)
    """
    task, asked = as_asked(task, recipe, loss, valid, metrics, target, recipe_fields)
    start = begin(task, asked)
    with Surroundings(start.batches.device, start.threads):
        return measure_rate(start)


def measure_rate(start: Start, check: Callable[[], None] = lambda: None, *, around: float | None = None) -> Rate:
    """:func:`find_lr` on data that is open and a model that is made.

    Args:
        start: left untouched.
        check: called between steps; may raise to stop.
        around: where the race is begun, where that is known: then no bracket is looked for.
    """
    recipe = start.resolved.recipe
    spec = spec_of(recipe.optimizer)
    if spec.needs_closure or spec.name == "prodigy":
        rule = "the method finds its own step; this scales it"
        return Rate(spec.lr, (spec.lr, spec.lr), 0, {"rule": rule})
    with private_randomness(start.batches.device):
        return _measured(start, check, around)


def _measured(start: Start, check: Callable[[], None], around: float | None) -> Rate:
    recipe, began = start.resolved.recipe, time.perf_counter()
    known = planned_steps(start)
    planned = known or EXPECTED
    budget = max(float(FLOOR), SHARE * planned)
    seed_step(recipe.seed, 0, PROBE, start.batches.device)
    held_out = list(held_out_batches(start))
    verified, reserved = None, 0.0
    if not isinstance(start.opened.train, Stream):  # which cannot be read twice
        verified, reserved = verified_steps(budget, len(held_out) / 3)
    budget -= reserved
    objective = start.objective.copied()
    objective.model.train()
    if recipe.precision == "fp16":
        objective.autocast = None  # probes do not scale the loss, and small gradients would vanish
    if around is None:
        bracket = _bracket(start, objective, held_out[0], budget, check)
    else:
        bracket = Bracket(around, None, None, None, 0.0)
    draws = 2 if budget >= _ENOUGH_FOR_TWO and isinstance(start.opened.train, InMemory) and recipe.shuffle else 1
    course = Course(objective, start.batches, recipe, held_out, is_small(start), draws, check)
    raced = race(course, bracket.centre, budget - bracket.cost)
    lowered = recipe.schedule not in ("constant", "plateau") or spec_of(recipe.optimizer).name == "schedule_free"
    rate = _judged(raced, bracket, planned, 1.0 if lowered else NEVER_LOWERED)
    seconds = time.perf_counter() - began
    rate.evidence.update(verify_steps=verified, verify_cost=math.ceil(reserved), planned_is_assumed=known is None)
    rate.evidence["seconds"] = seconds
    return rate


def is_small(start: Start) -> bool:
    """Whether many members in one program will cost little more than one: by rule, so that two runs agree.

    On a CPU mapped convolutions become grouped ones, which are slower than taking turns, and Muon's products are all
    computing.
    """
    if start.batches.device.type != "cpu":
        return start.operations < _SMALL_ELSEWHERE
    convolves = any(isinstance(module, _ConvNd) for module in start.objective.model.modules())
    multiplies = start.resolved.recipe.optimizer in ("muon", "musgd")
    return start.operations < _SMALL_ON_CPU and not (convolves or multiplies)


def planned_steps(start: Start) -> int | None:
    """Steps of the run that is planned; None where its length is one of time or open."""
    duration = start.resolved.recipe.duration
    if duration == "auto":
        return None
    return Duration.parse(duration).steps(start.batches.batch_size, start.batches.examples)


@dataclass(frozen=True)
class Bracket:
    """Where to race.

    Attributes:
        centre: where a short race is expected to be won.
        edge: the rate at which the optimizer becomes unstable, where the curvature says so.
        sweep: or None where the edge was enough.
        overshoots: the edge, where it is one of plain or momentum descent: no run should start above it.
        cost: in steps.
    """

    centre: float
    edge: float | None
    overshoots: float | None
    sweep: Sweep | None
    cost: float


def _bracket(start: Start, objective: Objective, common: Batch, budget: float, check: Callable[[], None]) -> Bracket:
    """By the curvature, and by a sweep where that is not known or where the budget has room for both."""
    recipe, batches = start.resolved.recipe, start.batches
    spec = spec_of(recipe.optimizer)
    draws = min(3 if budget >= 4 * FLOOR else 1, batches.steps_per_epoch or 3)
    limit = edge(objective, list(islice(batches.stream(0), draws)), spec, check)
    cost = 0.0 if spec.edge is None else draws * (PRODUCTS + 1) + (draws if spec.edge == "preconditioned" else 0)
    plain = spec.edge in ("gradient", "heavy_ball", "nesterov")
    overshoots = limit if plain else None
    if limit is not None and budget < 2 * FLOOR:
        return Bracket(_BELOW_EDGE * limit, limit, overshoots, None, cost)
    low, high = (_LOW, _HIGH) if limit is None else (limit * 1e-4, limit * 10)
    if limit is None and plain:
        unit = _relative_unit(objective, batches.stream(0))
        low, high = low * unit, high * unit
    member = InTurn(objective, recipe, 1, batches)
    found = sweep(member, batches.stream(0), common, low, high, _SWEEP_STEPS, check)
    cost += len(found.rates) * 4 / 3
    centre = _ABOVE_LOWEST * found.lowest
    return Bracket(centre if limit is None else math.sqrt(centre * _BELOW_EDGE * limit), limit, overshoots, found, cost)


def _relative_unit(objective: Objective, batches: Iterator[Batch]) -> float:
    """The rate at which a step along the gradient is as long as the weights: it carries the units of the loss."""
    parameters = [p for p in objective.model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(objective(next(batches)), parameters, allow_unused=True)
    slope = math.hypot(*(float(g.norm()) for g in gradients if g is not None))
    length = math.hypot(*(float(p.detach().norm()) for p in parameters))
    return length / slope if 0 < slope < math.inf and length > 0 else 1.0


def _judged(raced: Race, bracket: Bracket, planned: int, share: float = 1.0) -> Rate:
    """From the winner of a short race to the rate of the run; ``share`` of it where the run never lowers its rate."""
    gain, error = raced.gain(raced.best)
    flat = not gain > max(2 * error, 1e-6 * abs(raced.first))
    winner = _harmless(raced) if flat else _winner(raced)
    shorter = (raced.steps / max(planned, raced.steps)) ** HORIZON
    cliff = _cliff(raced, winner)
    value = share * min(math.sqrt(winner * shorter * cliff / BELOW_CLIFF), cliff / LEAST_BELOW_CLIFF)
    who = "the highest rate that does no harm" if flat else "winner"
    rule = (
        f"geometric mean of {who} * (steps / planned) ** 0.2 and 1/20 of the lowest rate above it that gains nothing; "
        "at most 1/12 of that"
    ) + ("" if share == 1 else f"; {share:g} of it, because the schedule never lowers the rate")
    warnings = []
    if flat:
        warnings.append(
            "flat: no rate gains more within the race than the noise of the held-out rows; the weights may be trained "
            "already, or the gradient does not reach them"
        )
    if bracket.overshoots is not None and value > bracket.overshoots:
        value, rule = bracket.overshoots, "the rate beyond which the optimizer overshoots; the race went higher"
    if not flat and raced.open_end is not None:
        warnings.append(f"the {raced.open_end} end of the bracket won: the best rate may lie beyond it")
    if 0 < gain < 4 * error:
        warnings.append(f"noise: the winner's gain, {gain:.3g}, is uncertain by {error:.2g}")
    useful = [probe.rate for probe in raced.probes if probe.score < raced.first]
    interval = value / _WIDER, max([_WIDER * value, *(2 * rate for rate in useful)])
    evidence = _evidence(raced, bracket, planned, rule)
    seen = cliff if cliff <= raced.probes[-1].rate else math.inf
    evidence["highest"] = _finite(min(share * seen / _RAISED_BELOW_CLIFF, bracket.overshoots or math.inf))
    return Rate(value, interval, math.ceil(bracket.cost + raced.cost), evidence, tuple(warnings))


def _winner(raced: Race) -> float:
    """The highest rate that misses at most a small share of the best gain."""
    enough = raced.best.score + GOOD_ENOUGH * (raced.first - raced.best.score)
    return max(probe.rate for probe in raced.probes if probe.score <= enough)


def _harmless(raced: Race) -> float:
    """The highest rate behind which the loss is not higher than before by more than the best gain is uncertain."""
    _, error = raced.gain(raced.best)
    return max(
        (probe.rate for probe in raced.probes if probe.score <= raced.first + error), default=raced.probes[0].rate
    )


def _cliff(raced: Race, winner: float) -> float:
    """The lowest rate above the winner's that gains nothing; the next beyond the field where all of it gains."""
    beyond = raced.probes[-1].rate * raced.ratio
    above = [probe for probe in raced.probes if probe.rate > winner]
    return next((probe.rate for probe in above if not probe.score < raced.first), beyond)


def _evidence(raced: Race, bracket: Bracket, planned: int, rule: str) -> dict[str, Any]:
    gain, error = raced.gain(raced.best)
    swept = bracket.sweep
    found = {
        "rule": rule,
        "planned_steps": planned,
        "edge": bracket.edge,
        "sweep": None if swept is None else asdict(swept),
        "race": {
            "steps": raced.steps,
            "together": raced.together,
            "why": raced.why,
            "times_one": raced.times_one,
            "before": raced.first,
            "gain": gain,
            "gain_error": error,
            "rates": [probe.rate for probe in raced.probes],
            "scores": [probe.score for probe in raced.probes],
            "losses": [probe.losses for probe in raced.probes],
        },
    }
    plain: dict[str, Any] = _finite(found)
    return plain


def _finite(value: Any) -> Any:
    """None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
