"""Classical learners: their closed forms, and what they tell of a task."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline.doctor import reference
from fogline.doctor.case import open_case
from fogline.doctor.reference import Reference, refer


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def referred(train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor] | None, loss: nn.Module) -> Reference:
    outputs = 1 if isinstance(loss, nn.MSELoss) else int(train[1].max()) + 1
    model = nn.Linear(train[0].shape[1], outputs)
    task = fogline.Task(model, loss, train, valid=valid)
    return refer(open_case(task, fogline.Recipe(lr=0.1, batch_size=16, duration="1ep")))


def test_the_error_at_rows_left_out_is_that_of_learners_that_never_saw_them(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, targets = normal(30, 4), normal(30, 2, seed=1)
    monkeypatch.setattr(reference, "_PENALTIES", (0.05,))
    error, weights = reference._smoothed(inputs - inputs.mean(0), targets - targets.mean(0))
    ridge = 0.05 * len(inputs) * torch.eye(4, dtype=torch.float64)
    left_out = 0.0
    for k in range(len(inputs)):
        others = torch.arange(len(inputs)) != k
        X, y = inputs[others], targets[others]
        found = torch.linalg.solve((X - X.mean(0)).T @ (X - X.mean(0)) + ridge, (X - X.mean(0)).T @ (y - y.mean(0)))
        said = y.mean(0) + (inputs[k] - X.mean(0)) @ found
        left_out += float((said - targets[k]).square().sum())
    assert error == pytest.approx(left_out)
    centred = inputs - inputs.mean(0)
    torch.testing.assert_close((centred.T @ centred + ridge) @ weights, centred.T @ (targets - targets.mean(0)))


@pytest.mark.parametrize("penalty", [1e-9, 1e-3])
def test_the_same_where_there_are_more_columns_than_rows(penalty: float, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, targets = normal(12, 30), normal(12, 1, seed=1)
    monkeypatch.setattr(reference, "_PENALTIES", (penalty,))
    error, weights = reference._smoothed(inputs - inputs.mean(0), targets - targets.mean(0))
    ridge, left_out = 12 * penalty, 0.0
    for k in range(12):
        others = torch.arange(12) != k
        X, y = inputs[others] - inputs[others].mean(0), targets[others] - targets[others].mean(0)
        found = X.T @ torch.linalg.solve(X @ X.T + ridge * torch.eye(11, dtype=torch.float64), y)
        said = targets[others].mean(0) + (inputs[k] - inputs[others].mean(0)) @ found
        left_out += float((said - targets[k]).square().sum())
    assert error == pytest.approx(left_out, rel=1e-4)
    assert weights.shape == (30, 1)


def test_the_order_of_tokens_shows_in_pairs_of_them() -> None:
    tokens = torch.randint(0, 6, (500, 12), generator=torch.Generator().manual_seed(0))
    y = ((tokens[:, :-1] == 1) & (tokens[:, 1:] == 2)).any(1).long()
    model = nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(48, 2))
    case = open_case(fogline.Task(model, nn.CrossEntropyLoss(), (tokens, y)), fogline.Recipe(lr=0.1, duration="1ep"))
    found = refer(case)
    assert found.learner == "ridge regression on pairs of tokens"
    assert found.score is not None
    assert found.score > 0.9


def test_pairs_are_counted_next_to_each_other_and_anywhere() -> None:
    found = reference.pairs(torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]]))
    assert found is not None
    at_once, anywhere = found.expm1().round().long().chunk(2, dim=1)
    assert at_once.tolist() == [[0, 2, 1, 0], [1, 0, 1, 1]]  # 00 01 10 11
    assert anywhere.tolist() == [[1, 3, 1, 1], [1, 0, 4, 1]]
    assert reference.pairs(torch.rand(3, 4)) is None
    assert reference.pairs(torch.full((3, 4), 40)) is None


def test_a_curved_target_is_learned_on_a_kernel() -> None:
    X = normal(300, 3)
    y = (torch.sin(2 * X[:, :1]) * X[:, 1:2]).float()
    found = referred((X.float(), y), None, nn.MSELoss())
    assert found.learner == "kernel ridge regression"
    assert found.score is not None
    assert found.score > 0.8
    assert found.scored == 300  # each fifth in turn


def test_a_learner_that_does_worse_than_guessing_says_nothing_of_what_is_possible() -> None:
    bits = ((torch.arange(16)[:, None] >> torch.arange(4)) & 1).double()
    found = referred((bits, bits.sum(1).long() % 2), None, nn.CrossEntropyLoss())  # the nearest rows are of the other
    assert found.score is not None
    assert found.score < -0.5
    assert found.possible is None


def test_labels_that_are_wrong_are_smoothed_over() -> None:
    X = normal(400, 5).float()
    truth = (X[:, 0] + X[:, 1] > 0).long()
    hit = torch.rand(400, generator=torch.Generator().manual_seed(3)) < 0.3
    found = referred((X[:300], torch.where(hit, 1 - truth, truth)[:300]), (X[300:], truth[300:]), nn.CrossEntropyLoss())
    assert found.score is not None
    assert found.valid_score is not None
    assert found.possible is not None
    assert found.score < 0.6 < 0.8 < found.valid_score  # the labels they are scored by are wrong, or are not
    assert found.score < found.possible <= found.valid_score


def test_mixed_up_targets_do_not_lower_what_is_possible() -> None:
    X = normal(300, 4).float()
    y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
    mixed = y[torch.randperm(200, generator=torch.Generator().manual_seed(4))]
    found = referred((X[:200], mixed), (X[200:], y[200:]), nn.CrossEntropyLoss())
    assert found.score is not None
    assert abs(found.score) < 0.2
    assert found.possible is not None
    assert found.possible > 0.4


def test_copies_of_a_row_are_no_other_rows() -> None:
    """Whoever learned from one of them knows the others: of noise nothing is to be got, repeated or not."""
    source = torch.Generator().manual_seed(0)
    X, y = torch.randn(100, 5, generator=source), torch.randint(0, 2, (100,), generator=source)
    again = torch.randint(0, 100, (400,), generator=source)
    case = open_case(fogline.Task(nn.Linear(5, 2), nn.CrossEntropyLoss(), (X[again], y[again])), fogline.Recipe())
    found = refer(case)
    assert found.score is not None
    assert found.score < 0.3
    assert found.rows is not None
    assert len(found.rows) < 101


def forms(count: int = 300, size: int = 28) -> tuple[Tensor, Tensor]:
    """A disc or a ring, bright or dark, anywhere in a noisy picture, (n, 1, size, size)."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    middle = torch.rand(count, 2, 1, 1, generator=draws) * (size - 10) + 5
    down, across = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    apart = ((down - middle[:, 0]) ** 2 + (across - middle[:, 1]) ** 2).sqrt()
    bright = torch.where(labels[:, None, None] == 1, ((apart - 3.5).abs() < 1).float(), (apart < 3).float())
    bright = bright * (2 * torch.randint(2, (count, 1, 1), generator=draws) - 1)
    return (bright + 0.3 * torch.randn(count, size, size, generator=draws))[:, None], labels


