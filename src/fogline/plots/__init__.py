"""Every figure once: a function of a run to a Plotly figure, for notebooks, the HTML report and the dashboard alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fogline.plots.compare import compare_figure as compare_figure
from fogline.plots.confusion import confusion_figure as confusion_figure
from fogline.plots.curves import gradient_figure as gradient_figure
from fogline.plots.curves import limits_figure as limits_figure
from fogline.plots.curves import loss_figure as loss_figure
from fogline.plots.curves import lr_figure as lr_figure
from fogline.plots.curves import probed
from fogline.plots.data_map import data_map_figure as data_map_figure
from fogline.plots.landscape import FILE as LANDSCAPE_FILE
from fogline.plots.landscape import landscape_3d_figure as landscape_3d_figure
from fogline.plots.landscape import landscape_figure as landscape_figure
from fogline.plots.layers import layers_figure as layers_figure
from fogline.plots.rate import measured
from fogline.plots.rate import rate_figure as rate_figure
from fogline.plots.rate import rate_of_run_figure as rate_of_run_figure
from fogline.plots.reading import columns
from fogline.plots.trials import findings_of
from fogline.plots.trials import trials_figure as trials_figure
from fogline.plots.trials import trials_of_run_figure as trials_of_run_figure
from fogline.record import example_files

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from fogline.run import Run

FIGURES: dict[str, Callable[..., go.Figure]] = {
    "loss": loss_figure,
    "lr": lr_figure,
    "gradient": gradient_figure,
    "limits": limits_figure,
    "layers": layers_figure,
    "confusion": confusion_figure,
    "data_map": data_map_figure,
    "trials": trials_of_run_figure,
    "rate": rate_of_run_figure,
    "landscape": landscape_figure,
    "landscape_3d": landscape_3d_figure,
}
"""Figures by name; each takes ``(run, *, dark=False)``."""

CAPTIONS = {
    "loss": "Loss by step: the training loss, faint as it came and bold smoothed, and the held-out loss. Below it, in "
    "lanes: events, what was found and when, the verdict. Words under the pointer say more.",
    "lr": "Learning rate by step.",
    "gradient": "Gradient norm, faint as it came and bold smoothed, and the size of an update against the weights.",
    "limits": "Sharpness: how steeply the loss bends for the steps of the optimizer, as a share of what it can bear. "
    "Hovering at the limit while the loss falls is healthy: slopes steepen until the steps just fit. Reach of a step: "
    "0 leaves the slope as it was, a half ends at the bottom of the line, 1 where both walls are as steep.",
    "layers": "The layers by probed step, from the first of the model down to the last; the menu chooses what is "
    "shown.",
    "confusion": "Held-out examples by their class and the class they were taken for, by the weights that were kept. "
    "The colour is the share of the class.",
    "data_map": "Every example by the confidence in its label, averaged over the epochs, and by how much that wavered. "
    "Easy ones lie at the top left; hard ones, and wrong labels, at the bottom left; the run wavered on those to the "
    "right. The colour is the share of the epochs in which the answer was right.",
    "examples_map": "Every example; drag around some of them to look at them below, or press one to see what it did.",
    "trials": "Changes tried: a line for each seed, from the score of the program as it is to the score with the "
    "change, on data not trained on. Further right is better.",
    "rate": "How the learning rate was measured: the held-out loss behind each probe by its rate, and the training "
    "loss of the probes, each in the colour of its rate.",
    "compare": "The held-out loss of the runs above, the training loss, smoothed, below. A run has the same colour, "
    "dash and mark in both.",
    "landscape": "The loss over a plane through the weights, and the path of the run on it; the percentage is the "
    "share of the path that the plane holds. Fog lies where the path was far away and where little was evaluated. "
    "Below, the loss where the path was, and dotted at the nearest place of the plane: where they part, the plane "
    "does not show what happened.",
    "landscape_3d": "The same from the side: the height is the loss, the line is the path at its own losses.",
}

_THERE: dict[str, Callable[[Run], bool]] = {
    "limits": lambda run: any(len(probed(run, name)[0]) for name in ("overshoot", "sharpness")),
    "layers": lambda run: len(columns(run, "layers")) > 0,
    "confusion": lambda run: len(columns(run, "confusion")) > 0,
    "data_map": lambda run: len(example_files.files(_folder(run))) > 1,
    "trials": lambda run: any(found.get("trial") for found in findings_of(run)),
    "rate": lambda run: measured(run.info) is not None,
    "landscape": lambda run: (_folder(run) / LANDSCAPE_FILE).exists(),
    "landscape_3d": lambda run: (_folder(run) / LANDSCAPE_FILE).exists(),
}
"""Whether a run has what a figure shows; those that are not named here are always worth showing."""


def _folder(run: Run) -> Path:
    folder: Path = run.folder
    return folder


def figures_of(run: Run) -> list[str]:
    """Names of the figures that the run has the data for, in the order in which they are shown."""
    return [name for name in FIGURES if name not in _THERE or _THERE[name](run)]
