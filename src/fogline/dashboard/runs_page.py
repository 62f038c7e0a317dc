"""The page of all runs, and the page that compares some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

from fogline.dashboard.markup import address, ago, badge, empty, figure, section, spark
from fogline.dashboard.runs import Folder, Summary, mapping, started
from fogline.tables import rows_table
from fogline.words import moment, number, plain

_COLUMNS = (
    ("name", "run"),
    ("state", "verdict"),
    ("score", "held out"),
    ("loss", "last loss"),
    ("steps", "steps"),
    ("when", "last sign"),
)
_ALWAYS = ("optimizer", "lr", "batch_size", "duration")
MOST = 12
"""Runs that are compared at once: more lines cannot be told apart."""


def runs_page(folder: Folder) -> str:
    """The table of the runs, or what to do where there are none."""
    summaries = folder.summaries()
    place = f'<p class="faint where"><code>{escape(str(folder.root))}</code></p>'
    if not summaries:
        words = "There are no runs in this folder yet." if folder.root.is_dir() else "There is no such folder yet."
        todo = "Train something and it appears here: <code>fogline demo</code>, or <code>fogline.fit(...)</code>."
        return f'<h1>Runs</h1>{place}<div id="runs" data-live="/live" data-none>{empty(words, todo)}</div>'
    head = "".join(
        f'<th scope="col" class="c-{key}"><button type="button" data-sort="{key}">{words}</button></th>'
        for key, words in _COLUMNS
    )
    rows = "".join(run_row(each) for each in summaries)
    return f"""<h1>Runs <span class="count" id="count">{len(summaries)}</span></h1>{place}
