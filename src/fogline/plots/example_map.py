"""The data map of a table of examples, coloured by any of its columns; regions of it can be chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from fogline.plots.theme import add_line, empty, framed, palette
from fogline.record.store import Table
from fogline.words import number

Numbers = NDArray[np.float64]

MOST_POINTS = 4000
_FIRST = 500  # of them are the likeliest label errors, whatever is left out
_MOST_CLASSES = 10  # more are no longer told apart: the rest is drawn as one
_AXES = (
    ("variability", "confidence"),
    ("variability", "loss"),
    ("gradient_norm", "loss"),
    ("gradient_norm", "residual"),
)
_OF_CLASSES = ("target", "predicted", "likely", "edit_label")
_SHARES = ("confidence", "correct", "label_error", "rare")
_WORDS = {
    "label_error": "probability of a wrong label",
    "correct": "share of the epochs answered right",
    "target": "label",
    "predicted": "predicted",
    "likely": "likely label",
    "edit": "edit",
    "confidence": "mean confidence",
    "variability": "variability of the confidence",
    "margin": "margin",
    "loss": "loss",
    "forgetting": "times forgotten",
    "wrong": "times wrong",
    "gradient_norm": "gradient norm of the last layer",
    "rare": "probability of rare but right",
    "residual": "residual",
}
_COLOURS = (
    "#1668b8",
    "#c2500c",
    "#2b7d4f",
    "#8b3f9e",
    "#b3261e",
    "#0f8a8f",
    "#8a5a00",
    "#d1478b",
    "#5c6975",
    "#6a51c9",
)
_DARK = ("#6cb2f7", "#ff9b57", "#7dd3a0", "#d58be0", "#ff8a80", "#5fd0d4", "#f0c060", "#f590c0", "#a3b0bc", "#b1a0ff")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star", "hexagon", "pentagon")


def axes(table: Table) -> tuple[str, str] | None:
    """The columns that the map is drawn over, across and up; None where the table has none."""
    return next(((x, y) for x, y in _AXES if x in table.columns and y in table.columns), None)


def words_of(column: str) -> str:
    """What a column is called.

    >>> words_of("label_error"), words_of("my_score")
    ('probability of a wrong label', 'my score')
    """
    return _WORDS.get(column, column.replace("_", " "))


def colours_of(table: Table) -> list[str]:
    """The columns that a map can be coloured by, the ones that are asked for most first."""
    across = axes(table) or ("", "")
    known = [name for name in _WORDS if name in table.columns]
    others = [name for name, values in table.columns.items() if name not in _WORDS and values.dtype.kind in "fiub"]
    named = [name for name in known if name not in across] + [name for name in known if name in across]
    return named + [name for name in others if name not in ("example", "edit_label")]


def example_map_figure(
    table: Table, colour: str, *, classes: Sequence[str] | None = None, dark: bool = False
) -> go.Figure:
    """Every example as a point.

    Of more than 4,000 examples the 500 likeliest label errors are drawn, and others at equal distances.

    Args:
        table: one row per example.
        colour: a column of it; columns of classes, and what was edited, are drawn as groups.
        classes: their names.
        dark: the dark palette.
    """
    across = axes(table)
    if across is None:
        return empty("Data map", "What was recorded of these examples cannot be drawn as a map.", dark=dark)
    x, y = (table[name].astype(np.float64) for name in across)
    there = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    ids = _thinned(there, table.columns.get("label_error"))
    figure = go.Figure()
    if colour in _OF_CLASSES or colour == "edit":
        _add_groups(figure, table, colour, ids, (x, y), classes, dark=dark)
    else:
        _add_scaled(figure, table, colour, ids, (x, y), dark=dark)
    drawn = (
        f"{number(len(there))} examples" if len(ids) == len(there) else f"{number(len(ids))} of {number(len(there))}"
    )
    framed(figure, f"Data map · {drawn}", words_of(across[1]), dark=dark, height=460)
    figure.update_xaxes(title=words_of(across[0]), rangemode="tozero")
    if across[1] == "confidence":
        figure.update_yaxes(range=[-0.03, 1.03])
    figure.update_layout(hovermode="closest", showlegend=len(figure.data) > 1)
    return figure


def _thinned(ids: NDArray[np.int64], error: NDArray[np.generic] | None) -> NDArray[np.int64]:
    """Few enough of the examples, in their order."""
    if len(ids) <= MOST_POINTS:
        return ids
    first = ids[:0]
    if error is not None:
        likely = np.nan_to_num(error[ids].astype(np.float64))
        first = ids[np.argpartition(-likely, _FIRST)[:_FIRST]]
    spaced = np.linspace(0, len(ids) - 1, MOST_POINTS - len(first)).astype(np.int64)
    return np.union1d(first, ids[spaced])


def _add_scaled(
    figure: go.Figure, table: Table, colour: str, ids: NDArray[np.int64], at: tuple[Numbers, Numbers], *, dark: bool
) -> None:
    values, colours = table[colour][ids].astype(np.float64), palette(dark)
    finite = values[np.isfinite(values)]
    low, high = (0.0, 1.0) if colour in _SHARES else np.percentile(finite, [2, 98]) if len(finite) else (0.0, 1.0)
    ends = (colours.first, colours.second) if colour != "correct" else (colours.second, colours.first)
    order = np.argsort(np.nan_to_num(values, nan=-np.inf), kind="stable")
    order = order if colour != "correct" else order[::-1]  # what stands out is drawn above the rest
    ids, values = ids[order], values[order]
    marker = {
        "color": _short(values),
        "cmin": float(low),
        "cmax": float(high) if high > low else float(low) + 1,
        "colorscale": [[0, ends[0]], [0.5, colours.middle], [1, ends[1]]],
        "colorbar": {"thickness": 12, "tickformat": ".0%" if colour in _SHARES else ""},
    }
    words = [number(value) for value in values.tolist()]
    _add_points(figure, at, ids, f"{words_of(colour)} %{{text}}", marker, dark=dark, text=words, showlegend=False)


def _add_groups(
    figure: go.Figure,
    table: Table,
    colour: str,
    ids: NDArray[np.int64],
    at: tuple[Numbers, Numbers],
    classes: Sequence[str] | None,
    *,
    dark: bool,
) -> None:
    values = table[colour][ids]
    found, counts = np.unique(values.astype(str if colour == "edit" else np.float64), return_counts=True)
    found = found[np.argsort(-counts, kind="stable")]
    shown = sorted(found[: _MOST_CLASSES - 1 if len(found) > _MOST_CLASSES else None].tolist())
    groups = [(named(value, classes), values == value) for value in shown]
    rest = ~np.isin(values, shown)
    groups += [("others", rest)] if rest.any() else []
    for k, (name, mask) in enumerate(groups):
        own = ids[np.asarray(mask, dtype=bool)]
        shade, symbol = (_DARK if dark else _COLOURS)[k % len(_COLOURS)], _SYMBOLS[k % len(_SYMBOLS)]
        marker = {"color": shade, "symbol": symbol}
        _add_points(figure, at, own, f"{words_of(colour)} %{{fullData.name}}", marker, dark=dark, name=name)


def _add_points(
    figure: go.Figure,
    at: tuple[Numbers, Numbers],
    ids: NDArray[np.int64],
    told: str,
    marker: Mapping[str, Any],
    *,
    dark: bool,
    **settings: Any,
) -> None:
    """Some of the examples; ``told`` stands under the pointer beside their numbers."""
    look = {"size": 6, "opacity": 0.8, "line": {"width": 0.5, "color": palette(dark).page}}
    figure.add_scatter(
        x=_short(at[0][ids]),
        y=_short(at[1][ids]),
        mode="markers",
        customdata=ids,
        hovertemplate=f"example %{{customdata}}<br>{told}<extra></extra>",
        marker={**look, **marker},
        unselected={"marker": {"opacity": 0.15}},
        **settings,
    )


def named(value: object, classes: Sequence[str] | None = None) -> str:
    """A label, or what was decided, in words that Plotly takes for plain text.

    >>> named(1.0, ["cat", "dog"]), named(7.0), named("drop"), named(""), named(float("nan")), named(0, ["<b>"])
    ('dog', '7', 'drop', 'none', 'none', '&lt;b&gt;')
    """
    if isinstance(value, str):
        return value or "none"
    found = float(value)  # type: ignore[arg-type]
    if found != found:
        return "none"
    whole = found.is_integer()
    text = (
        classes[int(found)]
        if classes and whole and 0 <= found < len(classes)
        else number(int(found) if whole else found)
    )
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _short(values: Numbers) -> NDArray[np.float32]:
    """Half the bytes on the way to the browser."""
    return values.astype(np.float32)


def example_figure(
    epochs: NDArray[np.int64],  # (n,)
    curves: dict[str, Numbers],  # (n,) each
    *,
    dark: bool = False,
) -> go.Figure:
    """What one example did: its confidence, or else its loss, by epoch, marked where the answer was right or wrong."""
    shown = next((name for name in ("confidence", "residual", "margin", "loss") if name in curves), None)
    if shown is None:
        return empty("Over the epochs", "This example was recorded in no epoch.", dark=dark)
    figure, colours = go.Figure(), palette(dark)
    right = curves.get("correct", np.full(len(epochs), np.nan))
    marks = [("right", right == 1, colours.good, "circle"), ("wrong", right == 0, colours.bad, "x")]
    add_line(figure, epochs, curves[shown], None, colours.faint, width=1.5, showlegend=False)
    for words, mask, colour, symbol in marks:
        figure.add_scatter(
            x=epochs[mask],
            y=curves[shown][mask],
            mode="markers",
            name=f"answered {words}",
            marker={"color": colour, "symbol": symbol, "size": 8},
            hovertemplate="epoch %{x}: %{y:.3f}<extra></extra>",
        )
    framed(figure, "Over the epochs", words_of(shown).removeprefix("mean "), dark=dark, height=260)
    figure.update_xaxes(title="epoch")
    if shown == "confidence":
        figure.update_yaxes(range=[-0.05, 1.05])
    figure.update_layout(hovermode="closest", showlegend=bool(np.isfinite(right).any()))
    return figure
