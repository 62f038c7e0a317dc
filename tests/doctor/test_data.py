"""Causes that lie in the rows: each found where it is planted, and silent on its healthy twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fogline
from fogline.doctor.bench import Bench
from fogline.doctor.case import open_case
from fogline.doctor.causes import data, fit
from fogline.doctor.causes.data.dense import pairing
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Suspicion, Trial
from fogline.doctor.standing import standing
from fogline.doctor.trial import Laboratory

RECIPE = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=20, duration="20ep")
Pair = tuple[Tensor, Tensor]


def numbers(count: int = 200, seed: int = 0) -> Pair:
    X = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return X, X[:, :1] - 2 * X[:, 1:2]


def labels(count: int = 200, seed: int = 0) -> Pair:
    X = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    y = torch.arange(count) % 3
    X[:, 0] += 6 * y
    X[:, 0] = (X[:, 0] - 6) / 5
    return X, y


def net(outputs: int, columns: int = 4, first: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(first or nn.Identity(), nn.Linear(columns, 8), nn.ReLU(), nn.Linear(8, outputs))


def regression(train: Any = None, valid: Any = None, *, recipe: fogline.Recipe = RECIPE, **model: Any) -> Examination:
    task = fogline.Task(net(1, **model), nn.MSELoss(), train or numbers(), valid=valid)
    return Examination(open_case(task, recipe))


def classification(
    train: Any = None, valid: Any = None, *, recipe: fogline.Recipe = RECIPE, **model: Any
) -> Examination:
    task = fogline.Task(net(3, **model), nn.CrossEntropyLoss(), train or labels(), valid=valid)
    return Examination(open_case(task, recipe))


def mended(given: Examination, found: Suspicion | None, which: int = 0) -> Examination:
    assert found is not None
    return Examination(given.case, (found.remedies[which],))


def in_motion(given: Examination, steps: int = 60) -> Examination:
    given.observed = Laboratory(given.case, 1000).observe(given.program, steps)
    return given


@pytest.mark.parametrize("make", [regression, classification])
def test_silent_on_sound_data(make: Callable[..., Examination]) -> None:
    given = make()
    assert [cause.__name__ for cause in data.ON_ONE_BATCH if cause(given)] == []
    assert [cause.__name__ for cause in data.IN_MOTION if cause(in_motion(given, 20))] == []


# Units


@pytest.mark.parametrize("change", [lambda x: 300 * x, lambda x: x + 50, lambda x: x * torch.tensor([1.0, 1, 1000, 1])])
def test_inputs_in_other_units(change: Callable[[Tensor], Tensor]) -> None:
    X, y = numbers()
    given = regression((change(X), y))
    found = data.unscaled_input(given)
    assert found is not None
    after = mended(given, found)
    assert data.unscaled_input(after) is None
    received = after.anatomy.weighted[0].received
    assert received is not None
    assert received.mean(0).abs().max() < 1
    assert 0.3 < float(received.std()) < 3


@pytest.mark.parametrize(
    ("change", "said"), [(lambda x: 300 * x, False), (lambda x: x * torch.tensor([1, 1, 1000, 1]), True)]
)
def test_what_is_normalised_right_behind_the_first_layer(change: Callable[[Tensor], Tensor], said: bool) -> None:
    """A size that all columns share is gone there, and one of a single column is not."""
    X, y = numbers()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(X.shape[1], 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
    task = fogline.Task(net, nn.MSELoss(), (change(X), y))
    assert (data.unscaled_input(Examination(open_case(task, fogline.Recipe(lr=0.01)))) is not None) == said


class Sizes(nn.Module):
    """Takes a dictionary: one part that is multiplied with weights, one that is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.kinds, self.head = nn.Linear(4, 8), nn.Embedding(3, 8), nn.Linear(8, 1)

    def forward(self, given: dict[str, Tensor]) -> Tensor:
        return self.head(torch.relu(self.numbers(given["numbers"]) + self.kinds(given["kind"])))


class Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, factor: float) -> None:
        self.X, self.y = numbers(60)
        self.X = factor * self.X

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, k: int) -> Any:
        return {"numbers": self.X[k], "kind": k % 3}, self.y[k]


def test_a_part_of_the_inputs_in_other_units() -> None:
    torch.manual_seed(0)
    given = Examination(open_case(fogline.Task(Sizes(), nn.MSELoss(), Rows(5000.0)), RECIPE))
    after = mended(given, data.unscaled_input(given))
    received = after.anatomy.weighted[0].received
    assert received is not None
    assert 0.5 < float(received.std()) < 2
    assert data.unscaled_input(Examination(open_case(fogline.Task(Sizes(), nn.MSELoss(), Rows(1.0)), RECIPE))) is None


