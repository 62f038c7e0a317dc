"""Weights that no optimizer gets: made in ``forward``, or kept in plain tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.causes.loop.learned import loose_weights, parameters_not_optimized
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Suspicion
from fogline.doctor.fleeting import Strangers
from fogline.doctor.trial import Laboratory

RECIPE = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="10ep")


class Made(nn.Module):
    """A layer that is made in forward, and filled by hand."""

    def __init__(self, *, once: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 1)
        self.middle = nn.Linear(16, 16) if once else None

    def forward(self, x: Tensor) -> Tensor:
        middle = self.middle
        if middle is None:
            middle = nn.Linear(16, 16)
            nn.init.kaiming_normal_(middle.weight)
        found: Tensor = self.last(middle(self.first(x).tanh()).tanh())
        return found


class Recurrent(nn.Module):
    """A recurrent layer that is made in forward."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = nn.GRU(2, 1, batch_first=True)(x.reshape(len(x), 3, 2))[0][:, -1]
        return found


class Starting(nn.Module):
    """Zeros that are made parameters in each pass: a first state, which is the same each time."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(6, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.cell(x, nn.Parameter(torch.zeros(len(x), 8))))
        return found


class Loose(nn.Module):
    """Weights of two layers in attributes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        first, second = torch.randn(6, 16) / 2, torch.randn(16, 16) / 3
        self.kind, self.head = kind, nn.Linear(16, 1)
        if kind == "asking":
            self.first, self.second = first.requires_grad_(), second.requires_grad_()
        elif kind == "scaled":
            self.first, self.second = nn.Parameter(first) * 1.0, nn.Parameter(second) * 1.0
        elif kind == "parameters":
            self.first, self.second = nn.Parameter(first), nn.Parameter(second)
        elif kind == "list":
            self.both = [nn.Parameter(first), nn.Parameter(second)]
        elif kind == "dict":
            self.named = {"first": nn.Parameter(first), "second": nn.Parameter(second)}
        else:
            self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "list":
            first, second = self.both
        elif self.kind == "dict":
            first, second = self.named["first"], self.named["second"]
        else:
            first, second = self.first, self.second
        found: Tensor = self.head(((x @ first).tanh() @ second).tanh())
        return found


class Constants(nn.Module):
    """Fixed numbers among the attributes: not drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.head = torch.ones(6), nn.Linear(6, 1)
        self.window = torch.hann_window(6)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head((x - self.shift) * self.window)
        return found


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    return x, x[:, :1] * x[:, 1:2] + x[:, 2:3]


def exam_of(model: nn.Module, steps: int = 0) -> Examination:
    found = Examination(open_case(fogline.Task(model, nn.MSELoss(), data()), RECIPE))
    if steps:
        found.observed = Laboratory(found.case, 10_000).observe(found.program, steps)
    return found


def mended(found: Suspicion | None, model: nn.Module) -> nn.Module:
    assert found is not None
    edit = found.remedies[0].on_model
    assert edit is not None
    return edit(model)


@pytest.mark.parametrize("model", [Made(), Recurrent()])
def test_layers_that_are_made_in_forward_are_kept(model: nn.Module) -> None:
    found = parameters_not_optimized(exam_of(model))
    assert found is not None
    assert found.proof
    before = sum(p.numel() for p in model.parameters())
    kept = mended(found, model)
    x, y = data()
    torch.testing.assert_close(kept(x[:5]), kept(x[:5]))
    made = list(kept.parameters())
    assert sum(p.numel() for p in made) == before + found.evidence[0].value
    nn.functional.mse_loss(kept(x), y).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in made)


@pytest.mark.parametrize("model", [Made(once=True), Starting(), Constants()])
def test_layers_that_are_made_once_are_left_alone(model: nn.Module) -> None:
    assert parameters_not_optimized(exam_of(model)) is None


def test_a_layer_made_in_forward_learns_once_it_is_kept() -> None:
    report = fogline.diagnose(fogline.Task(Made, nn.MSELoss(), data()), RECIPE)
    assert [finding.cause for finding in report.findings][:1] == ["parameters_not_optimized"]
    trial = report.findings[0].trial
    assert trial is not None
    assert trial.accepted


def test_strangers_stay_where_what_is_kept_has_another_shape() -> None:
    layer, kept = nn.Linear(3, 2), [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(7))]
    x = torch.randn(4, 3)
    with Strangers((), kept) as seen:
        found = layer(x)
    torch.testing.assert_close(found, layer.bias.expand(4, 2))
    assert [p.shape for p in seen.seen] == [(2, 3), (2,)]


@pytest.mark.parametrize("kind", ["asking", "list", "dict"])
def test_plain_tensors_that_ask_for_a_gradient(kind: str) -> None:
    wrong = Loose(kind)
    found = parameters_not_optimized(exam_of(wrong))
    assert found is not None
    assert found.proof
    model = mended(found, wrong)
    assert sum(p.numel() for p in model.parameters()) == 6 * 16 + 16 * 16 + 17
    torch.testing.assert_close(model(data()[0]), Loose(kind)(data()[0]))


@pytest.mark.parametrize("kind", ["plain", "scaled"])
def test_plain_tensors_that_look_drawn_where_the_rest_does_badly(kind: str) -> None:
    assert parameters_not_optimized(exam_of(Loose(kind))) is None
    found = loose_weights(exam_of(Loose(kind), 60))
    assert found is not None
    assert not found.proof
    assert len(list(mended(found, Loose(kind)).parameters())) == 4


def test_parameters_are_parameters() -> None:
    assert parameters_not_optimized(exam_of(Loose("parameters"))) is None
    assert loose_weights(exam_of(Loose("parameters"), 60)) is None
    assert loose_weights(exam_of(Constants(), 60)) is None
