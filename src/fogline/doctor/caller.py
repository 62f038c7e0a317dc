"""Where in somebody's program we are: the line of code that a finding speaks of."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

import fogline

_TRAINERS = {"accelerate", "keras", "lightning", "pytorch_lightning", "transformers", "ultralytics"}
"""Packages whose own loop calls backward() and step(): the line of their user is the one to name."""
_FRAMES, _MOST_HELD = 3, 16
_INNER = tuple(str(Path(module.__file__).parent) for module in (torch, fogline) if module.__file__)


def calling_line() -> str:
    """The line that called, through PyTorch, trainers and this library: ``file.py:12: loss.backward()``.

    It is "" if none can be told. On an accelerator gradients are made in a thread of their own, where nobody's line
    is to be seen.
    """
    frame = next(_outside(sys._getframe(1)), None)
    if frame is None:
        return ""
    name = frame.f_code.co_filename
    line = linecache.getline(name, frame.f_lineno).strip()
    return f"{Path(name).name}:{frame.f_lineno}" + (f": {line}" if line else "")


def _outside(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames of somebody's program, the innermost first."""
    while frame is not None:
        name = frame.f_code.co_filename
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if not name.startswith((*_INNER, "<frozen")) and package not in _TRAINERS:
            yield frame
        frame = frame.f_back


def tensors_in_sight() -> list[Tensor]:
    """What the program that called has at hand without a graph: by name, or in a tuple, list or dict that has one."""
    found: dict[int, Tensor] = {}
    for frame, _ in zip(_outside(sys._getframe(1)), range(_FRAMES), strict=False):
        for value in list(frame.f_locals.values()):
            held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
            found |= {id(t): t for t, _ in zip(held, range(_MOST_HELD), strict=False) if _is_data(t)}
    return list(found.values())


def _is_data(value: object) -> bool:
    return isinstance(value, Tensor) and not value.requires_grad and bool(value.ndim)


def backward_root() -> Tensor | None:
    """What ``backward()`` was called on, told from a hook within it; None where another thread runs it.

    Of one within another, as in reentrant checkpoints, the outer one counts.
    """
    root: Tensor | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is torch.autograd.backward.__code__:
            tensors = frame.f_locals["tensors"]
            root = tensors if isinstance(tensors, Tensor) else tensors[0] if len(tensors) == 1 else None
        frame = frame.f_back
    return root