def test_a_form_that_may_stand_anywhere_is_seen_by_random_kernels() -> None:
    images, labels = forms()
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
    for inputs in (images, images.movedim(1, -1)):  # the channels first, or last
        found = refer(open_case(fogline.Task(model, nn.CrossEntropyLoss(), (inputs, labels)), fogline.Recipe()))
        assert found.learner == "ridge regression on random convolutions"
        assert found.score is not None
        assert found.score > 0.8
    mixed = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    found = refer(open_case(fogline.Task(model, nn.CrossEntropyLoss(), (images, mixed)), fogline.Recipe()))
    assert found.score is not None
    assert found.score < 0.2


def test_a_beat_that_may_come_at_any_time_is_seen_by_random_kernels() -> None:
    draws = torch.Generator().manual_seed(0)
    labels, starts = torch.arange(400) % 2, torch.randint(0, 50, (400,), generator=draws)
    series = 0.2 * torch.randn(400, 64, generator=draws)
    beats = torch.tensor([[1.0, 2, -1, 1, 2, -1, 1], [2.0, -1, 1, 2, -1, 1, -1]])
    for row, start in enumerate(starts):
        series[row, start : start + 7] += beats[labels[row]]
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    for inputs in (series[:, None], series[:, :, None]):
        found = refer(open_case(fogline.Task(model, nn.CrossEntropyLoss(), (inputs, labels)), fogline.Recipe()))
        assert found.learner == "ridge regression on random convolutions"
        assert found.score is not None
        assert found.score > 0.5


@pytest.mark.parametrize("shape", [(50, 8), (50, 4, 4), (50, 1, 28, 4)])
def test_what_is_no_image_and_no_series_is_not_convolved(shape: tuple[int, ...]) -> None:
    assert reference.convolved(torch.randn(shape)) is None
    assert reference.convolved(torch.zeros(shape, dtype=torch.int64)) is None


def test_large_images_are_made_smaller_and_numbers_that_are_none_are_left_out() -> None:
    images = torch.rand(6, 3, 200, 160)
    images[0, 0, 0, 0] = torch.nan
    found = reference.convolved(images)
    assert found is not None
    assert bool(torch.isfinite(found).all())
    assert found.shape == (6, 4 * reference._SCALES * reference._KERNELS)
