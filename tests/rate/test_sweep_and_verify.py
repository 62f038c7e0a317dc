"""The sweep stops for what it sees and not for noise; a rate that is far off is put right early in the run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline import Recipe, Task
from fogline.data.source import InMemory
from fogline.descent.batches import Batches
from fogline.descent.objective import Objective
from fogline.descent.population import InTurn
from fogline.descent.step import Machine
from fogline.rate import find
from fogline.rate.bracket import Sweep, sweep
from fogline.rate.verify import Verification
from programs.problems import again, final_bits, recipe


def noisy(noise: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, 4, generator=generator)
    return x, x.sum(1, keepdim=True) + noise * torch.randn(1024, 1, generator=generator)


def swept(noise: float, factor: float = 1.0) -> Sweep:
    torch.manual_seed(0)
    batches = Batches(InMemory(noisy(noise)), 8)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return factor * nn.functional.mse_loss(outputs, targets)

    objective = Objective(nn.Linear(4, 1), loss)
    chosen = Recipe(optimizer="sgd", batch_size=8)
    member = InTurn(objective, chosen, 1, batches)
    common = batches.source.take(torch.arange(512, 1024))  # type: ignore[attr-defined]
    return sweep(member, batches.stream(0), common, 1e-5 / factor, 10 / factor, 40)


@pytest.mark.parametrize("noise", [0.0, 3.0])
@pytest.mark.parametrize("factor", [1.0, 1e6, 1e-6])
def test_a_sweep_ends_where_it_is_too_large_and_not_for_noise(noise: float, factor: float) -> None:
    """The largest eigenvalue of the Hessian is about 2, so plain descent is unstable from 1 on."""
    found = swept(noise, factor)
    assert found.blew_up
    assert 0.3 < found.rates[-1] * factor < 10
    assert 0.01 < found.lowest * factor < 1
    assert len(found.rates) == len(found.losses)


def wrong_by(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement is off by a factor: what only a look at the run itself can put right."""
    judged = find._judged

    def off(*arguments: Any) -> find.Rate:
        rate = judged(*arguments)
        return find.Rate(rate.value * factor, rate.interval, rate.cost_steps, rate.evidence, rate.warnings)

    monkeypatch.setattr(find, "_judged", off)


def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 8, generator=generator)
    y = x[:, :1] * x[:, 1:2] + 0.1 * torch.randn(2000, 1, generator=generator)

    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))

    return Task(model, nn.MSELoss(), (x[:1500], y[:1500]), (x[1500:], y[1500:]))


def measured(**fields: Any) -> Recipe:
    chosen = {"lr": "auto", "duration": "2200st", "batch_size": 32, "schedule": "linear", "watch": 0, "guard": False}
    return recipe(**({"checkpoint_every": "1h"} | chosen | fields))


def verified(run: fogline.Run) -> list[tuple[int, str]]:
    return [(event["step"], event["message"]) for event in run.events if event["kind"] == "rate_verified"]


def test_a_good_rate_is_kept(tmp_path: Path) -> None:
    run = fogline.fit(task(), measured(), runs=tmp_path)
    ((step, message),) = verified(run)
    assert step == 220
    assert message.startswith("learning rate kept")


def test_a_rate_far_too_low_is_raised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_by(1e-3, monkeypatch)
    run = fogline.fit(task(), measured(), runs=tmp_path)
    ((_, message),) = verified(run)
    assert message.startswith("learning rate multiplied by 3:")
    lr = run.steps["lr"]
    assert lr[220] == pytest.approx(3 * lr[219], rel=0.01)


def test_verifying_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    """Resumed before and behind it, the run has the bits of one that was not stopped."""
    chosen = measured(optimizer="adamw", checkpoint_every="20st", keep=200, clip="adaptive", duration="2000st")
    whole = fogline.fit(task(), chosen, runs=tmp_path, name="whole")
    for upto in (180, 200, 220):
        cut = again(whole.folder, tmp_path / f"cut-{upto}", upto)
        run = fogline.resume(cut, task())
        assert verified(run) == verified(whole)
        assert final_bits(cut) == final_bits(whole.folder)


@pytest.mark.parametrize("duration", ["60st", "300st"])
def test_every_run_is_verified_once(duration: str, tmp_path: Path) -> None:
    run = fogline.fit(task(), measured(duration=duration), runs=tmp_path)
    ((step, message),) = verified(run)
    assert step == int(duration[:-2]) // 10
    assert message.startswith("learning rate kept")


def quadratic(curvature: float, top: float, *, first: float, highest: float = math.inf) -> tuple[float, str]:
    """The verification of gradient descent on ``curvature / 2 * w ** 2`` from w = 1, where the loss is half of that."""
    x = torch.ones(64, 1)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return curvature / 2 * (outputs - targets).square().mean()

    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    batches = Batches(InMemory((x, 0 * x)), 8)
    machine = Machine(Objective(model, loss), torch.optim.SGD(model.parameters(), lr=top), torch.device("cpu"), seed=0)
    held_out = [(x[:8], 0 * x[:8]), (x[8:16], 0 * x[8:16])]
    answer = Verification(0, 4, held_out, first, highest).look(machine, batches, top, top)
    assert model.weight.item() == 1.0
    return answer


@pytest.mark.parametrize(
    ("rate", "first", "highest", "factor"),
    [
        (0.5, 1.0, math.inf, 1.0),  # three times would overshoot: |1 - 1.5| after the first step, against 0.5
        (0.02, 1.0, math.inf, 3.0),  # steps only add up
        (0.02, 1.0, 0.05, 1.0),  # the race saw that no rate beyond 0.05 is safe
        (6.0, 0.4, math.inf, 1 / 3),  # beyond 2 / curvature, and above the first loss
        (6.0, 0.6, math.inf, 1.0),  # the loss rises, but much was gained before
    ],
)
def test_a_quadratic_decides_as_its_curvature_says(rate: float, first: float, highest: float, factor: float) -> None:
    found, _ = quadratic(1.0, rate, first=first, highest=highest)
    assert found == pytest.approx(factor)


def test_the_unit_of_the_loss_changes_nothing() -> None:
    for unit in (1e-6, 1e6):
        assert quadratic(unit, 0.02 / unit, first=unit)[0] == 3.0
        assert quadratic(unit, 6.0 / unit, first=0.4 * unit)[0] == pytest.approx(1 / 3)
