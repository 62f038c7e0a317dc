"""Every figure once: a function of a run to a Plotly figure, for notebooks, the HTML report and the dashboard alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fogline.plots.curves import gradient_figure, loss_figure, lr_figure
from fogline.plots.rate import measured, rate_figure, rate_of_run_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from fogline.run import Run

FIGURES: dict[str, Callable[..., go.Figure]] = {
    "loss": loss_figure,
    "lr": lr_figure,
    "gradient": gradient_figure,
    "rate": rate_of_run_figure,
}
"""Figures by name; each takes ``(run, *, dark=False)``."""

CAPTIONS = {
    "loss": "Loss by step: the training loss, faint as it came and bold smoothed; the held-out loss; events as marks.",
    "lr": "Learning rate by step.",
    "gradient": "Gradient norm, faint as it came and bold smoothed, and the size of an update against the weights.",
    "rate": "How the learning rate was measured: the held-out loss behind each probe by its rate, and the training "
    "loss of the probes, each in the colour of its rate.",
}


def figures_of(run: Run) -> list[str]:
    """Names of the figures that are worth showing of a run: all, but for a rate that was given and not measured."""
    return [name for name in FIGURES if name != "rate" or measured(run.info) is not None]


__all__ = [
    "CAPTIONS",
    "FIGURES",
    "figures_of",
    "gradient_figure",
    "loss_figure",
    "lr_figure",
    "rate_figure",
    "rate_of_run_figure",
]
