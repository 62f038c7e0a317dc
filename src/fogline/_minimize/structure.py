"""Any start (tensor, number, array, dict, tuple, nested) as one flat vector, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

F64 = torch.float64


@dataclass(frozen=True)
class Structure:
    """How the caller's parameters lie in the flat vector.

    Attributes:
        shapes: shape of every leaf, in order.
        dtypes: dtype in which every leaf is handed to the function.
        spec: the tree that holds the leaves; None where the start is a single tensor.
    """

    shapes: list[torch.Size]
    dtypes: list[torch.dtype]
    spec: pytree.TreeSpec | None

    def restore(self, flat: Tensor) -> Any:
        """The caller's structure as views of the flat vector, shape (n,)."""
        if self.spec is None:
            shape = self.shapes[0]
            return flat if len(shape) == 1 else flat.view(shape)
        pieces = torch.split(flat, [shape.numel() for shape in self.shapes])
        leaves = [p.view(s).to(d) for p, s, d in zip(pieces, self.shapes, self.dtypes, strict=True)]
        return pytree.tree_unflatten(leaves, self.spec)


def flatten(start: Any) -> tuple[Tensor, Structure]:
    """A copy of the start as one flat vector of shape (n,), and the structure that restores it.

    Numbers, and lists or tuples of numbers, become one float64 tensor; integers become float64.

    Raises:
        TypeError: a leaf is not numeric, or is complex.
        ValueError: nothing to descend on, a value that is not finite, or leaves on several devices.
    """
    if _is_numbers(start):
        start = torch.tensor(start, dtype=F64)
    if isinstance(start, Tensor | np.ndarray | np.generic):
        leaves, spec = [_leaf(start, "start")], None
    else:
        named, spec = pytree.tree_flatten_with_path(start)
        leaves = [_leaf(value, "start" + pytree.keystr(place)) for place, value in named]
    shapes = [leaf.shape for leaf in leaves]
    if sum(shape.numel() for shape in shapes) == 0:
        raise ValueError("expected at least one number to descend on, received an empty start; give a tensor")
    devices = {leaf.device for leaf in leaves}
    if len(devices) > 1:
        raise ValueError(f"expected a start on one device, received {sorted(map(str, devices))}; move it with .to()")
    dtype = leaves[0].dtype
    for leaf in leaves[1:]:
        dtype = torch.promote_types(dtype, leaf.dtype)
    flat = torch.cat([leaf.reshape(-1).to(dtype) for leaf in leaves]).clone()
    return flat, Structure(shapes, [leaf.dtype for leaf in leaves], spec)


def read_bounds(bounds: Any, structure: Structure, like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Lower and upper bound of every flat parameter, each of shape (n,).

    Args:
        bounds: None; a list of n (low, high) pairs with None for "no bound"; or a tuple (lower, upper), each a number,
            None, or the structure of the start with numbers, tensors or None as leaves.
        structure: that of the start.
        like: the flat start, shape (n,): gives dtype and device.

    Raises:
        TypeError: neither of these forms.
        ValueError: wrong length, NaN, or a lower bound above its upper bound.
    """
    if bounds is None:
        return None
    if isinstance(bounds, list):
        pairs = [tuple(pair) if isinstance(pair, Sequence | np.ndarray | Tensor) else () for pair in bounds]
        if len(pairs) != like.numel() or any(len(pair) != 2 for pair in pairs):
            raise ValueError(
                f"expected a list of {like.numel()} (low, high) pairs, one a parameter, received {bounds!r}; "
                "for the same bounds everywhere give a tuple (lower, upper)"
            )
        low = [-math.inf if pair[0] is None else float(pair[0]) for pair in pairs]
        high = [math.inf if pair[1] is None else float(pair[1]) for pair in pairs]
        lower, upper = like.new_tensor(low), like.new_tensor(high)
    elif isinstance(bounds, tuple) and len(bounds) == 2:
        lower = _side(bounds[0], -math.inf, structure, like)
        upper = _side(bounds[1], math.inf, structure, like)
    else:
        raise TypeError(
            f"expected bounds as a list of (low, high) pairs or a tuple (lower, upper), received {bounds!r}; "
            "None means no bound"
        )
    wrong = ~(lower <= upper)
    if wrong.any():
        place = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"expected lower <= upper, received [{lower[place].item()}, {upper[place].item()}] for parameter {place}; "
            "swap them, or use None for no bound"
        )
    return lower, upper


def _side(side: Any, missing: float, structure: Structure, like: Tensor) -> Tensor:
    if side is None or isinstance(side, int | float):
        return torch.full_like(like, missing if side is None else float(side))
    if structure.spec is None:
        leaves = [side]
    else:
        leaves, spec = pytree.tree_flatten(side)
        if spec != structure.spec:
            raise ValueError(
                f"expected bounds in the structure of the start ({structure.spec}), received {spec}; "
                "give every leaf a number, a tensor or None"
            )
    pieces = []
    for leaf, shape in zip(leaves, structure.shapes, strict=True):
        value = torch.as_tensor(missing if leaf is None else leaf, dtype=like.dtype, device=like.device)
        try:
            pieces.append(value.expand(shape).reshape(-1))
        except RuntimeError:
            raise ValueError(
                f"expected a bound that fits shape {tuple(shape)}, received shape {tuple(value.shape)}; "
                "give one number, or one for every parameter"
            ) from None
    return torch.cat(pieces)


def _is_numbers(start: Any) -> bool:
    if isinstance(start, list | tuple) and not hasattr(start, "_fields"):
        return len(start) > 0 and all(_is_numbers(item) for item in start)
    return isinstance(start, int | float) and not isinstance(start, bool)


def _leaf(value: Any, name: str) -> Tensor:
    if isinstance(value, bool) or not isinstance(value, Tensor | np.ndarray | np.generic | int | float):
        raise TypeError(f"expected numbers or tensors as the start, received {type(value).__name__} at {name}")
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "iuf":
        raise TypeError(f"expected real numbers as the start, received an array of {value.dtype} at {name}")
    tensor = torch.as_tensor(value, dtype=F64 if isinstance(value, int | float) else None).detach()
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"expected real numbers as the start, received {tensor.dtype} at {name}; give real parameters")
    if not tensor.is_floating_point():
        tensor = tensor.to(F64)
    wrong = ~torch.isfinite(tensor)
    if wrong.any():
        raise ValueError(
            f"expected a finite start, received {tensor[wrong].flatten()[0].item()} in {name}; "
            "start where the function is defined"
        )
    return tensor
