from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fogline.plots import CAPTIONS, FIGURES, figures_of
from fogline.plots.theme import logarithmic
from fogline.record.store import Store
from fogline.run import Run
from fogline.verdict import Verdict
from run_folders import add_findings, finding, full_run, make_run, noisy_losses


def words(figure) -> str:
    return " ".join(annotation.text for annotation in figure.layout.annotations)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", [name for name in FIGURES if name not in ("data_map", "landscape", "landscape_3d")])
def test_every_figure_of_a_run_has_its_data_and_labels(tmp_path: Path, name: str, dark: bool) -> None:
    run = Run.open(full_run(tmp_path / "run"))
    figure = FIGURES[name](run, dark=dark)
    assert name in figures_of(run)
    assert figure.data
    assert figure.layout.title.text
    titles = {"rate": "learning rate", "confusion": "taken for", "trials": "skill"}
    assert figure.layout.xaxis.title.text == titles.get(name, "step")
    scattered = [trace for trace in figure.data if trace.type == "scatter"]
    assert all(len(trace.x) == len(trace.y) > 0 for trace in scattered)
    assert name in CAPTIONS


def test_a_run_shows_only_the_figures_it_has_the_data_for(tmp_path: Path) -> None:
    run = Run.open(make_run(tmp_path / "run"))
    assert figures_of(run) == ["loss", "lr", "gradient", "limits"]
    for name in set(FIGURES) - set(figures_of(run)):
        assert words(FIGURES[name](run))


@pytest.mark.parametrize("losses", [[], [math.nan, math.inf, math.nan]])
def test_a_figure_without_data_says_so_and_shows_no_axes(tmp_path: Path, losses: list[float]) -> None:
    run = Run.open(make_run(tmp_path / "run", losses=losses, held_out={}, verdict=None))
    figure = FIGURES["loss"](run)
    assert not figure.data
    assert words(figure)
    assert figure.layout.xaxis.visible is False
    assert figure.layout.yaxis.visible is False


def test_the_loss_figure_shows_every_spike_and_stays_small(tmp_path: Path) -> None:
    losses = noisy_losses(20_000)
    losses[12_345] = 1e4
    figure = FIGURES["loss"](Run.open(make_run(tmp_path / "run", losses=losses)))
    by_name = {trace.name: trace for trace in figure.data}
    assert set(by_name) == {"training", "training, each step", "held out", "verdict"}
    assert by_name["training, each step"].y.max() == 1e4
    assert sum(len(trace.x) for trace in figure.data) < 3000
    assert figure.layout.yaxis.type == "log"


def test_the_verdict_is_in_the_title(tmp_path: Path) -> None:
    run = Run.open(make_run(tmp_path / "run", verdict=Verdict.NONFINITE))
    assert "non-finite" in FIGURES["loss"](run).layout.title.text


def test_events_are_marked_and_their_markup_is_text(tmp_path: Path) -> None:
    run = Run.open(make_run(tmp_path / "run", events=[(7, "nonfinite", "<b>conv</b> " + "x" * 200)]))
    events = next(trace for trace in FIGURES["loss"](run).data if trace.name == "events")
    assert list(events.x) == [7.0]
    assert "&lt;b&gt;conv" in events.customdata[0]
    assert len(events.customdata[0]) < 120


@pytest.mark.parametrize("losses", [[0.0, 0.0], [1.0], [-3.0, -4.0], [1.0, math.inf, 1e-9], [5.0] * 60])
def test_odd_losses_can_be_drawn(tmp_path: Path, losses: list[float]) -> None:
    run = Run.open(make_run(tmp_path / "run", losses=losses, held_out={}, events=[(0, "note", "x")]))
    for make in FIGURES.values():  # a landscape that was not computed has no traces
        for trace in make(run).data:
            assert np.isfinite(np.array(trace.y, dtype=float)).all()


def test_ten_findings_have_lanes_of_their_own_and_say_what_to_do(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", events=[(50, "note", "x")])
    add_findings(folder, [(step, finding(f"cause_{step}", "minor")) for step in (*range(12), 190)])
    add_findings(folder, [(60, finding("gravest", "fatal", explanation="<i>why</i>"))])
    figure = FIGURES["loss"](Run.open(folder))
    marks = [trace for trace in figure.data if trace.mode == "markers+text"]
    lanes = [trace.y[0] for trace in marks]
    assert len(set(lanes)) == len(lanes) == 11  # ten findings and the verdict
    assert next(trace for trace in figure.data if trace.name == "more").text == (" and 4 less grave",)
    events = next(trace for trace in figure.data if trace.name == "events")
    assert set(events.y).isdisjoint(lanes)
    assert len(events.x) == 1  # a finding is not told twice
    gravest = next(trace for trace in marks if trace.name == "gravest")
    assert gravest.customdata[0].count("&lt;i&gt;why&lt;/i&gt;") == 1
    for said in ("fatal", "last operation of 4: softmax (expected logits)", "remedy: leave out the softmax"):
        assert said in gravest.customdata[0].replace("<br>", " ")
    # The words of a late mark stand on its left, or they would leave the plot.
    sides = {trace.name: trace.textposition for trace in marks}
    assert (sides["gravest"], sides["verdict"]) == ("middle right", "middle left")


def test_limits_are_shares_of_the_limit(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    store = Store(folder)
    store.sharpness(40, 0.9)
    store.sharpness(77, 1.1)
    store.close()
    by_name = {trace.name: trace for trace in FIGURES["limits"](Run.open(folder)).data}
    assert by_name["sharpness / limit"].x.tolist() == [40, 77]
    assert by_name["sharpness / limit"].y.tolist() == [0.9, 1.1]
    assert set(by_name["reach of a step"].y) == {0.75}  # (1 + 0.5) / 2
    assert list(by_name["limit"].y) == [1, 1]


@pytest.mark.parametrize(("low", "high"), [(0.04, 2.0), (1e-9, 1e3), (1e-300, 1e300), (0.9, 1.1), (3.0, 3.0)])
def test_logarithmic_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = logarithmic(low, high)["tickvals"]
    assert len(ticks) <= 7
    assert all(low * 0.999 <= tick <= high * 1.001 for tick in ticks)