def test_images_are_scaled_by_channel() -> None:
    images = 255 * torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[:, 1] *= 0.1
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    task = fogline.Task(model, nn.CrossEntropyLoss(), (images, torch.arange(60) % 3))
    given = Examination(open_case(task, RECIPE))
    after = mended(given, data.unscaled_input(given))
    received = after.anatomy.weighted[0].received
    assert received is not None
    assert torch.allclose(received.std((0, 2, 3)), torch.ones(3), atol=0.1)


def test_inputs_that_the_model_brings_to_size_itself() -> None:
    X, y = numbers()

    class Divides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 300

    large = (300 * X, y)
    assert data.unscaled_input(regression(large, first=nn.BatchNorm1d(4))) is None
    assert data.unscaled_input(regression(large, first=Divides())) is None
    assert data.unscaled_input(regression((X.sigmoid(), y))) is None
    assert data.unscaled_input(regression(((X > 1).float(), y))) is None


def test_tokens_have_no_units() -> None:
    tokens = torch.randint(0, 900, (60, 5), generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Embedding(900, 4), nn.Flatten(), nn.Linear(20, 3))
    task = fogline.Task(model, nn.CrossEntropyLoss(), (tokens, torch.arange(60) % 3))
    assert data.unscaled_input(Examination(open_case(task, RECIPE))) is None


@pytest.mark.parametrize("change", [lambda y: 500 * y, lambda y: y + 80, lambda y: 1e-4 * y])
def test_targets_in_other_units(change: Callable[[Tensor], Tensor]) -> None:
    X, y = numbers()
    given = regression((X, change(y)))
    after = mended(given, data.unscaled_target(given))
    assert data.unscaled_target(after) is None
    outputs, targets = after.anatomy.outputs, after.anatomy.batch[1]
    assert float((outputs.detach().mean() - targets.mean()).abs() / targets.std()) < 1
    assert isinstance(after.program.loss, nn.MSELoss)
    plain = regression((X, (change(y) - change(y).mean()) / change(y).std(correction=0)))
    assert after.anatomy.loss == pytest.approx(plain.anatomy.loss, rel=0.2)


def test_several_numbers_for_one_target() -> None:
    """Quantiles of targets that are far away: each of the outputs is brought to their units."""
    X, y = numbers()

    def quantiles(outputs: Tensor, targets: Tensor) -> Tensor:
        shares, error = torch.tensor([0.1, 0.5, 0.9]), targets - outputs
        return torch.maximum(shares * error, (shares - 1) * error).mean()

    given = Examination(open_case(fogline.Task(net(3), quantiles, (X, 2e5 + 1e4 * y)), RECIPE))
    after = mended(given, data.unscaled_target(given))
    assert abs(float(after.anatomy.outputs.detach().mean()) - 2e5) < 3e4
    assert after.anatomy.loss is not None
    assert 0.1 < after.anatomy.loss < 10


def test_a_bounded_end_is_spread_over_the_targets() -> None:
    X, y = numbers()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())
    given = Examination(open_case(fogline.Task(model, nn.L1Loss(), (X, 50 * y + 300)), RECIPE))
    after = mended(given, data.unscaled_target(given))
    low, high = float((50 * y + 300).min()), float((50 * y + 300).max())
    assert bool((after.anatomy.outputs >= low).all())
    assert bool((after.anatomy.outputs <= high).all())


def test_a_loss_whose_units_matter_is_left_alone() -> None:
    X, y = numbers()
    task = fogline.Task(net(1), nn.PoissonNLLLoss(), (X, (300 * y).abs().round()))
    assert data.unscaled_target(Examination(open_case(task, RECIPE))) is None


# Gaps and constants


def test_rows_with_gaps() -> None:
    X, y = numbers()
    X[7, 2] = torch.nan
    X[100, 1] = torch.inf
    given = regression((X, y))
    found = data.nan_in_data(given)
    assert found is not None
    assert found.blocks
    assert "2 of" in str(found.evidence[0])
    for which in range(2):
        after = mended(given, found, which)
        assert data.nan_in_data(after) is None
    assert mended(given, found, 0).program.rows < mended(given, found, 1).program.rows


def test_a_gap_in_a_row_that_trials_hold_out() -> None:
    X, y = numbers()
    X[regression().case.held[0], 1] = torch.nan
    given = regression((X, y))
    assert data.nan_in_data(mended(given, data.nan_in_data(given))) is None


def test_targets_with_gaps() -> None:
    X, y = numbers()
    y[::2] = torch.nan
    given = regression((X, y))
    found = data.nan_in_data(given)
    assert found is not None
    assert [remedy.title for remedy in found.remedies] == ["drop the rows with NaN or infinity"]


