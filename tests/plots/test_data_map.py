"""The data map tells easy examples from hard ones and from those that a run wavered on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fogline.plots import data_map_figure, figures_of
from fogline.run import Run
from run_folders import make_run


def recorded(folder: Path, epochs: list[list[float]]) -> Run:
    """A run whose examples had these confidences, a list an epoch."""
    make_run(folder)
    (folder / "examples").mkdir()
    for k, confidence in enumerate(epochs):
        columns = {
            "confidence": np.array(confidence, dtype=np.float16),
            "correct": np.array([c > 0.5 for c in confidence], dtype=np.float16),
        }
        save_file(columns, folder / "examples" / f"epoch-{k:04d}.safetensors")
    return Run.open(folder)


def drawn(run: Run) -> tuple[list[float], list[float], list[float]]:
    """Mean confidence, variability and share of right answers, as they are drawn."""
    (trace,) = data_map_figure(run).data
    return trace.y.tolist(), trace.x.tolist(), trace.marker.color.tolist()


def test_mean_deviation_and_share_of_right_answers(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", [[0.25, 0.75, 0.125], [0.75, 0.75, 0.125]])
    confidence, variability, correct = drawn(run)
    np.testing.assert_allclose(confidence, [0.5, 0.75, 0.125])
    np.testing.assert_allclose(variability, [0.25, 0, 0], atol=1e-12)
    np.testing.assert_allclose(correct, [0.5, 1, 0])


def test_epochs_in_which_an_example_was_not_recorded_do_not_count(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", [[0.25, np.nan], [0.75, 0.5], [np.nan, np.nan]])
    confidence, variability, _ = drawn(run)
    np.testing.assert_allclose(confidence, [0.5, 0.5])
    np.testing.assert_allclose(variability, [0.25, 0])


def test_a_file_that_is_cut_short_is_passed_over(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", [[0.25], [0.75]])
    (run.folder / "examples" / "epoch-0002.safetensors").write_bytes(b"cut")
    assert "2 epochs" in data_map_figure(run).layout.title.text


@pytest.mark.parametrize("dark", [False, True])
def test_the_figure_is_there_only_where_examples_were_recorded(tmp_path: Path, dark: bool) -> None:
    run = recorded(tmp_path / "run", [[0.25, 0.75, 0.5], [0.75, 0.5, 0.5]])
    assert "data_map" in figures_of(run)
    (trace,) = data_map_figure(run, dark=dark).data
    np.testing.assert_allclose(trace.y, [0.5, 0.625, 0.5])
    make_run(tmp_path / "other")
    assert "data_map" not in figures_of(Run.open(tmp_path / "other"))
    assert not data_map_figure(Run.open(tmp_path / "other"), dark=dark).data


def test_many_examples_are_thinned(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", [[0.5] * 10_001] * 2)
    (trace,) = data_map_figure(run).data
    assert 3000 < len(trace.x) <= 4000
