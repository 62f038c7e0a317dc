"""How a learning rate was measured: the race of its probes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fogline.plots.theme import Palette, add_line, axis, empty, framed, logarithmic, palette, shades, translucent

if TYPE_CHECKING:
    from fogline.run import Run

_LOG_FROM = 20.0  # losses that span more than this factor are drawn on a logarithmic axis
_ABOVE_START = 0.6  # of the gain: so far above the loss before, probes are drawn at their height
_LINE = 40  # characters that fit into 400 pixels


def rate_figure(
    value: float, interval: Sequence[float], evidence: Mapping[str, Any], *, dark: bool = False
) -> go.Figure:
    """The race: the held-out loss behind each probe by its learning rate, and below it their training losses.

    A probe's point has the colour of its curve. Probes that were lost, or ended far above the loss before, stand at
    the top edge.

    Args:
        value: the rate that was chosen.
        interval: (lowest, highest) rate between which the best is expected.
        evidence: of a :class:`fogline.Rate`; without a race the figure says in words how the rate was set.
        dark: the dark palette.
    """
    race = evidence.get("race")
    title = f"Learning rate measured: {value:.3g}"
    if race is None:
        return empty(f"Learning rate {value:.3g}", _lines(str(evidence["rule"])), dark=dark)
    if not _finite([*race["scores"], race["before"]]):
        return empty(title, "No probe had a finite held-out loss.", dark=dark)
    colours = palette(dark)
    figure = make_subplots(rows=2, cols=1, vertical_spacing=0.2)
    upper = _vertical(race["scores"], race["before"], ceiling(race["before"], race["scores"]))
    _add_choice(figure, value, interval, upper["edges"], colours)
    _add_scores(figure, race, upper["edges"], colours)
    lower = _add_curves(figure, race, colours)
    framed(figure, title, "held-out loss", dark=dark, height=620, **upper["axis"])
    low, high = min(*race["rates"], interval[0]) / 1.5, max(*race["rates"], interval[1]) * 1.5
    across = {**logarithmic(low, high, most=5), "range": [np.log10(low), np.log10(high)]}
    figure.update_layout(
        xaxis=axis("learning rate", colours, standoff=6, **across),
        xaxis2=axis("step of a probe", colours, standoff=6, rangemode="tozero"),
        yaxis2=axis("training loss", colours, standoff=8, **lower),
        hovermode="closest",
        margin={"l": 8, "r": 12, "t": 52, "b": 96},
    )
    return figure


def rate_of_run_figure(run: Run, *, dark: bool = False) -> go.Figure:
    """How the learning rate of a run was measured, or in words that it was not."""
    info = run.info
    found = measured(info)
    if found is not None:
        return rate_figure(found["value"], found["interval"], found["evidence"], dark=dark)
    rate = (info.get("recipe") or {}).get("lr")
    if rate == "auto":
        words = "The learning rate has not been measured yet."
    else:
        words = "The learning rate was not measured." if rate is None else f"The learning rate was given: {rate:.4g}."
    return empty("Learning rate", words, dark=dark)


def measured(info: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a ``run.json`` tells about a measured learning rate; None where it was given."""
    found: Mapping[str, Any] = (info.get("resolved") or {}).get("lr") or {}
    return found if "evidence" in found else None


def ceiling(before: float | None, scores: Sequence[float | None]) -> float:
    """The held-out loss up to which probes are worth telling apart: rates that are far too high reach any height.

    >>> ceiling(1.0, [0.5, 1.2, 1e30, None]), ceiling(1.0, [0.9, 0.5])
    (1.3, 1.0)
    """
    finite = _finite(scores)
    start = before if before is not None else median(finite)
    if not finite:
        return start
    highest = max(start + _ABOVE_START * max(0.0, start - min(finite)), median(finite))
    return min(highest, max(*finite, start))


