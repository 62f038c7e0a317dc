from __future__ import annotations

import math
from pathlib import Path

import pytest

from fogline.plots import compare_figure
from fogline.run import Run
from run_folders import make_run, noisy_losses


def test_runs_are_told_apart_without_colour(tmp_path: Path) -> None:
    runs = [Run.open(make_run(tmp_path / f"run-{k}", losses=noisy_losses(300, seed=k))) for k in range(10)]
    figure = compare_figure(runs)
    held_out = [trace for trace in figure.data if trace.yaxis == "y"]
    assert len({(trace.line.dash, trace.marker.symbol) for trace in held_out}) == 10
    assert len(figure.data) == 20
    assert sum(trace.showlegend for trace in figure.data) == 10
    for above in held_out:
        below = next(t for t in figure.data if t.yaxis == "y2" and t.legendgroup == above.legendgroup)
        assert (below.line, below.marker, below.name) == (above.line, above.marker, above.name)


def test_a_run_that_diverges_does_not_flatten_the_others(tmp_path: Path) -> None:
    good = make_run(tmp_path / "good", losses=[1.0, 0.5, 0.25], held_out={})
    bad = make_run(tmp_path / "bad", losses=[1.0, 1e6, 1e30, math.nan], held_out={})
    figure = compare_figure([Run.open(good), Run.open(bad)])
    assert figure.layout.yaxis.range[1] < 2


def test_long_names_keep_their_ends_and_markup_is_text(tmp_path: Path) -> None:
    long = "<i>a-task-with-a-name-that-goes-on-and-on-" + "20261122-101500"
    (trace, *_) = compare_figure([Run.open(make_run(tmp_path / long))]).data
    assert "<" not in trace.name
    assert trace.name.endswith("101500")


def test_runs_without_a_loss_and_no_runs(tmp_path: Path) -> None:
    empty = Run.open(make_run(tmp_path / "run", losses=[], held_out={}))
    assert not compare_figure([empty]).data
    with pytest.raises(ValueError, match="expected at least one run"):
        compare_figure([])
