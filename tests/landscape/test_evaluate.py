"""Every way to evaluate gives the losses of a plain loop, the reference twin."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline._landscape.directions import Plane, random_plane
from fogline._landscape.evaluate import Mapped, choose
from fogline._landscape.in_turn import OneAtATime, SideBySide
from fogline._landscape.probe import Probe, curvature, open_probe

PLACES = [(0.0, 0.0), (0.3, -0.7), (-1.0, 0.2), (0.9, 0.2), (0.05, 1.0)]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(8 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        return self.head(self.pool(h + torch.relu(self.block(h))).flatten(1))


class Twice(nn.Module):
    """The first layer is called twice, once on what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


def images(rows: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 3, 6, 6, generator=generator), torch.randint(4, (rows,), generator=generator)


def rows(count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 5, generator=generator), torch.randint(4, (count,), generator=generator)


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4)
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 4))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))


def half_frozen() -> nn.Module:
    model = mlp()
    model[1].weight.requires_grad_(False)
    return model


CASES = {
    "cnn": (cnn, images),
    "residual": (Residual, images),
    "mlp": (mlp, rows),
    "twice": (Twice, rows),
    "batch norm": (normalised, images),
    "half frozen": (half_frozen, rows),
}
WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "channels last": {"last": True},
    "known": {"known": True},
    "all": {"last": True, "known": True},
}


def opened(name: str, loss: Any = None) -> tuple[Probe, Plane]:
    make, data = CASES[name]
    torch.manual_seed(0)
    task = fogline.Task(make(), loss or nn.CrossEntropyLoss(), data())
    probe = open_probe(task, task.model, 32, 0)
    return probe, random_plane(probe.weights, probe.shapes, 5)


def plain_loop(probe: Probe, plane: Plane) -> list[float]:
    """Load the weights of each place into a model, and call it."""
    model, found = copy.deepcopy(probe.objective.model), []
    named = dict(model.named_parameters())
    for a, b in PLACES:
        parts = torch.split(plane.origin + a * plane.first + b * plane.second, [p.numel() for p in probe.parameters])
        with torch.no_grad():
            for name, part in zip(probe.names, parts, strict=True):
                named[name].copy_(part.view_as(named[name]))
            inputs, targets = probe.batch
            found.append(float(nn.functional.cross_entropy(model(inputs), targets)))
    return found


# The tests below hold that the other pairs are refused.
PAIRS = [(name, way) for name in CASES for way in WAYS if not (name == "twice" and "known" in WAYS[way])]


@pytest.mark.parametrize(("name", "way"), PAIRS)
def test_one_at_a_time_gives_what_a_plain_loop_gives(name: str, way: str) -> None:
    probe, plane = opened(name)
    with probe.surroundings():
        assert OneAtATime(probe, plane, **WAYS[way]).losses(PLACES) == pytest.approx(plain_loop(probe, plane), rel=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_mapped_gives_what_a_plain_loop_gives(name: str) -> None:
    probe, plane = opened(name)
    with probe.surroundings():
        assert Mapped(probe, plane, 2).losses(PLACES) == pytest.approx(plain_loop(probe, plane), rel=2e-6)


def test_a_layer_that_is_called_twice_is_not_taken_for_known() -> None:
    probe, plane = opened("twice")
    with probe.surroundings(), pytest.raises(ValueError, match="several times"):
        OneAtATime(probe, plane, known=True)


class Counting(nn.Module):
    """Gives something else each time it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = mlp(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        grown: Tensor = self.inner(x) * self.calls
        return grown


def test_what_disagrees_with_the_plain_way_is_not_used() -> None:
    task = fogline.Task(Counting(), nn.CrossEntropyLoss(), rows())
    probe = open_probe(task, task.model, 32, 0)
    grid = [(a / 10, b / 10) for a in range(-5, 5) for b in range(-5, 5)]
    with probe.surroundings():
        chosen = choose(probe, random_plane(probe.weights, probe.shapes, 5), grid)
    assert chosen.way.name.startswith("one at a time")
    assert "gives the losses" in chosen.refused["one at a time, first layer computed once"]
    assert set(chosen.seconds).isdisjoint(chosen.refused)


def test_a_loss_that_draws_draws_the_same_at_every_place() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) + torch.randn(len(batch), 1)).square().mean()

    task = fogline.Task(nn.Linear(5, 1), fogline.on_batch(loss), rows()[0])
    probe = open_probe(task, task.model, 32, 0)
    plane = random_plane(probe.weights, probe.shapes, 5)
    with probe.surroundings():
        found = OneAtATime(probe, plane).losses([PLACES[1], PLACES[2], PLACES[1]])
        assert found[0] == found[2] != found[1]
        assert Mapped(probe, plane, 2).losses(PLACES[1:3]) == pytest.approx(found[:2], rel=1e-5)


def test_copies_side_by_side_give_what_one_gives() -> None:
    probe, plane = opened("residual")
    grid = [(a / 10, b / 10) for a in range(-3, 4) for b in range(-2, 3)]
    threads = torch.get_num_threads()
    with probe.surroundings():
        one = OneAtATime(probe, plane, last=True)
        beside = SideBySide([one, one.again(), one.again()])
        assert beside.losses(grid) == pytest.approx(one.losses(grid), rel=1e-6)
        assert beside.losses(grid[:1]) == one.losses(grid[:1])
    assert torch.get_num_threads() == threads


def test_normalisation_takes_the_statistics_of_the_probe_at_every_place() -> None:
    """A scale of the first layer that a normalisation takes away changes nothing, as it should."""
    probe, plane = opened("batch norm")
    grown = plane.origin.clone()
    grown[: 8 * 3 * 9 + 8] *= 7.0  # kernel and bias of the convolution before the normalisation
    with probe.surroundings():
        at, scaled = OneAtATime(probe, plane).losses_of([plane.origin, grown])
    assert scaled == pytest.approx(at, rel=1e-4)


def test_the_product_with_the_hessian_is_that_of_the_closed_form() -> None:
    X, y = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double(), torch.zeros(20, 1).double()
    model = nn.Linear(3, 1, bias=False).double()
    probe = open_probe(fogline.Task(model, nn.MSELoss(), (X, y)), model, 20, 0)
    vector = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    with probe.surroundings():
        assert torch.allclose(curvature(probe)(vector), 2 * X.T @ (X @ vector) / 20)


def test_the_probe_is_the_same_for_the_same_seed() -> None:
    task = fogline.Task(mlp(), nn.CrossEntropyLoss(), rows())
    first, again, other = (open_probe(task, task.model, 8, seed).batch[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first) == 8
