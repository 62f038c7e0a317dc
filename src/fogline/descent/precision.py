"""The self-check of mixed precision: its loss and its gradient against those of full precision, on a few rows."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fogline.data.source import Batch
from fogline.descent.batches import part, rows_of
from fogline.descent.objective import Objective, mode

_ROWS = 64
_SCALE = 2.0**16  # GradScaler's first one: what keeps small gradients of float16 above zero
_LOSS, _NEAR_ZERO = 0.05, 1e-3
_LEAST_COSINE, _GOOD_COSINE = 0.9, 0.99


@dataclass(frozen=True)
class Comparison:
    """One batch in both precisions, from the same weights.

    Attributes:
        mixed, full: the losses.
        cosine: between the gradients; 1 where they point the same way, NaN where one is not finite.
        ratio: length of the mixed one over that of the full one.
        raised: what the mixed one raised, where it did.
    """

    mixed: float
    full: float
    cosine: float
    ratio: float
    raised: str = ""

    @property
    def fault(self) -> str:
        """Why mixed precision cannot be used, in words; empty where it can."""
        if self.raised:
            return self.raised
        if not abs(self.mixed - self.full) <= _LOSS * abs(self.full) + _NEAR_ZERO:
            return f"the first loss is {self.mixed:.6g}, in full precision it is {self.full:.6g}"
        if not self.cosine >= _LEAST_COSINE or not 0.5 <= self.ratio <= 2:
            return f"{self} instead of 1 and 1"
        return ""

    @property
    def doubt(self) -> str:
        """What the user should know though it is used; empty where there is nothing."""
        if self.fault or self.cosine >= _GOOD_COSINE:
            return ""
        return f"{self}: small differences may get lost in it"

    def __str__(self) -> str:
        return (
            f"its gradient has cosine {self.cosine:.4f} with that of full precision and {self.ratio:.3f} of its length"
        )


def compare(objective: Objective, batch: Batch) -> Comparison:
    """Loss and gradient with and without autocast, in evaluation mode. ``.grad`` is left alone.

    Args:
        objective: with the type of its autocast.
        batch: of which the first 64 rows are taken.
    """
    rows = part(batch, 0, min(_ROWS, rows_of(batch)))
    with mode(objective.model, training=False), _recurrent(objective.model):
        full, here = _gradient(replace(objective, autocast=None), rows, 1.0)
        scale = _SCALE if objective.autocast == torch.float16 else 1.0
        try:
            mixed, there = _gradient(objective, rows, scale)
            while scale > 1 and not bool(torch.isfinite(there).all()):  # the scaler too goes down until it is
                scale /= 4
                mixed, there = _gradient(objective, rows, scale)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an operation that is refused in it
            raised = f"it raises {type(error).__name__}: {str(error).splitlines()[0]}"
            return Comparison(math.nan, full, math.nan, math.nan, raised)
    lengths = float(there.norm()), float(here.norm())
    product = lengths[0] * lengths[1]
    if product == 0:
        alike = 1.0 if lengths[0] == lengths[1] else 0.0
        return Comparison(mixed, full, alike, alike)
    return Comparison(mixed, full, float(there @ here) / product, lengths[0] / lengths[1])


def _recurrent(model: nn.Module) -> AbstractContextManager[None]:
    """cuDNN differentiates recurrent layers in training mode only; PyTorch's own kernels do so in both."""
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return torch.backends.cudnn.flags(enabled=False)
    return nullcontext()


def _gradient(objective: Objective, batch: Batch, scale: float) -> tuple[float, Tensor]:
    """The loss and the gradient as one vector of float64."""
    parameters = [p for p in objective.model.parameters() if p.requires_grad]
    with torch.enable_grad():
        loss = objective(batch)
    found = torch.autograd.grad(loss * scale, parameters, allow_unused=True)
    flat = torch.cat([g.detach().double().reshape(-1) for g in found if g is not None]) / scale
    return float(loss.detach()), flat
