"""MuSGD against its equations, written out plainly, and through the engine."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fogline.descent.optimizers import build
from fogline.descent.own_optimizers.muon import orthogonalise
from fogline.descent.own_optimizers.musgd import MuSGD, orthogonal
from optimizer_cases import make_model, train

SHAPES = [(4, 3), (3, 4), (4, 4), (2, 12), (3, 4), (6, 2, 3, 3), (6, 2, 3, 3), (8, 1, 3, 3)]


def iterated(u: Tensor) -> Tensor:
    x = u.flatten(1) / u.norm()
    x = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.T if u.shape[0] > u[0].numel() else x).reshape(u.shape)


def twin(p: Tensor, g: Tensor, s: dict[str, Any], lr: float, wd: float, mu: float) -> Tensor:
    """One parameter at a time, in the order of the module's equations."""
    zero = torch.zeros_like(p)
    if p.ndim > 1:
        s["b"] = b = mu * s.get("b", zero) + (1 - mu) * g
        factor = math.sqrt(max(1.0, p.shape[-2] / p.shape[-1]))
        p = p - lr * 0.2 * factor * iterated(mu * b + (1 - mu) * g)
    d = g + (wd if p.ndim > 1 else 0.0) * p
    s["v"] = v = mu * s.get("v", zero) + d
    return p - lr * (d + mu * v)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_equal_to_its_equations_for_50_steps(dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=draws).to(dtype)) for shape in [*SHAPES, (5,)]]
    matrices = {"params": params[:-1], "use_muon": True, "weight_decay": 0.1}
    optimizer = MuSGD([matrices, {"params": params[-1:]}], lr=0.01, momentum=0.9)
    plain, states = [p.detach().clone() for p in params], [dict[str, Any]() for _ in params]
    for _ in range(50):
        gradients = [torch.randn(p.shape, generator=draws).to(dtype) for p in params]
        for p, g in zip(params, gradients, strict=True):
            p.grad = g
        optimizer.step()
        plain = [twin(p, g, s, 0.01, 0.1, 0.9) for p, g, s in zip(plain, gradients, states, strict=True)]
    for p, expected in zip(params, plain, strict=True):
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-9 if dtype == torch.float64 else 2e-4)


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (8, 15), (8, 16), (8, 200), (64, 576)])
def test_both_ways_of_iterating_give_the_same(rows: int, columns: int) -> None:
    draws = torch.Generator().manual_seed(1)
    matrices = torch.randn(3, rows, columns, generator=draws)
    torch.testing.assert_close(orthogonal(matrices), orthogonalise(matrices), rtol=0, atol=2e-5)


def test_directions_that_hardly_matter_come_out_alike() -> None:
    """Iterating with X X^T squares what is small: a direction of a ten-thousandth must still be right."""
    draws = torch.Generator().manual_seed(2)
    left, _ = torch.linalg.qr(torch.randn(6, 6, generator=draws))
    right, _ = torch.linalg.qr(torch.randn(40, 6, generator=draws))
    matrix = (left * torch.tensor([1.0, 0.3, 0.1, 1e-2, 1e-3, 1e-4])) @ right.mT
    exact = orthogonalise(matrix[None].double()).float()
    torch.testing.assert_close(orthogonal(matrix[None]), exact, rtol=0, atol=1e-3)


def test_large_matrices_are_off_by_less_than_the_docstring_says() -> None:
    draws = torch.Generator().manual_seed(3)
    matrices = torch.randn(1, 256, 384, generator=draws)
    off = (orthogonal(matrices) - orthogonalise(matrices, precision="float32")).abs().max().item()
    assert 0 < 0.2 * 0.01 * off < 1e-5


def test_what_is_no_matrix_takes_the_steps_of_sgd() -> None:
    ours, theirs = make_model(), make_model()
    one = MuSGD(ours.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    other = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True)
    train(ours, one, range(20))
    train(theirs, other, range(20))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_kernels_and_matrices_decay_and_are_orthogonalised_and_the_rest_is_not() -> None:
    groups = build(make_model(), "musgd", 0.01, weight_decay=5e-4).param_groups
    found = {name: (g["use_muon"], g["weight_decay"]) for g in groups for name in g["names"]}
    assert {name for name, (muon, _) in found.items() if muon} == {"0.weight", "4.weight", "6.weight"}
    assert all((decay == 5e-4) == muon for muon, decay in found.values())


def test_a_vector_in_a_group_of_matrices_is_refused() -> None:
    with pytest.raises(ValueError, match="two dimensions or more"):
        MuSGD([{"params": [nn.Parameter(torch.zeros(3))], "use_muon": True}])
    with pytest.raises(ValueError, match="expected precision of MuSGD"):
        MuSGD([nn.Parameter(torch.zeros(3))], precision="float7")
