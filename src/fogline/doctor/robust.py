"""Losses that a row pulls at only so far: of targets that are wrong no network comes to be sure."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fogline.doctor.finding import LOSS, Remedy

_POWER = 0.7
_LEAST = 1e-7
_FOR_CLASSES = f"""def loss(outputs, targets, q={_POWER}):
    right = outputs.softmax(1).gather(1, targets[:, None])[:, 0]
    return ((1 - right**q) / q).mean()"""
_FOR_TWO = f"""def loss(outputs, targets, q={_POWER}):
    right = torch.where(targets > 0.5, outputs, -outputs).sigmoid()
    return ((1 - right**q) / q).mean()"""


class GeneralisedCrossEntropy(nn.CrossEntropyLoss):
    """``(1 - p ** q) / q`` of the probability p that is given to the label (Zhang and Sabuncu 2018).

    Cross-entropy where q goes to 0, the share of wrong answers where it is 1. Weights of classes and labels to be left
    out count as in cross-entropy.
    """

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Of logits (b, classes, ...) and labels (b, ...) or probabilities (b, classes, ...)."""
        if targets.is_floating_point():
            return self._reduced(_bounded((outputs.softmax(1) * targets).sum(1)), 1.0)
        counted = targets != self.ignore_index
        labels = targets.where(counted, targets.new_zeros(()))
        right = outputs.softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
        weights = counted.to(right.dtype) if self.weight is None else self.weight[labels] * counted
        return self._reduced(_bounded(right), weights)

    def _reduced(self, losses: Tensor, weights: Tensor | float) -> Tensor:
        weighted = losses * weights
        if self.reduction == "none":
            return weighted
        total = weighted.sum()
        if self.reduction == "sum":
            return total
        return total / (weights.sum() if isinstance(weights, Tensor) else losses.numel())


class GeneralisedBinaryCrossEntropy(nn.BCEWithLogitsLoss):
    """The same of one logit for each yes or no."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Of logits and of targets from 0 to 1 of the same shape."""
        losses = _bounded((outputs * (2 * targets - 1).sign()).sigmoid())
        if self.pos_weight is not None:
            losses = losses * (1 + (self.pos_weight - 1) * targets)
        losses = losses if self.weight is None else losses * self.weight
        return losses if self.reduction == "none" else losses.sum() if self.reduction == "sum" else losses.mean()


def _bounded(right: Tensor) -> Tensor:
    return (1 - right.clamp_min(_LEAST) ** _POWER) / _POWER


def robust(loss: Any) -> Remedy | None:
    """A loss for the same outputs and targets that wrong targets pull at only so far; None where there is none."""
    if _squares(loss):
        return Remedy(
            "take the absolute error for the loss",
            "loss = nn.L1Loss()",
            on_loss=_absolute,
            place="loss",
            order=LOSS,
        )
    if loss is not F.cross_entropy and type(loss) not in (nn.CrossEntropyLoss, nn.BCEWithLogitsLoss):
        return None
    return Remedy(
        "take a loss that no row pulls at for ever (generalised cross-entropy)",
        _FOR_TWO if isinstance(loss, nn.BCEWithLogitsLoss) else _FOR_CLASSES,
        on_loss=_generalised,
        place="loss",
        order=LOSS,
    )


def _squares(loss: Any) -> bool:
    return loss is F.mse_loss or type(loss) is nn.MSELoss


def _absolute(loss: Any) -> Any:
    return nn.L1Loss(reduction=getattr(loss, "reduction", "mean")) if _squares(loss) else loss


def _generalised(loss: Any) -> Any:
    """What weighs classes or leaves labels out goes on doing so."""
    if loss is F.cross_entropy:
        return GeneralisedCrossEntropy()
    if type(loss) is nn.CrossEntropyLoss:
        return GeneralisedCrossEntropy(loss.weight, ignore_index=loss.ignore_index, reduction=loss.reduction)
    if type(loss) is nn.BCEWithLogitsLoss:
        return GeneralisedBinaryCrossEntropy(loss.weight, reduction=loss.reduction, pos_weight=loss.pos_weight)
    return loss
