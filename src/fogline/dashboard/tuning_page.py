"""The pages of searches: all of a folder, and one with its best trial, its figures and its table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fogline._tune.study import SUMMARY
from fogline._tune.view import read_summary
from fogline.dashboard.markup import ago, empty, facts, figure, section, table
from fogline.dashboard.runs import NoRunError, mapping
from fogline.tables import rows_table
from fogline.words import number, plain, span

FIGURES = {
    "history": "The held-out loss of every trial that was trained to its end, and the lowest so far.",
    "importance": "How much of the spread of the loss each choice accounts for (PED-ANOVA).",
    "slices": "The loss of whole trials over each choice by itself; later trials are coloured otherwise.",
    "curves": "The held-out loss where trials were compared. Grey lines are those that were pruned or diverged.",
    "contour": "The loss over the two choices that matter most, filled in between the trials.",
    "parallel": "Each line is a whole trial through its choices, coloured by its loss.",
    "timeline": "When each trial ran, and how it ended.",
}
_WIDE = ("slices", "parallel", "timeline")
_MOST_ROWS = 500
_STATES = {"complete": "good", "running": "live", "pruned": "silent", "diverged": "bad", "failed": "bad"}
_UNREADABLE = (OSError, ValueError, RecursionError)


def search_names(root: Path) -> list[str]:
    """The searches of a folder, the last to write first."""
    if not root.is_dir():
        return []
    found = [entry.name for entry in os.scandir(root) if _holds_search(root, entry.name)]
    return sorted(found, key=lambda name: -(root / name / SUMMARY).stat().st_mtime)


def search_folder(root: Path, name: str) -> Path:
    """The folder of a search.

    Raises:
        NoRunError: it is no plain name of one here, or its file lies elsewhere.
    """
    if not _holds_search(root, name):
        raise NoRunError(f"expected the name of a search in this folder, received {name!r}")
    return root / name


def _holds_search(root: Path, name: str) -> bool:
    if not name or name.startswith(".") or "\0" in name or Path(name).name != name or "\\" in name:
        return False
    folder = root / name
    return (folder / SUMMARY).is_file() and not folder.is_symlink() and not (folder / SUMMARY).is_symlink()


def searches_page(root: Path) -> str:
    """All searches, or what begins one."""
    rows = [_row(root, name) for name in search_names(root)]
    if not rows:
        todo = "<code>fogline tune TASK.py</code>, or <code>fogline.tune(task)</code>, and it appears here."
        return f"<h1>Tuning</h1>{empty('There is no search in this folder yet.', todo)}"
    heads = ("search", "held out", "trials", "cost", "last sign")
    return f'<h1>Tuning <span class="count">{len(rows)}</span></h1>{table(heads, rows)}'


def _row(root: Path, name: str) -> str:
    link = f'<a href="/tuning/{quote(name, safe="")}">{escape(name)}</a>'
    try:
        summary = read_summary(root / name)
        best = _best(summary)
        cells = ["" if best is None else number(best["loss"]), plain(len(summary["trials"])), escape(_cost(summary))]
    except _UNREADABLE:
        cells = ["unreadable", "", ""]
    when = ago((root / name / SUMMARY).stat().st_mtime)
    inner = "".join(f"<td>{cell}</td>" for cell in (*cells, when))
    return f'<tr><th scope="row">{link}</th>{inner}</tr>'


def search_page(folder: Path) -> str:
    """One search.

    Raises:
        NoRunError: its summary cannot be read.
    """
    try:
        summary = read_summary(folder)
    except _UNREADABLE:
        raise NoRunError(f"the search {folder.name!r} cannot be shown") from None
    space = [[name, plain(words)] for name, words in mapping(summary.get("space")).items()]
    place = f"/tuning/{quote(folder.name, safe='')}/figures"
    figures = "".join(figure(name, f"{place}/{name}", caption, wide=name in _WIDE) for name, caption in FIGURES.items())
    return (
        f'<p class="crumb"><a href="/tuning">Tuning</a></p><h1>{escape(folder.name)}</h1>'
        + _state(summary, (folder / SUMMARY).stat().st_mtime)
        + f'<section class="figures" aria-label="Figures">{figures}</section>'
        + section("trials", "Trials", _trials(summary))
        + section("space", "Space", rows_table("Space", ["choice", "from"], space))
    )


def _best(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    return next((row for row in summary["trials"] if row["number"] == summary.get("best")), None)


def _cost(summary: Mapping[str, Any]) -> str:
    spent = mapping(summary.get("spent"))
    return f"{spent.get('trials', 0):.1f} whole trials, {span(spent.get('seconds'))}"


def _state(summary: Mapping[str, Any], sign: float) -> str:
    best, over = _best(summary), bool(summary.get("over"))
    says = "Over: the trials or the budget are used up." if over else "Not over: the same command goes on with it."
    if best is None:
        says += " No trial has been trained to its end yet."
    states = [str(row["state"]) for row in summary["trials"]]
    known = [("lowest held-out loss", "" if best is None else number(best["loss"]))]
    known += [(f"{state} trials", plain(states.count(state))) for state in dict.fromkeys(states)]
    known += [("cost", _cost(summary)), ("method", f"{summary.get('method')}, pruning {summary.get('pruning')}")]
    chosen = {} if best is None else mapping(best["values"]) | {"lr": best["lr"]}
    known += [(name, plain(value)) for name, value in chosen.items()]
    rows = [(escape(name), escape(value)) for name, value in known if value] + [("last sign", ago(sign))]
    kind, words = ("good", "over") if over else ("live", "searching")
    return (
        f'<section id="state" class="state {kind}" aria-label="State"><div class="says">'
        f'<span class="badge {kind}">{words}</span><p>{says}</p></div>{facts(rows)}</section>'
    )


def _trials(summary: Mapping[str, Any]) -> str:
    rows = sorted(summary["trials"], key=_order)[:_MOST_ROWS]
    names = list(dict.fromkeys(name for row in rows for name in mapping(row["values"]) if name != "lr"))
    more = f"<p>The first {_MOST_ROWS}.</p>" if len(summary["trials"]) > len(rows) else ""
    return more + table(
        ("trial", "how", "held out", "lr", *names, "steps", "why"), (_trial(row, names) for row in rows)
    )


def _order(row: Mapping[str, Any]) -> tuple[bool, float]:
    return row["state"] != "complete", float("inf") if row["loss"] is None else float(row["loss"])


def _trial(row: Mapping[str, Any], names: list[str]) -> str:
    values = mapping(row["values"])
    state = str(row["state"])
    how = f'<span class="badge {_STATES.get(state, "silent")}">{escape(state)}</span>'
    loss = "" if row["loss"] is None else number(row["loss"])
    cells = [loss, plain(row["lr"]), *(plain(values.get(name)) for name in names), plain(row["steps"])]
    inner = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    why = escape(plain(row.get("why") or "")) if row.get("why") else ""
    return f'<tr><th scope="row">{row["number"]}</th><td>{how}</td>{inner}<td class="words">{why}</td></tr>'
