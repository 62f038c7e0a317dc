"""The look of every figure: two palettes, legible from 400 pixels wide, on a transparent ground."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go


@dataclass(frozen=True)
class Palette:
    """Colours of a figure. ``first`` to ``third`` differ in lightness too, so they are told apart without colour.

    ``middle`` lies between ``first`` and ``second`` on a scale from low to high. ``good``, ``warn`` and ``bad`` are
    those of a verdict and of findings.
    """

    ink: str
    faint: str
    grid: str
    first: str
    second: str
    third: str
    middle: str
    page: str
    good: str
    warn: str
    bad: str


LIGHT = Palette(
    "#1d2733", "#5c6975", "#dde3e8", "#1668b8", "#c2500c", "#2b7d4f", "#8b3f9e", "#ffffff",
    "#2b7d4f", "#8a5a00", "#b3261e",
)  # fmt: skip
DARK = Palette(
    "#e6ebf0", "#a3b0bc", "#343f4a", "#6cb2f7", "#ff9b57", "#7dd3a0", "#d58be0", "#14191f",
    "#7dd3a0", "#f0c060", "#ff8a80",
)  # fmt: skip


def palette(dark: bool) -> Palette:
    return DARK if dark else LIGHT


def translucent(colour: str, opacity: float) -> str:
    """A colour with an opacity.

    >>> translucent("#1668b8", 0.3)
    'rgba(22,104,184,0.3)'
    """
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def shades(count: int, colours: Palette) -> list[str]:
    """Colours from low to high.

    >>> shades(3, LIGHT) == [LIGHT.first, LIGHT.middle, LIGHT.second]
    True
    """
    at = [2 * k / max(1, count - 1) for k in range(count)]
    first, middle, second = colours.first, colours.middle, colours.second
    return [between(first, middle, x) if x < 1 else between(middle, second, x - 1) for x in at]


def between(low: str, high: str, share: float) -> str:
    """The colour that lies this share of the way from one to another.

    >>> between("#000000", "#ff8000", 0.5)
    '#804000'
    """
    pairs = [(int(low[at : at + 2], 16), int(high[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(start + share * (end - start)):02x}" for start, end in pairs)


def logarithmic(low: float, high: float, most: int = 7) -> dict[str, Any]:
    """Settings of a logarithmic axis with few, plainly written ticks: 1, 2, 5 in each decade, or whole decades.

    >>> logarithmic(0.04, 2.0)["ticktext"]
    ['0.05', '0.1', '0.2', '0.5', '1', '2']
    """
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    spans = [[(digit, decade) for decade in decades for digit in (1, 2, 5)]]
    spans += [[(1, decade) for decade in decades if decade % every == 0] for every in range(1, len(decades) + 1)]
    edge = (1 - 1e-9, 1 + 1e-9)
    for ticks in spans:
        inside = [(d, e) for d, e in ticks if low * edge[0] <= d * 10.0**e <= high * edge[1]]
        if len(inside) <= most:
            break
    values = [digit * 10.0**decade for digit, decade in inside]
    return {"type": "log", "tickmode": "array", "tickvals": values, "ticktext": [f"{value:g}" for value in values]}


def axis(title: str, colours: Palette, *, standoff: int, **settings: Any) -> dict[str, Any]:
    """Settings that all axes share, and further ones of this axis."""
    line = {"gridcolor": colours.grid, "linecolor": colours.grid, "zerolinecolor": colours.grid, "automargin": True}
    return {"title": {"text": title, "standoff": standoff}, "nticks": 6, **line, **settings}


def framed(figure: go.Figure, title: str, y: str, *, dark: bool, height: int = 340, **y_axis: Any) -> go.Figure:
    """Give a figure its title, axes and colours.

    Args:
        figure: the figure with its traces; changed and returned.
        title: one short line above the plot, already escaped for Plotly's HTML.
        y: what the vertical axis shows.
        dark: the dark palette.
        height: pixels.
        y_axis: further settings of the vertical axis.
    """
    colours = palette(dark)
    named = bool(figure.layout.showlegend or (figure.layout.showlegend is None and len(figure.data) > 1))
    figure.update_layout(
        template="none",
        title={"text": title, "x": 0, "xref": "paper", "xanchor": "left", "y": 0.97, "yanchor": "top"},
        title_font_size=15,
        font={"color": colours.ink, "family": "system-ui, sans-serif", "size": 13},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        height=height,
        margin={"l": 8, "r": 12, "t": 44, "b": 84 if named else 48},
        showlegend=named,
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom", "font": {"size": 12}},
        hovermode="x unified",
        hoverlabel={"bgcolor": colours.page, "font": {"color": colours.ink}, "bordercolor": colours.grid},
        xaxis=axis("step", colours, standoff=6, rangemode="tozero"),
        yaxis=axis(y, colours, standoff=8, **y_axis),
    )
    return figure


def add_line(
    figure: go.Figure,
    x: Any,
    y: Any,
    name: str | None,
    colour: str,
    *,
    width: float = 2,
    dash: str | None = None,
    told: str | None = None,
    **settings: Any,
) -> None:
    """Draw a line.

    Args:
        figure: gets the trace.
        x, y: its points.
        name: in the legend and under the pointer, if it has one.
        colour, width, dash: of the line.
        told: Plotly's template of what stands under the pointer; nothing does if None.
        settings: further ones of the trace.
    """
    line = {"color": colour, "width": width} | ({} if dash is None else {"dash": dash})
    pointer = {"hoverinfo": "skip"} if told is None else {"hovertemplate": told}
    figure.add_scatter(x=x, y=y, name=name, mode="lines", line=line, **pointer, **settings)


def empty(title: str, words: str, *, dark: bool) -> go.Figure:
    """A figure that says in words why there is nothing to be seen, without axes."""
    colours = palette(dark)
    figure = framed(go.Figure(), title, "", dark=dark, height=200)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.add_annotation(
        text=words, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper", font={"color": colours.faint, "size": 14}
    )
    return figure
