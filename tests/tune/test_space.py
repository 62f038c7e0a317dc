"""What a search may choose: written, read, refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fogline
from fogline._tune.plan import read_budget
from fogline._tune.space import Span, parse_dimension, read_space
from fogline.recipe import Recipe


def make_task(width: int = 8, *, depth: int = 1) -> fogline.Task:
    raise AssertionError("only its arguments are read")


@given(st.floats(1e-8, 1.0), st.floats(1.001, 1e6), st.floats(0, 1))
def test_a_logarithmic_range_is_even_in_factors(low: float, factor: float, share: float) -> None:
    span = fogline.log(low, low * factor)
    value = span.at(share)
    assert value in span
    assert math.log(value / low) == pytest.approx(share * math.log(span.high / low), abs=1e-9)


@given(st.integers(-50, 50), st.integers(1, 100), st.floats(0, 1))
def test_whole_ends_give_whole_numbers(low: int, width: int, share: float) -> None:
    value = fogline.between(low, low + width).at(share)
    assert isinstance(value, int)
    assert low <= value <= low + width


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fogline.log(0, 1), "above 0"),
        (lambda: fogline.log(1, 1e-3), "low end before the high one"),
        (lambda: fogline.between(0, math.inf), "finite"),
        (lambda: fogline.between("a", 1), "two numbers"),  # type: ignore[arg-type]
        (lambda: fogline.between(True, 2), "two numbers"),
    ],
)
def test_a_range_says_what_it_wants(make: object, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"batchsize": [1, 2]}, "did you mean 'batch_size'"),
        ({"widht": [1, 2]}, "did you mean 'width'"),
        ({"seed": [1, 2]}, "fix it in the recipe"),
        ({"duration": ["1ep", "2ep"]}, "fix it in the recipe"),
        ({"lr": [0.1, 0.2]}, "searched from the measured rate"),
        ({"batch_size": 32}, "a list of choices"),
        ({"batch_size": [32]}, "2 to 64 choices"),
        ({"batch_size": [32, 32]}, "that differ"),
        ({"batch_size": [32, 0.5]}, "space, 'batch_size': batch_size: expected a whole number"),
        ({"optimizer": ["adamw", "adamm"]}, "space, 'optimizer': unknown optimizer 'adamm'"),
        ({"weight_decay": fogline.between(-1, 1)}, "space, 'weight_decay'"),
        ({}, "at least one name"),
        ("lr", "a mapping of names"),
    ],
)
def test_a_space_that_does_not_fit_is_refused_in_words(space: object, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        read_space(space, Recipe(), make_task)  # type: ignore[arg-type]


def test_arguments_of_the_task_stand_beside_fields_of_the_recipe() -> None:
    space = read_space({"lr": "auto", "width": fogline.log(4, 64), "optimizer": ["adamw", "sgd"]}, Recipe(), make_task)
    assert space.arguments == ("width",)
    assert space.split({"width": 8, "optimizer": "sgd"}) == ({"optimizer": "sgd"}, {"width": 8})
    with pytest.raises(ValueError, match="give a function that makes the task"):
        read_space({"width": fogline.log(4, 64)}, Recipe(), None)


def test_the_command_line_writes_the_same_space() -> None:
    assert parse_dimension("lr=log(1e-4,1e-1)") == ("lr", Span(1e-4, 1e-1, logarithmic=True))
    assert parse_dimension("width=between(4, 64)") == ("width", Span(4, 64))
    assert parse_dimension("clip=[none, 1.0]") == ("clip", [None, 1.0])
    for text in ("lr", "lr=log(1)", "lr=exp(1,2)", "=auto"):
        with pytest.raises(ValueError, match="expected NAME=log"):
            parse_dimension(text)


@pytest.mark.parametrize("budget", [0, -1, "3ep", "1e4ex"])
def test_a_budget_that_counts_nothing_sensible_is_refused(budget: object) -> None:
    with pytest.raises(ValueError, match="budget: expected"):
        read_budget(budget)  # type: ignore[arg-type]
