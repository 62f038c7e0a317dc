"""Causes in what was learned: each found where it is planted, and silent on its healthy twin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.descent.objective import Objective
from fogline.doctor.case import open_case
from fogline.doctor.causes import fit, step
from fogline.doctor.examination import Examination
from fogline.doctor.remedies import smoothed_labels
from fogline.doctor.scoring import Scores
from fogline.doctor.trial import Laboratory

RECIPE = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="30ep")
Pair = tuple[Tensor, Tensor]


def labels(count: int = 300, noise: float = 1.0) -> Pair:
    source = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 3
    return 3 * torch.eye(8)[y] + noise * torch.randn(count, 8, generator=source), y


def yes_no(count: int = 300) -> Pair:
    X, y = labels(count)
    return X, (y[:, None] > 0).float()


def wave(count: int = 300) -> Pair:
    X = torch.linspace(-3, 3, count)[torch.randperm(count, generator=torch.Generator().manual_seed(0))][:, None]
    return X, torch.sin(3 * X)


def net(inputs: int, outputs: int, width: int = 32, last: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs), *([last] if last is not None else [])
    )


def observed(
    data: Pair,
    model: nn.Module,
    loss: Any = None,
    recipe: fogline.Recipe = RECIPE,
    steps: int = 200,
    metrics: dict[str, Any] | None = None,
    valid: Pair | None = None,
) -> Examination:
    loss = loss or (nn.CrossEntropyLoss() if data[1].ndim == 1 else nn.MSELoss())
    exam = Examination(open_case(fogline.Task(model, loss, data, valid=valid, metrics=metrics or {}), recipe))
    exam.observed = Laboratory(exam.case, 1e6).observe(exam.program, steps)
    return exam


def causes(exam: Examination) -> list[str]:
    return [found.cause for cause in fit.IN_MOTION if (found := cause(exam))]


HEALTHY: dict[str, Callable[[], Examination]] = {
    "labels": lambda: observed(labels(), net(8, 3)),
    "noisy labels": lambda: observed(labels(noise=2.0), net(8, 3)),
    "learned by heart, and well": lambda: observed(labels(), net(8, 3, 128), steps=400),
    "yes or no": lambda: observed(yes_no(), net(8, 1), nn.BCEWithLogitsLoss()),
    "numbers": lambda: observed(wave(), net(1, 1, 64), steps=600),
    "few rows": lambda: observed(labels(30), net(8, 3)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_silent(name: str) -> None:
    assert causes(HEALTHY[name]()) == []


def by_heart(kind: str) -> Examination:
    """Seventy rows of thirty columns, of which one says a little."""
    source = torch.Generator().manual_seed(0)
    X = torch.randn(270, 30, generator=source)
    y = X[:, 0] + 1.5 * torch.randn(270, generator=source)
    y = (y > 0).long() if kind == "labels" else y[:, None]
    return observed((X[:70], y[:70]), net(30, 2 if kind == "labels" else 1, 128), steps=300, valid=(X[70:], y[70:]))


@pytest.mark.parametrize("kind", ["labels", "numbers"])
def test_overfitting(kind: str) -> None:
    found = fit.overfitting(by_heart(kind))
    assert found is not None
    assert found.proof
    places = [remedy.place for remedy in found.remedies]
    assert places == (["smoothing", "rate", "rate"] if kind == "labels" else ["rate", "rate"])


def _quantiles(outputs: Tensor, targets: Tensor) -> Tensor:
    beyond = targets - outputs
    return torch.maximum(0.9 * beyond, -0.1 * beyond).mean()


def _ranked(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of all pairs of rows the wrong order costs: only this loss knows what the outputs mean."""
    behind = targets - targets.mT > 0
    return F.softplus(outputs.mT - outputs)[behind].mean()


@pytest.mark.parametrize("loss", [_quantiles, _ranked])
@pytest.mark.parametrize("rows", [70, 1500])
def test_overfitting_by_a_loss_of_ones_own(loss: Any, rows: int) -> None:
    source = torch.Generator().manual_seed(0)
    X = torch.randn(2000, 30, generator=source)
    y = X[:, :1] + 1.5 * torch.randn(2000, 1, generator=source)
    few = rows == 70
    recipe = RECIPE.replace(batch_size="full" if few else 64)
    exam = observed((X[:rows], y[:rows]), net(30, 1, 128 if few else 4), loss, recipe, 300, valid=(X[1500:], y[1500:]))
    found = fit.overfitting(exam)
    assert (found is not None) is few
    assert found is None or found.proof


