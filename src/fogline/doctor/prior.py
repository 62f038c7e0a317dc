"""Losses that know how common each class is, so that the network need not learn it (logit adjustment)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class AdjustedCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy of logits to which the logarithms of the classes' shares are added (Menon et al. 2021).

    What the network then says by itself is as if all classes were equally common.
    """

    def __init__(self, shares: Tensor, like: nn.CrossEntropyLoss) -> None:
        super().__init__(
            like.weight, ignore_index=like.ignore_index, reduction=like.reduction, label_smoothing=like.label_smoothing
        )
        self.register_buffer("shift", shares.float().clamp_min(1e-9).log())

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Of logits (b, classes) and labels (b,) or probabilities (b, classes)."""
        return super().forward(outputs + self.get_buffer("shift").to(outputs), targets)


class AdjustedLikelihood(nn.NLLLoss):
    """The same of logarithms of probabilities."""

    def __init__(self, shares: Tensor, like: nn.NLLLoss) -> None:
        super().__init__(like.weight, ignore_index=like.ignore_index, reduction=like.reduction)
        self.register_buffer("shift", shares.float().clamp_min(1e-9).log())

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Of log-probabilities (b, classes) and labels (b,)."""
        return super().forward((outputs + self.get_buffer("shift").to(outputs)).log_softmax(1), targets)


class AdjustedBinaryCrossEntropy(nn.BCEWithLogitsLoss):
    """The same of one logit for yes or no."""

    def __init__(self, shares: Tensor, like: nn.BCEWithLogitsLoss) -> None:
        super().__init__(like.weight, reduction=like.reduction, pos_weight=like.pos_weight)
        no, yes = shares.float().clamp_min(1e-9).log()
        self.register_buffer("shift", yes - no)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Of logits and of zeros and ones of the same shape."""
        return super().forward(outputs + self.get_buffer("shift").to(outputs), targets)


def adjusts(loss: Any, classes: int) -> bool:
    """Whether there is such a loss in the place of this one, which weighs no class by itself."""
    if type(loss) in (nn.CrossEntropyLoss, nn.NLLLoss):
        return loss.weight is None
    if loss is F.cross_entropy:
        return True
    return type(loss) is nn.BCEWithLogitsLoss and classes == 2 and loss.pos_weight is None


def adjusted(loss: Any, counts: Tensor) -> Any:
    """The loss that knows the share of each class, (classes,) numbers of rows; any other loss as it is."""
    shares = counts / counts.sum()
    if not adjusts(loss, len(counts)):
        return loss
    if loss is F.cross_entropy:
        return AdjustedCrossEntropy(shares, nn.CrossEntropyLoss())
    if isinstance(loss, nn.NLLLoss):
        return AdjustedLikelihood(shares, loss)
    if isinstance(loss, nn.CrossEntropyLoss):
        return AdjustedCrossEntropy(shares, loss)
    return AdjustedBinaryCrossEntropy(shares, loss)


def code(loss: Any) -> str:
    """How to write it by hand."""
    if isinstance(loss, nn.BCEWithLogitsLoss):
        return (
            "share = y.mean()\n"
            "loss = lambda out, y: F.binary_cross_entropy_with_logits(out + (share / (1 - share)).log(), y)"
        )
    return "share = torch.bincount(y) / len(y)\nloss = lambda out, y: F.cross_entropy(out + share.log(), y)"