def test_gaps_that_the_loss_knows_of() -> None:
    X, y = numbers()
    y[::3] = torch.nan

    def masked(outputs: Tensor, targets: Tensor) -> Tensor:
        there = ~targets.isnan()
        return torch.where(there, outputs - targets.nan_to_num(), 0.0).square().sum() / there.sum().clamp_min(1)

    assert data.nan_in_data(Examination(open_case(fogline.Task(net(1), masked, (X, y)), RECIPE))) is None


@pytest.mark.parametrize("make", [regression, classification])
def test_one_target_for_all(make: Callable[..., Examination]) -> None:
    X, y = numbers() if make is regression else labels()
    found = data.constant_target(make((X, torch.full_like(y, 1))))
    assert found is not None
    assert found.blocks
    assert data.constant_target(make((X, y))) is None


# Order and balance


@pytest.mark.parametrize("make", [regression, classification])
def test_rows_in_the_order_of_their_targets(make: Callable[..., Examination]) -> None:
    X, y = numbers() if make is regression else labels()
    order = y.reshape(-1).sort(stable=True).indices
    in_order = X[order], y[order]
    still = RECIPE.replace(shuffle=False)
    given = make(in_order, recipe=still)
    assert mended(given, data.unshuffled_data(given)).program.recipe.shuffle
    assert data.unshuffled_data(make(in_order)) is None
    assert data.unshuffled_data(make((X, y), recipe=still)) is None
    assert data.unshuffled_data(make(in_order, recipe=still.replace(batch_size="full"))) is None


def test_a_loader_that_does_not_shuffle() -> None:
    X, y = labels()
    order = y.sort(stable=True).indices
    loader = DataLoader(TensorDataset(X[order], y[order]), batch_size=20, shuffle=False)
    given = classification(loader)
    after = mended(given, data.unshuffled_data(given))
    assert data.unshuffled_data(after) is None
    assert after.program.rows == given.program.rows


def test_rare_classes_that_are_not_found() -> None:
    X, y = labels(900)
    X = X + 0.6 * torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
    use = (y != 1) | (torch.arange(900) % 25 == 1)
    given = in_motion(classification((X[use], y[use]), recipe=RECIPE.replace(lr=0.001)), 40)
    found = data.class_imbalance(given)
    assert found is not None
    again = mended(given, found, 2)
    assert torch.bincount(again.program.train[1]).min() > 100
    told = mended(given, found, 1).program.loss
    outputs, targets = torch.zeros(1, 3), torch.tensor([1])
    counts = torch.bincount(given.program.train[1]).float()
    assert torch.allclose(told(outputs, targets), (counts.sum() / counts[1]).log())


@pytest.mark.parametrize("loss", ["weighted", "two logits", "own", "own sum"])
def test_rare_classes_that_the_loss_weighs_less(loss: str) -> None:
    X = torch.randn(900, 4, generator=torch.Generator().manual_seed(0))
    y = (torch.arange(900) % 9 == 0).long()
    X[:, 0] += 1.5 * y
    weights = torch.tensor([0.9, 0.1])

    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        each = weights[targets] * F.cross_entropy(outputs, targets, reduction="none")
        return each.sum() if loss == "own sum" else each.mean()

    given: Any = own
    outputs, targets = 2, y
    if loss == "weighted":
        given = nn.CrossEntropyLoss(weight=weights)
    elif loss == "two logits":
        given, outputs, targets = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(1 / 9)), 1, y.float()[:, None]
    task = fogline.Task(net(outputs), given, (X, targets))
    exam = in_motion(Examination(open_case(task, RECIPE.replace(lr=0.001))), 40)
    found = data.class_imbalance(exam)
    assert found is not None
    titles = [remedy.title for remedy in found.remedies]
    if loss == "own sum":  # which is no mean over rows
        assert "weigh each class by how rare it is" not in titles
        return
    assert titles[0] == "weigh each class by how rare it is"
    assert ("loss_of_each_row" in found.remedies[0].patch) == (loss == "own")
    edit = found.remedies[0].on_loss
    assert edit is not None
    neutral = torch.zeros(900, outputs, requires_grad=True)
    (slope,) = torch.autograd.grad(edit(given)(neutral, targets), neutral)
    pulls = slope.norm(dim=1)
    assert float(pulls[y == 1].sum() / pulls[y == 0].sum()) == pytest.approx(1, rel=0.2)  # of rows held out, too


