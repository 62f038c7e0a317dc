"""Rows that were scaled each by itself in one of two sets of rows, and rows that are alike for other reasons."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.causes.data.one_by_one import scaled_one_by_one
from fogline.doctor.causes.data.split import train_valid_mismatch
from fogline.doctor.examination import Examination


def waves(count: int, seed: int, *shape: int) -> Tensor:
    """Rows of a level, a size and a phase of their own, (count, *shape); time is the last axis."""
    draw = torch.Generator().manual_seed(seed)
    level, size, phase = (torch.rand(count, *shape[:-1], 1, generator=draw) for _ in range(3))
    time = torch.arange(shape[-1]) / shape[-1]
    noise = 0.1 * torch.randn(count, *shape, generator=draw)
    return 3 * level + (0.5 + size) * (torch.sin(6.28 * (time + phase)) + noise)


def standard(x: Tensor, *axes: int, correction: int = 1, small: float = 0.0) -> Tensor:
    deviation = x.std(axes, correction=correction, keepdim=True)
    return (x - x.mean(axes, keepdim=True)) / (deviation + small)


def to_range(x: Tensor, *axes: int) -> Tensor:
    least = x.amin(axes, keepdim=True)
    return (x - least) / (x.amax(axes, keepdim=True) - least)


SCALED: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "rows": ((24,), lambda x: standard(x, 1)),
    "rows, the other deviation": ((24,), lambda x: standard(x, 1, correction=0)),
    "rows, a small number added": ((24,), lambda x: standard(x, 1, small=1e-5)),
    "series, by channel": ((3, 24), lambda x: standard(x, 2)),
    "long series, by channel": ((2, 800), lambda x: standard(x, 2)),
    "series, as a whole": ((3, 24), lambda x: standard(x, 1, 2)),
    "pictures": ((2, 8, 8), lambda x: standard(x, 1, 2, 3)),
    "pictures, by channel": ((2, 8, 8), lambda x: standard(x, 2, 3)),
    "range": ((24,), lambda x: to_range(x, 1)),
    "range on both sides of zero": ((24,), lambda x: 2 * to_range(x, 1) - 1),
    "length": ((24,), lambda x: F.normalize(x, dim=1)),
}


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("turned", [False, True])
def test_one_of_two_sets_is_scaled(name: str, turned: bool) -> None:
    shape, scale = SCALED[name]
    train, held = waves(60, 0, *shape), waves(30, 1, *shape)
    assert scaled_one_by_one(train, held) is None
    assert scaled_one_by_one(scale(train), scale(held)) is None
    found = scaled_one_by_one(*((train, scale(held)) if turned else (scale(train), held)))
    assert found is not None
    assert found.cause == "train_valid_mismatch"
    assert found.proof
    edit, patch = found.remedies[0].on_model, found.remedies[0].patch
    assert edit is not None
    model = edit(nn.Identity())
    assert torch.allclose(model(held), scale(held), atol=2e-4)
    assert torch.allclose(model(scale(held)), scale(held), atol=2e-4)
    known = {"X": held.clone()}
    exec(patch, known)
    assert torch.allclose(known["X"], scale(held), atol=2e-4)


def one_hot(count: int) -> Tensor:
    return F.one_hot(torch.arange(count) % 12, 12).float()


def pictures(count: int, seed: int) -> Tensor:
    """Values of 0 and of 1 are in each."""
    x = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (2 * x - 0.5).clamp(0, 1)


ALIKE: dict[str, tuple[Tensor, Tensor]] = {
    "one mark a row": (one_hot(60), waves(30, 1, 12)),
    "marks and other marks": (one_hot(60), 3 * one_hot(30)),
    "rows of one number": (torch.arange(60.0)[:, None].expand(60, 12), waves(30, 1, 12)),
    "few numbers a row": (standard(waves(60, 0, 6), 1), waves(30, 1, 6)),
    "pictures in other units": (pictures(60, 0), 255 * pictures(30, 1)),
    "columns scaled with the numbers of the training rows": (
        standard(waves(60, 0, 24), 0),
        waves(30, 1, 24),
    ),
    "few held-out rows": (standard(waves(60, 0, 24), 1), waves(5, 1, 24)),
    "some training rows only": (
        torch.cat([standard(waves(50, 0, 24), 1), waves(10, 2, 24)]),
        waves(30, 1, 24),
    ),
    "a larger number added to what held-out rows are divided by": (
        standard(waves(60, 0, 24), 1),
        standard(waves(30, 1, 24), 1, small=0.02),
    ),
    "another deviation of the held-out rows": (
        standard(waves(60, 0, 24), 1),
        standard(waves(30, 1, 24), 1, correction=0),
    ),
    "rows of one level and size": (
        standard(torch.randn(60, 2000), 1),
        torch.randn(30, 2000),
    ),
    "ranks": (torch.rand(60, 12).argsort(1).float(), torch.rand(30, 12).argsort(1).float()),
}


@pytest.mark.parametrize("name", ALIKE)
def test_rows_that_are_alike(name: str) -> None:
    assert scaled_one_by_one(*ALIKE[name]) is None


def test_rows_without_a_scale_among_others() -> None:
    """Silence has no deviation: such rows stay zero, and are no reason to doubt the others."""
    train, held = standard(waves(60, 0, 24), 1), waves(30, 1, 24)
    train[::10] = 0
    found = scaled_one_by_one(train, held)
    assert found is not None
    assert found.remedies[0].on_model is not None
    assert bool(torch.isfinite(found.remedies[0].on_model(nn.Identity())(train)).all())


def task(*, scale: bool) -> fogline.Task:
    def phase(x: Tensor) -> Tensor:
        return (x[:, :12].mean(1, keepdim=True) > x[:, 12:].mean(1, keepdim=True)).float()

    x, held = waves(300, 0, 24), waves(100, 1, 24)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 1))
    train = standard(x, 1) if scale else x
    return fogline.Task(
        model, nn.BCEWithLogitsLoss(), (train, phase(x)), (8 * held + 40 if scale else held, phase(held))
    )


def test_the_report_of_windows_scaled_one_by_one() -> None:
    recipe = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=50, duration="20ep")
    report = fogline.diagnose(task(scale=True), recipe)
    assert report.findings[0].cause == "train_valid_mismatch"
    assert report.remedies
    assert "whatever the model is used on" in str(report)
    assert train_valid_mismatch(Examination(open_case(task(scale=False), recipe))) is None
