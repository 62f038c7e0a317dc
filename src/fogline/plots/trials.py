"""What the trials of remedies showed: the unchanged control against the remedy, seed by seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from fogline.plots.theme import add_line, axis, empty, framed, palette

if TYPE_CHECKING:
    from fogline.run import Run

_TITLE = "Changes tried"
_LINE = 26  # characters of the name of a metric that fit below the axis at 400 pixels


def trials_figure(findings: Sequence[Mapping[str, Any]], *, dark: bool = False) -> go.Figure:
    """A line for each seed of each trial, from the score of the unchanged program to the score with what was changed.

    Args:
        findings: with "cause" and "trial", as :meth:`fogline.doctor.finding.Finding.to_dict` gives them.
        dark: the dark palette.
    """
    tried = [(str(found["cause"]), found["trial"]) for found in findings if found.get("trial")]
    if not tried:
        return empty(_TITLE, "No remedy was tried.", dark=dark)
    colours = palette(dark)
    figure = go.Figure()
    ends: dict[str, list[Any]] = {"x": [], "before": [], "after": [], "words": []}
    labels, row = {}, 0
    for cause, trial in tried:
        labels[row + (len(trial["seeds"]) - 1) / 2] = cause
        for seed, before, after in zip(trial["seeds"], trial["without"], trial["with_it"], strict=True):
            ends["x"].append(row)
            ends["before"].append(before)
            ends["after"].append(after)
            ends["words"].append(f"{escape(cause)}, seed {seed}: {before:.4g} → {after:.4g}")
            row += 1
        row += 1
    across = [value for pair in zip(ends["before"], ends["after"], strict=True) for value in (*pair, None)]
    down = [value for at in ends["x"] for value in (at, at, None)]
    add_line(figure, across, down, "change", colours.faint, width=1.5, showlegend=False)
    looks = (
        ("before", "as it is", colours.second, "circle-open"),
        ("after", "with the change", colours.first, "circle"),
    )
    for key, name, colour, symbol in looks:
        figure.add_scatter(
            x=ends[key],
            y=ends["x"],
            mode="markers",
            name=name,
            marker={"color": colour, "size": 10, "symbol": symbol, "line": {"width": 2}},
            customdata=ends["words"],
            hovertemplate="%{customdata}<extra></extra>",
            cliponaxis=False,
        )
    ticks = {"tickmode": "array", "tickvals": list(labels), "ticktext": [escape(cause) for cause in labels.values()]}
    framed(figure, _TITLE, "", dark=dark, height=170 + 20 * row, range=[row - 1.5, -0.8], showgrid=False)
    figure.update_layout(
        hovermode="closest",
        xaxis=axis("<br>".join(wrap(escape(str(tried[0][1]["metric"])), _LINE)), colours, standoff=6),
        yaxis={**ticks, "zeroline": False, "ticks": ""},
    )
    return figure


def trials_of_run_figure(run: Run, *, dark: bool = False) -> go.Figure:
    """The trials behind the findings of a run."""
    return trials_figure(findings_of(run), dark=dark)


def findings_of(run: Run) -> list[dict[str, Any]]:
    """The findings of a run in full, in the order they were made."""
    return [json.loads(row["data"]) for row in run.findings]
