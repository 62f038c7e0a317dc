"""What a descent leaves behind: the result, and every step of the path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fogline._minimize.problem import Point
from fogline.verdict import Verdict

STATUS = ("CONVERGED", "IMPROVING", "STALLED", "DIVERGED", "NONFINITE", "INTERRUPTED")


@dataclass(frozen=True)
class Path:
    """The places that were visited, the start first. ``len(path)`` is their number.

    For ``method="gd"`` without bounds, ``x[k + 1] = x[k] - lr[k] * grad[k]``.

    Attributes:
        step: number of the step that led to each place, 0 for the start, shape (places,).
        x: flat parameters (a pytree's leaves one after the other), shape (places, n).
        fun: values, float64, shape (places,).
        grad: gradients at the places, shape (places, n).
        lr: step size with which each place was left, float64, shape (places - 1,): the learning rate of a first-order
            method, the length found by the line search of another.
    """

    step: Tensor
    x: Tensor
    fun: Tensor
    grad: Tensor
    lr: Tensor

    def __len__(self) -> int:
        return self.fun.numel()


@dataclass(frozen=True, repr=False)
class Result:
    """Where a descent ended, and how. Field names follow SciPy's ``OptimizeResult`` where it has one.

    Attributes:
        x: the parameters at the end, in the structure of the start.
        fun: the value there.
        grad: the gradient that the last step was taken with (that at the start if there was no step), in the same
            structure.
        jac: the gradient at ``x``, in the same structure.
        verdict: how it ended.
        message: the same in a sentence with its numbers, saying what to do next.
        evidence: the numbers the verdict was decided from.
        path: every step.
        method: the method that was used.
        nit: steps taken.
        nfev: evaluations of the function.
        njev: evaluations of its gradient: every evaluation takes both.
        nhev: Hessian-vector products, those of the last look for a saddle included.
        value: the function of flat parameters, shape (n,), for :func:`fogline.landscape`; a copied or pickled result
            has None, since functions are not to be copied.
        status: 0 converged, 1 still improving, 2 stalled, 3 diverged, 4 non-finite, 5 interrupted.
    """

    x: Any
    fun: float
    grad: Any
    jac: Any
    verdict: Verdict
    message: str
    evidence: dict[str, Any]
    path: Path
    method: str
    nit: int
    nfev: int
    njev: int
    nhev: int
    value: Callable[[Tensor], Tensor] | None = field(default=None, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "value": None}

    @property
    def success(self) -> bool:
        """Whether the descent ended at a minimum."""
        return self.verdict is Verdict.CONVERGED

    @property
    def status(self) -> int:
        """The verdict as a number, 0 where the descent ended at a minimum."""
        return STATUS.index(self.verdict.name)

    def __repr__(self) -> str:
        return (
            f"Result({self.verdict.name} by {self.method}: fun={self.fun:.6g}, nit={self.nit}, nfev={self.nfev}\n"
            f"  x={self.x}\n  {self.message})"
        )


class Recorder:
    """Keeps every ``every``-th place (0: none but the start and the end), and always the start and the end."""

    def __init__(self, start: Point, every: int):
        self.every = every
        self.kept: list[tuple[int, Point]] = [(0, start)]
        self.lengths: list[float] = []
        self.last = (0, start)

    def add(self, step: int, point: Point, lr: float) -> None:
        """Note that a step of size ``lr`` led to a place."""
        if self.last[0] == self.kept[-1][0]:
            self.lengths.append(lr)
        self.last = (step, point)
        if self.every and step % self.every == 0:
            self.kept.append(self.last)

    def path(self) -> Path:
        """The places kept, as arrays."""
        kept = self.kept if self.last[0] == self.kept[-1][0] else [*self.kept, self.last]
        return Path(
            step=torch.tensor([step for step, _ in kept]),
            x=torch.stack([point.x for _, point in kept]),
            fun=torch.tensor([point.fun for _, point in kept], dtype=torch.float64),
            grad=torch.stack([point.grad for _, point in kept]),
            lr=torch.tensor(self.lengths, dtype=torch.float64),
        )
