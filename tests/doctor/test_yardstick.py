"""Scores that do not depend on the loss: closed forms, every form of output, and no dependence on units."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline import on_batch
from fogline.doctor.questions import is_over_rows
from fogline.doctor.yardstick import Yardstick, work_of

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
YES = torch.tensor([0.0, 1.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("targets", "loss", "work"),
    [
        (LABELS, nn.CrossEntropyLoss(), "classes"),
        (nn.functional.one_hot(LABELS).float(), nn.MSELoss(), "one_hot"),
        (YES, nn.BCELoss(), "binary"),
        (2 * YES - 1, nn.MSELoss(), "binary"),
        (torch.randn(20, 1), nn.MSELoss(), "regression"),
        (torch.arange(20), nn.MSELoss(), "regression"),
        (torch.randn(20, 1), on_batch(lambda model, batch: model(batch).sum()), "other"),
    ],
)
def test_kind_of_work(targets: Tensor, loss: object, work: str) -> None:
    assert work_of(targets, loss) == work


def test_labels_from_logits_probabilities_and_one_column() -> None:
    yardstick, loss = Yardstick.of(LABELS, nn.CrossEntropyLoss()), nn.CrossEntropyLoss()
    perfect = nn.functional.one_hot(LABELS).float()
    assert yardstick(perfect, LABELS, loss) == 1.0
    assert yardstick(5 * perfect - 7, LABELS, loss) == 1.0
    assert yardstick(torch.ones(6, 3), LABELS, loss) == pytest.approx(0.0, abs=1e-6)  # the best constant
    assert yardstick(LABELS.float()[:, None], LABELS, loss) == 1.0  # the label itself as a number
    assert yardstick(perfect.roll(1, 1), LABELS, loss) == pytest.approx(-0.5)  # never right


def test_rare_class_counts_as_much_as_the_common_one() -> None:
    labels = torch.tensor([0] * 95 + [1] * 5)
    always = torch.zeros(100, 2)
    always[:, 0] = 1
    assert Yardstick.of(labels, nn.CrossEntropyLoss())(always, labels, nn.CrossEntropyLoss()) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("outputs", "loss", "score"),
    [
        (YES[:, None], nn.BCELoss(), 1.0),
        ((YES[:, None] - 0.5) * 9, nn.BCEWithLogitsLoss(), 1.0),
        (torch.stack([1 - YES, YES], 1), nn.MSELoss(), 1.0),
        (torch.ones(4, 1), nn.BCELoss(), 0.0),  # a softmax over one unit
        (torch.full((4, 1), torch.nan), nn.BCELoss(), -1.0),
        (1 - YES[:, None], nn.BCELoss(), -1.0),
        (0.6 + 0.1 * YES[:, None], nn.BCELoss(), 0.5),  # ranked rightly, all on one side
    ],
)
def test_yes_or_no(outputs: Tensor, loss: nn.Module, score: float) -> None:
    assert Yardstick.of(YES, loss)(outputs, YES[:, None], loss) == pytest.approx(score)


def test_share_of_variance_does_not_depend_on_units() -> None:
    generator = torch.Generator().manual_seed(0)
    targets, noise = torch.randn(50, 2, generator=generator), torch.randn(50, 2, generator=generator)
    yardstick, loss = Yardstick("regression"), nn.MSELoss()
    plain = yardstick(targets + 0.3 * noise, targets, loss)
    assert 0.8 < plain < 1.0
    assert yardstick(1e6 * (targets + 0.3 * noise) + 7e6, 1e6 * targets + 7e6, loss) == pytest.approx(plain, rel=1e-3)
    assert yardstick(targets.mean(0).expand(50, 2), targets, loss) == pytest.approx(0.0, abs=1e-6)
    assert yardstick(100 * noise, targets, loss) == -1.0


def test_outputs_of_a_shape_that_cannot_be_read() -> None:
    assert Yardstick("regression")(torch.randn(4, 3), torch.randn(4, 2), nn.MSELoss()) == -1.0
    assert Yardstick("regression")("text", torch.randn(4, 2), nn.MSELoss()) == -1.0


def test_outputs_on_a_scale_of_their_own() -> None:
    rates = torch.linspace(0.5, 9, 40)[:, None]
    yardstick = Yardstick("regression")
    assert yardstick(rates.log(), rates, nn.PoissonNLLLoss()) == pytest.approx(1.0)
    assert yardstick(rates.log(), rates, lambda outputs, targets: (outputs.exp() - targets).square().mean()) == 1.0
    assert yardstick(rates.log(), rates, nn.MSELoss()) < 0.1


def test_a_squared_error_of_ones_own_is_judged_on_the_scale_of_the_targets() -> None:
    targets = torch.linspace(50, 300, 40)[:, None]
    squashed = torch.sigmoid(targets / 100)  # in the right order, and nowhere near
    assert Yardstick("regression")(squashed, targets, lambda outputs, wanted: (outputs - wanted).square().mean()) < 0


def _gaussian(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.gaussian_nll_loss(outputs[:, :1], targets, F.softplus(outputs[:, 1:]) + 1e-3)


def test_one_of_several_numbers_answers_under_a_loss_of_ones_own() -> None:
    targets = torch.linspace(-1, 1, 100)[:, None] ** 3
    outputs = torch.cat([targets + 0.01, torch.full_like(targets, -5.0)], 1)
    assert Yardstick("regression")(outputs, targets, _gaussian) == pytest.approx(1, abs=0.01)
    assert Yardstick("regression")(outputs, targets, nn.MSELoss()) < 0.01


def _survival(outputs: Tensor, targets: Tensor) -> Tensor:
    risk = outputs[targets[:, 0].argsort(descending=True), 0]
    return -(risk - risk.logcumsumexp(0)).mean()


def _thresholds(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, (targets[:, None] > torch.arange(2)).float())


def _weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    weights = targets.abs()
    return (weights * (outputs - targets) ** 2).sum() / weights.sum()


def _apart(outputs: Tensor, targets: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(outputs, targets).mean()


def test_under_a_loss_that_hears_no_length_directions_are_scored() -> None:
    targets = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    assert Yardstick("regression")(9 * targets, targets, _apart) == pytest.approx(1)
    assert Yardstick("regression")(9 * targets.roll(1, 0), targets, _apart) < 0.1
    assert Yardstick("regression")(9 * targets, targets, nn.MSELoss()) == -1


@pytest.mark.parametrize(
    ("work", "width", "loss", "reads"),
    [
        ("regression", 1, _survival, False),
        ("regression", 1, lambda outputs, targets: -torch.corrcoef(torch.cat([outputs, targets], 1).T)[0, 1], False),
        ("regression", 1, _weighted, True),
        ("regression", 2, _gaussian, True),
        ("regression", 1, lambda outputs, targets: ((outputs - targets) ** 2).sum(), True),
        ("classes", 2, _thresholds, False),
        ("classes", 3, lambda outputs, targets: F.cross_entropy(outputs, targets), True),
        ("classes", 2, nn.CrossEntropyLoss(), True),
    ],
)
def test_whether_outputs_say_what_targets_are(work: str, width: int, loss: object, reads: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(30) % 3 if work == "classes" else torch.randn(30, 1, generator=generator)
    stick = Yardstick.of(targets, loss)
    assert stick.work == work
    assert stick.reads(torch.randn(30, width, generator=generator), targets, loss) is reads


@pytest.mark.parametrize(("sign", "reads"), [(1, False), (-1, True)])
def test_a_distance_is_no_answer(sign: int, reads: bool) -> None:
    """Small where two are alike: only the loss knows that."""
    alike = (torch.arange(30) % 2).float()

    def contrastive(distance: Tensor, wanted: Tensor) -> Tensor:
        near = wanted if sign > 0 else 1 - wanted
        return (near * distance.square() + (1 - near) * F.relu(2 - distance).square()).mean()

    stick = Yardstick.of(alike, contrastive)
    assert stick.reads(2 * torch.rand(30), alike, contrastive) is reads
    assert stick.reads(torch.rand(30), alike, contrastive)  # may be probabilities


@pytest.mark.parametrize(("shape", "reads"), [((30,), True), ((30, 1), True), ((30, 2), True), ((30, 2, 4), False)])
def test_rows_that_hold_no_answer_of_their_own(shape: tuple[int, ...], reads: bool) -> None:
    """Two embeddings a row, which the loss compares."""
    alike = (torch.arange(30) % 2).float()
    loss = lambda found, wanted: (found.reshape(30, -1).mean(1) - wanted).square().mean()  # noqa: E731
    assert Yardstick.of(alike, loss).reads(torch.randn(shape), alike, loss) is reads


def test_of_a_dict_of_outputs_only_the_loss_can_tell() -> None:
    outputs, targets = {"value": torch.randn(6, 1), "kind": torch.randn(6, 3)}, torch.randn(6, 2)
    loss = lambda found, wanted: (found["value"] - wanted[:, :1]).square().mean()  # noqa: E731
    assert Yardstick.of(targets, loss).reads(outputs, targets, loss) is False


@pytest.mark.parametrize("layout", ["second", "last", "rows"])
def test_labels_of_positions_however_the_classes_lie(layout: str) -> None:
    """A loss of one's own may turn the outputs, or take all positions as rows."""
    labels = torch.randint(0, 4, (30, 6), generator=torch.Generator().manual_seed(0))
    hot = F.one_hot(labels, 4).float()
    outputs = {"second": hot.movedim(-1, 1), "last": hot, "rows": hot.reshape(-1, 4)}[layout]
    flat = (lambda found: found.movedim(1, -1)) if layout == "second" else (lambda found: found)
    loss = lambda found, wanted: F.cross_entropy(flat(found).reshape(-1, 4), wanted.reshape(-1))  # noqa: E731
    stick = Yardstick.of(labels, loss)
    assert stick.reads(outputs, labels, loss)
    assert stick(outputs, labels, loss) == pytest.approx(1)


