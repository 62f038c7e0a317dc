"""Causes in the numbers themselves: each found where it is planted, and silent on its healthy twin."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.causes import number
from fogline.doctor.causes.number.guard import Guarded
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Suspicion
from fogline.doctor.trial import Laboratory

RECIPE = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="10ep")
Pair = tuple[Tensor, Tensor]


def yes_no(scale: float = 1.0) -> Pair:
    X = torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
    return scale * X, (X[:, :1] > 0).float()


def three(scale: float = 1.0) -> Pair:
    X = torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
    return scale * X, X[:, :3].argmax(1)


def numbers() -> Pair:
    X = torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
    return X, X[:, :1] * 2


def net(outputs: int, *last: nn.Module, first: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(first or nn.Identity(), nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, outputs), *last)


def binary_entropy(p: Tensor, y: Tensor) -> Tensor:
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


def guarded_entropy(p: Tensor, y: Tensor) -> Tensor:
    return -(y * torch.log(p + 1e-7) + (1 - y) * torch.log(1 - p + 1e-7)).mean()


def lost_epsilon(p: Tensor, y: Tensor) -> Tensor:
    p = p.clamp(1e-8, 1 - 1e-8)  # 1 - 1e-8 is 1 in float32
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


def entropy_of_labels(p: Tensor, y: Tensor) -> Tensor:
    return -torch.log(p[torch.arange(len(p)), y]).mean()


def log_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (torch.log(1 + outputs) - torch.log(1 + targets)).square().mean()


def root_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.sqrt((outputs - outputs).square() + 0 * targets).mean() + (outputs - targets).square().mean()


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(x + 1)


class Centred(nn.Module):
    """Divides by the deviation of each column, of which one has none."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / x.std(0)


