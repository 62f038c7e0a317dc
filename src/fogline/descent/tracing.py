"""The first operation of a forward or backward pass that turns finite numbers into NaN or infinity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fogline.data.source import leaves

_FILLING = ("masked_fill", "masked_fill_", "full", "full_like", "new_full", "fill_", "triu", "tril", "where", "log_")
"""Operations that write an infinity on purpose, as masks do."""
_SAVED = ("_saved_self", "_saved_result", "_saved_input", "_saved_other")
_MOST_NODES = 20_000


@dataclass(frozen=True)
class Range:
    """What the values of one tensor were.

    Attributes:
        low, high: the smallest and the largest finite one; NaN where there is none.
        largest: the largest finite absolute value.
        not_finite: share of NaN and infinity.
        shape: of the tensor.
    """

    low: float
    high: float
    largest: float
    not_finite: float
    shape: tuple[int, ...]

    @classmethod
    def of(cls, value: Tensor) -> Range:
        flat = value.detach().flatten().double()
        finite = flat[torch.isfinite(flat)]
        share = 1 - finite.numel() / max(1, flat.numel())
        if not finite.numel():
            return cls(math.nan, math.nan, math.nan, share, tuple(value.shape))
        low, high = float(finite.min()), float(finite.max())
        return cls(low, high, max(abs(low), abs(high)), share, tuple(value.shape))

    def __str__(self) -> str:
        bad = f", {self.not_finite:.3g} of it not finite" if self.not_finite else ""
        return f"{self.low:.4g} to {self.high:.4g}{bad}"


@dataclass(frozen=True)
class Operation:
    """Where it went wrong: the operation, the module it was called in ("" outside every module), what went in."""

    name: str
    module: str
    ranges: tuple[Range, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        keys = ("low", "high", "largest", "not_finite", "shape")
        return {"name": self.name, "values": [{key: getattr(r, key) for key in keys} for r in self.ranges]}

    def __str__(self) -> str:
        went_in = f", into which went {'; '.join(str(r) for r in self.ranges[:3])}" if self.ranges else ""
        return f"{self.name}{went_in}"


class Tracer(TorchFunctionMode):
    """Notes the first operation that gives what is not finite, while it is entered.

    Attributes:
        found: that operation, or None.
        owners: autograd's node of every operation, with the module it was called in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Operation | None = None
        self.owners: dict[Any, str] = {}
        self.stack: list[str] = [""]

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [Range.of(t) for t in _floats((args, kwargs))] if self._in_place(func) else None
        output = func(*args, **kwargs)
        results = _floats(output)
        for value in results:
            if value.grad_fn is not None:
                self.owners.setdefault(value.grad_fn, self.stack[-1])
        if self.found is None and results:
            self._look(func, args, kwargs, results, given)
        return output

    def _in_place(self, func: Any) -> bool:
        name = getattr(func, "__name__", "")
        return self.found is None and name.endswith("_") and not name.endswith("__")

    def _look(self, func: Any, args: Any, kwargs: Any, results: list[Tensor], given: list[Range] | None) -> None:
        name = getattr(func, "__name__", str(func)).strip("_")
        if func.__class__.__name__ == "method-wrapper" or name in _FILLING or all(_finite(t) for t in results):
            return
        ranges = given if given is not None else [Range.of(t) for t in _floats((args, kwargs))]
        has_nan = any(bool(torch.isnan(t).any()) for t in results)
        if any(r.not_finite for r in ranges) and not has_nan:
            return  # an infinity that was put there on purpose, such as a mask's
        self.found = Operation(name, self.stack[-1], tuple(ranges))


@contextmanager
def traced(model: nn.Module) -> Iterator[Tracer]:
    """Trace what is computed, and in which module, until the end of the block."""
    tracer = Tracer()

    def enters(name: str) -> Callable[..., None]:
        return lambda *_: tracer.stack.append(name)

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enters(name or type(module).__name__)))
        handles.append(module.register_forward_hook(lambda *_: tracer.stack.pop() and None, always_call=True))
    try:
        with tracer:
            yield tracer
    finally:
        for handle in handles:
            handle.remove()


def first_bad_backward(loss: Tensor, parameters: list[nn.Parameter], owners: dict[Any, str]) -> Operation | None:
    """The first operation on the way back that makes a finite gradient non-finite."""
    found: list[Operation] = []

    def look(node: Any) -> Callable[[Any, Any], None]:
        def hook(inward: Any, outward: Any) -> None:
            if found or all(_finite(t) for t in _floats(inward)) or not all(_finite(t) for t in _floats(outward)):
                return
            name = str(node.name()).split("::")[-1].split("Backward")[0]
            found.append(Operation(f"backward of {name.lower()}", owners.get(node, ""), tuple(_saved(node, outward))))

        return hook

    handles = [node.register_hook(look(node)) for node in _nodes(loss.grad_fn) if node.next_functions]
    try:
        torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _saved(node: Any, outward: Any) -> Iterator[Range]:
    """Of the values that the operation kept for its derivative; else of the gradient that came in."""
    values = [getattr(node, name) for name in _SAVED if hasattr(node, name)]
    kept = [v for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.numel()]
    for value in kept or _floats(outward):
        yield Range.of(value)


def _nodes(start: Any) -> Iterator[Any]:
    queue: list[Any] = [start]
    seen: set[Any] = set()
    while queue and len(seen) < _MOST_NODES:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        queue += [before for before, _ in node.next_functions]


def _floats(tree: Any) -> list[Tensor]:
    return [t for t in leaves(tree) if t.is_floating_point() and t.numel()]


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())