def test_more_steps_are_no_help_to_a_network_that_learns_by_heart() -> None:
    exam = by_heart("labels")
    assert step.too_few_steps(exam) is None
    assert exam.observed is not None


def test_smoothed_labels_keep_what_else_the_loss_does() -> None:
    weights, given = torch.tensor([1.0, 3.0]), torch.tensor([[2.0, -1.0], [0.5, 0.0], [1.0, 1.0]])
    exam = observed(labels(), net(8, 3), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 1.0])), steps=20)
    remedy = smoothed_labels(exam)
    assert remedy is not None
    assert remedy.on_loss is not None
    target = torch.tensor([0, 1, -100])
    wanted = F.cross_entropy(given, target, weight=weights, label_smoothing=0.2)
    assert remedy.on_loss(nn.CrossEntropyLoss(weight=weights))(given, target) == wanted
    assert remedy.on_loss(F.cross_entropy)(given, target) == F.cross_entropy(given, target, label_smoothing=0.2)
    squares = nn.MSELoss()
    assert remedy.on_loss(squares) is squares


def test_a_trial_scores_the_weights_that_fit_keeps(tmp_path: Path) -> None:
    exam = by_heart("labels")
    case = exam.case
    run = fogline.fit(case.task, RECIPE.replace(step="eager", seed=1), runs=tmp_path, progress=False)
    laboratory = Laboratory(case, 1e6)
    trial = laboratory.run(exam.program, laboratory.planned, (1,))[0]
    objective = Objective(run.model, exam.program.loss)
    assert trial.score == Scores().of(objective, exam.program, exam.program.held)[0]


def test_underfitting_for_want_of_units() -> None:
    exam = observed(wave(), net(1, 1, 2), steps=400)
    found = fit.underfitting(exam)
    assert found is not None
    model = Examination(exam.case, found.remedies).program.new_model(0)
    assert [m.out_features for m in model.modules() if isinstance(m, nn.Linear)] == [64, 1]


def test_underfitting_for_want_of_channels() -> None:
    """Where a bright spot is, in pictures of it on noise: too few channels and units for sixteen places."""
    source = torch.Generator().manual_seed(0)
    places = torch.randint(0, 64, (400,), generator=source)
    pictures = 0.3 * torch.randn(400, 64, generator=source)
    pictures[torch.arange(400), places] += 3
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 1, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
        nn.ReLU(),
        nn.Linear(3, 16),
    )
    data = pictures.reshape(-1, 1, 8, 8), places // 16 * 4 + places % 8 // 2
    found = fit.underfitting(observed(data, model, steps=300))
    assert found is not None
    edit = found.remedies[0].on_model
    assert edit is not None
    wider = edit(model)
    assert [tuple(p.shape)[:2] for p in wider.parameters() if p.ndim > 1] == [(32, 1), (64, 512), (16, 64)]
    assert wider(data[0]).shape == (400, 16)


@pytest.mark.parametrize("kernel", [1, 3])
def test_underfitting_for_want_of_a_view(kernel: int) -> None:
    """Whether the bright places of a picture lie side by side or apart: nothing that a single place tells."""
    source = torch.Generator().manual_seed(0)
    apart = torch.arange(300) % 2
    pictures = 0.05 * torch.randn(300, 1, 8, 8, generator=source)
    for row, at in enumerate(torch.randint(0, 5, (300,), generator=source).tolist()):
        pictures[row, 0, at, at] = pictures[row, 0, at, at + 1 + int(apart[row])] = 1
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, kernel, padding=kernel // 2), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    found = fit.underfitting(observed((pictures, apart), model, steps=200))
    assert (found is not None and "single place" in found.explanation) == (kernel == 1)
    if found is not None:
        edit = found.remedies[0].on_model
        assert edit is not None
        assert edit(model)(pictures).shape == (300, 2)


def test_underfitting_for_want_of_a_layer() -> None:
    exam = observed(wave(), nn.Sequential(nn.Linear(1, 1)), steps=400)
    found = fit.underfitting(exam)
    assert found is not None
    assert Examination(exam.case, found.remedies).program.new_model(0)(torch.zeros(5, 1)).shape == (5, 1)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def balanced(outputs: Tensor, targets: Tensor) -> Tensor:
    right = (outputs.argmax(1) == targets).float()
    return torch.stack([right[targets == k].mean() for k in range(3)]).mean()


