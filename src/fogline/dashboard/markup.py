"""The HTML that all pages share. Every text that comes from a run passes through ``escape`` in here or in a page."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from fogline.dashboard.assets import VERSION, unwanted_styles
from fogline.dashboard.runs import Summary
from fogline.words import verdict_name

_LOG_FROM = 20.0  # losses that span more than this factor are drawn on a logarithmic axis, as in the figures
THEMES = ("system", "light", "dark")
_LOGO = (
    '<svg class="logo" viewBox="0 0 32 32" aria-hidden="true"><path class="ridge" d="M2 25 12 8l6 9 4-6 8 14z"/>'
    '<path class="mist" d="M1 22h17M10 26.500h20M4 30h14"/></svg>'
)


def page(
    title: str, body: str, *, theme: str, here: str = "", scripts: Sequence[str] = (), figures: bool = False
) -> str:
    """A whole page.

    Args:
        title: in words; it is escaped.
        body: HTML of the main part.
        theme: one of :data:`THEMES`.
        here: the entry of the navigation that this page is.
        scripts: modules of ``static/`` beside ``shell.js``.
        figures: whether Plotly is needed.
    """
    at = f"/static/{VERSION}"
    plotly = f'<link rel="prefetch" href="{at}/plotly.min.js" as="script">'
    if figures:
        plotly = "".join(f'<meta id="{name}">' for name in unwanted_styles())
        plotly += f'<script src="{at}/plotly.min.js" id="plotly" async></script>'
    modules = "".join(f'<script type="module" src="{at}/{name}"></script>' for name in ("shell.js", *scripts))
    links = "".join(
        f'<a href="{address}"{current(words == here)}>{words}</a>'
        for address, words in (("/", "Runs"), ("/tuning", "Tuning"), ("/compare", "Compare"))
    )
    options = "".join(f"<option{' selected' if name == theme else ''}>{name}</option>" for name in THEMES)
    return f"""<!DOCTYPE html>
<html lang="en" data-theme="{theme}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)} · Fogline</title>
<link rel="icon" href="{at}/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="{at}/style.css">
{plotly}{modules}
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header class="top">
<a class="brand" href="/">{_LOGO}<span>Fogline</span></a>
<nav aria-label="Pages">{links}</nav>
<label class="theme"><span class="unseen">Theme</span><select id="theme">{options}</select></label>
</header>
<main id="main" tabindex="-1">
{body}
</main>
<p id="lost" class="lost" role="status" hidden>The dashboard no longer answers: start <code>fogline ui</code> again.</p>
</body>
</html>
"""


def current(here: bool) -> str:
    """The attribute of the link that leads to this very page."""
    return ' aria-current="page"' if here else ""


def address(name: str, *parts: str) -> str:
    """Where a run is shown."""
    return "/".join(["/runs", quote(name, safe=""), *parts])


def badge(summary: Summary) -> str:
    """The state of a run: a coloured dot and words, so that neither stands alone."""
    words = {"live": "training", "silent": "no sign of it", "unreadable": "unreadable"}.get(summary.state)
    if summary.state == "live" and summary.steps is None:
        words = "preparing"
    if summary.stopping and summary.alive:
        words = "stopping"
    return f'<span class="badge {summary.state}">{escape(words or verdict_words(summary.verdict))}</span>'


def verdict_words(verdict: Mapping[str, Any] | None) -> str:
    """The first words of a verdict, whatever a ``run.json`` holds."""
    return verdict_name(verdict) if verdict and "message" in verdict else "no verdict"


def sql_card(place: str, about: str, queries: Sequence[tuple[str, str]], *, saved: str = "") -> str:
    """Where SQL is asked.

    Args:
        place: the address that answers.
        about: which tables there are, as HTML.
        queries: names and texts of those that are offered; the first stands there.
        saved: under what name the browser keeps the user's own; none are kept if empty.
    """
    buttons = "".join(
        f'<button type="button" class="quiet" data-query="{escape(query)}">{escape(words)}</button>'
        for words, query in queries
    )
    kept = f' data-saved="{saved}"' if saved else ""
    if saved:
        buttons += '<span id="saved"></span><button type="button" class="quiet" id="save">save this query</button>'
    return (
        '<section class="card sql" aria-labelledby="sql-h"><h2 id="sql-h">Ask in SQL</h2>'
        f'<p class="faint">{about}</p>'
        f'<form id="sql" action="{escape(place)}"{kept}>'
        '<label class="unseen" for="query">SQL</label>'
        f'<textarea id="query" rows="3" spellcheck="false">{escape(queries[0][1])}</textarea>'
        f'<div class="tools"><button class="button">Run</button>{buttons}</div></form>'
        '<div id="answer" role="status"></div></section>'
    )


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """A list of names and values, both HTML."""
    return f'<dl class="facts">{"".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)}</dl>'


def table(columns: Sequence[str], rows: Iterable[str]) -> str:
    """A table of rows that are HTML already; :func:`fogline.tables.rows_table` makes one of plain texts."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def spark(losses: Sequence[float]) -> str:
    """A small line of the loss; nothing where there is none to be drawn."""
    if len(losses) < 2:
        return ""
    if min(losses) > 0 and max(losses) > _LOG_FROM * min(losses):
        losses = [math.log(loss) for loss in losses]
    return small_line(losses, min(losses), max(losses))


def small_line(values: Sequence[float], low: float, high: float) -> str:
    """A small line between two heights, through the values that are finite."""
    across, span = 96 / (len(values) - 1), (high - low) or 1.0
    there = [(at, value) for at, value in enumerate(values) if math.isfinite(value)]
    points = " ".join(f"{2 + at * across:.1f},{2 + 20 * (high - value) / span:.1f}" for at, value in there)
    return f'<svg class="spark" viewBox="0 0 100 24" aria-hidden="true"><polyline points="{points}"/></svg>'


def ago(seconds_since_1970: float) -> str:
    """How long ago, in one unit, with the moment itself for the script that keeps it true.

    >>> ago(time.time() - 7300)[-14:]
    '2 h ago</time>'
    """
    passed = max(0.0, time.time() - seconds_since_1970)
    for length, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if passed >= length:
            return f'<time data-at="{seconds_since_1970:.0f}">{passed / length:.0f} {unit} ago</time>'
    return f'<time data-at="{seconds_since_1970:.0f}">{passed:.0f} s ago</time>'


def section(identifier: str, heading: str, inner: str) -> str:
    """A part of a page with its heading, which a live page can replace by itself; nothing where it has no content."""
    if not inner:
        return f'<section id="{identifier}" data-part hidden></section>'
    return (
        f'<section id="{identifier}" data-part class="card" aria-labelledby="{identifier}-h">'
        f'<h2 id="{identifier}-h">{escape(heading)}</h2>{inner}</section>'
    )


def empty(words: str, todo: str = "") -> str:
    """What stands where there is nothing to be shown: why, and what to do. Both are HTML already."""
    return f'<div class="empty"><p>{words}</p>{f"<p>{todo}</p>" if todo else ""}</div>'


def figure(name: str, source: str, caption: str, *, wide: bool = False) -> str:
    """The place of a figure, which ``figures.js`` fills from its source.

    Args:
        name: of the figure, for its place in the page.
        source: the address of its JSON.
        caption: what is to be seen.
        wide: over both columns.
    """
    words = escape(caption)
    kind = "figure wide" if wide else "figure"
    plot = f'<div class="plot" data-figure="{escape(source)}" role="img" aria-label="{words}"></div>'
    return f'<figure class="{kind}" id="figure-{escape(name)}">{plot}<figcaption>{words}</figcaption></figure>'
