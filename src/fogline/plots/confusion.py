"""What was taken for what: the confusion matrix of the held-out data."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from fogline.plots.layers import COLOURS
from fogline.plots.reading import columns
from fogline.plots.theme import axis, empty, framed, palette, translucent
from fogline.record.store import Table
from fogline.words import number

if TYPE_CHECKING:
    from fogline.run import Run

_MOST_CELLS = 30  # classes up to which every pair has its cell
_MOST_WORDS = 12  # classes up to which the counts stand in the cells
_MOST_PAIRS = 20
_NAME = 14  # characters of a class beside the matrix


def confusion_figure(run: Run, *, dark: bool = False) -> go.Figure:
    """Counts of held-out examples by their class and the class that was predicted, with the weights that were kept.

    The colour is the share of the examples of a class. Above 30 classes the most frequent confusions are shown instead.
    """
    table = columns(run, "confusion")
    if not len(table):
        return empty("Confusion", "No held-out predictions were kept.", dark=dark)
    right = int(table["count"][table["target"] == table["predicted"]].sum())
    total = int(table["count"].sum())
    title = f"Confusion · {right / total:.1%} of {number(total)} right"
    count = 1 + int(max(table["target"].max(), table["predicted"].max()))
    names = class_names(run, count)
    if count > _MOST_CELLS:
        return _most_confused(table, names, title, dark)
    matrix = np.zeros((count, count))
    matrix[table["target"], table["predicted"]] = table["count"]
    return _matrix(matrix, names, title, dark)


def class_names(run: Run, count: int) -> list[str]:
    """The classes by their names where the run knows them, by their numbers where not."""
    known = (run.info.get("task") or {}).get("classes") or []
    names = [str(known[k]) if k < len(known) else str(k) for k in range(count)]
    return names if len(set(names)) == count else [f"{k}: {name}" for k, name in enumerate(names)]


def _matrix(matrix: NDArray[np.float64], names: list[str], title: str, dark: bool) -> go.Figure:
    colours = palette(dark)
    rows = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, rows, out=np.zeros_like(matrix), where=rows > 0)
    labels = [_cut(name) for name in names]
    labels = labels if len(set(labels)) == len(labels) else [f"{k}: {name}"[:_NAME] for k, name in enumerate(labels)]
    angle = _angle(labels)
    labels = [escape(label) for label in labels]
    few = len(names) <= _MOST_WORDS
    words = [[f"{int(value):,}" if value else "" for value in row] for row in matrix]
    figure = go.Figure()
    figure.add_heatmap(
        x=labels,
        y=labels,
        z=shares,
        zmin=0,
        zmax=1,
        colorscale=COLOURS,
        colorbar={"thickness": 10, "outlinewidth": 0, "tickformat": ".0%", "tickfont": {"color": colours.ink}},
        text=words if few else None,
        texttemplate="%{text}" if few else None,
        customdata=matrix,
        hovertemplate="%{y} taken for %{x}: %{customdata:,} (%{z:.1%})<extra></extra>",
        xgap=int(few),
        ygap=int(few),
        name="confusion",
    )
    side = max(220, min(560, 32 * len(names)))
    framed(figure, title, "class", dark=dark, height=side + 130, type="category", autorange="reversed")
    every = {"type": "category", "tickmode": "array", "tickvals": labels, "showgrid": False}
    figure.update_layout(
        showlegend=False,
        hovermode="closest",
        margin={"l": 8, "r": 8, "t": 48, "b": 56},
        xaxis={**axis("taken for", colours, standoff=6), **every, "rangemode": "normal", "tickangle": angle},
        yaxis={**every, "ticks": ""},
    )
    return figure


def _angle(labels: list[str]) -> int:
    """Upright words where level ones would lie over each other at 400 pixels."""
    return 0 if len(labels) * max(map(len, labels)) <= 36 else -90


def _cut(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"


def _most_confused(table: Table, names: list[str], title: str, dark: bool) -> go.Figure:
    """Bars of the pairs that were confused most often."""
    colours = palette(dark)
    wrong = table["target"] != table["predicted"]
    if not wrong.any():
        return empty(title, "Nothing was confused.", dark=dark)
    target, predicted, count = (table[name][wrong] for name in ("target", "predicted", "count"))
    most = np.argsort(-count, kind="stable")[:_MOST_PAIRS]
    of_class = np.bincount(table["target"], weights=table["count"])
    pairs = [f"{_cut(names[t])} → {_cut(names[p])}" for t, p in zip(target[most], predicted[most], strict=True)]
    figure = go.Figure()
    rows = [str(k) for k in range(len(most))]
    figure.add_bar(
        x=count[most],
        y=rows,
        orientation="h",
        marker={"color": translucent(colours.second, 0.4)},
        customdata=[
            f"{escape(p)}: {c:,} of {int(of_class[t]):,}"
            for p, c, t in zip(pairs, count[most], target[most], strict=True)
        ],
        hovertemplate="%{customdata}<extra></extra>",
        name="confused",
    )
    figure.add_scatter(
        x=[0] * len(most),
        y=rows,
        mode="text",
        text=[f" {escape(pair)}" for pair in pairs],
        textposition="middle right",
        textfont={"color": colours.ink, "size": 12},
        hoverinfo="skip",
        name="pairs",
    )
    framed(figure, title, "", dark=dark, height=120 + 24 * len(most), type="category", autorange="reversed")
    figure.update_layout(
        showlegend=False,
        hovermode="closest",
        bargap=0.25,
        xaxis={**axis("held-out examples", colours, standoff=6, rangemode="tozero")},
        yaxis={"showticklabels": False, "showgrid": False, "ticks": ""},
    )
    return figure
