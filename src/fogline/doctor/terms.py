"""The terms that a loss is a sum of: told apart as they are added, and weighed anew."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fogline.data.source import rows_of
from fogline.doctor.uncut import within
from fogline.task import OnBatch

_UNWEIGHED: Mapping[int, float] = MappingProxyType({})
_ADDING, _TAKING = ("add", "__add__", "__radd__", "add_", "__iadd__"), ("sub", "__sub__", "sub_", "__isub__")


class Summing(TorchFunctionMode):
    """Sees what is added to what; a sum of sums is one of all their terms.

    Args:
        weights: what terms are multiplied by, by their places in the order in which they are added.
        rows: whether each row may have a sum of its own, (n,); else only single numbers are terms.

    Attributes:
        terms: values of the terms with their signs, as they were before they were weighed.
    """

    def __init__(self, weights: Mapping[int, float] = _UNWEIGHED, *, rows: bool = False) -> None:
        super().__init__()
        self.terms: list[float] = []
        self._weights, self._most = weights, 1 if rows else 0
        self._sums: list[Tensor] = []

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in (*_ADDING, *_TAKING) or len(args) != 2 or kwargs or not self._are_terms(args):
            return func(*args, **kwargs)
        signs = (1.0, -1.0 if name in _TAKING else 1.0)
        found: Tensor = func(*(self._weighed(part, sign) for part, sign in zip(args, signs, strict=True)))
        self._sums.append(found)
        return found

    def _are_terms(self, parts: tuple[Any, ...]) -> bool:
        """Two numbers of the loss, or the first one and the zero that Python's ``sum`` begins with."""
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if not all(part.is_floating_point() and part.ndim <= self._most for part in tensors):
            return False
        if len(tensors) == 2:
            return tensors[0].shape == tensors[1].shape
        return any(isinstance(part, int) and part == 0 for part in parts)

    def _weighed(self, part: Any, sign: float) -> Any:
        if not isinstance(part, Tensor) or any(part is known for known in self._sums):
            return part
        place = len(self.terms)
        self.terms.append(sign * float(part.detach().double().mean()))
        return part * self._weights[place] if place in self._weights else part


def weighed(loss: Any, place: int, weight: float) -> Any:
    """The loss with one of its terms multiplied."""
    return within(loss, partial(Summing, {place: weight}, rows=not isinstance(loss, OnBatch)))


def averaged(loss: Any, place: int, weight: float) -> Any:
    """The loss with one of its terms, which is a sum over the rows of a batch, as the mean of them, multiplied."""
    if not isinstance(loss, OnBatch):
        return lambda outputs, targets: weighed(loss, place, weight / rows_of(targets))(outputs, targets)
    return OnBatch(lambda model, batch: weighed(loss, place, weight / rows_of(batch)).function(model, batch))


def terms_of(loss: Any, model: nn.Module, batch: Any) -> list[float]:
    """Values of the terms of a loss of this batch, in evaluation mode; one or none where it is no sum.

    Raises:
        Exception: of the program's own.
    """
    mode = Summing(rows=not isinstance(loss, OnBatch))
    with torch.no_grad():
        if isinstance(loss, OnBatch):
            with mode:
                loss.function(model, batch)
        else:
            outputs = model(batch[0])
            with mode:
                loss(outputs, batch[1])
    return mode.terms