def test_a_sequence_that_is_longer_than_its_labels_cannot_be_read() -> None:
    labels = torch.randint(1, 4, (30, 3), generator=torch.Generator().manual_seed(0))
    loss = lambda found, wanted: F.ctc_loss(found.transpose(0, 1), wanted, [12] * 30, [3] * 30)  # noqa: E731
    assert not Yardstick.of(labels, loss).reads(torch.randn(30, 12, 5).log_softmax(-1), labels, loss)


@pytest.mark.parametrize("robust", [True, False])
def test_a_few_targets_far_off_do_not_count_where_the_loss_is_robust(robust: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    told = torch.randn(200, 1, generator=draws)
    targets = told.clone()
    targets[:8] += 100 * torch.randn(8, 1, generator=draws).sign()
    loss = nn.SmoothL1Loss() if robust else nn.MSELoss()
    yardstick = Yardstick.of(targets, loss)
    assert int(yardstick.counted(targets).sum()) == (192 if robust else 200)
    assert (yardstick(told, targets, loss) > 0.99) == robust


def test_of_targets_without_such_rows_all_count() -> None:
    """A long tail is none: it thins out."""
    normal = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    for targets in (normal, normal.exp(), (1.5 * normal[:, 0]).exp(), torch.ones(30, 1)):
        assert Yardstick.of(targets, nn.L1Loss()).bounds == ()


def _ones_for_nothing(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.softplus(outputs[:, 1] - outputs[:, 0]).mean()


def _first_columns(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, 0] - targets[:, 0]).square().mean()


def _masked(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets[..., 0]).square() * targets[..., 1]).mean()


