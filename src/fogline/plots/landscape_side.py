"""The error landscape from the side."""

from __future__ import annotations

from html import escape

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from fogline.plots.landscape_scale import (
    Numbers,
    Scale,
    Values,
    array,
    path_colours,
    short_label,
    surface_colours,
    title_of,
    told,
    tone,
)
from fogline.plots.theme import Palette, between, empty, framed, palette

_THROUGH = 0.8
"""Opacity of the surface from the side: a path whose own losses lie below those of the plane is seen through it."""


def draw_3d(values: Values, *, dark: bool = False) -> go.Figure:
    """The surface from the side, in the colours of its height, fading into the fog, and the paths at their true losses.

    Args:
        values: the contents of a ``landscape.json``.
        dark: the dark palette.
    """
    loss = array(values["loss"])
    if not np.isfinite(loss).any():
        return empty(title_of(values), "No finite loss on this plane.", dark=dark)
    colours, scale = palette(dark), Scale.of(loss)
    figure = go.Figure()
    _add_mesh(figure, values, loss, scale, colours)
    for path, colour in zip(values["paths"], path_colours(values, colours), strict=True):
        _add_path_3d(figure, path, colour, values, scale)
    figure.update_layout(showlegend=True)
    framed(figure, title_of(values), "", dark=dark, height=560)
    look = {"gridcolor": colours.grid, "zeroline": False, "showbackground": False, "color": colours.faint, "nticks": 5}
    look |= {"tickfont": {"size": 11}}
    figure.update_layout(
        scene={
            "xaxis": {**look, "title": {"text": short_label(values, 0), "font": {"size": 13}}},
            "yaxis": {**look, "title": {"text": short_label(values, 1), "font": {"size": 13}}},
            "zaxis": {**look, "title": {"text": "loss", "font": {"size": 13}}, **scale.ticks(5)},
            "aspectratio": {"x": 1, "y": 1, "z": 0.7},
            "camera": {"eye": {"x": 1.55, "y": -1.7, "z": 1.2}, "center": {"x": -0.11, "y": -0.1, "z": -0.15}},
        },
        margin={"l": 0, "r": 0, "t": 44, "b": 60},
    )
    return figure


def _add_mesh(figure: go.Figure, values: Values, loss: Numbers, scale: Scale, colours: Palette) -> None:
    height = scale.heights(loss)
    rows, columns = height.shape
    grid_x, grid_y = np.meshgrid(values["x"], values["y"])
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    faces = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + columns], 1),
            np.stack([corner + 1, corner + columns + 1, corner + columns], 1),
        ]
    )
    faces = faces[np.isfinite(height.ravel()[faces]).all(1)]
    low, high = scale.heights([scale.low, scale.high])
    share = (np.nan_to_num(height, nan=high) - low) / (high - low or 1.0)
    tones = surface_colours(colours)
    colour = [
        between(tone(tones, float(at)), colours.page, 0.9 * float(mist))
        for at, mist in zip(share.ravel(), array(values["fog"]).ravel(), strict=True)
    ]
    figure.add_mesh3d(
        x=grid_x.ravel(),
        y=grid_y.ravel(),
        z=np.nan_to_num(height, nan=high).ravel(),
        i=faces[:, 0],
        j=faces[:, 1],
        k=faces[:, 2],
        vertexcolor=colour,
        opacity=_THROUGH,
        name="loss",
        lighting={"ambient": 0.75, "diffuse": 0.35, "specular": 0.05},
        text=[f"loss {value:.4g}" for value in loss.ravel()],
        hoverinfo="text",
        showlegend=False,
    )


def _add_path_3d(figure: go.Figure, path: Values, colour: str, values: Values, scale: Scale) -> None:
    x, y, height = array(path["x"]), array(path["y"]), scale.heights(array(path["loss"]))
    (left, right), (bottom, top) = ((edge[0], edge[-1]) for edge in (values["x"], values["y"]))
    _, high = scale.heights([scale.low, scale.high])
    inside = (x >= left) & (x <= right) & (y >= bottom) & (y <= top) & (height <= high)
    figure.add_scatter3d(
        x=_masked(x, inside),
        y=_masked(y, inside),
        z=_masked(height, inside),
        name=escape(path["name"]),
        mode="lines+markers",
        line={"width": 5, "color": colour},
        marker={"size": 2.5, "color": colour},
        customdata=told(path),
        hovertemplate="%{customdata}<extra></extra>",
    )


def _masked(values: Numbers, shown: NDArray[np.bool_]) -> list[float | None]:
    return [float(value) if there else None for value, there in zip(values, shown, strict=True)]
