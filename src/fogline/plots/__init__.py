"""Every figure once: a function of a run to a Plotly figure, for notebooks, the HTML report and the dashboard alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fogline.plots.curves import gradient_figure, loss_figure, lr_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

FIGURES: dict[str, Callable[..., go.Figure]] = {
    "loss": loss_figure,
    "lr": lr_figure,
    "gradient": gradient_figure,
}
"""Figures by name; each takes ``(run, *, dark=False)``."""

CAPTIONS = {
    "loss": "Loss by step: the training loss, faint as it came and bold smoothed; the held-out loss; events as marks.",
    "lr": "Learning rate by step.",
    "gradient": "Gradient norm, faint as it came and bold smoothed, and the size of an update against the weights.",
}

__all__ = ["CAPTIONS", "FIGURES", "gradient_figure", "loss_figure", "lr_figure"]
