"""The pages of one run: its overview in parts that are replaced while it trains, and what has a page of its own."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from fogline.dashboard import examples_page as of_examples
from fogline.dashboard.example_table import Seen
from fogline.dashboard.markup import address, ago, badge, current, empty, facts, figure, section, sql_card
from fogline.dashboard.runs import Summary, mapping, started
from fogline.dashboard.thinned import View
from fogline.plots import CAPTIONS, FIGURES, figures_of
from fogline.plots.cards import finding_cards
from fogline.tables import rows_table
from fogline.words import moment, number, plain, span

_EVENTS = 200
_OF_THEIR_OWN = {"rate": "rate", "landscape": "landscape", "landscape_3d": "landscape", "compare": ""}
"""Figures that do not stand on the overview, and the page they stand on."""
_TABLES = "Tables: steps, layers, scores, events, findings. Ctrl and Enter runs it; it reads this run and nothing else."
_QUERIES = (
    ("highest losses", "select step, loss, lr, grad_norm from steps order by loss desc limit 20"),
    (
        "epochs",
        "select epoch::int as epoch, avg(loss) as loss, max(grad_norm) as steepest from steps group by 1 order by 1",
    ),
    (
        "scores",
        "select split, name, min(value) as lowest, max(value) as highest from scores group by 1, 2 order by 1, 2",
    ),
    ("layers", "select layer, avg(grad_norm) as gradient, avg(zero_share) as zeros from layers group by 1 order by 1"),
    ("events", "select kind, count(*) as times, min(step) as first_step from events group by 1 order by 2 desc"),
)


def overview(view: View, summary: Summary) -> str:
    """Verdict, findings, curves, scores, events, recipe and SQL of a run."""
    parts = overview_parts(view, summary)
    names = overview_figures(view)
    figures = "".join(
        _placed(view, name, wide=at == 0 or (at == len(names) - 1 and at % 2 == 1)) for at, name in enumerate(names)
    )
    early = ("state", "findings")
    return (
        _top(view.name, "")
        + f'<div data-live="{address(view.name, "live")}" data-parts="{address(view.name, "parts")}">'
        + "".join(parts[key] for key in early)
        + f'<section class="figures" aria-label="Curves">{figures}</section>'
        + "".join(html for key, html in parts.items() if key not in early)
        + sql_card(address(view.name, "sql"), _TABLES, _QUERIES)
        + "</div>"
    )


def overview_parts(view: View, summary: Summary) -> dict[str, str]:
    """The parts of the overview that change while the run trains, by their identifiers."""
    info = view.info
    return {
        "state": _state(summary, info),
        "findings": section("findings", "Findings", finding_cards(view.findings, level=3)),
        "scores": section("scores", "Held-out scores", _scores(view, info)),
        "recipe": section("recipe", "Recipe", _recipe(info)),
        "events": section("events", "Events", _events(view)),
        "details": section("details", "Details", _details(info)),
    }


def overview_figures(view: View) -> list[str]:
    """The figures of the overview."""
    return [name for name in figures_of(view) if name not in _OF_THEIR_OWN]


def _placed(view: View, name: str, *, wide: bool) -> str:
    return figure(name, address(view.name, "figures", name), CAPTIONS.get(name, name), wide=wide)


def _top(name: str, here: str) -> str:
    pages = (("", "Overview"), ("rate", "Learning rate"), ("landscape", "Landscape"), ("examples", "Examples"))
    links = "".join(
        f'<a href="{address(name, part) if part else address(name)}"{current(part == here)}>{words}</a>'
        for part, words in pages
    )
    crumb = '<p class="crumb"><a href="/">Runs</a></p>'
    return f'{crumb}<h1>{escape(name)}</h1><nav class="tabs" aria-label="Of this run">{links}</nav>'


def _state(summary: Summary, info: Mapping[str, Any]) -> str:
    """What is to be known first: how it stands, in a sentence, and a few numbers."""
    stop = ""
    if summary.alive and not summary.stopping:
        place = address(summary.name, "stop")
        stop = f'<button type="button" class="button stop" data-post="{place}">Stop gently</button>'
    words = f'{badge(summary)}<p aria-live="polite">{escape(_sentence(summary))}</p>{stop}'
    return (
        f'<section id="state" data-part class="state {summary.state}" aria-label="State">'
        f'<div class="says">{words}</div>{facts(_facts(summary, info))}</section>'
    )


def _sentence(summary: Summary) -> str:
    """The verdict's own sentence, or how a run without one stands."""
    if summary.verdict is not None:
        return str(summary.verdict.get("message") or "The verdict says nothing.")
    if summary.stopping and summary.alive:
        return "Asked to stop: it saves at its next step and ends. A loop of your own ends where it asks run.stopping."
    if not summary.alive and mapping(summary.info.get("source")).get("kind") == "watch":
        return "No verdict and no sign of it: the loop was probably killed. What it recorded until then is here."
    if not summary.alive:
        resumes = f"fogline resume {summary.name}"
        return f"No verdict and no sign of it: it was probably killed. {resumes} goes on from its last checkpoint."
    if summary.steps is None:
        return "Preparing: the data is looked at, and what was not given is measured."
    return "Training. The verdict comes at the end; this page follows by itself."


