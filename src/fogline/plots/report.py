"""One self-contained HTML file about one run or several: no other file, no network, light and dark, phone to desk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plotly.offline import get_plotlyjs

from fogline.plots import CAPTIONS, FIGURES, figures_of
from fogline.words import moment, number, span, verdict_name, verdict_sentence

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from fogline.run import Run

_GOOD, _BAD = ("CONVERGED", "NOISE_FLOOR"), ("DIVERGED", "NONFINITE")
_COLOURED = ("line", "marker", "fillcolor", "colorscale", "vertexcolor")

# The file may hold text from anywhere (labels, messages), so it may load and send nothing.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def write_report(run: Run | Sequence[Run], path: str | Path, *, title: str = "") -> Path:
    """Write the report of a run, or of several one after the other.

    Args:
        run: what is reported.
        path: the HTML file; its folder is made if need be.
        title: the heading; the names of the runs if empty.

    Returns:
        The path.

    Raises:
        ValueError: no run was given.
    """
    runs = list(run) if isinstance(run, Sequence) else [run]
    if not runs:
        raise ValueError("expected at least one run to report, received none")
    figures: list[dict[str, Any]] = []
    sections = "\n".join(_section(each, index, figures) for index, each in enumerate(runs))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_page(title or ", ".join(each.name for each in runs), sections, figures), encoding="utf-8")
    return path


def write_figure(make: Callable[..., go.Figure], path: Path, *, title: str, caption: str) -> Path:
    """Write one figure as a page like a report's: no other file, no network, light and dark.

    Args:
        make: called with ``dark=False`` and ``dark=True``.
        path: the HTML file; its folder is made if need be.
        title: the heading.
        caption: what is to be seen.
    """
    section = f'<div class="figures">{_captioned("figure-0", caption)}</div>'
    path.parent.mkdir(parents=True, exist_ok=True)
    look = _both_looks("figure-0", make(dark=False), make(dark=True))
    path.write_text(_page(title, section, [look]), encoding="utf-8")
    return path


def _page(title: str, sections: str, figures: list[dict[str, Any]]) -> str:
    # "<" is written as an escape so that no text of a run can end the script element.
    data = json.dumps(figures).replace("<", "\\u003c")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>{_resource("report.css")}</style>
</head>
<body>
<header><h1>{escape(title)}</h1></header>
<main>
{sections}
</main>
<noscript><p>The figures of this report need JavaScript; everything else is readable without.</p></noscript>
<script type="application/json" id="figures">{data}</script>
<script>{get_plotlyjs()}</script>
<script>{_resource("report.js")}</script>
</body>
</html>
"""


def _resource(name: str) -> str:
    return files("fogline.plots").joinpath(name).read_text(encoding="utf-8")


def _section(run: Run, index: int, figures: list[dict[str, Any]]) -> str:
    info = run.info
    return "\n".join(
        [
            f'<section aria-labelledby="run-{index}">',
            f'<h2 id="run-{index}">{escape(run.name)}</h2>',
            _summary(info),
            _verdict(info.get("verdict")),
            _findings(run),
            _scores(run, info),
            _figures(run, index, figures),
            _list("Notes", info.get("notes") or []),
            _recipe(info),
            _events(run),
            _details("Evidence for the verdict", (info.get("verdict") or {}).get("evidence") or {}),
            _details("Task", info.get("task") or {}),
            _details(
                "Steps and signals", _flat({**(info.get("mechanics") or {}), "watching": info.get("watching") or {}})
            ),
            _details("Versions and hardware", {**(info.get("versions") or {}), **(info.get("hardware") or {})}),
            "</section>",
        ]
    )


def _summary(info: Mapping[str, Any]) -> str:
    words = [moment(info.get("started")), span(info.get("seconds"))]
    if info.get("steps") is not None:
        words.append(f"{number(info['steps'])} steps")
    return f'<p class="faint">{escape(" · ".join(word for word in words if word))}</p>'


def _verdict(verdict: Mapping[str, Any] | None) -> str:
    name = verdict["name"] if verdict else ""
    tone = "good" if name in _GOOD else "bad" if name in _BAD else "warn" if verdict else ""
    label = escape(f"Verdict: {verdict_name(verdict)}")
    return (
        f'<div class="verdict {tone}" role="note" aria-label="{label}"><p>{escape(verdict_sentence(verdict))}</p></div>'
    )


def _scores(run: Run, info: Mapping[str, Any]) -> str:
    table, kept = run.scores, info.get("scores") or {}
    rows = []
    for split, name in dict.fromkeys(zip(table["split"], table["name"], strict=True)):
        values = table["value"][(table["split"] == split) & (table["name"] == name)]
        best = kept.get(name) if split == "valid" else values[-1]
        course = [number(values[0]), number(values[-1])] if len(values) > 1 else ["", ""]
        rows.append([f"{_SPLITS.get(split, split)} {name}", *course, number(best)])
    if not rows:
        rows = [[f"held-out {name}", "", "", number(value)] for name, value in kept.items() if name != "step"]
    return _table("Scores", ["score", "first", "last", "weights kept"], rows, numbers=True) if rows else ""


