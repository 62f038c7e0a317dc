"""Causes between the last layer and the loss: each found where it is planted, and silent on its healthy twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.causes import output
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Suspicion
from fogline.doctor.heads import behind, last_layer, reach

SGD = fogline.Recipe(optimizer="sgd", lr=0.1, batch_size=32, duration="5ep")


def rows(count: int = 96, columns: int = 4) -> Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(0))


def labels(classes: int = 3) -> Tensor:
    return (rows()[:, 0].abs() * 2).long().clamp_max(classes - 1)


def soft_labels() -> Tensor:
    return 0.1 / 3 + 0.9 * F.one_hot(labels(), 3).float()


def yes_no() -> Tensor:
    return (rows()[:, :1] > 0).float()


def several() -> Tensor:
    """Three questions, each answered on its own."""
    return (rows()[:, :3] > 0).float()


def dense() -> Tensor:
    """Yes and no at each of two by two places."""
    return (rows() > 0).float().reshape(-1, 1, 2, 2)


def numbers() -> Tensor:
    return rows()[:, :1] * 2 - rows()[:, 1:2]


def net(outputs: int, *end: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs), *end)


class Own(nn.Module):
    """A module whose last operation is a function."""

    def __init__(self, outputs: int, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.end = nn.Linear(4, 8), nn.Linear(8, outputs), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.head(torch.relu(self.body(x))))


def exam(model: nn.Module, loss: Any, targets: Tensor, recipe: fogline.Recipe = SGD) -> Examination:
    return Examination(open_case(fogline.Task(model, loss, (rows(), targets)), recipe))


def mended(found: Suspicion, given: Examination, which: int = 0) -> Examination:
    """The program with a remedy of what was found."""
    return Examination(given.case, (found.remedies[which],))


def clipped_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    p = outputs.clamp(1e-7, 1 - 1e-7)
    return -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()


def overlap(outputs: Tensor, targets: Tensor) -> Tensor:
    return 1 - (2 * (outputs * targets).sum() + 1) / (outputs.sum() + targets.sum() + 1)


def entropy_of_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    return -outputs[torch.arange(len(outputs)), targets].clamp(1e-7, 1).log().mean()


def entropy_of_shares(outputs: Tensor, targets: Tensor) -> Tensor:
    p = (outputs / outputs.sum(1, keepdim=True)).clamp(1e-7, 1)
    return -p[torch.arange(len(p)), targets].log().mean()


def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.relu(1 - outputs * targets).mean()


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def distances(outputs: Tensor, targets: Tensor) -> Tensor:
    """Small where the label says yes."""
    return (targets * outputs.square() + (1 - targets) * F.relu(1 - outputs).square()).mean()


def quantiles(outputs: Tensor, targets: Tensor) -> Tensor:
    away, levels = targets - outputs, torch.tensor([0.1, 0.5, 0.9])
    return torch.maximum(levels * away, (levels - 1) * away).mean()


class Heads(nn.Module):
    """A label and a number, by heads of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.label, self.number = nn.Linear(4, 16), nn.Linear(16, 1), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.body(x))
        return torch.cat([self.label(hidden).softmax(1), self.number(hidden)], 1)


def noise() -> Tensor:
    """Numbers that the rows say nothing of."""
    return torch.randn(96, 1, generator=torch.Generator().manual_seed(9))


