from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from fogline.plots.rate import ceiling, rate_figure
from fogline.plots.theme import DARK, LIGHT, shades
from fogline.rate import Rate
from fogline.run import Run
from run_folders import make_run, measured_rate, race_evidence


def traces(figure: go.Figure) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def words(figure: go.Figure) -> str:
    return " ".join(annotation.text for annotation in figure.layout.annotations)


def evidence_with(**race: Any) -> dict[str, Any]:
    evidence = race_evidence()
    evidence["race"] |= race
    return evidence


def test_the_race_shows_every_probe_the_start_the_choice_and_its_interval() -> None:
    figure = rate_figure(0.05, (0.0025, 1.0), race_evidence())
    by_name = traces(figure)
    assert "0.05" in figure.layout.title.text
    assert list(by_name["probes"].x) == [0.001, 0.01, 0.1]
    assert list(by_name["probes"].y) == [0.95, 0.7, 0.4]
    assert set(by_name["before"].y) == {1.0}
    assert set(by_name["chosen"].x) == {0.05}
    assert (min(by_name["interval"].x), max(by_name["interval"].x)) == (0.0025, 1.0)
    assert figure.layout.xaxis.type == "log"


def test_lost_probes_and_far_too_high_ones_stand_at_the_top_edge() -> None:
    figure = rate_figure(0.05, (0.0025, 1.0), race_evidence())
    high = traces(figure)["too high"]
    assert list(high.x) == [1.0, 10.0]
    assert list(high.y) == [figure.layout.yaxis.range[1]] * 2
    assert list(high.customdata) == ["2e+09", "lost"]


def test_each_curve_has_the_colour_of_its_point_and_lost_ones_end() -> None:
    figure = rate_figure(0.05, (0.0025, 1.0), race_evidence())
    by_name = traces(figure)
    points = [*by_name["probes"].marker.color, *by_name["too high"].marker.color]
    assert points == [by_name[name].line.color for name in ("0.001", "0.01", "0.1", "1", "10")]
    assert list(by_name["10"].y) == [1.0, None, None]
    assert figure.layout.yaxis2.range[1] < 2


@pytest.mark.parametrize(("dark", "colours"), [(False, LIGHT), (True, DARK)])
def test_the_colours_are_those_of_the_look(dark: bool, colours: Any) -> None:
    figure = rate_figure(0.05, (0.0025, 1.0), race_evidence(), dark=dark)
    assert traces(figure)["chosen"].line.color == colours.third
    assert (shades(5, colours)[0], shades(5, colours)[-1]) == (colours.first, colours.second)
    assert figure.layout.font.color == colours.ink


@pytest.mark.parametrize(
    "race",
    [
        {"before": None},
        {"scores": [None] * 4 + [0.5]},
        {"scores": [-3.0, -4.0, -2.0, 1e300, None], "before": -1.0},
        {"scores": [0.0] * 5, "before": 0.0},
        {"scores": [1e-12, 1e-3, 1.0, 2.0, 3.0]},
        {"losses": [[None] * 3] * 5},
        {"rates": [0.1], "scores": [0.5], "losses": [[1.0]]},
    ],
)
def test_odd_races_can_be_drawn(race: dict[str, Any]) -> None:
    figure = rate_figure(1e-9, (1e-10, 1e-8), evidence_with(**race))
    for axis in (figure.layout.yaxis, figure.layout.xaxis):
        assert axis.range[0] < axis.range[1]
        assert np.isfinite(axis.range).all()
    assert len(figure.layout.xaxis.tickvals) <= 5
    json.loads(figure.to_json())


def test_a_race_without_any_finite_score_says_so() -> None:
    figure = rate_figure(0.1, (0.1, 0.1), evidence_with(scores=[None] * 5, before=None))
    assert not figure.data
    assert "finite" in words(figure)


def test_a_method_that_sets_its_own_step_says_so_in_words() -> None:
    rate = Rate(1.0, (1.0, 1.0), 0, {"rule": "the method finds its <own> step"})
    figure = rate.plot()
    assert not figure.data
    assert words(figure) == "The method finds its &lt;own&gt; step."
    assert figure.layout.yaxis.visible is False


def test_a_rate_draws_itself() -> None:
    assert traces(Rate(0.05, (0.0025, 1.0), 40, race_evidence()).plot(dark=True))["probes"]


def test_the_ceiling_keeps_rates_that_are_worth_telling_apart() -> None:
    assert ceiling(1.0, [0.9, 0.95, 0.99]) == 1.0
    assert ceiling(0.1, [0.11, 0.12, 5.0]) == 0.12  # nothing was gained: half of the field is shown
    assert ceiling(None, [0.5, None, 3.0]) == pytest.approx(1.75 + 0.6 * 1.25)


def test_a_run_shows_how_its_rate_was_measured(tmp_path: Path) -> None:
    run = Run.open(make_run(tmp_path / "run", resolved=measured_rate()))
    assert "probes" in traces(run.plot("rate"))


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"lr": 0.01}, "The learning rate was given: 0.01."),
        ({"lr": "auto"}, "The learning rate has not been measured yet."),
        ({}, "The learning rate was not measured."),
    ],
)
def test_a_run_whose_rate_was_not_measured_says_why(tmp_path: Path, recipe: dict[str, Any], said: str) -> None:
    figure = Run.open(make_run(tmp_path / "run", recipe=recipe, resolved={})).plot("rate")
    assert not figure.data
    assert words(figure) == said