def _yes_and_number(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs[:, 0], (targets[:, 0] > 0).float()) + _first_columns(
        outputs[:, 1:], targets[:, 1:]
    )


def _aligned(outputs: Tensor, targets: Tensor) -> Tensor:
    lengths = torch.full((len(outputs),), outputs.shape[1]), torch.full((len(outputs),), targets.shape[1])
    return F.ctc_loss(outputs.log_softmax(2).transpose(0, 1), targets, *lengths)


@pytest.mark.parametrize(
    ("outputs", "targets", "loss", "reads"),
    [
        (torch.randn(40, 2), torch.ones(40), _ones_for_nothing, False),
        (torch.randn(40, 1), torch.randn(40, 3), _first_columns, False),  # of which two are for something else
        (torch.randn(40, 1), torch.randn(40, 3), lambda o, t: (o - t).square().mean(), True),
        (torch.randn(40, 5), torch.randn(40, 5, 2), _masked, False),
        (torch.randn(40, 2), torch.randn(40, 2), _yes_and_number, False),
        (torch.randn(40, 2), torch.randn(40, 2), lambda o, t: (o - t).square().mean(), True),
        (torch.randn(40, 9, 4), torch.randint(1, 4, (40, 4)), _aligned, False),
    ],
)
def test_what_a_loss_of_ones_own_may_mean_by_its_targets(
    outputs: Tensor, targets: Tensor, loss: object, reads: bool
) -> None:
    assert Yardstick.of(targets, loss).reads(outputs, targets, loss) is reads


