"""The sweep stops for what it sees and not for noise; a rate that is far off is put right early in the run."""

from __future__ import annotations

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
from fogline.rate import find
from fogline.rate.bracket import Sweep, sweep
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


def test_a_small_budget_has_no_room_for_it(tmp_path: Path) -> None:
    run = fogline.fit(task(), measured(duration="300st"), runs=tmp_path)
    assert verified(run) == []
