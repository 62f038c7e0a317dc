"""Losses of PyTorch that are given something else than they are made for, wherever they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.causes.output import loss_mismatch, output_activation
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Suspicion

RECIPE = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="8ep")


def rows(count: int = 200) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(0))


def net(outputs: int = 1, *end: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs), *end)


def yes_no() -> Tensor:
    return (rows()[:, :1] > 0).float()


def exam_of(model: nn.Module, loss: Any, targets: Tensor) -> Examination:
    return Examination(open_case(fogline.Task(model, loss, (rows(), targets)), RECIPE))


def mended(found: Suspicion, given: Examination) -> Any:
    return given.program_with(found.remedies[0]).loss


def _cosine(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return F.cosine_embedding_loss(model(x), model(x.flip(1)), y[:, 0])


def _cosine_by_name(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return nn.CosineEmbeddingLoss()(input1=model(x), input2=model(x.flip(1)), target=y[:, 0])


@pytest.mark.parametrize("loss", [_cosine, _cosine_by_name])
def test_zeros_where_signs_are_wanted_in_a_loss_of_a_batch(loss: Any) -> None:
    given = exam_of(net(3), fogline.on_batch(loss), yes_no())
    found = loss_mismatch(given)
    assert found is not None
    assert found.proof
    batch, model = given.anatomy.batch, given.anatomy.model
    signs = [batch[0], 2 * batch[1] - 1]
    torch.testing.assert_close(mended(found, given).function(model, batch), loss(model, signs))
    assert loss_mismatch(exam_of(net(3), fogline.on_batch(loss), 2 * yes_no() - 1)) is None


@pytest.mark.parametrize("whole", [False, True])
def test_zeros_where_signs_are_wanted_of_pairs(whole: bool) -> None:
    def margin(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.soft_margin_loss(outputs, targets)

    targets = yes_no().long() if whole else yes_no()
    given = exam_of(net(), margin, targets)
    found = loss_mismatch(given)
    assert found is not None
    assert "-1" in found.remedies[0].title
    outputs = torch.randn(9, 1)
    ones = (torch.arange(9)[:, None] % 2).to(targets.dtype)
    torch.testing.assert_close(mended(found, given)(outputs, ones), F.soft_margin_loss(outputs, 2 * ones - 1))
    signed = exam_of(net(), margin, 2 * targets - 1)
    assert loss_mismatch(signed) is None


def test_targets_that_are_given_first() -> None:
    def keras(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy(targets, outputs)

    given = exam_of(net(1, nn.Sigmoid()), keras, yes_no())
    found = loss_mismatch(given)
    assert found is not None
    assert found.proof
    outputs, targets = torch.rand(9, 1, requires_grad=True), (torch.arange(9)[:, None] % 2).float()
    torch.testing.assert_close(mended(found, given)(outputs, targets), F.binary_cross_entropy(outputs, targets))
    right = exam_of(net(1, nn.Sigmoid()), lambda out, y: F.binary_cross_entropy(out, y), yes_no())
    assert loss_mismatch(right) is None


def test_a_divergence_may_be_meant_either_way() -> None:
    shares = rows()[:, :3].softmax(1)

    def reversed_divergence(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.kl_div(targets.log(), outputs.softmax(1), reduction="batchmean")

    assert loss_mismatch(exam_of(net(3), reversed_divergence, shares)) is None


def test_signs_that_a_loss_of_ones_own_refuses() -> None:
    def entropy(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy(outputs, targets)

    found = loss_mismatch(exam_of(net(1, nn.Sigmoid()), entropy, 2 * yes_no() - 1))
    assert found is not None
    assert found.blocks
    assert found.remedies


class Places(nn.Module):
    """Classes of each pixel, a softmax over some dimension."""

    def __init__(self, dim: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.dim = nn.Conv2d(1, 3, 3, padding=1), dim

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.conv(x)
        return scores if self.dim is None else scores.log_softmax(self.dim)


def pictures() -> tuple[Tensor, Tensor]:
    x = torch.randn(60, 1, 6, 5, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0.5).long() + (x[:, 0] > 0).long()


@pytest.mark.parametrize("dim", [0, 2, 3, -1])
def test_a_softmax_over_places(dim: int) -> None:
    given = Examination(open_case(fogline.Task(Places(dim), nn.NLLLoss(), pictures()), RECIPE))
    found = output_activation(given)
    assert found is not None
    assert found.proof
    edit = found.remedies[0].on_model
    assert edit is not None
    x = pictures()[0][:4]
    torch.testing.assert_close(edit(Places(dim))(x), Places(1)(x))


@pytest.mark.parametrize(("dim", "loss"), [(1, nn.NLLLoss()), (None, nn.CrossEntropyLoss())])
def test_classes_of_places_that_are_compared(dim: int | None, loss: nn.Module) -> None:
    given = Examination(open_case(fogline.Task(Places(dim), loss, pictures()), RECIPE))
    assert output_activation(given) is None


class ClassesLast(Places):
    """The same with the classes in the last dimension, as images are drawn."""

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.conv(x).movedim(1, -1)
        return scores.log_softmax(-1)


@pytest.mark.parametrize(("model", "told"), [(ClassesLast(None), []), (Places(2), ["output_activation"])])
def test_a_loop_with_a_softmax_over_places(model: nn.Module, told: list[str], tmp_path: Path) -> None:
    """Outputs with the classes last are turned for the loss: there a softmax over the last dimension is right."""
    x, y = pictures()
    optimizer = torch.optim.Adam(model.parameters())
    with fogline.watch(model, optimizer, runs=tmp_path, progress=False) as run:
        for _ in range(6):
            optimizer.zero_grad()
            outputs = model(x)
            loss = F.nll_loss(outputs.movedim(-1, 1).contiguous() if isinstance(model, ClassesLast) else outputs, y)
            loss.backward()
            optimizer.step()
            run.log(loss)
    assert [f["cause"] for f in run.findings if f["cause"] == "output_activation"] == told
