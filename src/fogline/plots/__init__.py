"""Every figure once: a function of a run to a Plotly figure, for notebooks, the HTML report and the dashboard alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fogline.plots.curves import gradient_figure, loss_figure, lr_figure
from fogline.plots.landscape import FILE as LANDSCAPE_FILE
from fogline.plots.landscape import landscape_3d_figure, landscape_figure
from fogline.plots.rate import measured, rate_figure, rate_of_run_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from fogline.run import Run

FIGURES: dict[str, Callable[..., go.Figure]] = {
    "loss": loss_figure,
    "lr": lr_figure,
    "gradient": gradient_figure,
    "rate": rate_of_run_figure,
    "landscape": landscape_figure,
    "landscape_3d": landscape_3d_figure,
}
"""Figures by name; each takes ``(run, *, dark=False)``."""

CAPTIONS = {
    "loss": "Loss by step: the training loss, faint as it came and bold smoothed; the held-out loss; events as marks.",
    "lr": "Learning rate by step.",
    "gradient": "Gradient norm, faint as it came and bold smoothed, and the size of an update against the weights.",
    "rate": "How the learning rate was measured: the held-out loss behind each probe by its rate, and the training "
    "loss of the probes, each in the colour of its rate.",
    "landscape": "The loss over a plane through the weights, and the path of the run on it; the percentage is the "
    "share of the path that the plane holds. Fog lies where the path was far away and where little was evaluated. "
    "Below, the loss where the path was, and dotted at the nearest place of the plane: where they part, the plane "
    "does not show what happened.",
    "landscape_3d": "The same from the side: the height is the loss, the line is the path at its own losses.",
}


def figures_of(run: Run) -> list[str]:
    """Names of the figures that are worth showing of a run: those of what was not measured are left out."""
    there = {"rate": measured(run.info) is not None}
    there |= dict.fromkeys(("landscape", "landscape_3d"), (run.folder / LANDSCAPE_FILE).exists())
    return [name for name in FIGURES if there.get(name, True)]


__all__ = [
    "CAPTIONS",
    "FIGURES",
    "figures_of",
    "gradient_figure",
    "landscape_3d_figure",
    "landscape_figure",
    "loss_figure",
    "lr_figure",
    "rate_figure",
    "rate_of_run_figure",
]