def _finite(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _vertical(values: Sequence[float | None], before: float | None, highest: float) -> dict[str, Any]:
    """The edges of a vertical axis for losses up to ``highest``, and its settings."""
    lowest = min(value for value in _finite([*values, before]))
    if lowest > 0 and highest / lowest > _LOG_FROM:
        pad = (highest / lowest) ** 0.06
        low, high = lowest / pad, highest * pad
        return {"edges": (low, high), "axis": {**logarithmic(low, high), "range": [np.log10(low), np.log10(high)]}}
    pad = 0.06 * (highest - lowest) or 0.1 * abs(highest) or 1.0
    low, high = lowest - pad, highest + pad
    return {"edges": (low, high), "axis": {"range": [low, high]}}


def _add_choice(
    figure: go.Figure, value: float, interval: Sequence[float], edges: tuple[float, float], colours: Palette
) -> None:
    low, high = interval
    bottom, top = edges
    figure.add_scatter(
        x=[low, low, high, high],
        y=[bottom, top, top, bottom],
        name="interval",
        mode="lines",
        line={"width": 0, "color": colours.third},
        fill="toself",
        fillcolor=translucent(colours.third, 0.14),
        hoveron="fills",
        text=f"best expected between {low:.2g} and {high:.2g}",
        hoverinfo="text",
    )
    told = f"chosen: {value:.3g}<extra></extra>"
    add_line(figure, [value, value], [bottom, top], "chosen", colours.third, told=told)


def _add_scores(figure: go.Figure, race: Mapping[str, Any], edges: tuple[float, float], colours: Palette) -> None:
    rates, top = race["rates"], edges[1]
    shade = shades(len(rates), colours)
    if race["before"] is not None:
        across, told = [min(rates), max(rates)], "before: %{y:.4g}<extra></extra>"
        add_line(figure, across, [race["before"]] * 2, "before", colours.ink, width=1.5, dash="dash", told=told)
    inside = [k for k, score in enumerate(race["scores"]) if score is not None and score <= top]
    if inside:
        figure.add_scatter(
            x=[rates[k] for k in inside],
            y=[race["scores"][k] for k in inside],
            name="probes",
            mode="lines+markers",
            line={"color": translucent(colours.faint, 0.6), "width": 1},
            marker={"color": [shade[k] for k in inside], "size": 9},
            hovertemplate="rate %{x:.3g}: %{y:.4g}<extra></extra>",
        )
    beyond = [k for k in range(len(rates)) if k not in inside]
    if beyond:
        figure.add_scatter(
            x=[rates[k] for k in beyond],
            y=[top] * len(beyond),
            name="too high",
            mode="markers",
            marker={"color": [shade[k] for k in beyond], "size": 10, "symbol": "triangle-up"},
            customdata=["lost" if race["scores"][k] is None else f"{race['scores'][k]:.3g}" for k in beyond],
            hovertemplate="rate %{x:.3g}: %{customdata}<extra></extra>",
            cliponaxis=False,
        )


def _add_curves(figure: go.Figure, race: Mapping[str, Any], colours: Palette) -> dict[str, Any]:
    """The training losses of the probes; returns settings of their vertical axis, which the lost ones may leave."""
    for rate, losses, shade in zip(race["rates"], race["losses"], shades(len(race["rates"]), colours), strict=True):
        steps, told = list(range(1, len(losses) + 1)), f"rate {rate:.3g}: %{{y:.4g}}<extra></extra>"
        add_line(figure, steps, losses, f"{rate:.3g}", shade, width=1.5, told=told, showlegend=False, row=2, col=1)
    limit = ceiling(race["before"], race["scores"])
    pairs = zip(race["losses"], race["scores"], strict=True)
    told_apart = [losses for losses, score in pairs if score is not None and score <= limit] or race["losses"]
    values = _finite([loss for losses in told_apart for loss in losses])
    if not values:
        return {}
    settings: dict[str, Any] = _vertical(values, None, max(values))["axis"]
    return settings


def _lines(words: str) -> str:
    return "<br>".join(escape(line) for line in textwrap.wrap(words[:1].upper() + words[1:] + ".", _LINE))
