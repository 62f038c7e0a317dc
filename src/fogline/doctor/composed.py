"""A model of several parts as one: all that a function of (model, batch) does up to one of PyTorch's losses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data.source import leaves, map_tree, rows_of
from fogline.descent.copies import copied
from fogline.doctor.asked import SEVERAL, Comparing, Comparison, Stop, batch_with, by_row
from fogline.doctor.surgery import Wrapped

Function = Callable[[Any, Any], Tensor]


class Composed(Wrapped):
    """A model as what a function of (model, batch) tells one of PyTorch's losses; called with the inputs for it.

    Called with something else, it is the model that it is made of.

    Args:
        model: of the user's.
        function: of (model, batch).
        like: a batch on a few rows.
        places: which tensors of a batch are the inputs.
        single: whether it is called with the only one of them, not with a tuple.
    """

    def __init__(self, model: nn.Module, function: Function, like: Any, places: tuple[int, ...], single: bool) -> None:
        super().__init__(model)
        self.function, self.like, self.places, self.single = function, like, places, single

    def forward(self, *given: Any, **named: Any) -> Any:
        fits = len(given) == 1 and (isinstance(given[0], Tensor) if self.single else type(given[0]) in SEVERAL)
        if not fits or named:
            return self.wrapped_model(*given, **named)
        inputs = (given[0],) if self.single else given[0]
        batch = batch_with(self.like, dict(zip(self.places, inputs, strict=True)), inputs[0])
        return said_of(compared(self.function, self.wrapped_model, batch), len(inputs[0]))


def compared(function: Function, model: nn.Module, batch: Any) -> Comparison:
    """The first call of one of PyTorch's losses; the function is ended there.

    Raises:
        ValueError: there is none.
    """
    with suppress(Stop), Comparing(stops=True) as seen:
        function(model, batch)
    if not seen.found:
        raise ValueError("expected a call of one of PyTorch's losses, received none")
    found: Comparison = seen.found[0]
    return found


def said_of(call: Comparison, count: int) -> Tensor:
    """What a loss was told of the model, with the first dimension that counts rows, (rows, ...)."""
    said: Tensor = by_row(call.said, count)
    # Places of rows that were put one after another: their classes come before them, where PyTorch wants them.
    return said.movedim(-1, 1) if said is not call.said and call.told.ndim < call.said.ndim else said


def inputs_among(function: Function, model: nn.Module, batch: Any) -> tuple[int, ...]:
    """Which tensors of a batch are inputs: all but those of which the targets alone are made."""
    call, found = compared(function, model, batch), []
    for place in range(len(leaves(batch))):
        places = iter(range(len(leaves(batch))))
        turned = map_tree(lambda leaf: leaf.flip(0) if next(places) == place else leaf, batch)  # noqa: B023 - at once
        other = compared(function, model, turned)
        if not torch.equal(other.said, call.said) or torch.equal(other.told, call.told):
            found.append(place)
    return tuple(found)


def depends_on(said: Tensor, model: nn.Module) -> bool:
    """Whether there is a gradient from what a loss was told to the model."""
    weights = [p for p in model.parameters() if p.requires_grad]
    if not said.requires_grad or not weights:
        return False
    return any(g is not None for g in torch.autograd.grad(said.sum(), weights, allow_unused=True))


def is_its_own(model: nn.Module, inputs: Tensor, said: Tensor) -> bool:
    """Whether a model answers a call with the inputs with something else."""
    with suppress(Exception):
        outputs = model(inputs)
        return not (isinstance(outputs, Tensor) and outputs.shape == said.shape and torch.equal(outputs, said))
    return False


@torch.no_grad()
def told_of(function: Function, model: nn.Module, batch: Any) -> Tensor:
    """What a loss is told to compare with, (rows, ...)."""
    return by_row(compared(function, model, batch).told, rows_of(batch))


def is_told_by(function: Function, model: nn.Module, batch: Any) -> bool:
    """Whether what a loss is told is another one where the weights are: then the model is compared with itself."""
    other = copied(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(-1.5).add_(0.1)
    return not torch.equal(told_of(function, other, batch), told_of(function, model, batch))
