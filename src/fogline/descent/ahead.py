"""A look ahead from where a descent ended: what its weights would still gain.

Two looks: a line search along the negative gradient, and a few steps of L-BFGS. The first says what steps like those of
the run no longer find, the second also what lies along a valley whose floor is too gentle to be seen beside its walls.
Both are scored on batches that they do not learn from: whoever follows a gradient gains on the batches it is of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fogline._minimize.line_methods import LimitedMemory, LineSearch
from fogline._minimize.problem import Point, Problem, Product, norm
from fogline.data.source import Batch
from fogline.descent.objective import Objective, mode

_DEAD = 1e-6  # of the largest root mean square gradient of a layer
_CLEARLY = 2.0  # standard errors
_HISTORY = 5  # steps that L-BFGS remembers
_LARGEST = 1 << 22  # weights; L-BFGS remembers many times that, so larger models are seen along the gradient only
LEAST = 8
"""Gradients of each batch that L-BFGS may ask for at least: fewer show nothing."""

Check = Callable[[], None]


@dataclass(frozen=True)
class Slope:
    """What the weights that were kept would still gain, measured at the end on a few batches.

    Attributes:
        gain: largest fall of the loss along the negative gradient, by line search, on batches it does not come from; a
            fall within two standard errors of none counts as none.
        signal: |mean gradient|^2, without the part that is noise, over the sum of both; 1 is all signal.
        dead: share of the parameters with a gradient of zero on every batch, or in a layer whose gradient is a
            millionth of that of the layer with the largest.
        cut: no weight matrix gets any gradient while some bias does: what goes in has no bearing on what comes out.
        distance: length of the best step of the line search; 0 where none gains.
        loss: mean loss of the batches.
        ahead: largest fall of the loss on the way of a few steps of L-BFGS, likewise on batches that it does not learn
            from; at least ``gain``.
    """

    gain: float
    signal: float
    dead: float
    distance: float
    loss: float
    cut: bool = False
    ahead: float = 0.0


def measure_slope(
    objective: Objective,
    batches: Sequence[Batch],
    stride: float,
    check: Check = lambda: None,
    *,
    gradients: int = LEAST,
) -> Slope:
    """What the weights as they are would still gain, measured on a few training batches, in evaluation mode.

    Weights, buffers, ``.grad`` and random states are left bitwise as they were (the caller keeps the random states).

    Args:
        objective: model and loss.
        batches: a few training batches; the more, the better noise is told from signal. One half is learned from, the
            other half scored.
        stride: length of the first step tried, such as the run's own; longer and shorter ones follow.
        check: called between batches; may raise to stop.
        gradients: of each batch that is learned from, that the look ahead may ask for.
    """
    ground = _Ground(objective, batches, check, gradients)
    with mode(objective.model, training=False):
        start, squares, sums = ground.survey()
        size = sum(float(g.double().square().sum()) for g in sums)
        gain, length, ahead = 0.0, 0.0, 0.0
        if size > 0 and math.isfinite(size):
            # Nearer than this, the fall foretold drowns in the digits that the type of the outputs has.
            digits = torch.finfo(objective.autocast or ground.parameters[0].dtype).eps
            first = max(stride / math.sqrt(size), 4 * digits * abs(start.fun) / size)
            try:
                here = ground.scores(start.x)
                gain, length = _line_search(ground, start, here, first)
                if len(start.x) <= _LARGEST:
                    ahead = _look_ahead(ground, start, here, first / 16)
            finally:
                ground.put(start.x)
    count = len(ground.sources)
    noise = max(0.0, (squares / count - size) / max(1, count - 1))
    return Slope(
        gain=gain,
        signal=max(0.0, size - noise) / size if size > 0 else 0.0,
        dead=_dead_share(sums),
        distance=length * math.sqrt(size),
        loss=start.fun,
        cut=_is_cut(sums),
        ahead=max(ahead, gain),
    )


class _SpentError(Exception):
    """As many gradients were asked for as may be."""


class _Ground(Problem):
    """The mean loss of the batches learned from, over all weights as one vector; to evaluate it moves the model."""

    def __init__(self, objective: Objective, batches: Sequence[Batch], check: Check, gradients: int) -> None:
        self.bounds, self.evaluations = None, 0  # in place of those of a function of any structure
        self.objective, self.check, self.gradients = objective, check, gradients
        self.parameters = [p for p in objective.model.parameters() if p.requires_grad]
        self.sources = batches[: max(1, len(batches) // 2)]
        self.scored = batches[len(self.sources) :] or batches

    def survey(self) -> tuple[Point, float, list[Tensor]]:
        """Where the weights are, with the mean squared size of the gradients of batches, and their mean."""
        x = _flat(self.parameters)
        fun, squares, means = self._mean()
        grad = _flat(means)
        return Point(x, fun, grad, norm(grad)), squares, means

    def _mean(self) -> tuple[float, float, list[Tensor]]:
        sums = [torch.zeros_like(p) for p in self.parameters]
        losses, squares = [], 0.0
        for batch in self.sources:
            self.check()
            loss = self.objective(batch)
            gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
            found = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, gradients, strict=True)]
            torch._foreach_add_(sums, found)
            squares += sum(float(g.double().square().sum()) for g in found)
            losses.append(float(loss.detach()))
        torch._foreach_div_(sums, len(losses))
        return float(np.mean(losses)), squares, sums

    def evaluate(self, x: Tensor) -> Point:
        if self.evaluations >= self.gradients:
            raise _SpentError
        self.evaluations += 1
        self.put(x)
        fun, _, means = self._mean()
        grad = _flat(means)
        return Point(x, fun, grad, norm(grad) if math.isfinite(fun) else math.nan)

    def curvature(self, x: Tensor) -> Product:
        return self._differences(x)

    def put(self, x: Tensor) -> None:
        sizes = [p.numel() for p in self.parameters]
        with torch.no_grad():
            for parameter, piece in zip(self.parameters, torch.split(x, sizes), strict=True):
                parameter.copy_(piece.view_as(parameter))

    def scores(self, x: Tensor) -> NDArray[np.float64]:
        """Loss of each batch that is not learned from."""
        self.check()
        self.put(x)
        return np.array([float(self.objective.value(batch)) for batch in self.scored])


def _flat(pieces: Sequence[Tensor]) -> Tensor:
    joined = torch.cat([piece.detach().reshape(-1) for piece in pieces])
    return joined if joined.dtype == torch.float64 else joined.float()


def _downhill(start: Point, length: float) -> Tensor:
    """Where ``length`` times the negative gradient leads; of a loss of 1e30 the length may be beyond all numbers."""
    return start.x.sub(start.grad, alpha=min(length, torch.finfo(start.x.dtype).max))


def _line_search(ground: _Ground, start: Point, here: NDArray[np.float64], first: float) -> tuple[float, float]:
    """Double or halve the step along the negative gradient while that helps; (fall of the loss, step)."""

    def fall(length: float) -> float:
        falls = here - ground.scores(_downhill(start, length))
        if not np.isfinite(falls).all():
            return -math.inf
        return float(falls.mean()) if falls.mean() > _CLEARLY * _error(falls) else min(0.0, float(falls.mean()))

    best, length = 0.0, 0.0
    trial, gain = first, fall(first)
    factor = 4.0 if gain > 0 else 0.25
    for _ in range(12):
        if gain > best:
            best, length = gain, trial
        elif best > 0:
            break
        trial *= factor
        gain = fall(trial)
    return best, length


def _look_ahead(ground: _Ground, start: Point, here: NDArray[np.float64], length: float) -> float:
    """The largest fall after 1, 2, 4 ... steps of L-BFGS and where it ends: farther, it learns its batches by heart.

    What it begins with is the curvature over ``length`` times the gradient.
    """
    memory = LimitedMemory(_HISTORY)
    method, point, best, steps = LineSearch(ground, memory), start, 0.0, 0

    def fall() -> float:
        falls = here - ground.scores(point.x)
        # Of few batches the error is not known well: about Student's factor.
        clearly = _CLEARLY * (1 + 2 / max(1, len(falls) - 1)) * _error(falls)
        return float(falls.mean()) if np.isfinite(falls).all() and falls.mean() > clearly else 0.0

    try:
        near = ground.evaluate(_downhill(start, length))
        if near.finite:
            memory.learn(near.x - start.x, near.grad - start.grad)
            point = near if near.fun < start.fun else start
        while method.prepare(point) > 0:
            move = method.step(point)
            if move is None or not move.point.finite:
                break
            point, steps = move.point, steps + 1
            if steps & (steps - 1) == 0:
                best = max(best, fall())
    except (_SpentError, torch.OutOfMemoryError):
        pass  # what was seen by then is enough
    return max(best, fall()) if steps else best


def _error(falls: NDArray[np.float64]) -> float:
    """Standard error of their mean."""
    return float(falls.std(ddof=1)) / math.sqrt(len(falls)) if len(falls) > 1 else 0.0


def _is_cut(gradients: Sequence[torch.Tensor]) -> bool:
    matrices, biases = [g for g in gradients if g.ndim > 1], [g for g in gradients if g.ndim <= 1]
    return bool(matrices) and not any(bool(g.any()) for g in matrices) and any(bool(g.any()) for g in biases)


def _dead_share(gradients: Sequence[torch.Tensor]) -> float:
    sizes = [float(g.double().square().mean().sqrt()) for g in gradients]
    live = [int((g != 0).sum()) if size > _DEAD * max(sizes) else 0 for g, size in zip(gradients, sizes, strict=True)]
    return 1 - sum(live) / max(1, sum(g.numel() for g in gradients))
