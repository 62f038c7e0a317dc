"""The error landscape with the path on it, from above and from the side, drawn from ``landscape.json`` alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from fogline.plots.theme import Palette, axis, between, empty, framed, palette, shades, translucent

if TYPE_CHECKING:
    from fogline.run import Run

Numbers = NDArray[np.float64]
Values = Mapping[str, Any]

FILE = "landscape.json"
_STEEP = 6.0  # heights whose top is this many times the middle are drawn on a logarithmic scale
_UNIT = 1e-3  # of the height: what the logarithmic scale begins at
_COLOURS = 9
_MUTED = 0.25  # how far the colours of the surface go towards the page, so that paths stand out
_THROUGH = 0.8
"""Opacity of the surface from the side: a path whose own losses lie below those of the plane is seen through it."""
_TITLES = {
    "path": "Plane of the path",
    "filter": "Random directions",
    "hessian": "Steepest curvature",
    "function": "Landscape",
}


@dataclass(frozen=True)
class Scale:
    """From losses to heights in a figure, and back for the ticks."""

    low: float
    high: float
    unit: float  # 0: linear

    @classmethod
    def of(cls, loss: Numbers) -> Scale:
        """The scale for the finite ones of some losses.

        >>> Scale.of(np.array([0.0, 0.5, 1.0])).unit, Scale.of(np.array([0.0, 0.1, 1000.0])).unit
        (0.0, 1.0)
        """
        finite = loss[np.isfinite(loss)]
        low, high, middle = float(finite.min()), float(finite.max()), float(np.median(finite))
        return cls(low, high, _UNIT * (high - low) if high - low > _STEEP * (middle - low) else 0.0)

    def heights(self, loss: Any) -> Numbers:
        """Heights of losses; NaN where a loss is not finite."""
        values = np.asarray(loss, dtype=np.float64)
        values = np.where(np.isfinite(values), values, np.nan)
        if not self.unit:
            return values
        return np.asarray(np.log10(np.maximum(values - self.low, 0.0) + self.unit))

    def ticks(self, count: int = 6) -> dict[str, Any]:
        """Settings of an axis of heights: ticks that tell losses."""
        low, high = self.heights([self.low, self.high])
        at = np.linspace(low, high, count)
        losses = 10**at - self.unit + self.low if self.unit else at
        return {"tickmode": "array", "tickvals": at.tolist(), "ticktext": [_tick(float(loss)) for loss in losses]}


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
    loss = _array(values["loss"])
    if not np.isfinite(loss).any():
        return empty(_title(values), "No finite loss on this plane.", dark=dark)
    colours, scale = palette(dark), Scale.of(loss)
    figure = make_subplots(rows=2, cols=1, row_heights=[0.72, 0.28], vertical_spacing=0.13)
    _add_surface(figure, values, loss, scale, colours)
    for path, colour in zip(values["paths"], _path_colours(values, colours), strict=True):
        _add_path(figure, path, colour, colours)
        _add_losses(figure, path, colour, exact=values["span"] == "function")
    figure.update_layout(showlegend=True)
    framed(figure, _title(values), "", dark=dark, height=680)
    across, up = ([edge[0], edge[-1]] for edge in (values["x"], values["y"]))
    figure.update_layout(
        xaxis=axis(_label(values, 0), colours, standoff=4, range=across, zeroline=False, showgrid=False),
        yaxis=axis(_label(values, 1), colours, standoff=4, range=up, zeroline=False, showgrid=False),
        xaxis2=axis("step", colours, standoff=4, rangemode="tozero"),
        yaxis2=axis("loss", colours, standoff=4, **_vertical(values)),
        hovermode="closest",
        margin={"l": 8, "r": 8, "t": 48, "b": 84 + 18 * (len(values["paths"]) > 3)},
    )
    return figure


def draw_3d(values: Values, *, dark: bool = False) -> go.Figure:
    """The surface from the side, in the colours of its height, fading into the fog, and the paths at their true losses.

    Args:
        values: the contents of a ``landscape.json``.
        dark: the dark palette.
    """
    loss = _array(values["loss"])
    if not np.isfinite(loss).any():
        return empty(_title(values), "No finite loss on this plane.", dark=dark)
    colours, scale = palette(dark), Scale.of(loss)
    figure = go.Figure()
    _add_mesh(figure, values, loss, scale, colours)
    for path, colour in zip(values["paths"], _path_colours(values, colours), strict=True):
        _add_path_3d(figure, path, colour, values, scale)
    figure.update_layout(showlegend=True)
    framed(figure, _title(values), "", dark=dark, height=560)
    look = {"gridcolor": colours.grid, "zeroline": False, "showbackground": False, "color": colours.faint, "nticks": 5}
    look |= {"tickfont": {"size": 11}}
    figure.update_layout(
        scene={
            "xaxis": {**look, "title": {"text": _short(values, 0), "font": {"size": 13}}},
            "yaxis": {**look, "title": {"text": _short(values, 1), "font": {"size": 13}}},
            "zaxis": {**look, "title": {"text": "loss", "font": {"size": 13}}, **scale.ticks(5)},
            "aspectratio": {"x": 1, "y": 1, "z": 0.7},
            "camera": {"eye": {"x": 1.55, "y": -1.7, "z": 1.2}, "center": {"x": -0.11, "y": -0.1, "z": -0.15}},
        },
        margin={"l": 0, "r": 0, "t": 44, "b": 60},
    )
    return figure


def _add_surface(figure: go.Figure, values: Values, loss: Numbers, scale: Scale, colours: Palette) -> None:
    height = scale.heights(loss)
    low, high = scale.heights([scale.low, scale.high])
    figure.add_heatmap(
        x=values["x"],
        y=values["y"],
        z=_listed(height),
        zmin=low,
        zmax=high,
        customdata=loss,
        name="loss",
        colorscale=_surface_colours(colours),
        zsmooth="best",
        colorbar=_colour_bar(scale),
        hovertemplate="loss %{customdata:.4g}<extra></extra>",
        row=1,
        col=1,
    )
    mist = [[0, translucent(colours.page, 0.0)], [1, translucent(colours.page, 1.0)]]
    figure.add_heatmap(
        x=values["x"],
        y=values["y"],
        z=values["fog"],
        zmin=0,
        zmax=1,
        name="fog",
        colorscale=mist,
        showscale=False,
        zsmooth="best",
        hoverinfo="skip",
        row=1,
        col=1,
    )
    # Contours lie above heat maps whatever their order: lines alone, which the fog may not hide.
    figure.add_contour(
        x=values["x"],
        y=values["y"],
        z=_listed(height),
        name="contours",
        contours={"start": low, "end": high, "size": (high - low) / 18 or 1.0, "coloring": "none"},
        line={"width": 0.7, "color": translucent(colours.ink, 0.35)},
        showscale=False,
        hoverinfo="skip",
        showlegend=False,
        row=1,
        col=1,
    )


def _colour_bar(scale: Scale) -> dict[str, Any]:
    place = {"len": 0.66, "y": 1, "yanchor": "top", "x": 1.0, "xpad": 6}
    return {**place, "thickness": 10, "outlinewidth": 0, **scale.ticks()}


def _add_path(figure: go.Figure, path: Values, colour: str, colours: Palette) -> None:
    x, y = path["x"], path["y"]
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        line={"width": 5, "color": translucent(colours.page, 0.8)},
        hoverinfo="skip",
        showlegend=False,
        name="",
        row=1,
        col=1,
    )
    figure.add_scatter(
        x=x,
        y=y,
        name=escape(path["name"]),
        mode="lines+markers",
        line={"width": 2, "color": colour},
        marker={"size": 4, "color": colour},
        customdata=_told(path),
        hovertemplate="%{customdata}<extra></extra>",
        row=1,
        col=1,
    )
    ends = {"start": (0, "circle"), "kept" if path["kept"] else "end": (len(x) - 1, "star")}
    for name, (at, symbol) in ends.items():
        figure.add_scatter(
            x=[x[at]],
            y=[y[at]],
            name=name,
            mode="markers",
            marker={"size": 11, "symbol": symbol, "color": colour, "line": {"width": 1.5, "color": colours.page}},
            customdata=[_told(path)[at]],
            hovertemplate=f"{name}: %{{customdata}}<extra></extra>",
            showlegend=False,
            row=1,
            col=1,
        )


def _add_losses(figure: go.Figure, path: Values, colour: str, *, exact: bool) -> None:
    count = len(path["step"]) - int(path["kept"])  # what was kept is no step further
    series = [("loss", "where the path was", "solid")]
    series += [] if exact else [("plane_loss", "on the plane", "dot")]
    for name, words, dash in series:
        figure.add_scatter(
            x=path["step"][:count],
            y=path[name][:count],
            name=words,
            mode="lines",
            line={"width": 2, "color": colour, "dash": dash},
            hovertemplate=f"step %{{x}}, {words}: %{{y:.4g}}<extra></extra>",
            showlegend=not exact,
            row=2,
            col=1,
        )


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
    tones = _surface_colours(colours)
    colour = [
        between(_tone(tones, float(at)), colours.page, 0.9 * float(mist))
        for at, mist in zip(share.ravel(), _array(values["fog"]).ravel(), strict=True)
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
    x, y, height = _array(path["x"]), _array(path["y"]), scale.heights(_array(path["loss"]))
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
        customdata=_told(path),
        hovertemplate="%{customdata}<extra></extra>",
    )


def _told(path: Values) -> list[str]:
    """What stands beside a place of a path: its loss, that of the plane and how far it is from it."""
    words = []
    columns = zip(path["step"], path["loss"], path["plane_loss"], path["distance"], strict=True)
    for step, loss, on_plane, distance in columns:
        said = f"step {step}, loss {_number(loss)}"
        if distance:
            said += f"; on the plane {_number(on_plane)}, {distance:.3g} away"
        words.append(said)
    return words


def _tick(loss: float) -> str:
    """
    >>> _tick(1163.2), _tick(0.01074), _tick(2e9)
    ('1,163', '0.0107', '2e+09')
    """
    return f"{loss:,.0f}" if 1000 <= abs(loss) < 1e6 else f"{loss:.3g}"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _vertical(values: Values) -> dict[str, Any]:
    """A logarithmic axis where the losses along the paths span a wide range above zero."""
    every = _array([loss for path in values["paths"] for loss in path["loss"]])
    every = every[np.isfinite(every)]
    if len(every) and every.min() > 0 and every.max() / every.min() > 20:
        return {"type": "log", "exponentformat": "power", "nticks": 4, "dtick": _decades(every)}
    return {"nticks": 4}


def _decades(losses: Numbers) -> float:
    """Decades between two ticks of a logarithmic axis, so that there are four or so."""
    return float(max(1, round(np.log10(losses.max() / losses.min()) / 4)))


def _title(values: Values) -> str:
    title = _TITLES.get(values["span"], "Landscape")
    explained = values.get("explained")
    return title if explained is None else f"{title}, {100 * sum(explained):.0f} %"


def _label(values: Values, at: int) -> str:
    return escape(str(values["labels"][at]))


def _short(values: Values, at: int) -> str:
    """A label for an axis that has little room."""
    words = _label(values, at)
    return words if len(words) <= 12 else ("first", "second")[at]


def _path_colours(values: Values, colours: Palette) -> list[str]:
    several = [colours.ink, colours.third, colours.second, colours.first, colours.middle, colours.faint]
    return [several[k % len(several)] for k in range(len(values["paths"]))]


def _surface_colours(colours: Palette) -> list[list[Any]]:
    tones = [between(shade, colours.page, _MUTED) for shade in shades(_COLOURS, colours)]
    return [[k / (_COLOURS - 1), tone] for k, tone in enumerate(tones)]


def _tone(scale: Sequence[Sequence[Any]], share: float) -> str:
    at = min(max(share, 0.0), 1.0) * (len(scale) - 1)
    low = min(int(at), len(scale) - 2)
    return between(scale[low][1], scale[low + 1][1], at - low)


def _array(values: Any) -> Numbers:
    return np.array(values, dtype=np.float64)


def _listed(values: Numbers) -> list[list[float | None]]:
    return [[float(value) if np.isfinite(value) else None for value in row] for row in values]


def _masked(values: Numbers, shown: NDArray[np.bool_]) -> list[float | None]:
    return [float(value) if there else None for value, there in zip(values, shown, strict=True)]