def test_rare_classes_that_the_loss_weighs_more_are_not_hushed() -> None:
    X = torch.randn(900, 4, generator=torch.Generator().manual_seed(0))
    y = (torch.arange(900) % 9 == 0).long()
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))
    found = data.class_imbalance(in_motion(Examination(open_case(fogline.Task(net(2), loss, (X, y)), RECIPE)), 40))
    assert found is not None
    assert all("weigh each class" not in remedy.title for remedy in found.remedies)


def test_rare_classes_that_are_known_by_heart() -> None:
    """Neither are the labels of the other rows mixed up, nor are those learned by heart as well."""
    X = torch.randn(1200, 30, generator=torch.Generator().manual_seed(0))
    y = torch.arange(1200) % 3
    X[torch.arange(1200), y] += 3.0
    use = (y != 1) | (torch.arange(1200) < 15)
    train = X[:600][use[:600]], y[:600][use[:600]]
    wide = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 3))
    task = fogline.Task(wide, nn.CrossEntropyLoss(), train, valid=(X[600:], y[600:]))
    given = in_motion(Examination(open_case(task, RECIPE)), 300)
    assert standing(given).train_score - standing(given).score > 0.3
    assert data.class_imbalance(given) is not None
    assert data.shuffled_labels(given) is None
    overfitted = fit.overfitting(given)
    assert overfitted is None or not overfitted.proof


def test_rare_classes_that_are_found() -> None:
    X, y = labels(900)
    use = (y != 1) | (torch.arange(900) % 12 == 1)
    assert data.class_imbalance(in_motion(classification((X[use], y[use])), 400)) is None


def test_a_class_of_so_few_rows_that_nobody_can_tell() -> None:
    X, y = labels(300)
    use = y != 1
    use[(y == 1).nonzero().flatten()[:3]] = True
    found = data.class_imbalance(in_motion(classification((X[use], y[use])), 400))
    assert found is not None
    assert found.of_data
    use[(y == 1).nonzero().flatten()[:8]] = True
    found = data.class_imbalance(in_motion(classification((X[use], y[use])), 400))
    assert found is None or not found.of_data


# Split


def test_held_out_rows_in_other_units() -> None:
    (X, y), (Xv, yv) = labels(), labels(80, 1)
    given = classification((X, y), (40 * Xv + 7, yv))
    found = data.train_valid_mismatch(given)
    assert found is not None
    assert found.proof
    held = mended(given, found).program.held[0]
    assert torch.allclose(held.std(0), X.std(0), rtol=0.2)
    assert torch.equal(mended(given, found).program.train[0], X)
    assert data.train_valid_mismatch(classification((X, y), (Xv, yv))) is None
    assert data.train_valid_mismatch(classification((X, y), (1.2 * Xv + 0.1, yv))) is None


def test_held_out_labels_of_another_code() -> None:
    (X, y), (Xv, yv) = labels(600), labels(300, 1)
    found = data.train_valid_mismatch(classification((X, y), (Xv, (yv + 1) % 3)))
    assert found is not None
    assert found.proof


def test_splitting_again_keeps_every_row() -> None:
    (X, y), (Xv, yv) = labels(), labels(80, 1)
    given = classification((X, y), (40 * Xv + 7, yv))
    after = mended(given, data.train_valid_mismatch(given), -1)
    every = torch.cat([after.program.train[0], after.program.held[0]])
    assert torch.equal(every.sort(0).values, torch.cat([X, 40 * Xv + 7]).sort(0).values)


def test_copies_across_the_split() -> None:
    (X, y), (Xv, yv) = numbers(), numbers(100, 1)
    leaked = torch.cat([Xv[:60], X[:40]]), torch.cat([yv[:60], y[:40]])
    given = regression((X, y), leaked)
    found = data.duplicate_leak(given)
    assert found is not None
    assert found.proof
    after = mended(given, found).program
    assert (after.rows, len(after.held[0])) == (200, 60)  # nothing is taken from what is learned
    scarce = regression((X, y), (torch.cat([Xv[:10], X[:40]]), torch.cat([yv[:10], y[:40]])))
    assert mended(scarce, data.duplicate_leak(scarce)).program.rows == 160
    assert data.duplicate_leak(regression((X, y), (Xv, yv))) is None


def test_rows_that_were_repeated_before_the_split() -> None:
    """As rare ones are, so that there are as many of them as of others: twins within the training rows as well."""
    X, y = labels(300)
    again = torch.cat([torch.arange(300), *[torch.arange(0, 300, 3)] * 3])
    again = again[torch.randperm(len(again), generator=torch.Generator().manual_seed(0))]
    X, y = X[again], y[again]
    found = data.duplicate_leak(classification((X[:450], y[:450]), (X[450:], y[450:])))
    assert found is not None
    assert found.proof


