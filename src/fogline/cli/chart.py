"""A line drawn with braille characters: a chart that works over ssh, without colour and in a log file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# A braille character is a grid of 2 x 4 dots; its code is the sum of the bits of the dots that are set.
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
_BLANK = 0x2800
_LOG_FROM = 30.0  # a line that spans more than this factor is drawn on a logarithmic axis


def chart(
    x: NDArray[np.float64],  # (n,), rising
    y: NDArray[np.float64],  # (n,), may hold NaN
    *,
    width: int = 72,
    height: int = 10,
    unicode: bool = True,
    logarithmic_x: bool = False,
    mark: float | None = None,
    marks: Sequence[tuple[float, str]] = (),
) -> list[str]:
    """The lines of text of a chart of ``y`` over ``x``; each dot column shows the mean of the points in it.

    Args:
        x: positions, rising.
        y: values; those that are not finite are left out.
        width: characters in a line, the labels of the axis included.
        height: lines of the drawing, without the line of the x axis.
        unicode: braille dots; False draws asterisks for terminals that know only ASCII.
        logarithmic_x: whether equal factors of ``x`` are equally wide; it must be above 0.
        mark: a position that a further line points at, if it lies between the first and the last.
        marks: further such positions, each with the words that stand beside it.

    >>> for line in chart(np.arange(4.0), np.array([3.0, 2.0, 1.0, 0.0]), width=16, height=2, unicode=False):
    ...     print(line)
    3.000 |****
    0.000 |    ****
           0      3
    """
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if not len(y):
        return ["(no finite values to draw)"]
    logarithmic = bool(y.min() > 0 and np.log(y.max()) - np.log(y.min()) > np.log(_LOG_FROM))
    widest = len(_label(-1.2345e-104))
    cells = max(8, width - widest - 2)
    across, down = (2, 4) if unicode else (1, 1)
    place = np.log(x) if logarithmic_x else x
    means = _column_means(place, np.log(y) if logarithmic else y, cells * across)
    low, high = (float(np.exp(bound)) if logarithmic else float(bound) for bound in (means.min(), means.max()))
    labels = [_label(value) for value in _ticks(low, high, height, logarithmic)]
    grid = _rasterize(means, height * down)
    rows = _braille(grid) if unicode else ["".join("*" if dot else " " for dot in row) for row in grid]
    margin, edge = max(len(label) for label in labels), "┤" if unicode else "|"
    lines = [f"{label:>{margin}} {edge}{row}".rstrip() for label, row in zip(labels, rows, strict=True)]
    first, last = (f"{end:{'.3g' if logarithmic_x else 'g'}}" for end in (x[0], x[-1]))
    gap = max(1, cells - len(first) - len(last))
    scale = " (logarithmic)" if logarithmic else ""
    lines.append(" " * (margin + 2) + first + f"{scale:^{gap}}" + last)
    for at, words in [*([] if mark is None else [(mark, f"{mark:.3g}")]), *marks]:
        if x[0] <= at <= x[-1]:
            share = ((np.log(at) if logarithmic_x else at) - place[0]) / ((place[-1] - place[0]) or 1.0)
            lines.append(" " * (margin + 2) + _pointer(words, round(share * (cells - 1)), cells))
    return lines


def _pointer(words: str, column: int, width: int) -> str:
    """A line that points up at a column, its words on the side where there is room."""
    after = " " * column + f"^ {words}"
    before = f"{words} ^".rjust(column + 1)
    return before if len(after) > width and len(before) == column + 1 else after


def _column_means(x: NDArray[np.float64], y: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """The mean of the points in each of ``width`` equal columns; columns without points lie on the line between."""
    span = (x[-1] - x[0]) or 1.0
    column = np.minimum(((x - x[0]) / span * width).astype(int), width - 1)
    counts = np.bincount(column)
    filled = np.flatnonzero(counts)
    return np.interp(np.arange(len(counts)), filled, np.bincount(column, weights=y)[filled] / counts[filled])


def _rasterize(means: NDArray[np.float64], height: int) -> NDArray[np.bool_]:
    rise = (means.max() - means.min()) or 1.0
    row = np.round((means.max() - means) / rise * (height - 1)).astype(int)
    grid = np.zeros((height, len(row) + len(row) % 2), dtype=bool)
    # Neighbouring columns are joined by a vertical stroke, or a steep fall would be a scatter of dots.
    for position, (before, here) in enumerate(zip([row[0], *row[:-1]], row, strict=True)):
        step = 1 if here >= before else -1
        grid[list(range(before + step, here + step, step)) or [here], position] = True
    return grid


def _braille(grid: NDArray[np.bool_]) -> list[str]:
    height, width = grid.shape
    cells = grid.reshape(height // 4, 4, width // 2, 2)
    codes = np.einsum("adbe,de->ab", cells, _DOTS) + _BLANK
    return ["".join(chr(code) for code in row).rstrip(chr(_BLANK)) for row in codes]


def _ticks(low: float, high: float, lines: int, logarithmic: bool) -> list[float | None]:
    """The value of every third line, first and last included; None where a label would crowd."""
    values = (np.geomspace if logarithmic else np.linspace)(high, low, lines)
    last = lines - 1
    shown = {0, last, *range(3, last - 1, 3)} if high > low else {0}
    return [float(value) if line in shown else None for line, value in enumerate(values)]


def _label(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:#.4g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"
