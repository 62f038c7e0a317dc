"""What is seen of one step of a loop, and how it is read without waiting for a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from timeit import timeit
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fogline.data.source import leaves

_HOOK_CALLS = 30

Value = float | Tensor


class Hook:
    """A hook that copies and pickles of its module do not carry along, and that no compiler traces into a graph."""

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self._call = call

    def __call__(self, *given: Any) -> Any:
        if torch.compiler.is_compiling() or self._call is None:
            return None
        return self._call(*given)

    def __deepcopy__(self, _: object) -> Hook:
        return Hook()

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()


@dataclass(slots=True)
class Seen:
    """What was seen of one step."""

    number: int = -1
    rows: int = 0  # that went forward for it, of one or several batches
    examples: int = 0
    seconds: float = 0.0
    logged: list[Value] = field(default_factory=list)
    observed: list[Value] = field(default_factory=list)
    evaluated: Value | None = None  # by the first call of a closure
    rate: Value | None = None
    norm: Value | None = None
    skipped: Tensor | None = None  # on the device: not 0 where a fused optimizer left the weights alone
    has_row: bool = True  # False for a step between two rows that is only asked whether it was skipped
    taken: bool = True  # False where the optimizer was not even called
    earlier: tuple[int, int] = (0, 0)  # losses logged and observed before the latest forward pass

    def loss(self) -> Value | None:
        """What the loop logged, else what the closure gave, else what the loss module gave; the mean of several."""
        values = self.logged or ([] if self.evaluated is None else [self.evaluated]) or self.observed
        return sum(values[1:], values[0]) / len(values) if values else None

    def forward(self, rows: int) -> None:
        """So many rows go forward, for this step's first batch or for another."""
        self.rows += rows
        self.earlier = len(self.logged), len(self.observed)

    def forget(self) -> None:
        """Drop the losses from before the latest forward pass: their gradients came to nothing."""
        logged, observed = self.earlier
        self.logged, self.observed = self.logged[logged:], self.observed[observed:]


def is_single(value: object) -> bool:
    """Whether it is one number, on whatever device."""
    return value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, Real)


def value_of(name: str, value: object) -> Value:
    """A plain number, or a copy that stays on its device so that nothing waits.

    Raises:
        TypeError, ValueError: it is no number, or more than one.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"{name}: expected a single number, received a tensor of shape {tuple(value.shape)}; take its mean"
            )
        value = value.detach()
        return float(value) if value.device.type == "cpu" else value.reshape(()).clone()
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"{name}: expected a number or a scalar tensor, received {type(value).__name__}")


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all of them, a scalar on the device of the first; half precision is summed in float32."""
    dense = [g.detach().coalesce().values() if g.is_sparse else g.detach() for g in gradients]
    half = any(g.dtype in (torch.float16, torch.bfloat16) for g in dense)
    norms = torch._foreach_norm(dense, 2, torch.float32) if half else torch._foreach_norm(dense)
    device = norms[0].device
    norm: Tensor = torch.linalg.vector_norm(torch.stack([n if n.device == device else n.to(device) for n in norms]))
    return norm


def rate_of(optimizer: Optimizer) -> Value | None:
    rate = optimizer.param_groups[0].get("lr")
    return rate if isinstance(rate, float) else None if rate is None else value_of("lr", rate)


def rows_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Rows of the first tensor given to the model; a list is a batch of examples of different sizes."""
    first = args[0] if args else None
    if isinstance(first, list):
        return len(first)
    if not isinstance(first, Tensor):
        first = next(iter(leaves((args, kwargs))), None)
    return int(first.shape[0]) if first is not None and first.ndim else 0


def hook_seconds() -> float:
    """What the call of a hook costs before anything is done in it, which no hook can measure of itself."""
    plain, hooked = nn.Identity(), nn.Identity()
    hooked.register_forward_pre_hook(Hook(lambda *_: None), with_kwargs=True)
    without, with_hook = (timeit(partial(module, None), number=_HOOK_CALLS) for module in (plain, hooked))
    return max(0.0, with_hook - without) / _HOOK_CALLS