def top_two(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.topk(2, 1).indices == targets[:, None]).any(1).float().mean()


def elementwise(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs.softmax(1) > 0.5).long() == F.one_hot(targets, 3)).float().mean()


def down_the_rows(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(0) == targets[: outputs.shape[1]]).float().mean()


def of_logits(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs > 0).float() == targets).float().mean()


def of_probabilities(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs > 0.5).float() == targets).float().mean()


def broadcast(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs > 0).float() == targets.flatten()).float().mean()


def argmax_of_one(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets.flatten()).float().mean()


def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().mean()


def exact(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs == targets).float().mean()


def three(metric: Any) -> Examination:
    return observed(labels(), net(8, 3), metrics={"accuracy": metric})


def two(metric: Any, last: nn.Module | None = None) -> Examination:
    loss = nn.BCEWithLogitsLoss() if last is None else nn.BCELoss()
    return observed(yes_no(), net(8, 1, last=last), loss, metrics={"accuracy": metric})


def numbers(metric: Any) -> Examination:
    return observed(wave(), net(1, 1), metrics={"error": metric})


def several() -> Examination:
    X, y = labels()

    def every(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs > 0).float() == targets).all(1).float().mean()

    answers = torch.stack([(y > 0).float(), (y > 1).float()], 1)
    return observed((X, answers), net(8, 2), nn.BCEWithLogitsLoss(), metrics={"accuracy": every})


RIGHT = [
    several,
    lambda: observed(labels(), net(8, 3), metrics={"confidence": lambda o, t: o.softmax(1).amax(1).mean()}),
    lambda: numbers(lambda o, t: o.mean()),
    lambda: three(accuracy),
    lambda: three(balanced),
    lambda: observed(labels(), net(8, 3), metrics={"top2_accuracy": top_two}),
    lambda: three(lambda o, t: 100 * accuracy(o, t)),
    lambda: two(of_logits),
    lambda: two(of_probabilities, nn.Sigmoid()),
    lambda: numbers(absolute),
    lambda: numbers(lambda o, t: 1 - (o - t).square().sum() / (t - t.mean()).square().sum()),
]
WRONG = [
    lambda: three(elementwise),
    lambda: three(down_the_rows),
    lambda: two(broadcast),
    lambda: two(argmax_of_one),
    lambda: two(of_logits, nn.Sigmoid()),
    lambda: numbers(exact),
]


@pytest.mark.parametrize("made", RIGHT)
def test_metrics_that_measure(made: Callable[[], Examination]) -> None:
    assert fit.metric_mismatch(made()) is None


@pytest.mark.parametrize("made", WRONG)
def test_metric_mismatch(made: Callable[[], Examination]) -> None:
    found = fit.metric_mismatch(made())
    assert found is not None
    assert found.proof
    assert found.advice


def test_an_accuracy_on_rows_sorted_by_class_is_right() -> None:
    """Answers shifted by some rows are still mostly right there."""
    X, y = yes_no()
    order = y[:, 0].argsort()

    def share(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs > 0) == (targets > 0.5)).float().mean()

    found = observed((X, y), net(8, 1), nn.BCEWithLogitsLoss(), metrics={"accuracy": share}, valid=(X[order], y[order]))
    assert fit.metric_mismatch(found) is None


def test_a_metric_that_fails_is_left_alone() -> None:
    def fails(outputs: Tensor, targets: Tensor) -> Tensor:
        raise ValueError("not today")

    exam = three(accuracy)
    exam.case.task.metrics["accuracy"] = fails  # type: ignore[index]
    assert fit.metric_mismatch(exam) is None


@pytest.mark.parametrize("scale", [0.1, 1e-3])
def test_saddle(scale: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    exam = observed(wave(), model, recipe=RECIPE.replace(optimizer="sgd", lr=0.05), steps=200)
    found = fit.saddle(exam)
    assert found is not None
    assert found.evidence[0].signal.startswith("lowest")


def test_no_saddle_at_ordinary_weights() -> None:
    exam = observed(labels(), net(8, 3), recipe=RECIPE.replace(optimizer="sgd", lr=0.1))
    assert fit.saddle(exam) is None
