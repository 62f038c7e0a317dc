"""Calls that reshape a tensor inside a model: taken down, and axes moved in their place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_RESHAPES = ("view", "reshape", "view_as", "reshape_as")
_TURNS = ("transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims", "contiguous")


@dataclass(frozen=True)
class Reshape:
    """A call of ``view`` or ``reshape``: its name, the shape it was given, and the shape it gave."""

    name: str
    given: tuple[int, ...]
    made: tuple[int, ...]

    @property
    def axes(self) -> tuple[int, ...] | None:
        """The axes in another order, where that is all that became of the shape and the order is another one.

        Of axes of one size the first comes first. Where an axis of size 1 stands does not matter.
        """
        if len(self.given) != len(self.made) or sorted(self.given) != sorted(self.made):
            return None
        left = list(enumerate(self.given))
        axes = []
        for size in self.made:
            place = next(k for k, (_, other) in enumerate(left) if other == size)
            axes.append(left.pop(place)[0])
        long = [axis for axis in axes if self.given[axis] > 1]
        return tuple(axes) if long != sorted(long) else None


@dataclass(frozen=True)
class AxesMoved:
    """What a reshape was meant for: the given axes in another order."""

    axes: tuple[int, ...]

    def fits(self, call: Reshape) -> bool:
        """Whether a call gave the shape that this would give."""
        return len(self.axes) == len(call.given) and tuple(call.given[axis] for axis in self.axes) == call.made

    def of(self, given: Tensor, made: tuple[int, ...]) -> Tensor:
        """What was to be made."""
        assert len(made) == len(self.axes)
        return given.permute(self.axes).contiguous()

    def code(self, made: tuple[int, ...]) -> str:
        """The same for people."""
        return f"x.permute{self.axes}"


@dataclass(frozen=True)
class RowsMoved:
    """What a reshape was meant for: the axis of the rows goes elsewhere, and what is within a row is reshaped."""

    start: int
    end: int

    def fits(self, call: Reshape) -> bool:
        """Whether a call gave a shape with as many rows where this puts them."""
        there = self.start < len(call.given) and self.end < len(call.made)
        return there and call.given[self.start] == call.made[self.end]

    def of(self, given: Tensor, made: tuple[int, ...]) -> Tensor:
        """What was to be made."""
        within = (*made[: self.end], *made[self.end + 1 :])
        return given.movedim(self.start, 0).reshape(made[self.end], *within).movedim(0, self.end).contiguous()

    def code(self, made: tuple[int, ...]) -> str:
        """The same for people."""
        rows_first = (made[self.end], *made[: self.end], *made[self.end + 1 :])
        before = f".movedim({self.start}, 0)" if self.start else ""
        return f"x{before}.reshape{rows_first}" + (f".movedim(0, {self.end})" if self.end else "")


@dataclass(frozen=True)
class ChannelsLast:
    """What a reshape of (rows, channels, places...) to (rows x places, channels) was meant for: channels last."""

    def fits(self, call: Reshape) -> bool:
        """Whether a call gave the shape that this would give, and could not have left the last axis as it was."""
        if len(call.given) < 3 or len(call.made) != 2 or call.given[-1] == call.given[1]:
            return False
        return call.given[1] > 1 and call.made == (call.given[0] * math.prod(call.given[2:]), call.given[1])

    def of(self, given: Tensor, made: tuple[int, ...]) -> Tensor:
        """What was to be made."""
        return given.movedim(1, -1).reshape(made)

    def code(self, made: tuple[int, ...]) -> str:
        """The same for people."""
        return f"x.movedim(1, -1).reshape(-1, {made[1]})"


Meant = AxesMoved | RowsMoved | ChannelsLast


class ReshapesSeen(TorchFunctionMode):
    """Takes down every ``view`` and ``reshape``, but not of weights, whose order is anybody's.

    Args:
        turned: whether also of what was transposed right before, which may be meant.

    Attributes:
        calls: by their number in the pass.
    """

    def __init__(self, *, turned: bool) -> None:
        super().__init__()
        self.calls: dict[int, Reshape] = {}
        self._also_turned = turned
        self._count = 0
        self._turned: list[Tensor] = []

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        made, name = func(*args, **(kwargs or {})), getattr(func, "__name__", "")
        first = args[0] if args else None
        if not isinstance(first, Tensor) or not isinstance(made, Tensor):
            return made
        was_turned = any(first is other for other in self._turned)
        if name in _TURNS and (was_turned or name != "contiguous"):
            self._turned.append(made)
        if name in _RESHAPES:
            if (self._also_turned or not was_turned) and not isinstance(first, nn.Parameter):
                self.calls[self._count] = Reshape(name, tuple(first.shape), tuple(made.shape))
            self._count += 1
        return made


class Transposed(TorchFunctionMode):
    """Moves axes where a ``view`` or ``reshape`` only gives them other names.

    Args:
        meant: what is done in their place, by the number of the call in a pass.
    """

    def __init__(self, meant: Mapping[int, Meant]) -> None:
        super().__init__()
        self._meant, self._count = meant, 0

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in _RESHAPES or not args:
            return func(*args, **kwargs)
        meant, self._count, given = self._meant.get(self._count), self._count + 1, args[0]
        if meant is None:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # whoever looks from further out is to see what stands in its place
            made = func(*args, **kwargs)
        call = Reshape("", tuple(given.shape), tuple(made.shape))
        return meant.of(given, call.made) if meant.fits(call) else made
