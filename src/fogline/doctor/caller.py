"""Where in somebody's program we are: the line of code that a finding speaks of."""

from __future__ import annotations

import ast
import linecache
import operator
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

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
    return "" if frame is None else _shown(frame.f_code.co_filename, frame.f_lineno)


def line_of(loss: Tensor) -> str:
    """The line that gave a loss its name, before the one that called; that one where none can be told."""
    called = next(_outside(sys._getframe(1)), None)
    if called is None:
        return ""
    names = [name for name, value in called.f_locals.items() if value is loss]
    made = _assigned(called, names[0]) if len(names) == 1 else None
    return _shown(called.f_code.co_filename, made or called.f_lineno)


def _assigned(frame: FrameType, name: str) -> int | None:
    """Number of the last line up to where a frame is that makes a name anew."""
    file, first, last = frame.f_code.co_filename, frame.f_code.co_firstlineno, frame.f_lineno
    try:
        with warnings.catch_warnings(action="ignore"):  # of somebody's source, told when it was imported
            tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):  # not the source that runs, as in a notebook's cell with magics
        return None
    named = (
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and first <= node.lineno <= last
        and any(isinstance(n, ast.Name) and n.id == name for target in node.targets for n in ast.walk(target))
    )
    return max(named, default=None)


def line_in_forward(model: nn.Module, operation: str) -> str:
    """The last line of a model's own forward that names an operation; "" where none does, as of modules in a row."""
    forward = getattr(type(model).forward, "__code__", None)
    if forward is None or forward.co_filename.startswith(_INNER):
        return ""
    lines, first = linecache.getlines(forward.co_filename), forward.co_firstlineno
    inside = range(first, max((line or first for _, _, line in forward.co_lines()), default=first) + 1)
    named = [k for k in inside if k <= len(lines) and re.search(rf"{operation}\w*\(", lines[k - 1], re.IGNORECASE)]
    return _shown(forward.co_filename, named[-1]) if named else ""


def _shown(file: str, number: int) -> str:
    line = linecache.getline(file, number).strip()
    return f"{Path(file).name}:{number}" + (f": {line}" if line else "")


def _outside(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames of somebody's program, the innermost first."""
    while frame is not None:
        name = frame.f_code.co_filename
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if not name.startswith((*_INNER, "<frozen")) and package not in _TRAINERS:
            yield frame
        frame = frame.f_back


def data_in_sight(rows: int) -> list[Tensor]:
    """Tensors of so many rows that the program which called has at hand, without a graph.

    By name, or in a tuple, list or dict that has one; and those rows of longer ones that indices at hand pick, or that
    begin at a number at hand, as in ``y[picked]`` and ``y[i : i + 32]``.
    """
    tensors: dict[int, Tensor] = {}
    starts: set[int] = set()
    for frame, _ in zip(_outside(sys._getframe(1)), range(_FRAMES), strict=False):
        for value in list(frame.f_locals.values()):
            held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
            for part, _ in zip(held, range(_MOST_HELD), strict=False):
                if type(part) is Tensor and part.layout is torch.strided and part.ndim and not part.requires_grad:
                    tensors[id(part)] = part
                elif type(part) is int and part >= 0:
                    starts.add(part)
    found, longer = ([t for t in tensors.values() if so(len(t), rows)] for so in (operator.eq, operator.gt))
    indices = [t for t in found if t.dtype == torch.int64 and t.ndim == 1]
    for data in longer[:_MOST_HELD]:
        inside = (i for i in indices if i.device == data.device and bool(((i >= 0) & (i < len(data))).all()))
        found += [data[picked] for picked in inside]
        found += [data[start : start + rows] for start in sorted(starts)[:_MOST_HELD] if start + rows <= len(data)]
    return found


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
