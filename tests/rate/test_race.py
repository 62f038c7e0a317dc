"""The race: who runs, for how long, and what is kept of the shorter rungs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from fogline import Recipe
from fogline.data.source import InMemory
from fogline.descent.batches import Batches
from fogline.descent.objective import Objective
from fogline.rate.race import LENGTHS, TOGETHER, Course, Probe, Race, race


def course(*, small: bool = True, draws: int = 1) -> Course:
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    y = x @ torch.randn(4, 1) + 0.1 * torch.randn(256, 1)
    batches = Batches(InMemory((x[:192], y[:192])), 32)
    held_out = [(x[192:224], y[192:224]), (x[224:], y[224:])]
    recipe = Recipe(optimizer="momentum", batch_size=32)
    return Course(Objective(nn.Linear(4, 1), nn.MSELoss()), batches, recipe, held_out, small, draws, lambda: None)


def raced(probes: Sequence[tuple[float, float]], earlier: Sequence[float] = ()) -> Race:
    made = [Probe(rate, [1.0, 1.0], [score]) for rate, score in probes]
    before = [Probe(rate, [1.0], [1.0]) for rate in earlier]
    return Race(made, 2, before, 10.0, [1.0], together=True, why="", cost=0.0)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("budget", [60, 240, 1000])
def test_every_race_keeps_to_its_budget(small: bool, budget: int) -> None:
    for draws in (1, 2):
        found = race(course(small=small, draws=draws), 0.01, budget)
        assert found.cost <= budget
        assert found.together == small
        assert small or not found.earlier
        assert all(len(probe.losses) == found.steps for probe in found.probes)


def test_while_the_budget_lasts_the_better_half_goes_on_for_twice_as_long() -> None:
    found = race(course(), 0.01, 1500)
    assert found.steps == 4 * LENGTHS[-1]
    lengths = [len(probe.losses) for probe in found.earlier]
    assert lengths == [LENGTHS[-1]] * TOGETHER + [2 * LENGTHS[-1]] * (TOGETHER // 2)
    field, half = found.earlier[:TOGETHER], found.earlier[TOGETHER:]
    assert min(field, key=lambda probe: probe.score).rate in [probe.rate for probe in half]
    assert min(half, key=lambda probe: probe.score).rate in [probe.rate for probe in found.probes]
    assert found.best.score < 0.1 * found.first


def test_a_small_budget_has_one_rung() -> None:
    found = race(course(), 0.01, 200)
    assert found.earlier == []
    assert found.steps in LENGTHS


def test_an_end_is_open_only_where_no_rate_beyond_it_was_tried() -> None:
    falling = [(0.1, 0.9), (1.0, 0.5)]
    assert raced(falling).open_end == "upper"
    assert raced(falling, earlier=[0.1, 1.0]).open_end == "upper"
    assert raced(falling, earlier=[1.0, 10.0]).open_end is None
    assert raced(falling, earlier=[1.0, 10.0]).won_at == "upper"
    assert raced([(0.1, 0.4), (1.0, 0.5)], earlier=[0.01]).open_end is None
