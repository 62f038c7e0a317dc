"""Losses that compare what is said of a row with the targets of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.causes.output import compared_with_other_rows
from fogline.doctor.causes.output.dealt import _pulled
from fogline.doctor.examination import Examination

RECIPE = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=20, duration="12ep")
WORDS = torch.randint(0, 9, (300, 10), generator=torch.Generator().manual_seed(0))


class Reader(nn.Module):
    """Takes the positions first, and says of each word which one follows in the order of numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.reads, self.says = nn.Embedding(9, 16), nn.GRU(16, 16), nn.Linear(16, 9)

    def forward(self, words: Tensor) -> Tensor:
        said: Tensor = self.says(self.reads(self.table(words.t()))[0])
        return said  # (positions, rows, words)


def laid_flat(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.reshape(-1, 9), targets.reshape(-1))


def as_they_lie(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.reshape(-1, 9), targets.t().reshape(-1))


def of_the_last(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs[-1], targets[:, -1])


def of_all_pairs(outputs: Tensor, targets: Tensor) -> Tensor:
    """Answers of one row are to lie nearer to one another than to those of others."""
    rows = outputs.mean(0)
    return F.cross_entropy(rows @ rows.t(), torch.arange(len(rows))) + 0 * outputs.sum() + _weighed(rows, targets)


def _weighed(rows: Tensor, targets: Tensor) -> Tensor:
    return (rows.mean(1, keepdim=True) - targets.double().mean()).square().mean()


def seen(loss: Callable[[Tensor, Tensor], Tensor]) -> Any:
    task = fogline.Task(Reader, loss, (WORDS, (WORDS + 1) % 9))
    return compared_with_other_rows(Examination(open_case(task, RECIPE)))


def test_axes_that_are_laid_out_in_another_order() -> None:
    found = seen(laid_flat)
    assert found is not None
    assert found.proof
    task = fogline.Task(Reader, laid_flat, (WORDS, (WORDS + 1) % 9))
    report = fogline.diagnose(task, RECIPE)
    assert report.findings[0].cause == "shuffled_labels"
    again, _ = report.apply(task, RECIPE)
    outputs = Reader()(WORDS)
    assert torch.allclose(again.loss(outputs, WORDS), as_they_lie(outputs, WORDS))


@pytest.mark.parametrize("loss", [as_they_lie, of_the_last, of_all_pairs])
def test_losses_that_compare_a_row_with_its_own_target(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert seen(loss) is None


def overlap(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of all masks of a batch at once: what one of them is moves the ratio, and so every slope a little."""
    said = outputs.sigmoid()
    return 1 - 2 * (said * targets).sum() / (said.sum() + targets.sum())


def overlap_of_others(outputs: Tensor, targets: Tensor) -> Tensor:
    return overlap(outputs.transpose(0, 1).reshape(-1), targets.reshape(-1))


@pytest.mark.parametrize(("loss", "fine"), [(overlap, True), (overlap_of_others, False)])
def test_ratios_of_sums_over_a_batch(loss: Callable[[Tensor, Tensor], Tensor], fine: bool) -> None:
    """Masks of 25 pixels of 256, (300, 1, 16, 16); rows of pixels taken for pictures are none of the picture's own."""
    corners = torch.randint(2, 10, (300, 2), generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(300, 16, 16)
    for mask, (top, left) in zip(masks, corners.tolist(), strict=True):
        mask[top : top + 5, left : left + 5] = 1
    pictures = masks + 0.3 * torch.randn(masks.shape, generator=torch.Generator().manual_seed(1))

    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Unflatten(1, (1, 16)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1),
                             nn.Flatten(1, 2))  # fmt: skip

    task = fogline.Task(model, loss, (pictures, masks))
    assert (compared_with_other_rows(Examination(open_case(task, RECIPE))) is None) is fine


def test_how_many_places_count_changes_all_slopes_alike() -> None:
    """The mean is over the places that count: where a row has fewer of them, those of others weigh more."""
    outputs = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.arange(24).reshape(6, 4) % 3
    fewer = targets.clone()
    fewer[0, 1:] = -100
    slopes = [
        torch.autograd.grad(F.cross_entropy(outputs.reshape(-1, 3), wanted.reshape(-1)), outputs)[0]
        for wanted in (targets, fewer)
    ]
    assert (slopes[0] != slopes[1]).all()
    assert _pulled(*slopes).nonzero()[:, 0].unique().tolist() == [0]
