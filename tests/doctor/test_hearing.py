"""Losses that hear a part of the rows, or are given what they do not take; and sound ones that look like them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.causes.output import loss_mismatch
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Suspicion
from fogline.doctor.hearing import share_in_relative_errors, the_only_heard

Loss = Callable[[Tensor, Tensor], Tensor]
RECIPE = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="10ep")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def looked_at(model: nn.Module, loss: Any, inputs: Any, targets: Any) -> tuple[Examination, Suspicion | None]:
    given = Examination(open_case(fogline.Task(model, loss, (inputs, targets)), RECIPE))
    return given, loss_mismatch(given)


def words() -> tuple[Tensor, Tensor]:
    """Letters 1 to 5 and the next ones, and 0 where a word has ended."""
    draws = torch.Generator().manual_seed(0)
    first, length = torch.randint(5, (96, 1), generator=draws), torch.randint(3, 8, (96, 1), generator=draws)
    place = torch.arange(9)
    whole = torch.where(place < length, (first + place) % 5 + 1, 0)
    return whole[:, :-1], whole[:, 1:]


class Next(nn.Module):
    """Scores of the next letter, (b, places, 6) or with the classes in the second place."""

    def __init__(self, classes_at: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.letters, self.scores, self.classes_at = nn.Embedding(6, 8), nn.Linear(8, 6), classes_at

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.scores(self.letters(x))
        return said.movedim(-1, self.classes_at)


def masked(mask: Callable[[Tensor], Tensor], classes_at: int = -1) -> Loss:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        each = F.cross_entropy(outputs.movedim(classes_at, 1), targets, reduction="none")
        return (each * mask(targets)).sum() / mask(targets).sum().clamp(min=1)

    return loss


@pytest.mark.parametrize("classes_at", [1, -1])
def test_a_mask_that_is_the_wrong_way_round(classes_at: int) -> None:
    given, found = looked_at(Next(classes_at), masked(lambda t: t == 0, classes_at), *words())
    assert found is not None
    assert found.cause == "loss_mismatch"
    assert found.proof
    assert found.evidence[0].value == 0
    mended = Examination(given.case, found.remedies)
    assert loss_mismatch(mended) is None
    outputs, (_, targets) = mended.anatomy.outputs.detach(), mended.anatomy.batch
    expected = masked(lambda t: t > 0, classes_at)(outputs, targets)
    assert mended.anatomy.loss == pytest.approx(float(expected))


@pytest.mark.parametrize("classes_at", [1, -1])
def test_a_mask_of_places_that_have_no_class(classes_at: int) -> None:
    """Places with the target -100 are filled with class 0 before they are to be left out, and they alone are not."""

    def loss(outputs: Tensor, targets: Tensor, there: Loss = lambda t, _: t == -100) -> Tensor:
        each = F.cross_entropy(outputs.movedim(classes_at, 1), targets.clamp(min=0), reduction="none")
        mask = there(targets, targets).float()
        return (each * mask).sum() / mask.sum().clamp(min=1)

    inputs, targets = words()
    targets = torch.where(targets > 0, targets, -100)
    given, found = looked_at(Next(classes_at), loss, inputs, targets)
    assert found is not None
    assert found.proof
    assert found.evidence[0].value == -100
    mended = Examination(given.case, found.remedies)
    assert loss_mismatch(mended) is None
    outputs, (_, some) = mended.anatomy.outputs.detach(), mended.anatomy.batch
    assert mended.anatomy.loss == pytest.approx(float(loss(outputs, some, lambda t, _: t != -100)))
    assert looked_at(Next(classes_at), lambda o, t: loss(o, t, lambda y, _: y != -100), inputs, targets)[1] is None


@pytest.mark.parametrize("mask", [lambda t: t > 0, lambda t: t <= 1, lambda t: torch.rand(t.shape) < 0.5])
def test_masks_that_leave_several_letters(mask: Callable[[Tensor], Tensor]) -> None:
    assert looked_at(Next(), masked(mask), *words())[1] is None


def likelihood_of_events(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of label 1 against all: only that is said by name, the others are in the normaliser."""
    return -(outputs.log_softmax(0)[:, 1] * (targets == 1)).sum() / (targets == 1).sum().clamp(min=1)


