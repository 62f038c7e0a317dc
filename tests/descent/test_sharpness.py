"""The sharpness against closed forms and Lanczos; what it leaves as it was; when it may measure."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline.descent.objective import Objective
from fogline.descent.optimizers import build, spec_of, stability_limit, state_tensors
from fogline.descent.sharpness import Sharpness, can_measure
from fogline.descent.step import Machine
from fogline.rate.curvature import edge
from fogline.record.probes import Budget
from programs.problems import final_bits, recipe

CURVATURES = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
ROWS = torch.ones(4, 1, dtype=torch.float64), torch.ones(4, 1, dtype=torch.float64)


class Quadratic(nn.Module):
    """f(w) = w . diag(CURVATURES) w / 2, whatever the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, rows: Tensor) -> Tensor:
        return (self.w.square() * CURVATURES).sum() / 2 + 0 * rows.sum()


def first(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs + 0 * targets.sum()


def sharpness(model: nn.Module, optimizer: str, loss: object = first, parts: int = 1, **options: object) -> Sharpness:
    made = build(model, optimizer, 0.1, options=options)
    machine = Machine(Objective(model, loss), made, torch.device("cpu"), parts=parts)
    return Sharpness(machine, spec_of(optimizer), Budget(0.02))


def converged(probe: Sharpness, batch: tuple[Tensor, Tensor] = ROWS, rate: float = 0.1) -> float | None:
    value = None
    for step in range(1, 40):
        value = probe.measure(step, batch, rate)
    return value


@pytest.mark.parametrize(
    ("optimizer", "limit"), [("gd", 2.0), ("momentum", 3.8), ("nesterov", 3.8 / 2.8), ("sgd", 2.0)]
)
@pytest.mark.parametrize("parts", [1, 2])
def test_of_a_quadratic_it_is_the_rate_times_the_largest_curvature_over_the_limit(
    optimizer: str, limit: float, parts: int
) -> None:
    assert converged(sharpness(Quadratic(), optimizer, parts=parts), rate=0.3) == pytest.approx(0.3 * 4 / limit)


def test_the_momentum_that_counts_is_that_of_the_options() -> None:
    assert converged(sharpness(Quadratic(), "momentum", momentum=0.5)) == pytest.approx(0.1 * 4 / 3)


def test_of_adam_it_is_that_of_the_preconditioned_quadratic() -> None:
    """At w = 1 the gradient is the curvature, and so is sqrt(v): preconditioned, the curvature is 1 everywhere."""
    probe = sharpness(Quadratic(), "adam")
    assert probe.measure(1, ROWS, 0.1) is None  # there is no v before the first step
    model = probe.machine.objective.model
    probe.machine.objective(ROWS).backward()
    probe.machine.optimizer.step()
    with torch.no_grad():
        model.w.fill_(1.0)
    assert converged(probe, rate=0.3) == pytest.approx(0.3 * 1 / stability_limit("preconditioned", 0.9), rel=1e-6)


def test_of_a_small_net_it_is_what_lanczos_finds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    batch = torch.randn(64, 6, dtype=torch.float64), torch.randint(3, (64,))
    found = edge(Objective(model, nn.CrossEntropyLoss()), [batch], spec_of("gd"), products=40)
    assert found is not None
    value = converged(sharpness(model, "gd", nn.CrossEntropyLoss()), batch)
    assert value == pytest.approx(0.1 / found, rel=0.01)


def test_nothing_is_disturbed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    batch = torch.randn(16, 6), torch.randint(3, (16,))
    probe = sharpness(model, "adamw", nn.CrossEntropyLoss())
    probe.machine.objective(batch).backward()
    probe.machine.optimizer.step()
    gradients = [p.grad for p in model.parameters()]
    tensors = {**model.state_dict(), **state_tensors(probe.machine.optimizer)}
    before = {name: value.clone() for name, value in tensors.items()}
    assert probe.measure(1, batch, 0.1) is not None
    assert all(torch.equal(value, before[name]) for name, value in tensors.items())
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))


