"""The losses over a grid of places, finer where the surface bends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Evaluate = Callable[[Sequence[tuple[float, float]]], list[float]]

COARSEST = 4
"""Grid lines between two that are always evaluated, where the surface is refined."""
BEND = 0.01
"""A cell is refined where a straight line between its corners misses by more than this share of the height seen."""


@dataclass(frozen=True)
class Surface:
    """Losses over a grid.

    Attributes:
        x: coordinates along the first direction, shape (p,), rising.
        y: along the second, shape (q,), rising.
        loss: shape (q, p); NaN or infinite where the loss is. Where it was not evaluated it is drawn in a straight line
            between places that were.
        evaluated: where it was, shape (q, p).
    """

    x: Numbers
    y: Numbers
    loss: Numbers
    evaluated: NDArray[np.bool_]

    @property
    def evaluations(self) -> int:
        """How many places of the grid were evaluated."""
        return int(self.evaluated.sum())


def survey(evaluate: Evaluate, x: Numbers, y: Numbers, *, refine: bool = True) -> Surface:
    """Evaluate a grid, all of it or, with ``refine``, every fourth line and more where the surface bends.

    Halving the distance of the lines, a cell gets its five new places where the second differences at one of its
    corners say that a straight line would miss them by more than ``BEND`` of the height. What counts is the height
    above the lowest place on a logarithmic scale, so that a wall at the edge does not hide the valley. A surface all of
    whose coarse places have one loss is flat.

    >>> line = np.linspace(-1, 1, 9)
    >>> flat = survey(lambda places: [a + b for a, b in places], line, line)
    >>> flat.evaluations, bool(np.allclose(flat.loss, line[None, :] + line[:, None]))
    (9, True)
    """
    loss = np.full((len(y), len(x)), np.nan)
    known = np.zeros(loss.shape, dtype=bool)

    def fill(wanted: NDArray[np.bool_]) -> None:
        rows, columns = np.nonzero(wanted & ~known)
        if len(rows):
            loss[rows, columns] = evaluate([(float(x[k]), float(y[j])) for j, k in zip(rows, columns, strict=True)])
            known[rows, columns] = True

    step = COARSEST if refine and (len(x) - 1) % COARSEST == 0 and (len(y) - 1) % COARSEST == 0 else 1
    wanted = np.zeros(loss.shape, dtype=bool)
    wanted[::step, ::step] = True
    fill(wanted)
    while step > 1:
        fill(_new_places(loss, step))
        _draw_straight(loss, known, step)
        step //= 2
    return Surface(x, y, loss, known)


def _new_places(loss: Numbers, step: int) -> NDArray[np.bool_]:
    """The middles of edges and cells, of the cells that bend, among the lines of half the step."""
    corners = loss[::step, ::step]
    visible = _visible_miss(corners)
    bends = np.zeros(corners.shape, dtype=bool)
    for along, scale, target in ((corners, visible, bends), (corners.T, visible.T, bends.T)):
        with np.errstate(invalid="ignore", over="ignore"):
            miss = np.abs(along[:, :-2] - 2 * along[:, 1:-1] + along[:, 2:]) / 8
        bent = ~(miss <= scale[:, 1:-1])  # also where a loss is not finite
        target[:, 1:-1] |= bent
        target[:, :-2] |= bent
        target[:, 2:] |= bent
    cells = bends[:-1, :-1] | bends[:-1, 1:] | bends[1:, :-1] | bends[1:, 1:]
    wanted = np.zeros(loss.shape, dtype=bool)
    half = step // 2
    for row, column in np.argwhere(cells) * step:
        wanted[row : row + step + 1 : half, column : column + step + 1 : half] = True
    return wanted


def _visible_miss(loss: Numbers) -> Numbers:
    """What a straight line may miss each loss by: ``BEND`` of the height on a scale that is logarithmic above a unit.

    The height of a loss is ``log(1 + (loss - lowest) / unit)``; what a small miss changes of it is the miss over
    ``loss - lowest + unit``.
    """
    finite = loss[np.isfinite(loss)]
    if not len(finite) or not np.ptp(finite) > 0:
        return np.zeros(loss.shape)
    lowest, spread = float(finite.min()), float(np.ptp(finite))
    unit = max(0.1 * (float(np.median(finite)) - lowest), 1e-6 * spread)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(BEND * (loss - lowest + unit) * np.log1p(spread / unit))


def _draw_straight(loss: Numbers, known: NDArray[np.bool_], step: int) -> None:
    """Fill what lies between the lines of a step and was not evaluated: the middle of its neighbours."""
    half = step // 2
    with np.errstate(invalid="ignore", over="ignore"):
        for rows, columns in (((0, step), (half, step)), ((half, step), (0, step)), ((half, step), (half, step))):
            place = np.s_[rows[0] :: rows[1], columns[0] :: columns[1]]
            middle = _middle(loss, half, rows[0], columns[0], step)
            loss[place] = np.where(known[place], loss[place], middle)


def _middle(loss: Numbers, half: int, row: int, column: int, step: int) -> Numbers:
    if row == 0:
        lines = loss[::step, ::step]
        return np.asarray((lines[:, :-1] + lines[:, 1:]) / 2)
    if column == 0:
        lines = loss[::step, ::step]
        return np.asarray((lines[:-1] + lines[1:]) / 2)
    above, below = loss[:-half:step, half::step], loss[step::step, half::step]
    return np.asarray((above + below) / 2)
