from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fogline.plots import CAPTIONS, FIGURES
from fogline.plots.theme import logarithmic
from fogline.run import Run
from fogline.verdict import Verdict
from run_folders import make_run, measured_rate, noisy_losses


def words(figure) -> str:
    return " ".join(annotation.text for annotation in figure.layout.annotations)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", [name for name in FIGURES if not name.startswith("landscape")])
def test_every_figure_of_a_run_has_its_data_and_labels(tmp_path: Path, name: str, dark: bool) -> None:
    figure = FIGURES[name](Run.open(make_run(tmp_path / "run", resolved=measured_rate())), dark=dark)
    assert figure.data
    assert figure.layout.title.text
    assert figure.layout.xaxis.title.text == ("learning rate" if name == "rate" else "step")
    assert all(len(trace.x) == len(trace.y) > 0 for trace in figure.data)
    assert name in CAPTIONS


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
    assert set(by_name) == {"training", "training, each step", "held out"}
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


@pytest.mark.parametrize(("low", "high"), [(0.04, 2.0), (1e-9, 1e3), (1e-300, 1e300), (0.9, 1.1), (3.0, 3.0)])
def test_logarithmic_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = logarithmic(low, high)["tickvals"]
    assert len(ticks) <= 7
    assert all(low * 0.999 <= tick <= high * 1.001 for tick in ticks)
