"""The map of a table of examples is coloured by anything, and few enough points are sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fogline.plots.example_map import MOST_POINTS, axes, colours_of, example_figure, example_map_figure
from fogline.record.store import Table


def table(count: int = 30, **more: Any) -> Table:
    random = np.random.default_rng(0)
    columns = {
        "example": np.arange(count),
        "target": np.arange(count) % 3,
        "predicted": np.arange(count) % 3,
        "loss": random.random(count).astype(np.float32),
        "confidence": random.random(count).astype(np.float32),
        "variability": random.random(count).astype(np.float32),
        "correct": random.random(count),
        "label_error": random.random(count),
        "edit": np.array(["", "drop", "relabel"] * (count // 3 + 1), dtype=object)[:count],
        "target_class": np.array(["<b>", "x", "y"] * (count // 3 + 1), dtype=object)[:count],
    }
    return Table(columns | more)


def test_the_axes_are_those_that_were_recorded() -> None:
    assert axes(table()) == ("variability", "confidence")
    assert axes(Table({"gradient_norm": np.ones(2), "loss": np.ones(2)})) == ("gradient_norm", "loss")
    assert axes(Table({"loss": np.ones(2)})) is None
    assert not example_map_figure(Table({"loss": np.ones(2)}), "loss").data


def test_it_can_be_coloured_by_every_number_and_by_what_was_decided() -> None:
    offered = colours_of(table(my_score=np.ones(30)))
    assert offered[:2] == ["label_error", "correct"]
    assert "my_score" in offered
    assert "edit" in offered
    assert not {"example", "edit_label", "target_class"} & set(offered)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("colour", ["label_error", "correct", "loss", "target", "predicted", "edit"])
def test_every_example_is_drawn_once_at_its_place(colour: str, dark: bool) -> None:
    examples = table()
    figure = example_map_figure(examples, colour, dark=dark)
    drawn = np.concatenate([trace.customdata for trace in figure.data])
    assert sorted(drawn) == list(range(30))
    across = np.concatenate([trace.x for trace in figure.data])
    up = np.concatenate([trace.y for trace in figure.data])
    np.testing.assert_allclose(across, examples["variability"][drawn])
    np.testing.assert_allclose(up, examples["confidence"][drawn])


def test_groups_are_named_as_plain_text() -> None:
    figure = example_map_figure(table(), "target", classes=["<b>one</b>", "two", "three"])
    assert [trace.name for trace in figure.data] == ["&lt;b&gt;one&lt;/b&gt;", "two", "three"]
    assert [trace.name for trace in example_map_figure(table(), "edit").data] == ["none", "drop", "relabel"]


def test_of_many_classes_the_most_frequent_are_told_apart() -> None:
    targets = np.concatenate([np.zeros(50), np.arange(100) % 40]).astype(int)
    figure = example_map_figure(table(150, target=targets), "target")
    assert len(figure.data) == 10
    assert figure.data[-1].name == "others"
    assert figure.data[0].name == "0"
    assert sum(len(trace.x) for trace in figure.data) == 150


def test_what_was_never_recorded_is_not_drawn() -> None:
    confidence = np.full(30, 0.5)
    confidence[7] = np.nan
    (trace,) = example_map_figure(table(confidence=confidence), "loss").data
    assert 7 not in trace.customdata
    assert len(trace.x) == 29


@pytest.mark.parametrize("colour", ["label_error", "target"])
def test_a_million_examples_send_few_points_and_the_likeliest_errors_are_among_them(colour: str) -> None:
    count = 1_000_000
    error = np.zeros(count)
    error[123_457:123_900] = 0.9
    figure = example_map_figure(table(count, label_error=error), colour)
    drawn = np.concatenate([trace.customdata for trace in figure.data])
    assert 3000 < len(drawn) <= MOST_POINTS
    assert set(range(123_457, 123_900)) <= set(drawn.tolist())
    assert "of 1,000,000" in figure.layout.title.text
    assert len(figure.to_json()) < 500_000


def test_one_example_over_the_epochs() -> None:
    curves = {"confidence": np.array([0.2, 0.4, 0.9]), "correct": np.array([0.0, np.nan, 1.0])}
    figure = example_figure(np.array([0, 1, 3]), curves)
    right, wrong = figure.data[1:]
    assert (list(right.x), list(wrong.x)) == ([3], [0])
    assert list(figure.data[0].y) == [0.2, 0.4, 0.9]
    assert not example_figure(np.array([0]), {}).data