@pytest.mark.parametrize("end", [None, torch.sigmoid])
def test_distances_are_told_from_probabilities_by_how_they_were_made(end: Callable[[Tensor], Tensor] | None) -> None:
    def near(outputs: Tensor, targets: Tensor) -> Tensor:
        return (targets * outputs.square() + (1 - targets) * (1 - outputs).clamp_min(0).square()).mean()

    alike = (torch.arange(30) % 2).float()
    small = 0.1 * torch.rand(30, generator=torch.Generator().manual_seed(0)).requires_grad_()
    outputs = (small * 2).sqrt() if end is None else end(small)
    assert Yardstick.of(alike, near).reads(outputs, alike, near) is (end is not None)


def test_a_loss_of_quantiles_is_not_asked_for_the_mean() -> None:
    """The ninth tenth of a distribution lies above its targets: what varies with them is what counts."""

    def pinball(outputs: Tensor, targets: Tensor) -> Tensor:
        missed = targets - outputs
        return torch.maximum(0.9 * missed, -0.1 * missed).mean()

    def squared(outputs: Tensor, targets: Tensor) -> Tensor:
        return (targets - outputs).square().mean()

    targets = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    assert Yardstick.of(targets, pinball)(targets + 1.2, targets, pinball) == pytest.approx(1.0)
    assert Yardstick.of(targets, squared)(targets + 1.2, targets, squared) < 0.0


def test_what_compares_rows_by_distance_says_no_classes() -> None:
    """All triples of a batch: whichever column of an embedding is which, and where all of them lie, is the same."""

    def triples(outputs: Tensor, labels: Tensor) -> Tensor:
        apart = (outputs[:, None] - outputs).square().sum(2).add(1e-6).sqrt()
        same = labels[:, None] == labels
        wanted = same[:, :, None] & ~same[:, None]
        return (F.relu(apart[:, :, None] - apart[:, None] + 0.5) * wanted).sum() / wanted.sum()

    def entropy(outputs: Tensor, labels: Tensor) -> Tensor:
        return -outputs.log_softmax(1).gather(1, labels[:, None]).mean()

    outputs, labels = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    assert not Yardstick.of(labels, triples).reads(outputs, labels, triples)
    assert Yardstick.of(labels, entropy).reads(outputs, labels, entropy)
    assert not is_over_rows(outputs, labels, triples)
    assert is_over_rows(outputs, labels, lambda o, y: -o.log_softmax(0).gather(1, y[:, None]).mean())


def _squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, 0] - targets.float()).square().mean()


@pytest.mark.parametrize(("classes", "width", "work"), [(9, 1, "regression"), (2, 1, "classes"), (9, 9, "classes")])
def test_whole_numbers_that_a_single_number_answers(classes: int, width: int, work: str) -> None:
    targets = torch.arange(60) % classes
    stick = Yardstick.of(targets, _squared).for_outputs(torch.randn(60, width), targets, targets, _squared)
    assert stick.work == work


def two_branches(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """As often far above zero as below, and how far is what the inputs say: no single number is an answer."""
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=source)
    side = torch.where(torch.rand(count, 1, generator=source) < 0.5, -1.0, 1.0)
    return x, side * (2 + torch.tanh(x[:, :1])) + 0.1 * torch.randn(count, 1, generator=source)


