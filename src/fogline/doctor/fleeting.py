"""Parameters that a model makes anew in each pass: taken down, and kept from pass to pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fogline.data.source import Batch
from fogline.descent.copies import copied
from fogline.descent.objective import Objective
from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.surgery import Wrapped
from fogline.doctor.uncut import Within


class Strangers(TorchFunctionMode):
    """Sees parameters that something is calculated with and that are none of the model's.

    Filling them, as first weights are filled, is no calculation.

    Args:
        known: identities of the model's own.
        kept: what is taken in their place, in the order they come up; they stay where it has another shape, or ends.

    Attributes:
        seen: in the order they come up.
    """

    def __init__(self, known: Collection[int], kept: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.seen: list[nn.Parameter] = []
        self._known, self._kept = known, kept

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors((args, tuple(kwargs.values()))))
        strange = [value for value in given if self._is_strange(value)]
        if strange and len(strange) < len(given) and not getattr(func, "__name__", "").endswith("_"):
            places = {id(value): self._place(value) for value in strange}
            args, kwargs = self._exchanged(args, places), {k: self._exchanged(v, places) for k, v in kwargs.items()}
        return func(*args, **kwargs)

    def _is_strange(self, value: Tensor) -> bool:
        return isinstance(value, nn.Parameter) and id(value) not in self._known

    def _place(self, value: Tensor) -> int:
        known = next((place for place, other in enumerate(self.seen) if other is value), None)
        if known is None:
            self.seen.append(value)  # type: ignore[arg-type]
        return len(self.seen) - 1 if known is None else known

    def _exchanged(self, value: Any, places: dict[int, int]) -> Any:
        if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
            return type(value)(self._exchanged(item, places) for item in value)
        place = places.get(id(value), len(self._kept))
        return self._kept[place] if place < len(self._kept) and self._kept[place].shape == value.shape else value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def made_anew(model: nn.Module, loss: Any, batch: Batch) -> list[nn.Parameter]:
    """Parameters that each pass of a model makes for itself, with other values each time.

    Two passes are compared. What both of them see is kept somewhere and was not made by either.
    """
    with private_randomness(CPU):
        seed_step(0, 0, PROBE, CPU)
        first, second = (_strangers(model, loss, batch) for _ in range(2))
    there = {id(value) for value in first} & {id(value) for value in second}
    if len(first) != len(second) or there:
        return []
    drawn = any(one.shape == two.shape and not torch.equal(one, two) for one, two in zip(first, second, strict=True))
    return first if drawn else []


def _strangers(model: nn.Module, loss: Any, batch: Batch) -> list[nn.Parameter]:
    """What one pass of a copy of the model in evaluation mode sees of parameters that are not its own."""
    inside = copied(model).eval()
    found: list[Strangers] = []

    def watched() -> Strangers:
        found.append(Strangers({id(p) for p in inside.parameters()}))
        return found[-1]

    try:
        Objective(Within(inside, watched), loss).value(batch)
    except FAILURES:
        return []
    return found[0].seen if found else []


class Keeping(Wrapped):
    """A model whose parameters stay that it makes in each pass: those of its first pass are taken ever after.

    Args:
        model: is run.
        loss, batch: of the pass that shows what it makes.
    """

    def __init__(self, model: nn.Module, loss: Any, batch: Batch) -> None:
        super().__init__(model)
        made = _strangers(model, loss, batch)
        self.made = nn.ParameterList(nn.Parameter(value.detach().clone(), value.requires_grad) for value in made)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with Strangers({id(p) for p in self.wrapped_model.parameters()}, tuple(self.made)):
            return self.wrapped_model(*args, **kwargs)


def keeping(loss: Any, batch: Batch) -> partial[Keeping]:
    """The edit of a model that keeps what it makes."""
    return partial(Keeping, loss=loss, batch=batch)
