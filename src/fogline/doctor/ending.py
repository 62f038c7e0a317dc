"""The function that a model ends in, whatever it is applied to: told by the last call, and exchanged there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fogline.descent.copies import copied
from fogline.doctor.anatomy import BENDS, Anatomy, operation
from fogline.doctor.surgery import Wrapped
from fogline.doctor.uncut import Within, answers

RANGES = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "relu": (0.0, None), "softplus": (0.0, None), "exp": (0.0, None)}
"""What such functions can give; None is no limit."""


class Calls(TorchFunctionMode):
    """Counts the calls of a function; one of them gives what it is given.

    Args:
        name: of the function.
        skipped: the number of the call that is left out.

    Attributes:
        count: of the calls so far.
        last: what the latest gave.
    """

    def __init__(self, name: str, skipped: int | None = None) -> None:
        super().__init__()
        self.count, self.last = 0, None
        self._name, self._skipped = name, skipped

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "").removesuffix("_") != self._name or not args:
            return func(*args, **(kwargs or {}))
        self.count += 1
        self.last = args[0] if self.count - 1 == self._skipped else func(*args, **(kwargs or {}))
        return self.last


def end_of(anatomy: Anatomy) -> str:
    """The name of the function whose result is the model's answer; "" where that is another operation."""
    outputs = anatomy.outputs
    node = outputs.grad_fn if isinstance(outputs, Tensor) else None
    name = "" if node is None else BENDS.get(operation(node), "")
    return name if name in RANGES else ""


def without_end(anatomy: Anatomy, put: Callable[[], nn.Module]) -> Callable[[nn.Module], nn.Module] | None:
    """An edit that puts a module in the place of the function that a model ends in; None where its call is not seen."""
    name = end_of(anatomy)
    calls = Calls(name)
    found = answers(copied(anatomy.model).eval(), anatomy.batch[0], calls) if name else None
    if not found or calls.last is not found[0]:
        return None
    skipped = partial(Calls, name, calls.count - 1)
    return lambda model: Wrapped(Within(model, skipped), after=put())
