"""The race: who runs, for how long, and whether the best may lie beyond the field."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

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


def raced(probes: Sequence[tuple[float, float]]) -> Race:
    made = [Probe(rate, [1.0, 1.0], [score]) for rate, score in probes]
    return Race(made, 2, 10.0, [1.0], together=True, why="", cost=0.0)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("budget", [60, 240, 1000])
def test_every_race_keeps_to_its_budget(small: bool, budget: int) -> None:
    for draws in (1, 2):
        found = race(course(small=small, draws=draws), 0.01, budget)
        assert found.cost <= budget
        assert found.together == small
        assert all(len(probe.losses) == found.steps for probe in found.probes)


def test_a_field_has_the_longest_probes_that_the_budget_pays_for() -> None:
    lengths = [race(course(), 0.01, budget).steps for budget in (60, 120, 200, 400, 1500)]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1] == LENGTHS[-1]
    assert len(race(course(), 0.01, 400).probes) >= TOGETHER


@pytest.mark.parametrize(
    ("scores", "end"), [((0.9, 0.5), "upper"), ((0.4, 0.5), "lower"), ((0.9, 0.4, 0.5), None), ((inf, inf), "lower")]
)
def test_an_end_is_open_where_it_is_the_best_of_the_field(scores: tuple[float, ...], end: str | None) -> None:
    assert raced([(10.0**k, score) for k, score in enumerate(scores)]).open_end == end