def test_rows_that_repeat_by_themselves() -> None:
    X = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = X.sum(1, keepdim=True) % 2
    assert data.duplicate_leak(regression((X, y), (X, y), columns=2)) is None
    many = torch.randint(0, 3, (300, 4), generator=torch.Generator().manual_seed(0)).float()
    wanted = many.sum(1, keepdim=True)
    assert data.duplicate_leak(regression((many[:200], wanted[:200]), (many[200:], wanted[200:]))) is None


# Labels


def without_doubtful(given: Examination, found: Suspicion) -> Tensor:
    """Positions of the training rows that the first remedy leaves."""
    edit = found.remedies[0].on_rows
    assert edit is not None
    left = edit(given.case.train).ids
    assert left is not None
    return left


@pytest.mark.parametrize("place", [1, -2])
@pytest.mark.parametrize("held", ["none", "as they are", "moved"])
def test_targets_that_are_some_rows_off(place: int, held: str) -> None:
    X, y = labels(1500)
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(0))
    X, y = X[order], y[order]
    other, wanted = labels(300, 1)
    valid = {"none": None, "as they are": (other, wanted), "moved": (other, wanted.roll(place))}[held]
    if valid is not None:
        mixed = torch.randperm(300, generator=torch.Generator().manual_seed(1))
        other, wanted = other[mixed], wanted[mixed]
        valid = other, wanted.roll(place) if held == "moved" else wanted
    given = classification((X, y.roll(place)), valid)
    found = data.shuffled_labels(given) if held == "as they are" else data.unrelated_labels(in_motion(given, 30))
    assert found is not None
    assert found.proof
    again = mended(given, found).program
    for rows, targets in (again.train, again.held):
        assert (targets == (rows[:, 0] * 5 + 6).div(6).round().clamp(0, 2)).float().mean() > 0.95


@pytest.mark.parametrize(("share", "harmless"), [(0.0, True), (0.6, False)])
def test_what_counts_as_a_loss_is_less_where_scores_are_low(share: float, *, harmless: bool) -> None:
    """A loss of .02 of .97 is nothing, and of what is left with six in ten labels wrong it is."""
    X, y = labels(600)
    draws = torch.Generator().manual_seed(0)
    noisy = torch.where(torch.rand(600, generator=draws) < share, torch.randint(0, 3, (600,), generator=draws), y)
    exam = classification((X, noisy))
    bench = Bench(Laboratory(exam.case, 0), exam, (), 30)
    trial = Trial("", "", (1, 2, 3), "", (0.28, 0.281, 0.279), (0.3, 0.3, 0.3), 30, 90, accepted=False)
    assert bench.harmless(trial, []) is harmless


def test_a_series_whose_inputs_are_its_past_has_not_moved() -> None:
    noise = torch.randn(403, generator=torch.Generator().manual_seed(0))
    X, y = noise.unfold(0, 3, 1)[:400], noise[3:, None]
    given = in_motion(regression((X, y), columns=3), 60)
    found = data.unrelated_labels(given)
    assert found is not None
    assert not found.remedies


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_numbers_of_which_a_part_belongs_to_other_rows(share: float) -> None:
    X, y = numbers(600)
    part = int(600 * share)
    turned = torch.cat([y[:part][torch.randperm(part, generator=torch.Generator().manual_seed(1))], y[part:]])
    given = regression((X, turned), numbers(200, 1))
    found = data.wrong_numbers(given)
    if not share:
        assert found is None
        return
    assert found is not None
    assert isinstance(mended(given, found).program.loss, nn.L1Loss)
    assert data.shuffled_labels(given) is None


@pytest.mark.parametrize("wild", [True, False])
def test_targets_far_off(wild: bool) -> None:
    X, y = numbers(400)
    draws = torch.Generator().manual_seed(3)
    y = y + 0.3 * torch.randn(y.shape, generator=draws)
    off = torch.rand(400, generator=draws) < (0.05 if wild else 0)
    given = regression((X, torch.where(off[:, None], y + 40, y)), numbers(200, 1))
    found = data.far_off_targets(given)
    if not wild:
        assert found is None
        return
    assert found is not None
    assert found.proof
    assert isinstance(mended(given, found).program.loss, nn.L1Loss)
    left = given.case.train.ids
    assert left is not None
    assert mended(given, found, 1).program.rows == 400 - int(off.sum())


