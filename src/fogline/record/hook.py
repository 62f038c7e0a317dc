"""A hook on somebody's module that leaves no trace, what its call costs, and whom it tells."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from timeit import timeit
from typing import Any, Protocol

import torch
from torch import Tensor, nn

_CALLS = 30


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


def hook_seconds() -> float:
    """What the call of a hook costs before anything is done in it, which no hook can measure of itself."""
    plain, hooked = nn.Identity(), nn.Identity()
    hooked.register_forward_pre_hook(Hook(lambda *_: None), with_kwargs=True)
    without, with_hook = (timeit(partial(module, None), number=_CALLS) for module in (plain, hooked))
    return max(0.0, with_hook - without) / _CALLS


class Inspector(Protocol):
    """Somebody who is told what passes by, and looks for faults in it; closely only while ``looking``."""

    looking: bool

    def forward(self, step: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None: ...
    def announced(self, step: int, batch: Any) -> None: ...
    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None: ...
    def evaluation(self) -> None: ...
    def loss(self, step: int, args: tuple[Any, ...], output: Any) -> None: ...
    def logged(self, step: int, loss: Any) -> None: ...
    def scored(self, step: int) -> None: ...
    def accumulated(self) -> None: ...
    def evaluates_closure(self) -> None: ...
    def before_step(self, step: int, norm: float | Tensor | None) -> None: ...
    def after_step(self, step: int) -> None: ...
    def skipped(self, step: int, skips: int) -> None: ...
    def remove(self) -> None: ...