_SPLITS = {"valid": "held-out", "train": "training"}


def _figures(run: Run, index: int, figures: list[dict[str, Any]]) -> str:
    parts = []
    for name in figures_of(run):
        identifier = f"figure-{index}-{name}"
        figures.append(_both_looks(identifier, FIGURES[name](run), FIGURES[name](run, dark=True)))
        parts.append(_captioned(identifier, CAPTIONS[name]))
    return f'<h3>Curves</h3>\n<div class="figures">{"".join(parts)}</div>'


def _captioned(identifier: str, caption: str) -> str:
    words = escape(caption)
    return (
        f'<figure><div id="{identifier}" role="img" aria-label="{words}"></div>'
        f"<figcaption>{words}</figcaption></figure>"
    )


def _both_looks(identifier: str, light: go.Figure, dark: go.Figure) -> dict[str, Any]:
    """The data once, and what differs between the two looks: the colours of the traces and the layout."""
    looks = {name: json.loads(figure.to_json()) for name, figure in (("light", light), ("dark", dark))}
    data = looks["light"]["data"]
    coloured = {name: [_colours(trace) for trace in look["data"]] for name, look in looks.items()}
    return {
        "id": identifier,
        "data": [{key: value for key, value in trace.items() if key not in _COLOURED} for trace in data],
        **{name: {"traces": coloured[name], "layout": looks[name]["layout"]} for name in looks},
    }


def _colours(trace: Mapping[str, Any]) -> dict[str, Any]:
    return {key: trace[key] for key in _COLOURED if key in trace}


def _recipe(info: Mapping[str, Any]) -> str:
    """What was decided in one table, what was left at its default in another that is folded away."""
    asked, used, resolved = (info.get(key) or {} for key in ("asked", "recipe", "resolved"))
    decided, left = [], {}
    for name in dict.fromkeys([*used, *resolved]):
        decision = resolved.get(name) or {}
        value = used.get(name, decision.get("value"))
        if decision:
            decided.append([name, _plain(asked.get(name, "")), _plain(value), _why(decision)])
        else:
            left[name] = value
    table = _table("Recipe", ["field", "asked", "used", "why"], decided) if decided else ""
    return table + _details("Recipe: as it was given" if decided else "Recipe", left)


def _why(decision: Mapping[str, Any]) -> str:
    words = [str(decision.get("why", ""))]
    if interval := decision.get("interval"):
        words.append(f"between {number(interval[0])} and {number(interval[1])}")
    words += [f"warning: {warning}" for warning in decision.get("warnings") or ()]
    return "; ".join(words)


def _findings(run: Run) -> str:
    """Faults that were seen while it ran: what, how sure, why, and what to do."""
    rows = []
    for row in run.findings:
        found = json.loads(row["data"])
        remedy = found.get("remedy") or {}
        todo = remedy.get("title") or found.get("advice") or ""
        sure = f"{row['severity']}, {row['confidence']:.0%} sure"
        rows.append([number(int(row["step"])), str(row["cause"]), sure, found["explanation"], todo])
    return (
        _table("Findings", ["step", "cause", "how bad, how sure", "what happens", "what to do"], rows) if rows else ""
    )


def _events(run: Run) -> str:
    rows = [
        [number(int(row["step"])), str(row["kind"]), str(row["message"])]
        for row in run.events
        if row["kind"] != "finding"
    ]
    return _table("Events", ["step", "kind", "message"], rows) if rows else ""


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values under the names of both levels."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            {f"{key} {name}": inner for name, inner in value.items()} if isinstance(value, Mapping) else {key: value}
        )
    return flat


def _details(heading: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    rows = [[key, _plain(value)] for key, value in values.items()]
    return f"<details><summary>{escape(heading)}</summary>{_table('', ['what', 'value'], rows)}</details>"


def _list(heading: str, items: Iterable[Any]) -> str:
    words = "".join(f"<li>{escape(str(item))}</li>" for item in items)
    return f"<h3>{escape(heading)}</h3><ul>{words}</ul>" if words else ""


def _table(heading: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    kind = ' class="number"' if numbers else ""
    head = "".join(f'<th scope="col"{kind if at else ""}>{escape(name)}</th>' for at, name in enumerate(columns))
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td{kind}>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    title = f"<h3>{escape(heading)}</h3>" if heading else ""
    return (
        f'{title}<div class="scroll" role="region" tabindex="0" aria-label="{escape(heading or columns[0])}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, Sequence | Mapping) and not value:
        return "none"
    if isinstance(value, Sequence):
        return ", ".join(_plain(item) for item in value)
    return json.dumps(value)
