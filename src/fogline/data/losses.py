"""What a loss expects of its targets, known from PyTorch's own classes and functions."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import nn

from fogline.task import OnBatch

Family = Literal["classes", "binary", "elementwise", "on_batch", "unknown"]

_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
_BINARY = (nn.BCEWithLogitsLoss, nn.BCELoss)
_ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
_FUNCTIONS: dict[Any, Family] = {
    F.cross_entropy: "classes",
    F.nll_loss: "classes",
    F.multi_margin_loss: "classes",
    F.binary_cross_entropy_with_logits: "binary",
    F.binary_cross_entropy: "binary",
    F.mse_loss: "elementwise",
    F.l1_loss: "elementwise",
    F.smooth_l1_loss: "elementwise",
    F.huber_loss: "elementwise",
}


def family(loss: Any) -> Family:
    """The kind of targets a loss works on.

    >>> family(nn.CrossEntropyLoss()), family(F.mse_loss), family(lambda outputs, targets: outputs.sum())
    ('classes', 'elementwise', 'unknown')
    """
    if isinstance(loss, OnBatch):
        return "on_batch"
    if isinstance(loss, _CLASSES):
        return "classes"
    if isinstance(loss, _BINARY):
        return "binary"
    if isinstance(loss, _ELEMENTWISE):
        return "elementwise"
    try:
        return _FUNCTIONS.get(loss, "unknown")
    except TypeError:  # an unhashable callable is nobody we know
        return "unknown"


def on_probabilities(loss: Any) -> bool:
    """Whether a binary loss takes probabilities and not logits."""
    return isinstance(loss, nn.BCELoss) or loss is F.binary_cross_entropy


def name(loss: Any) -> str:
    """How to call a loss in a sentence."""
    return str(getattr(loss, "__name__", None) or type(loss).__name__)
