"""The measured learning rate against closed forms, and what measuring must not touch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fogline.data.source import InMemory
from fogline.descent.batches import Batches
from fogline.descent.objective import Objective
from fogline.descent.optimizers import spec_of
from fogline.rate import measure_rate
from fogline.rate.curvature import edge
from fogline.recipe import Recipe

EIGENVALUES = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)


class Quadratic(nn.Module):
    """f(w) = w . diag(EIGENVALUES) w / 2, whatever the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, rows: Tensor) -> Tensor:
        return (self.w.square() * EIGENVALUES).sum() / 2 + 0 * rows.sum()


def _first(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs + 0 * targets.sum()


def _mean_squares(factor: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, targets: (outputs - targets).square().mean() * factor


def _regression() -> Batches:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(512, 6, generator=generator)
    return Batches(InMemory((X, X @ torch.randn(6, 1, generator=generator))), 32)


def _recipe(optimizer: str) -> Recipe:
    return Recipe(optimizer=optimizer, batch_size=32, duration="10ep", schedule="constant", warmup=0)


@pytest.mark.parametrize(
    ("optimizer", "limit"),
    [("gd", 2 / 4), ("momentum", (2 + 1.8) / 4), ("nesterov", (2 + 1.8) / (2.8 * 4))],
)
def test_edge_of_a_quadratic_is_that_of_the_theory(optimizer: str, limit: float) -> None:
    rows = torch.ones(2, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    found = edge(Objective(Quadratic(), _first), [rows], spec_of(optimizer))
    assert found == pytest.approx(limit, rel=1e-6)


def test_beyond_the_edge_gradient_descent_grows_and_below_it_falls() -> None:
    rows = torch.ones(2, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    limit = edge(Objective(Quadratic(), _first), [rows], spec_of("gd"))
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


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw", "lion", "rmsprop"])
def test_measuring_disturbs_nothing(optimizer: str) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
    model[0].weight.grad = torch.full_like(model[0].weight, 0.5)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    rate = measure_rate(Objective(model, nn.MSELoss()), _regression(), _recipe(optimizer))
    assert rate.interval[0] <= rate.value <= rate.interval[1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.full_like(model[0].weight, 0.5))
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("factor", [1e6, 1e-6])
def test_scaling_the_loss_scales_the_rate_of_sgd_inversely(factor: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 1)
    plain = measure_rate(Objective(model, _mean_squares()), _regression(), _recipe("sgd")).value
    scaled = measure_rate(Objective(model, _mean_squares(factor)), _regression(), _recipe("sgd")).value
    assert scaled * factor == pytest.approx(plain, rel=0.02)


def test_the_rate_found_for_linear_regression_descends() -> None:
    """The measured rate must be stable and must move: the loss falls a hundredfold in 20 epochs."""
    batches = _regression()
    torch.manual_seed(0)
    model = nn.Linear(6, 1)
    rate = measure_rate(Objective(model, nn.MSELoss()), batches, _recipe("momentum"))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate.value, momentum=0.9)
    losses = []
    for _, (x, y) in zip(range(320), batches.stream(0), strict=False):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 100