@pytest.mark.parametrize("steps", ["eager", "chunked"])
def test_a_run_that_is_measured_has_the_bits_of_one_that_is_not(steps: str, tmp_path: Path) -> None:
    X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    task = fogline.Task(lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)), nn.MSELoss(), (X, X[:, :1]))
    duration = "4000st" if steps == "eager" else "60000st"  # it looks every twentieth of a second
    chosen = recipe(duration=duration, step=steps, checkpoint_every="1000000st")
    runs = [fogline.fit(task, chosen.replace(watch=w), runs=tmp_path, name=f"{w}") for w in (0.0, 0.9)]
    assert np.isfinite(runs[1].steps["sharpness"]).any()
    assert final_bits(runs[0].folder) == final_bits(runs[1].folder)


def test_gradient_descent_on_a_whole_data_set_comes_to_its_limit(tmp_path: Path) -> None:
    """Progressive sharpening up to the edge of stability, where it stays while the loss goes on falling."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(40, 5, generator=generator)
    y = torch.sin(3 * X[:, :1]) + X[:, 1:2] * X[:, 2:3]
    task = fogline.Task(lambda: nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, 1)), nn.MSELoss(), (X, y))
    run = fogline.fit(
        task, optimizer="gd", lr=0.3, batch_size="full", duration="3000st", schedule="constant", step="eager",
        watch=0.5, runs=tmp_path, progress=False,
    )  # fmt: skip
    table = run.steps
    there = np.isfinite(table["sharpness"]) & (table["step"] > 1500)
    assert there.sum() > 3
    assert 0.8 < np.median(table["sharpness"][there]) < 1.2


def test_it_waits_until_its_share_of_the_budget_pays_for_it() -> None:
    probe = sharpness(Quadratic(), "gd")
    probe.budget.started = time.perf_counter() - 1000.0  # 20 seconds are allowed
    assert not probe.affords(0)  # it is not known yet what a step takes
    probe.cost = 6.0
    assert probe.affords(1)
    assert probe.budget.saved == 6.0
    probe.budget.spent = 15.0
    assert not probe.affords(2)  # saving up: cheap probes leave room
    assert not probe.budget.affords(0.1)
    probe.cost = 7.0
    assert not probe.affords(3)  # more than its third: cheap probes need not wait for it
    assert probe.budget.affords(0.1)


def test_no_memory_for_it_ends_the_measuring_and_not_the_training() -> None:
    class Narrow(Quadratic):
        def forward(self, rows: Tensor) -> Tensor:
            if not torch.equal(self.w, torch.ones(3, dtype=torch.float64)):
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(rows)

    probe = sharpness(Narrow(), "gd")
    assert probe.measure(1, ROWS, 0.1) is None
    assert torch.equal(probe.machine.parameters[0].detach(), torch.ones(3, dtype=torch.float64))
    probe.budget.started, probe.budget.spent = -math.inf, 0.0
    assert not probe.affords(2)


def test_where_rounding_would_hide_the_difference_nothing_is_measured() -> None:
    probe = sharpness(Quadratic(), "gd")
    assert can_measure(probe.machine, probe.spec)
    assert not can_measure(sharpness(Quadratic().bfloat16(), "gd").machine, probe.spec)


def test_under_mixed_precision_it_is_measured_in_full() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    batch = torch.sin(torch.arange(24.0)).reshape(8, 3), torch.cos(torch.arange(8.0))[:, None]
    full, mixed = (sharpness(model, "gd", nn.MSELoss()) for _ in range(2))
    mixed.machine.objective.autocast = torch.bfloat16
    value = full.measure(1, batch, 0.1)
    assert value is not None
    assert mixed.measure(1, batch, 0.1) == value


@pytest.mark.parametrize("optimizer", ["lion", "lbfgs"])
def test_where_no_limit_is_known_nothing_is_measured(optimizer: str, tmp_path: Path) -> None:
    task = fogline.Task(nn.Linear(6, 1), nn.MSELoss(), (torch.ones(8, 6), torch.ones(8, 1)))
    run = fogline.fit(task, optimizer=optimizer, lr=1e-3, duration="20st", batch_size=8, runs=tmp_path, watch=0.9)
    assert not np.isfinite(run.steps["sharpness"]).any()
