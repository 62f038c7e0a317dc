"""What is tried next, all of it seeded by number.

First an opening that takes its turn through the choices, at rates around the measured one. Then, with ``method="gp"``,
the setting whose expected gain over the best is largest, by what all trials so far say (``belief.py``), pruned ones
too; otherwise what Optuna's own sampler says. The generator of a trial is derived from the seed and the trial's number,
so there is nothing to save: a search that was stopped and goes on makes the suggestions it would have made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor

from fogline._tune.belief import Belief, Cube, expected_gain, placed
from fogline._tune.plan import Plan
from fogline._tune.space import RATE, Dimension, Span, label

RUNGS = (1, 3, 9)
"""Ninths of a trial at which it is compared with the others, and its end."""
NEAR, ABOVE = 3.0, 1.5
"""Where the best rate is expected: around this multiple of the measured one, one standard deviation of its logarithm
this factor away. Short trials want a little more than a run of full length."""
OWN = ("lr", "schedule", "warmup", "weight_decay")
"""Fields that trials in one program may each have their own of."""
OPENING = (1.0, 0.5, 4.0, 2.0, 1.0, 0.5, 2.0, 4.0)
"""The multiples of the measured rate that the opening tries, in turn."""
WHOLE = (2, 7)
"""Trials of the opening that are trained to their end whatever their losses on the way: what high rates come to, once
they are lowered, cannot be told early."""
_TRUST = 10.0
"""The gain of a candidate counts by how likely its rate is, to a power that falls as this over the number of trials
(Hvarfner et al., 2022, arXiv:2204.11051): far ends are looked at late."""
_CANDIDATES = 256  # drawn anywhere, and as many near the best
_BEST = 6  # settings that candidates are drawn near to
_FINISHED = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
_WHOLE = float(RUNGS[-1])


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
    """The opening, then the largest expected gain, or Optuna's TPE, CMA-ES or random numbers.

    Args:
        plan: of the search.
        space: as Optuna sees it.
        usual: the values of the first trial, by name, as they are stored.
        reach: the ends of the multiples of the measured rate for some values; for all where it is not measured yet.

    Attributes:
        fixed: values that all trials asked for from now on share.
    """

    def __init__(
        self,
        plan: Plan,
        space: dict[str, BaseDistribution],
        usual: Mapping[str, Any],
        reach: Callable[[Mapping[str, Any]], tuple[float, float]] = lambda values: (0.0, math.inf),
    ) -> None:
        self.plan, self.space, self.usual, self.reach = plan, space, usual, reach
        self.fixed: Mapping[str, Any] = {}
        self.opening = 0 if plan.method == "random" else len(OPENING)
        self.cube = Cube(space)
        self._fitted: tuple[list[int], Belief | None] = ([], None)

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        return self.space

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        if trial.number < self.opening:
            return self._reached({**opening(trial.number, self.space, self.usual, self.plan.together), **self.fixed})
        belief = self.belief(study) if self.plan.method == "gp" else None
        if belief is not None:
            return self._most_promising(study, trial.number, belief)
        left = {name: each for name, each in search_space.items() if name not in self.fixed}
        return {**self._inner(trial.number).sample_relative(study, trial, left), **self.fixed}

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: BaseDistribution) -> Any:
        return self._inner(trial.number).sample_independent(study, trial, name, distribution)

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        self._inner(trial.number).after_trial(study, trial, state, values)

    def belief(self, study: Any) -> Belief | None:
        """What the trials that are over say; None before there is one."""
        over = study.get_trials(deepcopy=False, states=_FINISHED)
        numbers = [each.number for each in over]
        if numbers != self._fitted[0]:
            self._fitted = numbers, self._believed(over, None)
        return self._fitted[1]

    def chance(self, study: Any, trial: Any) -> float | None:
        """How likely a trial that runs is to end clearly below all that was seen, by all looks so far.

        Returns:
            None where nothing is believed yet.
        """
        belief = self.belief(study) if self.plan.method == "gp" else None
        if belief is None:
            return None
        told = self._believed(study.get_trials(deepcopy=False), belief)
        assert told is not None
        mean, deviation = told.at(self._points([trial]))
        return float(torch.special.ndtr((told.goal - mean) / deviation))

    def _believed(self, trials: Sequence[Any], fitted: Belief | None) -> Belief | None:
        """A belief from looks at trials; with the lengths of one that was fitted, where that is given."""
        rows = [(trial, part, loss) for trial in trials for part, loss in looks(trial)]
        if not rows:
            return None
        points = self._points([trial for trial, _, _ in rows])
        shares, losses = [part / _WHOLE for _, part, _ in rows], [loss for _, _, loss in rows]
        return Belief(self.cube, points, shares, losses, None if fitted is None else fitted.free)

    def _points(self, trials: Sequence[Any]) -> Tensor:
        rows = [self.cube.point(trial.params) for trial in trials]
        return torch.tensor(rows, dtype=torch.float64, device="cpu").reshape(len(rows), len(self.space))

    def _most_promising(self, study: Any, number: int, belief: Belief) -> dict[str, Any]:
        """The candidate with the largest expected gain, if trials that run or were pruned end as expected.

        Else a place where all are pruned would stay promising: nobody ever saw an end there.
        """
        trials = study.get_trials(deepcopy=False)
        known = self._points([trial for trial in trials if looks(trial) and trial.state in _FINISHED])
        others = [each for each in trials if each.number != number and each.params.keys() == self.space.keys()]
        open_ended = [each for each in others if RUNGS[-1] not in dict(looks(each))]
        if open_ended:
            belief = belief.believing(self._points(open_ended))
        best = known[belief.at(known)[0].argsort(stable=True)[:_BEST]].tolist()
        generator = np.random.default_rng((self.plan.recipe.seed, number))
        drawn = [*anywhere(generator, self.space, _CANDIDATES), *near(generator, self.space, best, _CANDIDATES)]
        candidates = [self._reached({**self.cube.values(point), **self.fixed}) for point in drawn]
        points = torch.tensor([self.cube.point(each) for each in candidates], dtype=torch.float64, device="cpu")
        gain = expected_gain(*belief.at(points), belief.goal, belief.noise)
        trust = _TRUST / (number + 1)
        likely = [likelihood(each[RATE]) ** trust if RATE in each else 1.0 for each in candidates]
        return candidates[int((gain * torch.tensor(likely, dtype=torch.float64, device="cpu")).argmax())]

    def _reached(self, values: dict[str, Any]) -> dict[str, Any]:
        """With a rate that lies within the range that was given."""
        if RATE in values:
            low, high = self.reach(values)
            values[RATE] = min(max(values[RATE], low), high)
        return values

    def _inner(self, number: int) -> Any:
        seed = (self.plan.recipe.seed * 1_000_003 + number) % 2**32
        tpe = optuna.samplers.TPESampler(n_startup_trials=2, multivariate=True, seed=seed, constant_liar=True)
        if self.plan.method == "cmaes":
            return optuna.samplers.CmaEsSampler(
                n_startup_trials=2, seed=seed, independent_sampler=tpe, warn_independent_sampling=False
            )
        return optuna.samplers.RandomSampler(seed=seed) if self.plan.method == "random" else tpe


def looks(trial: Any) -> list[tuple[int, float]]:
    """(Ninths of the trial, loss) wherever it was compared, and at its end; infinite from where it did not train."""
    seen = dict(trial.intermediate_values)
    if trial.state.name == "COMPLETE":
        seen[RUNGS[-1]] = trial.value
    if trial.user_attrs.get("ended") in ("diverged", "failed"):
        seen = dict.fromkeys(RUNGS, math.inf) | seen
    return sorted(seen.items())


def opening(
    number: int, space: Mapping[str, BaseDistribution], usual: Mapping[str, Any], together: int
) -> dict[str, Any]:
    """The values of an early trial: the usual ones first; then choices by turns and ranges filled evenly.

    The points of the ranges are those of an additive recurrence with the generalised golden ratio (Roberts, 2018). The
    learning rate takes its turn through a few multiples of the measured one. A choice that trials in one program must
    share takes its turn when the next program begins.

    Args:
        number: of the trial.
        space: as Optuna sees it.
        usual: the values of the first trial.
        together: how many trials share a program.
    """
    if number == 0:
        return dict(usual)
    values: dict[str, Any] = {}
    ranges = [name for name, each in space.items() if not isinstance(each, CategoricalDistribution)]
    ratio = _golden(len(ranges))
    for name, each in space.items():
        if isinstance(each, CategoricalDistribution):
            turn = number if name in OWN else number // together
            values[name] = each.choices[(each.choices.index(usual[name]) + turn) % len(each.choices)]
        else:
            values[name] = placed(each, (0.5 + number * ratio ** -(ranges.index(name) + 1)) % 1)
    if RATE in values:
        values[RATE] = OPENING[number % len(OPENING)]
    return values


def _golden(dimensions: int) -> float:
    """The positive root of ``x^(d + 1) = x + 1``.

    >>> round(_golden(1), 6)
    1.618034
    """
    x = 1.5
    for _ in range(60):
        x = (1 + x) ** (1 / (dimensions + 1))
    return x


def _spread(name: str, distribution: BaseDistribution, share: float) -> Any:
    if name != RATE:
        return placed(distribution, share)
    factor = ABOVE * math.exp(math.log(NEAR) * NormalDist().inv_cdf(min(max(share, 1e-6), 1 - 1e-6)))
    return min(max(factor, distribution.low), distribution.high)


def likelihood(factor: float) -> float:
    """How likely it is that a multiple of the measured rate is best, before anything is known; 1 for the likeliest.

    >>> likelihood(ABOVE), round(likelihood(ABOVE * NEAR), 3)
    (1.0, 0.607)
    """
    return math.exp(-((math.log(factor / ABOVE) / math.log(NEAR)) ** 2) / 2)


def anywhere(generator: np.random.Generator, space: Mapping[str, BaseDistribution], count: int) -> list[list[float]]:
    """Points drawn evenly, save that half of the learning rates are drawn from where the best is expected."""
    points: Any = generator.uniform(size=(count, len(space)))
    for column, (name, each) in enumerate(space.items()):
        if name == RATE:
            cube = Cube({name: each})
            for row in range(count // 2):
                points[row, column] = cube.point({name: _spread(name, each, points[row, column])})[0]
    return list(points.tolist())


def near(
    generator: np.random.Generator, space: Mapping[str, BaseDistribution], best: Sequence[Sequence[float]], count: int
) -> list[list[float]]:
    """Points a tenth or so of each range away from the best ones; a choice is another one now and then."""
    points = np.array(best)[generator.integers(len(best), size=count)]
    width = 0.1 * np.exp(0.8 * generator.normal(size=(count, 1)))
    moved = np.clip(points + width * generator.normal(size=points.shape), 0, 1)
    other = np.where(generator.uniform(size=points.shape) < 0.15, generator.uniform(size=points.shape), points)
    choice = np.array([isinstance(each, CategoricalDistribution) for each in space.values()])
    return list(np.where(choice, other, moved).tolist())


def chosen_value(dimension: Dimension, stored: Any) -> Any:
    """The value of a dimension from what the study keeps."""
    if isinstance(dimension, Span):
        return stored
    return next(choice for choice in dimension if label(choice) == stored)
