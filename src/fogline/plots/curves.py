"""The curves of a run by step: loss, learning rate, gradient."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from fogline.plots.theme import Palette, empty, framed, logarithmic, palette, translucent
from fogline.plots.thinning import smooth, thin

if TYPE_CHECKING:
    from fogline.run import Run

Numbers = NDArray[np.float64]

_LOG_FROM = 20.0  # values that span more than this factor are drawn on a logarithmic axis
_SMOOTH_FROM = 50  # fewer steps are legible as they are


def loss_figure(run: Run, *, dark: bool = False) -> go.Figure:
    """Training loss as it came (thinned) and smoothed, held-out loss, events; the verdict in the title."""
    colours = palette(dark)
    steps = run.steps
    x, loss = steps["step"].astype(float), steps["loss"]
    title = f"Loss{_verdict_words(run)}"
    if not np.isfinite(loss).any():
        return empty(title, "No finite loss was recorded." if len(loss) else "No steps yet.", dark=dark)
    figure = go.Figure()
    # Where a long run was thinned to its extremes, the means stand beside them.
    smoothed = smooth(steps.columns.get("loss_mean", loss))
    _add_noisy(figure, x, loss, "training", colours.first, smoothed)
    held_x, held = _held_out_loss(run)
    if len(held):
        mode = "lines+markers" if len(held) <= 40 else "lines"
        _add_line(figure, held_x, held, "held out", colours.second, mode=mode)
    axis, floor = _scale(loss, smoothed, held)
    _add_events(figure, run, colours, floor)
    return framed(figure, title, "loss", dark=dark, **axis)


def lr_figure(run: Run, *, dark: bool = False) -> go.Figure:
    """The learning rate of every step."""
    steps = run.steps
    x, rate = steps["step"].astype(float), steps["lr"]
    if not np.isfinite(rate).any():
        return empty("Learning rate", "No learning rate was recorded.", dark=dark)
    figure = go.Figure()
    _add_line(figure, x, rate, "learning rate", palette(dark).first)
    return framed(figure, "Learning rate", "", dark=dark, height=260, rangemode="tozero", exponentformat="power")


def gradient_figure(run: Run, *, dark: bool = False) -> go.Figure:
    """The norm of the gradient and, where probed, the size of the update against the weights; logarithmic."""
    colours = palette(dark)
    steps = run.steps
    x = steps["step"].astype(float)
    figure = go.Figure()
    norm_x, norm = _positive(x, steps["grad_norm"])
    ratio_x, ratio = _positive(x, steps["update_ratio"])
    if not len(norm) and not len(ratio):
        return empty("Gradient", "No gradient was recorded.", dark=dark)
    if len(norm):
        # On a logarithmic axis the middle is the geometric mean.
        _add_noisy(figure, norm_x, norm, "gradient norm", colours.first, np.exp(smooth(np.log(norm))))
    if len(ratio):
        _add_line(figure, ratio_x, ratio, "update / weight", colours.third)
    figure.update_layout(showlegend=True)
    every = np.concatenate([norm, ratio])
    return framed(figure, "Gradient", "", dark=dark, height=300, **logarithmic(every.min(), every.max()))


def _positive(x: Numbers, values: Numbers) -> tuple[Numbers, Numbers]:
    """The finite values above zero: a logarithmic axis has no place for others."""
    there = np.isfinite(values) & (values > 0)
    return x[there], values[there]


def _add_noisy(figure: go.Figure, x: Numbers, y: Numbers, name: str, colour: str, middle: Numbers) -> None:
    """Draw values that jitter faintly, and their running mean over them."""
    if len(x) < _SMOOTH_FROM:
        _add_line(figure, x, y, name, colour)
        return
    _add_line(figure, x, y, f"{name}, each step", colour, faint=True)
    _add_line(figure, x, middle, name, colour)


def _add_line(
    figure: go.Figure, x: Numbers, y: Numbers, name: str, colour: str, *, faint: bool = False, mode: str = "lines"
) -> None:
    x, y = thin(x, y)
    # A single point makes no line.
    mode = "markers" if len(x) == 1 else mode
    line = {"color": translucent(colour, 0.35) if faint else colour, "width": 1 if faint else 2}
    marker = {"color": colour, "size": 5}
    figure.add_scatter(
        x=x, y=y, name=name, mode=mode, line=line, marker=marker, hovertemplate="%{y:.4g}", showlegend=not faint
    )


def _held_out_loss(run: Run) -> tuple[Numbers, Numbers]:
    scores = run.scores
    rows = (scores["name"] == "loss") & (scores["split"] != "train")
    return scores["step"][rows].astype(float), scores["value"][rows].astype(float)


def _scale(loss: Numbers, smoothed: Numbers, held: Numbers) -> tuple[dict[str, Any], float]:
    """Settings of the vertical axis, logarithmic where positive values span a wide range, and its lower edge.

    A single small batch may have a loss near zero: on a logarithmic axis such dips do not set the lower edge.
    """
    every = np.concatenate([loss, smoothed, held])
    every = every[np.isfinite(every)]
    low, high = float(every.min()), float(every.max())
    middle = np.concatenate([smoothed, held])
    middle = middle[np.isfinite(middle)]
    if low > 0 and high / float(middle.min()) > _LOG_FROM:
        edge = max(low, float(middle.min()) / 4)
        floor = edge * (edge / high) ** 0.06
        return {**logarithmic(floor, high), "range": [np.log10(floor), np.log10(high) + 0.05]}, floor
    return {"rangemode": "tozero" if low >= 0 else "normal"}, min(0.0, low)


def _add_events(figure: go.Figure, run: Run, colours: Palette, floor: float) -> None:
    """Marks along the lower edge; their words appear under the pointer, and the report lists them."""
    rows = list(run.events)
    if not rows:
        return
    figure.add_scatter(
        x=[float(row["step"]) for row in rows],
        y=[floor] * len(rows),
        name="events",
        mode="markers",
        marker={"symbol": "triangle-up", "size": 9, "color": colours.third},
        customdata=[f"{escape(row['kind'])}: {escape(_shortened(row['message']))}" for row in rows],
        hovertemplate="%{customdata}<extra></extra>",
        cliponaxis=False,
    )


def _shortened(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _verdict_words(run: Run) -> str:
    verdict = run.verdict
    return "" if verdict is None else " · " + escape(str(verdict).split(":")[0].lower())
