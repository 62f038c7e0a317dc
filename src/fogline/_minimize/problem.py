"""The function being descended: evaluated on one flat vector, whatever structure the caller's start has."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fogline._minimize.structure import Structure

Product = Callable[[Tensor], Tensor]


@dataclass(slots=True)
class Point:
    """A place on the landscape: where, how high and how steep.

    Attributes:
        x: the flat parameters, shape (n,).
        fun: the function's value.
        grad: its gradient, shape (n,).
        steepness: Euclidean norm of the gradient; not finite where the value or the gradient is not.
    """

    x: Tensor
    fun: float
    grad: Tensor
    steepness: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.steepness)


def norm(vector: Tensor) -> float:
    """Euclidean norm that neither overflows nor underflows: the squares are only trusted where they are ordinary."""
    square = float(vector.dot(vector).item())
    if math.isfinite(square) and square > torch.finfo(vector.dtype).tiny * 1e8:
        return math.sqrt(square)
    largest = float(vector.abs().max().item())
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    scaled = vector / largest
    return largest * math.sqrt(float(scaled.dot(scaled).item()))


class Problem:
    """A scalar function of a flat vector, with its gradient, its Hessian-vector products, its bounds and its counts."""

    def __init__(self, function: Callable[..., Tensor], structure: Structure, bounds: tuple[Tensor, Tensor] | None):
        self.function, self.structure, self.bounds = function, structure, bounds
        self.evaluations = self.curvature_products = 0

    def project(self, x: Tensor) -> Tensor:
        """The nearest vector inside the bounds."""
        return x if self.bounds is None else x.clamp(*self.bounds)

    def free(self, point: Point) -> Tensor | None:
        """1 where a parameter can move downhill, 0 where a bound holds it, shape (n,); None without bounds."""
        if self.bounds is None:
            return None
        lower, upper = self.bounds
        held = ((point.x <= lower) & (point.grad > 0)) | ((point.x >= upper) & (point.grad < 0))
        return (~held).to(point.x.dtype)

    def free_gradient(self, point: Point) -> Tensor:
        """The gradient with the components that a bound holds set to zero, shape (n,)."""
        free = self.free(point)
        return point.grad if free is None else point.grad * free

    def evaluate(self, x: Tensor) -> Point:
        """Value and gradient at x, shape (n,)."""
        leaf = x.detach().requires_grad_()
        value = self.value(leaf)
        self.evaluations += 1
        fun = float(value.item())
        if not math.isfinite(fun):
            return Point(x, fun, torch.full_like(x, math.nan), math.nan)
        if not value.requires_grad:
            raise ValueError(
                "expected a function that torch can differentiate, received a result that does not require grad; "
                "compute it from the argument with torch operations (no .item(), .detach(), numpy or rounding)"
            )
        (grad,) = torch.autograd.grad(value, leaf)
        return Point(x, fun, grad, norm(grad))

    def curvature(self, x: Tensor) -> Product:
        """The map v -> H v at x by double backward; by central differences where there is no second derivative."""
        leaf = x.detach().requires_grad_()
        value = self.value(leaf)
        self.evaluations += 1
        try:
            (grad,) = torch.autograd.grad(value, leaf, create_graph=True)
        except RuntimeError:  # some operations refuse create_graph: they have a first derivative only
            return self._differences(x)
        if not grad.requires_grad:  # a straight line, or a derivative that torch silently takes for a constant
            return self._differences(x)

        def product(vector: Tensor) -> Tensor:
            self.curvature_products += 1
            try:
                image: Tensor
                (image,) = torch.autograd.grad(grad, leaf, vector, retain_graph=True, materialize_grads=True)
            except RuntimeError:  # others refuse only when they are differentiated the second time
                return self._differences(x)(vector)
            return image

        return product

    def _differences(self, x: Tensor) -> Product:
        size = norm(x) or 1.0

        def product(vector: Tensor) -> Tensor:
            reach = torch.finfo(x.dtype).eps ** (1 / 3) * size / (norm(vector) or 1.0)
            ahead, behind = self.evaluate(x + reach * vector), self.evaluate(x - reach * vector)
            return (ahead.grad - behind.grad).div(2 * reach)

        return product

    def value(self, leaf: Tensor) -> Tensor:
        """The value at a flat vector, shape (n,), with the graph behind it."""
        value = self.function(self.structure.restore(leaf))
        if not isinstance(value, Tensor):
            raise TypeError(
                f"expected the function to return a torch tensor with one element, received {type(value).__name__}; "
                "compute it from the argument with torch operations so that it can be differentiated"
            )
        if value.numel() != 1:
            raise ValueError(
                f"expected the function to return one number, received a tensor of shape {tuple(value.shape)}; "
                "reduce it with .sum() or .mean()"
            )
        if value.is_complex():
            raise TypeError("expected a real number from the function, received a complex one; take .real or .abs()")
        return value
