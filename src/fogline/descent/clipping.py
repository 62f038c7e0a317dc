"""Gradient clipping: a fixed norm, or one that follows the run's own gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

_DECAY = 0.98
_FACTOR = 2.0


class Clipping:
    """Scale gradients so that their joint norm is at most a limit.

    With ``limit=c``: ``g <- g * min(1, c / |g|)`` (Pascanu et al., 2013). With ``"adaptive"`` the limit is twice the
    bias-corrected moving average (0.98 a step) of the clipped norms, so a spike is cut and a lasting growth is let
    through; it is dimensionless, like AutoClip (Seetharaman et al., 2020).

    Attributes:
        memory: shape (2, *shape): the moving sum and its weight, part of the checkpoint; None for a fixed limit.
    """

    def __init__(self, limit: float | Literal["adaptive"], like: Tensor, shape: tuple[int, ...] = ()) -> None:
        """``shape`` is that of the norms: () for one descent, (members,) for a population."""
        self.limit = limit
        self.memory: Tensor | None = None
        if limit == "adaptive":
            dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
            self.memory = torch.zeros(2, *shape, dtype=dtype, device=like.device)

    def __call__(self, gradients: Sequence[Tensor], norm: Tensor) -> None:
        """Scale gradients in place; the caller has seen to it that they are finite."""
        torch._foreach_mul_(list(gradients), self.scale(norm).to(gradients[0].dtype.to_real()))

    def scale(self, norm: Tensor) -> Tensor:
        """What gradients of this norm are multiplied by; the memory moves on."""
        scale = self._scale(norm, self.memory)
        if self.memory is not None:
            self.memory.copy_(self._remembered(norm, scale, self.memory))
        return scale

    def functional(self, gradients: list[Tensor], norm: Tensor, memory: Tensor | None, finite: Tensor) -> list[Tensor]:
        """The same for a traced step: new gradients; the memory moves only on a finite step."""
        scale = self._scale(norm, memory)
        if memory is not None:
            memory.copy_(torch.where(finite, self._remembered(norm, scale, memory), memory))
        return [gradient * along(scale, gradient) for gradient in gradients]

    def _scale(self, norm: Tensor, memory: Tensor | None) -> Tensor:
        if memory is None:
            return (float(self.limit) / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0)
        average = memory[0] / memory[1].clamp_min(torch.finfo(memory.dtype).tiny)
        limit = torch.where(memory[1] > 0, _FACTOR * average, norm)
        return (limit / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0)

    def _remembered(self, norm: Tensor, scale: Tensor, memory: Tensor) -> Tensor:
        return _DECAY * memory + (1 - _DECAY) * torch.stack([norm * scale, torch.ones_like(norm)])


def memory_of(clipping: Clipping | None) -> list[Tensor]:
    """What a clipping remembers, in a list: empty where there is nothing."""
    return [] if clipping is None or clipping.memory is None else [clipping.memory]


def member_norms(gradients: Sequence[Tensor]) -> Tensor:
    """The joint norm of the gradients of each member of a population, from stacks with the members in front."""
    norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
    norm: Tensor = torch.linalg.vector_norm(norms, dim=0)
    return norm


def along(values: Tensor, like: Tensor) -> Tensor:
    """One value, or one for each member, shaped and typed to be multiplied with a tensor or a stack.

    >>> along(torch.ones(3), torch.ones(3, 4, 5)).shape
    torch.Size([3, 1, 1])
    """
    return values.to(like.dtype.to_real()).view(*values.shape, *[1] * (like.ndim - values.ndim))
