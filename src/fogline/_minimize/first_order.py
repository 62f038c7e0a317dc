"""Methods that step along the gradient and its running averages: gradient descent, momentum, Nesterov, Adam."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fogline._minimize.curvature import Survey, first_length
from fogline._minimize.line_methods import Move
from fogline._minimize.problem import Point, Problem, norm


class Memory(NamedTuple):
    """What a first-order rule carries from step to step.

    Attributes:
        velocity: running average of the gradient, or the last displacement, shape (n,).
        square: running average of the squared gradient, shape (n,).
        age: steps since the last restart.
    """

    velocity: Tensor
    square: Tensor
    age: int


Rule = Callable[[Memory, Tensor, float], tuple[Tensor, Memory]]


def gradient_rule(memory: Memory, grad: Tensor, lr: float) -> tuple[Tensor, Memory]:
    """``d = -lr g``."""
    return grad * -lr, memory


def momentum_rule(momentum: float | None, *, nesterov: bool) -> Rule:
    """Heavy ball ``v = b v - lr g, d = v`` (Polyak 1964), or ``d = b v - lr g`` (Nesterov 1983).

    Without a momentum it grows as ``k / (k + 3)`` since the last restart (O'Donoghue & Candes 2015).
    """

    def rule(memory: Memory, grad: Tensor, lr: float) -> tuple[Tensor, Memory]:
        share = memory.age / (memory.age + 3) if momentum is None else momentum
        velocity = share * memory.velocity - lr * grad
        heading = share * velocity - lr * grad if nesterov else velocity
        return heading, Memory(velocity, memory.square, memory.age + 1)

    return rule


def adam_rule(betas: tuple[float, float]) -> Rule:
    """Adam (Kingma & Ba 2015): ``d = -lr m / (sqrt(v) + e)`` with bias-corrected averages.

    Its ``e`` is 1e-8 of the largest ``sqrt(v)`` instead of 1e-8, so that scaling the function changes no step.
    """
    first, second = betas

    def rule(memory: Memory, grad: Tensor, lr: float) -> tuple[Tensor, Memory]:
        count = memory.age + 1
        velocity = first * memory.velocity + (1 - first) * grad
        square = second * memory.square + (1 - second) * grad * grad
        root = (square / (1 - second**count)).sqrt()
        floor = 1e-8 * float(root.max().item()) + torch.finfo(grad.dtype).tiny
        return velocity * (-lr / (1 - first**count)) / (root + floor), Memory(velocity, square, count)

    return rule


class FirstOrder(ABC):
    """What the ways of setting the step size share: the rule, the bounds, and the estimate of what is left.

    Without an ``lr`` the first one is measured at the start.
    """

    patience = 10
    careful = True

    def __init__(self, problem: Problem, rule: Rule, start: Point, lr: float | None = None):
        self.problem, self.rule = problem, rule
        zero = torch.zeros_like(start.x)
        self.memory = self.fresh = Memory(zero, zero, 0)
        if lr is None:
            unit, _ = rule(self.fresh, start.grad, 1.0)
            lr = first_length(problem, start, unit) if start.steepness > 0 else 1.0
        self.lr = lr
        self.curvature = math.nan
        self.recent: deque[float] = deque([math.inf], maxlen=self.patience)

    def prepare(self, point: Point) -> float:
        """What is left to gain, ``|g|^2 / (2 c)`` with c the curvature along the last step, and at least what the
        last steps changed."""
        steepness = norm(self.problem.free_gradient(point))
        if steepness == 0:
            return 0.0
        left = 0.5 * steepness * steepness / self.curvature if self.curvature > 0 else math.inf
        return max(left, *self.recent)

    def escape(self, point: Point, seen: Survey) -> Move | None:
        """A first-order method stays at a saddle."""
        return None

    def detour(self, point: Point, seen: Survey) -> Move | None:
        """A first-order method keeps to its own steps."""
        return self.step(point)

    @abstractmethod
    def step(self, point: Point) -> Move | None:
        """The next step; None where there is none."""

    def _moved(self, before: Point, memory: Memory, heading: Tensor) -> Point:
        wanted = before.x + heading
        after = self.problem.evaluate(self.problem.project(wanted))
        if self.problem.bounds is not None:  # what a bound stops loses its speed
            memory = memory._replace(velocity=memory.velocity * (after.x == wanted))
        self.pending = memory
        return after

    def _settle(self, before: Point, after: Point) -> tuple[Tensor, Tensor]:
        self.memory = self.pending
        step, change = after.x - before.x, after.grad - before.grad
        free = self.problem.free(after)
        if free is not None:
            change = change * free
        square = float(step.dot(step).item())
        self.curvature = float(step.dot(change).item()) / square if square > 0 else math.nan
        self.recent.append(abs(after.fun - before.fun))
        return step, change


class FixedRate(FirstOrder):
    """The textbook step with the given rate, whatever comes of it."""

    careful = False

    def step(self, point: Point) -> Move | None:
        """One step; None where it is too short to change any parameter and there is no speed left."""
        heading, memory = self.rule(self.memory, point.grad, self.lr)
        after = self._moved(point, memory, heading)
        if torch.equal(after.x, point.x):
            return None
        if after.finite:
            self._settle(point, after)
        return Move(after, self.lr)


class SafeguardedRate(FirstOrder):
    """A rate that measures itself: it starts at the curvature edge, grows while steps go down, and a step that would
    go up is refused: first the memory is dropped, then the rate shortened."""

    def __init__(self, problem: Problem, rule: Rule, start: Point, *, by_curvature: bool):
        super().__init__(problem, rule, start)
        self.by_curvature = by_curvature
        self.growth = 1.1

    def step(self, point: Point) -> Move | None:
        """The first proposal that does not go up; None where even the shortest does."""
        for _ in range(60):
            heading, memory = self.rule(self.memory, point.grad, self.lr)
            after = self._moved(point, memory, heading)
            if after.fun == -math.inf:
                return Move(after, self.lr)
            if after.finite and after.fun <= point.fun and not torch.equal(after.x, point.x):
                break
            downhill = float(heading.dot(point.grad).item()) < 0
            if downhill:  # the step was too long; a heading that points uphill only carries old speed
                self.lr *= 0.5 if self.memory.age > 0 else 0.25
                self.growth = 1 + (self.growth - 1) / 2
            self.memory = self.fresh
        else:
            return None
        used = self.lr
        step, change = self._settle(point, after)
        self.growth = min(1.1, 1 + (self.growth - 1) * 1.02)
        self.lr *= self.growth
        sharpness = norm(change) / (norm(step) or 1.0)
        if self.by_curvature and sharpness * self.lr > 1:
            self.lr = 1 / sharpness
        return Move(after, used)


class SpectralGradient(FirstOrder):
    """Gradient descent with the step of Barzilai & Borwein (1988), ``s.s / s.y``, accepted when it goes below the
    highest of the last ten values (Grippo, Lampariello & Lucidi 1986; with bounds Birgin, Martinez & Raydan 2000)."""

    def __init__(self, problem: Problem, start: Point):
        super().__init__(problem, gradient_rule, start)
        self.heights: deque[float] = deque([start.fun], maxlen=10)

    def step(self, point: Point) -> Move | None:
        """One step, shortened until it is low enough; None where no length is."""
        ceiling = max(self.heights)
        for _ in range(60):
            after = self._moved(point, self.memory, point.grad * -self.lr)
            if after.fun == -math.inf:
                return Move(after, self.lr)
            promised = float(point.grad.dot(after.x - point.x).item())
            if after.finite and promised < 0 and after.fun <= ceiling + 1e-4 * promised:
                break
            self.lr *= 0.25
        else:
            return None
        used = self.lr
        self._settle(point, after)
        self.heights.append(after.fun)
        self.lr = 1 / self.curvature if self.curvature > 0 else 4 * used
        return Move(after, used)
