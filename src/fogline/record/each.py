"""The loss of each example, from a loss that reduces a batch to one number."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fogline.data import losses

_TOLERANCE = 1e-3


class LossOfEach:
    """``each(outputs, targets)`` is the loss of each example, shape (rows, ...): the mean over ``...`` is still to do.

    Args:
        function: the loss without its reduction.
        plain: it is the cross-entropy of labels, every one weighed alike.
    """

    def __init__(self, function: Callable[[Any, Any], Tensor], plain: bool = False) -> None:
        self.function, self.plain = function, plain

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        try:
            found: Tensor = self.function(outputs, targets)
        except RuntimeError:  # some raise for what is not finite, where others give NaN
            if bool(torch.isfinite(outputs).all()):
                raise
            found = outputs.new_full((outputs.shape[0],), torch.nan)
        return found

    @classmethod
    def of(cls, loss: Any, outputs: Tensor, targets: Tensor, value: Tensor) -> LossOfEach | None:
        """Find it, and try it on a batch.

        The same loss with ``reduction="none"`` is taken where it has that option; else the loss of batches of one
        example, by ``vmap``, if their mean or sum is the loss of the batch.

        Args:
            loss: ``loss(outputs, targets)``.
            outputs, targets: of a batch.
            value: the loss of that batch.

        >>> outputs, targets = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
        >>> LossOfEach.of(nn.MSELoss(), outputs, targets, torch.tensor(2.5))(outputs, targets).flatten()
        tensor([1., 4.])
        >>> mine = lambda outputs, targets: (outputs - targets).abs().mean()
        >>> LossOfEach.of(mine, outputs, targets, torch.tensor(1.5))(outputs, targets)
        tensor([1., 2.])
        """
        known, value = losses.family(loss) != "unknown", value.detach()
        for function in (_unreduced(loss), _by_rows(loss)):
            if function is not None and _agrees(function, outputs, targets, None if known else value):
                bounded = _bounded(function) if losses.on_probabilities(loss) else function
                return cls(bounded, _is_plain(loss))
        return None


def _unreduced(loss: Any) -> Callable[[Any, Any], Tensor] | None:
    """The same loss with ``reduction="none"``."""
    if isinstance(loss, nn.Module):
        if getattr(loss, "reduction", None) not in ("mean", "sum", "none"):
            return None
        twin: Any = copy.copy(loss)
        twin.reduction = "none"
        return twin  # type: ignore[no-any-return]
    try:
        options = inspect.signature(loss).parameters
    except (TypeError, ValueError):
        return None
    return functools.partial(loss, reduction="none") if "reduction" in options else None


def _is_plain(loss: Any) -> bool:
    if loss is F.cross_entropy:
        return True
    return type(loss) is nn.CrossEntropyLoss and loss.weight is None and not loss.label_smoothing


def _bounded(function: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """NaN where an output is not finite, instead of the error that a loss on probabilities raises for all rows."""

    def each(outputs: Tensor, targets: Tensor) -> Tensor:
        finite = outputs.isfinite()
        return torch.where(finite, function(torch.where(finite, outputs, 0.5), targets), torch.nan)

    return each


def _by_rows(loss: Any) -> Callable[[Any, Any], Tensor]:
    def one(output: Tensor, target: Tensor) -> Tensor:
        value: Tensor = loss(output.unsqueeze(0), target.unsqueeze(0))
        return value

    mapped: Callable[[Any, Any], Tensor] = torch.vmap(one)
    return mapped


def _agrees(function: Callable[[Any, Any], Tensor], outputs: Tensor, targets: Tensor, value: Tensor | None) -> bool:
    """Whether it gives a number or more an example, whose mean or sum is the loss of the batch where that is asked."""
    try:
        with torch.no_grad():
            found = function(outputs, targets)
    except Exception:  # noqa: BLE001 - a loss that cannot be evaluated one example at a time, for whatever reason
        return False
    if not isinstance(found, Tensor) or not found.ndim or found.shape[0] != outputs.shape[0]:
        return False
    if value is None or value.ndim or not bool(torch.isfinite(value)):
        return True
    off = [abs(float(total - value)) for total in (found.mean(), found.sum())]
    return min(off) <= _TOLERANCE * abs(float(value)) + 1e-6
