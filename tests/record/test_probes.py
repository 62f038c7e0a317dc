"""Probes against closed forms on quadratics, and their budget."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import Tensor, nn

from fogline.record.probes import Budget, Probe, Probed, activation_statistics, products


def gradient_descent(curvatures: Tensor, start: Tensor, lr: float, momentum: float = 0.0) -> Probed:
    """Two steps on ``1/2 sum(curvature * w^2)`` under a probe."""
    weight = nn.Parameter(start.clone())
    probe = Probe(["layer.weight"], [weight], Budget(1.0))
    velocity = torch.zeros_like(start)
    for step in range(2):
        gradient = curvatures * weight.detach()
        velocity = momentum * velocity + gradient
        probe.before()
        with torch.no_grad():
            weight -= lr * velocity
        probed = probe.after(step, [gradient])
        assert (probed is None) == (step == 0)
    assert probed is not None
    return probed


@pytest.mark.parametrize("lr", [0.01, 0.5, 1.0, 1.5, 2.5])
def test_overshoot_is_rate_times_curvature_less_one(lr: float) -> None:
    probed = gradient_descent(torch.tensor([1.0], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64), lr)
    assert probed.overshoot == pytest.approx(lr - 1, abs=1e-12)


@pytest.mark.parametrize(("lr", "cosine"), [(0.5, 1.0), (1.5, -1.0)])
def test_cosine_tells_a_straight_walk_from_a_zigzag(lr: float, cosine: float) -> None:
    probed = gradient_descent(torch.ones(3, dtype=torch.float64), torch.arange(1.0, 4.0, dtype=torch.float64), lr)
    assert probed.step_cosine == pytest.approx(cosine, abs=1e-12)


def test_norms_are_those_of_the_second_step() -> None:
    start = torch.tensor([3.0, 4.0], dtype=torch.float64)
    probed = gradient_descent(torch.ones(2, dtype=torch.float64), start, 0.5)
    # w1 = start / 2 has length 2.5, and the step from it half of that.
    assert probed.update_norm == pytest.approx(1.25)
    assert probed.update_ratio == pytest.approx(0.5)
    assert probed.layers == [(1, "layer", 2.5, 2.5, 1.25, None, None)]


def test_a_walk_that_stands_still_has_no_cosine_and_no_overshoot() -> None:
    probed = gradient_descent(torch.ones(2), torch.zeros(2), 0.5)
    assert (probed.step_cosine, probed.overshoot, probed.update_norm, probed.update_ratio) == (None, None, 0.0, 0.0)


def test_products_against_plain_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    w, g, d, g1, d1 = ([torch.randn(n, generator=generator).double() for n in (3, 5)] for _ in range(5))
    wanted = [(w, w), (g, g), (d, d), (d1, d), (d1, d1), (g, d1), (g1, d1)]
    table = products(w, g, d, g1, d1)
    assert table.shape == (7, 2)
    assert table.dtype == torch.float64
    for row, (one, other) in zip(table.tolist(), wanted, strict=True):
        assert row == pytest.approx([float(a @ b) for a, b in zip(one, other, strict=True)])


def test_a_refused_step_voids_the_window() -> None:
    weight = nn.Parameter(torch.ones(2))
    probe = Probe(["w"], [weight], Budget(1.0))
    probe.before()
    assert probe.after(0, [torch.ones(2)]) is None
    assert probe.open
    probe.before()
    probe.cancel()
    assert not probe.open
    probe.before()
    assert probe.after(2, [torch.ones(2)]) is None  # a window begins anew


def test_parameters_without_a_gradient_close_the_window() -> None:
    probe = Probe(["a", "b"], [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))], Budget(1.0))
    probe.before()
    assert probe.after(0, [torch.ones(2)]) is None
    assert not probe.open


def test_the_budget_affords_its_share_and_no_more() -> None:
    budget = Budget(0.02, spent=0.0, started=time.perf_counter() - 1000.0)
    assert budget.affords(19.9)
    assert not budget.affords(21.0)
    budget.spent = 19.0
    assert not budget.affords(2.0)
    assert budget.measured_share() == pytest.approx(0.019, rel=1e-3)


def test_the_first_window_is_always_affordable_and_the_next_only_within_the_budget() -> None:
    weight = nn.Parameter(torch.ones(2))
    probe = Probe(["w"], [weight], Budget(0.0))
    assert probe.affords()
    for step in range(2):
        probe.before()
        probe.after(step, [torch.ones(2)])
    assert probe.cost > 0
    assert not probe.affords()


def test_activations_by_module_and_nothing_left_behind() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.zero_()
    x = torch.tensor([[3.0, -4.0], [0.0, -4.0]])
    found = activation_statistics(model, lambda: model(x))
    assert found["0"] == (pytest.approx(math.sqrt((9 + 16 + 16) / 4)), 0.25)
    assert found["1"] == found[""] == (pytest.approx(1.5), 0.75)
    assert not any(module._forward_hooks for module in model.modules())
