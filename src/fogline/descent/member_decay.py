"""A weight decay for each member of a population, in the place of the optimizer's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fogline.descent.clipping import along
from fogline.descent.groups import ParameterRole

DECAYS_IN_GRADIENT = ("gd", "sgd", "momentum", "nesterov", "adam")
DECAYS_WEIGHTS = ("adamw",)
"""Optimizers whose members can each have a weight decay of their own, by where it acts."""


@dataclass(frozen=True)
class MemberDecay:
    """How much the weights of each member decay.

    Attributes:
        rates: shape (size,).
        scales: by stack, what multiplies its rate; None for one that does not decay.
        in_gradient: ``g + decay w`` is what the optimizer is given, else ``w - rate decay w`` goes beside its update.
    """

    rates: Tensor
    scales: list[float | None]
    in_gradient: bool

    @classmethod
    def of(cls, optimizer: str, decays: Sequence[float], roles: Sequence[ParameterRole]) -> MemberDecay:
        if optimizer not in DECAYS_IN_GRADIENT + DECAYS_WEIGHTS:
            known = ", ".join(DECAYS_IN_GRADIENT + DECAYS_WEIGHTS)
            raise ValueError(f"expected one of {known} for a decay of each member's own, received {optimizer!r}")
        like = roles[0].parameter
        rates = torch.tensor(decays, dtype=like.dtype, device=like.device)
        return cls(rates, [role.lr_scale if role.decays else None for role in roles], optimizer in DECAYS_IN_GRADIENT)

    def into_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        for weight, scale in zip(weights, self.scales, strict=True):
            if self.in_gradient and scale is not None and weight.grad is not None:
                weight.grad.add_(weight.detach() * along(self.rates, weight))

    def of_weights(self, weights: Sequence[nn.Parameter], before: Sequence[Tensor], rates: Tensor) -> None:
        for weight, old, scale in zip(weights, before, self.scales, strict=True):
            if not self.in_gradient and scale is not None:
                weight.detach().sub_(old * along(scale * rates * self.rates, old))
