"""Masks that a model applies, wherever they stand: taken down, and turned about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_FILLS, _PRODUCTS = ("masked_fill", "masked_fill_"), ("mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply")
_ATTENDS = {"multi_head_attention_forward": "key_padding_mask", "scaled_dot_product_attention": "attn_mask"}
_MASKING = (*_FILLS, *_PRODUCTS, *_ATTENDS, "where")
_LOW = -1e3  # added to scores, or put in their place, so that a softmax makes nothing of them


@dataclass(frozen=True)
class Mask:
    """A mask that a model applies.

    Attributes:
        argument: of the call, by its place or its name.
        given: what it is there.
        hides: whether nothing is to be seen of what it is 1 for; else of what it is 0 for.
        of_scores: whether it says what may be attended to; else it is a factor.
    """

    argument: int | str
    given: Tensor
    hides: bool
    of_scores: bool = True

    @property
    def hidden(self) -> Tensor:
        return self.given.bool() == self.hides

    def turned(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Arguments of the call with the mask the other way round."""
        other = self.given.logical_not().to(self.given.dtype)
        if isinstance(self.argument, str):
            return args, kwargs | {self.argument: other}
        return (*args[: self.argument], other, *args[self.argument + 1 :]), kwargs


def _mask_of(name: str, args: Any, kwargs: Any) -> Mask | None:
    """The mask that a call applies, if it does."""
    named = dict(enumerate(args)) | kwargs
    if name in _FILLS:
        at: int | str = 1 if len(args) > 1 else "mask"
        return _mask(named, at, True) if _is_low(named.get(2, named.get("value"))) else None
    if name == "where":
        if _is_low(named.get(2, named.get("other"))):
            return _mask(named, 0 if args else "condition", False)
        return _mask(named, 0 if args else "condition", True) if _is_low(named.get(1, named.get("input"))) else None
    if name in _ATTENDS:
        pads = name == "multi_head_attention_forward"
        return _mask(named, 3 if not pads and len(args) > 3 else _ATTENDS[name], pads)
    for at, other in ((1, 0), (0, 1)):
        factor = named.get(at)
        if isinstance(factor, Tensor) and factor.ndim > 1 and bool(((factor == 0) | (factor == 1)).all()):
            low = _is_low(named.get(other))
            return Mask(at, factor.detach(), low, of_scores=low)
    return None


def _mask(named: Mapping[Any, Any], at: int | str, hides: bool) -> Mask | None:
    given = named.get(at)
    return Mask(at, given, hides) if isinstance(given, Tensor) and given.dtype == torch.bool else None


def _is_low(value: Any) -> bool:
    return (not isinstance(value, Tensor) or value.numel() == 1) and value is not None and float(value) <= _LOW


class MasksSeen(TorchFunctionMode):
    """Takes down every mask: of scores that are filled with a very low number, of attention, and as a factor.

    The modules of PyTorch fill a mask with minus infinity before they call a function; that is what is seen of them.

    Attributes:
        calls: by their number in the pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[int, Mask] = {}
        self._count = 0

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in _MASKING:
            mask, self._count = _mask_of(name, args, kwargs), self._count + 1
            if mask is not None:
                self.calls[self._count] = mask
        return func(*args, **kwargs)


class MasksTurned(TorchFunctionMode):
    """Hides what a mask leaves, and leaves what it hides.

    Args:
        calls: their numbers in a pass.
    """

    def __init__(self, calls: frozenset[int]) -> None:
        super().__init__()
        self._calls, self._count = calls, 0

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in _MASKING:
            self._count += 1
            mask = _mask_of(name, args, kwargs) if self._count in self._calls else None
            args, kwargs = (args, kwargs) if mask is None else mask.turned(args, kwargs)
        return func(*args, **kwargs)
