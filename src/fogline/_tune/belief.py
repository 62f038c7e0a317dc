"""What the trials so far say of a setting that was not tried: a Gaussian process over settings and lengths of a trial.

A setting is a point of the unit cube, a coordinate for each choice. Losses at a ninth, at a third and at the end of a
trial are all told, as noisy looks at one surface that changes slowly with the length (Klein et al., 2020,
arXiv:2003.10865), so that a pruned trial teaches as well. Adding to all
losses or multiplying them changes nothing.

The covariance of two looks at settings ``x`` and ``z`` after the shares ``s`` and ``t`` of a trial is::

    v M(r) exp(-c |log s - log t|) + (how low losses are at all) + (and for this share)
    M(r) = (1 + sqrt(5) r + 5 r^2 / 3) exp(-sqrt(5) r)        Matern 5/2,  r^2 = sum over choices of (x - z)^2 / l^2

``v``, ``c``, the noise and a length ``l`` for each choice are those of the highest probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution
from torch import Tensor

from fogline._minimize import minimize
from fogline._tune.space import RATE, Span

_LENGTH, _LENGTH_OF_RATE = 1.0, 0.25  # of the whole range, before anything is known
_USUAL = (1.0, 0.02, 0.3)  # v, the noise's variance, c
_SPREAD = (0.8, 0.7, 1.2, 0.8)  # of the logarithms of l, v, the noise and c
_COMMON, _OF_SHARE = 1.0, 2.0  # variances of how low losses are
_STEPS = 12
_MOST, _MOST_FITTED = 300, 120  # looks that count, and of them those that lengths are fitted to: the latest
_JITTER = 1e-6
_WORTHWHILE = 0.1
_TINY = 1e-300
_DOES_NOT_TRAIN = 0.5


class Cube:
    """A space as a unit cube.

    Args:
        space: as Optuna sees it. Choices that are numbers in rising order are a coordinate as well; others have no
            order, and any two are as far apart.
    """

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.space = dict(space)

    def point(self, values: Mapping[str, Any]) -> list[float]:
        """Where values lie."""
        return [self._share(each, values[name]) for name, each in self.space.items()]

    def values(self, point: Sequence[float]) -> dict[str, Any]:
        """What lies at a point."""
        return {name: placed(each, share) for (name, each), share in zip(self.space.items(), point, strict=True)}

    def squares(self, some: Tensor, others: Tensor) -> Tensor:  # (n, d), (m, d) -> (d, n, m)
        """Squared distances along each coordinate."""
        apart = (some.T[:, :, None] - others.T[:, None, :]).square()
        plain = torch.tensor([self._ordered(each) for each in self.space.values()], device=some.device)
        return torch.where(plain[:, None, None], apart, (apart > 0).to(apart.dtype))

    def lengths(self) -> list[float]:
        """Over how much of a coordinate a loss changes, before anything is known."""
        return [_LENGTH_OF_RATE if name == RATE else _LENGTH for name in self.space]

    @staticmethod
    def _ordered(distribution: BaseDistribution) -> bool:
        if not isinstance(distribution, CategoricalDistribution):
            return True
        numbers = [x for x in distribution.choices if isinstance(x, int | float) and not isinstance(x, bool)]
        return len(numbers) == len(distribution.choices) and numbers == sorted(numbers)

    @staticmethod
    def _share(distribution: Any, value: Any) -> float:
        if isinstance(distribution, CategoricalDistribution):
            place: int = distribution.choices.index(value)
            return (place + 0.5) / len(distribution.choices)
        low, high = float(distribution.low), float(distribution.high)
        if distribution.log:
            return math.log(value / low) / math.log(high / low)
        return (float(value) - low) / (high - low)


def placed(distribution: Any, share: float) -> Any:
    """The value that lies this share of the way through a distribution.

    >>> placed(CategoricalDistribution(["a", "b", "c"]), 0.5)
    'b'
    """
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[min(int(share * len(distribution.choices)), len(distribution.choices) - 1)]
    return Span(distribution.low, distribution.high, distribution.log).at(share)


class Belief:
    """A Gaussian process fitted to looks at trials.

    Args:
        cube: that the points lie in.
        points: of the settings looked at.
        shares: of a trial after which they were looked at.
        losses: infinite where a setting does not train.
        free: the logarithms of the lengths, ``v``, the noise's variance and ``c``; by default fitted.

    Attributes:
        goal: a score that would be worthwhile: lower than the lowest seen by a tenth of their standard deviation.
    """

    def __init__(
        self,
        cube: Cube,
        points: Tensor,  # (n, d)
        shares: Sequence[float],
        losses: Sequence[float],
        free: Tensor | None = None,
    ) -> None:
        self.cube = cube
        self.factor: Tensor
        self.weights: Tensor
        self.points, self.logs = points[-_MOST:], _tensor(np.log(shares))[-_MOST:]
        self.scores = scores_of(losses[-_MOST:])
        self.goal = self.scores.min() - _WORTHWHILE
        self.free = self._fitted() if free is None else free
        self._condition()

    def _fitted(self) -> Tensor:
        """The logarithms of the lengths and the rest at which the latest scores are most probable."""
        logs, scores = self.logs[-_MOST_FITTED:], self.scores[-_MOST_FITTED:]
        squares = self.cube.squares(self.points[-_MOST_FITTED:], self.points[-_MOST_FITTED:])
        start = _tensor([math.log(x) for x in (*self.cube.lengths(), *_USUAL)])
        spread = _tensor([_SPREAD[0]] * len(self.cube.space) + [*_SPREAD[1:]])

        def surprise(free: Tensor) -> Tensor:
            """Minus the logarithm of the probability of the scores and of the free numbers, up to a constant."""
            factor = self._factor(free, squares, logs)
            seen = torch.linalg.solve_triangular(factor, scores[:, None], upper=False)
            unusual = ((free - start) / spread).square().sum() / 2
            total: Tensor = seen.square().sum() / 2 + factor.diagonal().log().sum() + unusual
            return total

        return _tensor(minimize(surprise, start, max_steps=_STEPS, path="none").x)

    def at(self, points: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:  # (m, d) -> (m), (m)
        """Expected score after a share of a trial, and its standard deviation; low scores are good."""
        logs = torch.full((len(points),), math.log(share), dtype=torch.float64, device="cpu")
        across = self._covariance(self.free, self.cube.squares(points, self.points), logs, self.logs)
        seen = torch.linalg.solve_triangular(self.factor, across.T, upper=False)
        before = self.free[len(self.cube.space)].exp() + _COMMON + _OF_SHARE
        return across @ self.weights, (before - seen.square().sum(0)).clamp_min(1e-9).sqrt()

    @property
    def noise(self) -> Tensor:
        """Standard deviation of a look at a score."""
        return self.free[len(self.cube.space) + 1].exp().sqrt()

    def believing(self, points: Tensor) -> Belief:  # (m, d)
        """What would be believed if whole trials at these points came out as expected."""
        other = object.__new__(Belief)
        other.cube, other.free, other.goal = self.cube, self.free, self.goal
        other.points = torch.cat([self.points, points])
        other.logs = torch.cat([self.logs, torch.zeros(len(points), dtype=torch.float64, device="cpu")])
        other.scores = torch.cat([self.scores, self.at(points)[0]])
        other._condition()
        return other

    def _condition(self) -> None:
        self.factor = self._factor(self.free, self.cube.squares(self.points, self.points), self.logs)
        self.weights = torch.cholesky_solve(self.scores[:, None], self.factor)[:, 0]

    def _factor(self, free: Tensor, squares: Tensor, logs: Tensor) -> Tensor:
        noise = free[len(self.cube.space) + 1].exp() + _JITTER
        covariance = self._covariance(free, squares, logs, logs)
        factor: Tensor = torch.linalg.cholesky_ex(
            covariance + noise * torch.eye(len(covariance), dtype=torch.float64, device="cpu")
        )[0]
        return factor

    def _covariance(self, free: Tensor, squares: Tensor, logs: Tensor, others: Tensor) -> Tensor:
        count = len(self.cube.space)
        root = (5 * torch.einsum("d,dij->ij", (-2 * free[:count]).exp(), squares) + 1e-12).sqrt()
        apart = (logs[:, None] - others[None, :]).abs()
        alike = (1 + root + root.square() / 3) * torch.exp(-root - free[count + 2].exp() * apart)
        covariance: Tensor = free[count].exp() * alike + _COMMON + _OF_SHARE * (apart < 1e-9)
        return covariance


def expected_gain(mean: Tensor, deviation: Tensor, goal: Tensor, noise: Tensor) -> Tensor:
    """By how much a score is expected to fall below the goal, less what only the noise would add.

    Augmented expected improvement (Huang et al., 2006): where a look would tell little more than is known, for one like
    it was made before, ``1 - noise / sqrt(deviation^2 + noise^2)`` is near 0.

    >>> one, none = torch.ones(1), torch.zeros(1)
    >>> expected_gain(none, one, none, none), expected_gain(none, one, none, one)  # 1 / sqrt(2 pi), and 0.29 of it
    (tensor([0.3989]), tensor([0.1168]))
    """
    z = (goal - mean) / deviation
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    news = 1 - noise / (deviation.square() + noise.square()).sqrt()
    gain: Tensor = deviation * (z * torch.special.ndtr(z) + density) * news
    return gain


def scores_of(losses: Sequence[float]) -> Tensor:
    """Losses on a scale on which what is below the median counts as it is, and what is far above it hardly does.

    It is ``asinh((loss - median) / (median - lowest))``, which adding to the losses and multiplying them leaves alone;
    infinite losses lie a little above all others. The mean is 0, the standard deviation 1.

    >>> scores_of([2.0, 1.0, 3.0, 1e9, math.inf]).round(decimals=2)
    tensor([-0.8200, -0.8700, -0.7600,  1.2000,  1.2500], dtype=torch.float64)
    """
    seen = np.asarray(losses, dtype=np.float64)
    finite = seen[np.isfinite(seen)]
    if not len(finite):
        return torch.zeros(len(seen), dtype=torch.float64, device="cpu")
    middle = float(np.median(finite))
    unit = max(middle - float(finite.min()), 1e-12 * abs(middle), _TINY)
    scores = np.arcsinh((np.where(np.isfinite(seen), seen, finite.max()) - middle) / unit)
    scores = np.where(np.isfinite(seen), scores, scores.max() + _DOES_NOT_TRAIN)
    return _tensor((scores - scores.mean()) / max(float(scores.std()), 1e-9))


def _tensor(numbers: Any) -> Tensor:
    return torch.tensor(np.asarray(numbers), dtype=torch.float64, device="cpu")
