"""A hook on somebody's module that leaves no trace: not in copies of the module, and not in compiled graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Hook:
    """A hook that copies and pickles of its module do not carry along, and that no compiler traces into a graph."""

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self._call = call

    def __call__(self, *given: Any) -> Any:
        if torch.compiler.is_compiling() or self._call is None:
            return None
        return self._call(*given)

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:  # deepcopy asks for it, too
        return Hook, ()
