"""Recipes and durations: what is read is what was written, and what cannot be used is refused at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fogline
from fogline import Duration, Recipe
from fogline import recipe as recipe_module

_RATES = st.floats(1e-12, 1e3)
RECIPES = st.builds(
    Recipe,
    optimizer=st.sampled_from(["auto", *recipe_module.OPTIMIZERS]) | st.just(torch.optim.Adafactor),
    lr=st.just("auto") | _RATES,
    batch_size=st.sampled_from(["auto", "full"]) | st.integers(1, 10**6),
    duration=st.builds(
        lambda value, unit: f"{value:g}{unit}", st.floats(1e-3, 1e6), st.sampled_from([*recipe_module.UNITS])
    ),
    schedule=st.sampled_from(["auto", *recipe_module.SCHEDULES]),
    warmup=st.just("auto") | st.floats(0, 0.5) | st.integers(0, 1000),
    weight_decay=st.none() | st.floats(0, 1),
    options=st.dictionaries(st.sampled_from(["eps", "momentum"]), st.floats(0, 1)) | st.just({"betas": (0.9, 0.95)}),
    clip=st.none() | st.just("adaptive") | _RATES,
    accumulate=st.integers(1, 64),
    ema=st.none() | st.floats(0.1, 0.999),
    precision=st.sampled_from(recipe_module.PRECISIONS),
    seed=st.integers(0, 2**63),
    shuffle=st.booleans(),
    patience=st.none() | st.integers(1, 100),
    step=st.sampled_from(recipe_module.STEPS),
)


@given(RECIPES)
def test_a_recipe_comes_back_from_json_and_toml(recipe: Recipe) -> None:
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe.from_toml(recipe.to_toml()) == recipe


@given(st.floats(0.01, 1e5), st.sampled_from(["ep", "st", "ex"]), st.integers(1, 4096), st.integers(1, 10**6))
def test_steps_of_a_duration(value: float, unit: str, batch: int, examples: int) -> None:
    steps = Duration(value, unit).steps(batch, examples)
    per_epoch = math.ceil(examples / batch)
    exact = {"ep": value * per_epoch, "st": value, "ex": value / batch}[unit]
    assert steps is not None
    assert steps >= 1
    assert exact <= steps < exact + 1


def test_durations_in_time_have_seconds_and_no_steps() -> None:
    assert Duration.parse("5min").seconds == 300
    assert Duration.parse("1.5h").seconds == 5400
    assert Duration.parse("10s").steps(32, 100) is None


def test_an_epoch_of_a_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="1000st"):
        Duration.parse("3ep").steps(32, None)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("20", ValueError, "20ep"),
        (20, TypeError, "unit"),
        ("20eps", ValueError, "did you mean 'ep'"),
        ("-3ep", ValueError, "number and a unit"),
        ("0st", ValueError, "positive"),
        ("1e999st", ValueError, "positive"),
    ],
)
def test_durations_that_are_none(text: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("field", "value", "error", "says"),
    [
        ("optimizer", "adamm", ValueError, "did you mean"),
        ("optimizer", 3, TypeError, "name or class"),
        ("schedule", "cosin", ValueError, "did you mean 'cosine'"),
        ("precision", "half", ValueError, "precision"),
        ("step", "compile", ValueError, "did you mean 'compiled'"),
        ("lr", 0.0, ValueError, "above 0"),
        ("lr", "high", TypeError, "'auto'"),
        ("lr", math.nan, ValueError, "received nan"),
        ("batch_size", 0, ValueError, "at least 1"),
        ("batch_size", 2.5, TypeError, "whole number"),
        ("batch_size", True, TypeError, "whole number"),
        ("clip", -1.0, ValueError, "above 0"),
        ("ema", 1.0, ValueError, "below 1"),
        ("patience", 0, ValueError, "at least 1"),
        ("seed", -1, ValueError, "at least 0"),
        ("watch", 1.0, ValueError, "below 1"),
        ("duration", "20", ValueError, "20ep"),
        ("validate_every", "auto", ValueError, "number and a unit"),
    ],
)
def test_fields_that_cannot_be_used(field: str, value: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Recipe(**{field: value})


def test_an_unknown_field_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="did you mean 'batch_size'"):
        Recipe().replace(batchsize=3)


def test_an_optimizer_that_was_made_already_is_refused_with_its_class() -> None:
    made = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(TypeError, match=r"torch\.optim\.SGD"):
        Recipe(optimizer=made)  # type: ignore[arg-type]


def test_the_names_of_a_recipe_are_those_of_the_engine() -> None:
    assert set(recipe_module.OPTIMIZERS) == set(fogline.OPTIMIZERS)
