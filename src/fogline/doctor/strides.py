"""How long the steps of a loop are against the weights that they move: at every power of two, by rule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_MOST_WEIGHTS = 20_000_000
"""They are copied for the length of a step."""


@dataclass(frozen=True)
class Stride:
    """One step.

    Attributes:
        step: its number.
        weights: length of all weights before it.
        moved: how far it moved them.
    """

    step: int
    weights: float
    moved: float


class StrideLook:
    """Measures some steps; the values stay on their device until :meth:`measured`.

    Args:
        parameters: the trained ones.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._spares = sum(p.numel() for p in self._parameters) <= _MOST_WEIGHTS
        self._before: list[Tensor] | None = None
        self._seen: list[tuple[int, Tensor, Tensor]] = []

    def before_step(self) -> None:
        """Before a step that is to be measured."""
        if self._spares:
            self._before = [p.detach().clone() for p in self._parameters]

    def after_step(self, step: int) -> None:
        """After any step."""
        before, self._before = self._before, None
        if before is not None:
            moved = torch._foreach_sub([p.detach() for p in self._parameters], before)
            self._seen.append((step, _length(before), _length(moved)))

    def measured(self) -> list[Stride]:
        """What was seen so far."""
        return [Stride(step, float(weights), float(moved)) for step, weights, moved in self._seen]


def _length(tensors: Sequence[Tensor]) -> Tensor:
    each = [torch.linalg.vector_norm(t if t.is_complex() else t.float()).double() for t in tensors]
    return torch.stack([length.to(each[0].device) for length in each]).square().sum().sqrt()