def test_targets_far_off_by_next_to_nothing() -> None:
    """A curve that a learner follows but at its steep ends, where it is wrong by little of what targets differ."""
    X, y = numbers(400)
    off = torch.rand(400, generator=torch.Generator().manual_seed(3)) < 0.05
    given = regression((X, torch.where(off[:, None], y + 0.2, y)), numbers(200, 1))
    assert data.far_off_targets(given) is None


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.HuberLoss()])
def test_what_squared_errors_cannot_see_for_a_few_targets_far_off_is_not_mixed_up(loss: nn.Module) -> None:
    """A loss that bounds them may learn the rest, and is judged by the rest; of squares they are next to all."""
    X, y = numbers(500)
    draws = torch.Generator().manual_seed(3)
    off = torch.rand(500, generator=draws)[:, None] < 0.06
    wild = torch.where(off, y + 60 * torch.randn(y.shape, generator=draws), y)
    model = nn.Sequential(nn.Linear(X.shape[1], 16), nn.ReLU(), nn.Linear(16, 1))
    task = fogline.Task(model, loss, (X[:350], wild[:350]), valid=(X[350:], wild[350:]))
    given = in_motion(Examination(open_case(task, fogline.Recipe(optimizer="adam", lr=0.01, duration="5ep"))), 50)
    assert given.reference.score is not None
    assert (given.reference.score > 0.5) == isinstance(loss, nn.HuberLoss)
    assert data.unrelated_labels(given) is None
    assert data.shuffled_labels(given) is None


@pytest.mark.parametrize("make", [regression, classification])
def test_targets_that_belong_to_other_rows(make: Callable[..., Examination]) -> None:
    of = numbers if make is regression else labels
    (X, y), held = of(400), of(200, 1)
    turned = y[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    found = data.shuffled_labels(make((X, turned), held))
    assert found is not None
    assert found.proof
    assert data.shuffled_labels(make((X, y), held)) is None
    assert data.shuffled_labels(make((X, turned))) is None  # it may be that there is nothing to learn


@pytest.mark.parametrize("one_hot", [False, True])
def test_wrong_labels_far_from_any_border(*, one_hot: bool) -> None:
    draws = torch.Generator().manual_seed(1)
    y = torch.arange(1200) % 3
    X = torch.randn(1200, 4, generator=draws) + 4 * F.one_hot(y, 4)
    wrong = torch.rand(1200, generator=draws) < 0.3
    noisy = torch.where(wrong, (y + torch.randint(1, 3, (1200,), generator=draws)) % 3, y)
    given = classification((X, F.one_hot(noisy).float() if one_hot else noisy))
    found = data.label_noise(given)
    assert found is not None
    left = without_doubtful(given, found)
    assert (noisy[left] == y[left]).float().mean() > (noisy == y).float().mean() + 0.15
    assert len(left) == len(y) > len(left.unique())  # as many steps an epoch as before
    assert mended(given, found, 1).program.rows == given.program.rows


@pytest.mark.parametrize("share", [0.15, 0.3])
def test_labels_that_are_contradicted_more_often_than_held_out_ones(share: float) -> None:
    X, y = labels(600)
    draws = torch.Generator().manual_seed(2)
    wrong = torch.rand(600, generator=draws) < share
    other = (y + torch.randint(1, 3, (600,), generator=draws)) % 3
    given = classification((X, torch.where(wrong, other, y)), labels(200, seed=3))
    found = data.label_noise(given)
    assert found is not None
    assert found.proof
    assert int(wrong[without_doubtful(given, found)].sum()) < 0.5 * int(wrong.sum())


@pytest.mark.parametrize("kind", ["any other class", "the next class"])
def test_labels_that_are_wrong_wherever_their_rows_are(kind: str) -> None:
    """Held-out labels are wrong as often, so that no comparison with them tells."""
    draws = torch.Generator().manual_seed(4)
    y = torch.arange(1200) % 3
    X = torch.randn(1200, 4, generator=draws) + 4 * F.one_hot(y, 4)
    wrong = torch.rand(1200, generator=draws) < 0.3
    away = torch.randint(1, 3, (1200,), generator=draws) if kind == "any other class" else 1
    noisy = torch.where(wrong, (y + away) % 3, y)
    given = classification((X[:900], noisy[:900]), (X[900:], noisy[900:]))
    found = data.label_noise(given)
    assert found is not None
    assert found.proof
    assert int(wrong[without_doubtful(given, found)].sum()) < 0.4 * int(wrong[:900].sum())


@pytest.mark.parametrize("apart", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("rows", [600, 3000])
def test_classes_that_overlap_are_contradicted_where_they_do(apart: float, rows: int) -> None:
    draws = torch.Generator().manual_seed(5)
    y = torch.randint(0, 2, (rows,), generator=draws)
    X = torch.randn(rows, 4, generator=draws)
    X[:, 0] += apart * (2 * y - 1)
    half = rows // 2
    found = data.label_noise(classification((X[:half], y[:half]), (X[half:], y[half:])))
    assert found is None or not found.proof


def test_labels_that_are_contradicted_alike_are_not_wrong() -> None:
    """Where the inputs do not determine the label, held-out rows say so as well."""

    def vague(count: int, seed: int) -> Pair:
        draws = torch.Generator().manual_seed(seed)
        X = torch.randn(count, 4, generator=draws)
        return X, (X[:, 0] + torch.randn(count, generator=draws) > 0).long()

    assert data.label_noise(classification(vague(600, 0), vague(300, 1))) is None


@pytest.mark.parametrize("apart", [0.3, 0.6, 1.0, 2.0])
def test_classes_that_overlap_are_not_wrong(apart: float) -> None:
    draws = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (500,), generator=draws)
    X = torch.randn(500, 4, generator=draws)
    X[:, 0] += apart * (2 * y - 1)
    found = data.label_noise(classification((X, y)))
    assert found is None or not found.proof


@pytest.mark.parametrize("cause", [*data.ON_ONE_BATCH, *data.IN_MOTION], ids=lambda cause: cause.__name__)
def test_any_program_can_be_examined(cause: Callable[[Examination], Suspicion | None]) -> None:
    tokens = torch.randint(0, 5, (40, 6), generator=torch.Generator().manual_seed(0))
    reads = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(24, 5))
    images = torch.ones(8, 1, 4, 4)
    tasks = [
        fogline.Task(net(4), fogline.on_batch(lambda m, b: (m(b) - b).square().mean()), numbers()[0]),
        fogline.Task(reads, nn.CrossEntropyLoss(), (tokens, tokens[:, 0])),
        fogline.Task(nn.Conv2d(1, 3, 1), nn.CrossEntropyLoss(), (images, torch.arange(128).reshape(8, 4, 4) % 3)),
        fogline.Task(net(3), nn.CrossEntropyLoss(), (torch.ones(20, 3), labels()[1][:20])),
    ]
    for task in tasks:
        given = Examination(open_case(task, RECIPE))
        cause(given)
        if cause in data.IN_MOTION:
            cause(in_motion(given, 3))


