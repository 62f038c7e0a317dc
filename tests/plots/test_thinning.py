from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fogline.plots import FIGURES
from fogline.plots.reading import LONG, curve
from fogline.plots.thinning import smooth, thin
from fogline.record.store import Store, Table
from fogline.run import Run
from run_folders import make_run, noisy_losses


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 20))
def test_thinning_keeps_the_extremes_the_ends_and_the_order(values: list[float], buckets: int) -> None:
    y = np.array(values)
    x, kept = thin(np.arange(len(y), dtype=float), y, buckets)
    assert kept.min() == y.min()
    assert kept.max() == y.max()
    assert (x[0], x[-1]) == (0, len(y) - 1)
    assert (np.diff(x) > 0).all()
    assert len(x) <= 2 * buckets + 2
    assert (y[x.astype(int)] == kept).all()


def test_thinning_leaves_out_what_is_not_finite() -> None:
    x, y = thin(np.arange(4.0), np.array([1.0, np.nan, np.inf, 2.0]))
    assert x.tolist() == [0, 3]
    assert y.tolist() == [1, 2]


def test_a_line_is_smoothed_to_itself_but_for_its_end() -> None:
    line = np.linspace(3, -2, 101)
    np.testing.assert_allclose(smooth(line, share=0.1)[:96], line[:96], atol=1e-12)


def test_smoothing_is_the_mean_of_the_window() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=200)
    half = 10
    slow = [values[max(0, at - min(half, at)) : at + min(half, at) + 1].mean() for at in range(200)]
    np.testing.assert_allclose(smooth(values, share=0.1), slow, atol=1e-12)


def test_smoothing_skips_gaps() -> None:
    values = np.ones(100)
    values[40:45] = np.nan
    np.testing.assert_allclose(smooth(values, share=0.2), 1)
    assert np.isnan(smooth(np.full(3, np.nan))).all()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_short_curves_are_left_as_they_are(size: int) -> None:
    values = np.arange(float(size))
    assert smooth(values).tolist() == values.tolist()


def test_a_long_run_is_read_in_groups_that_keep_every_spike(tmp_path: Path) -> None:
    steps = LONG + 5000
    losses = np.array(noisy_losses(steps))
    losses[[12_345, 40_000]] = 1e4, 1e-9
    losses[777], losses[778] = math.inf, math.nan
    run = Run.open(make_run(tmp_path / "run", losses=losses.tolist()))
    found = curve(run, "loss")
    assert len(found.x) <= 2002
    assert (np.diff(found.x) >= 0).all()
    assert (found.y.max(), found.y.min()) == (1e4, 1e-9)
    width = (steps - 1) // 1000 + 1
    groups = [losses[start : start + width] for start in range(0, steps, width)]
    means = [group[np.isfinite(group)].mean() for group in groups]
    np.testing.assert_allclose(found.middle, smooth(np.array(means)))
    np.testing.assert_allclose(found.y[::2], [group[np.isfinite(group)].min() for group in groups])
    assert len(FIGURES["loss"](run).to_json()) < 200_000


def test_a_group_without_a_finite_value_is_a_gap(tmp_path: Path) -> None:
    losses = [1.0] * LONG + [math.nan] * 10_000
    found = curve(Run.open(make_run(tmp_path / "run", losses=losses)), "loss")
    assert np.isnan(found.y[-2:]).all()
    assert found.y[0] == 1.0


class View(Run):
    """A run that reads for itself: three rows, of which it knows the means."""

    def columns(self, table: str, filled: str | None = None) -> Table:
        assert (table, filled) == ("steps", None)
        return Table({"step": np.arange(3), "loss": np.array([9.0, 0.0, 3.0]), "loss_mean": np.array([4.0, 4.0, 3.0])})


def test_a_run_that_reads_for_itself_is_asked(tmp_path: Path) -> None:
    found = curve(View(make_run(tmp_path / "run")), "loss")
    assert found.y.tolist() == [9.0, 0.0, 3.0]
    assert found.middle.tolist() == [4.0, 4.0, 3.0]


def test_what_is_read_follows_the_file(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", losses=[3.0, 2.0])
    run = Run.open(folder)
    assert curve(run, "loss").y.tolist() == [3.0, 2.0]
    store = Store(folder)
    store.steps([(2, 0.1, 0, 0.1, 1.0, 0.1, 1.0)])
    store.flush()
    assert curve(run, "loss").y.tolist() == [3.0, 2.0, 1.0]
    store.close()
