"""The recipe of an optimizer, and the names of scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fogline.descent.optimizers import build
from fogline.plugins.following import held_out_name, is_number
from fogline.plugins.recipes import recipe_of

MADE = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.9), amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, eps=1e-6, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=0.9),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
}


@pytest.mark.parametrize("name", list(MADE))
def test_an_optimizer_is_made_again_with_the_same_options(name: str) -> None:
    model = nn.Linear(3, 2)
    optimizer = MADE[name](model.parameters())
    recipe = recipe_of(optimizer, model)
    assert recipe.optimizer == name
    again = build(model, recipe.optimizer, lr=0.1, weight_decay=recipe.weight_decay, options=recipe.options)
    group = optimizer.param_groups[0]
    for key in {"momentum", "nesterov", "betas", "eps", "amsgrad", "alpha"} & set(group):
        assert again.param_groups[0][key] == group[key], key
    assert max(g["weight_decay"] for g in again.param_groups) == group["weight_decay"]


def test_a_class_of_its_own_is_kept() -> None:
    class Own(torch.optim.SGD):
        pass

    model = nn.Linear(3, 2)
    recipe = recipe_of(Own(model.parameters(), lr=0.1, momentum=0.5), model)
    assert recipe.optimizer is Own
    assert recipe_of(Own(model.parameters(), lr=0.1), model, duration="5ep").duration == "5ep"


def test_ratios_are_those_at_the_top_of_the_schedule() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    groups = [{"params": model[0].parameters(), "lr": 0.2}, {"params": model[1].parameters(), "lr": 0.05}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda _: 0.0, lambda _: 0.5])
    assert recipe_of(optimizer, model).lr_scale == {"1.weight": 0.25, "1.bias": 0.25}


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, True), (0.5, True), (torch.tensor(1.0), True), (torch.ones(2), False), ("1", False), (True, False)],
)
def test_what_a_number_is(value: Any, number: bool) -> None:
    assert is_number(value) is number


def test_a_name_that_only_begins_like_held_out_stays() -> None:
    assert [held_out_name(name) for name in ("valence", "evaluation", "eval", "val_", "Val/loss")] == [
        "valence", "evaluation", "eval", "val_", "loss",
    ]  # fmt: skip
