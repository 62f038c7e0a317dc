"""Rounding to integers: closed forms, and the trap of a scale that is not the one in use."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize, MovingAveragePerChannelMinMaxObserver

from fogline.edge.quantize import signal_to_noise
from fogline.edge.rounding import BiasRounding, Rounding


def observed(rounding: Rounding, values: Tensor, *, training: bool = False) -> Rounding:
    rounding.train(training).observing = True
    rounding(values)
    rounding.observing = False
    return rounding


def converted(rounding: Rounding, values: Tensor) -> Tensor:
    """What a converted graph computes, by its operators."""
    quantize, restore, parameters = rounding.operators()
    found: Tensor = restore(quantize(values, *parameters), *parameters)
    return found


def test_an_activation_is_rounded_to_the_steps_of_its_range() -> None:
    rounding = observed(Rounding(0, 255, torch.uint8), torch.tensor([-1.0, 0.0, 4.1]))
    assert float(rounding.scale) == pytest.approx(5.1 / 255)
    assert int(rounding.zero_point) == 50
    values = torch.tensor([0.029, 0.031, -7.0, 9.0])  # 1.45 and 1.55 steps, and beyond both ends
    assert torch.allclose(rounding(values), torch.tensor([0.02, 0.04, -1.0, 4.1]))


@pytest.mark.parametrize("values", [torch.tensor([0.3, 2.0]), torch.tensor([-2.0, -0.3]), torch.zeros(3)])
def test_zero_stays_zero(values: Tensor) -> None:
    rounding = observed(Rounding(0, 255, torch.uint8), values)
    assert rounding(torch.zeros(1)).item() == 0.0
    assert torch.isfinite(rounding(values)).all()


def test_a_weight_has_a_scale_for_each_channel() -> None:
    weight = torch.tensor([[1.27, -0.5], [0.0127, 0.0]])
    rounding = observed(Rounding(-127, 127, torch.int8, 0, 2), weight)
    assert torch.allclose(rounding.scale, torch.tensor([0.01, 0.0001]))
    assert torch.equal(rounding.zero_point, torch.zeros(2, dtype=torch.int32))


def test_two_bits_are_four_levels() -> None:
    rounding = observed(Rounding(-2, 1, torch.int8, 0, 1), torch.linspace(-3, 3, 101)[None])
    assert rounding(torch.linspace(-9, 9, 1001)[None]).unique().tolist() == [-4.0, -2.0, 0.0, 2.0]


def test_the_gradient_passes_inside_the_range_and_not_outside() -> None:
    rounding = observed(Rounding(0, 255, torch.uint8), torch.tensor([0.0, 1.0]))
    values = torch.tensor([-0.5, 0.0, 0.4, 1.0, 1.5], requires_grad=True)
    rounding(values).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_calibration_averages_ranges_and_training_lets_them_move_slowly() -> None:
    rounding = Rounding(0, 255, torch.uint8)
    for high in (1.0, 2.0, 6.0):
        observed(rounding, torch.tensor([0.0, high]))
    assert float(rounding.high) == pytest.approx(3.0)
    observed(rounding, torch.tensor([0.0, 4.0]), training=True)
    assert float(rounding.high) == pytest.approx(3.01)


def test_a_bias_is_rounded_to_the_scale_of_inputs_times_weights() -> None:
    inputs = observed(Rounding(0, 255, torch.uint8), torch.tensor([0.0, 2.55]))
    weight = observed(Rounding(-127, 127, torch.int8, 0, 2), torch.tensor([[1.27], [12.7]]))
    bias = torch.tensor([0.00012, 0.0012], requires_grad=True)
    rounded = BiasRounding(inputs, weight)(bias)
    assert torch.allclose(rounded, torch.tensor([0.0001, 0.001]))
    rounded.sum().backward()
    assert bias.grad is not None
    assert bias.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("least", "most"), [(-127, 127), (-8, 7), (-2, 1)])
def test_training_and_conversion_use_one_scale(least: int, most: int) -> None:
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    rounding = observed(Rounding(least, most, torch.int8, 0, 8), weight)
    trained = rounding(weight.clone().requires_grad_())
    assert torch.equal(trained.detach(), converted(rounding, weight))


def test_the_stock_fused_module_would_fail_that() -> None:
    # Its kernel takes its scale from the batch by a rule of its own, a conversion from the observer by another.
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    stock = FusedMovingAvgObsFakeQuantize(
        observer=MovingAveragePerChannelMinMaxObserver,
        quant_min=-2,
        quant_max=1,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        averaging_constant=1.0,
    )
    trained = stock(weight)
    scale, zero_point = stock.calculate_qparams()
    shipped = torch.fake_quantize_per_channel_affine(weight, scale, zero_point.int(), 0, -2, 1)
    assert signal_to_noise(trained, shipped) < 20
    ours = observed(Rounding(-2, 1, torch.int8, 0, 8), weight)
    assert torch.equal(ours(weight), converted(ours, weight))
