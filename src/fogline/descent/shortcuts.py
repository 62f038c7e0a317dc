"""PyTorch without its wrappers: on a small net the checks and profiler marks around a call cost more than the call.

Both shortcuts reach below the documented interface: each is tried once, and where it fails the documented call is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def _engine() -> Callable[..., Any] | None:
    """The autograd engine behind ``Tensor.backward``, if it can still be called as here."""
    run = getattr(getattr(torch.autograd.Variable, "_execution_engine", None), "run_backward", None)
    trial = torch.ones((), requires_grad=True)
    try:
        with torch.enable_grad():
            _call(run, trial * 2, torch.ones(()))
    except (TypeError, RuntimeError):
        return None
    return run if trial.grad is not None and trial.grad.item() == 2 else None


def _call(run: Any, loss: Tensor, one: Tensor) -> None:
    run((loss,), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def backward(loss: Tensor) -> None:
    """``loss.backward()`` for a scalar loss, about 30 us shorter.

    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> backward(x * x)
    >>> x.grad
    tensor(6.)
    """
    run = _engine()
    if run is None or loss.ndim or not loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
    else:
        _call(run, loss, _one(loss.dtype, loss.device))


@cache
def _one(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones((), dtype=dtype, device=device)


def bare_step(optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
    """``optimizer.step`` without the profiler's mark and the hooks around it, which an optimizer of a run has none of.

    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> optimizer = torch.optim.SGD([weight], lr=0.5)
    >>> weight.grad = torch.ones(1)
    >>> bare_step(optimizer)()
    >>> weight.item()
    0.5
    """
    wrapped = type(optimizer).step
    bare = getattr(wrapped, "__wrapped__", None) if getattr(wrapped, "hooked", False) else None
    return optimizer.step if bare is None else lambda: bare(optimizer)


def skips_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its kernels can be told by a flag on the device to leave everything as it is: PyTorch's fused ones.

    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> skips_itself(torch.optim.AdamW([weight], fused=True)), skips_itself(torch.optim.AdamW([weight]))
    (True, False)
    """
    fused = type(optimizer) in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
    return fused and all(group.get("fused") for group in optimizer.param_groups)


@contextmanager
def skipping(optimizer: torch.optim.Optimizer, flag: Tensor) -> Iterator[None]:
    """Within it a step of such an optimizer changes nothing where the flag, of shape (), is True.

    It is the way in which PyTorch's gradient scaler has them leave a step out.
    """
    optimizer.found_inf = flag.float()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
