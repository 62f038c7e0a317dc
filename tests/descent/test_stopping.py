"""The verdict on runs whose truth is known, at three scales of the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline.descent.ahead import Slope, measure_slope
from fogline.descent.objective import Objective
from fogline.descent.stopping import judge
from fogline.verdict import Verdict


def _regression(noise: float = 0.1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(256, 8, generator=generator)
    return X, X @ torch.randn(8, 1, generator=generator) + noise * torch.randn(256, 1, generator=generator)


def _valley() -> tuple[Tensor, Tensor]:
    """Half of the columns a thirtieth as large, and as much of the targets comes of them."""
    X, y = _regression()
    steps = torch.randn(8, 1, generator=torch.Generator().manual_seed(1))
    return torch.cat([X[:, :4], 0.03 * X[:, 4:]], dim=1), y + X @ steps


def _coin(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 8, generator=generator), torch.randint(2, (rows,), generator=generator)


def _linear() -> nn.Module:
    return nn.Linear(8, 1)


def _zero() -> nn.Module:
    model = _linear()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def _dead() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    nn.init.constant_(model[0].bias, -100.0)
    return model


def _dead_and_far() -> nn.Module:
    model = _dead()
    nn.init.constant_(model[2].bias, 50.0)  # type: ignore[index]
    return model


def _deep_sigmoid() -> nn.Module:
    hidden = [layer for _ in range(12) for layer in (nn.Linear(32, 32), nn.Sigmoid())]
    return nn.Sequential(nn.Linear(8, 32), nn.Sigmoid(), *hidden, nn.Linear(32, 1))


@dataclass(frozen=True)
class Case:
    verdict: Verdict
    recipe: dict[str, Any]
    model: Callable[[], nn.Module] = _linear
    loss: Callable[..., Tensor] = field(default_factory=nn.MSELoss)
    data: tuple[Tensor, Tensor] = field(default_factory=_regression)
    valid: tuple[Tensor, Tensor] | None = None


_FULL = {"optimizer": "gd", "batch_size": "full", "schedule": "constant"}
_SGD = {"optimizer": "sgd", "schedule": "constant"}

CASES = {
    "full batch to the minimum": Case(Verdict.CONVERGED, {**_FULL, "lr": 0.3, "duration": "300st"}),
    "annealed to the minimum": Case(
        Verdict.CONVERGED, {"optimizer": "sgd", "lr": 0.1, "batch_size": 4, "duration": "3000st", "schedule": "linear"}
    ),
    "adam to the minimum": Case(
        Verdict.CONVERGED, {"optimizer": "adamw", "lr": 0.05, "batch_size": 32, "duration": "1000st"}
    ),
    "the budget ended": Case(Verdict.IMPROVING, {**_FULL, "lr": 0.02, "duration": "30st"}),
    "one step": Case(Verdict.IMPROVING, {**_FULL, "lr": 0.1, "duration": "1st"}),
    "at the minimum from the start": Case(
        Verdict.CONVERGED, {**_FULL, "lr": 0.1, "duration": "20st"}, _zero, data=(torch.ones(8, 8), torch.zeros(8, 1))
    ),
    "annealed on the floor of a valley, far from its end": Case(
        Verdict.IMPROVING,
        {"optimizer": "sgd", "lr": 0.1, "batch_size": 32, "duration": "400st", "schedule": "cosine"},
        data=_valley(),
    ),
    "adam annealed on the floor of a valley": Case(
        Verdict.IMPROVING, {"optimizer": "adamw", "lr": 0.01, "batch_size": 32, "duration": "800st"}, data=_valley()
    ),
    "step too small": Case(Verdict.STALLED, {**_FULL, "lr": 1e-7, "duration": "300st"}),
    "step too small, noisy": Case(Verdict.STALLED, {**_SGD, "lr": 1e-7, "batch_size": 16, "duration": "500st"}),
    "dead units": Case(
        Verdict.STALLED, {"optimizer": "adamw", "lr": 1e-3, "batch_size": 32, "duration": "500st"}, _dead
    ),
    "dead units, of which the loss fell to that of a constant": Case(
        Verdict.STALLED, {"optimizer": "sgd", "lr": 0.1, "batch_size": 32, "duration": "500st"}, _dead_and_far
    ),
    "vanishing gradient": Case(
        Verdict.STALLED, {"optimizer": "sgd", "lr": 0.01, "batch_size": 32, "duration": "500st"}, _deep_sigmoid
    ),
    "step too large": Case(Verdict.DIVERGED, {**_FULL, "lr": 1.2, "duration": "40st"}),
    "step far too large": Case(Verdict.DIVERGED, {**_FULL, "lr": 100.0, "duration": "400st"}),
    "jitter": Case(Verdict.NOISE_FLOOR, {**_SGD, "lr": 0.15, "batch_size": 4, "duration": "3000st"}),
    "jitter of noisy targets": Case(
        Verdict.NOISE_FLOOR, {**_SGD, "lr": 0.1, "batch_size": 4, "duration": "2000st"}, data=_regression(1.0)
    ),
    "coins learnt by heart": Case(
        Verdict.OVERFIT,
        {"optimizer": "adamw", "lr": 0.01, "batch_size": 8, "duration": "100ep"},
        lambda: nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 2)),
        nn.CrossEntropyLoss(),
        _coin(40, 1),
        _coin(200, 2),
    ),
}


class Scaled(nn.Module):
    """A loss in other units."""

    def __init__(self, loss: Callable[..., Tensor], factor: float) -> None:
        super().__init__()
        self.loss, self.factor = loss, factor

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(outputs, targets) * self.factor


@pytest.mark.parametrize("factor", [1.0, 1e6, 1e-6])
@pytest.mark.parametrize("name", CASES)
def test_verdict_is_right_in_any_unit_of_the_loss(name: str, factor: float, tmp_path: Path) -> None:
    case = CASES[name]
    recipe = dict(case.recipe)
    if recipe["optimizer"] != "adamw":  # Adam's step does not depend on the unit; that of gradient descent does
        recipe["lr"] /= factor
    task = fogline.Task(case.model, Scaled(case.loss, factor), case.data, case.valid)
    run = fogline.fit(task, fogline.Recipe(**recipe), runs=tmp_path)
    assert run.verdict is case.verdict, run.judgement


@pytest.mark.parametrize("name", ["step too small", "step too small, noisy"])
def test_coarse_digits_do_not_hide_that_there_is_a_fall(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    task = fogline.Task(case.model, case.loss, case.data)
    run = fogline.fit(task, fogline.Recipe(**case.recipe, precision="bf16"), runs=tmp_path)
    assert run.verdict is Verdict.STALLED, run.judgement


def test_nan_everywhere_is_nonfinite(tmp_path: Path) -> None:
    X, y = _regression()
    run = fogline.fit(nn.Linear(8, 1), (X, y * torch.nan), loss=nn.MSELoss(), lr=0.1, duration="50st", runs=tmp_path)
    assert run.verdict is Verdict.NONFINITE


def test_a_healthy_spike_on_the_way_is_no_divergence() -> None:
    losses = np.concatenate([np.linspace(1, 5, 20), 5 * np.exp(-np.arange(400) / 80)])
    verdict = judge(losses, np.ones(420), np.array([]), slope=None, refused=np.zeros(420)).verdict
    assert verdict is Verdict.IMPROVING


def test_a_warm_start_that_jitters_is_no_divergence() -> None:
    losses = 1 + 0.1 * np.random.default_rng(0).standard_normal(500)
    verdict = judge(losses, np.ones(500), np.array([]), slope=None, refused=np.zeros(500)).verdict
    assert verdict is Verdict.NOISE_FLOOR


def test_a_few_noisy_steps_of_a_long_way_are_no_noise_floor() -> None:
    losses = np.linspace(2.3, 1.5, 30) + 0.2 * np.random.default_rng(0).standard_normal(30)
    slope = Slope(gain=0.2, signal=0.8, dead=0.0, distance=0.1, loss=1.5)
    found = judge(losses, np.ones(30), np.array([]), slope=slope, refused=np.zeros(30), path=1.0)
    assert found.evidence["significance"] < 3  # the last third alone does not tell
    assert found.verdict is Verdict.IMPROVING


def test_noise_that_a_schedule_takes_away_is_no_fall() -> None:
    rates = np.cos(np.linspace(0, np.pi / 2, 1000)) ** 2
    losses = (
        1 + np.exp(-np.arange(1000) / 20) + 0.3 * rates * (1 + 0.2 * np.random.default_rng(0).standard_normal(1000))
    )
    slope = Slope(gain=0.0, signal=0.0, dead=0.0, distance=0.0, loss=1.0)
    found = judge(losses, rates, np.empty(0), slope=slope, refused=np.zeros(1000), path=1.0)
    constant = judge(losses, np.ones(1000), np.empty(0), slope=slope, refused=np.zeros(1000), path=1.0)
    # At a rate that stays nothing but descent makes it fall.
    assert found.evidence["next_doubling_share"] < 0.01 < 0.02 < constant.evidence["next_doubling_share"]


def test_what_two_doublings_brought_is_foreseen_of_the_next() -> None:
    """A loss that falls as 1/sqrt(t): every doubling brings 1/sqrt(2) of what the one before did."""
    losses = 1 / np.sqrt(1.0 + np.arange(1024))
    slope = Slope(gain=0.0, signal=0.0, dead=0.0, distance=0.0, loss=losses[-1])
    found = judge(losses, np.ones(1024), np.empty(0), slope=slope, refused=np.zeros(1024), path=1.0)
    gained = found.evidence["loss_at_start"] - found.evidence["loss_at_end"]
    half, twice = losses[512:].mean(), (1 / np.sqrt(1.0 + np.arange(1024, 2048))).mean()
    assert found.evidence["next_doubling_share"] == pytest.approx((half - twice) / gained, rel=0.02)
    short = judge(losses[:24], np.ones(24), np.empty(0), slope=slope, refused=np.zeros(24), path=1.0)
    assert short.evidence["next_doubling_share"] == 0


def test_held_out_loss_that_only_wiggles_is_no_overfit() -> None:
    rng = np.random.default_rng(0)
    losses = np.exp(-np.arange(1000) / 100) + 0.02 * rng.random(1000)
    held_out = 0.5 * np.exp(-np.arange(40) / 4) + 0.5 + 0.02 * rng.random(40)
    verdict = judge(losses, np.ones(1000), held_out, slope=None, refused=np.zeros(1000)).verdict
    assert verdict is not Verdict.OVERFIT


def test_slope_leaves_everything_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = [value.clone() for value in model.state_dict().values()]
    X, y = _regression()
    slope = measure_slope(Objective(model, nn.MSELoss()), [(X[:64], y[:64]), (X[64:128], y[64:128])], 0.1)
    assert slope.gain > 0
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before, strict=True))
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model.training


def test_slope_of_a_quadratic_is_exact() -> None:
    """f(w) = w^2 from w = 1: the best step along -2w goes the distance 1 and gains everything."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(model.weight)
    data = torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)
    slope = measure_slope(Objective(model, nn.MSELoss()), [data], 0.25)
    assert slope.gain == pytest.approx(1.0)
    assert slope.distance == pytest.approx(1.0)
    assert slope.signal == pytest.approx(1.0)