class Arc(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.acos(x.tanh() * 1.1)


class Alone(nn.Module):
    """Adds the deviation of a single number."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x[:, :1].std(1, keepdim=True)


class Attending(nn.Module):
    """Weighs columns by a softmax of those above 0, of which a row may have none."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.masked_fill(x <= 0, -math.inf).softmax(1)


def exam_of(model: nn.Module, loss: Any, data: Pair, recipe: fogline.Recipe = RECIPE) -> Examination:
    return Examination(open_case(fogline.Task(model, loss, data), recipe))


def in_motion(exam: Examination, steps: int = 40) -> Examination:
    exam.observed = Laboratory(exam.case, 1e6).observe(exam.program, steps)
    return exam


def causes(exam: Examination) -> list[str]:
    return [found.cause for cause in number.ON_ONE_BATCH if (found := cause(exam))]


HEALTHY: dict[str, Callable[[], Examination]] = {
    "logits": lambda: exam_of(net(3), nn.CrossEntropyLoss(), three()),
    "large logits": lambda: exam_of(net(3), nn.CrossEntropyLoss(), three(1e4)),
    "numbers": lambda: exam_of(net(1), nn.MSELoss(), numbers()),
    "probabilities": lambda: exam_of(net(1, nn.Sigmoid()), nn.BCELoss(), yes_no()),
    "written out": lambda: exam_of(net(1, nn.Sigmoid()), binary_entropy, yes_no()),
    "guarded": lambda: exam_of(net(1, nn.Sigmoid()), guarded_entropy, yes_no(1e3)),
    "by hand": lambda: exam_of(net(3, nn.Softmax(1)), entropy_of_labels, three()),
    "on a batch": lambda: exam_of(net(4), fogline.on_batch(lambda m, b: F.mse_loss(m(b[0]), b[0])), numbers()),
    "norm of rows": lambda: exam_of(net(1), lambda o, t: (o - t).norm(dim=1).mean(), numbers()),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_silent(name: str) -> None:
    exam = HEALTHY[name]()
    assert causes(exam) == []
    assert causes(in_motion(exam)) == []


def test_targets_too_far_off_for_the_loss() -> None:
    X, y = numbers()

    def log_cosh(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).cosh().log().mean()

    found = number.nan_source(exam_of(net(1), log_cosh, (X, 60 * y)))
    assert found is not None
    assert found.remedies[0].title == "scale the targets"
    assert number.nan_source(exam_of(net(1), log_cosh, (X, y))) is None


@pytest.mark.parametrize("lr", [1e3, 1e7, 1e12])
def test_weights_that_flew_off_are_not_of_a_softmax_making(lr: float) -> None:
    recipe = fogline.Recipe(optimizer="sgd", lr=lr, batch_size=32, duration="10ep", guard=False)
    exam = in_motion(exam_of(net(3), nn.CrossEntropyLoss(), three(), recipe))
    trained = exam.trained_anatomy
    assert trained is not None
    assert not bool(torch.isfinite(trained.model(three()[0])).all())
    assert [s.cause for cause in number.IN_MOTION if (s := cause(exam))] == []


@pytest.mark.parametrize(
    ("model", "loss", "data", "known"),
    [
        (lambda: net(1, nn.Sigmoid()), binary_entropy, lambda: yes_no(1e4), nn.BCELoss),
        (lambda: net(3, nn.Softmax(1)), entropy_of_labels, lambda: three(1e4), None),
    ],
)
def test_log_of_zero(model: Any, loss: Any, data: Any, known: Any) -> None:
    exam = exam_of(model(), loss, data())
    found = number.log_of_zero(exam)
    assert found is not None
    assert found.proof
    assert found.blocks
    assert number.epsilon_underflow(exam) is None
    for remedy in found.remedies:
        mended = in_motion(Examination(exam.case, (remedy,)))
        assert math.isfinite(mended.anatomy.loss or math.nan)
        assert mended.observed is not None
        assert mended.observed.refused == 0
    if known is not None:
        assert found.remedies[0].on_loss is not None
        assert isinstance(found.remedies[0].on_loss(loss), known)


def test_log_of_zero_that_comes_with_training() -> None:
    exam = in_motion(exam_of(net(1, nn.Sigmoid()), binary_entropy, yes_no(), RECIPE.replace(lr=30.0)))
    assert exam.observed is not None
    assert exam.observed.refused > 0
    found = number.log_of_zero(exam)
    assert found is not None
    assert not found.blocks


def test_epsilon_below_the_precision() -> None:
    exam = exam_of(net(1, nn.Sigmoid()), lost_epsilon, yes_no(1e4))
    assert causes(exam) == ["epsilon_underflow"]


def test_epsilon_of_the_optimizer() -> None:
    def small(outputs: Tensor, targets: Tensor) -> Tensor:
        return 1e-14 * (outputs - targets).square().mean()

    exam = in_motion(exam_of(net(1), small, numbers()), 50)
    found = number.epsilon_underflow(exam)
    assert found is not None
    edit = found.remedies[0].on_recipe
    assert edit is not None
    changed = Examination(exam.case, found.remedies)
    assert number.epsilon_underflow(in_motion(changed, 50)) is None
    assert edit(RECIPE).options["eps"] < 1e-14


def test_an_epsilon_that_suits_the_gradients_is_silent() -> None:
    assert number.epsilon_underflow(in_motion(exam_of(net(1), nn.MSELoss(), numbers()), 50)) is None


def told(found: Suspicion | None) -> dict[str, Any]:
    assert found is not None
    return {item.signal: item.value for item in found.evidence}


def test_nan_source_names_module_operation_and_rows() -> None:
    X, y = numbers()
    exam = exam_of(net(1, first=Root()), nn.MSELoss(), (X, y))
    facts = told(number.nan_source(exam))
    assert facts["first that is not finite"] == "module '0'"
    assert "values that the square root has no answer or no slope for" in facts
    assert facts["rows of the batch looked at"]


def test_nan_source_in_the_loss() -> None:
    exam = exam_of(net(1), log_error, numbers())
    found = number.nan_source(exam)
    assert told(found)["first that is not finite"] == "the loss"
    mended = Examination(exam.case, found.remedies[:1])  # type: ignore[union-attr]
    assert causes(mended) == []


def test_nan_source_in_the_slope_of_a_root() -> None:
    found = number.nan_source(exam_of(net(1), root_error, numbers()))
    assert "square root" in found.explanation  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize(
    ("first", "loss"),
    [
        *((first, nn.MSELoss()) for first in (Root, Centred, Arc, Alone, Attending)),
        (None, root_error),
    ],
)
def test_numbers_are_kept_inside_the_domain(first: Any, loss: Any) -> None:
    X, y = numbers()
    exam = exam_of(net(1, first=first and first()), loss, (X * torch.tensor([1.0, 1, 1, 0]), y))
    found = number.nan_source(exam)
    assert found is not None
    mended = Examination(exam.case, found.remedies[-1:])
    assert causes(mended) == []
    assert mended.anatomy.loss is not None
    assert math.isfinite(mended.anatomy.loss)


@pytest.mark.parametrize("how", [{}, {"dim": 1}, {"dim": 0, "keepdim": True}, {"unbiased": False}, {"correction": 2}])
def test_deviations_within_the_domain_are_those_of_torch(how: dict[str, Any]) -> None:
    value = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with Guarded():
        spread = value.std(**how), value.var(**how)
    torch.testing.assert_close(spread, (value.std(**how), value.var(**how)))


def test_no_other_loss_mends_a_model() -> None:
    found = number.nan_source(exam_of(net(1, first=Arc()), nn.MSELoss(), numbers()))
    assert found is not None
    assert [remedy.place for remedy in found.remedies] == ["domain", "domain"]  # close to the edge, and further away


class Logarithm(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.relu().log()


def test_a_logarithm_in_the_model_is_not_mended_by_the_loss_that_is_there() -> None:
    X, y = numbers()
    model = nn.Sequential(nn.Linear(X.shape[1], 16), Logarithm(), nn.Linear(16, 2))
    labels = (y.reshape(len(y), -1)[:, 0] > 0).long()
    task = fogline.Task(model, nn.CrossEntropyLoss(), (X, labels))
    found = number.log_of_zero(Examination(open_case(task, RECIPE)))
    assert found is not None
    assert {remedy.place for remedy in found.remedies} == {"domain"}
    report = fogline.diagnose(task, RECIPE)
    assert report.findings[0].cause == "log_of_zero"
    assert report.healed is not None
    assert report.healed > 0.5


def test_rows_that_are_not_finite_are_left_to_the_data() -> None:
    X, y = numbers()
    X[3, 1] = math.nan
    assert causes(exam_of(net(1), nn.MSELoss(), (X, y))) == []


def test_weights_that_ran_away_are_left_to_the_steps() -> None:
    exam = in_motion(exam_of(net(1), nn.MSELoss(), numbers(), RECIPE.replace(optimizer="sgd", lr=100.0)))
    assert exam.observed is not None
    assert exam.observed.refused > 0
    assert causes(exam) == []


def test_a_variance_of_any_sign_is_made_positive() -> None:
    def likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
        variance = outputs[:, 1:]
        return (variance.log() + (targets - outputs[:, :1]).square() / variance).mean()

    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    task = fogline.Task(nn.Linear(4, 2), likelihood, (x, x[:, :1]))
    given = Examination(open_case(task, fogline.Recipe(optimizer="adam", batch_size=32)))
    found = number.nan_source(given) or number.log_of_zero(given)
    assert found is not None
    assert "softplus" in found.remedies[0].title
    edit = found.remedies[0].on_loss
    assert edit is not None
    outputs, targets = torch.tensor([[0.0, -3.0], [1.0, 2.0]]), torch.ones(2, 1)
    positive = torch.cat([outputs[:, :1], F.softplus(outputs[:, 1:]) + 1e-3], 1)
    torch.testing.assert_close(edit(likelihood)(outputs, targets), likelihood(positive, targets))


def test_an_exponent_whose_slope_has_no_norm() -> None:
    def exponent(outputs: Tensor, targets: Tensor) -> Tensor:
        return (F.cross_entropy(outputs, targets) * 50).exp()

    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    task = fogline.Task(nn.Linear(4, 5), exponent, (x, torch.arange(200) % 5))
    found = number.nan_source(Examination(open_case(task, fogline.Recipe(optimizer="adam", batch_size=32))))
    assert found is not None
    assert "CrossEntropyLoss" in found.remedies[-1].title


class MeanAndDeviation(nn.Module):
    """A network that answers with a mean, and with a deviation that only a rectifier keeps from being negative."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(1, 32), nn.ReLU())
        self.mean, self.deviation, self.last = nn.Linear(32, 1), nn.Linear(32, 1), last

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        return torch.cat([self.mean(hidden), self.last(self.deviation(hidden))], 1)


def likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    mean, deviation = outputs[:, :1], outputs[:, 1:]
    return (deviation.log() + 0.5 * ((targets - mean) / deviation).square()).mean()


@pytest.mark.parametrize("last", [nn.ReLU(), nn.Softplus()])
def test_a_deviation_that_is_cut_off_at_zero(last: nn.Module) -> None:
    X = torch.linspace(-2, 2, 200)[torch.randperm(200, generator=torch.Generator().manual_seed(0))][:, None]
    task = fogline.Task(MeanAndDeviation(last), likelihood, (X, X.sin()))
    exam = Examination(open_case(task, fogline.Recipe(optimizer="adam", lr=0.01, batch_size=20, duration="20ep")))
    found = number.log_of_zero(exam)
    assert (found is not None) is isinstance(last, nn.ReLU)
    if found is not None:
        edit = found.remedies[0].on_model
        assert edit is not None
        model = MeanAndDeviation(last)
        given, body = model(X), model.body(X)
        mended = edit(model)(X)
        assert torch.equal(mended[:, 0], given[:, 0])  # the rectifier inside stays one
        assert torch.equal(mended[:, 1:], F.softplus(model.deviation(body)) + 1e-3)
