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
