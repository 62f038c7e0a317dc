"""What is tried next: an opening around the measured rate, then Optuna's own samplers; all of it seeded by number.

The generator of a trial is derived from the seed and the trial's number, so there is nothing to save: a search that was
stopped and goes on makes the suggestions it would have made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from fogline._tune.plan import Plan
from fogline._tune.space import RATE, Dimension, Span, label

REDUCTION = 3
RUNGS = (1, 3, 9)
"""Ninths of a trial at which it is compared with the others, and its end."""
KEEP = {1: 1 / 3, 3: 1 / 2}
"""The best share of all that were compared at a rung goes on, at least one: rounded up, so that a few trials are not
judged by the luck of the first (docs/LOG.md)."""
NEAR = 2.0
"""One standard deviation of the opening's rates is this factor away from the measured one."""


def distributions(plan: Plan, rates: tuple[float, float] | None) -> dict[str, BaseDistribution]:
    """The space as Optuna sees it; ``rates`` are the ends of the learning rate as multiples of the measured one."""
    found: dict[str, BaseDistribution] = {}
    for name, dimension in plan.space.dimensions.items():
        if name == "lr":
            assert rates is not None
            found[RATE] = FloatDistribution(*rates, log=True)
        elif isinstance(dimension, tuple):
            found[name] = CategoricalDistribution([label(choice) for choice in dimension])
        else:
            assert isinstance(dimension, Span)
            kind = IntDistribution if dimension.whole else FloatDistribution
            found[name] = kind(dimension.low, dimension.high, log=dimension.logarithmic)
    return found


class Sampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """The opening, then TPE, CMA-ES or random numbers.

    Args:
        plan: of the search.
        space: as Optuna sees it.
        usual: the values of the first trial, by name, as they are stored.
        fixed: values that all trials asked for from now on share.
    """

    def __init__(self, plan: Plan, space: dict[str, BaseDistribution], usual: Mapping[str, Any]) -> None:
        self.plan, self.space, self.usual = plan, space, usual
        self.fixed: Mapping[str, Any] = {}
        self.opening = 0 if plan.method == "random" else opening_length(len(space))

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        return self.space

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        left = {name: each for name, each in search_space.items() if name not in self.fixed}
        if trial.number < self.opening:
            chosen = opening(trial.number, left, self.usual)
        else:
            chosen = self._inner(trial.number).sample_relative(study, trial, left)
        return {**chosen, **self.fixed}

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: BaseDistribution) -> Any:
        return self._inner(trial.number).sample_independent(study, trial, name, distribution)

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        self._inner(trial.number).after_trial(study, trial, state, values)

    def _inner(self, number: int) -> Any:
        seed = (self.plan.recipe.seed * 1_000_003 + number) % 2**32
        tpe = optuna.samplers.TPESampler(n_startup_trials=2, multivariate=True, seed=seed, constant_liar=True)
        if self.plan.method == "cmaes":
            return optuna.samplers.CmaEsSampler(
                n_startup_trials=2, seed=seed, independent_sampler=tpe, warn_independent_sampling=False
            )
        return optuna.samplers.RandomSampler(seed=seed) if self.plan.method == "random" else tpe


def make_pruner(plan: Plan) -> Any:
    """Optuna's pruner over ninths of a trial."""
    if plan.pruning == "none":
        return optuna.pruners.NopPruner()
    if plan.pruning == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=RUNGS[-1], reduction_factor=REDUCTION)
    return Halving()


class Halving(optuna.pruners.BasePruner):  # type: ignore[misc]
    """Asynchronous successive halving: a trial goes on where it is among the best of all that came to its rung."""

    def prune(self, study: Any, trial: Any) -> bool:
        part = trial.last_step
        if part not in KEEP:
            return False
        there = study.get_trials(deepcopy=False)
        losses = [each.intermediate_values[part] for each in there if part in each.intermediate_values]
        return not goes_on(trial.intermediate_values[part], losses, KEEP[part])


def goes_on(loss: float, losses: Sequence[float], share: float) -> bool:
    """Whether a loss is among the best share of losses, its own among them.

    >>> goes_on(2.0, [1.0, 2.0], 1 / 3), goes_on(2.0, [1.0, 2.0, 3.0, 4.0], 1 / 3)
    (False, True)
    """
    return sum(other < loss for other in losses) < math.ceil(share * len(losses))


def opening_length(dimensions: int) -> int:
    """Trials that are spread evenly before any sampler learns from them."""
    return min(6, 1 + dimensions)


def opening(number: int, space: Mapping[str, BaseDistribution], usual: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an early trial: the usual ones first, then points that fill the space evenly.

    The points are those of an additive recurrence with the generalised golden ratio (Roberts, 2018). The learning rate
    is spread as a normal distribution of its logarithm around the measured one.
    """
    if number == 0:
        return {name: usual[name] for name in space}
    ratio = _golden(len(space))
    return {
        name: _placed(name, distribution, (0.5 + number * ratio ** -(k + 1)) % 1)
        for k, (name, distribution) in enumerate(space.items())
    }


def _golden(dimensions: int) -> float:
    """The positive root of ``x^(d + 1) = x + 1``.

    >>> round(_golden(1), 6)
    1.618034
    """
    x = 1.5
    for _ in range(60):
        x = (1 + x) ** (1 / (dimensions + 1))
    return x


def _placed(name: str, distribution: BaseDistribution, share: float) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(share * len(distribution.choices))]
    if name == RATE:
        factor = math.exp(math.log(NEAR) * NormalDist().inv_cdf(min(max(share, 1e-6), 1 - 1e-6)))
        return min(max(factor, distribution.low), distribution.high)
    return Span(distribution.low, distribution.high, distribution.log).at(share)


def chosen_value(dimension: Dimension, stored: Any) -> Any:
    """The value of a dimension from what the study keeps."""
    if isinstance(dimension, Span):
        return stored
    return next(choice for choice in dimension if label(choice) == stored)
