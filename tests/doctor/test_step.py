"""Causes in how the steps are taken: each found where it is planted, and silent on its healthy twin."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.doctor.bench import lengthens, times_longer
from fogline.doctor.case import open_case
from fogline.doctor.causes import step
from fogline.doctor.causes.step.common import too_long
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Suspicion
from fogline.doctor.standing import Motion, Steps, motion, standing, steps_of
from fogline.doctor.trial import CHEAP, Laboratory, planned_steps

ADAM = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="25ep", schedule="constant")
SGD = ADAM.replace(optimizer="sgd", lr=0.3)
Pair = tuple[Tensor, Tensor]


def labels(count: int = 400) -> Pair:
    source = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 4
    centres = 3 * torch.randn(4, 6, generator=source)
    return centres[y] + torch.randn(count, 6, generator=source), y


def numbers(count: int = 400) -> Pair:
    X = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    return X, (X[:, :1] + 0.5 * X[:, 1:2] * X[:, 2:]) * 2


def net(inputs: int, outputs: int, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    drop = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), *drop, nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, outputs))


def observed(
    data: Pair, recipe: fogline.Recipe, loss: Any = None, steps: int | None = None, **model: Any
) -> Examination:
    X, y = data
    outputs = y.shape[1] if y.ndim > 1 else 4
    loss = loss or (nn.MSELoss() if y.ndim > 1 else nn.CrossEntropyLoss())
    case = open_case(fogline.Task(net(X.shape[1], outputs, **model), loss, data), recipe)
    exam = Examination(case)
    exam.observed = Laboratory(case, 1e6).observe(exam.program, steps or min(300, planned_steps(recipe, case)))
    return exam


def causes(exam: Examination) -> list[str]:
    return [found.cause for cause in step.IN_MOTION if (found := cause(exam))]


def new_recipe(found: Suspicion | None, recipe: fogline.Recipe, which: int = 0) -> fogline.Recipe:
    assert found is not None
    edit = found.remedies[which].on_recipe
    assert edit is not None
    return edit(recipe)


HEALTHY: dict[str, Callable[[], Examination]] = {
    "adam": lambda: observed(labels(), ADAM),
    "sgd": lambda: observed(labels(), SGD),
    "numbers": lambda: observed(numbers(), ADAM),
    "a third of the rate": lambda: observed(labels(), ADAM.replace(lr=0.003)),
    "thrice the rate": lambda: observed(labels(), ADAM.replace(lr=0.03)),
    "at the edge": lambda: observed(labels(), SGD.replace(optimizer="gd", lr=0.6, batch_size="full", duration="200ep")),
    "small batches": lambda: observed(labels(), ADAM.replace(batch_size=4, lr=0.003, duration="6ep")),
    "few epochs": lambda: observed(labels(), ADAM.replace(batch_size=8, duration="3ep", schedule="linear")),
    "warm-up": lambda: observed(labels(), ADAM.replace(warmup=0.1, schedule="cosine")),
    "decay": lambda: observed(labels(), ADAM.replace(optimizer="adamw", weight_decay=0.05)),
    "dropout": lambda: observed(labels(), ADAM, dropout=0.3),
    "momentum": lambda: observed(labels(), ADAM.replace(optimizer="momentum", lr=0.05)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_silent(name: str) -> None:
    assert causes(HEALTHY[name]()) == []


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_scale_of_the_loss_does_not_matter(factor: float) -> None:
    def scaled(outputs: Tensor, targets: Tensor) -> Tensor:
        return factor * nn.functional.cross_entropy(outputs, targets)

    # Adam takes the same steps, as long as the gradients stay above its epsilon.
    recipe = ADAM.replace(options={"eps": 1e-20})
    plain, other = observed(labels(), recipe), observed(labels(), recipe, scaled)
    assert causes(other) == []
    first, second = motion(plain), motion(other)
    assert second.fallen == pytest.approx(first.fallen, rel=0.02)
    assert second.jitter == pytest.approx(first.jitter, rel=0.2, abs=1e-3)


@pytest.mark.parametrize(("data", "lr"), [(labels, 1.0), (labels, 300.0), (numbers, 1.0), (numbers, 30.0)])
def test_lr_too_high(data: Callable[[], Pair], lr: float) -> None:
    found = step.lr_too_high(observed(data(), ADAM.replace(lr=lr)))
    assert new_recipe(found, ADAM.replace(lr=lr)).lr == "auto"
    assert new_recipe(found, ADAM.replace(lr=lr), 1).lr == pytest.approx(lr / 10)


def test_a_loss_that_goes_up_again_may_be_of_steps_that_are_too_long() -> None:
    falling = Motion(1.0, 0.9, 0.5, 0.9, 0.5, 0.2, 9.0, 0.01, 0.0, 0.1)
    steps = Steps(path=3.0, each=0.01, overshoot=0.0, beyond=0.0, cosine=0.9, count=16)
    assert too_long(falling, steps) == 0
    assert too_long(replace(falling, slope=-0.5, significance=-9.0), steps) == 0.5
    assert too_long(replace(falling, slope=-0.5, significance=-1.0), steps) == 0


def test_lr_too_high_where_steps_are_refused() -> None:
    exam = observed(numbers(), SGD.replace(lr=50.0))
    found = step.lr_too_high(exam)
    assert found is not None
    assert found.severity == "fatal"
    assert motion(exam).refused > 0


@pytest.mark.parametrize("data", [labels, numbers])
@pytest.mark.parametrize("recipe", [ADAM.replace(lr=1e-6), SGD.replace(lr=1e-5)])
def test_lr_too_low(data: Callable[[], Pair], recipe: fogline.Recipe) -> None:
    exam = observed(data(), recipe)
    found = step.lr_too_low(exam)
    assert found is not None
    assert found.strength >= 0.8
    assert new_recipe(found, recipe).lr == "auto"
    assert step.lr_too_high(exam) is None


def test_a_measured_rate_is_not_suspected() -> None:
    exam = observed(labels(), ADAM.replace(lr=1e-6))
    asked = Examination(open_case(exam.case.task, ADAM.replace(lr="auto")))
    asked.observed = exam.observed
    assert step.lr_too_low(asked) is None


def test_bad_schedule_of_a_long_warm_up() -> None:
    recipe = SGD.replace(warmup=100_000, lr=0.02, duration="3ep")
    found = step.bad_schedule(observed(labels(), recipe))
    assert new_recipe(found, recipe).warmup == 0.05


def test_bad_schedule_of_a_plateau_that_is_looked_for_too_often() -> None:
    X, y = labels(800)
    noisy = X + 2 * torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
    recipe = ADAM.replace(lr=0.002, schedule="plateau", duration="20ep")
    found = []
    for every in ("1st", "1ep"):
        task = fogline.Task(net(6, 4), nn.CrossEntropyLoss(), (noisy[:600], y[:600]), valid=(noisy[600:], y[600:]))
        case = open_case(task, recipe.replace(validate_every=every))
        exam = Examination(case)
        exam.observed = Laboratory(case, 1e6).observe(exam.program, 380)
        found.append((exam.observed.cuts, step.bad_schedule(exam)))
    (early, suspected), (late, unsuspected) = found
    assert early
    assert early[0] < 0.4 * 380
    assert new_recipe(suspected, recipe).schedule == "linear"
    assert not late or late[0] > early[0]
    assert unsuspected is None or unsuspected.severity == "minor"


@pytest.mark.parametrize(("data", "recipe"), [(labels, SGD.replace(lr=0.02)), (numbers, ADAM.replace(lr=0.002))])
def test_too_few_steps(data: Callable[[], Pair], recipe: fogline.Recipe) -> None:
    recipe = recipe.replace(duration="1ep")
    found = step.too_few_steps(observed(data(), recipe))
    assert found is not None
    assert found.strength >= 0.5
    assert new_recipe(found, recipe).duration in ("4ep", "10ep")


def test_a_part_of_a_run_tells_nothing_of_its_end() -> None:
    assert step.too_few_steps(observed(labels(), SGD.replace(lr=0.02), steps=10)) is None


@pytest.mark.parametrize(
    "recipe",
    [
        ADAM.replace(optimizer="adadelta", lr=0.001),
        ADAM.replace(optimizer="adagrad", lr=1e-5),
        ADAM.replace(optimizer="rprop", lr=0.01, batch_size=8, duration="1ep"),
        SGD.replace(lr=1e-4),
    ],
)
def test_optimizer_mismatch(recipe: fogline.Recipe) -> None:
    changed = new_recipe(step.optimizer_mismatch(observed(labels(), recipe)), recipe)
    assert (changed.optimizer, changed.lr) == ("adamw", "auto")


def test_batch_too_small() -> None:
    recipe = SGD.replace(batch_size=1, duration="1ep")
    found = step.batch_too_small(observed(labels(), recipe))
    changed = new_recipe(found, recipe)
    assert (changed.batch_size, changed.duration) == (32, "400st")


@pytest.mark.parametrize("data", [labels, numbers])
def test_batch_too_large(data: Callable[[], Pair]) -> None:
    recipe = SGD.replace(batch_size="full", lr=0.03, duration="8ep")
    exam = observed(data(), recipe)
    found = step.batch_too_large(exam)
    changed = new_recipe(found, recipe)
    assert planned_steps(changed, exam.case) > 10 * exam.planned
    assert step.too_few_steps(exam) is None


def test_batch_too_large_where_hundreds_of_steps_do_not_suffice() -> None:
    """Classical learners do no better with a product of signs, so that they have no say; the loss still falls."""
    X = torch.randn(800, 5, generator=torch.Generator().manual_seed(0))
    data = X, (X[:, :3].prod(1) > 0).long()
    recipe = ADAM.replace(batch_size=200, lr=0.003, duration="60ep")
    exam = observed(data, recipe)
    assert exam.planned > 100
    assert not standing(exam).short
    assert new_recipe(step.batch_too_large(exam), recipe).batch_size == 32
    assert step.batch_too_large(observed(data, recipe.replace(batch_size=64))) is None
    short = observed(numbers(800), SGD.replace(batch_size=200, lr=0.002, duration="40ep"))
    assert standing(short).short
    found = step.batch_too_large(short)
    assert found is not None
    assert found.strength < 0.5  # then causes with signs of their own come first


def test_smaller_batches_read_the_same_rows() -> None:
    """Whatever the unit of the length; so they are no longer run, and cost no more than their arithmetic."""
    in_steps = SGD.replace(batch_size="full", lr=0.03, duration="8st")
    for recipe in (in_steps, in_steps.replace(duration="8ep")):
        exam = observed(labels(), recipe)
        found = step.batch_too_large(exam)
        assert found is not None
        changed = new_recipe(found, recipe)
        assert planned_steps(changed, exam.case) == pytest.approx(8 * 400 / 20)
        assert times_longer(found.remedies[0], exam.case, of_rows=True) == 400 / 20
        assert not lengthens(found, exam.case)
        assert Laboratory(exam.case, 1e6).price(changed) == 1  # a step of so small a network costs the same


def test_the_price_of_a_step_follows_its_rows() -> None:
    X, y = torch.randn(4096, 200), torch.zeros(4096, 200)
    recipe = SGD.replace(batch_size=4096, duration="1ep")
    laboratory = Laboratory(open_case(fogline.Task(nn.Linear(200, 200), nn.MSELoss(), (X, y)), recipe), 1e6)
    assert laboratory.price(recipe) == 1
    assert laboratory.price(recipe.replace(batch_size=1024)) == pytest.approx(1 / 4)
    assert laboratory.price(recipe.replace(batch_size=1)) == pytest.approx(CHEAP / laboratory.case.operations)


def test_the_share_of_the_fall_that_came_late() -> None:
    exam = observed(labels(), ADAM.replace(duration="1ep"))
    assert exam.observed is not None
    exam.observed.looks = [(k, 0.0, loss) for k, loss in enumerate([2.0, 1.5, 1.0, 0.75, 0.5])]
    assert motion(exam).late == pytest.approx(1 / 3)


def test_a_memory_of_a_hundred_steps() -> None:
    recipe = SGD.replace(optimizer="momentum", lr=0.3, options={"momentum": 0.99})
    found = step.optimizer_mismatch(observed(labels(), recipe))
    assert found is not None
    changed = new_recipe(found, recipe)
    assert (changed.lr, changed.options) == ("auto", {"momentum": 0.9})
    usual = SGD.replace(optimizer="momentum", lr=0.03)
    assert step.optimizer_mismatch(observed(labels(), usual)) is None


@pytest.mark.parametrize(
    ("recipe", "usual"),
    [
        (ADAM.replace(lr=0.0005, duration="8ep", options={"betas": (0.999, 0.9), "eps": 1e-8}), {"eps": 1e-8}),
        (ADAM.replace(lr=0.0005, duration="8ep", options={"betas": (0.999, 0.999)}), {}),
        (ADAM.replace(optimizer="adagrad", options={"lr_decay": 1.0}), {}),
    ],
)
def test_options_that_hardly_anybody_means(recipe: fogline.Recipe, usual: dict[str, Any]) -> None:
    found = step.optimizer_mismatch(observed(labels(), recipe))
    assert found is not None
    assert new_recipe(found, recipe) == recipe.replace(options=usual)
    again = step.optimizer_mismatch(observed(labels(), recipe.replace(options=usual)))
    assert again is None or "options" not in again.explanation


@pytest.mark.parametrize(
    "recipe",
    [
        ADAM.replace(optimizer="adamw", weight_decay=100.0),
        ADAM.replace(weight_decay=3.0),
        ADAM.replace(weight_decay=1.0),  # at the end the slope holds against it
        SGD.replace(optimizer="momentum", lr=0.02, weight_decay=1.0),
    ],
)
@pytest.mark.parametrize("data", [labels, numbers])
def test_regularization_too_strong_by_decay(data: Callable[[], Pair], recipe: fogline.Recipe) -> None:
    found = step.regularization_too_strong(observed(data(), recipe))
    assert new_recipe(found, recipe).weight_decay == 0


def test_regularization_too_strong_by_dropout() -> None:
    exam = observed(numbers(), ADAM, dropout=0.95)
    found = step.regularization_too_strong(exam)
    assert found is not None
    left = [
        [
            module.p
            for module in Examination(exam.case, (remedy,)).program.new_model(0).modules()
            if hasattr(module, "p")
        ]
        for remedy in found.remedies
    ]
    assert left == [pytest.approx([0.2375]), [0]]


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.dropout(torch.ones(len(x), 32), 0.96, self.training) * self.first(x).tanh())


def test_dropout_that_is_called_as_a_function() -> None:
    case = open_case(fogline.Task(Dropping, nn.MSELoss(), numbers()), ADAM)
    exam = Examination(case)
    exam.observed = Laboratory(case, 1e6).observe(exam.program, 100)
    found = step.regularization_too_strong(exam)
    assert found is not None
    model = Examination(case, found.remedies[:1]).program.new_model(0)
    with torch.no_grad():
        model(torch.ones(1, 3))
        model.get_submodule("last").weight.fill_(1.0)
        torch.manual_seed(0)
        given = torch.cat([model(torch.ones(1, 3)) for _ in range(200)])
        whole = model.eval()(torch.ones(1, 3)) - model.get_submodule("last").bias
    kept = (given - model.get_submodule("last").bias) / whole
    assert float(kept.detach().mean()) == pytest.approx(1, abs=0.1)  # scaled by what is kept


def test_where_nothing_can_be_learned_no_step_is_to_blame() -> None:
    X, y = labels()
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]
    exam = observed((X, shuffled), ADAM.replace(duration="5ep"))
    assert not standing(exam).short
    assert causes(exam) == []


def test_a_program_that_stops_with_an_error_is_left_to_others() -> None:
    def fails(outputs: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("no loss today")

    assert causes(observed(labels(), ADAM, fails)) == []


def test_the_signals_of_a_quadratic() -> None:
    """Gradient descent on one linear layer: the overshoot is lr * curvature - 1."""
    torch.manual_seed(0)
    X = torch.ones(64, 1) * math.sqrt(0.5)  # the squared error of w x has curvature 2 x^2 = 1
    model = nn.Linear(1, 1, bias=False)
    recipe = fogline.Recipe(optimizer="gd", lr=0.4, batch_size="full", duration="20st", schedule="constant")
    exam = Examination(open_case(fogline.Task(model, nn.MSELoss(), (X, 3 * X)), recipe))
    exam.observed = Laboratory(exam.case, 100).observe(exam.program, 20)
    assert steps_of(exam).overshoot == pytest.approx(0.4 - 1, abs=1e-3)
    assert steps_of(exam).cosine == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("strength", "too_strong"), [(0.2, True), (1e-5, False)])
@pytest.mark.parametrize("size", [Tensor.abs, Tensor.square])
def test_regularization_too_strong_in_the_loss(
    strength: float, too_strong: bool, size: Callable[[Tensor], Tensor]
) -> None:
    def loss(model: nn.Module, batch: Pair) -> Tensor:
        weights = torch.stack([size(p).sum() for p in model.parameters()]).sum()
        return F.cross_entropy(model(batch[0]), batch[1]) + (1 if size is Tensor.abs else 10) * strength * weights

    given = observed(labels(), ADAM, fogline.on_batch(loss))
    found = step.regularization_too_strong(given)
    assert (found is not None) == too_strong
    if found is not None:
        remedied = given.program_with(found.remedies[0])
        batch = given.anatomy.batch
        expected = F.cross_entropy(given.anatomy.model(batch[0]), batch[1])
        assert torch.allclose(remedied.loss.function(given.anatomy.model, batch), expected)


def _ranked_within(outputs: Tensor, targets: Tensor) -> Tensor:
    """The logarithm of a partial likelihood: of a single row it is 0."""
    order = targets.reshape(-1).argsort(descending=True)
    risks = outputs.reshape(-1)[order]
    return (risks.logcumsumexp(0) - risks).mean()


@pytest.mark.parametrize("size", [1, 16])
@pytest.mark.parametrize("duration", ["25ep", "auto", "800st"])
def test_batches_of_which_there_is_nothing_to_compare(size: int, duration: str) -> None:
    recipe = ADAM.replace(batch_size=size, duration=duration)
    case = open_case(fogline.Task(net(3, 1), _ranked_within, numbers()), recipe)
    found = step.nothing_to_compare(Examination(case))
    assert (found is not None) is (size == 1)
    if found is not None:
        assert found.proof
        mended = Examination(case, (found.remedies[0],)).program.recipe
        assert (mended.batch_size, mended.duration) == (16, "50st" if duration == "800st" else duration)


def test_a_batch_of_one_that_has_a_slope_is_left_alone() -> None:
    case = open_case(fogline.Task(net(3, 1), nn.MSELoss(), numbers()), ADAM.replace(batch_size=1))
    assert step.nothing_to_compare(Examination(case)) is None
