"""The time line below the loss: events, findings and the verdict, each finding in a lane of its own."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from fogline.plots.theme import Palette
from fogline.words import number, verdict_name, verdict_tone

if TYPE_CHECKING:
    from fogline.run import Run

LANE = 17
"""Pixels that a lane takes."""
_MOST = 10
_LINE = 44  # characters of a line under the pointer
_EVIDENCE = 3
_SEVERITIES = ("fatal", "serious", "minor")
_SYMBOLS = {"fatal": "x", "serious": "diamond", "minor": "circle"}


def add_timeline(figure: go.Figure, run: Run, last: float, colours: Palette) -> int:
    """Draw the lanes on the axis ``y2``; gives how many there are.

    From top to bottom: the events as ticks, a lane for each finding with its cause beside its mark, the verdict at the
    end. Lanes keep the words from lying over each other however many findings there are.

    Args:
        figure: gets traces on the axes x and y2.
        run: the run.
        last: the last step.
        colours: of the look.
    """
    found = list(run.findings)
    findings = _chosen(found)
    events = [row for row in run.events if row["kind"] != "finding"]
    verdict = run.info.get("verdict")
    left_out = len(found) - len(findings)
    lanes = bool(events) + len(findings) + bool(left_out) + (verdict is not None)
    if not lanes:
        return 0
    lane = lanes - 1
    if events:
        _add_events(figure, events, lane, colours)
        lane -= 1
    for row in findings:
        _add_finding(figure, row, lane, last, colours)
        lane -= 1
    if left_out:
        _add_words(figure, f"and {left_out} less grave", lane, colours)
    if verdict is not None:
        _add_verdict(figure, verdict, last, colours)
    figure.update_layout(
        yaxis2={"range": [-0.6, lanes - 0.4], "visible": False, "fixedrange": True, "anchor": "x"},
        shapes=[_thread(float(row["step"]), _severity_colour(row["severity"], colours)) for row in findings],
    )
    return lanes


def _chosen(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The gravest of them, in the order of their steps."""
    grave = sorted(rows, key=lambda row: (_SEVERITIES.index(row["severity"]), -row["confidence"]))[:_MOST]
    return sorted(grave, key=lambda row: row["step"])


def _add_events(figure: go.Figure, events: list[dict[str, Any]], lane: int, colours: Palette) -> None:
    figure.add_scatter(
        x=[float(row["step"]) for row in events],
        y=[lane] * len(events),
        yaxis="y2",
        name="events",
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 9, "color": colours.faint, "line": {"width": 2}},
        customdata=[f"{escape(row['kind'])}: {_wrapped(_shortened(row['message']))}" for row in events],
        hovertemplate="step %{x}, %{customdata}<extra></extra>",
        cliponaxis=False,
    )


def _add_finding(figure: go.Figure, row: Mapping[str, Any], lane: int, last: float, colours: Palette) -> None:
    mark = {"symbol": _SYMBOLS[row["severity"]], "color": _severity_colour(row["severity"], colours)}
    side = "middle left" if row["step"] > last / 2 else "middle right"
    cause = str(row["cause"])
    _add_mark(figure, (float(row["step"]), lane), cause, f" {escape(cause)} ", side, colours.ink, mark, _told(row))


def _add_words(figure: go.Figure, words: str, lane: int, colours: Palette) -> None:
    _add_mark(figure, (0, lane), "more", f" {words}", "middle right", colours.faint)


def _add_verdict(figure: go.Figure, verdict: Mapping[str, Any], last: float, colours: Palette) -> None:
    words, told = f"verdict: {escape(verdict_name(verdict))} ", _wrapped(str(verdict["message"]))
    mark = {"symbol": "square", "color": getattr(colours, verdict_tone(verdict))}
    _add_mark(figure, (last, 0), "verdict", words, "middle left", colours.ink, mark, told)


def _add_mark(
    figure: go.Figure,
    at: tuple[float, int],
    name: str,
    words: str,
    side: str,
    ink: str,
    mark: Mapping[str, Any] | None = None,
    told: str = "",
) -> None:
    """Words on a lane, beside a mark that says more under the pointer, or alone."""
    pointer: dict[str, Any] = {"hoverinfo": "skip"}
    if mark is not None:
        pointer = {"customdata": [told], "hovertemplate": "%{customdata}<extra></extra>", "cliponaxis": False}
        pointer["marker"] = {"size": 9, **mark}
    look = {"text": [words], "textposition": side, "textfont": {"color": ink, "size": 12}, "showlegend": False}
    mode = "text" if mark is None else "markers+text"
    figure.add_scatter(x=[at[0]], y=[at[1]], yaxis="y2", name=name, mode=mode, **look, **pointer)


def _thread(step: float, colour: str) -> dict[str, Any]:
    """A thin line over the curve, above the mark."""
    line = {"color": colour, "width": 1, "dash": "dot"}
    return {"type": "line", "x0": step, "x1": step, "xref": "x", "y0": 0, "y1": 1, "yref": "y domain", "line": line}


def _severity_colour(severity: str, colours: Palette) -> str:
    return {"fatal": colours.bad, "serious": colours.second, "minor": colours.warn}[severity]


def _told(row: Mapping[str, Any]) -> str:
    """What stands under the pointer: the cause, why, what was seen and what to do."""
    found = json.loads(row["data"])
    sure = f"{row['severity']}, {row['confidence']:.0%} sure"
    head = f"<b>{escape(str(row['cause']))}</b> at step {int(row['step'])}<br>{sure}"
    lines = [head, _wrapped(str(found.get("explanation", "")))]
    lines += [_wrapped(f"seen: {evidence_text(item)}") for item in (found.get("evidence") or [])[:_EVIDENCE]]
    todo = (found.get("remedy") or {}).get("title") or found.get("advice")
    if todo:
        lines.append(_wrapped(f"remedy: {todo}"))
    return "<br>".join(lines)


def evidence_text(item: Mapping[str, Any]) -> str:
    """One thing that was measured, from the JSON of a finding.

    >>> evidence_text({"signal": "units never active", "layer": "2", "step": 40, "value": 0.912345, "expected": 0.5})
    'units never active of 2 at step 40: 0.9123 (expected 0.5)'
    """
    place = f" of {item['layer']}" if item.get("layer") else ""
    when = f" at step {item['step']}" if item.get("step") is not None else ""
    wanted = item.get("expected", "")
    expected = f" (expected {_value(wanted)})" if wanted not in ("", None) else ""
    return f"{item['signal']}{place}{when}: {_value(item['value'])}{expected}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else number(value)


def _wrapped(text: str) -> str:
    return "<br>".join(escape(line) for line in textwrap.wrap(text, _LINE))


def _shortened(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
