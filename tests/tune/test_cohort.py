"""Trials in one program beside the same trials by themselves."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import nn

from fogline.descent.population import InTurn, Together
from fogline.descent.prepare import Start, begin
from fogline.recipe import Recipe
from fogline.task import Task

RATES, DECAYS = [0.003, 0.03, 0.01], [0.0, 0.3, 0.05]


def started(optimizer: str) -> Start:
    torch.manual_seed(3)
    inputs = torch.randn(60, 5, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(5, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    task = Task(model, nn.MSELoss(), (inputs, inputs.prod(1, keepdim=True)))
    return begin(task, Recipe(optimizer=optimizer, batch_size=20, device="cpu", duration="20st"))


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "momentum", "nesterov"])
def test_each_member_decays_as_if_it_trained_alone(optimizer: str) -> None:
    start = started(optimizer)
    recipe = start.resolved.recipe
    together = Together(start.objective, recipe, 3, decays=DECAYS)
    alone = [InTurn(start.objective, recipe.replace(weight_decay=decay), 1, start.batches) for decay in DECAYS]
    for number, batch in enumerate(islice(start.batches.stream(0), 20)):
        together.step(number, batch, RATES)
        for one, rate in zip(alone, RATES, strict=True):
            one.step(number, batch, [rate])
    for k, one in enumerate(alone):
        torch.testing.assert_close(weights(together.member(k)), weights(one.member(0)), rtol=0, atol=1e-10)


def test_a_decay_of_its_own_is_refused_where_it_is_not_known_how() -> None:
    start = started("lion")
    with pytest.raises(ValueError, match="a decay of each member's own, received 'lion'"):
        Together(start.objective, start.resolved.recipe, 2, decays=[0.0, 0.1])


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_members_that_stay_go_on_as_if_the_others_had_never_been(optimizer: str) -> None:
    start = started(optimizer)
    recipe = start.resolved.recipe.replace(clip="adaptive")
    three = Together(start.objective, recipe, 3, decays=DECAYS)
    two = Together(start.objective, recipe, 2, decays=[DECAYS[2], DECAYS[1]])
    for number, batch in enumerate(islice(start.batches.stream(0), 20)):
        if number == 7:
            three.keep([2, 1])
        three.step(number, batch, RATES if number < 7 else [RATES[2], RATES[1]])
        two.step(number, batch, [RATES[2], RATES[1]])
    for k in range(2):
        torch.testing.assert_close(weights(three.member(k)), weights(two.member(k)), rtol=0, atol=1e-10)
