"""Risk sets of a partial likelihood."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.causes.output import risk_sets
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Suspicion

RECIPE = fogline.Recipe(optimizer="adam", lr=3e-3, batch_size=64, duration="30ep")


def patients(rows: int = 600) -> tuple[Tensor, Tensor, Tensor]:
    """Measurements (rows, 5), times (rows,) and whether it was an event, (rows,)."""
    draws = torch.Generator().manual_seed(0)
    seen = torch.randn(rows, 5, generator=draws)
    hazard = (1.5 * seen[:, 0] - seen[:, 1]).exp()
    times, ends = (torch.rand(rows, generator=draws).log().neg() for _ in range(2))
    times, ends = times / hazard, 2 * ends
    return seen, torch.minimum(times, ends), (times <= ends).float()


def likelihood(risk: Tensor, time: Tensor, event: Tensor, *, longest_first: bool | None) -> Tensor:
    if longest_first is not None:
        order = time.argsort(descending=longest_first)
        risk, event = risk[order], event[order]
    return -((risk - torch.logcumsumexp(risk, 0)) * event).sum() / event.sum().clamp(min=1)


def of_pairs(longest_first: bool | None, rows: tuple[Tensor, Tensor, Tensor]) -> fogline.Task:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return likelihood(outputs.squeeze(1), targets[:, 0], targets[:, 1], longest_first=longest_first)

    return fogline.Task(net, loss, (rows[0], torch.stack(rows[1:], 1)))


def of_batches(longest_first: bool | None, rows: tuple[Tensor, Tensor, Tensor]) -> fogline.Task:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return likelihood(model(batch["x"]).squeeze(-1), batch["time"], batch["event"], longest_first=longest_first)

    return fogline.Task(net, fogline.on_batch(loss), dict(zip(("x", "time", "event"), rows, strict=True)))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1))


def seen(task: fogline.Task) -> Suspicion | None:
    return risk_sets(Examination(open_case(task, RECIPE)))


@pytest.mark.parametrize(("make", "longest_first"), [(of_pairs, False), (of_batches, False), (of_pairs, None)])
def test_who_is_at_risk(make: Any, longest_first: bool | None) -> None:
    task = make(longest_first, patients())
    found = seen(task)
    assert found is not None
    assert found.cause == "loss_mismatch"
    assert seen(make(True, patients())) is None
    report = fogline.diagnose(task, RECIPE)
    assert report.findings[0].cause == "loss_mismatch"
    mended, _ = report.apply(task, RECIPE)
    assert seen(mended) is None
    run = fogline.fit(mended, RECIPE, progress=False)
    inputs, times, events = patients()
    risk = run.model(inputs).detach().squeeze(1)
    pairs = (times[:, None] < times) & (events[:, None] > 0)
    assert float((risk[:, None] > risk)[pairs].float().mean()) > 0.75


def test_rows_that_lie_in_order_are_meant_to() -> None:
    inputs, times, events = patients()
    order = times.argsort(descending=True)
    assert seen(of_pairs(None, (inputs[order], times[order], events[order]))) is None


def test_other_losses_of_a_time_and_an_event() -> None:
    def weibull(outputs: Tensor, targets: Tensor) -> Tensor:
        times, events = targets.unbind(1)
        scale, shape = (torch.nn.functional.softplus(part) + 0.1 for part in outputs.unbind(1))
        hazard = shape.log() - scale.log() + (shape - 1) * (times.log() - scale.log())
        return ((times / scale) ** shape - events * hazard).mean()

    def errors(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs[:, 0] + targets[:, 0].log()) * targets[:, 1]).square().mean()

    rows = patients()
    pair = rows[0], torch.stack(rows[1:], 1)
    torch.manual_seed(1)
    wide = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2))
    assert seen(fogline.Task(wide, weibull, pair)) is None
    assert seen(fogline.Task(net, errors, pair)) is None
    report = fogline.diagnose(fogline.Task(wide, weibull, pair), RECIPE)
    assert report.findings == ()
