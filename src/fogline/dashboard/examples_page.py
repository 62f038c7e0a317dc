"""The page of a run's examples: the map, the gallery with what can be decided, SQL, and what retraining brought."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from fogline._examples.edits import Edits
from fogline._examples.retrain import read_retrained
from fogline.dashboard.epochs import epochs_table
from fogline.dashboard.example_cards import label_words, number_text
from fogline.dashboard.example_table import LISTS, Seen
from fogline.dashboard.markup import address, empty, facts, section, sql_card
from fogline.dashboard.runs import mapping
from fogline.dashboard.thinned import View
from fogline.plots import CAPTIONS
from fogline.plots.example_map import axes, colours_of, words_of
from fogline.record.previews import MOST_EXAMPLES
from fogline.words import number

_MOST_LABELS = 300  # to choose from
_QUERIES = (
    (
        "likely wrong",
        "label_error",
        "select example, target, likely, label_error from examples order by label_error desc limit 100",
    ),
    (
        "by label",
        "correct",
        "select target, count(*) as examples, avg(correct) as correct, avg(loss) as loss from examples "
        "group by 1 order by 3",
    ),
    (
        "mistaken for",
        "predicted",
        "select target, predicted, count(*) as times from examples where target <> predicted "
        "group by 1, 2 order by 3 desc limit 50",
    ),
    (
        "learned late",
        "forgetting",
        "select example, target, correct, forgetting from examples where label_error < 0.5 order by correct limit 100",
    ),
    (
        "of the chosen",
        "target",
        "select target, count(*) as examples, avg(loss) as loss from examples semi join selected using (example) "
        "group by 1 order by 2 desc",
    ),
    ("edited", "", "select example, edit, edit_label from examples where edit <> '' order by example"),
)
"""Queries that are offered: what they are called, a column without which it has no answer, and the query."""


def examples_page(view: View, seen: Seen | None) -> str:
    """The page without its head.

    Args:
        view: the run.
        seen: its examples; None where what was recorded of them cannot be drawn.
    """
    table = epochs_table(view.folder)
    if seen is None:
        if not table:
            words = "This run recorded no examples."
            todo = (
                "<code>fogline.fit</code> and <code>fogline train</code> record what each example does, where the data "
                "is not a stream; a loop of your own says which examples a step saw, <code>run.log(loss, "
                "examples=ids)</code>."
            )
            return f'<div data-live="{address(view.name, "live")}" data-none>{empty(words, todo)}</div>'
        return empty("What was recorded of these examples cannot be drawn as a map.") + table
    place = address(view.name, "examples")
    parts = examples_parts(view, seen)
    return (
        f'<div id="examples" data-place="{place}" data-epochs="{seen.epochs}" '
        f'data-live="{address(view.name, "live")}" data-parts="{place}/parts">'
        f"{parts['facts']}{_map(seen, place)}{_gallery(seen)}{_sql(seen, place)}{parts['retrain']}{table}"
        f"{_dialog(seen)}</div>"
    )


def wait(view: View) -> str:
    """A word while the table is made; the page asks for it and comes again."""
    count = mapping(view.info.get("examples")).get("count")
    many = f"{number(count)} examples" if isinstance(count, int) else "many examples"
    place = address(view.name, "examples", "parts")
    return f'<div class="empty" data-wait="{place}" role="status"><p>Reading what {many} did: some seconds.</p></div>'


def examples_parts(view: View, seen: Seen) -> dict[str, str]:
    """The parts that change while people decide, by their identifiers."""
    edits = Edits(view.folder)
    return {
        "facts": _facts(seen, edits),
        "retrain": section("retrain", "Retrain with the edits", _retrain(view, edits)),
    }


def _facts(seen: Seen, edits: Edits) -> str:
    rows = [("examples", number(len(seen))), ("epochs recorded", number(seen.epochs))]
    if seen.count is not None:
        count, low, high = seen.count
        rows.append(("labels likely wrong", f"{number(round(count))} ({number(round(low))} to {number(round(high))})"))
    counts = edits.counts()
    rows += [
        (words, number(counts[key]))
        for key, words in (("relabel", "relabelled"), ("drop", "left out"), ("keep", "kept"))
    ]
    return f'<section id="facts" data-part class="state" aria-label="Summary">{facts(rows)}</section>'


def _map(seen: Seen, place: str) -> str:
    across = axes(seen.table)
    if across is None:
        return ""
    options = "".join(
        f'<option value="{escape(name)}">{escape(words_of(name))}</option>' for name in colours_of(seen.with_edits)
    )
    first = colours_of(seen.with_edits)[0]
    modes = "".join(
        f'<label><input type="radio" name="drag" value="{mode}"{" checked" if mode == "lasso" else ""}> {words}</label>'
        for mode, words in (("lasso", "lasso"), ("select", "box"), ("zoom", "zoom"))
    )
    words = escape(CAPTIONS["examples_map"])
    fields = "".join(
        f'<label>{escape(words_of(name))} from <input type="number" step="any" data-from="{at}"></label> '
        f'<label>to <input type="number" step="any" data-to="{at}"></label>'
        for at, name in enumerate(across)
    )
    return (
        '<figure class="figure wide" id="map"><div class="tools">'
        f'<label>Colour <select id="colour">{options}</select></label>'
        f'<fieldset class="modes"><legend class="unseen">What dragging does</legend>{modes}</fieldset></div>'
        f'<div class="plot" data-figure="{escape(place)}/map?colour={escape(first)}" data-drag="lasso" role="img" '
        f'aria-label="{words}"></div><figcaption>{words}</figcaption>'
        f'<details><summary>Choose a region by numbers</summary><form id="region" class="tools">{fields}'
        '<button class="button">Choose</button></form></details></figure>'
    )


def _gallery(seen: Seen) -> str:
    lists = "".join(f'<option value="{name}">{LISTS[name][0]}</option>' for name in seen.lists())
    labels = _labels(seen)
    only = ""
    if labels:
        options = "".join(f'<option value="{value}">{escape(words)}</option>' for value, words in labels.items())
        only = f'<label>Label <select id="only"><option value="">any</option>{options}</select></label>'
    relabel = (
        '<button type="button" class="quiet" data-all="relabel">relabel as likely</button>'
        if "likely" in seen.table.columns
        else ""
    )
    return (
        '<section class="card" id="browse" aria-labelledby="browse-h"><h2 id="browse-h">Look and decide</h2>'
        f'<div class="tools"><label>Show <select id="list">{lists}</select></label>{only}'
        '<span id="count" class="faint" role="status"></span></div>'
        '<p class="faint keys">Arrow keys move, r relabels, d leaves out, k keeps, u undoes, Enter shows more. '
        "Your data is never changed.</p>"
        f'<div class="tools all"><span class="faint">All on this page:</span>{relabel}'
        '<button type="button" class="quiet" data-all="drop">leave out</button>'
        '<button type="button" class="quiet" data-all="keep">keep</button>'
        '<button type="button" class="quiet" id="undo">undo the last</button></div>'
        f'<div id="shown" aria-live="off"></div>{_without(seen)}'
        '<nav class="tools pager" aria-label="Pages of examples">'
        '<button type="button" class="quiet" id="before" disabled>← before</button>'
        '<button type="button" class="quiet" id="after" disabled>after →</button></nav></section>'
    )


def _without(seen: Seen) -> str:
    """What to do where there is nothing to look at."""
    if seen.previews is None:
        command = f"fogline examples {escape(seen.folder.name)}"
        return (
            '<p class="faint">This run keeps no pictures or rows of its examples. '
            f"<code>{command} --task TASK.py</code> or <code>fogline.examples(run, task)</code> puts them here.</p>"
        )
    if len(seen.previews) < len(seen):
        kept = f"{len(seen.previews):,} of {len(seen):,} examples, at most {MOST_EXAMPLES:,}"
        return f'<p class="faint">Previews are kept of {kept}.</p>'
    return ""


def _labels(seen: Seen) -> Mapping[str, str]:
    """The labels there are, by number: of classification with not too many classes."""
    if seen.kind != "classification" or "target" not in seen.table.columns:
        return {}
    targets = seen.table["target"]
    most = len(seen.classes) if seen.classes else int(targets.max()) + 1 if len(targets) else 0
    if most > _MOST_LABELS:
        return {}
    return {number_text(float(value)): label_words(seen, float(value)) for value in range(most)}


def _dialog(seen: Seen) -> str:
    """Everything of one example."""
    labels = _labels(seen)
    if labels:
        options = "".join(f'<option value="{value}">{escape(words)}</option>' for value, words in labels.items())
        choice = f'<label>label <select id="new-label">{options}</select></label>'
    else:
        choice = '<label>label <input type="number" step="any" id="new-label"></label>'
    return (
        '<dialog id="more" aria-label="An example"><div class="tools">'
        '<button type="button" class="quiet" id="close">close</button>'
        f'{choice}<button type="button" class="button" data-edit="relabel">relabel</button>'
        '<button type="button" class="quiet" data-edit="drop">leave out</button>'
        '<button type="button" class="quiet" data-edit="keep">keep</button></div>'
        '<div id="head"></div>'
        '<div id="curve" role="img" aria-label="The example over the epochs"></div>'
        '<div id="numbers"></div></dialog>'
    )


def _sql(seen: Seen, place: str) -> str:
    offered = [(words, query) for words, column, query in _QUERIES if not column or column in seen.table.columns]
    columns = ", ".join(escape(name) for name in [*seen.table.columns, "edit", "edit_label"])
    about = (
        f"Table <code>examples</code>: {columns}. <code>selected</code> holds what is chosen above, "
        "<code>classes</code> the names of labels; the tables of the run are there, too. Where an answer has a column "
        "<code>example</code>, these are shown in the gallery. Ctrl and Enter runs it."
    )
    return sql_card(f"{place}/sql", about, offered, saved="fogline-queries")


def _retrain(view: View, edits: Edits) -> str:
    """The command that trains with and without the edits, and what it brought."""
    counts = edits.counts()
    name = escape(view.name)
    command = f"<code>fogline examples {name} --retrain</code>"
    if mapping(view.info.get("source")).get("kind") not in ("task", "data"):
        command = f"<code>fogline examples {name} --retrain --task TASK.py</code>"
    if not counts["relabel"] + counts["drop"]:
        todo = f"Relabel or leave out some examples, then {command} says whether that helps."
        return f'<p class="faint">{todo}</p>'
    how = (
        f"<p>{escape(str(edits))}. {command} trains with the edits and without, from the same seeds, and compares the "
        "held-out scores. The page does not train: it never runs code of yours.</p>"
    )
    found = read_retrained(view.folder)
    if found is None:
        return how
    words = "".join(f"<li>{escape(line)}</li>" for line in str(found.get("words", "")).splitlines())
    stamps = edits.table["seconds"]
    newer = len(stamps) and float(stamps.max()) > float(found.get("stamp") or 0)
    note = '<p class="faint">Edits were made since: run it again.</p>' if newer else ""
    return f"{how}<ul>{words}</ul>{note}"
