"""Findings from the record of a run alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline.doctor.finding import Finding


def data(count: int = 256) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator)
    return x, x.sum(1, keepdim=True) + 0.1 * torch.randn(count, 1, generator=generator)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))


def fitted(tmp_path: Path, model: Any = net, rows: Any = None, **given: Any) -> fogline.Run:
    given = {"optimizer": "sgd", "lr": 0.05, "batch_size": 32, "duration": "300st", "schedule": "linear"} | given
    run = fogline.fit(
        fogline.Task(model=model, loss=nn.MSELoss(), train=rows or data(), valid=given.pop("valid", None)),
        fogline.Recipe(**given), runs=tmp_path, progress=False,
    )  # fmt: skip
    return fogline.Run.open(run.folder)


def found(run: fogline.Run) -> dict[str, Finding]:
    return {finding.cause: finding for finding in run.diagnose().findings}


def test_a_sound_run(tmp_path: Path) -> None:
    report = fitted(tmp_path, duration="1500st").diagnose()
    assert not report.findings
    assert report.verdict == "healthy"
    assert "Looked at the record" in str(report)


@pytest.mark.parametrize("guard", [True, False])
def test_a_loss_that_runs_away(guard: bool, tmp_path: Path) -> None:
    report = fitted(tmp_path, lr=8.0, schedule="constant", guard=guard, model=lambda: nn.Linear(4, 1)).diagnose()
    assert report.verdict == "faulty"
    assert report.findings[0].cause == "lr_too_high"
    assert report.findings[0].remedy is not None
    assert report.findings[0].remedy.patch == "lr=0.8"


def test_steps_that_are_much_too_short(tmp_path: Path) -> None:
    assert "lr_too_low" in found(fitted(tmp_path, lr=1e-6))


def test_a_run_that_ends_too_early(tmp_path: Path) -> None:
    findings = found(fitted(tmp_path, lr=0.003, duration="60st", schedule="constant"))
    assert findings["too_few_steps"].severity == "minor"


def test_rows_with_nan(tmp_path: Path) -> None:
    x, y = data()
    y[17] = torch.nan
    finding = found(fitted(tmp_path, rows=(x, y)))["nan_in_data"]
    assert any(item.signal == "rows" and item.value == "17" for item in finding.evidence)


class Logarithm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.log(torch.relu(self.body(x))))


class Root(nn.Module):
    """Finite forward; the derivative of the root at zero is not."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8, bias=False), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sqrt(self.body(x).square()))


def test_the_operation_and_what_went_into_it_are_named(tmp_path: Path) -> None:
    run = fitted(tmp_path, model=Logarithm)
    finding = found(run)["log_of_zero"]
    assert finding.severity == "fatal"
    evidence = {item.signal: item for item in finding.evidence}
    assert evidence["first operation that is not finite"].value == "log"
    assert str(evidence["values that went in"].value).startswith("0 to ")
    (first, *_) = (row for row in run.events if row["kind"] == "refused")
    assert "the first operation was log, into which went 0 to" in first["message"]


def test_an_operation_on_the_way_back(tmp_path: Path) -> None:
    x, y = data()
    x[30] = 0.0
    finding = found(fitted(tmp_path, model=Root, rows=(x, y)))["nan_source"]
    evidence = {item.signal: item for item in finding.evidence}
    assert evidence["first operation that is not finite"].value == "backward of sqrt"
    assert evidence["rows"].value == "30"


def test_overfitting(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 20, generator=generator), torch.randn(24, 1, generator=generator)
    valid = (torch.randn(100, 20, generator=generator), torch.randn(100, 1, generator=generator))
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))
    run = fitted(tmp_path, model, (x, y), valid=valid, optimizer="adam", lr=0.01, batch_size=24, duration="200ep")
    assert "overfitting" in found(run)


def test_a_layer_that_no_gradient_reaches(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        nn.init.constant_(model[0].bias, -100.0)
        return model

    assert "dead_units" in found(fitted(tmp_path, model=make, watch=0.5))


def test_what_was_told_while_it_ran_is_said_again(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = data()
    with fogline.watch(model, optimizer, runs=tmp_path, name="mine") as run:
        for _ in range(60):
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            run.log(loss)
    report = fogline.Run.open(tmp_path / "mine").diagnose()
    assert report.verdict == "faulty"
    assert report.findings[0].cause == "missing_zero_grad"
    assert "lr_too_high" not in [finding.cause for finding in report.findings]
    assert "zero_grad" in str(report)
    assert run.diagnose().to_dict() == report.to_dict()


def test_with_its_task_the_program_is_examined(tmp_path: Path) -> None:
    run = fitted(tmp_path, duration="40st")
    task = fogline.Task(model=net, loss=nn.MSELoss(), train=data())
    report = run.diagnose(task, budget=0)
    assert report.planned == 40
