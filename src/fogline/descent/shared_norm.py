"""Batch normalisation over the whole batch of a step where its rows are spread over processes.

``F.batch_norm`` in training is replaced while a share is evaluated: no module is exchanged, and the model that comes
out of a run is the one that went in. PyTorch's own ``SyncBatchNorm`` is for accelerators alone; this one is for every
device and every floating-point type. With n_i rows of mean m_i and sum of squared deviations s_i on process i (Chan et
al., 1979)::

    n = sum n_i,  m = sum n_i m_i / n,  s = sum s_i + n_i (m_i - m)^2,  variance s / n

and the gradient of the inputs needs the sums of ``dy`` and of ``dy * (x - m)`` over all rows (Ioffe and Szegedy, 2015).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from fogline.descent.group import World


def normalises_batches(model: nn.Module) -> bool:
    """Whether a layer of the model takes statistics over the rows of a batch."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


class SharedStatistics(TorchFunctionMode):
    """Within it, batch normalisation in training is over the rows of all processes, each of which has at least one."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is F.batch_norm and (args[5] if len(args) > 5 else given.get("training", False)):
            return _batch_norm(self.world, *args, **given)
        return func(*args, **given)


def _batch_norm(
    world: World,
    input: Tensor,  # (rows, channels, ...)
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    apply: Callable[..., Any] = _Normalise.apply
    normalised, mean, variance, count = apply(input, eps, world)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            unbiased = variance * count / (count - 1)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    shape = [1, -1, *[1] * (input.ndim - 2)]
    if weight is not None:
        normalised = normalised * weight.view(shape)
    result: Tensor = normalised if bias is None else normalised + bias.view(shape)
    return result


class _Normalise(torch.autograd.Function):
    """``(x - mean) / sqrt(variance + eps)`` by channel, over the rows of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, world: World) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        over = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        real = torch.float64 if x.dtype == torch.float64 else torch.float32
        exact = x.to(real)
        own_count = x.numel() / x.shape[1]
        own_mean = exact.mean(over)
        own_squares = (exact - own_mean.view(shape)).square().sum(over)
        # What each process found, in its own row: summed, all rows are known to all.
        table = torch.zeros(world.size, 2 * x.shape[1] + 1, dtype=real, device=x.device)
        table[world.rank] = torch.cat([own_mean, own_squares, own_mean.new_tensor([own_count])])
        world.sum(table, "the statistics of a batch normalisation")
        means, squares, counts = table[:, : x.shape[1]], table[:, x.shape[1] : -1], table[:, -1:]
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (squares + counts * (means - mean).square()).sum(0) / count
        scale = (variance + eps).rsqrt()
        normalised = (exact - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(normalised, scale, count)
        ctx.world, ctx.over, ctx.shape = world, over, shape
        ctx.mark_non_differentiable(mean, variance, count)
        return normalised.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        normalised, scale, count = ctx.saved_tensors
        over, shape = ctx.over, ctx.shape
        exact = dy.to(normalised.dtype)
        sums = torch.stack([exact.sum(over), (exact * normalised).sum(over)])
        ctx.world.sum(sums, "the gradient of a batch normalisation")
        mean, slope = (sums / count).unbind()
        dx = (exact - mean.view(shape) - normalised * slope.view(shape)) * scale.view(shape)
        return dx.to(dy.dtype), None, None
