"""The guard goes back where a run runs away, and leaves every other run as it is."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline import Recipe, Run, Task, Verdict
from programs.problems import again, classification, counted, final_bits, mlp, points, recipe


def regression(scale: float = 1.0) -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 6, generator=generator)
    y = torch.tanh(x @ torch.randn(6, 1, generator=generator)) + 0.1 * torch.randn(256, 1, generator=generator)

    def model() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return scale * nn.functional.mse_loss(outputs, targets)

    return Task(model, loss, (x, y))


def guarded(lr: float, **fields: object) -> Recipe:
    chosen = {"lr": lr, "guard": True, "duration": "400st", "batch_size": 32, "schedule": "constant", "warmup": 0}
    return recipe(checkpoint_every="1h", **(chosen | fields))


def kinds(run: Run) -> list[str]:
    return [event["kind"] for event in run.events if event["kind"] not in ("refused", "finding")]


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6])
def test_a_rate_too_high_is_lowered_until_it_descends(scale: float, tmp_path: Path) -> None:
    wild = fogline.fit(regression(scale), guarded(4.0 / scale, guard=False), runs=tmp_path, name="wild")
    run = fogline.fit(regression(scale), guarded(4.0 / scale), runs=tmp_path, name="guarded")
    assert "rollback" in kinds(run)
    assert 1 <= kinds(run).count("rollback") <= 3
    start, end = (float(part.mean()) for part in (run.steps["loss"][:3], run.steps["loss"][-50:]))
    assert end < 0.2 * start
    assert not end > 0.5 * float(wild.steps["loss"][-50:].mean())  # NaN there too


def test_after_three_times_it_gives_up_with_the_verdict(tmp_path: Path) -> None:
    run = fogline.fit(regression(), guarded(1e6), runs=tmp_path)
    assert kinds(run) == ["rollback"] * 3 + ["gave_up"]
    assert run.findings["cause"].tolist() == ["lr_too_high"]
    assert run.verdict is Verdict.DIVERGED
    assert run.info["steps"] < 400


@pytest.mark.parametrize(
    ("optimizer", "lr", "schedule"),
    [("momentum", 0.05, "constant"), ("momentum", 0.3, "linear"), ("adamw", 0.01, "one_cycle"), ("sgd", 0.1, "wsd")],
)
def test_a_healthy_run_is_bitwise_what_it_is_without(
    optimizer: str, lr: float, schedule: str, quick_path: Path
) -> None:
    runs = [
        fogline.fit(
            classification(),
            guarded(lr, optimizer=optimizer, schedule=schedule, guard=guard, batch_size=8),
            runs=quick_path,
            name=str(guard),
        )
        for guard in (True, False)
    ]
    assert kinds(runs[0]) == []
    weights = [{k: v for k, v in final_bits(run.folder).items() if "guard/" not in k} for run in runs]
    assert weights[0] == weights[1]


def test_rows_that_are_bad_are_no_fault_of_the_rate(tmp_path: Path) -> None:
    x, y = points(64)
    x[::9] = math.nan
    task = Task(mlp, nn.CrossEntropyLoss(), (x, y))
    run = fogline.fit(task, guarded(0.05, batch_size=4, duration="60st"), runs=tmp_path)
    assert "rollback" not in kinds(run)
    assert run.info["refused"] > 3


@pytest.mark.parametrize("upto", [1, 19, 20, 21, 33, 60])
def test_a_guarded_run_resumes_with_the_same_bits(upto: int, quick_path: Path) -> None:
    chosen = guarded(4.0, duration="80st", optimizer="adamw", clip="adaptive", ema=0.9)
    chosen = chosen.replace(checkpoint_every="1st", keep=100)
    whole = fogline.fit(regression(), chosen, runs=quick_path, name="whole")
    cut = again(whole.folder, quick_path / "cut", upto)
    fogline.resume(cut, regression())
    assert final_bits(cut) == final_bits(whole.folder)
    assert counted(cut) == counted(whole.folder)


def test_it_is_on_where_the_rate_is_measured(tmp_path: Path) -> None:
    measured = fogline.fit(regression(), guarded(1.0, guard="auto").replace(lr="auto"), runs=tmp_path, name="measured")
    given = fogline.fit(regression(), guarded(0.1, guard="auto"), runs=tmp_path, name="given")
    assert measured.recipe.guard is True
    assert given.recipe.guard is False
