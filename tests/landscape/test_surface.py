"""The grid: every place that is called evaluated is, and what is drawn between them is close where it bends little."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fogline._landscape.path import PlanePath, fog
from fogline._landscape.surface import survey

LINE = np.linspace(-2, 2, 33)


def bowl(a: float, b: float) -> float:
    return 3 * a * a + b * b + 0.5 * a * b


def losses(function):
    return lambda places: [function(a, b) for a, b in places]


def exact(function) -> np.ndarray:
    return np.array([[function(a, b) for a in LINE] for b in LINE])


def test_without_refinement_every_place_is_evaluated() -> None:
    surface = survey(losses(bowl), LINE, LINE, refine=False)
    assert surface.evaluated.all()
    assert np.array_equal(surface.loss, exact(bowl))


@pytest.mark.parametrize(
    "function",
    [bowl, lambda a, b: math.exp(2 * a) + b, lambda a, b: 100 * (b - a * a) ** 2 + (1 - a) ** 2, lambda a, b: 1e-9 * a],
)
def test_refined_surfaces_hold_true_values_where_they_say_so_and_are_close_elsewhere(function) -> None:
    surface, true = survey(losses(function), LINE, LINE), exact(function)
    assert np.array_equal(surface.loss[surface.evaluated], true[surface.evaluated])
    assert surface.evaluations <= surface.loss.size
    error = np.abs(surface.loss - true)
    assert error.max() <= 0.12 * np.ptp(true)
    assert np.median(error) <= 0.01 * np.ptp(true)


def test_a_flat_surface_costs_the_coarse_grid_and_a_kink_is_looked_at() -> None:
    flat = survey(losses(lambda a, b: 2 * a - b), LINE, LINE)
    assert flat.evaluations == 81
    assert np.allclose(flat.loss, exact(lambda a, b: 2 * a - b))
    kink = survey(losses(lambda a, b: max(0.0, a - 1.0)), LINE, LINE)
    right, left = kink.evaluated[:, LINE > 0.5], kink.evaluated[:, LINE < -0.5]
    assert right.mean() > 2 * left.mean()
    assert kink.evaluations < kink.loss.size / 2


def test_losses_that_are_not_finite_are_kept_and_looked_at() -> None:
    surface = survey(losses(lambda a, b: math.inf if a > 1 else a * a), LINE, LINE)
    true = exact(lambda a, b: math.inf if a > 1 else a * a)
    assert np.array_equal(surface.loss[surface.evaluated], true[surface.evaluated])
    assert np.isfinite(surface.loss[:, LINE <= 0.5]).all()


def test_places_are_evaluated_once() -> None:
    seen: list[tuple[float, float]] = []

    def evaluate(places):
        seen.extend(places)
        return [bowl(a, b) for a, b in places]

    surface = survey(evaluate, LINE, LINE)
    assert len(seen) == len(set(seen)) == surface.evaluations


def path(x: list[float], y: list[float], distance: list[float]) -> PlanePath:
    columns = {"step": range(len(x)), "x": x, "y": y, "distance": distance, "loss": [1.0] * len(x)}
    return PlanePath.of("run", {**columns, "plane_loss": [1.0] * len(x)})


def test_fog_grows_with_the_distance_from_the_path_and_from_what_was_evaluated() -> None:
    everywhere, nowhere = np.ones((33, 33), dtype=bool), np.zeros((33, 33), dtype=bool)
    clear = fog(LINE, LINE, everywhere, [path([0.0], [0.0], [0.0])], (1.0, 1.0))
    assert clear[16, 16] == 0.0
    assert (np.diff(clear[16, 16:]) > 0).all()
    # A quarter of the half-width away, it is half as thick as far away (0.6).
    assert clear[16, 20] == pytest.approx(0.3)
    off = fog(LINE, LINE, everywhere, [path([0.0], [0.0], [1.0])], (1.0, 1.0))
    assert off[16, 16] > 0.4
    assert (off >= clear).all()
    assert (fog(LINE, LINE, nowhere, [path([0.0], [0.0], [0.0])], (1.0, 1.0)) > clear).all()
    assert not fog(LINE, LINE, everywhere, [], (1.0, 1.0)).any()
    assert ((clear >= 0) & (clear <= 1)).all()


def test_fog_is_measured_in_the_metric_of_the_weights() -> None:
    everywhere = np.ones((33, 33), dtype=bool)
    same = fog(LINE, LINE, everywhere, [path([1.0], [0.0], [0.0])], (3.0, 3.0))
    assert same == pytest.approx(fog(LINE, LINE, everywhere, [path([1.0], [0.0], [0.0])], (1.0, 1.0)))
