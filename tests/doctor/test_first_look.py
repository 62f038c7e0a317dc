"""A run of ours tells its faults before it trains, and those that show themselves on the way."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fogline


def rows(count: int = 128) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long()


def net(softmax: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 2), *([nn.Softmax(1)] * softmax))


def fitted(tmp_path: Path, softmax: bool, data: Any = None, **given: Any) -> fogline.Run:
    task = fogline.Task(model=lambda: net(softmax), loss=nn.CrossEntropyLoss(), train=data or rows())
    recipe = {"optimizer": "adam", "lr": 0.01, "duration": "40st", "batch_size": 32} | given
    return fogline.fit(task, fogline.Recipe(**recipe), runs=tmp_path, progress=False)


def test_a_fault_is_told_on_the_first_batch(tmp_path: Path) -> None:
    run = fitted(tmp_path, True)
    assert run.findings["cause"].tolist() == ["double_softmax"]
    assert run.findings["step"].tolist() == [0]
    assert [(row["step"], row["kind"]) for row in run.events] == [(0, "finding")]
    assert "double_softmax" in run.report(tmp_path / "run.html").read_text()


def test_a_sound_program_is_left_in_peace(tmp_path: Path) -> None:
    assert not len(fitted(tmp_path, False).findings)


@pytest.mark.parametrize("softmax", [True, False])
def test_looking_changes_no_bit(softmax: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ends = [fitted(tmp_path / str(watch), softmax, watch=watch).model.state_dict() for watch in (0.0, 0.02)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert torch.equal(before, torch.get_rng_state())


def test_refused_rows_are_told_when_they_come(tmp_path: Path) -> None:
    x, y = rows()
    x[77, 2] = torch.nan
    run = fitted(tmp_path, False, (x, y))
    assert run.findings["cause"].tolist() == ["nan_in_data"]
    assert run.diagnose(budget=0) is not None


def test_a_stream_is_not_asked_twice(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            x, y = rows(4000)
            return iter(zip(x, y, strict=True))

    assert not len(fitted(tmp_path, True, Stream()).findings)


class _OddError(Exception):
    """Of a kind of its own, as checkers of types and shapes raise."""


class _Particular(nn.Module):
    """Refuses inputs that a gradient is asked of, and warns of fewer than ten rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise _OddError
        if len(x) < 10:
            warnings.warn("few rows", stacklevel=1)
        outputs: Tensor = self.layer(x)
        return outputs


def test_a_model_that_refuses_the_doctors_questions_is_trained(tmp_path: Path) -> None:
    X = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    task = fogline.Task(_Particular, nn.CrossEntropyLoss(), (X, (X[:, 0] > 0).long()))
    recipe = fogline.Recipe(lr=0.1, batch_size=16, duration="20ep")
    run = fogline.fit(task, recipe, runs=tmp_path)
    assert run.steps["loss"][-1] < run.steps["loss"][0]
    assert fogline.diagnose(task, recipe).verdict == "healthy"


@pytest.mark.parametrize("graph", [True, False])
def test_a_penalty_without_a_graph_is_told(graph: bool, tmp_path: Path) -> None:
    def penalised(model: nn.Module, batch: Any) -> Tensor:
        x = batch[0].clone().requires_grad_()
        outputs = model(x)
        slope = torch.autograd.grad(outputs.sum(), x, create_graph=graph, retain_graph=True)[0]
        loss: Tensor = nn.functional.cross_entropy(outputs, batch[1]) + (slope.norm(dim=1) - 1).square().mean()
        return loss

    task = fogline.Task(lambda: net(False), fogline.on_batch(penalised), rows())
    recipe = fogline.Recipe(optimizer="adam", lr=0.01, duration="8st", batch_size=32)
    run = fogline.fit(task, recipe, runs=tmp_path, progress=False)
    assert run.findings["cause"].tolist() == ([] if graph else ["detached_graph"])
