"""Find a learning rate: where the sweep is lowest and where the curvature sets its limit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fogline.descent.batches import Batches
from fogline.descent.clipping import Clipping
from fogline.descent.objective import Objective
from fogline.descent.optimizers import build, set_lr, spec_of
from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.descent.step import EagerStep, Machine
from fogline.rate.bracket import Sweep, sweep
from fogline.rate.curvature import edge
from fogline.recipe import Recipe

_STEPS = 100
_LOW, _HIGH = 1e-6, 10.0
_CURVATURE_BATCHES = 3


@dataclass(frozen=True)
class Rate:
    """A measured learning rate.

    Attributes:
        value: the rate to use at the top of the schedule.
        interval: the two measurements it lies between.
        cost_steps: what it cost, in training steps.
        evidence: the sweep, the edge and how they were joined; JSON-able.
        warnings: what makes it doubtful.
    """

    value: float
    interval: tuple[float, float]
    cost_steps: int
    evidence: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def measure_rate(
    objective: Objective, batches: Batches, recipe: Recipe, check: Callable[[], None] = lambda: None
) -> Rate:
    """The geometric mean of a tenth of the sweep's lowest rate and a tenth of the curvature edge.

    It works on a copy of the model with an optimizer of its own: weights, buffers, ``.grad`` and random states are
    bitwise untouched.

    Args:
        objective: model and loss.
        batches: the training data; the first batches of the run are used.
        recipe: its optimizer, options and clipping; ``lr`` is what is looked for.
        check: called between steps; may raise to stop.
    """
    device = batches.device
    spec = spec_of(recipe.optimizer)
    with private_randomness(device):
        seed_step(recipe.seed, 0, PROBE, device)
        trial = replace(objective, model=copy.deepcopy(objective.model).train())
        stream = batches.stream(0)
        few = [next(stream) for _ in range(min(_CURVATURE_BATCHES, batches.steps_per_epoch or _CURVATURE_BATCHES))]
        limit = edge(trial, few, spec, check)
        trial = replace(objective, model=copy.deepcopy(objective.model).train())
        low, high = (_LOW, _HIGH) if limit is None else (limit * 1e-4, limit * 30)
        found = _sweep(trial, batches, recipe, low, high, check)
    cost = len(found.rates) + (0 if limit is None else 3 * 12 * len(few))
    return _joined(found, limit, cost, high)


def _sweep(
    trial: Objective, batches: Batches, recipe: Recipe, low: float, high: float, check: Callable[[], None]
) -> Sweep:
    optimizer = build(
        trial.model, recipe.optimizer, low, weight_decay=recipe.weight_decay, options=dict(recipe.options)
    )
    set_lr(optimizer, low)
    like = next(trial.model.parameters())
    clipping = None if recipe.clip is None else Clipping(recipe.clip, like)
    machine = Machine(trial, optimizer, batches.device, seed=recipe.seed, clipping=clipping, parts=recipe.accumulate)
    step = EagerStep(machine, batches, deferred=False)
    return sweep(machine, step, batches.stream(0), low, high, _STEPS, check)


def _joined(found: Sweep, limit: float | None, cost: int, high: float) -> Rate:
    warnings = []
    tenth = found.lowest / 10
    if not found.rates:
        warnings.append("no step of the sweep was finite")
    elif not found.blew_up:
        warnings.append("the loss never blew up: the upper end of the bracket is open")
    if found.smoothed and max(found.smoothed) - min(found.smoothed) < 1e-6 * abs(max(found.smoothed)):
        warnings.append("the loss is flat over the whole sweep")
    if limit is None:
        value, interval = tenth, (tenth / 3, tenth * 3)
    else:
        value = math.sqrt(tenth * limit / 10)
        interval = (min(tenth, limit / 10), max(tenth, limit / 10))
    evidence = {
        "sweep": {"rates": found.rates, "losses": found.losses, "lowest": found.lowest, "blew_up": found.blew_up},
        "edge": limit,
        "rule": "geometric mean of (lowest of the sweep) / 10 and edge / 10",
        "bracket_high": high,
    }
    return Rate(value, interval, cost, evidence, tuple(warnings))
