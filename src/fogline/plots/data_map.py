"""The data map: how sure a run became of each example, and how much it wavered on the way.

Swayamdipta et al., 2020 (arXiv:2009.10795): what is easy lies at the top left, what is hard, or labelled wrongly, at
the bottom left, and what the run wavered on to the right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from fogline.plots.theme import empty, framed, palette
from fogline.record import example_files
from fogline.words import number

if TYPE_CHECKING:
    from fogline.run import Run

_MOST_POINTS = 4000
_FEWEST_EPOCHS = 2


def data_map_figure(run: Run, *, dark: bool = False) -> go.Figure:
    """Every example by its mean confidence and how much that wavered; the colour is the share of right answers.

    Of more than 4,000 examples every second, third, ... is drawn.
    """
    seen = example_files.summary(run.folder, only=("confidence", "correct")).columns
    epochs = int(seen["epochs"].max(initial=0)) if "variability" in seen else 0
    if epochs < _FEWEST_EPOCHS:
        return empty("Data map", "Fewer than two epochs of examples were recorded.", dark=dark)
    known = np.flatnonzero(np.isfinite(seen["confidence"]))
    ids = known[:: -(-len(known) // _MOST_POINTS)]
    title = f"Data map · {number(len(known))} examples, {epochs} epochs"
    figure, colours = go.Figure(), palette(dark)
    figure.add_scatter(
        x=seen["variability"][ids],
        y=seen["confidence"][ids],
        mode="markers",
        customdata=np.stack([ids, seen["correct"][ids]], axis=1),
        hovertemplate="example %{customdata[0]:d}<br>confidence %{y:.2f}<br>variability %{x:.2f}"
        "<br>right in %{customdata[1]:.0%} of the epochs<extra></extra>",
        marker={
            "size": 5,
            "opacity": 0.75,
            "color": seen["correct"][ids],
            "cmin": 0,
            "cmax": 1,
            "colorscale": [[0, colours.second], [0.5, colours.middle], [1, colours.first]],
            "line": {"width": 0.5, "color": colours.page},
            "colorbar": {"tickformat": ".0%", "thickness": 12},
        },
        showlegend=False,
    )
    framed(figure, title, "mean confidence", dark=dark, height=440)
    figure.update_xaxes(title="variability of the confidence", rangemode="tozero")
    figure.update_yaxes(range=[-0.03, 1.03])
    return figure
