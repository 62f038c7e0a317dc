"""Rows that are taken for time, for what is shared out, or for positions."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.causes.flow.rows import rows_mixed
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Suspicion

TIME, FEATURES, WIDTH = 8, 4, 16
Kind = Literal["lstm", "encoder", "attention"]


class Sequence(nn.Module):
    """A layer of PyTorch that takes the rows first, or second."""

    def __init__(self, kind: Kind, *, first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.kind = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, 2), kind
        if kind == "lstm":
            self.layer: nn.Module = nn.LSTM(WIDTH, WIDTH, batch_first=first)
        elif kind == "attention":
            self.layer = nn.MultiheadAttention(WIDTH, 2, batch_first=first)
        else:
            self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=first)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        given = {"lstm": (h,), "encoder": (h,), "attention": (h, h, h)}[self.kind]
        out = self.layer(*given)
        out = out if self.kind == "encoder" else out[0]
        found: Tensor = self.head(out[:, -1])
        return found


class TimeFirst(nn.Module):
    """What PyTorch's default wants: time is moved to the front, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(FEATURES, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.layer(x.transpose(0, 1))[0][-1])
        return found


class RowsAsNodes(nn.Module):
    """Rows that are meant to look at one another: one sequence of them all."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.MultiheadAttention(FEATURES, 2), nn.Linear(FEATURES, 2)

    def forward(self, x: Tensor) -> Tensor:
        nodes = x.mean(1)[:, None]
        found: Tensor = self.head(self.layer(nodes, nodes, nodes)[0][:, 0])
        return found


class Pooled(nn.Module):
    """A weighted mean of the steps, its weights a softmax over some axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score, self.head, self.axis = nn.Linear(FEATURES, 1), nn.Linear(FEATURES, 2), axis

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head((self.score(x).softmax(self.axis) * x).sum(1))
        return found


class Positioned(nn.Module):
    """Positions from a table (positions, 1, width), cut along an axis of the input."""

    def __init__(self, *, of_rows: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.of_rows = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, 2), of_rows
        angles = torch.arange(500)[:, None] * torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(1e4) / WIDTH))
        self.register_buffer("table", torch.cat([angles.sin(), angles.cos()], 1)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        h, table = self.embed(x), self.get_buffer("table")
        h = h + (table[: x.size(0)] if self.of_rows else table[: x.size(1)].transpose(0, 1))
        found: Tensor = self.head(h.relu().mean(1))
        return found


def series(count: int = 200) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, TIME, FEATURES, generator=torch.Generator().manual_seed(0))
    return x, (x[..., 0].sum(1) > 0).long()


def found_in(model: nn.Module) -> Suspicion | None:
    task = fogline.Task(model, nn.CrossEntropyLoss(), series())
    return rows_mixed(Examination(open_case(task, fogline.Recipe(optimizer="adam", batch_size=32))))


@pytest.mark.parametrize("kind", ["lstm", "encoder", "attention"])
def test_layers_that_take_time_first_are_given_rows_first(kind: Kind) -> None:
    wrong, healthy = Sequence(kind, first=False), Sequence(kind, first=True)
    found = found_in(wrong)
    assert found is not None
    assert found.proof
    assert found.cause == "shape_broadcast"
    assert found.otherwise is not None
    assert found_in(healthy) is None
    edit = found.remedies[0].on_model
    assert edit is not None
    assert "batch_first=True" in found.remedies[0].patch
    x, _ = series(20)
    torch.testing.assert_close(edit(wrong).eval()(x), healthy.eval()(x))


@pytest.mark.parametrize("model", [TimeFirst(), RowsAsNodes(), Pooled(1), Positioned(of_rows=False)])
def test_rows_that_are_kept_apart_or_meant_to_meet(model: nn.Module) -> None:
    assert found_in(model) is None


def test_a_softmax_over_the_rows() -> None:
    wrong = Pooled(0)
    found = found_in(wrong)
    assert found is not None
    assert not found.proof
    edit = found.remedies[0].on_model
    assert edit is not None
    x, _ = series(20)
    torch.testing.assert_close(edit(wrong)(x), Pooled(1)(x))


def test_positions_that_are_added_along_the_rows() -> None:
    wrong = Positioned(of_rows=True)
    found = found_in(wrong)
    assert found is not None
    assert found.cause == "shape_broadcast"
    edit = found.remedies[0].on_model
    assert edit is not None
    x, _ = series(20)
    torch.testing.assert_close(edit(wrong)(x), Positioned(of_rows=False)(x))


def test_the_whole_examination_mends_a_recurrent_layer_that_goes_from_row_to_row() -> None:
    x, y = series(500)
    recipe = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="12ep")
    data = {"train": (x[:400], y[:400]), "valid": (x[400:], y[400:])}
    report = fogline.diagnose(
        fogline.Task(lambda: Sequence("lstm", first=False), nn.CrossEntropyLoss(), **data), recipe
    )
    assert report.findings[0].cause == "shape_broadcast"
    trial = report.findings[0].trial
    assert trial is not None
    assert trial.effect > 0.2
