"""What the Hessian says: the natural first step length, and whether a flat place is a minimum or a saddle."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fogline._minimize.problem import Point, Problem, norm
from fogline.lanczos import lanczos

PRODUCTS = 10  # Hessian-vector products spent on one look at the curvature


@dataclass(frozen=True)
class Survey:
    """What a few Hessian-vector products say about a flat place.

    Attributes:
        smallest: smallest curvature found.
        largest: largest curvature found, in absolute value.
        downward: unit vector of the smallest curvature, shape (n,).
        left: what Newton's step among the directions seen would gain, ``g' H^-1 g / 2``; infinite where they have
            a slope and no curvature.
        heading: that step, shape (n,).
        blind: whether some direction's curvature drowns in rounding, so that nothing is known about it.
    """

    smallest: float
    largest: float
    downward: Tensor
    left: float
    heading: Tensor
    blind: bool

    @property
    def bends_down(self) -> bool:
        """Whether the smallest curvature is negative beyond what rounding makes of zero."""
        return bool(self.smallest < -(torch.finfo(self.downward.dtype).eps ** (3 / 8)) * self.largest)


def first_length(problem: Problem, point: Point, direction: Tensor) -> float:
    """The step along a downhill direction that minimises the parabola of slope and curvature at the point.

    Where the curvature is zero, one that would bring the value to zero were the slope to last; each of these keeps
    its meaning when the function or the parameters are multiplied by a number.
    """
    slope = -float(point.grad.dot(direction).item())
    bend = abs(float(direction.dot(problem.curvature(point.x)(direction)).item()))
    length = slope / bend if bend > 0 else math.inf
    if math.isfinite(length) and length > 0:
        return length
    reach, to_zero = norm(direction), abs(point.fun) / slope if slope > 0 else math.inf  # the square of 1e-25 is 0
    for guess in (to_zero, 0.1 * norm(point.x) / reach, 1 / reach):
        if math.isfinite(guess) and guess > 0:
            return guess
    return 1.0


def survey(problem: Problem, point: Point) -> Survey:
    """Look at the curvature among the free parameters, along a fixed random direction (does it bend down anywhere?)
    and along the gradient (how much is left to gain?)."""
    product, free = problem.curvature(point.x), problem.free(point)
    noise = torch.randn(point.x.numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grad = problem.free_gradient(point)

    def among_free(vector: Tensor) -> Tensor:
        return product(vector) if free is None else product(vector) * free

    looked = [
        lanczos(among_free, start if free is None else start * free, PRODUCTS) for start in (noise.to(point.x), grad)
    ]
    ends = [
        (float(values[0].item()), basis @ vectors[:, 0], values) for basis, values, vectors in looked if len(values)
    ]
    nothing = torch.zeros_like(point.x)
    if not ends:  # every parameter is held by a bound
        return Survey(0.0, 0.0, nothing, 0.0, nothing, blind=False)
    smallest, downward, _ = min(ends, key=lambda end: end[0])
    largest = max(float(values.abs().max().item()) for _, _, values in ends)
    basis, values, vectors = looked[1]
    sure = values > 100 * torch.finfo(point.x.dtype).eps * largest  # below this a curvature is rounding
    directions = basis @ vectors[:, sure]
    slopes = directions.T @ grad
    heading = -(directions @ (slopes / values[sure]))
    left = -0.5 * float(heading.dot(grad).item()) if sure.any() or not len(values) else math.inf
    return Survey(smallest, largest, downward, left, heading, blind=bool((~sure).any()))
