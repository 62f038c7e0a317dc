"""Methods that choose a direction from a model of the curvature and search along it: L-BFGS, BFGS, Newton-CG."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fogline._minimize.curvature import Survey, first_length
from fogline._minimize.linesearch import Trial, projected_wolfe, strong_wolfe
from fogline._minimize.problem import Point, Problem, norm


@dataclass(slots=True)
class Move:
    """A step that was taken: the place it led to, and its step size."""

    point: Point
    lr: float


class LimitedMemory:
    """Inverse Hessian from the last pairs of step s and gradient change y (L-BFGS, Nocedal 1980).

    The two-loop recursion touches the pairs one by one; here both loops are triangular systems in the pairs' inner
    products (Byrd, Nocedal & Schnabel 1994), so that a direction costs four matrix-vector products whatever the
    history: with ``R = triu(S Y')``, ``D = diag(R)`` and the newest pair's ``c = s.y / y.y``::

        R a = S g,    R' b = D a - c Y (g - Y' a),    H g = c (g - Y' a) + S' b
    """

    patience = 3

    def __init__(self, history: int):
        self.history = history
        self.end = 0
        self.steps = self.changes = self.crossed = self.squared = torch.empty(0, 0)

    def direction(self, point: Point, grad: Tensor, free: Tensor | None) -> Tensor | None:
        if self.end == 0:
            return None
        window = slice(max(0, self.end - self.history), self.end)
        steps, changes = self.steps[window], self.changes[window]  # (k, n)
        crossed, squared = self.crossed[window, window], self.squared[window, window]  # (k, k)
        if free is not None:
            steps, changes = steps * free, changes * free
            products, sizes = (steps * changes).sum(1), steps.norm(dim=1) * changes.norm(dim=1)
            kept = products > torch.finfo(grad.dtype).eps * sizes
            if not kept.any():
                return None
            steps, changes = steps[kept], changes[kept]
            crossed, squared = steps @ changes.T, changes @ changes.T
        triangle, diagonal = crossed.triu(), crossed.diagonal()
        scale = diagonal[-1] / squared[-1, -1]
        first = torch.linalg.solve_triangular(triangle, steps.mv(grad)[:, None], upper=True)[:, 0]
        seen = changes.mv(grad) - squared.mv(first)
        right = diagonal * first - scale * seen
        second = torch.linalg.solve_triangular(triangle.T, right[:, None], upper=False)[:, 0]
        return scale * (changes.T.mv(first) - grad) - steps.T.mv(second)

    def learn(self, step: Tensor, change: Tensor) -> None:
        product = float(step.dot(change).item())
        if product <= torch.finfo(step.dtype).eps * norm(step) * norm(change):
            return
        if self.end == self.steps.shape[0]:
            self._make_room(step)
        row, known = self.end, slice(0, self.end + 1)
        self.steps[row], self.changes[row] = step, change
        self.crossed[known, row] = self.steps[known].mv(change)
        self.squared[known, row] = self.squared[row, known] = self.changes[known].mv(change)
        self.end += 1

    def forget(self) -> None:
        self.end = 0

    def _make_room(self, like: Tensor) -> None:
        """Twice the rows, until the history fits with a quarter to spare; then the newest move to the front."""
        kept = min(self.end, self.history - 1)
        rows = min(max(2 * self.end, 8), self.history + max(8, self.history // 4))
        window = slice(self.end - kept, self.end)
        old = self.steps[window], self.changes[window], self.crossed[window, window], self.squared[window, window]
        self.steps, self.changes = like.new_zeros(rows, like.numel()), like.new_zeros(rows, like.numel())
        self.crossed, self.squared = like.new_zeros(rows, rows), like.new_zeros(rows, rows)
        if kept:
            self.steps[:kept], self.changes[:kept] = old[0], old[1]
            self.crossed[:kept, :kept], self.squared[:kept, :kept] = old[2], old[3]
        self.end = kept


class Dense:
    """Inverse Hessian as a full matrix, updated by the formula of Broyden, Fletcher, Goldfarb and Shanno (1970)."""

    patience = 3

    def __init__(self) -> None:
        self.inverse: Tensor | None = None  # (n, n)

    def direction(self, point: Point, grad: Tensor, free: Tensor | None) -> Tensor | None:
        if self.inverse is None:
            return None
        result = self.inverse.mv(grad).neg_()
        return result if free is None else result * free

    def learn(self, step: Tensor, change: Tensor) -> None:
        product = float(step.dot(change).item())
        if product <= torch.finfo(step.dtype).eps * norm(step) * norm(change):
            return
        if self.inverse is None:
            scale = product / norm(change) / norm(change)  # the square of 1e-25 is 0
            self.inverse = torch.eye(step.numel(), dtype=step.dtype, device=step.device) * scale
        image = self.inverse.mv(change)
        bend = (1 + float(change.dot(image).item()) / product) / product
        half = step * (bend / 2) - image / product
        self.inverse.addr_(step, half).addr_(half, step)

    def forget(self) -> None:
        self.inverse = None


class NewtonCG:
    """Newton's step by conjugate gradients on Hessian-vector products, stopped early while far from the minimum.

    Inner tolerance ``min(1/2, sqrt(|g| / |g_0|)) |g|``; a direction that bends down is followed
    downhill as far as one that bends up as much, and ends the inner loop (after Dembo & Steihaug 1983).
    """

    patience = 1

    def __init__(self, problem: Problem):
        self.problem = problem
        self.steepest = 0.0

    def direction(self, point: Point, grad: Tensor, free: Tensor | None) -> Tensor | None:
        product = self.problem.curvature(point.x)
        size = norm(grad)
        self.steepest = max(self.steepest, size)
        goal = min(0.5, math.sqrt(size / self.steepest)) * size
        result, residual = torch.zeros_like(grad), grad
        search, square = -grad, size * size
        for inner in range(2 * grad.numel() + 10):
            image = product(search) if free is None else product(search) * free
            bend = float(search.dot(image).item())
            noise = torch.finfo(grad.dtype).eps * norm(image) * norm(search)
            if not abs(bend) > noise:
                return result if inner else None
            length = square / abs(bend)
            result = result.add(search, alpha=length)
            if bend < 0:
                break
            residual = residual.add(image, alpha=length)
            previous, square = square, float(residual.dot(residual).item())
            if math.sqrt(square) <= goal:
                break
            search = search * (square / previous) - residual
        return result

    def learn(self, step: Tensor, change: Tensor) -> None:
        """Nothing: the curvature is computed afresh at every step."""

    def forget(self) -> None:
        """Nothing is remembered."""


# What a method believes about the curvature: direction gives the step to the minimum of the model, shape (n,), or
# None while nothing is known; learn takes in a step and the change of the gradient along it, each of shape (n,);
# forget starts again from nothing.
Model = LimitedMemory | Dense | NewtonCG


class LineSearch:
    """A direction from a model, a length from a line search; the path bends along the bounds where there are any."""

    careful = True

    def __init__(self, problem: Problem, model: Model):
        self.problem = problem
        self.model = model
        self.patience = model.patience
        self.heading: Tensor | None = None
        self.slope = 0.0

    def prepare(self, point: Point) -> float:
        """Choose the direction, and return what the model says is left to gain: half of -g.d."""
        free = self.problem.free(point)
        grad = point.grad if free is None else point.grad * free
        if norm(grad) == 0:
            self.heading = None
            return 0.0
        heading = self.model.direction(point, grad, free)
        slope = math.nan if heading is None else float(grad.dot(heading).item())
        if heading is None or not (math.isfinite(slope) and slope < 0):
            self.model.forget()
            heading = -grad * first_length(self.problem, point, -grad)
            slope = float(grad.dot(heading).item())
        self.heading, self.slope = heading, slope
        return -0.5 * slope

    def step(self, point: Point) -> Move | None:
        """Search along the direction; once more along the gradient if that fails; None if this fails too."""
        if self.heading is None:
            return None
        trial = self._search(point, self.heading, self.slope)
        if trial is None:
            self.model.forget()
            grad = self.problem.free_gradient(point)
            heading = -grad * first_length(self.problem, point, -grad)
            trial = self._search(point, heading, float(grad.dot(heading).item()))
        if trial is None:
            return None
        if trial.point.finite:
            self._learn(point, trial.point)
        return Move(trial.point, trial.length)

    def escape(self, point: Point, seen: Survey) -> Move | None:
        """Leave a saddle along the direction that bends down, both ways, from short to long."""
        size = norm(point.x) or 1.0
        eps = torch.finfo(point.x.dtype).eps
        sign = -1.0 if float(point.grad.dot(seen.downward).item()) > 0 else 1.0
        best: Move | None = None
        for side in (sign, -sign):
            length = eps ** (1 / 4) * size
            while length < size / eps:
                there = self.problem.evaluate(self.problem.project(point.x + side * length * seen.downward))
                floor = point.fun if best is None else best.point.fun
                if there.finite and there.fun < floor - 10 * eps * abs(point.fun):
                    best = Move(there, length)
                elif best is not None or not there.finite:
                    break
                length *= 4
            if best is not None:
                break
        self.model.forget()
        return best

    def detour(self, point: Point, seen: Survey) -> Move | None:
        """Newton's step where the model thought that nothing was left; the model learns from it."""
        if math.isfinite(seen.left):
            self.heading, self.slope = seen.heading, -2 * seen.left
        return self.step(point)

    def _search(self, point: Point, heading: Tensor, slope: float) -> Trial | None:
        resolution = 10 * torch.finfo(point.x.dtype).eps * abs(point.fun)
        origin = Trial(0.0, point, slope)

        def attempt(length: float) -> Trial:
            wanted = point.x.add(heading, alpha=length)
            if self.problem.bounds is None:
                there = self.problem.evaluate(wanted)
                return Trial(length, there, float(there.grad.dot(heading).item()))
            there = self.problem.evaluate(self.problem.project(wanted))
            moving = heading * (there.x == wanted)
            return Trial(length, there, float(there.grad.dot(moving).item()))

        search = strong_wolfe if self.problem.bounds is None else projected_wolfe
        return search(attempt, origin, resolution)

    def _learn(self, before: Point, after: Point) -> None:
        step, change = after.x - before.x, after.grad - before.grad
        free = self.problem.free(after)
        self.model.learn(step, change if free is None else change * free)