<form action="/compare" id="runs" data-live="/live">
<div class="tools">
<input type="search" id="search" placeholder="Search by name, verdict, optimizer …" aria-label="Search the runs"
autocomplete="off">
<button class="button" id="compare">Compare the chosen</button>
</div>
<p class="faint keys">Arrow keys move, Enter opens, / searches.</p>
<table class="runs"><thead><tr><th class="c-pick"><span class="unseen">compare</span></th>{head}
<th scope="col" class="c-spark">loss</th></tr></thead><tbody id="rows">{rows}</tbody></table>
<p id="no-match" class="empty" hidden>No run matches. Press Escape to clear the search.</p>
</form>"""


def run_row(summary: Summary) -> str:
    """One row of the table; ``data-`` attributes are what it is sorted and searched by."""
    name, info = escape(summary.name), summary.info
    recipe = mapping(info.get("recipe"))
    score, score_words = _score(info)
    found = f'<span class="mark" title="findings">{summary.findings} found</span>' if summary.findings else ""
    words = [
        summary.name,
        _state_words(summary),
        str(recipe.get("optimizer", "")),
        str(mapping(info.get("task")).get("model", "")),
    ]
    values = {
        "name": summary.name.lower(),
        "state": _state_words(summary),
        "score": _sortable(score),
        "loss": _sortable(summary.loss),
        "steps": _sortable(summary.steps),
        "when": f"{summary.sign:.3f}",
        "words": " ".join(words).lower(),
    }
    data = "".join(f' data-{key}="{escape(value)}"' for key, value in values.items())
    return (
        f'<tr data-run="{name}"{data}>'
        f'<td class="c-pick"><input type="checkbox" name="run" value="{name}" aria-label="compare {name}"></td>'
        f'<th scope="row" class="c-name"><a href="{address(summary.name)}">{name}</a>{found}</th>'
        f'<td class="c-state">{badge(summary)}</td>'
        f'<td class="c-score number">{escape(score_words)}</td>'
        f'<td class="c-loss number">{"" if summary.loss is None else number(summary.loss)}</td>'
        f'<td class="c-steps number">{"" if summary.steps is None else number(summary.steps)}</td>'
        f'<td class="c-when"{_begun(info)}>{ago(summary.sign)}</td>'
        f'<td class="c-spark">{spark(summary.losses)}</td></tr>'
    )


def _state_words(summary: Summary) -> str:
    return badge(summary).split(">")[1].split("<")[0]


def _begun(info: Mapping[str, Any]) -> str:
    return f' title="started {escape(moment(started(info)))}"' if started(info)[:4].isdigit() else ""


def _score(info: Mapping[str, Any]) -> tuple[float | None, str]:
    """The first held-out metric that is no loss, else the held-out loss."""
    scores = {
        name: value
        for name, value in mapping(info.get("scores")).items()
        if name != "step" and isinstance(value, int | float)
    }
    names = [name for name in scores if name != "loss"] or list(scores)
    return (scores[names[0]], f"{names[0]} {number(scores[names[0]])}") if names else (None, "")


def _sortable(value: float | None) -> str:
    return "" if value is None or value != value else repr(value)


def compare_page(folder: Folder, chosen: Sequence[str]) -> str:
    """Curves together, what differs in the recipes, and final scores; without a choice the runs to choose from."""
    from fogline.plots import CAPTIONS

    summaries = [folder.summary(name) for name in chosen]
    if len(summaries) < 2:
        return f"<h1>Compare</h1>{_choice(folder, chosen)}"
    query = urlencode([("run", each.name) for each in summaries])
    names = "".join(
        f'<li><a href="{address(each.name)}">{escape(each.name)}</a> {badge(each)}</li>' for each in summaries
    )
    parts = [
        f'<ul class="chosen">{names}</ul>',
        figure("compare", f"/compare/figure?{query}", CAPTIONS["compare"], wide=True),
        section("differ", "What differs", _differences(summaries)),
        section("scores", "Final scores", _scores(summaries)),
        f'<details class="card"><summary>Choose others</summary>{_choice(folder, chosen)}</details>',
    ]
    return f"<h1>Compare</h1>{''.join(parts)}"


def _choice(folder: Folder, chosen: Sequence[str]) -> str:
    names = folder.names()
    if len(names) < 2:
        return empty("It takes two runs to compare, and this folder has fewer.", "Train once more with another recipe.")
    boxes = "".join(
        f'<li><label><input type="checkbox" name="run" value="{escape(name)}"{" checked" if name in chosen else ""}> '
        f"{escape(name)}</label></li>"
        for name in names
    )
    return (
        f'<form action="/compare" class="choice"><p>Choose two runs or more, at most {MOST}.</p>'
        f'<ul class="boxes">{boxes}</ul>'
        '<button class="button">Compare</button></form>'
    )


def _differences(summaries: Sequence[Summary]) -> str:
    """The fields of the recipes in which not all agree, and those that are always worth seeing."""
    recipes = [mapping(each.info.get("recipe")) for each in summaries]
    fields = list(dict.fromkeys(name for recipe in recipes for name in recipe))
    texts = {name: [plain(recipe[name]) if name in recipe else "" for recipe in recipes] for name in fields}
    shown = [name for name in fields if len(set(texts[name])) > 1 or name in _ALWAYS]
    same = "" if any(len(set(texts[name])) > 1 for name in fields) else "<p>The recipes agree in every field.</p>"
    rows = [[name, *texts[name]] for name in shown]
    return same + rows_table("What differs", ["field", *(each.name for each in summaries)], rows)


def _scores(summaries: Sequence[Summary]) -> str:
    scores = [mapping(each.info.get("scores")) for each in summaries]
    names = [name for name in dict.fromkeys(name for each in scores for name in each) if name != "step"]
    rows = [[f"held-out {name}", *(plain(each[name]) if name in each else "" for each in scores)] for name in names]
    rows.append(["last training loss", *("" if each.loss is None else number(each.loss) for each in summaries)])
    rows.append(["steps", *("" if each.steps is None else number(each.steps) for each in summaries)])
    return rows_table("Final scores", ["", *(each.name for each in summaries)], rows, numbers=True)
