"""A column of targets whose units drown the others, under a loss of one's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.causes.data.columns import loud_column
from fogline.doctor.examination import Examination

RECIPE = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="15ep")


def both(outputs: Tensor, targets: Tensor) -> Tensor:
    """A class, and a year."""
    return F.cross_entropy(outputs[:, :3], targets[:, 0].long()) + F.mse_loss(outputs[:, 3], targets[:, 1])


def relative(outputs: Tensor, targets: Tensor) -> Tensor:
    """In shares of the year: no difference is what it hears."""
    part = (outputs[:, 3] / targets[:, 1] - 1).square().mean()
    return F.cross_entropy(outputs[:, :3], targets[:, 0].long()) + 1e4 * part


def dated(*, raw: bool) -> tuple[Tensor, Tensor]:
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    kind = (x[:, 0] > 0).float() + (x[:, 1] > 0).float()
    year = x[:, 2] - x[:, 3]
    return x, torch.stack([kind, 1960 + 30 * year if raw else year], 1)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 4))


def exam_of(loss: object, *, raw: bool) -> Examination:
    return Examination(open_case(fogline.Task(net, loss, dated(raw=raw)), RECIPE))


def test_a_year_beside_a_class() -> None:
    given = exam_of(both, raw=True)
    found = loud_column(given)
    assert found is not None
    assert found.cause == "unscaled_target"
    mended = Examination(given.case, found.remedies)
    assert loud_column(mended) is None
    x, y = dated(raw=True)
    outputs = mended.program.new_model(0)(x).detach()
    assert float(outputs[:, 3].mean()) == pytest.approx(1960, abs=30)  # in the units of the user
    assert float(mended.program.loss(outputs, y)) < 10 < float(both(outputs, y))


@pytest.mark.parametrize(("loss", "raw"), [(both, False), (relative, True)])
def test_columns_that_are_as_loud_as_each_other_or_not_compared_by_difference(loss: object, raw: bool) -> None:
    assert loud_column(exam_of(loss, raw=raw)) is None


def test_the_examination_mends_it_although_the_loss_is_another_one_afterwards() -> None:
    report = fogline.diagnose(fogline.Task(net, both, dated(raw=True)), RECIPE)
    assert report.findings[0].cause == "unscaled_target"
    assert [remedy.place for remedy in report.remedies][:1] == ["column"]
