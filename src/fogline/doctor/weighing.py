"""How loud each class is in a loss: measured, and weighed anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fogline.descent.copies import copied
from fogline.doctor.case import FAILURES

Labels = Callable[[Any], "Tensor | None"]


def pulls_of_classes(loss: Any, outputs: Tensor, targets: Tensor, labels: Tensor, classes: int) -> Tensor | None:
    """How hard a row of each class pulls at its outputs: mean norm of the loss's gradient, float64 (classes,).

    Of outputs that say no class more than another, so that only the loss makes a difference.

    Args:
        loss: ``loss(outputs, targets)``.
        outputs: (b, ...), in whose place one and the same number is taken.
        targets, labels: of as many rows, some of each class that is asked for.
        classes: how many there are; those without a row have NaN.

    Returns:
        None where the loss cannot be asked.
    """
    several = outputs.ndim > 1 and outputs.shape[1] > 1
    within = bool(((outputs >= 0) & (outputs <= 1)).all())
    neutral = float(outputs.detach().mean()) if several else 0.5 if within else 0.0
    same = outputs.new_full((len(targets), *outputs.shape[1:]), neutral).requires_grad_()
    try:
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(loss(same, targets), same)
    except FAILURES:
        return None
    each = slope.double().reshape(len(slope), -1).norm(dim=1)
    if not bool(torch.isfinite(each).all()):
        return None
    total = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, each)
    return total / torch.bincount(labels, minlength=classes)


class Weighed(nn.Module):
    """The mean of a loss over rows, each of which counts as much as the weight of its class says.

    Args:
        loss: ``loss(outputs, targets)``, a mean over rows.
        weights: of the classes, (classes,).
        labels: the class of each row, (b,), of its target.
    """

    def __init__(self, loss: Any, weights: Tensor, labels: Labels) -> None:
        super().__init__()
        self.loss, self.labels = loss, labels
        self.register_buffer("weights", weights.float())

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Of outputs (b, ...) and targets (b, ...)."""
        labels = self.labels(targets)
        assert labels is not None
        return by_class(self.loss, outputs, targets, labels, self.get_buffer("weights"))


def by_class(loss: Any, outputs: Tensor, targets: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean over rows of a loss that is asked for each class by itself, times the class's weight, (classes,)."""
    total = outputs.new_zeros(())
    for label in torch.unique(labels).tolist():
        rows = labels == label
        share = rows.double().mean().to(outputs)
        total = total + share * weights[label].to(outputs) * loss(outputs[rows], targets[rows])
    return total


def is_a_mean(loss: Any, outputs: Tensor, targets: Tensor, labels: Tensor) -> bool:
    """Whether a loss is the mean of what it is for the rows of each class."""
    even = torch.ones(int(labels.max()) + 1)
    try:
        with torch.no_grad():
            whole, mean = loss(outputs, targets), by_class(loss, outputs, targets, labels, even)
    except FAILURES:
        return False
    return isinstance(whole, Tensor) and torch.allclose(whole, mean, rtol=1e-3)


def weighs(loss: Any, outputs: Tensor, targets: Tensor, labels: Tensor) -> bool:
    """Whether :func:`weighed` can weigh its classes, as far as a batch shows."""
    return _by_argument(loss) is not None or is_a_mean(loss, outputs, targets, labels)


def _by_argument(loss: Any) -> str | None:
    """The argument of one of PyTorch's losses that weighs its classes by now."""
    if type(loss) in (nn.CrossEntropyLoss, nn.NLLLoss) and loss.weight is not None:
        return "weight"
    one = type(loss) is nn.BCEWithLogitsLoss and loss.pos_weight is not None and loss.pos_weight.numel() == 1
    return "pos_weight" if one else None


def weighed(loss: Any, factors: Tensor, labels: Labels) -> Any:
    """The loss with each class made louder by a factor, (classes,)."""
    argument = _by_argument(loss)
    if argument is None:
        return Weighed(loss, factors, labels)
    again = copied(loss)
    given = getattr(again, argument)
    setattr(again, argument, given * (factors if argument == "weight" else factors[1] / factors[0]).to(given))
    return again
