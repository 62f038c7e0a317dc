"""One self-contained HTML file about one run or several: no other file, no network, light and dark, phone to desk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plotly.offline import get_plotlyjs

from fogline.plots import CAPTIONS, FIGURES, compare_figure, figures_of
from fogline.plots.cards import finding_cards
from fogline.tables import rows_table
from fogline.words import moment, number, span, verdict_name, verdict_sentence, verdict_tone

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from fogline.run import Run

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
    sections = _compared(runs, figures) if len(runs) > 1 else ""
    sections += "\n".join(_section(each, index, figures) for index, each in enumerate(runs))
    return write_page(path, title or ", ".join(each.name for each in runs), sections, figures)


def _compared(runs: Sequence[Run], figures: list[dict[str, Any]]) -> str:
    """Several runs together: where each is in the file, what it came to, in what the recipes differ, the losses."""
    infos = [run.info for run in runs]
    recipes = [info.get("recipe") or {} for info in infos]
    scores = [info.get("scores") or {} for info in infos]
    rows = [["verdict", *(verdict_name(info.get("verdict")) for info in infos)]]
    rows += [[f"held-out {name}", *(_plain(kept.get(name, "")) for kept in scores)] for name in _names(scores, "step")]
    for name in _names(recipes):
        if len({_plain(recipe[name]) for recipe in recipes if name in recipe}) > 1:
            rows.append([name, *(_plain(recipe.get(name, "")) for recipe in recipes)])
    columns = ["", *(run.name for run in runs)]
    links = "".join(f'<li><a href="#run-{k}">{escape(run.name)}</a></li>' for k, run in enumerate(runs))
    looks = looks_of("figure-compare", compare_figure(runs), compare_figure(runs, dark=True))
    figures.append(looks)
    return (
        f'<nav aria-label="Runs"><ul>{links}</ul></nav>{table("Where they differ", columns, rows)}'
        f'<div class="figures">{captioned("figure-compare", CAPTIONS["compare"])}</div>'
    )


def _names(values: Sequence[Mapping[str, Any]], *but: str) -> list[str]:
    """The keys of all of them, each once."""
    return [name for name in dict.fromkeys(name for each in values for name in each) if name not in but]


def write_figure(make: Callable[..., go.Figure], path: Path, *, title: str, caption: str) -> Path:
    """Write one figure as a page like a report's: no other file, no network, light and dark.

    Args:
        make: called with ``dark=False`` and ``dark=True``.
        path: the HTML file; its folder is made if need be.
        title: the heading.
        caption: what is to be seen.
    """
    section = f'<div class="figures">{captioned("figure-0", caption)}</div>'
    return write_page(path, title, section, [looks_of("figure-0", make(dark=False), make(dark=True))])


def write_page(path: str | Path, title: str, sections: str, figures: list[dict[str, Any]]) -> Path:
    """Write a page of sections and figures into one file; its folder is made if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # "<" is written as an escape so that no text of a run can end the script element.
    data = json.dumps(figures).replace("<", "\\u003c")
    text = f"""<!DOCTYPE html>
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
    path.write_text(text, encoding="utf-8")
    return path


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
    label, words = escape(f"Verdict: {verdict_name(verdict)}"), escape(verdict_sentence(verdict))
    return f'<div class="verdict {verdict_tone(verdict)}" role="note" aria-label="{label}"><p>{words}</p></div>'


def _scores(run: Run, info: Mapping[str, Any]) -> str:
    scores, kept = run.scores, info.get("scores") or {}
    rows = []
    for split, name in dict.fromkeys(zip(scores["split"], scores["name"], strict=True)):
        values = scores["value"][(scores["split"] == split) & (scores["name"] == name)]
        best = kept.get(name) if split == "valid" else values[-1]
        course = [number(values[0]), number(values[-1])] if len(values) > 1 else ["", ""]
        rows.append([f"{_SPLITS.get(split, split)} {name}", *course, number(best)])
    if not rows:
        rows = [[f"held-out {name}", "", "", number(value)] for name, value in kept.items() if name != "step"]
    return table("Scores", ["score", "first", "last", "weights kept"], rows, numbers=True) if rows else ""


_SPLITS = {"valid": "held-out", "train": "training"}


def _figures(run: Run, index: int, figures: list[dict[str, Any]]) -> str:
    parts = []
    for name in figures_of(run):
        identifier = f"figure-{index}-{name}"
        figures.append(looks_of(identifier, FIGURES[name](run), FIGURES[name](run, dark=True)))
        parts.append(captioned(identifier, CAPTIONS[name]))
    return f'<h3>Figures</h3>\n<div class="figures">{"".join(parts)}</div>'


def captioned(identifier: str, caption: str) -> str:
    words = escape(caption)
    return (
        f'<figure><div id="{identifier}" role="img" aria-label="{words}"></div>'
        f"<figcaption>{words}</figcaption></figure>"
    )


def looks_of(identifier: str, light: go.Figure, dark: go.Figure) -> dict[str, Any]:
    """The data once, and what differs between the two looks: colours of the traces, and the layout."""
    looks = {name: json.loads(figure.to_json()) for name, figure in (("light", light), ("dark", dark))}
    pairs = list(zip(looks["light"]["data"], looks["dark"]["data"], strict=True))
    shared = [{key: value for key, value in one.items() if other.get(key) == value} for one, other in pairs]
    return {
        "id": identifier,
        "data": shared,
        **{
            name: {
                "traces": [
                    {key: value for key, value in trace.items() if key not in common}
                    for trace, common in zip(look["data"], shared, strict=True)
                ],
                "layout": look["layout"],
            }
            for name, look in looks.items()
        },
    }


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
    choices = table("Recipe", ["field", "asked", "used", "why"], decided) if decided else ""
    return choices + _details("Recipe: as it was given" if decided else "Recipe", left)


def _why(decision: Mapping[str, Any]) -> str:
    words = [str(decision.get("why", ""))]
    if interval := decision.get("interval"):
        words.append(f"between {number(interval[0])} and {number(interval[1])}")
    words += [f"warning: {warning}" for warning in decision.get("warnings") or ()]
    return "; ".join(words)


def _findings(run: Run) -> str:
    """Faults that were seen while it ran, the gravest first."""
    cards = finding_cards(run.findings)
    return f"<h3>Findings</h3>{cards}" if cards else ""


def _events(run: Run) -> str:
    rows = [
        [number(int(row["step"])), str(row["kind"]), str(row["message"])]
        for row in run.events
        if row["kind"] != "finding"
    ]
    return table("Events", ["step", "kind", "message"], rows) if rows else ""


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
    return f"<details><summary>{escape(heading)}</summary>{table('', ['what', 'value'], rows)}</details>"


def _list(heading: str, items: Iterable[Any]) -> str:
    words = "".join(f"<li>{escape(str(item))}</li>" for item in items)
    return f"<h3>{escape(heading)}</h3><ul>{words}</ul>" if words else ""


def table(heading: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    title = f"<h3>{escape(heading)}</h3>" if heading else ""
    return title + rows_table(heading or columns[0], columns, rows, numbers=numbers)


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
