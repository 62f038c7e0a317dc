"""Fake quantization: a tensor is rounded to what an integer can hold, and stays a tensor of floats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed as _decomposed  # it registers the operators used below

QUANTIZED = torch.ops.quantized_decomposed
_FORGET = 0.01  # share of the newest batch in the moving average of ranges while training
_SMALLEST = 2.0**-24  # of a scale: a tensor of zeros must not divide by zero


class Rounding(nn.Module):
    """Rounds to integers from ``least`` to ``most`` of a scale it has observed, and back to floats.

    An activation (``axis`` None) has one scale and a zero point, from the average over batches of its least and largest
    value; a weight has a scale for each index of ``axis``, from its largest magnitude, and no zero point::

        x -> (clamp(round(x / scale) + zero_point, least, most) - zero_point) * scale

    Where no gradient is wanted this is computed by the very operators that a converted graph has, so both give the same
    bits. Where one is, it passes through unchanged inside the range and is zero outside.

    The scale in use and the scale that a conversion reads are one and the same buffer. Stock fused modules compute the
    scale for training from the newest batch and for the conversion from a range of their own.

    Attributes:
        observing: whether the range follows what passes through.
        active: whether it rounds.
    """

    low: Tensor
    high: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, least: int, most: int, dtype: torch.dtype, axis: int | None = None, size: int = 1) -> None:
        super().__init__()
        shape = () if axis is None else (size,)
        self.least, self.most, self.dtype, self.axis = least, most, dtype, axis
        self.observing, self.active, self.calibrated = False, True, 0
        self.register_buffer("low", torch.zeros(shape))
        self.register_buffer("high", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer("zero_point", torch.zeros(shape, dtype=torch.int32))

    def forward(self, values: Tensor) -> Tensor:
        if self.observing:
            self._observe(values.detach())
        return self.rounded(values) if self.active else values

    def rounded(self, values: Tensor) -> Tensor:
        """The values that are left after rounding."""
        if torch.is_grad_enabled() and values.requires_grad:
            limits = self.least, self.most
            if self.axis is None:
                return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero_point, *limits)
            return torch.fake_quantize_per_channel_affine(values, self.scale, self.zero_point, self.axis, *limits)
        quantize, restore, parameters = self.operators()
        found: Tensor = restore(quantize(values, *parameters), *parameters)
        return found

    def operators(self) -> tuple[Any, Any, tuple[Any, ...]]:
        """Quantize, dequantize and what both are given besides their input: the same here and after a conversion."""
        limits = self.least, self.most, self.dtype
        if self.axis is None:
            parameters = float(self.scale), int(self.zero_point), *limits
            return QUANTIZED.quantize_per_tensor.default, QUANTIZED.dequantize_per_tensor.default, parameters
        per_channel = self.scale, self.zero_point, self.axis, *limits
        return QUANTIZED.quantize_per_channel.default, QUANTIZED.dequantize_per_channel.default, per_channel

    @torch.no_grad()
    def _observe(self, values: Tensor) -> None:
        if self.axis is not None:
            rows = values.movedim(self.axis, 0).flatten(1)
            low, high, share = rows.amin(1), rows.amax(1), 1.0
        else:
            low, high = torch.aminmax(values)
            share = _FORGET if self.training else 1.0 / (self.calibrated + 1)
            self.calibrated += not self.training
        self.low.lerp_(low, share)
        self.high.lerp_(high, share)
        self._set_scale()

    def _set_scale(self) -> None:
        levels = self.most - self.least
        if self.axis is not None:
            largest = torch.maximum(-self.low, self.high)
            self.scale.copy_((largest / (levels / 2)).clamp_min(_SMALLEST))
            return
        low, high = self.low.clamp_max(0), self.high.clamp_min(0)  # zero, as padding has it, must be exact
        self.scale.copy_(((high - low) / levels).clamp_min(_SMALLEST))
        self.zero_point.copy_((self.least - torch.round(low / self.scale)).clamp(self.least, self.most))

    def extra_repr(self) -> str:
        return f"{self.least}..{self.most}, axis={self.axis}"


class BiasRounding(nn.Module):
    """Rounds the bias of a layer to the 32-bit integers that its kernel adds products of inputs and weights in.

    The scale of the bias of an output channel is that of the inputs times that of the channel's weights; it has none of
    its own.
    """

    def __init__(self, inputs: Rounding, weight: Rounding) -> None:
        super().__init__()
        self._of = inputs, weight  # in a tuple: they are modules of others

    def forward(self, values: Tensor) -> Tensor:
        inputs, weight = self._of
        if not (inputs.active and weight.active):
            return values
        quantize, restore, parameters = self.operators()
        rounded: Tensor = restore(quantize(values.detach(), *parameters), *parameters)
        if torch.is_grad_enabled() and values.requires_grad:
            return values + (rounded - values.detach())  # the gradient passes
        return rounded

    def operators(self) -> tuple[Any, Any, tuple[Any, ...]]:
        """As :meth:`Rounding.operators`."""
        inputs, weight = self._of
        scale, limit = inputs.scale * weight.scale, 2**30
        per_channel = scale, torch.zeros_like(weight.zero_point), 0, -limit, limit, torch.int32
        return QUANTIZED.quantize_per_channel.default, QUANTIZED.dequantize_per_channel.default, per_channel
