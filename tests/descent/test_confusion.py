from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.descent.confusion import MOST_CLASSES, Confusion


def counted(loss: Any, outputs: Tensor, targets: Tensor, **known: bool) -> list[tuple[int, int, int]]:
    """The rows of two batches, which are those of one."""
    halves, whole = Confusion(loss, **known), Confusion(loss, **known)
    half = len(targets) // 2
    halves.add(outputs[:half], targets[:half])
    halves.add(outputs[half:], targets[half:])
    whole.add(outputs, targets)
    assert halves.rows() == whole.rows()
    return whole.rows()


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.NLLLoss(), F.cross_entropy])
def test_scores_of_classes(loss: Any) -> None:
    outputs = F.one_hot(torch.tensor([0, 1, 1, 2]), 3).float()
    assert counted(loss, outputs, torch.tensor([0, 1, 2, 2])) == [(0, 0, 1), (1, 1, 1), (2, 1, 1), (2, 2, 1)]


def test_pixels_are_counted_and_ignored_ones_are_not() -> None:
    outputs = torch.zeros(2, 3, 2, 2)
    outputs[:, 1] = 1.0
    targets = torch.tensor([[[1, 1], [0, 9]], [[1, 2], [9, 9]]])
    assert counted(nn.CrossEntropyLoss(ignore_index=9), outputs, targets) == [(0, 1, 1), (1, 1, 3), (2, 1, 1)]


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize(
    ("loss", "outputs"), [(nn.BCEWithLogitsLoss(), [-1.0, 0.2, 0.4, 3.0]), (nn.BCELoss(), [0.1, 0.6, 0.7, 0.9])]
)
def test_one_output_for_two_classes(loss: Any, outputs: list[float], shape: tuple[int, ...]) -> None:
    targets = torch.tensor([0.0, 0.0, 1.0, 1.0]).reshape(shape)
    assert counted(loss, torch.tensor(outputs).reshape(shape), targets) == [(0, 0, 1), (0, 1, 1), (1, 1, 2)]


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


def test_a_loss_of_ones_own_counts_where_the_targets_are_known_to_be_labels() -> None:
    outputs, targets = torch.eye(2), torch.tensor([0, 1])
    assert counted(own_loss, outputs, targets, labels=True) == [(0, 0, 1), (1, 1, 1)]
    assert counted(own_loss, outputs, targets) == []


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (nn.MSELoss(), torch.zeros(4, 1), torch.zeros(4, 1)),
        (nn.BCEWithLogitsLoss(), torch.zeros(4, 3), torch.zeros(4, 3)),  # several labels at once
        (nn.BCEWithLogitsLoss(), torch.zeros(4, 1), torch.full((4, 1), 0.3)),  # shares, not classes
        (nn.CrossEntropyLoss(), torch.zeros(4, 3), torch.full((4, 3), 1 / 3)),  # probabilities of the classes
        (nn.CrossEntropyLoss(), torch.zeros(4, MOST_CLASSES + 1), torch.zeros(4, dtype=torch.int64)),
    ],
)
def test_what_is_no_classification_leaves_no_counts(loss: Any, outputs: Tensor, targets: Tensor) -> None:
    assert counted(loss, outputs, targets) == []


def test_a_run_keeps_the_counts_of_the_weights_it_keeps(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(200, 4, generator=generator)
    y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
    task = fogline.Task(
        nn.Linear(4, 3),
        nn.CrossEntropyLoss(),
        (X[:120], y[:120]),
        valid=(X[120:], y[120:]),
        metrics={"accuracy": lambda outputs, targets: (outputs.argmax(1) == targets).float().mean()},
    )
    run = fogline.fit(task, optimizer="adamw", lr=0.05, duration="5ep", batch_size=16, runs=tmp_path)
    table = run.confusion
    with torch.no_grad():
        predicted = run.model(X[120:]).argmax(1)
    expected = torch.zeros(3, 3, dtype=torch.int64)
    expected.index_put_((y[120:], predicted), torch.ones(80, dtype=torch.int64), accumulate=True)
    assert {(row["target"], row["predicted"]): row["count"] for row in table} == {
        (t, p): int(expected[t, p]) for t in range(3) for p in range(3) if expected[t, p]
    }
    right = table["count"][table["target"] == table["predicted"]].sum() / 80
    assert right == pytest.approx(run.final_scores()["accuracy"])
    longer = fogline.resume(run.folder, task, duration="6ep")
    assert longer.confusion["count"].sum() == 80  # counted anew, not added


def test_a_regression_keeps_none(tmp_path: Path) -> None:
    X = torch.randn(40, 2)
    run = fogline.fit(nn.Linear(2, 1), (X, X[:, :1]), loss=nn.MSELoss(), valid=(X, X[:, :1]), lr=0.1, duration="2ep",
                      runs=tmp_path)  # fmt: skip
    assert len(run.confusion) == 0
