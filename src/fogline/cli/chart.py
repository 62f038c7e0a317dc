"""A line drawn with braille characters: a chart that works over ssh, without colour and in a log file."""

from __future__ import annotations

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
) -> list[str]:
    """The lines of text of a chart of ``y`` over ``x``; each dot column shows the mean of the points in it.

    Args:
        x: positions, rising.
        y: values; those that are not finite are left out.
        width: characters in a line, the labels of the axis included.
        height: lines of the drawing, without the line of the x axis.
        unicode: braille dots; False draws asterisks for terminals that know only ASCII.

    >>> for line in chart(np.arange(4.0), np.array([3.0, 2.0, 1.0, 0.0]), width=12, height=2, unicode=False):
    ...     print(line)
    3.000 |***
    0.000 |   **
           0   3
    """
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if not len(y):
        return ["(no finite values to draw)"]
    logarithmic = bool(y.min() > 0 and y.max() / y.min() > _LOG_FROM)
    heights = np.log(y) if logarithmic else y
    labels = [_label(value) for value in _ticks(y.min(), y.max(), height, logarithmic)]
    margin = max(len(label) for label in labels)
    cells = max(8, width - margin - 2) if unicode else max(4, width - margin - 2)
    across, down = (2, 4) if unicode else (1, 1)
    grid = _rasterize(x, heights, cells * across, height * down)
    rows = _braille(grid) if unicode else ["".join("*" if dot else " " for dot in row) for row in grid]
    edge = "┤" if unicode else "|"
    lines = [f"{label:>{margin}} {edge}{row}".rstrip() for label, row in zip(labels, rows, strict=True)]
    first, last = f"{x[0]:g}", f"{x[-1]:g}"
    scale = "  (logarithmic)" if logarithmic else ""
    gap = max(1, cells - len(first) - len(last))
    return [*lines, " " * (margin + 2) + first + " " * gap + last + scale]


def _rasterize(x: NDArray[np.float64], y: NDArray[np.float64], width: int, height: int) -> NDArray[np.bool_]:
    span = (x[-1] - x[0]) or 1.0
    column = np.minimum(((x - x[0]) / span * width).astype(int), width - 1)
    counts = np.bincount(column, minlength=width)
    sums = np.bincount(column, weights=y, minlength=width)
    filled = np.flatnonzero(counts)
    means = np.interp(np.arange(width), filled, sums[filled] / counts[filled])
    rise = (y.max() - y.min()) or 1.0
    row = np.clip(np.round((y.max() - means) / rise * (height - 1)), 0, height - 1).astype(int)
    grid = np.zeros((height, width), dtype=bool)
    # Neighbouring columns are joined by a vertical stroke, or a steep fall would be a scatter of dots.
    for position in range(filled[0], filled[-1] + 1):
        before = row[max(position - 1, filled[0])]
        low, high = sorted((int(before), int(row[position])))
        grid[low + (low != row[position]) : high + (high == row[position]), position] = True
        grid[row[position], position] = True
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