def of_two_normal_laws(outputs: Tensor, targets: Tensor) -> Tensor:
    weights, means, log_scale = outputs[:, :2], outputs[:, 2:4], outputs[:, 4:].clamp(-4, 4)
    squares = ((targets - means) / log_scale.exp()).square()
    return -(weights.log_softmax(1) - squares / 2 - log_scale).logsumexp(1).mean()


@pytest.mark.parametrize("shuffled", [False, True])
def test_answers_that_a_loss_alone_can_read(shuffled: bool) -> None:
    x, y = two_branches(600, 0)
    held = two_branches(200, 1)
    if shuffled:
        y, held = y.roll(100, 0), (held[0], held[1].roll(100, 0))

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 6))

    recipe = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="30ep")
    report = fogline.diagnose(fogline.Task(model, of_two_normal_laws, (x, y), held), recipe)
    assert ("constant answer" in report.metric) is not shuffled
    assert ("shuffled_labels" in [found.cause for found in report.findings]) is shuffled


def test_scores_of_classes_under_a_softmax_may_lie_at_any_level() -> None:
    """As those of a teacher, of which a student learns what their softmax is."""
    draws = torch.Generator().manual_seed(0)
    told, level = torch.randn(200, 4, generator=draws), torch.randn(200, 1, generator=draws)

    def distillation(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.kl_div(F.log_softmax(outputs / 2, 1), F.softmax(targets / 2, 1), reduction="batchmean")

    def squared(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean()

    assert Yardstick.of(told, distillation)(told + 5 * level, told, distillation) == pytest.approx(1.0)
    assert Yardstick.of(told, distillation)(-told + 5 * level, told, distillation) < 0
    assert Yardstick.of(told, squared)(told + 5 * level, told, squared) < 0


def _of_sets(outputs: Tensor, targets: Tensor) -> Tensor:
    """Between points, whichever is nearest (Chamfer)."""
    apart = torch.cdist(outputs, targets)
    return apart.amin(1).mean() + apart.amin(2).mean()


def _of_peaks(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of a map of logits, where it is to be surely yes."""
    said, peaks = outputs.sigmoid().clamp(1e-4, 1 - 1e-4), (targets > 0.99).to(outputs)
    return -(peaks * said.log() + (1 - peaks) * (1 - targets) ** 4 * (1 - said).log()).sum() / len(targets)


def _of_one_of_several(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of a map whose first channel is yes or no, and the others numbers."""
    wanted = F.binary_cross_entropy_with_logits(outputs[:, 0], targets[:, 0])
    return wanted + 5 * ((outputs[:, 1:].sigmoid() - targets[:, 1:]) * targets[:, :1]).square().mean()


def _of_times(outputs: Tensor, targets: Tensor) -> Tensor:
    """Weibull: two parameters against a time and whether it was an event."""
    (scale, shape), (times, events) = F.softplus(outputs).add(0.1).unbind(1), targets.unbind(1)
    hazard = shape.log() - scale.log() + (shape - 1) * (times.log() - scale.log())
    return ((times / scale) ** shape - events * hazard).mean()


def _of_differences(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


@pytest.mark.parametrize(
    ("loss", "kind", "reads"),
    [
        (_of_sets, "points", False),
        (_of_peaks, "map", False),
        (_of_one_of_several, "cells", False),
        (_of_times, "times", False),
        (_of_differences, "points", True),
        (_of_differences, "map", True),
        (_of_differences, "cells", True),
        (_of_differences, "times", True),
        (
            lambda outputs, targets: _of_differences(outputs, targets.flip(1)),
            "times",
            True,
        ),  # columns that changed places
        (lambda outputs, targets: -F.cosine_similarity(outputs, targets).mean(), "times", True),
    ],
)
def test_what_only_its_loss_can_read(loss: Callable[[Tensor, Tensor], Tensor], kind: str, reads: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    peaks = torch.zeros(40, 1, 8, 8)
    peaks[torch.arange(40), 0, torch.randint(8, (40,), generator=draws), 3] = 1
    targets = {
        "points": torch.randn(40, 6, 2, generator=draws),
        "map": F.avg_pool2d(peaks, 3, 1, 1).add(peaks).clamp(max=1),
        "cells": torch.cat([peaks, torch.rand(40, 2, 8, 8, generator=draws) * peaks], 1),
        "times": torch.stack([torch.rand(40, generator=draws) + 0.1, (torch.arange(40) % 2).float()], 1),
    }[kind]
    outputs = 0.1 * torch.randn(targets.shape, generator=draws)
    assert Yardstick.of(targets, loss).reads(outputs, targets, loss) is reads


def test_directions_of_an_angle_are_judged_by_their_loss() -> None:
    """Two numbers for one, of which neither is the angle: the loss is as good as gone, and no column says it."""
    turned = 2 * torch.pi * torch.rand(400, 1, generator=torch.Generator().manual_seed(0)) - torch.pi
    places = torch.cat([turned.cos(), turned.sin()], 1)

    def apart(outputs: Tensor, targets: Tensor) -> Tensor:
        way = F.normalize(outputs, dim=1)
        return (1 - way[:, :1] * targets.cos() - way[:, 1:] * targets.sin()).mean()

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))

    report = fogline.diagnose(
        fogline.Task(model, apart, (places, turned)), optimizer="adam", lr=0.01, batch_size=32, duration="15ep"
    )
    assert report.verdict == "healthy"
    assert report.control is not None
    assert report.control > 0.9


def test_numbers_that_go_round_are_judged_by_their_loss() -> None:
    """Angles from 0 to a whole turn, of which both ends are one."""
    turned = 2 * torch.pi * torch.rand(200, generator=torch.Generator().manual_seed(0))
    outputs = torch.rand(200, generator=torch.Generator().manual_seed(1))

    def round_about(said: Tensor, told: Tensor) -> Tensor:
        return (1 - torch.cos(said - told)).mean()

    def straight(said: Tensor, told: Tensor) -> Tensor:
        return (said - told).abs().mean()

    assert not Yardstick.of(turned, round_about).reads(outputs, turned, round_about)
    assert Yardstick.of(turned, straight).reads(outputs, turned, straight)


def test_weights_beside_a_number_to_predict_are_no_second_number() -> None:
    draws = torch.Generator().manual_seed(0)
    told = torch.stack([torch.randn(200, generator=draws), torch.rand(200, generator=draws) + 0.5], 1)
    outputs = torch.randn(200, 1, generator=draws)

    def weighed(said: Tensor, told: Tensor) -> Tensor:
        return (told[:, 1:] * (said - told[:, :1]) ** 2).sum() / told[:, 1].sum()

    def both(said: Tensor, told: Tensor) -> Tensor:
        return ((said - told) ** 2).mean()

    assert not Yardstick.of(told, weighed).reads(outputs, told, weighed)
    whole = (10 * told).round().long()
    assert not Yardstick("regression").reads(outputs, whole, weighed)
    assert Yardstick.of(told, both).reads(outputs, told, both)


def test_the_logarithm_of_a_probability_says_yes_above_that_of_a_half() -> None:
    """To a loss of one's own, and to a metric that takes its exponential."""
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 4, generator=draws)
    wanted = (inputs[:, 0] + inputs[:, 1] > 0).float()

    class Likely(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.logsigmoid(self.net(x)).squeeze(1)

    def likelihood(said: Tensor, told: Tensor) -> Tensor:
        no = torch.log1p(-said.exp().clamp(max=1 - 1e-6))
        return -(told * said + (1 - told) * no).mean()

    def accuracy(said: Tensor, told: Tensor) -> Tensor:
        return ((said.exp() > 0.5) == (told > 0.5)).float().mean()

    task = fogline.Task(Likely, likelihood, (inputs, wanted), metrics={"accuracy": accuracy})
    report = fogline.diagnose(task, optimizer="adam", lr=0.01, batch_size=32, duration="15ep")
    assert report.verdict == "healthy"
    assert report.control is not None
    assert report.control > 0.9
