"""Why a model failed on its first batch: the module it stopped in, what that expects and what it received."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from fogline.data.datasets import described

FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)
"""What a forward pass raises when shapes, types or structure do not fit."""


@dataclass
class Entered:
    """The modules a forward pass is inside of, outermost first, with what each received."""

    names: dict[nn.Module, str]
    stack: list[tuple[nn.Module, Any]] = field(default_factory=list)


@contextmanager
def entered_modules(model: nn.Module) -> Iterator[Entered]:
    """Follow a forward pass; after a failure the top of the stack is the module it happened in."""
    entered = Entered({module: name for name, module in model.named_modules()})

    def enter(module: nn.Module, arguments: Any) -> None:
        entered.stack.append((module, arguments[0] if arguments else None))

    def leave(module: nn.Module, arguments: Any, output: Any) -> None:
        if entered.stack and entered.stack[-1][0] is module:
            entered.stack.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


def explain(
    error: Exception, entered: Entered, what: str, received: Any, columns: tuple[str, ...] | None = None
) -> ValueError | TypeError:
    """The error to raise in place of a failure inside PyTorch."""
    kind = TypeError if isinstance(error, TypeError) else ValueError
    inside = [(module, value) for module, value in entered.stack if module in entered.names]
    if not inside:
        return kind(f"{what} failed on {described(received)}: {error}")
    module, value = inside[-1]
    name = entered.names[module]
    place = f"{type(module).__name__} {name!r}" if name else type(module).__name__
    reason = _reason(module, value) if isinstance(value, Tensor) else ""
    if reason:
        hint = f" (the encoded table has {len(columns)} columns)" if columns else ""
        return ValueError(f"{place} {reason}{hint}")
    return kind(f"{what} failed in {place} on {described(value)}: {error}")


def _reason(module: nn.Module, value: Tensor) -> str:
    """What a layer of a known kind expects, if it did not receive it."""
    shape = tuple(value.shape)
    if isinstance(module, nn.Embedding):
        return _embedding_reason(module, value)
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.dtype != value.dtype and not value.is_floating_point():
        return (
            f"expected floating-point inputs ({weight.dtype}), received {value.dtype}; convert them with x.float() "
            "(and divide pixels by 255)"
        )
    if isinstance(module, nn.Linear) and value.ndim == 1 and module.in_features == 1:
        return f"expected inputs of shape (batch, 1), received {shape}; reshape the inputs with x[:, None]"
    if isinstance(module, nn.Linear) and (not shape or shape[-1] != module.in_features):
        flat = value[0].numel() if value.ndim > 1 and value.shape[0] else 0
        flatten = "; put nn.Flatten() before it" if flat == module.in_features and value.ndim > 2 else ""
        return (
            f"expected inputs with {module.in_features} features in the last dimension, received shape {shape}"
            f"{flatten or f'; set in_features={shape[-1] if shape else 1} or change the columns'}"
        )
    if isinstance(module, _ConvNd):
        dimensions = len(module.kernel_size) + 2
        axes = ("batch", "channels", "depth", "height", "width")[:2] + ("depth", "height", "width")[5 - dimensions :]
        if value.ndim != dimensions or shape[1] != module.in_channels:
            return (
                f"expected inputs of shape ({', '.join(axes)}) with {module.in_channels} channels, received shape "
                f"{shape}; reshape the data, for example with x[:, None] for images without a channel"
            )
    if isinstance(module, _BatchNorm) and value.ndim > 1:
        if module.training and value.numel() == value.shape[1]:
            return (
                f"expected more than one value per channel in training, received a batch of shape {shape}; use a batch "
                "size above 1 (also for the last batch) or nn.GroupNorm"
            )
        if shape[1] != module.num_features:
            return f"expected {module.num_features} channels, received shape {shape}"
    return ""


def _embedding_reason(module: nn.Embedding, value: Tensor) -> str:
    if value.dtype not in (torch.int64, torch.int32):
        return f"expected whole numbers, received {value.dtype}; convert the inputs with x.long()"
    low, high = int(value.min()), int(value.max())
    if low < 0 or high >= module.num_embeddings:
        return (
            f"expected numbers from 0 to {module.num_embeddings - 1}, received {low} to {high}; "
            f"set num_embeddings={high + 1} or map the inputs"
        )
    return ""
