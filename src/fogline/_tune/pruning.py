"""Which trials are ended on their way because others are better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import optuna

from fogline._tune.plan import Plan
from fogline._tune.sampling import RUNGS, WHOLE, Sampler
from fogline._tune.space import RATE

REDUCTION = 3
KEEP = {1: 1 / 3, 3: 1 / 2}
"""The best share of all that were compared at a rung goes on, at least one: rounded up, so that a few trials are not
judged by the luck of the first (docs/LOG.md)."""
FAIR, LOWEST = 0.15, 1 / 9
"""The chance of being the best with which a trial goes on; and the share of a rung that does whatever its chance."""


def make_pruner(plan: Plan, sampler: Sampler) -> Any:
    """Optuna's pruner over ninths of a trial."""
    if plan.pruning == "none":
        return optuna.pruners.NopPruner()
    if plan.pruning == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=RUNGS[-1], reduction_factor=REDUCTION)
    return Halving(sampler)


class Halving(optuna.pruners.BasePruner):  # type: ignore[misc]
    """Asynchronous successive halving: a trial goes on where its loss is among the lowest of all that came to its rung.

    Once a trial is whole and the sampler believes something, it goes on where it has a fair chance to end below all
    others: some settings start slowly, and what such settings came to is known by then; and of many near copies of the
    best, which all have low losses, only those that may be better are worth their steps. The very lowest always go on.

    Args:
        sampler: whose belief is asked.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def prune(self, study: Any, trial: Any) -> bool:
        part = trial.last_step
        if part not in KEEP or (trial.number in WHOLE and self.sampler.opening and RATE in self.sampler.space):
            return False
        trials = study.get_trials(deepcopy=False)
        losses = [each.intermediate_values[part] for each in trials if part in each.intermediate_values]
        chance = None
        if any(each.state == optuna.trial.TrialState.COMPLETE for each in trials):
            chance = self.sampler.chance(study, trial)
        if chance is None:
            return not goes_on(trial.intermediate_values[part], losses, KEEP[part])
        return chance < FAIR and not goes_on(trial.intermediate_values[part], losses, LOWEST)


def goes_on(loss: float, losses: Sequence[float], share: float) -> bool:
    """Whether a loss is among the best share of losses, its own among them.

    >>> goes_on(2.0, [1.0, 2.0], 1 / 3), goes_on(2.0, [1.0, 2.0, 3.0, 4.0], 1 / 3)
    (False, True)
    """
    return sum(other < loss for other in losses) < math.ceil(share * len(losses))