# Pictures


def _spots(count: int = 80) -> Tensor:
    """Discs of some colour, (n, colours, height, width)."""
    source = torch.Generator().manual_seed(0)
    place = torch.arange(16.0)
    centres = 4 + 8 * torch.rand(count, 2, generator=source)
    distance = (place[None, :, None] - centres[:, :1, None]) ** 2 + (place[None, None] - centres[:, 1:, None]) ** 2
    colour = torch.rand(count, 3, 1, 1, generator=source)
    return (distance < 12).float()[:, None] * colour + 0.05 * torch.rand(count, 3, 16, 16, generator=source)


def _seen_as(pictures: Tensor) -> Examination:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    task = fogline.Task(model, nn.CrossEntropyLoss(), (pictures, torch.arange(len(pictures)) % 2))
    return Examination(open_case(task, RECIPE))


def test_pictures_whose_colours_were_dealt_out() -> None:
    spots = _spots()
    scrambled = spots.permute(0, 2, 3, 1).reshape(spots.shape)
    found = data.dealt_out(_seen_as(scrambled))
    assert found is not None
    edit = found.remedies[0].on_model
    assert edit is not None
    torch.testing.assert_close(edit(nn.Identity())(scrambled), spots)


def test_pictures_that_are_as_they_should_be() -> None:
    assert data.dealt_out(_seen_as(_spots())) is None
    assert data.dealt_out(_seen_as(torch.randn(80, 3, 16, 16))) is None


# Classes of held-out rows


def test_held_out_rows_that_are_the_end_of_sorted_ones() -> None:
    X, y = labels(300)
    order = y.sort(stable=True).indices
    X, y = X[order], y[order]
    found = data.train_valid_mismatch(classification((X[:240], y[:240]), (X[240:], y[240:])))
    assert found is not None
    assert found.proof
    assert "split" in found.remedies[0].title


def test_held_out_rows_with_classes_as_often_as_each_other() -> None:
    """A rare class is often held out in larger numbers, to be told at all."""
    X, y = labels(600)
    use = (y == 0) | (torch.arange(600) % 15 == 1)
    X, y, Xv, yv = X[use], y[use].clamp_max(1), *labels(60, seed=1)
    assert data.train_valid_mismatch(classification((X, y), (Xv[yv < 2], yv[yv < 2]))) is None


def _discs(count: int, seed: int) -> Pair:
    """Pictures of a disc on noise, in any brightness, and where it is."""
    source = torch.Generator().manual_seed(seed)
    down, right = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    centres = 4 + 8 * torch.rand(count, 2, 1, 1, generator=source)
    inside = (down - centres[:, 0]).square() + (right - centres[:, 1]).square() < 12
    brightness = 0.5 + 0.5 * torch.rand(count, 1, 1, generator=source)
    pictures = inside * brightness + 0.3 * torch.randn(count, 16, 16, generator=source)
    return pictures[:, None], inside.long()


