"""Several runs in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from fogline.plots.curves import Numbers, held_out_loss, loss_axis
from fogline.plots.reading import curve
from fogline.plots.theme import Palette, axis, empty, framed, palette
from fogline.plots.thinning import thin

if TYPE_CHECKING:
    from fogline.run import Run

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down")
_MARKS = 12
_NAME = 38  # characters of a name that fit into 400 pixels
_POINTS = 200


def compare_figure(runs: Sequence[Run], *, dark: bool = False) -> go.Figure:
    """The held-out loss of several runs above, their training loss, smoothed, below.

    A run has the same colour, dash and mark in both, so that runs are told apart without colour too.

    Args:
        runs: at least one.
        dark: the dark palette.

    Raises:
        ValueError: no run was given.
    """
    if not runs:
        raise ValueError("expected at least one run to compare, received none")
    colours = palette(dark)
    held = [held_out_loss(run) for run in runs]
    trained = [_training_loss(run) for run in runs]
    panels = {name: curves for name, curves in (("held-out loss", held), ("training loss", trained)) if _any(curves)}
    if not panels:
        return empty("Runs compared", "None of the runs has recorded a finite loss.", dark=dark)
    figure = go.Figure()
    names = [_cut(run.name) for run in runs]
    for panel, curves in enumerate(panels.values(), start=1):
        _add_panel(figure, names, curves, panel, colours)
    first, *rest = panels
    legend = 21 * len(runs)
    framed(figure, "Runs compared", first, dark=dark, height=40 + 240 * len(panels) + 56 + legend)
    figure.update_layout(
        showlegend=True,
        legend={"orientation": "v"},
        margin={"b": 60 + legend},
        yaxis=axis(first, colours, standoff=8, **_scale(panels[first])),
    )
    if rest:
        figure.update_layout(
            xaxis={"anchor": "y2"},
            yaxis={"domain": [0.54, 1]},
            yaxis2=axis(rest[0], colours, standoff=8, domain=[0, 0.46], anchor="x", **_scale(panels[rest[0]])),
        )
    return figure


def _training_loss(run: Run) -> tuple[Numbers, Numbers]:
    loss = curve(run, "loss")
    return loss.middle_x, loss.middle


def _any(curves: Sequence[tuple[Numbers, Numbers]]) -> bool:
    return any(np.isfinite(y).any() for _, y in curves)


def _scale(curves: Sequence[tuple[Numbers, Numbers]]) -> dict[str, Any]:
    """Settings of an axis for all runs; what rises far above every start leaves the plot, as a diverged run does."""
    finite = [y[np.isfinite(y)] for _, y in curves]
    starts = [float(y[0]) for y in finite if len(y)]
    lowest = min(float(y.min()) for y in finite if len(y))
    ceiling = max(starts) + 0.3 * (max(starts) - lowest)
    every = np.concatenate([np.minimum(y, ceiling) for y in finite])
    settings = loss_axis(every, every, every[:0])
    if settings.get("type") != "log" and any((y > ceiling).any() for y in finite):
        settings["range"] = [min(0.0, lowest), ceiling]
    return settings


def _add_panel(
    figure: go.Figure, names: Sequence[str], curves: Sequence[tuple[Numbers, Numbers]], panel: int, colours: Palette
) -> None:
    shades = (colours.first, colours.second, colours.third, colours.middle)
    named = {trace.legendgroup for trace in figure.data}
    for k, (name, (x, y)) in enumerate(zip(names, curves, strict=True)):
        x, y = thin(x, y, _POINTS)
        if not len(y):
            continue
        colour = shades[k % len(shades)]
        figure.add_scatter(
            x=x,
            y=y,
            yaxis="y" if panel == 1 else "y2",
            name=escape(name),
            legendgroup=str(k),
            showlegend=str(k) not in named,
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": _DASHES[k % len(_DASHES)]},
            marker={
                "color": colour,
                "size": 8,
                "symbol": _SYMBOLS[k % len(_SYMBOLS)],
                "maxdisplayed": _MARKS,
            },
            hovertemplate="%{y:.4g}",
        )


def _cut(name: str) -> str:
    """The ends of a long name: dated names begin alike and differ at the end.

    >>> len(_cut("a-very-long-name-of-a-run-20261122-101500-and-more"))
    38
    """
    half = (_NAME - 1) // 2
    return name if len(name) <= _NAME else f"{name[:half]}…{name[half + 1 - _NAME :]}"
