"""The data map: how sure a run became of each example, and how much it wavered on the way.

Swayamdipta et al., 2020 (arXiv:2009.10795): what is easy lies at the top left, what is hard, or labelled wrongly, at
the bottom left, and what the run wavered on to the right.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fogline.plots.theme import empty, framed, palette
from fogline.words import number

if TYPE_CHECKING:
    from fogline.run import Run

Numbers = NDArray[np.float64]

_MOST_POINTS = 4000
_FEWEST_EPOCHS = 2


@dataclass(frozen=True)
class Dynamics:
    """What became of each example over the epochs; of examples that were recorded in no epoch all is NaN.

    Attributes:
        confidence: mean over the epochs.
        variability: standard deviation over the epochs.
        correct: share of the epochs in which it was answered right.
        epochs: how many there are.
    """

    confidence: Numbers
    variability: Numbers
    correct: Numbers
    epochs: int


def example_files(run: Run) -> list[Path]:
    """The records of a run's examples, an epoch each, in their order."""
    folder: Path = run.folder / "examples"
    return sorted(path for path in folder.glob("epoch-*.safetensors") if path.is_file() and not path.is_symlink())


def dynamics(files: list[Path]) -> Dynamics | None:
    """Mean and deviation of what was recorded, one file in memory at a time; None where fewer than two are readable."""
    count = sums = squares = right = None
    epochs = 0
    for path in files:
        columns = _columns(path)
        if columns is None or (sums is not None and len(columns[0]) != len(sums)):
            continue
        confidence, correct = columns
        if count is None or sums is None or squares is None or right is None:
            count, sums, squares, right = (np.zeros(len(confidence)) for _ in range(4))
        seen = np.isfinite(confidence)
        known = np.where(seen, confidence, 0.0)
        count, sums, squares = count + seen, sums + known, squares + known**2
        right = right + np.where(seen, correct, 0.0)
        epochs += 1
    if epochs < _FEWEST_EPOCHS or count is None or sums is None or squares is None or right is None:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums / count
        spread = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
        return Dynamics(mean, spread, right / count, epochs)


def _columns(path: Path) -> tuple[Numbers, Numbers] | None:
    """Confidence and correctness of an epoch; None where the file is cut short or holds something else."""
    try:
        with safe_open(path, framework="numpy") as opened:
            if not {"confidence", "correct"} <= set(opened.keys()):
                return None
            confidence, correct = (opened.get_tensor(name).astype(np.float64) for name in ("confidence", "correct"))
    except (SafetensorError, OSError):
        return None
    return (confidence, correct) if confidence.ndim == 1 and confidence.shape == correct.shape else None


def data_map_figure(run: Run, *, dark: bool = False) -> go.Figure:
    """Every example by its mean confidence and how much that wavered; the colour is the share of right answers.

    Of more than 4,000 examples every second, third, ... is drawn.
    """
    seen = dynamics(example_files(run))
    if seen is None:
        return empty("Data map", "Fewer than two epochs of examples were recorded.", dark=dark)
    ids = np.flatnonzero(np.isfinite(seen.confidence))
    ids = ids[:: -(-len(ids) // _MOST_POINTS)] if len(ids) else ids
    title = f"Data map · {number(int(np.isfinite(seen.confidence).sum()))} examples, {seen.epochs} epochs"
    figure, colours = go.Figure(), palette(dark)
    figure.add_scatter(
        x=seen.variability[ids],
        y=seen.confidence[ids],
        mode="markers",
        customdata=np.stack([ids, seen.correct[ids]], axis=1),
        hovertemplate="example %{customdata[0]:d}<br>confidence %{y:.2f}<br>variability %{x:.2f}"
        "<br>right in %{customdata[1]:.0%} of the epochs<extra></extra>",
        marker={
            "size": 5,
            "opacity": 0.75,
            "color": seen.correct[ids],
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
