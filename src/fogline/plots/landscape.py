"""The error landscape with the path on it, from above and from the side, drawn from ``landscape.json`` alone."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fogline.plots.landscape_scale import (
    Numbers,
    Values,
    array,
    label,
    listed,
    path_colours,
    surface_colours,
    title_of,
    told,
)
from fogline.plots.landscape_scale import Scale as Scale
from fogline.plots.landscape_side import draw_3d as draw_3d
from fogline.plots.theme import Palette, add_line, axis, empty, framed, palette, translucent

if TYPE_CHECKING:
    from fogline.run import Run

FILE = "landscape.json"


def landscape_figure(run: Run, *, dark: bool = False) -> go.Figure:
    """The landscape of a run from above, or in words that none was computed."""
    values = read(run)
    return _none(dark) if values is None else draw(values, dark=dark)


def landscape_3d_figure(run: Run, *, dark: bool = False) -> go.Figure:
    """The landscape of a run from the side, or in words that none was computed."""
    values = read(run)
    return _none(dark) if values is None else draw_3d(values, dark=dark)


def read(run: Run) -> Values | None:
    """The contents of a run's ``landscape.json``; None where there is none."""
    place = run.folder / FILE
    if not place.exists():
        return None
    values: Values = json.loads(place.read_text(encoding="utf-8"))
    return values


def _none(dark: bool) -> go.Figure:
    return empty("Error landscape", "None was computed: fogline landscape RUN.", dark=dark)


def draw(values: Values, *, dark: bool = False) -> go.Figure:
    """The surface from above, the paths on it, and below them the losses along the paths.

    Fog lies over what the path says little of and where nothing was evaluated. In the lower part a solid line is the
    loss where the path was, a dotted one the loss at the nearest place of the plane: where they differ, the plane does
    not show what happened.

    Args:
        values: the contents of a ``landscape.json``.
        dark: the dark palette.
    """
    loss = array(values["loss"])
    if not np.isfinite(loss).any():
        return empty(title_of(values), "No finite loss on this plane.", dark=dark)
    colours, scale = palette(dark), Scale.of(loss)
    figure = make_subplots(rows=2, cols=1, row_heights=[0.72, 0.28], vertical_spacing=0.13)
    _add_surface(figure, values, loss, scale, colours)
    for path, colour in zip(values["paths"], path_colours(values, colours), strict=True):
        _add_path(figure, path, colour, colours)
        _add_losses(figure, path, colour, exact=values["span"] == "function")
    figure.update_layout(showlegend=True)
    framed(figure, title_of(values), "", dark=dark, height=680)
    across, up = ([edge[0], edge[-1]] for edge in (values["x"], values["y"]))
    figure.update_layout(
        xaxis=axis(label(values, 0), colours, standoff=4, range=across, zeroline=False, showgrid=False),
        yaxis=axis(label(values, 1), colours, standoff=4, range=up, zeroline=False, showgrid=False),
        xaxis2=axis("step", colours, standoff=4, rangemode="tozero"),
        yaxis2=axis("loss", colours, standoff=4, **_vertical(values)),
        hovermode="closest",
        margin={"l": 8, "r": 8, "t": 48, "b": 84 + 18 * (len(values["paths"]) > 3)},
    )
    return figure


def _add_surface(figure: go.Figure, values: Values, loss: Numbers, scale: Scale, colours: Palette) -> None:
    height = scale.heights(loss)
    low, high = scale.heights([scale.low, scale.high])
    place = {"x": values["x"], "y": values["y"], "row": 1, "col": 1}
    figure.add_heatmap(
        **place,
        z=listed(height),
        zmin=low,
        zmax=high,
        customdata=loss,
        name="loss",
        colorscale=surface_colours(colours),
        zsmooth="best",
        colorbar=_colour_bar(scale),
        hovertemplate="loss %{customdata:.4g}<extra></extra>",
    )
    mist = [[0, translucent(colours.page, 0.0)], [1, translucent(colours.page, 1.0)]]
    figure.add_heatmap(
        **place,
        z=values["fog"],
        zmin=0,
        zmax=1,
        name="fog",
        colorscale=mist,
        showscale=False,
        zsmooth="best",
        hoverinfo="skip",
    )
    # Contours lie above heat maps whatever their order: lines alone, which the fog may not hide.
    figure.add_contour(
        **place,
        z=listed(height),
        name="contours",
        contours={"start": low, "end": high, "size": (high - low) / 18 or 1.0, "coloring": "none"},
        line={"width": 0.7, "color": translucent(colours.ink, 0.35)},
        showscale=False,
        hoverinfo="skip",
        showlegend=False,
    )


def _colour_bar(scale: Scale) -> dict[str, Any]:
    place = {"len": 0.66, "y": 1, "yanchor": "top", "x": 1.0, "xpad": 6}
    return {**place, "thickness": 10, "outlinewidth": 0, **scale.ticks()}


def _add_path(figure: go.Figure, path: Values, colour: str, colours: Palette) -> None:
    x, y, place = path["x"], path["y"], {"row": 1, "col": 1}
    add_line(figure, x, y, "", translucent(colours.page, 0.8), width=5, showlegend=False, row=1, col=1)
    figure.add_scatter(
        x=x,
        y=y,
        **place,
        name=escape(path["name"]),
        mode="lines+markers",
        line={"width": 2, "color": colour},
        marker={"size": 4, "color": colour},
        customdata=told(path),
        hovertemplate="%{customdata}<extra></extra>",
    )
    ends = {"start": (0, "circle"), "kept" if path["kept"] else "end": (len(x) - 1, "star")}
    for name, (at, symbol) in ends.items():
        figure.add_scatter(
            x=[x[at]],
            y=[y[at]],
            **place,
            name=name,
            mode="markers",
            marker={"size": 11, "symbol": symbol, "color": colour, "line": {"width": 1.5, "color": colours.page}},
            customdata=[told(path)[at]],
            hovertemplate=f"{name}: %{{customdata}}<extra></extra>",
            showlegend=False,
        )


def _add_losses(figure: go.Figure, path: Values, colour: str, *, exact: bool) -> None:
    count = len(path["step"]) - int(path["kept"])  # what was kept is no step further
    series = [("loss", "where the path was", "solid")]
    series += [] if exact else [("plane_loss", "on the plane", "dot")]
    for name, words, dash in series:
        losses, told = (path["step"][:count], path[name][:count]), f"step %{{x}}, {words}: %{{y:.4g}}<extra></extra>"
        add_line(figure, *losses, words, colour, dash=dash, told=told, showlegend=not exact, row=2, col=1)


def _vertical(values: Values) -> dict[str, Any]:
    """A logarithmic axis where the losses along the paths span a wide range above zero."""
    every = array([loss for path in values["paths"] for loss in path["loss"]])
    every = every[np.isfinite(every)]
    if len(every) and every.min() > 0 and every.max() / every.min() > 20:
        return {"type": "log", "exponentformat": "power", "nticks": 4, "dtick": _decades(every)}
    return {"nticks": 4}


def _decades(losses: Numbers) -> float:
    """Decades between two ticks of a logarithmic axis, so that there are four or so."""
    return float(max(1, round(np.log10(losses.max() / losses.min()) / 4)))
