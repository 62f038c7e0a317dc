"""Figures of a search: Optuna's own, in the look of all others."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from fogline.plots.theme import Palette, axis, between, empty, framed, palette, translucent

if TYPE_CHECKING:
    from fogline._tune.view import Search

_FEWEST = 2  # trials trained to their end that a figure can say something of
_LINE = 22  # characters of a name on one line
_MOST_SLICES = 12


def history_figure(tuned: Search, *, dark: bool = False) -> go.Figure:
    """The held-out loss of each whole trial, and the lowest so far."""
    title = "Held-out loss by trial"
    if _whole(tuned) < 1:
        return empty(title, "No trial has been trained to its end.", dark=dark)
    figure = _optuna().plot_optimization_history(tuned.study)
    colours = palette(dark)
    for trace, (name, colour) in zip(
        figure.data, (("whole trials", colours.first), ("lowest", colours.second)), strict=False
    ):
        trace.name = name
        trace.update(marker={"color": colour}, line={"color": colour}, cliponaxis=False)
    framed(figure, title, "held-out loss", dark=dark, **_scale(figure))
    return figure.update_layout(hovermode="closest", xaxis=axis("trial", colours, standoff=6))


def importance_figure(tuned: Search, *, dark: bool = False) -> go.Figure:
    """How much of the spread of the loss each choice accounts for."""
    shares, title = tuned.importance, "What matters"
    if not shares:
        return empty(title, "Six whole trials are needed to tell.", dark=dark)
    optuna, colours = _optuna(), palette(dark)
    from fogline._tune.study import need_optuna

    evaluator = need_optuna().importance.PedAnovaImportanceEvaluator()
    figure = optuna.plot_param_importances(tuned.study, evaluator=evaluator)
    figure.update_traces(marker={"color": colours.first}, textfont={"color": colours.ink}, cliponaxis=False)
    framed(figure, title, "", dark=dark, height=150 + 38 * len(shares), showgrid=False)
    figure.update_yaxes(
        ticktext=[_lines(name) for name in reversed(list(shares))], tickvals=list(reversed(list(shares)))
    )
    figure.update_layout(hovermode="closest", showlegend=False, bargap=0.35)
    return figure.update_xaxes(axis("share of the spread", colours, standoff=6, range=[0, 1.12 * max(shares.values())]))


def slices_figure(tuned: Search, *, dark: bool = False) -> go.Figure:
    """The held-out loss of whole trials over each choice by itself; later trials are more strongly coloured."""
    title = "Each choice by itself"
    if _whole(tuned) < _FEWEST:
        return empty(title, "Two whole trials are needed.", dark=dark)
    names = _names(tuned)[:_MOST_SLICES]
    colours = palette(dark)
    figure = _optuna().plot_slice(tuned.study, params=names)
    figure.update_traces(marker={"colorscale": _colours(colours), "showscale": False, "line": {"width": 0}, "size": 8})
    return _in_rows(figure, len(names), title, dark=dark)


def parallel_figure(tuned: Search, *, dark: bool = False) -> go.Figure:
    """Every whole trial as a line through its choices."""
    title = "Trials through their choices"
    if _whole(tuned) < _FEWEST:
        return empty(title, "Two whole trials are needed.", dark=dark)
    colours = palette(dark)
    figure = _optuna().plot_parallel_coordinate(tuned.study)
    places = figure.layout.xaxis
    names = ["held-out loss" if name == "Objective Value" else _lines(str(name)) for name in places.ticktext]
    marks, ends = [each.to_plotly_json() for each in figure.layout.annotations], [*places.range]
    bars = [each.to_plotly_json() | {"line": {"color": colours.grid, "width": 1}} for each in figure.layout.shapes]
    _coloured(figure, colours)
    framed(figure, title, "", dark=dark, height=400, visible=False, range=[-0.08, 1.08], fixedrange=True)
    ticks = {
        "tickmode": "array",
        "tickvals": list(places.tickvals),
        "ticktext": names,
        "range": ends,
        "showgrid": False,
    }
    return figure.update_layout(
        hovermode="closest",
        showlegend=False,
        margin={"t": 64, "b": 84},
        xaxis=axis("", colours, standoff=6, zeroline=False, **ticks),
        shapes=bars,
        annotations=[mark | {"font": {"color": colours.faint, "size": 10}} for mark in marks],
    )


def curves_figure(tuned: Search, *, dark: bool = False) -> go.Figure:
    """The held-out loss of every trial where it was compared with the others; pruned ones end there."""
    title = "Where trials were compared"
    if not any(trial.intermediate_values for trial in tuned.study.get_trials(deepcopy=False)):
        return empty(title, "No trial has been compared yet.", dark=dark)
    colours = palette(dark)
    figure = _optuna().plot_intermediate_values(tuned.study)
    states = {f"Trial{row['number']}": row["state"] for row in tuned.trials}
    for trace in figure.data:
        whole = states.get(trace.name) == "complete"
        colour = colours.first if whole else translucent(colours.faint, 0.6)
        trace.update(line={"color": colour, "width": 2 if whole else 1}, marker={"size": 6, "color": colour})
    framed(figure, title, "held-out loss", dark=dark, **_scale(figure))
    figure.update_layout(hovermode="closest", showlegend=False, margin={"b": 48})
    ticks = {"tickmode": "array", "tickvals": [1, 3, 9], "ticktext": ["1/9", "3/9", "end"]}
    return figure.update_xaxes(axis("of the trial", colours, standoff=6, **ticks))


def contour_figure(tuned: Search, *, dark: bool = False) -> go.Figure:
    """The loss over the two choices that matter most."""
    title = "The two choices that matter most"
    names = [*tuned.importance][:2] or _names(tuned)[:2]
    if _whole(tuned) < 4 or len(names) < 2:
        return empty(title, "Four whole trials over two choices are needed.", dark=dark)
    colours = palette(dark)
    figure = _optuna().plot_contour(tuned.study, params=names)
    figure.update_traces(
        selector={"type": "contour"}, colorscale=_colours(colours), reversescale=False, colorbar=_bar(colours)
    )
    figure.update_traces(selector={"type": "scatter"}, marker={"color": colours.ink, "line": {"width": 0}, "size": 5})
    x, y = (str(each.title.text) for each in (figure.layout.xaxis, figure.layout.yaxis))
    kept = [{"type": each.type, "range": each.range} for each in (figure.layout.xaxis, figure.layout.yaxis)]
    framed(figure, title, escape(y), dark=dark, height=400, **_kept(kept[1]))
    return figure.update_layout(
        hovermode="closest",
        showlegend=False,
        margin={"b": 48},
        xaxis=axis(escape(x), colours, standoff=6, **_kept(kept[0])),
    )


def timeline_figure(tuned: Search, *, dark: bool = False) -> go.Figure:
    """When each trial ran."""
    title = "When trials ran"
    if not tuned.study.get_trials(deepcopy=False):
        return empty(title, "No trial has begun.", dark=dark)
    colours = palette(dark)
    figure = _optuna().plot_timeline(tuned.study)
    by_state = {"COMPLETE": colours.good, "PRUNED": colours.faint, "FAIL": colours.bad, "RUNNING": colours.first}
    for trace in figure.data:
        trace.update(marker={"color": by_state.get(str(trace.name), colours.warn)}, name=str(trace.name).lower())
    framed(figure, title, "trial", dark=dark)
    return figure.update_layout(hovermode="closest", xaxis=axis("time", colours, standoff=6, type="date", nticks=4))


FIGURES: dict[str, Callable[..., go.Figure]] = {
    "history": history_figure,
    "importance": importance_figure,
    "slices": slices_figure,
    "curves": curves_figure,
    "parallel": parallel_figure,
    "contour": contour_figure,
    "timeline": timeline_figure,
}
"""By name, in the order they stand on a page."""


def _optuna() -> Any:
    from optuna import visualization

    return visualization


def _whole(tuned: Search) -> int:
    return sum(row["state"] == "complete" for row in tuned.trials)


def _coloured(figure: go.Figure, colours: Palette) -> None:
    """Lines from the colour of the lowest loss to that of the highest; they carry it as text only."""
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    losses = [float(trace.customdata[0][1]) for trace in lines]
    low, high = min(losses), max(losses)
    for trace, loss in zip(lines, losses, strict=True):
        share = (loss - low) / (high - low) if high > low else 0.0
        colour = between(colours.first, colours.second, share)
        trace.update(line={"color": colour, "width": 3 if loss == low else 1.4}, opacity=1.0 if loss == low else 0.6)
        trace.customdata = [["held-out loss" if n == "Objective Value" else n, v] for n, v in trace.customdata]
    for trace in figure.data:
        if trace.mode != "lines":
            trace.marker.showscale = False


def _names(tuned: Search) -> list[str]:
    return list(dict.fromkeys(name for trial in tuned.study.get_trials(deepcopy=False) for name in trial.params))


def _colours(colours: Palette) -> list[list[Any]]:
    return [[0.0, colours.first], [0.5, colours.middle], [1.0, colours.second]]


def _bar(colours: Palette) -> dict[str, Any]:
    return {"title": {"text": "loss"}, "thickness": 10, "outlinewidth": 0, "tickfont": {"color": colours.ink}}


def _lines(name: str) -> str:
    return "<br>".join(wrap(escape(name), _LINE)) or name


def _kept(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if value is not None}


def _scale(figure: go.Figure) -> dict[str, Any]:
    """A logarithmic axis where the losses are all positive and far apart."""
    values = [float(y) for trace in figure.data for y in (trace.y if trace.y is not None else ()) if y is not None]
    far = values and min(values) > 0 and max(values) > 10 * min(values)
    return {"type": "log"} if far else {}


def _in_rows(figure: go.Figure, count: int, title: str, *, dark: bool) -> go.Figure:
    """The panels of Optuna's slices two in a row, so that they can be read on a narrow page."""
    colours, rows = palette(dark), -(-count // 2)
    places = [(f"xaxis{k + 1 if k else ''}", f"yaxis{k + 1 if k else ''}", *divmod(k, 2)) for k in range(count)]
    kept = {x: figure.layout[x].to_plotly_json() for x, *_ in places}
    framed(figure, title, "held-out loss", dark=dark, height=90 + 220 * rows)
    for x, y, row, column in places:
        same = {key: kept[x][key] for key in ("type", "range") if kept[x].get(key) is not None}
        across, top = [0.0, 0.46] if column == 0 else [0.54, 1.0], 1 - row / rows
        ticks = {} if same.get("type") == "category" else {"nticks": 4}
        name = escape(str(kept[x].get("title", {}).get("text", "")))
        figure.layout[x].update(axis(name, colours, standoff=4, domain=across, **same, **ticks))
        up = [top - 0.68 / rows, top]
        figure.layout[y].update(axis("held-out loss" if column == 0 else "", colours, standoff=6, domain=up))
        figure.layout[y].showticklabels = column == 0
    return figure.update_layout(hovermode="closest", showlegend=False, margin={"b": 24}, width=None)