def weighed(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared errors of the first column, each with the weight that stands in the second."""
    return ((outputs - targets[:, :1]).square() * targets[:, 1:]).mean()


def likely(outputs: Tensor, targets: Tensor) -> Tensor:
    """The entropy of yes and no in the first column, each with the weight that stands in the second."""
    right = torch.where(targets[:, :1] > 0, outputs, 1 - outputs)
    return -(right.log() * targets[:, 1:]).mean()


def weights() -> Tensor:
    return rows()[:, 2:3].exp()


class Gated(Own):
    """A softmax chooses between two experts: it is no end."""

    def forward(self, x: Tensor) -> Tensor:
        share = torch.softmax(self.body(x), 1)
        return share[:, :1] * self.head(torch.relu(self.body(x))) + share[:, 1:2]


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, 1)


PLANTED: list[tuple[str, nn.Module, Any, Callable[[], Tensor]]] = [
    ("double_softmax", net(3, nn.Softmax(dim=1)), nn.CrossEntropyLoss(), labels),
    ("double_softmax", Own(3, softmax), F.cross_entropy, labels),
    ("double_softmax", net(3, nn.Softmax(dim=1)), lambda o, t: F.nll_loss(F.log_softmax(o, 1), t), labels),
    ("softmax_single_unit", net(1, nn.Softmax(dim=1)), nn.BCELoss(), yes_no),
    ("softmax_single_unit", Own(1, softmax), nn.MSELoss(), yes_no),
    ("softmax_single_unit", net(1, nn.Softmax(dim=1)), nn.MSELoss(), numbers),
    ("softmax_single_unit", Heads(), nn.MSELoss(), lambda: torch.cat([yes_no(), numbers()], 1)),
    ("output_activation", net(1, nn.Sigmoid()), nn.BCEWithLogitsLoss(), yes_no),
    ("output_activation", Own(1, torch.sigmoid), nn.BCEWithLogitsLoss(), yes_no),
    ("output_activation", net(3, nn.Sigmoid()), nn.CrossEntropyLoss(), labels),
    ("output_activation", net(3, nn.ReLU()), nn.CrossEntropyLoss(), labels),
    ("output_activation", net(1, nn.Sigmoid()), nn.MSELoss(), numbers),
    ("output_activation", Own(1, torch.relu), nn.L1Loss(), numbers),
    ("output_activation", net(1, nn.Tanh()), squares, lambda: 10 * numbers()),
    ("output_activation", net(1), clipped_entropy, yes_no),
    ("output_activation", net(1, nn.Tanh()), clipped_entropy, yes_no),
    ("output_activation", net(3, nn.Sigmoid()), entropy_of_labels, labels),
    ("output_activation", net(3), entropy_of_shares, labels),
    ("output_activation", net(3, nn.ReLU()), entropy_of_shares, labels),
    ("output_activation", net(3, nn.Softmax(dim=0)), entropy_of_labels, labels),
    ("output_activation", net(1, nn.Sigmoid()), nn.MSELoss(), lambda: 2 * yes_no() - 1),
    ("output_activation", net(3, nn.Softmax(dim=1)), nn.BCELoss(), several),
    ("output_activation", net(3, nn.Softmax(dim=1)), nn.MSELoss(), lambda: rows()[:, :3].sigmoid()),
    ("output_activation", net(3, nn.Sigmoid()), nn.BCEWithLogitsLoss(), several),
    ("output_activation", net(3), overlap, several),
    ("output_activation", net(1, nn.Sigmoid()), weighed, lambda: torch.cat([numbers(), weights()], 1)),
    ("output_activation", net(1, nn.ReLU()), weighed, lambda: torch.cat([numbers(), weights()], 1)),
    ("loss_mismatch", net(1, nn.Sigmoid()), clipped_entropy, lambda: 2 * yes_no() - 1),
    ("loss_mismatch", net(3), nn.NLLLoss(), labels),
    ("loss_mismatch", net(3, nn.Softmax(dim=1)), nn.NLLLoss(), labels),
    ("loss_mismatch", net(3, nn.Softmax(dim=1)), nn.KLDivLoss(reduction="batchmean"), soft_labels),
    ("loss_mismatch", net(1), hinge, yes_no),
    ("loss_mismatch", net(1), nn.HingeEmbeddingLoss(), yes_no),
    ("loss_mismatch", net(1), nn.BCEWithLogitsLoss(), lambda: labels().float()[:, None]),
    ("loss_mismatch", net(1, nn.Sigmoid()), clipped_entropy, lambda: labels().float()[:, None]),
    ("loss_mismatch", net(1), nn.MSELoss(), lambda: labels().float()[:, None]),
    ("loss_mismatch", net(1), nn.CrossEntropyLoss(), yes_no),
    ("loss_mismatch", net(3), nn.CrossEntropyLoss(), lambda: labels().float()),
    ("output_width", net(2), nn.CrossEntropyLoss(), labels),
    ("output_width", net(1), nn.CrossEntropyLoss(), labels),
    ("output_width", net(3), squares, numbers),
    ("output_width", net(2), nn.MSELoss(), numbers),
    ("output_width", net(1), squares, lambda: rows()[:, :3]),
    (
        "loss_mismatch",
        net(8, nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 1, 1)),
        nn.BCEWithLogitsLoss(),
        lambda: dense() / 255,
    ),
    ("loss_mismatch", net(3), lambda o, t: 1 - overlap(o.sigmoid(), t), several),
    ("loss_mismatch", net(3, nn.Sigmoid()), lambda o, t: -overlap(o, t), several),
    ("loss_mismatch", net(1), lambda o, t: 1 - overlap(o.sigmoid(), t), yes_no),
    ("loss_mismatch", net(3, nn.Softmax(dim=1)), lambda o, t: o[torch.arange(len(o)), t].mean(), labels),
    ("loss_mismatch", net(3), lambda o, t: F.nll_loss(F.log_softmax(o, 0), t), labels),
    ("loss_mismatch", net(1), lambda o, t: (o.mean() - t.mean()).square(), numbers),
    ("loss_mismatch", net(3), lambda o, t: 1 + F.cosine_similarity(o, t).mean(), lambda: rows()[:, :3]),
    ("loss_mismatch", net(1), lambda o, t: F.mse_loss(o[:, 0], t.float()), labels),
    ("output_activation", net(3, nn.Softmax(dim=1)), lambda o, t: -(t * (o + 1e-9).log()).sum(1).mean(), several),
    ("shape_broadcast", net(1), nn.MSELoss(), lambda: (1e5 * (3 + numbers()))[:, 0]),
    ("sum_reduction", net(1), lambda o, t: 20 * (o - t).square().sum(), numbers),
    ("sum_reduction", net(1), nn.MSELoss(reduction="sum"), lambda: 30 * numbers()),
    ("shape_broadcast", net(1), squares, lambda: numbers()[:, 0]),
    ("shape_broadcast", net(1), nn.MSELoss(), lambda: numbers()[:, 0]),
    ("shape_broadcast", Own(1, lambda x: x[:, 0]), nn.L1Loss(), numbers),
]

SOUND: list[tuple[nn.Module, Any, Callable[[], Tensor]]] = [
    (net(3), nn.CrossEntropyLoss(), labels),
    (net(3), nn.CrossEntropyLoss(label_smoothing=0.1), labels),
    (net(5), nn.CrossEntropyLoss(), labels),
    (net(3, nn.LogSoftmax(dim=1)), nn.NLLLoss(), labels),
    (net(3, nn.LogSoftmax(dim=1)), nn.CrossEntropyLoss(), labels),
    (net(3, nn.LogSoftmax(dim=1)), nn.KLDivLoss(reduction="batchmean"), soft_labels),
    (net(3, nn.Softmax(dim=1)), entropy_of_labels, labels),
    (net(3, nn.Sigmoid()), entropy_of_shares, labels),
    (net(3, nn.Softplus()), entropy_of_shares, labels),
    (Own(3, lambda x: 30 * torch.tanh(x / 30)), nn.CrossEntropyLoss(), labels),
    (Own(3, lambda x: 30 * torch.softmax(x, 1)), nn.CrossEntropyLoss(), labels),
    (net(3), lambda o, t: -torch.softmax(o, 1)[torch.arange(len(o)), t].mean(), labels),
    (net(3), nn.MultiMarginLoss(), labels),
    (net(3), nn.MSELoss(), lambda: F.one_hot(labels(), 3).float()),
    (net(3, nn.Sigmoid()), nn.BCELoss(), lambda: F.one_hot(labels(), 3).float()),
    (net(1, nn.Sigmoid()), nn.BCELoss(), yes_no),
    (net(1, nn.Sigmoid()), clipped_entropy, yes_no),
    (net(1), nn.BCEWithLogitsLoss(), yes_no),
    (net(1, nn.Sigmoid()), nn.MSELoss(), yes_no),
    (net(1), hinge, lambda: 2 * yes_no() - 1),
    (net(1, nn.Tanh()), nn.MSELoss(), lambda: 2 * yes_no() - 1),
    (net(1), nn.MSELoss(), numbers),
    (net(1), nn.HuberLoss(), lambda: 1000 * numbers()),
    (net(1, nn.Softplus()), nn.MSELoss(), lambda: numbers().abs()),
    (net(1, nn.ReLU()), nn.L1Loss(), lambda: numbers().abs()),
    (net(1, nn.Sigmoid()), nn.MSELoss(), lambda: torch.sigmoid(numbers())),
    (Own(1, lambda x: 10 * torch.tanh(x)), nn.MSELoss(), numbers),
    (net(1), nn.PoissonNLLLoss(), lambda: numbers().abs().round()),
    (net(1), squares, numbers),
    (net(3), quantiles, numbers),
    (net(3), quantiles, lambda: 2e5 + 4e4 * numbers()),
    (net(3, nn.Softmax(dim=1)), nn.MSELoss(), soft_labels),
    (net(3, nn.Softmax(dim=1)), nn.MSELoss(), lambda: rows()[:, :3].softmax(1)),
    (net(3), nn.BCEWithLogitsLoss(), several),
    (net(3, nn.Sigmoid()), overlap, several),
    (net(3), lambda o, t: overlap(o.sigmoid(), t), several),
    (net(3), lambda o, t: torch.log(torch.cosh(o - t)).mean(), several),
    (Gated(3, nn.Identity()), nn.CrossEntropyLoss(), labels),
    (net(3), lambda o, t: F.binary_cross_entropy_with_logits(o, F.one_hot(t, 3).float()), labels),
    (net(2), lambda o, t: F.binary_cross_entropy_with_logits(o, (t[:, None] > torch.arange(2)).float()), labels),
    (net(8), lambda o, t: F.cross_entropy(o @ o.flip(0).T, torch.arange(len(o))), labels),
    (net(3), lambda o, t: F.cross_entropy(-o.square(), t), labels),
    (net(1), lambda o, t: ((o - t[:, :1]).square() * t[:, 1:]).mean(), lambda: torch.cat([numbers(), yes_no()], 1)),
    (net(1, nn.Sigmoid()), likely, lambda: torch.cat([yes_no(), weights()], 1)),
    (net(1, nn.Sigmoid()), weighed, lambda: torch.cat([yes_no(), weights()], 1)),
    (net(1, nn.Softplus()), weighed, lambda: torch.cat([numbers().abs(), weights()], 1)),
    (net(2), lambda o, t: F.gaussian_nll_loss(o[:, :1], t, F.softplus(o[:, 1:]) + 1e-3), numbers),
    (net(3), lambda o, t: 1 - F.cosine_similarity(o, t).mean(), lambda: rows()[:, :3]),
    (net(3), lambda o, t: F.cross_entropy(o @ t.T, torch.arange(len(o))), lambda: rows()[:, :3]),
    (net(1), lambda o, t: (o.sort(0)[0] - t.sort(0)[0]).square().mean(), noise),
    (Own(1, lambda x: x[:, 0]), nn.MSELoss(), lambda: numbers()[:, 0]),
    (net(1), lambda o, t: squares(o[:, 0], t), lambda: numbers()[:, 0]),
    (net(1), nn.MSELoss(reduction="sum"), lambda: 0.01 * numbers()),
    (net(1), squares, lambda: numbers() + 0.1 * rows()[:, :3]),
    (net(1), lambda o, t: (t[:, 1:] * (t[:, :1] - o) + o.exp()).mean(), lambda: torch.cat([numbers(), yes_no()], 1)),
    (Own(4, lambda x: x.square().sum(1, keepdim=True)), distances, yes_no),
    (net(1), distances, yes_no),
]


def named(case: tuple[Any, ...]) -> str:
    return case[0] if isinstance(case[0], str) else ""


@pytest.mark.parametrize(("cause", "model", "loss", "targets"), PLANTED, ids=[named(case) for case in PLANTED])
def test_found_where_it_is_planted_and_gone_when_mended(
    cause: str, model: nn.Module, loss: Any, targets: Callable[[], Tensor]
) -> None:
    recipe = SGD.replace(lr=0.03) if cause == "sum_reduction" else SGD
    given = exam(model, loss, targets(), recipe)
    found = getattr(output, cause)(given)
    assert found is not None
    assert found.cause == cause
    for which in range(len(found.remedies)):
        after = mended(found, given, which)
        assert getattr(output, cause)(after) is None or not getattr(output, cause)(after).proof
        assert (after.anatomy.stage, after.anatomy.error) == ("", "")
    assert found.remedies


@pytest.mark.parametrize("sound", SOUND, ids=range(len(SOUND)))
def test_silent_on_sound_programs(sound: tuple[nn.Module, Any, Callable[[], Tensor]]) -> None:
    model, loss, targets = sound
    given = exam(model, loss, targets(), SGD.replace(lr=1e-4))
    assert [cause.__name__ for cause in output.ON_ONE_BATCH if cause(given)] == []


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_size_of_the_loss_does_not_matter(factor: float) -> None:
    def larger(outputs: Tensor, targets: Tensor) -> Tensor:
        return factor * F.cross_entropy(outputs, targets)

    found = output.double_softmax(exam(net(3, nn.Softmax(dim=1)), larger, labels()))
    assert found is not None
    assert output.double_softmax(exam(net(3), larger, labels())) is None


def test_a_softmax_too_many_in_work_on_a_batch() -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def work(*end: nn.Module) -> Examination:
        return Examination(open_case(fogline.Task(net(3, *end), fogline.on_batch(loss), (rows(), labels())), SGD))

    given = work(nn.Softmax(dim=1))
    found = output.double_softmax(given)
    assert found is not None
    assert output.double_softmax(mended(found, given)) is None
    assert output.double_softmax(work()) is None
    assert output.double_softmax(work(nn.LogSoftmax(dim=1))) is None


def test_a_sum_does_not_matter_to_an_optimizer_that_divides_by_the_gradient() -> None:
    given = exam(net(1), nn.MSELoss(reduction="sum"), 30 * numbers(), SGD.replace(optimizer="adam", lr=0.01))
    assert output.sum_reduction(given) is None


def test_logits_or_probabilities() -> None:
    """The sigmoid goes, or else the loss is the one that takes it."""
    given = exam(net(1, nn.Sigmoid()), nn.BCEWithLogitsLoss(), yes_no())
    found = output.output_activation(given)
    assert found is not None
    logits, probabilities = mended(found, given), mended(found, given, 1)
    assert isinstance(logits.program.loss, nn.BCEWithLogitsLoss)
    assert bool((logits.anatomy.outputs < 0).any())
    assert isinstance(probabilities.program.loss, nn.BCELoss)
    assert bool((probabilities.anatomy.outputs >= 0).all())


def test_the_last_layer_is_the_one_the_output_is_made_of() -> None:
    class Skips(Own):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.body(x))) + x[:, :1]

    assert last_layer(exam(net(1), nn.MSELoss(), numbers()).anatomy) is not None
    assert last_layer(exam(Skips(1, nn.Identity()), nn.MSELoss(), numbers()).anatomy) is None


def test_what_can_be_reached_is_asked_of_the_model() -> None:
    assert reach(exam(net(1, nn.Sigmoid()), nn.MSELoss(), numbers()).anatomy) == (0.0, 1.0)
    assert reach(exam(Own(1, lambda x: 2 + torch.tanh(x)), nn.MSELoss(), numbers()).anatomy) == (1.0, 3.0)
    open_end = reach(exam(net(1, nn.ReLU()), nn.MSELoss(), numbers()).anatomy)
    assert open_end is not None
    assert open_end[0] == 0.0
    assert open_end[1] > 1000


@pytest.mark.parametrize(
    "end",
    [
        lambda x: 2 * torch.sigmoid(x) - 1,
        lambda x: x.clamp(0, 1),
        F.relu6,
        torch.square,
        torch.sin,
        lambda x: torch.tanh(F.relu(x)),
    ],
)
def test_whatever_bends_each_number_by_itself_can_be_left_out(end: Callable[[Tensor], Tensor]) -> None:
    model = Own(2, end)
    edit = behind(exam(model, nn.MSELoss(), rows()[:, :2]).anatomy)
    assert edit is not None
    torch.testing.assert_close(edit(model)(rows()), model.head(torch.relu(model.body(rows()))))


@pytest.mark.parametrize(
    "end", [lambda x: x.clamp(0, 1).cumsum(1), lambda x: torch.sigmoid(x) * torch.tensor([1.0, 9.0])]
)
def test_what_mixes_numbers_or_gives_each_another_scale_stays(end: Callable[[Tensor], Tensor]) -> None:
    assert behind(exam(Own(2, end), nn.MSELoss(), rows()[:, :2]).anatomy) is None


@pytest.mark.parametrize("cause", output.ON_ONE_BATCH, ids=lambda cause: cause.__name__)
def test_any_program_can_be_examined(cause: Callable[[Examination], Suspicion | None]) -> None:
    tokens = torch.randint(0, 5, (40, 6), generator=torch.Generator().manual_seed(0))
    reads = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(24, 5))
    tasks = [
        fogline.Task(net(4), fogline.on_batch(lambda m, b: (m(b) - b).square().mean()), rows()),
        fogline.Task(reads, nn.CrossEntropyLoss(), (tokens, tokens[:, 0])),
        fogline.Task(nn.Conv2d(1, 3, 1), nn.CrossEntropyLoss(), (torch.ones(8, 1, 4, 4), torch.zeros(8, 4, 4).long())),
        fogline.Task(net(2), nn.CrossEntropyLoss(), (torch.ones(20, 3), labels()[:20])),
    ]
    for task in tasks:
        cause(Examination(open_case(task, SGD)))


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 6)

    def forward(self, both: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(both[:, :4]), self.body(both[:, 4:])


def _angles(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    return F.cosine_embedding_loss(*outputs, targets, margin=0.3)


def _gaps(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    apart = (outputs[0] - outputs[1]).norm(dim=1)
    return (targets * apart.square() + (1 - targets) * (1 - apart).clamp_min(0).square()).mean()


@pytest.mark.parametrize(("loss", "no", "heard"), [(_angles, 0.0, False), (_angles, -1.0, True), (_gaps, 0.0, True)])
def test_targets_that_a_loss_of_pairs_does_not_hear(loss: Any, no: float, heard: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    rows, yes = torch.randn(64, 8, generator=draws), torch.rand(64, generator=draws) < 0.5
    task = fogline.Task(_Pair, loss, (rows, torch.where(yes, 1.0, no)))
    exam = Examination(open_case(task, SGD))
    found = output.loss_mismatch(exam)
    if heard:
        assert found is None
        return
    assert found is not None
    assert found.blocks
    assert output.loss_mismatch(Examination(exam.case, found.remedies[:1])) is None


def _quantiles(shares: tuple[float, ...]) -> Callable[[Tensor, Tensor], Tensor]:
    levels = torch.tensor(shares)
    return lambda found, wanted: torch.maximum(levels * (wanted - found), (levels - 1) * (wanted - found)).mean()


def _squares(sign: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda found, wanted: sign * (found - wanted).square().mean()


@pytest.mark.parametrize(
    ("loss", "width", "fault", "mended"),
    [
        (_quantiles((10.0, 50.0, 90.0)), 3, True, False),
        (_quantiles((0.1, 0.5, 0.9)), 3, False, False),
        (_squares(-1.0), 1, True, True),
        (_squares(1.0), 1, False, False),
    ],
)
def test_losses_of_numbers_without_a_bottom(loss: Any, width: int, fault: bool, mended: bool) -> None:
    torch.manual_seed(0)
    task = fogline.Task(nn.Linear(4, width), loss, (rows(), rows()[:, :1] + rows()[:, 1:2]))
    found = output.loss_mismatch(Examination(open_case(task, SGD)))
    assert (found is not None) == fault
    assert found is None or (found.proof and bool(found.remedies) == mended)


def test_rewards_of_either_sign_leave_a_loss_its_bottom() -> None:
    """Their mean may be below zero in a batch; that is no fault of the loss."""

    def weighed(found: Tensor, wanted: Tensor) -> Tensor:
        return (wanted[:, 1] * (found[:, 0] - wanted[:, 0]).square()).mean()

    torch.manual_seed(0)
    rewards = torch.where(torch.arange(96) % 3 > 0, -1.0, 1.0)
    task = fogline.Task(nn.Linear(4, 1), weighed, (rows(), torch.stack([rows()[:, 0], rewards], 1)))
    assert output.loss_mismatch(Examination(open_case(task, SGD))) is None


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_columns_are_told_apart_from_a_single_row(batch: int) -> None:
    """Near the target of the one row there is, all quantiles cost the same, and so do all answers to it."""

    def quantiles(found: Tensor, wanted: Tensor) -> Tensor:
        shares, off = torch.tensor([0.1, 0.5, 0.9]), wanted - found
        return torch.maximum(shares * off, (shares - 1) * off).mean()

    given = exam(net(3), quantiles, rows()[:, :1], SGD.replace(batch_size=batch))
    assert output.output_width(given) is None
    assert output.output_width(exam(net(3), squares, rows()[:, :1], SGD.replace(batch_size=batch))) is not None


def test_columns_with_losses_of_their_own_may_be_shares_and_numbers() -> None:
    def both(found: Tensor, wanted: Tensor) -> Tensor:
        shares = F.binary_cross_entropy(found[:, 0], wanted[:, 0])
        return shares + (found[:, 1] - wanted[:, 1]).square().mean()

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            said = self.body(x)
            return torch.cat([said[:, :1].sigmoid(), said[:, 1:]], 1)

    task = fogline.Task(Heads, both, (rows(), torch.cat([yes_no(), 3 * rows()[:, 1:2]], 1)))
    assert output.loss_mismatch(Examination(open_case(task, SGD))) is None


@pytest.mark.parametrize("axis", [0, 1])
def test_a_correlation_along_an_axis_of_one_number_hears_nothing(axis: int) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        a, b = (part - part.mean(axis, keepdim=True) for part in (outputs, targets))
        lengths = (a.square().sum(axis) * b.square().sum(axis) + 1e-8).sqrt()
        return 1 - ((a * b).sum(axis) / lengths).mean()

    found = output.loss_mismatch(exam(net(1), loss, numbers()))
    assert (found is not None and "same number" in found.explanation) == (axis == 1)
    if found is not None:
        assert output.loss_mismatch(mended(found, exam(net(1), loss, numbers()))) is None


class Dot(nn.Module):
    """A product of two tables and a function at the end: no layer gives the answer."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.end = nn.Embedding(9, 4), nn.Embedding(9, 4), end

    def forward(self, pairs: Tensor) -> Tensor:
        return self.end((torch.sigmoid(self.left(pairs[:, 0])) * self.right(pairs[:, 1])).sum(1, keepdim=True))


def test_the_function_at_the_end_of_a_model_without_a_last_layer() -> None:
    pairs = torch.randint(0, 9, (96, 2), generator=torch.Generator().manual_seed(0))
    stars = 1 + pairs.sum(1, keepdim=True).float() / 4
    model = Dot(torch.sigmoid)
    given = Examination(open_case(fogline.Task(model, nn.MSELoss(), (pairs, stars)), SGD))
    found = output.output_activation(given)
    assert found is not None
    edit = found.remedies[0].on_model
    assert edit is not None
    torch.testing.assert_close(edit(model)(pairs), Dot(lambda x: x)(pairs))
    for end, targets in ((torch.sigmoid, stars / 10), (lambda x: x, stars), (lambda x: x.sigmoid() * 9, stars)):
        sound = Examination(open_case(fogline.Task(Dot(end), nn.MSELoss(), (pairs, targets)), SGD))
        assert output.output_activation(sound) is None


class Grades(nn.Module):
    """One number a row against thresholds between grades: the answers are made of more than the last layer says."""

    def __init__(self, *, bounded: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.cuts = nn.Linear(4, 1), nn.Parameter(torch.tensor([1.0, 0.0, -1.0]))
        self.bounded = bounded

    def forward(self, x: Tensor) -> Tensor:
        above: Tensor = self.net(x) + self.cuts
        return above.sigmoid() if self.bounded else above


@pytest.mark.parametrize("bounded", [True, False])
def test_a_bounded_end_behind_a_sum(bounded: bool) -> None:
    above = (2 * rows()[:, :1] > torch.tensor([-1.0, 0.0, 1.0])).float()
    task = fogline.Task(Grades(bounded=bounded), nn.BCEWithLogitsLoss(), (rows(), above))
    found = output.output_activation(Examination(open_case(task, SGD)))
    assert (found is not None) is bounded
    if found is not None:
        assert found.proof
        assert any("sigmoid" in remedy.title for remedy in found.remedies)


@pytest.mark.parametrize(
    ("metric", "first"),
    [
        (None, "leave out"),
        (lambda said, told: ((said > 0.5) == (told > 0.5)).float().mean(), "nn.BCELoss"),
        (lambda said, told: ((said > 0) == (told > 0.5)).float().mean(), "leave out"),
        (lambda said, told: ((said.sigmoid() > 0.5) == (told > 0.5)).float().mean(), "leave out"),
    ],
)
def test_a_sigmoid_before_a_loss_of_logits_goes_unless_a_metric_counts_on_it(metric: Any, first: str) -> None:
    metrics = None if metric is None else {"accuracy": metric}
    task = fogline.Task(net(1, nn.Sigmoid()), nn.BCEWithLogitsLoss(), (rows(), yes_no()), metrics=metrics)
    found = output.output_activation(Examination(open_case(task, SGD)))
    assert found is not None
    assert len(found.remedies) == 2
    assert first in found.remedies[0].title
