"""A column that meets a row of numbers inside a loss of one's own, or inside a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.causes.output.tables import made_into_tables
from fogline.doctor.examination import Examination
from fogline.task import OnBatch

RECIPE = fogline.Recipe(optimizer="adam", lr=5e-3, batch_size=32, duration="12ep")
Pair = tuple[Tensor, Tensor]


def numbers(count: int, seed: int = 0) -> Pair:
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=source)
    return x, 2 * x[:, :1] - x[:, 1:2] + 0.1 * torch.randn(count, 1, generator=source)


class Net(nn.Module):
    """A column of numbers; or as they come, less what the inputs are on average."""

    def __init__(self, *, less_mean: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.less_mean = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1)), less_mean

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return (found - x.mean(1)).mean(1, keepdim=True) if self.less_mean else found


def of_batch(compare: Any) -> OnBatch:
    return fogline.on_batch(lambda model, batch: compare(model(batch[0]), batch[1]).mean())


def by_twos(outputs: Tensor, targets: Tensor) -> Tensor:
    """Each pair of rows in the right order."""
    scores = outputs[:, 0]
    return F.softplus(-(scores[:, None] - scores) * torch.sign(targets - targets[:, 0]))


FAULTY: dict[str, Any] = {
    "a library's loss, of a batch": of_batch(lambda o, t: F.mse_loss(o, t[:, 0])),
    "differences, of a batch": of_batch(lambda o, t: (o - t[:, 0]).square()),
    "outputs squeezed": lambda o, t: (o.squeeze(1) - t).square().mean(),
    "outputs squeezed, weighed": lambda o, t: ((1 + t[:, 0].abs()) * (o.squeeze(1) - t).square()).mean(),
}
SOUND: dict[str, Any] = {
    "columns, of a batch": of_batch(lambda o, t: (o - t).square()),
    "a loss of one's own": lambda o, t: ((1 + t[:, 0].abs()) * (o - t)[:, 0].square()).mean(),
    "each with each": of_batch(by_twos),
    "weights of one batch for all": of_batch(lambda o, t: (o - t).square() * torch.ones(len(t), 1)),
}


def exam(loss: Any, model: Any = Net) -> Examination:
    return Examination(open_case(fogline.Task(model, loss, numbers(300), numbers(100, 1)), RECIPE))


@pytest.mark.parametrize("name", FAULTY)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_it_is_said_and_mended(name: str) -> None:
    task = fogline.Task(Net, FAULTY[name], numbers(300), numbers(100, 1))
    found = made_into_tables(exam(FAULTY[name]))
    assert found is not None
    assert found.cause == "shape_broadcast"
    assert found.proof
    assert "32 x 32" in found.explanation
    report = fogline.diagnose(task, RECIPE)
    assert report.findings[0].cause == "shape_broadcast"
    assert "loss_mismatch" not in [one.cause for one in report.findings]
    fixed, recipe = report.apply(task, RECIPE)
    assert made_into_tables(Examination(open_case(fixed, recipe))) is None
    x, y = numbers(100, 1)
    run = fogline.fit(fixed, recipe, progress=False)
    assert F.mse_loss(run.model(x), y) < 0.2 * y.var()


@pytest.mark.parametrize("name", SOUND)
def test_its_look_alikes_are_sound(name: str) -> None:
    assert made_into_tables(exam(SOUND[name])) is None


def test_of_weights_alone_it_is_said_though_nothing_is_gained() -> None:
    report = fogline.diagnose(
        fogline.Task(
            Net, of_batch(lambda o, t: (o - t).square() * (1 + 5 * (t[:, 0] > 1))), numbers(300), numbers(100, 1)
        ),
        RECIPE,
    )
    assert [one.cause for one in report.findings] == ["shape_broadcast"]


def test_inside_a_model() -> None:
    found = made_into_tables(exam(nn.MSELoss(), lambda: Net(less_mean=True)))
    assert found is not None
    assert "In the model" in found.explanation
    assert found.remedies[0].on_model is not None
