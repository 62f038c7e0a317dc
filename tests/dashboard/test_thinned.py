"""A thinned run draws what the whole one does; the obvious slow way beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fogline.dashboard.reading import reading
from fogline.dashboard.thinned import BUCKETS, WHOLE, Thinner, View
from fogline.plots import FIGURES
from fogline.record.store import Store, Table, read_info, read_table
from fogline.run import Run
from run_folders import make_run, noisy_losses

LONG = 30_000


def long_losses(steps: int = LONG) -> list[float]:
    losses = noisy_losses(steps, seed=1)
    losses[12_345] = 40.0
    losses[23_456] = float("nan")
    return losses


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("thinned") / "run", losses=long_losses())


def view(folder: Path) -> View:
    return View(folder, read_info(folder))


def same(one: Table, other: Table) -> bool:
    return list(one.columns) == list(other.columns) and all(
        np.array_equal(one[name], other[name], equal_nan=True) for name in one.columns
    )


def test_a_short_run_is_read_as_it_is(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", losses=noisy_losses(WHOLE))
    assert same(view(folder).steps, read_table(folder, "steps"))


def test_the_rows_of_a_long_run_are_true_and_few(folder: Path) -> None:
    thinned, whole = view(folder).steps, read_table(folder, "steps")
    assert len(thinned) < 5 * 2 * BUCKETS
    assert (np.diff(thinned["step"]) > 0).all()
    for name in whole.columns:
        assert np.array_equal(thinned[name], whole[name][thinned["step"]], equal_nan=True)


def test_no_spike_is_lost_and_the_ends_are_there(folder: Path) -> None:
    thinned, whole = view(folder).steps, read_table(folder, "steps")
    assert {0, 12_345, LONG - 1} <= set(thinned["step"].tolist())
    for column in ("loss", "grad_norm"):
        assert np.nanmax(thinned[column]) == np.nanmax(whole[column])
    assert np.nanmin(thinned["loss"]) == np.nanmin(whole["loss"])
    assert np.nanmax(view(folder).columns("steps", "overshoot")["overshoot"]) == np.nanmax(whole["overshoot"])


def test_the_means_are_those_of_the_stretches(folder: Path) -> None:
    thinned, whole = view(folder).steps, read_table(folder, "steps")
    width = 64  # 30,000 steps in at most 500 stretches of a power of two
    for name in ("loss", "grad_norm"):
        stretches = [whole[name][step // width * width : (step // width + 1) * width] for step in thinned["step"]]
        assert np.allclose(thinned[f"{name}_mean"], [np.nanmean(stretch) for stretch in stretches])


def test_the_smoothed_loss_is_drawn_where_that_of_the_whole_run_is(folder: Path) -> None:
    def smoothed(run: Run) -> tuple[np.ndarray, np.ndarray]:
        line = next(trace for trace in FIGURES["loss"](run).data if trace.name == "training")
        return np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)

    x, y = smoothed(view(folder))
    whole_x, whole_y = smoothed(Run.open(folder))
    expected = np.interp(x, whole_x, whole_y)
    inside = slice(10, -10)
    assert np.median(np.abs(y / expected - 1)[inside]) < 0.02
    assert np.max(np.abs(y / expected - 1)[inside]) < 0.3


def test_following_a_run_gives_what_reading_it_anew_does(tmp_path: Path) -> None:
    losses = noisy_losses(20_000, seed=2)
    extremes = (("min", "loss"), ("max", "loss"))
    thinner = Thinner(extremes)
    for length in (10, 5000, 5001, 9000, 16_000, 20_000, 12_000, 20_000):
        store = Store(tmp_path / "run")
        store.rewind(length)  # as where a run is resumed from an earlier checkpoint
        store.steps([(step, 0.0, 0, 0.0, loss, 0.1, 1.0, *(None,) * 4) for step, loss in enumerate(losses[:length])])
        store.close()
        with reading(tmp_path / "run") as connection:
            followed, anew = thinner.read(connection), Thinner(extremes).read(connection)
        assert same(followed, anew)
        assert followed["step"][-1] == length - 1


def test_another_run_in_the_same_place_is_another(tmp_path: Path) -> None:
    thinner = Thinner((("max", "loss"),))
    found = []
    for seed in (1, 2):
        folder = make_run(tmp_path / f"run-{seed}", losses=noisy_losses(6000, seed=seed))
        with reading(folder) as connection:
            found.append(thinner.read(connection)["loss"].max())
    assert found[0] != found[1]


def test_a_signal_that_was_measured_now_and_then_is_whole(tmp_path: Path, folder: Path) -> None:
    whole = read_table(folder, "steps")
    probed = np.isfinite(whole["overshoot"])
    assert view(folder).columns("steps", "overshoot")["step"].tolist() == whole["step"][probed].tolist()
    assert len(view(folder).columns("steps", "unheard_of")) == 0


def test_rows_at_long_distances_are_all_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    store.steps([(step, 0.0, 0, 0.0, 1.0 / (step + 1), 0.1, 1.0, *(None,) * 4) for step in range(0, 1_000_000, 1500)])
    store.close()
    with reading(tmp_path / "run") as connection:
        steps = Thinner((("min", "loss"), ("max", "loss"))).read(connection)["step"]
    assert steps.tolist() == list(range(0, 1_000_000, 1500))


def test_layers_keep_their_order_and_are_thinned_by_steps(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", losses=[1.0])
    store = Store(folder)
    store.layers([(step, layer, 1.0, 0.1, 0.01, 1.0, 0.5) for step in range(1000) for layer in ("b", "a")])
    store.close()
    layers = view(folder).layers
    assert layers["layer"][:4].tolist() == ["b", "a", "b", "a"]
    assert 100 < len(set(layers["step"].tolist())) <= 300


def test_a_run_that_has_recorded_nothing_has_empty_tables(tmp_path: Path) -> None:
    empty = View(tmp_path, {})
    for table in ("steps", "layers", "scores", "events", "findings"):
        assert len(getattr(empty, table)) == 0
    assert set(empty.steps.columns) >= {"step", "loss", "lr", "grad_norm"}
    assert list(tmp_path.iterdir()) == []
