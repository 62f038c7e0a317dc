from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fogline.plots.layers import layer_maps, layers_figure, shortened
from fogline.plots.reading import columns
from fogline.run import Run
from run_folders import add_layers, make_run


def test_a_map_has_the_value_of_each_layer_at_each_step_in_the_order_of_the_model(tmp_path: Path) -> None:
    names = ["stem", "10", "2", ""]  # not in the order of the alphabet
    run = Run.open(add_layers(make_run(tmp_path / "run"), names, steps=[5, 30]))
    steps, found, maps = layer_maps(columns(run, "layers"))
    assert (steps, found) == ([5, 30], names)
    np.testing.assert_allclose(maps["update / weight"], [[0.01, 0.01], [0.02, 0.02], [0.03, 0.03], [0.04, 0.04]])
    np.testing.assert_array_equal(maps["share of zeros"], np.full((4, 2), 0.25))


def test_a_layer_that_was_not_probed_at_a_step_is_a_gap(tmp_path: Path) -> None:
    folder = add_layers(make_run(tmp_path / "run"), ["a"], steps=[0, 10])
    run = Run.open(add_layers(folder, ["b"], steps=[10]))
    _, _, maps = layer_maps(columns(run, "layers"))
    assert np.isnan(maps["weight norm"]).tolist() == [[False, False], [True, False]]


def test_sixty_layers_over_many_steps_stay_small_and_each_has_its_name(tmp_path: Path) -> None:
    names = [f"transformer.encoder.layers.{k}.attention.output.dense" for k in range(60)]
    figure = layers_figure(Run.open(add_layers(make_run(tmp_path / "run"), names, steps=range(0, 4000, 10))))
    labels = figure.data[0].y
    assert len(set(labels)) == 60
    assert max(len(label) for label in labels) <= 18
    assert figure.layout.height / 60 > 12  # pixels of a row
    assert len(figure.data[0].x) <= 120
    assert len(figure.to_json()) < 600_000


def test_the_menu_shows_one_map_at_a_time(tmp_path: Path) -> None:
    figure = layers_figure(Run.open(add_layers(make_run(tmp_path / "run"), ["0", "2"])))
    assert [trace.visible for trace in figure.data] == [True, False, False, False, False]
    for k, button in enumerate(figure.layout.updatemenus[0].buttons):
        assert button.label == figure.data[k].name
        assert [other for other, shown in enumerate(button.args[0]["visible"]) if shown] == [k]


@pytest.mark.parametrize(
    "names", [["a" * 40 + "x", "a" * 40 + "y"], ["m.weight", "n.weight"], ["one.two.three.four.five.six"] * 2, [""]]
)
def test_shortened_names_stay_apart(names: list[str]) -> None:
    assert len(set(shortened(names))) == len(names)