def _facts(summary: Summary, info: Mapping[str, Any]) -> list[tuple[str, str]]:
    recipe, task = mapping(info.get("recipe")), mapping(info.get("task"))
    score = {name: value for name, value in mapping(info.get("scores")).items() if name != "step"}
    found = [("steps", plain(summary.steps) if summary.steps is not None else "")]
    found.append(("last loss", "" if summary.loss is None else number(summary.loss)))
    found += [(f"held-out {name}", plain(value)) for name, value in list(score.items())[:2]]
    found += [
        (words, plain(recipe[name]))
        for name, words in (("lr", "learning rate"), ("optimizer", "optimizer"))
        if name in recipe
    ]
    found.append(("model", plain(task["model"], 40) if "model" in task else ""))
    found.append(("parameters", plain(task["parameters"]) if "parameters" in task else ""))
    found.append(("trained for", span(info.get("seconds"))))
    rows = [(escape(words), escape(value)) for words, value in found if value]
    return [*rows, ("last sign", ago(summary.sign))]


def _scores(view: View, info: Mapping[str, Any]) -> str:
    table = view.scores
    if not len(table):
        return empty("There is no held-out score: give <code>valid=</code> and every validation is scored here.")
    kept = mapping(info.get("scores"))
    rows = []
    for split, name in dict.fromkeys(zip(table["split"].tolist(), table["name"].tolist(), strict=True)):
        values = table["value"][(table["split"] == split) & (table["name"] == name)]
        finite = values[values == values]
        # Only of a loss is it known which way is better.
        best = number(float(finite.min())) if name == "loss" and len(finite) else ""
        mine = plain(kept[name]) if name in kept and split != "test" else ""
        rows.append([f"{split} {name}", number(float(values[0])), best, number(float(values[-1])), mine])
    return rows_table("Held-out scores", ["score", "first", "best", "last", "of the weights kept"], rows, numbers=True)


def _recipe(info: Mapping[str, Any]) -> str:
    """What was decided and why; what was left at its default is folded away."""
    asked, used, resolved = (mapping(info.get(key)) for key in ("asked", "recipe", "resolved"))
    decided, left = [], []
    for name in dict.fromkeys([*used, *resolved]):
        decision = mapping(resolved.get(name))
        value = used.get(name, decision.get("value"))
        if decision:
            decided.append([name, plain(asked.get(name, "")), plain(value), plain(decision.get("why") or "")])
        else:
            left.append([name, plain(value)])
    table = rows_table("Recipe", ["field", "asked", "used", "why"], decided) if decided else ""
    rest = rows_table("As it was given", ["field", "value"], left)
    return table + (
        f"<details{'' if decided else ' open'}><summary>As it was given</summary>{rest}</details>" if left else ""
    )