def _words(count: int, seed: int) -> Pair:
    source = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 12, (count, 9), generator=source)
    return words, words % 3


def _series(count: int, seed: int) -> Pair:
    values = torch.randn(count, 20, 2, generator=torch.Generator().manual_seed(seed))
    return values, (values[..., 0] - values[..., 1])[..., None]


def _segmented(train: Pair, valid: Pair | None) -> Examination:
    torch.manual_seed(0)
    tokens = not train[0].is_floating_point()
    if train[0].ndim == 4:
        model, loss = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)), nn.CrossEntropyLoss()
    else:
        first = nn.Embedding(12, 16) if tokens else nn.Linear(2, 16)
        model = nn.Sequential(first, nn.ReLU(), nn.Linear(16, 3 if tokens else 1))
        loss = nn.MSELoss() if not tokens else _of_words
    return Examination(open_case(fogline.Task(model, loss, train, valid=valid), RECIPE))


def _of_words(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def _mixed(pair: Pair) -> Pair:
    order = torch.randperm(len(pair[1]), generator=torch.Generator().manual_seed(1))
    return pair[0], pair[1][order]


@pytest.mark.parametrize("made", [_discs, _words, _series])
@pytest.mark.parametrize("mixed", ["nothing", "training rows", "all"])
def test_targets_of_places_that_are_those_of_other_rows(made: Callable[[int, int], Pair], mixed: str) -> None:
    train, valid = made(160, 0), made(60, 1)
    train = train if mixed == "nothing" else _mixed(train)
    exam = in_motion(_segmented(train, _mixed(valid) if mixed == "all" else valid), 100)
    found = data.targets_of_other_rows(exam)
    assert (found is None) is (mixed == "nothing")
    assert found is None or found.proof is (mixed == "training rows")


def test_large_pictures_are_looked_at_coarsely() -> None:
    pictures, inside = (t.repeat_interleave(9, -1).repeat_interleave(9, -2) for t in _discs(60, 0))
    found, chance = pairing(pictures, inside), pairing(*_mixed((pictures, inside)))
    assert found is not None
    assert chance is not None
    assert found.errors > 10 > 3 > abs(chance.errors)


def test_pairs_of_rows_and_targets_of_places_are_told() -> None:
    assert pairing(*labels()) is None  # a label a row
    assert pairing(torch.randn(60, 5), torch.randn(60, 5)) is None  # columns are no places
    found, chance = pairing(*_discs(60, 0)), pairing(*_mixed(_discs(60, 0)))
    assert found is not None
    assert chance is not None
    assert found.errors > 10 > 3 > abs(chance.errors)


def _names(count: int, seed: int) -> Pair:
    """Words of which few are names: those of the first numbers, which nothing tells apart from others in one of two."""
    source = torch.Generator().manual_seed(seed)
    words = torch.randint(3, 60, (count, 12), generator=source)
    names = torch.rand(count, 12, generator=source) < 0.06
    words[names] = torch.randint(0, 3, (int(names.sum()),), generator=source)
    named = names & (torch.rand(count, 12, generator=source) < 0.4)
    return words, torch.where(named, 1 + words, 0)


class _Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Embedding(60, 16), nn.Linear(16, 4))

    def forward(self, words: Tensor) -> Tensor:
        return self.layers(words).transpose(1, 2)


@pytest.mark.parametrize("weighed", [False, True])
def test_classes_of_few_places(weighed: bool) -> None:
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 40.0, 40.0, 40.0]) if weighed else None)
    exam = in_motion(Examination(open_case(fogline.Task(_Tagger(), loss, _names(400, 0)), RECIPE)), 200)
    found = data.rare_at_places(exam)
    assert (found is None) is weighed
    if found is not None:
        weight = mended(exam, found).program.loss.weight
        assert weight[0] == 1
        assert weight[1] > 10
        report = fogline.diagnose(fogline.Task(_Tagger(), loss, _names(400, 0)), RECIPE)
        assert "class_imbalance" in [finding.cause for finding in report.findings]


def test_words_of_which_some_are_always_rare() -> None:
    words = torch.randint(0, 60, (400, 12), generator=torch.Generator().manual_seed(0)).float().pow(2).div(60).long()
    model = nn.Sequential(nn.Embedding(60, 8), nn.Linear(8, 60), _Last())
    task = fogline.Task(model, nn.CrossEntropyLoss(), (words[:, :-1], words[:, 1:]))
    assert data.rare_at_places(in_motion(Examination(open_case(task, RECIPE)), 60)) is None


class _Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)
