"""Maps of what every layer did at every probed step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from fogline.plots.reading import columns
from fogline.plots.theme import empty, framed, logarithmic, palette
from fogline.record.store import Table

if TYPE_CHECKING:
    from fogline.run import Run

Numbers = NDArray[np.float64]

COLOURS = "Cividis"
"""Rises evenly in lightness, so that a map is read without colour and on paper."""
_MOST_STEPS = 120
_NAME = 18  # characters of a name beside a map
_SHARE = "share of zeros"


def layers_figure(run: Run, *, dark: bool = False) -> go.Figure:
    """A map of the layers by probed step, in the order of the model from top to bottom; a menu says of what."""
    colours = palette(dark)
    table = columns(run, "layers")
    if not len(table):
        return empty("Layers", "No probe has looked at the layers.", dark=dark)
    steps, names, maps = layer_maps(table)
    labels = [escape(label) for label in shortened(names)]
    shown = [name for name, values in maps.items() if np.isfinite(values).any()]
    figure = go.Figure()
    for name in shown:
        figure.add_heatmap(
            x=steps,
            y=labels,
            z=_colour_of(maps[name], name),
            name=name,
            visible=name == shown[0],
            colorscale=COLOURS,
            colorbar=_bar(maps[name], name, colours.ink),
            customdata=maps[name].astype(np.float32),
            hovertemplate="%{y}, step %{x}: %{customdata:.3g}<extra></extra>",
            hoverongaps=False,
        )
    row = 20 if len(names) <= 20 else 13
    ticks = {"tickmode": "array", "tickvals": labels, "tickfont": {"size": 12 if row > 13 else 10}, "ticks": ""}
    across = {"range": [0, steps[-1]]} if len(steps) > 1 else {"tickmode": "array", "tickvals": steps}
    framed(
        figure, "Layers", "", dark=dark, height=150 + max(5, len(names)) * row, autorange="reversed", type="category"
    )
    figure.update_layout(
        showlegend=False,
        hovermode="closest",
        margin={"l": 8, "r": 8, "t": 84, "b": 48},
        updatemenus=[_menu(shown)],
        xaxis={"showgrid": False, "rangemode": "normal", **across},
        yaxis={"showgrid": False, **ticks},
    )
    return figure


def layer_maps(table: Table) -> tuple[list[int], list[str], dict[str, Numbers]]:
    """Probed steps (at most 120 of them), layers in the order of the model, and the maps of shape (layers, steps).

    Args:
        table: the table ``layers``, the rows of each step in the order of the model.
    """
    steps = np.unique(table["step"])
    if len(steps) > _MOST_STEPS:
        steps = steps[np.unique(np.linspace(0, len(steps) - 1, _MOST_STEPS).astype(int))]
    rows = np.isin(table["step"], steps)
    layers = table["layer"][rows]
    names = list(dict.fromkeys(layers))
    place = {name: k for k, name in enumerate(names)}
    at = np.array([place[name] for name in layers]), np.searchsorted(steps, table["step"][rows])

    def spread(values: Numbers) -> Numbers:
        grid = np.full((len(names), len(steps)), np.nan)
        grid[at] = values[rows]
        return grid

    weight, update = table["weight_norm"], table["update_norm"]
    ratio = np.divide(update, weight, out=np.full(len(table), np.nan), where=weight > 0)
    maps = {
        "update / weight": spread(ratio),
        "gradient norm": spread(table["grad_norm"]),
        "weight norm": spread(weight),
        "activation rms": spread(table["activation_rms"]),
        _SHARE: spread(table["zero_share"]),
    }
    return [int(step) for step in steps], names, maps


def shortened(names: Sequence[str], length: int = _NAME) -> list[str]:
    """Names that fit beside a map: leading parts are cut to their first letter, what is still too long in its middle.

    >>> shortened(["0", "encoder.layers.11.self_attn.out_proj", ""])
    ['0', 'e.l.11.s.out_proj', '(model)']
    """
    short = [_short(name, length) for name in names]
    seen = Counter(short)
    return [f"{name} #{k}" if seen[name] > 1 else name for k, name in enumerate(short)]


def _short(name: str, length: int) -> str:
    parts = name.split(".") if name else ["(model)"]
    for k, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= length:
            break
        parts[k] = part if part.isdigit() else part[:1]
    text = ".".join(parts)
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[half + 1 - length :]}"


def _colour_of(values: Numbers, name: str) -> NDArray[np.float32]:
    """What the colour stands for: the logarithm of what spans decades."""
    if name == _SHARE:
        return values.astype(np.float32)
    return np.log10(np.where(values > 0, values, np.nan)).astype(np.float32)


def _bar(values: Numbers, name: str, ink: str) -> dict[str, Any]:
    """The scale of colours beside the map, with the values themselves on it."""
    look = {"thickness": 10, "outlinewidth": 0, "tickfont": {"color": ink, "size": 11}, "xpad": 4}
    there = values[np.isfinite(values) & (values > 0)]
    if name == _SHARE or not len(there):
        return look
    ticks = logarithmic(float(there.min()), float(there.max()), most=5)
    return {**look, "tickmode": "array", "tickvals": np.log10(ticks["tickvals"]), "ticktext": ticks["ticktext"]}


def _menu(shown: Sequence[str]) -> dict[str, Any]:
    """A menu of the maps. Plotly draws the entry under the pointer on near-white, so the ink is dark in both looks."""
    entries = [
        {"label": name, "method": "update", "args": [{"visible": [other == name for other in shown]}]} for name in shown
    ]
    place = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 8, "t": 0}}
    return {
        "buttons": entries,
        **place,
        "bgcolor": "#e3e9ee",
        "bordercolor": "#a3b0bc",
        "font": {"color": "#1d2733", "size": 13},
        "showactive": True,
    }
