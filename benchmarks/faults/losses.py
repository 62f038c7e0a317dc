"""Losses that people write by hand, the wrong ones among them, and metrics likewise."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fogline import on_batch


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error, written out; shapes that differ are broadcast."""
    return ((outputs - targets) ** 2).mean()


def summed_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """The sum of squared errors."""
    return ((outputs - targets) ** 2).sum()


def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean absolute error, written out."""
    return (outputs - targets).abs().mean()


def distance(outputs: Tensor, targets: Tensor) -> Tensor:
    """Root of the mean squared error, which has a gradient unless it is zero."""
    return torch.sqrt(((outputs - targets) ** 2).mean() + 1e-8)


def log_ratio(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean squared logarithmic error, for positive numbers only."""
    return (torch.log(outputs) - torch.log(targets)).square().mean()


def log_one_plus(outputs: Tensor, targets: Tensor) -> Tensor:
    """Keras's mean squared logarithmic error without its clipping."""
    return (torch.log(1 + outputs) - torch.log(1 + targets)).square().mean()


def probabilities_of_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of probabilities and labels, written out."""
    return -torch.log(outputs[torch.arange(len(outputs)), targets]).mean()


def clipped_probabilities_of_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    """The same, clipped as Keras does."""
    return -torch.log(outputs[torch.arange(len(outputs)), targets].clamp(1e-7, 1 - 1e-7)).mean()


def one_hot_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of probabilities and one-hot rows: 0 times log 0 is NaN."""
    return -(targets * torch.log(outputs)).sum(1).mean()


def binary_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of probabilities, written out."""
    return -(targets * torch.log(outputs) + (1 - targets) * torch.log(1 - outputs)).mean()


def binary_entropy_with_epsilon(outputs: Tensor, targets: Tensor) -> Tensor:
    """The same with an epsilon that float32 does not keep beside 1: 1 - (1 - 1e-8) is 0."""
    p = outputs.clamp(1e-8, 1 - 1e-8)
    return -(targets * torch.log(p) + (1 - targets) * torch.log(1 - p)).mean()


def entropy_with_tiny_epsilon(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy with an epsilon below the smallest float32, which is 0."""
    return -(targets * torch.log(outputs + 1e-46) + (1 - targets) * torch.log(1 - outputs + 1e-46)).mean()


def labels_entropy_with_epsilon(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of probabilities computed by hand in half precision, where 1e-8 is 0."""
    p = torch.softmax(outputs, 1).half() + 1e-8
    return -torch.log(p[torch.arange(len(p)), targets]).float().mean()


def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
    """The hinge loss, for targets -1 and 1."""
    return F.relu(1 - outputs * targets).mean()


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    """Focal loss with gamma 2."""
    log_p = F.log_softmax(outputs, 1)[torch.arange(len(outputs)), targets]
    return -((1 - log_p.exp()) ** 2 * log_p).mean()


def negative_agreement(outputs: Tensor, targets: Tensor) -> Tensor:
    """Minus the mean probability of the right class: below zero, and it works."""
    return -torch.softmax(outputs, 1)[torch.arange(len(outputs)), targets].mean()


def _reconstruct(model: nn.Module, batch: Any) -> Tensor:
    inputs = batch[0]
    return F.mse_loss(model(inputs), inputs)


def _reconstruct_summed(model: nn.Module, batch: Any) -> Tensor:
    inputs = batch[0]
    return F.mse_loss(model(inputs), inputs, reduction="sum") / len(inputs)


def _next_token(model: nn.Module, batch: Any) -> Tensor:
    tokens = batch[0]
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


reconstruct = on_batch(_reconstruct)
reconstruct_summed = on_batch(_reconstruct_summed)
foretell = on_batch(_next_token)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of right classes, one column each."""
    return (outputs.argmax(1) == targets).float().mean()


def binary_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of right answers for logits."""
    return ((outputs > 0).float() == targets).float().mean()


def accuracy_over_rows(outputs: Tensor, targets: Tensor) -> Tensor:
    """Argmax along the wrong dimension."""
    return (outputs.argmax(0)[: len(targets)] == targets[: outputs.shape[1]]).float().mean()


def elementwise_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Keras's binary accuracy on one-hot rows: right by saying no everywhere."""
    hot = F.one_hot(targets, outputs.shape[1])
    return ((outputs.softmax(1) > 0.5).long() == hot).float().mean()


def rounded_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Accuracy of a regression: equal after rounding."""
    return (outputs.round() == targets).float().mean()


def exact_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Accuracy of a regression: equal to the last bit."""
    return (outputs == targets).float().mean()


def argmax_of_one(outputs: Tensor, targets: Tensor) -> Tensor:
    """Argmax over the only column, which is always 0."""
    return (outputs.argmax(1) == targets[:, 0]).float().mean()


def broadcast_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """A column compared with a row: all against all."""
    return ((outputs > 0).float() == targets[:, 0]).float().mean()
