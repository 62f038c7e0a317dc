"""Bringing inputs and targets to numbers near one, as part of the model: the user's own units stay outside."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from fogline.doctor.anatomy import Anatomy, Layer
from fogline.doctor.surgery import Affine, Wrapped

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_MOST_NUMBERS = 4_000_000
"""That statistics are taken of, from spaced rows: enough for any deviation, and little memory."""
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_LARGE, _SMALL, UNEVEN = 5.0, 0.03, 10.0
"""First weights are drawn for inputs of size one, which leaves a factor of 5 to spare (pixels from 0 to 1 are 0.3);
columns whose sizes differ 10 times make the slopes along them differ 100 times."""
_FAR_AWAY = 30.0
"""Deviations of small targets from zero beyond which their level is learned long before what tells them apart."""
_FARTHEST = 10.0
"""No value may lie further out after scaling: a column that is nearly always the same and seldom another must not."""


@dataclass(frozen=True)
class Scales:
    """Of the inputs, in groups that share a unit: columns, channels, or features of a sequence.

    Attributes:
        mean, deviation: of each group; those of a group that is constant, or all zeros and ones, are 0 and 1.
        size: root mean square of each group.
        shape: what makes them fit the inputs, with 1 for each other dimension.
        counted: the groups that vary and are not zeros and ones.
    """

    mean: Tensor
    deviation: Tensor
    size: Tensor
    shape: tuple[int, ...]
    counted: Tensor

    def module(self) -> Affine:
        """``(inputs - mean) / deviation``."""
        scale, shift = 1 / self.deviation, -self.mean / self.deviation
        return Affine(scale.float().reshape(self.shape), shift.float().reshape(self.shape))


def first_layer(anatomy: Anatomy) -> Layer | None:
    """The first module called that has weights or normalises; None where there is none."""
    return next((layer for layer in anatomy.layers if weighs(layer)), None)


def weighs(layer: Layer) -> bool:
    """Whether a module has weights or normalises."""
    return isinstance(layer.module, NORMS) or any(True for _ in layer.module.parameters())


def scales_of(inputs: Tensor, first: nn.Module | None) -> Scales:
    """Statistics of the finite values of each group of inputs.

    Args:
        inputs: (n, columns), (n, channels, height, width), (n, time, features) or (n, channels, time).
        first: the layer that gets them, which tells a sequence from a signal with channels.
    """
    along = _dimension(inputs, first)
    rows = max(256, _MOST_NUMBERS // max(1, inputs[:1].numel()))
    values = inputs[:: -(-len(inputs) // rows)].double()
    if along is None:
        values, shape = values.reshape(-1, 1), (1,) * max(0, inputs.ndim - 1)
    else:
        values = values.movedim(along, -1).reshape(-1, inputs.shape[along])
        shape = tuple(inputs.shape[along] if k == along else 1 for k in range(1, inputs.ndim))
    finite = torch.isfinite(values)
    count = finite.sum(0).clamp_min(1)
    values = torch.where(finite, values, 0.0)
    mean = values.sum(0) / count
    away = torch.where(finite, values - mean, 0.0)
    deviation = (away.square().sum(0) / count).sqrt()
    varies = deviation > 1e-7 * values.abs().amax(0)
    yes_no = ((values == 0) | (values == 1)).all(0)
    deviation = torch.maximum(deviation, away.abs().amax(0) / _FARTHEST)
    counted = varies & ~yes_no
    size = (values.square().sum(0) / count).sqrt()
    return Scales(
        torch.where(counted, mean, torch.zeros_like(mean)),
        torch.where(counted, deviation, torch.ones_like(deviation)),
        size,
        shape,
        counted,
    )


@dataclass(frozen=True)
class InputExcess:
    """How far inputs are from what first weights are made for.

    Attributes:
        times: beyond what does no harm; at most 1 where all is well.
        overall: root mean square of all of them.
        uneven: size of the largest group against the spread of a middle one.
    """

    times: float
    overall: float
    uneven: float


def input_excess(scales: Scales) -> InputExcess:
    """Of inputs with these statistics."""
    if not bool(scales.counted.any()):
        return InputExcess(0.0, math.nan, math.nan)
    sizes, deviations = scales.size[scales.counted], scales.deviation[scales.counted]
    largest, middle = float(sizes.max()), float(deviations.median())
    overall, uneven = float(sizes.square().mean().sqrt()), largest / middle
    times = max(overall / _LARGE, _SMALL / largest, uneven / UNEVEN)
    return InputExcess(times if math.isfinite(times) else 0.0, overall, uneven)


@dataclass(frozen=True)
class TargetExcess:
    """How far numbers to predict are from the outputs of first weights.

    Attributes:
        times: beyond what does no harm; at most 1 where all is well.
        mean, deviation: of each column of targets; a column that does not vary has deviation 1.
        away: distance of the outputs' mean, in deviations of the targets, in the worst column.
        wide: spread of the outputs against that of the targets.
    """

    times: float
    mean: Tensor
    deviation: Tensor
    away: float
    wide: float


def target_excess(targets: Tensor, outputs: Tensor) -> TargetExcess | None:
    """Of targets and outputs in columns, (n, k) and (m, k), all finite; None where no target varies."""
    mean, deviation = targets.mean(0), targets.std(0, correction=0)
    varies = deviation > 1e-9 * targets.abs().amax(0)
    if not bool(varies.any()):
        return None
    each = ((outputs.mean(0) - mean).abs() / deviation)[varies]
    away = float(each.max())
    wide = float((outputs.std(0, correction=0) / deviation)[varies].max())
    times = max(away / 5, 0.02 / max(wide, 1e-30), wide / 10)
    largest = max(float(deviation[varies].max()), float(mean[varies].abs().max()))
    small = largest < _LARGE and float(deviation[varies].median()) > _SMALL  # a few still pixels do no harm
    if small and float(each.median()) < _FAR_AWAY:
        times = min(times, 1.0)
    return TargetExcess(times, mean, torch.where(varies, deviation, torch.ones_like(deviation)), away, wide)


def _dimension(inputs: Tensor, first: nn.Module | None) -> int | None:
    """The dimension whose entries have units of their own; None where all share one."""
    if inputs.ndim == 2:
        return 1
    if inputs.ndim == 3:
        if isinstance(first, _ConvNd):  # of which the model may move the features to their place by itself
            return 2 if first.in_channels == inputs.shape[2] != inputs.shape[1] else 1
        return (
            2
            if isinstance(first, _RECURRENT) or (isinstance(first, nn.Linear) and first.in_features == inputs.shape[2])
            else None
        )
    return 1 if inputs.ndim == 4 and inputs.shape[1] <= inputs.shape[-1] else None


def as_received(inputs: Tensor, first: Layer | None) -> bool:
    """Whether a layer is given the inputs as they are, but for their shape."""
    if first is None:
        return True
    given = first.received
    if given is None or given.numel() != inputs.numel():
        return False
    return bool(torch.equal(given.double().flatten().sort().values, inputs.double().flatten().sort().values))


def scaled_outputs(scale: Tensor, shift: Tensor) -> Callable[[nn.Module], nn.Module]:
    """An edit that puts ``outputs * scale + shift`` behind a model."""
    return lambda model: Wrapped(model, after=Affine(scale.float(), shift.float()))


_AS_MODULES: dict[Any, Callable[[], nn.Module]] = {
    F.mse_loss: nn.MSELoss, F.l1_loss: nn.L1Loss, F.smooth_l1_loss: nn.SmoothL1Loss, F.huber_loss: nn.HuberLoss,
}  # fmt: skip


def scaled_loss(loss: Any, scale: Tensor) -> Any:
    """The loss of outputs and targets that are both divided by the scale; a known loss stays what it is."""
    maker = next((made for function, made in _AS_MODULES.items() if loss is function), None)
    if maker is not None:
        loss = maker()
    divided = Divided(scale.float())
    if isinstance(loss, nn.Module):
        changed = copy.deepcopy(loss)
        changed.register_forward_pre_hook(divided)
        return changed
    return lambda outputs, targets: loss(*divided(None, (outputs, targets)))


class Divided:
    """Divides what a loss is given: a hook that can be copied."""

    def __init__(self, scale: Tensor) -> None:
        self.scale = scale

    def __call__(self, module: nn.Module | None, given: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        outputs, targets = given
        scale = self.scale.to(outputs.device, outputs.dtype)
        return outputs / scale, targets / scale