def test_a_look_ahead_finds_the_end_of_a_valley() -> None:
    """f(w) = (a^2 + (b / 100)^2) / 2 from (0.1, 100): along the gradient little is gained, along the floor all."""
    model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    X = torch.diag(torch.tensor([1.0, 0.01], dtype=torch.float64))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1, 100.0]]))
    before, data = model.weight.detach().clone(), (X, torch.zeros(2, 1, dtype=torch.float64))
    found = measure_slope(Objective(model, nn.MSELoss()), [data], 1e-3, gradients=32)
    assert found.gain < 0.1 * found.loss
    assert found.ahead > 0.99 * found.loss
    assert torch.equal(model.weight, before)


def test_ahead_of_a_minimum_there_is_nothing() -> None:
    """Least squares, solved: whoever follows the gradient of some batches learns their noise by heart."""
    X, y = _regression(1.0)
    model = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(X, y).solution.T)
    batches = [(X[k::16], y[k::16]) for k in range(16)]
    found = measure_slope(Objective(model, nn.MSELoss()), batches, 0.01, gradients=32)
    assert found.gain == found.ahead == 0


def test_a_run_that_left_its_start_at_once_diverged() -> None:
    noise = np.random.default_rng(0).standard_normal(400)
    losses = np.concatenate([[2.3, 24.0, 570.0, 550.0, 14.0], 27 + 4 * noise])
    found = judge(losses, np.ones(405), np.empty(0), slope=None, refused=np.zeros(405))
    assert found.verdict is Verdict.DIVERGED
    assert found.evidence["loss_at_start"] == 2.3


def test_a_slope_too_gentle_for_its_loss_is_measured() -> None:
    """A loss of 1e30 whose gradient is 1e-25: the first step to try would be longer than any number."""
    X, y = _regression()
    found = measure_slope(Objective(_linear(), lambda o, t: 1e30 + 1e-25 * (o - t).square().mean()), [(X, y)], 0.1)
    assert found.gain == found.ahead == 0
