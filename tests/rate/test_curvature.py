"""The edge against closed forms, and Lanczos against the eigenvalues of a matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fogline.descent.objective import Objective
from fogline.descent.optimizers import spec_of
from fogline.rate.curvature import edge, lanczos

EIGENVALUES = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
ROWS = torch.ones(2, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)


class Quadratic(nn.Module):
    """f(w) = w . diag(EIGENVALUES) w / 2, whatever the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, rows: Tensor) -> Tensor:
        return (self.w.square() * EIGENVALUES).sum() / 2 + 0 * rows.sum()


def first(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs + 0 * targets.sum()


@pytest.mark.parametrize(
    ("optimizer", "limit"),
    [("gd", 2 / 4), ("momentum", (2 + 1.8) / 4), ("nesterov", (2 + 1.8) / (2.8 * 4))],
)
def test_edge_of_a_quadratic_is_that_of_the_theory(optimizer: str, limit: float) -> None:
    assert edge(Objective(Quadratic(), first), [ROWS], spec_of(optimizer)) == pytest.approx(limit, rel=1e-9)


def test_edge_of_adam_is_that_of_the_preconditioned_quadratic() -> None:
    """At w = 1 the gradient is the eigenvalue: the preconditioned curvature is 1 in every direction."""
    found = edge(Objective(Quadratic(), first), [ROWS], spec_of("adamw"))
    assert found == pytest.approx(38, rel=0.01)


def test_beyond_the_edge_gradient_descent_grows_and_below_it_falls() -> None:
    limit = edge(Objective(Quadratic(), first), [ROWS], spec_of("gd"))
    assert limit is not None
    for share, grows in ((0.99, False), (1.01, True)):
        w = torch.ones(3, dtype=torch.float64)
        for _ in range(300):
            w = w - share * limit * EIGENVALUES * w
        assert bool(w.abs().max() > 1) is grows


def test_no_edge_where_a_second_derivative_is_missing() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: object, slope: Tensor) -> Tensor:
            return slope * 2

    class Model(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(super().forward(x))  # type: ignore[no-any-return]

    batch = torch.ones(4, 2), torch.ones(4, 1)
    assert edge(Objective(Model(2, 1), nn.MSELoss()), [batch], spec_of("sgd")) is None


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_lanczos_finds_the_largest_eigenvalue_and_never_more(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.T
    start = torch.randn(size, generator=generator, dtype=torch.float64)
    largest = float(torch.linalg.eigvalsh(matrix)[-1])
    found = [lanczos(lambda v: matrix @ v, start, count) for count in (3, 6, size)]
    assert found[-1] == pytest.approx(largest, rel=1e-9)
    assert all(value <= largest + 1e-9 for value in found)
    assert found == sorted(found)


def test_lanczos_of_nothing_is_nothing() -> None:
    assert lanczos(lambda v: 0 * v, torch.ones(3, dtype=torch.float64), 3) == 0.0
    assert lanczos(lambda v: v, torch.zeros(3, dtype=torch.float64), 3) == 0.0
    assert lanczos(lambda v: v * float("nan"), torch.ones(3, dtype=torch.float64), 3) == 0.0
