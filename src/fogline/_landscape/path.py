"""The way a run or a descent went, seen from a plane, and the fog over what it says nothing about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

COLUMNS = ("step", "x", "y", "distance", "loss", "plane_loss")
CLEAR = 0.25
"""Distance from the path, in half-widths of the plane, at which half of what is seen is fog."""
_MOST_FOR_PATH = 0.6
_UNSEEN = 0.35  # of what is left, where no place around was evaluated
_AROUND = 4


@dataclass(frozen=True)
class PlanePath:
    """A path beside a plane. Arrays have shape (places,).

    Attributes:
        name: what descended.
        step: before which the place was visited.
        x, y: its nearest place on the plane.
        distance: how far it is from there, in the metric of the weights.
        loss: the loss at the place itself.
        plane_loss: the loss at its nearest place on the plane.
        kept: whether the last place is that of the weights that were kept, which no step led to.
    """

    name: str
    step: Numbers
    x: Numbers
    y: Numbers
    distance: Numbers
    loss: Numbers
    plane_loss: Numbers
    kept: bool = False

    @classmethod
    def of(cls, name: str, columns: Mapping[str, Sequence[float]], *, kept: bool = False) -> PlanePath:
        """A path from columns called as the attributes are; None stands for a number that is not finite."""
        arrays = {key: np.array(columns[key], dtype=np.float64) for key in COLUMNS}
        return cls(name, **arrays, kept=kept)

    def __len__(self) -> int:
        return len(self.step)


def fog(
    x: Numbers,
    y: Numbers,
    evaluated: NDArray[np.bool_],
    paths: Sequence[PlanePath],
    lengths: tuple[float, float],
) -> Numbers:
    """How thick the fog is over each place of a grid, from 0 (clear) to 1, shape (q, p).

    It has two causes. The path says what happens where it went: fog grows with the distance ``d`` of the place from the
    nearest visited place, off the plane included, as ``d^2 / (d^2 + r^2)`` with ``r`` a quarter of the plane's
    half-width, up to 0.6. And where few of the places around were evaluated the surface is drawn between them: that
    adds fog. Without a path only the second remains.

    Args:
        x, y, evaluated: of the surface.
        paths: those that are shown.
        lengths: of the two directions.
    """
    grid_x, grid_y = np.meshgrid(x * lengths[0], y * lengths[1])
    thick = np.zeros(grid_x.shape)
    if any(len(path) for path in paths):
        radius = CLEAR * max(1e-300, (np.ptp(grid_x) + np.ptp(grid_y)) / 4)
        nearest = np.full(grid_x.shape, np.inf)
        for path in paths:
            places = zip(path.x * lengths[0], path.y * lengths[1], path.distance, strict=True)
            for at_x, at_y, off in places:
                square = (grid_x - at_x) ** 2 + (grid_y - at_y) ** 2 + off**2
                nearest = np.fmin(nearest, square)
        far = nearest / radius**2
        thick = np.where(np.isfinite(far), _MOST_FOR_PATH * far / (1 + far), _MOST_FOR_PATH)
    return np.asarray(thick + (1 - thick) * _UNSEEN * (1 - _share_around(evaluated)))


def _share_around(evaluated: NDArray[np.bool_]) -> Numbers:
    """The share of the places around each that were evaluated, among those up to four lines away."""
    padded = np.pad(evaluated.astype(np.float64), _AROUND, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * _AROUND + 1,) * 2)
    return np.asarray(windows.mean(axis=(2, 3)))
