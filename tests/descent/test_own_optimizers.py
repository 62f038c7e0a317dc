"""Our own optimizers: equal to their equations, to PyTorch's Muon, and to themselves in pieces."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fogline.descent.optimizers import build, set_lr, state_tensors, to_eval, to_train
from fogline.descent.own_optimizers import Lion, Muon, Prodigy, ScheduleFreeAdamW
from fogline.descent.own_optimizers.common import cache_blocks
from optimizer_cases import assert_same_bits, bits, make, make_model, train

# Reference twins: the equations of each method, one parameter and one line at a time, in float64.


def lion_twin(p: Tensor, g: Tensor, s: dict[str, Any], lr: float, wd: float, _: int) -> Tensor:
    m = s.setdefault("m", torch.zeros_like(p))
    s["m"] = 0.99 * m + 0.01 * g
    return p - lr * (torch.sign(0.9 * m + 0.1 * g) + wd * p)


def schedule_free_twin(y: Tensor, g: Tensor, s: dict[str, Any], lr: float, wd: float, t: int) -> Tensor:
    x, z, v, total = s.get("x", y), s.get("z", y), s.get("v", torch.zeros_like(y)), s.get("total", 0.0) + lr**2
    v = 0.999 * v + 0.001 * g**2
    z = z - lr * (g / ((v / (1 - 0.999**t)).sqrt() + 1e-8) + wd * y)
    c = lr**2 / total
    x = (1 - c) * x + c * z
    s |= {"x": x, "z": z, "v": v, "total": total}
    return 0.1 * z + 0.9 * x


def muon_twin(p: Tensor, g: Tensor, s: dict[str, Any], lr: float, wd: float, _: int) -> Tensor:
    s["b"] = b = 0.95 * s.get("b", torch.zeros_like(p)) + 0.05 * g
    x = 0.95 * b + 0.05 * g
    x = x / x.norm()
    for _i in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return p - lr * wd * p - lr * 0.2 * max(p.shape) ** 0.5 * x


TWINS: list[tuple[type[torch.optim.Optimizer], Callable[..., Tensor]]] = [
    (Lion, lion_twin),
    (ScheduleFreeAdamW, schedule_free_twin),
    (Muon, muon_twin),
]
SHAPES = [(4, 3), (3, 4), (4, 4), (3, 4)]


def quadratic(params: list[Tensor], step: int) -> list[Tensor]:
    """Gradients of a noisy ill-conditioned quadratic."""
    generator = torch.Generator().manual_seed(step)
    noise = (torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params)
    return [
        torch.arange(1, p.numel() + 1, dtype=p.dtype).view_as(p) * p + n for p, n in zip(params, noise, strict=True)
    ]


def starts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


@pytest.mark.parametrize(("cls", "twin"), TWINS)
def test_equal_to_its_equations_for_100_steps(cls: type[torch.optim.Optimizer], twin: Callable[..., Tensor]) -> None:
    params = [nn.Parameter(start) for start in starts()]
    group: dict[str, Any] = {"params": params}
    if cls is Muon:
        group["stacks"] = [(1, *shape) for shape in SHAPES]
    optimizer = cls([group], lr=0.01, weight_decay=0.1)  # type: ignore[call-arg]
    expected, states = starts(), [{} for _ in params]  # type: ignore[var-annotated]
    for step in range(100):
        lr = 0.01 * (1 + step % 7)
        set_lr(optimizer, lr)
        for p, g in zip(params, quadratic([p.detach() for p in params], step), strict=True):
            p.grad = g
        optimizer.step()
        grads = quadratic(expected, step)
        expected = [twin(p, g, s, lr, 0.1, step + 1) for p, g, s in zip(expected, grads, states, strict=True)]
    for p, e in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), e, rtol=1e-8, atol=1e-10)


def test_prodigy_is_equal_to_its_equations_for_100_steps() -> None:
    params = [nn.Parameter(start) for start in starts()]
    optimizer = Prodigy(params, weight_decay=0.1, d0=1e-3)
    x = x0 = torch.cat([p.detach().flatten() for p in params])
    sizes = [p.numel() for p in params]
    m, v, s = (torch.zeros_like(x) for _ in range(3))
    r, d, root = 0.0, 1e-3, 0.999**0.5
    for step in range(100):
        lr = 1.0 / (1 + step % 3)
        set_lr(optimizer, lr)
        for p, g in zip(params, quadratic([p.detach() for p in params], step), strict=True):
            p.grad = g
        optimizer.step()
        parts = [part.view(shape) for part, shape in zip(x.split(sizes), SHAPES, strict=True)]
        g = torch.cat([part.flatten() for part in quadratic(parts, step)])
        m = 0.9 * m + 0.1 * d * g
        v = 0.999 * v + 0.001 * d**2 * g**2
        r = root * r + (1 - root) * lr * d**2 * float(g @ (x0 - x))
        s = root * s + (1 - root) * lr * d**2 * g
        x = x - lr * d * (m / (v.sqrt() + d * 1e-8) + 0.1 * x)
        d = max(d, r / float(s.abs().sum()))
    assert d > 1e-2
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in params]), x, rtol=1e-8, atol=1e-10)


def test_muon_agrees_with_pytorch_on_matrices_and_with_adamw_on_the_rest() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 3))
    twin = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 3))
    twin.load_state_dict(model.state_dict())
    optimizer = build(model, "muon", 0.01, weight_decay=0.1, options={"precision": "bfloat16"})
    hidden = [twin[i].weight for i in range(3)]
    rest = [{"params": [twin[3].weight]}, {"params": [twin[i].bias for i in range(4)], "weight_decay": 0.0}]
    others = (
        torch.optim.Muon(hidden, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.01, weight_decay=0.1, fused=True),
    )
    for step in range(20):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        # The twin gets the same gradients: bfloat16 would let two runs part at the first rounding.
        model.zero_grad()
        model(x).square().mean().backward()
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            theirs.grad = ours.grad
        optimizer.step()
        for other in others:
            other.step()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        tolerance = 5e-3 if ours.ndim == 2 and not name.startswith("3") else 1e-6
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_muon_orthogonalises_kernels_of_any_layout() -> None:
    weights = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = make_model().to(memory_format=layout)
        optimizer = make("muon", model)
        assert "0.weight" in optimizer.param_groups[0]["names"]
        train(model, optimizer, range(3))
        weights.append(model[0].weight.detach())
    torch.testing.assert_close(*weights)


def test_schedule_free_changes_between_its_two_points_bit_for_bit() -> None:
    model, twin = make_model(), make_model()
    optimizer, other = make("schedule_free", model), make("schedule_free", twin)
    for step in range(6):
        train(model, optimizer, range(step, step + 1))
        train(twin, other, range(step, step + 1))
        to_eval(other)
        to_eval(other)
        assert bits(twin[4].weight) == bits(state_tensors(optimizer)["4.weight/x"])
        with pytest.raises(RuntimeError, match="to_train first"):
            other.step()
        to_train(other)
    assert_same_bits(model, twin)


def test_the_two_points_are_one_for_every_other_optimizer() -> None:
    model, twin = make_model(), make_model()
    optimizer = make("adamw", model)
    to_eval(optimizer)
    to_train(optimizer)
    assert_same_bits(model, twin)


@pytest.mark.parametrize("cls", [Lion, ScheduleFreeAdamW, Prodigy])
def test_cache_blocks_change_nothing(cls: type[torch.optim.Optimizer]) -> None:
    results = []
    for transposed in (False, True):
        generator = torch.Generator().manual_seed(0)
        values = [torch.randn(600, 500, generator=generator, dtype=torch.float64), torch.ones(7, dtype=torch.float64)]
        params = [nn.Parameter(v.t().contiguous().t() if transposed and v.ndim == 2 else v) for v in values]
        assert params[0].is_contiguous() != transposed
        optimizer = cls(params, lr=0.01, weight_decay=0.1)  # type: ignore[call-arg]
        for _ in range(3):
            for p in params:
                p.grad = torch.sin(p.detach())
            optimizer.step()
        results.append([p.detach().contiguous() for p in params])
    for split, whole in zip(*results, strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-10, atol=1e-12)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 50))
def test_cache_blocks_hold_everything_once_in_order(sizes: list[int], limit: int) -> None:
    values = list(torch.arange(sum(sizes)).split(sizes))
    blocks = list(cache_blocks(values, [-value for value in values], limit=limit))
    assert torch.equal(torch.cat([tensor for left, _ in blocks for tensor in left]), torch.arange(sum(sizes)))
    for left, right in blocks:
        assert all(torch.equal(a, -b) for a, b in zip(left, right, strict=True))
        assert sum(len(tensor) for tensor in left) <= max(limit, 0) or sum(sizes) <= limit


def test_our_optimizers_reject_sparse_gradients() -> None:
    model = nn.Embedding(5, 2, sparse=True)
    optimizer = make("lion", model)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="received a sparse one"):
        optimizer.step()
