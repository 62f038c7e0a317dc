"""The curves of a run by step: loss, learning rate, gradient, and how far it is from the optimizer's limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from fogline.plots.reading import Curve, columns, curve
from fogline.plots.theme import add_line, empty, framed, logarithmic, palette, translucent
from fogline.plots.thinning import smooth, thin
from fogline.plots.timeline import LANE, add_timeline
from fogline.words import verdict_name

if TYPE_CHECKING:
    from fogline.run import Run

Numbers = NDArray[np.float64]

_LOG_FROM = 20.0  # values that span more than this factor are drawn on a logarithmic axis
_SMOOTH_FROM = 50  # fewer steps are legible as they are
_PLOT = 212  # pixels of the curves above the time line


def loss_figure(run: Run, *, dark: bool = False) -> go.Figure:
    """Training loss as it came (thinned) and smoothed, held-out loss; below it findings, events and the verdict."""
    colours = palette(dark)
    training = curve(run, "loss")
    x, loss, smoothed = training.x, training.y, training.middle
    verdict = run.info.get("verdict")
    title = f"Loss · {verdict_name(verdict)}" if verdict else "Loss"
    if not np.isfinite(loss).any():
        return empty(title, "No finite loss was recorded." if len(loss) else "No steps yet.", dark=dark)
    figure = go.Figure()
    _add_noisy(figure, training, "training", colours.first)
    held_x, held = held_out_loss(run)
    if len(held):
        mode = "lines+markers" if len(held) <= 40 else "lines"
        _add_line(figure, held_x, held, "held out", colours.second, mode=mode)
    lanes = add_timeline(figure, run, max(x[-1], held_x[-1] if len(held) else 0.0), colours)
    framed(figure, title, "loss", dark=dark, height=340 + LANE * lanes, **loss_axis(loss, smoothed, held))
    if lanes:
        share = LANE * lanes / (_PLOT + LANE * lanes)
        figure.update_layout(
            xaxis={"anchor": "y2"},
            yaxis={"domain": [share + 0.02, 1]},
            yaxis2={"domain": [0, share]},
            # Under a unified pointer the words of a mark would stand among the losses of its step.
            hovermode="closest",
        )
    return figure


def lr_figure(run: Run, *, dark: bool = False) -> go.Figure:
    """The learning rate of every step."""
    rate = curve(run, "lr")
    if not np.isfinite(rate.y).any():
        return empty("Learning rate", "No learning rate was recorded.", dark=dark)
    figure = go.Figure()
    _add_line(figure, rate.x, rate.y, "learning rate", palette(dark).first)
    return framed(figure, "Learning rate", "", dark=dark, height=260, rangemode="tozero", exponentformat="power")


def gradient_figure(run: Run, *, dark: bool = False) -> go.Figure:
    """The norm of the gradient and, where probed, the size of the update against the weights; logarithmic."""
    colours = palette(dark)
    figure = go.Figure()
    norm, (ratio_x, ratio) = _logarithms(curve(run, "grad_norm")), probed(run, "update_ratio")
    ratio_x, ratio = ratio_x[ratio > 0], ratio[ratio > 0]
    if not len(norm.y) and not len(ratio):
        return empty("Gradient", "No gradient was recorded.", dark=dark)
    if len(norm.y):
        _add_noisy(figure, norm, "gradient norm", colours.first)
    if len(ratio):
        _add_line(figure, ratio_x, ratio, "update / weight", colours.third, dash="dash")
    figure.update_layout(showlegend=True)
    every = np.concatenate([norm.y, ratio])
    return framed(figure, "Gradient", "", dark=dark, height=300, **logarithmic(every.min(), every.max()))


def limits_figure(run: Run, *, dark: bool = False) -> go.Figure:
    """Sharpness as a share of what the optimizer can bear, and how far its steps go; 1 is the limit of both.

    The sharpness is that of the loss of one batch along its preconditioned gradient, over the limit of the method:
    ``2/lr`` for gradient descent, ``(2+2b)/lr`` for heavy ball, ``(2+2b1)/((1-b1) lr)`` for Adam on the preconditioned
    Hessian. The reach of a step is ``(1 + overshoot)/2``: 0 where it leaves the slope as it is, 1/2 at the bottom of
    the line, 1 where the far wall is as steep as the near one.
    """
    colours = palette(dark)
    title = "Steps against their limit"
    reach_x, overshoot = probed(run, "overshoot")
    sharp_x, sharp = probed(run, "sharpness")
    reach = (1 + overshoot) / 2
    if not len(reach) and not len(sharp):
        return empty(title, "Neither sharpness nor overshoot was recorded.", dark=dark)
    figure = go.Figure()
    if len(reach):
        _add_line(figure, reach_x, reach, "reach of a step", colours.third, faint=len(sharp) > 0, dash="dot")
        figure.data[-1].showlegend = True
    if len(sharp):
        _add_line(figure, sharp_x, sharp, "sharpness / limit", colours.first, mode="lines+markers")
    last = max([*reach_x[-1:], *sharp_x[-1:]])
    add_line(figure, [0, last], [1, 1], "limit", colours.bad, width=1.5, dash="dash")
    every = np.concatenate([reach, sharp])
    # A few wild probes do not set the scale: they leave the plot at its edge.
    high = max(1.15, min(float(every.max()), max(2.0, 3 * float(np.quantile(every, 0.95)))))
    low = -0.25 if every.min() < 0 else 0.0
    return framed(figure, title, "share of the limit", dark=dark, height=300, range=[low, 1.04 * high])


def probed(run: Run, column: str) -> tuple[Numbers, Numbers]:
    """Steps and values of a signal where it was measured and is finite."""
    table = columns(run, "steps", "step", column, filled=column)
    there = np.isfinite(table[column])
    return table["step"][there].astype(float), table[column][there]


def _logarithms(signal: Curve) -> Curve:
    """The values above zero, for a logarithmic axis has no place for others.

    Their running mean is the geometric one; of a long run, that of the means of its groups.
    """
    there = np.isfinite(signal.y) & (signal.y > 0)
    x, y = signal.x[there], signal.y[there]
    if len(signal.middle) < len(signal.y):
        return Curve(x, y, signal.middle_x, signal.middle)
    return Curve(x, y, x, np.exp(smooth(np.log(y))))


def _add_noisy(figure: go.Figure, signal: Curve, name: str, colour: str) -> None:
    """Draw values that jitter faintly, and their running mean over them."""
    if len(signal.x) < _SMOOTH_FROM:
        _add_line(figure, signal.x, signal.y, name, colour)
        return
    _add_line(figure, signal.x, signal.y, f"{name}, each step", colour, faint=True)
    _add_line(figure, signal.middle_x, signal.middle, name, colour)


def _add_line(
    figure: go.Figure,
    x: Numbers,
    y: Numbers,
    name: str,
    colour: str,
    *,
    faint: bool = False,
    mode: str = "lines",
    dash: str = "solid",
) -> None:
    x, y = thin(x, y)
    # A single point makes no line.
    mode = "markers" if len(x) == 1 else mode
    line = {"color": translucent(colour, 0.35) if faint else colour, "width": 1 if faint else 2, "dash": dash}
    marker = {"color": colour, "size": 5}
    figure.add_scatter(
        x=x, y=y, name=name, mode=mode, line=line, marker=marker, hovertemplate="%{y:.4g}", showlegend=not faint
    )


def held_out_loss(run: Run) -> tuple[Numbers, Numbers]:
    """Steps and values of the held-out loss."""
    scores = columns(run, "scores")
    rows = (scores["name"] == "loss") & (scores["split"] != "train")
    return scores["step"][rows].astype(float), scores["value"][rows].astype(float)


def loss_axis(loss: Numbers, smoothed: Numbers, held: Numbers) -> dict[str, Any]:
    """Settings of a vertical axis of losses, logarithmic where positive values span a wide range.

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
        return {**logarithmic(floor, high), "range": [np.log10(floor), np.log10(high) + 0.05]}
    return {"rangemode": "tozero" if low >= 0 else "normal"}
