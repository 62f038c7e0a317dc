"""Why a model failed on its first batch: the module it stopped in, what that expects and what it received."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from fogline.data.source import described

_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)
"""What is raised when shapes, types or structure do not fit."""


@contextmanager
def explained(
    what: str, received: str, model: nn.Module | None = None, columns: tuple[str, ...] | None = None
) -> Iterator[None]:
    """A failure inside the block becomes an error in the terms of the user; running out of memory stays what it is."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # a smaller batch is the caller's decision
    except _FAILURES as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        place, module, value = _innermost(error, model)
        if module is None:
            raise kind(f"{what} failed on {received}: {error}") from error
        reason = _reason(module, value) if isinstance(value, Tensor) else ""
        if not reason:
            raise kind(f"{what} failed in {place} on {described(value)}: {error}") from error
        hint = f" (the encoded table has {len(columns)} columns)" if columns else ""
        raise ValueError(f"{place} {reason}{hint}") from error


def _innermost(error: Exception, model: nn.Module | None) -> tuple[str, nn.Module | None, Any]:
    """The innermost module of the model that the failure went through: how to call it, and what it received."""
    names = {} if model is None else {module: name for name, module in model.named_modules()}
    for frame, _ in reversed(list(walk_tb(error.__traceback__))):
        module = frame.f_locals.get("self")
        if frame.f_code.co_name == "_call_impl" and module in names:
            received = frame.f_locals["args"]
            place = f"{type(module).__name__} {names[module]!r}" if names[module] else type(module).__name__
            return place, module, received[0] if received else None
    return "", None, None


def _reason(module: nn.Module, value: Tensor) -> str:
    """What a layer of a known kind expects, if it did not receive it."""
    if isinstance(module, nn.Embedding):
        return _embedding_reason(module, value)
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.dtype != value.dtype and not value.is_floating_point():
        return (
            f"expected floating-point inputs ({weight.dtype}), received {value.dtype}; convert them with x.float() "
            "(and divide pixels by 255)"
        )
    if isinstance(module, nn.Linear):
        return _linear_reason(module, value)
    shape = tuple(value.shape)
    if isinstance(module, _ConvNd):
        axes = ("batch", "channels", *("depth", "height", "width")[-len(module.kernel_size) :])
        if value.ndim != len(axes) or shape[1] != module.in_channels:
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
            return f"expected {module.num_features} channels, received shape {shape}; set num_features={shape[1]}"
    return ""


def _linear_reason(module: nn.Linear, value: Tensor) -> str:
    shape, expected = tuple(value.shape), module.in_features
    if value.ndim == 1 and expected == 1:
        return f"expected inputs of shape (batch, 1), received {shape}; reshape the inputs with x[:, None]"
    if shape and shape[-1] == expected:
        return ""
    remedy = f"set in_features={shape[-1] if shape else 1} or change the columns"
    if value.ndim > 2 and value.shape[1:].numel() == expected:
        remedy = "put nn.Flatten() before it"
    return f"expected inputs with {expected} features in the last dimension, received shape {shape}; {remedy}"


def _embedding_reason(module: nn.Embedding, value: Tensor) -> str:
    if value.dtype not in (torch.int64, torch.int32):
        return f"expected whole numbers, received {value.dtype}; convert the inputs with x.long()"
    low, high = int(value.min()), int(value.max())
    if low >= 0 and high < module.num_embeddings:
        return ""
    return (
        f"expected numbers from 0 to {module.num_embeddings - 1}, received {low} to {high}; "
        f"set num_embeddings={high + 1} or map the inputs"
    )