def _events(view: View) -> str:
    rows = [row for row in view.events if row["kind"] != "finding"]
    if not rows:
        return ""
    more = f"<p>The last {_EVENTS} of {len(rows)}.</p>" if len(rows) > _EVENTS else ""
    texts = [[plain(row["step"]), plain(row["kind"]), plain(row["message"], 1000)] for row in rows[-_EVENTS:]]
    return more + rows_table("Events", ["step", "kind", "what happened"], texts)


def _details(info: Mapping[str, Any]) -> str:
    notes = info.get("notes")
    said = "".join(f"<li>{escape(plain(note))}</li>" for note in (notes if isinstance(notes, list) else []))
    blocks = {
        "Evidence for the verdict": mapping(mapping(info.get("verdict")).get("evidence")),
        "Task": mapping(info.get("task")),
        "How the steps were taken": mapping(info.get("mechanics")) | mapping(info.get("watching")),
        "Versions and hardware": mapping(info.get("versions")) | mapping(info.get("hardware")),
    }
    tables = "".join(_folded(heading, values) for heading, values in blocks.items() if values)
    when = f"<p>Started {escape(moment(started(info)))}.</p>" if started(info)[:4].isdigit() else ""
    return when + (f"<ul>{said}</ul>" if said else "") + tables


def _folded(heading: str, values: Mapping[str, Any]) -> str:
    rows = [[str(key), plain(value, 4000)] for key, value in values.items()]
    return f"<details><summary>{heading}</summary>{rows_table(heading, ['what', 'value'], rows)}</details>"


def rate_page(view: View) -> str:
    """How the learning rate was measured, or what measures it."""
    info = view.info
    found = mapping(mapping(info.get("resolved")).get("lr"))
    if "rate" not in figures_of(view):
        rate = mapping(info.get("recipe")).get("lr")
        if rate == "auto":
            words = "The learning rate has not been measured yet: this page has the race when it is done."
        elif rate is None:
            words = "The learning rate of this loop is its own."
        else:
            words = f"The learning rate was given: {escape(plain(rate))}."
        todo = "Leave <code>lr</code> out and it is measured; <code>fogline lr TASK.py</code> only measures it."
        return _top(view.name, "rate") + empty(words, todo)
    rows = [["chosen", plain(found.get("value"))]]
    interval = found.get("interval")
    if isinstance(interval, list) and len(interval) == 2:
        rows.append(["best expected between", f"{plain(interval[0])} and {plain(interval[1])}"])
    rows.append(["decided by", plain(found.get("why"))])
    if "cost_steps" in found:
        rows.append(["cost, in steps", plain(found["cost_steps"])])
    rows += [["warning", plain(warning)] for warning in found.get("warnings") or ()]
    return (
        _top(view.name, "rate")
        + f'<section class="figures">{_placed(view, "rate", wide=True)}</section>'
        + section("measured", "What was measured", rows_table("What was measured", ["what", "value"], rows))
    )


def landscape_page(view: View) -> str:
    """The error landscape of the run where it was computed, or what computes it."""
    there = (view.folder / "landscape.json").is_file()
    names = [name for name in figures_of(view) if _OF_THEIR_OWN.get(name) == "landscape"] if there else []
    if not names:
        words = "The landscape of this run has not been computed."
        if there:
            words = "This run has a landscape.json that this version cannot draw."
        command = f"fogline landscape {escape(view.name)}"
        todo = f"<code>{command}</code> computes it; it is drawn here as soon as it is there."
        return (
            _top(view.name, "landscape")
            + f'<div data-live="{address(view.name, "live")}" data-none>{empty(words, todo)}</div>'
        )
    figures = "".join(_placed(view, name, wide=True) for name in names)
    return _top(view.name, "landscape") + f'<section class="figures">{figures}</section>'


def examples_page(view: View, seen: Seen | None) -> str:
    """What the run recorded of each example; None where it cannot be drawn."""
    return _top(view.name, "examples") + of_examples.examples_page(view, seen)


def examples_wait(view: View) -> str:
    """What stands there while the record of many examples is read."""
    return _top(view.name, "examples") + of_examples.wait(view)


def drawable(view: View, name: str) -> bool:
    """Whether a figure of this name can be asked for."""
    return name in FIGURES and name in figures_of(view)
