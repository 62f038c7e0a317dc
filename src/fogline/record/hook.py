"""A hook on somebody's module that leaves no trace: not in copies of the module, and not in compiled graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C._functorch import peek_interpreter_stack


def transformed() -> bool:
    """Whether tensors stand for others just now: a compiler traces them, or ``vmap`` and ``torch.func.grad`` do."""
    return torch.compiler.is_compiling() or peek_interpreter_stack() is not None


class Hook:
    """A hook that copies and pickles of its module do not carry along, and that no compiler or transform traces."""

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self._call = call

    def __call__(self, *given: Any) -> Any:
        if self._call is None or transformed():
            return None
        return self._call(*given)

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:  # deepcopy asks for it, too
        return Hook, ()