def near_the_middle(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs of what is normal are pulled together, as of one class alone: they are no answers."""
    return (outputs.square().sum(1) * (targets == 0)).mean()


def scored(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


@pytest.mark.parametrize("loss", [likelihood_of_events, near_the_middle, scored])
def test_losses_that_hear_all_or_are_no_answers(loss: Loss) -> None:
    assert the_only_heard(loss, torch.zeros(8, 3), torch.arange(96) % 3) is None


def test_nobody_can_tell_where_classes_stand_in_a_square() -> None:
    targets = words()[1][:, :6]
    assert the_only_heard(masked(lambda t: t == 0), torch.zeros(8, 6, 6), targets) is None
    assert the_only_heard(masked(lambda t: t == 0), torch.zeros(8, 7, 6), words()[1][:, :7]) == (0, 2)


def test_places_as_rows_and_numbers_at_each_place() -> None:
    targets = words()[1]

    def of_rows(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets.flatten().where(targets.flatten() == 0, -100))

    def of_numbers(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).square() * (targets == 0)).mean()

    assert the_only_heard(of_rows, torch.zeros(64, 6), targets) == (0, 1)
    assert the_only_heard(of_numbers, torch.zeros(8, 8), targets.float()) == (0, -1)
    assert the_only_heard(F.mse_loss, torch.zeros(8, 8), targets.float()) is None


def relative(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) / targets).abs().mean()


def relative_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) / targets).square().mean()


def bounded_share(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets).abs() / (outputs.abs() + targets.abs())).mean()


def extremes_first(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets).square() * (1 + 1000 * (targets.abs() > 2))).mean()


@pytest.mark.parametrize("loss", [relative, relative_squares])
def test_percent_of_targets_next_to_zero(loss: Loss) -> None:
    x = drawn(400, 4)
    y = x[:, :1] + 0.5 * x[:, 1:2]
    torch.manual_seed(0)
    given, found = looked_at(nn.Linear(4, 1), loss, x, y)
    assert found is not None
    assert not found.proof  # a trial must show it
    assert float(found.evidence[0].value) < 0.1
    assert loss_mismatch(Examination(given.case, found.remedies)) is None
    far = looked_at(nn.Linear(4, 1), loss, x, (0.5 * y).exp())  # of one sign
    assert far[1] is None


@pytest.mark.parametrize(
    "loss",
    [F.l1_loss, F.mse_loss, F.huber_loss, bounded_share, extremes_first, lambda o, t: (o - t).cosh().log().mean()],
)
def test_errors_that_are_no_percentage(loss: Loss) -> None:
    y = drawn(400, 1)
    assert share_in_relative_errors(lambda o, t: loss(o, t), y) > 0.1
    assert share_in_relative_errors(relative, y) < 0.1


def test_rows_that_count_of_a_weighed_loss() -> None:
    """Weights of 1 / |t| by hand; a column far from zero does not hide one beside it."""
    y = torch.linspace(-1, 1, 400)[:, None]
    weights = 1 / y.abs()
    assert share_in_relative_errors(relative, y) == pytest.approx(
        float(weights.sum() ** 2 / weights.square().sum() / 400), rel=1e-3
    )
    assert share_in_relative_errors(relative, torch.cat([y + 3, y], 1)) == share_in_relative_errors(relative, y)
    assert share_in_relative_errors(relative, y + 3) == 1


def tags() -> tuple[Tensor, Tensor]:
    x = drawn(300, 6)
    return x, (x[:, :4] + x[:, 1:5] > 0).float()


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), F.cross_entropy, lambda o, t: F.cross_entropy(o, t)])
def test_labels_that_compete(loss: Any) -> None:
    torch.manual_seed(0)
    given, found = looked_at(nn.Linear(6, 4), loss, *tags())
    assert found is not None
    assert found.proof
    mended = Examination(given.case, found.remedies)
    assert isinstance(mended.program.loss, nn.BCEWithLogitsLoss)
    assert loss_mismatch(mended) is None


def test_labels_that_may_well_compete() -> None:
    x, y = tags()
    rare = (drawn(300, 40, seed=1) > 2).float()  # a few of many, as of a shop
    assert looked_at(nn.Linear(6, 40), nn.CrossEntropyLoss(), x, rare)[1] is None
    assert looked_at(nn.Linear(4, 4), nn.CrossEntropyLoss(), y, y)[1] is None
    one = F.one_hot(x[:, :4].argmax(1), 4).float()
    assert looked_at(nn.Linear(6, 4), nn.CrossEntropyLoss(), x, one)[1] is None
    two = F.one_hot(x[:, :4].topk(2, 1).indices, 4).sum(1).float()  # always as many
    assert looked_at(nn.Linear(6, 4), nn.CrossEntropyLoss(), x, two)[1] is None
    assert looked_at(nn.Linear(6, 4), nn.BCEWithLogitsLoss(), x, y)[1] is None


class Classifier(nn.Module):
    """Ends in a function."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.end = nn.Linear(4, 3), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.body(x))


def softmax(x: Tensor) -> Tensor:
    return x.softmax(1)


def log_softmax(x: Tensor) -> Tensor:
    return x.log_softmax(1)


def same(x: Tensor) -> Tensor:
    return x


def labels() -> Tensor:
    return drawn(96, 4)[:, :3].argmax(1)


def shares() -> Tensor:
    return drawn(96, 4)[:, :3].softmax(1)


@pytest.mark.parametrize(
    ("end", "loss", "targets"),
    [
        (softmax, F.nll_loss, labels),
        (softmax, lambda o, t: F.nll_loss(input=o, target=t), labels),
        (same, lambda o, t: F.nll_loss(o.softmax(1), t), labels),
        (same, lambda o, t: F.kl_div(o.softmax(1), t, reduction="batchmean"), shares),
        (same, lambda o, t: nn.KLDivLoss(reduction="batchmean")(o.softmax(-1), t), shares),
    ],
)
def test_probabilities_where_logarithms_are_taken(
    end: Callable[[Tensor], Tensor], loss: Any, targets: Callable[[], Tensor]
) -> None:
    given, found = looked_at(Classifier(end), loss, drawn(96, 4), targets())
    assert found is not None
    assert found.proof
    assert found.remedies
    for remedy in found.remedies:
        mended = Examination(given.case, (remedy,))
        assert loss_mismatch(mended) is None
        assert mended.anatomy.loss is not None
        assert mended.anatomy.loss > 0  # as of logarithms, and not of probabilities


@pytest.mark.parametrize(
    ("end", "loss", "targets"),
    [
        (log_softmax, F.nll_loss, labels),
        (same, lambda o, t: F.nll_loss(o.log_softmax(1), t), labels),
        (same, lambda o, t: F.kl_div(o.log_softmax(1), t, reduction="batchmean"), shares),
        (same, lambda o, t: F.kl_div(o.log_softmax(1), t.log(), log_target=True, reduction="batchmean"), shares),
    ],
)
def test_logarithms_are_left_in_peace(
    end: Callable[[Tensor], Tensor], loss: Any, targets: Callable[[], Tensor]
) -> None:
    assert looked_at(Classifier(end), loss, drawn(96, 4), targets())[1] is None


def test_the_logarithm_is_taken_for_what_is_given() -> None:
    """In work on a batch, too: the loss within the mode is the one that was meant."""

    def distilled(taken: Callable[[Tensor], Tensor]) -> Any:
        return fogline.on_batch(lambda model, batch: F.kl_div(taken(model(batch[0])), batch[1], reduction="batchmean"))

    x, wanted = drawn(96, 4), shares()
    given, meant = (
        Examination(open_case(fogline.Task(Classifier(same), distilled(taken), (x, wanted)), RECIPE))
        for taken in (softmax, log_softmax)
    )
    found = loss_mismatch(given)
    assert found is not None
    assert loss_mismatch(meant) is None
    mended = Examination(given.case, found.remedies)
    assert loss_mismatch(mended) is None
    assert mended.anatomy.loss == pytest.approx(meant.anatomy.loss, rel=1e-5)
