"""The first batch of a watched loop: what it would explain if the loop were not to learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fogline.data import losses
from fogline.doctor import told
from fogline.doctor.finding import Finding
from fogline.doctor.scaling import NORMS, InputExcess, TargetExcess, input_excess, scales_of, target_excess

_LEARNS = 0.5
"""Of the loss of the best constant answer: a loop whose loss ends above it has learned little."""
_FEWEST_ROWS, _MOST_ROWS, _MOST_COLUMNS = 8, 512, 64


@dataclass(frozen=True)
class FirstBatch:
    """What one batch shows of inputs and targets.

    Attributes:
        inputs, targets: how far they are from what first weights are made for; None where that is unknown, or well.
        constants: loss of the best answer that does not depend on the inputs, of this and the next few batches.
    """

    inputs: InputExcess | None
    targets: TargetExcess | None
    constants: tuple[float, ...] = ()

    def and_also(self, loss_fn: Any, targets: Tensor) -> FirstBatch:
        """With the targets of another batch, by which the constant is known better."""
        return replace(self, constants=(*self.constants, *_constants(loss_fn, targets)))

    def explains(self, step: int, recorded: NDArray[np.float64]) -> Iterator[Finding]:
        """Findings for a loop that ended with these losses: none where it learned all the same."""
        share = self.share_left(recorded)
        if share is not None and share > _LEARNS:
            if self.inputs is not None:
                yield told.unscaled_input(step, self.inputs)
            if self.targets is not None:
                yield told.unscaled_target(step, self.targets)

    def share_left(self, recorded: NDArray[np.float64]) -> float | None:
        """The last losses as a share of that of the best constant answer; None where one of them is unknown."""
        finite = recorded[np.isfinite(recorded)]
        constant = sum(self.constants) / max(1, len(self.constants))
        return float(finite[-max(1, len(finite) // 10) :].mean()) / constant if len(finite) and constant > 0 else None


def look(model: nn.Module, loss_fn: Any, given: Sequence[Any], outputs: Tensor, targets: Tensor | None) -> FirstBatch:
    """Look at a batch before any step was taken on it.

    Args:
        given: positional arguments of the model.
        outputs: its answers, (b, ...).
        targets: what they are compared with; None where that is unknown.
    """
    numbers = targets is not None and losses.family(loss_fn) == "elementwise"
    excess = _targets(outputs, targets) if numbers and targets is not None else None
    inputs = _inputs(model, given[0]) if given and isinstance(given[0], Tensor) else None
    return FirstBatch(inputs, excess, () if targets is None else _constants(loss_fn, targets))


def _inputs(model: nn.Module, inputs: Tensor) -> InputExcess | None:
    first = next((m for m in model.modules() if isinstance(m, NORMS) or any(True for _ in m.parameters(False))), None)
    if not inputs.is_floating_point() or len(inputs) < _FEWEST_ROWS or isinstance(first, (*NORMS, nn.Embedding)):
        return None
    excess = input_excess(scales_of(inputs.detach()[:_MOST_ROWS].cpu(), first))
    return excess if excess.times > 1 else None


def _targets(outputs: Tensor, targets: Tensor) -> TargetExcess | None:
    if outputs.shape != targets.shape or len(targets) < _FEWEST_ROWS or not targets.is_floating_point():
        return None
    found, wanted = (
        x.detach()[:_MOST_ROWS].reshape(min(len(x), _MOST_ROWS), -1).cpu().double() for x in (outputs, targets)
    )
    if wanted.shape[1] > _MOST_COLUMNS or not bool(torch.isfinite(found).all() & torch.isfinite(wanted).all()):
        return None
    excess = target_excess(wanted, found)
    return excess if excess is not None and excess.times > 1 else None


def _column(values: Tensor) -> Tensor:
    return values[:, None] if values.ndim == 1 else values


def _constants(loss_fn: Any, targets: Tensor) -> tuple[float, ...]:
    """Loss of the best constant answer to a batch, the variance or the entropy of the labels; none if unknown."""
    targets, kind = targets.detach(), losses.family(loss_fn)
    if getattr(loss_fn, "reduction", "mean") != "mean" or targets.ndim == 0 or len(targets) < _FEWEST_ROWS:
        return ()
    if isinstance(loss_fn, nn.MSELoss):
        return (float(targets.double().var(0).mean()),)
    if kind == "classes" and not targets.is_floating_point() and getattr(loss_fn, "weight", None) is None:
        shares = torch.bincount(targets.reshape(-1).clamp_min(0)).double() / targets.numel()
        return (float(-(shares * shares.clamp_min(1e-12).log()).sum()),)
    if kind == "binary":
        share = targets.double().mean().clamp(1e-12, 1 - 1e-12)
        return (float(-(share * share.log() + (1 - share) * (1 - share).log())),)
    return ()
