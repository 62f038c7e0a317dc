"""Losses that remedies put in the place of others, against their formulas written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fogline.data.losses import family
from fogline.doctor.prior import adjusted
from fogline.doctor.robust import robust

DRAWS = torch.Generator().manual_seed(0)
OUTPUTS = torch.randn(6, 3, generator=DRAWS)
LABELS = torch.tensor([0, 2, 1, 1, -100, 0])
WEIGHTS = torch.tensor([1.0, 2.0, 3.0])
COUNTS = torch.tensor([10.0, 30.0, 60.0])


def bounded(loss: Any) -> Any:
    remedy = robust(loss)
    assert remedy is not None
    assert remedy.on_loss is not None
    return remedy.on_loss(loss)


def by_hand(probability: Tensor) -> Tensor:
    return (1 - probability**0.7) / 0.7


def test_generalised_cross_entropy_by_hand() -> None:
    counted = LABELS >= 0
    right = OUTPUTS.softmax(1)[counted, LABELS[counted]]
    plain = bounded(nn.CrossEntropyLoss())
    assert family(plain) == "classes"
    assert torch.allclose(plain(OUTPUTS, LABELS), by_hand(right).mean())
    assert torch.allclose(bounded(F.cross_entropy)(OUTPUTS, LABELS), by_hand(right).mean())
    weighted = bounded(nn.CrossEntropyLoss(WEIGHTS))
    shares = WEIGHTS[LABELS[counted]]
    assert torch.allclose(weighted(OUTPUTS, LABELS), (by_hand(right) * shares).sum() / shares.sum())
    one_hot = F.one_hot(LABELS[counted], 3).float()
    assert torch.allclose(plain(OUTPUTS[counted], one_hot), by_hand(right).mean())
    each = bounded(nn.CrossEntropyLoss(reduction="none"))(OUTPUTS, LABELS)
    assert torch.allclose(each[counted], by_hand(right))
    assert float(each[~counted]) == 0


def test_generalised_binary_cross_entropy_by_hand() -> None:
    outputs, targets = OUTPUTS[:, :1], (LABELS[:, None] > 0).float()
    right = torch.where(targets > 0.5, outputs, -outputs).sigmoid()
    assert torch.allclose(bounded(nn.BCEWithLogitsLoss())(outputs, targets), by_hand(right).mean())
    twice = bounded(nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0])))
    assert torch.allclose(twice(outputs, targets), (by_hand(right) * (1 + targets)).mean())


def test_gradients_stay_finite_far_off() -> None:
    outputs = torch.tensor([[200.0, -200.0]], requires_grad=True)
    bounded(nn.CrossEntropyLoss())(outputs, torch.tensor([1])).backward()
    assert outputs.grad is not None
    assert bool(torch.isfinite(outputs.grad).all())


def test_no_bounded_loss_is_known_for_others() -> None:
    assert robust(nn.L1Loss()) is None
    assert robust(lambda outputs, targets: outputs.sum()) is None
    assert isinstance(bounded(F.mse_loss), nn.L1Loss)


@pytest.mark.parametrize(
    "given", [nn.CrossEntropyLoss(), F.cross_entropy, nn.NLLLoss()], ids=["class", "function", "log"]
)
def test_a_loss_that_knows_how_common_classes_are(given: Any) -> None:
    counted = LABELS >= 0
    outputs = OUTPUTS.log_softmax(1) if isinstance(given, nn.NLLLoss) else OUTPUTS
    loss = adjusted(given, COUNTS)
    assert family(loss) == "classes"
    weighed = OUTPUTS.softmax(1) * COUNTS
    likelihood = (weighed / weighed.sum(1, keepdim=True))[counted, LABELS[counted]]
    assert torch.allclose(loss(outputs, LABELS), -likelihood.log().mean())


def test_a_loss_of_two_classes_that_knows_how_common_they_are() -> None:
    outputs, targets = OUTPUTS[:, :1], (LABELS[:, None] > 0).float()
    loss = adjusted(nn.BCEWithLogitsLoss(), torch.tensor([90.0, 10.0]))
    odds = outputs.exp() / 9
    wanted = -torch.where(targets > 0.5, odds / (1 + odds), 1 / (1 + odds)).log().mean()
    assert torch.allclose(loss(outputs, targets), wanted)
    weighed = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([9.0]))
    assert adjusted(weighed, torch.tensor([90.0, 10.0])) is weighed  # it weighs them already
