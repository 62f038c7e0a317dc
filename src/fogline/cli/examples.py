"""The command that tells what each example of a run did. PyTorch is imported only where the data is looked at."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fogline._examples import Examples, examples
from fogline._examples.edits import Edits
from fogline.cli.saying import say
from fogline.errors import misfit
from fogline.record.store import Table, read_info
from fogline.run import Run
from fogline.words import number, plain

if TYPE_CHECKING:
    from fogline.recipe import Recipe
    from fogline.task import Task

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_NEAR = 10  # rows of the parts that look at the data


def opened(folder: Path, task: Task | None) -> Examples:
    """What the examples of a run did."""
    return examples(Run.open(folder, task=task), task)


class Out:
    """Lines for people, or one JSON object and nothing else."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.values: dict[str, Any] = {}

    def add(self, key: str, value: Any, *lines: str) -> None:
        """A part: its value by name, and its lines."""
        self.values[key] = value
        if not self.as_json:
            for line in lines:
                say(line)

    def end(self) -> None:
        if self.as_json:
            say(json.dumps(self.values, indent=2))


def task_of(folder: Path, task_file: str | None) -> tuple[Task, Recipe | None]:
    """The task of the run: from a file, by ``task`` or another name behind a colon, or as the run was started.

    Beside it the recipe of that file, for a run whose loop was its own.
    """
    from fogline.cli.sources import existing, load_task_file, task_from_source

    if task_file is not None:
        path, _, name = task_file.partition(":") if task_file.count(":") == 1 else (task_file, "", "")
        task, recipe = load_task_file(existing(Path(path), "a task file"), name or "task")
        watched = (read_info(folder).get("source") or {}).get("kind") == "watch"
        return task, recipe if watched else None
    source = read_info(folder).get("source")
    if not source or source.get("kind") not in ("task", "data"):
        raise ValueError(
            f"expected a run started by `fogline train`, received {folder}, which was started from Python; "
            "name the file that makes its task with --task FILE.py"
        )
    return task_from_source(source, folder)[0], None


# -- listing -----------------------------------------------------------------------------------------------------------


def listed(folder: Path, seen: Examples, top: int, out: Out, *, data: bool) -> None:
    """What stands out; with ``data``, also in the data itself."""
    table, record = seen.table, seen.record
    words = f"{folder.name}: {number(len(table))} examples, {number(len(record.epochs))} epochs, {record.kind}"
    if record.classes:
        words += f" of {len(record.classes)} classes"
    about = {"run": str(folder), "examples": len(table), "epochs": len(record.epochs), "kind": record.kind}
    out.add("about", about, words)
    names = record.classes
    if "label_error" in table.columns:
        _list_errors(seen, names, top, out)
    else:
        column = next(name for name in ("residual", "loss") if name in table.columns)
        _list_highest(table, column, top, out)
    if data:
        _list_near(seen, out)
    edits = Edits(folder)
    if len(edits):
        retrain = f"; `fogline examples {folder.name} --retrain` says what they are worth" if not data else ""
        out.add("edits", edits.counts(), "", f"edits: {edits}{retrain}")


def _list_errors(seen: Examples, names: Sequence[str] | None, top: int, out: Out) -> None:
    found = seen.label_errors()
    low, high = found.interval
    count = f"labels likely wrong: {number(round(found.count))} ({number(round(low))} to {number(round(high))})"
    shown = found.ids[: min(top, max(found.cut, round(found.count)))]
    columns = shown.tolist(), found.likely.tolist(), found.probability.tolist()
    values = [
        {"example": e, "target": _number(seen.table["target"][e]), "likely": k, "probability": p}
        for e, k, p in zip(*columns, strict=False)
    ]
    rows = [
        [str(v["example"]), *(_label(v[name], names) for name in ("target", "likely")), f"{v['probability']:.2f}"]
        for v in values
    ]
    lines = [count, *_columns(("example", "label", "likely", "probability"), rows)] if rows else [count]
    if len(rows) < found.cut:
        lines.append(f"the first {len(rows)} of {number(found.cut)}: --top COUNT shows more, --export FILE writes all")
    out.add("label_errors", {"count": found.count, "interval": [low, high], "first": values}, "", *lines)


def _list_highest(table: Table, column: str, top: int, out: Out) -> None:
    """Where there are no classes: what the run was furthest from at the end."""
    size = abs(table[column].astype(float))
    order = [example for example in size.argsort()[::-1].tolist() if math.isfinite(size[example])][:top]
    values = [{"example": example, column: float(table[column][example])} for example in order]
    rows = [[str(value["example"]), number(value[column])] for value in values]
    out.add(f"highest_{column}", values, "", f"largest {column}", *_columns(("example", column), rows))


def _list_near(seen: Examples, out: Out) -> None:
    """What looking at the data itself shows: leaks across the split, copies, outliers, slices that do worse."""
    parts: tuple[tuple[str, str, Callable[[], Table]], ...] = (
        ("leaks", "pairs of a training and a held-out example that show the same", seen.leaks),
        ("duplicates", "pairs of training examples that show the same", seen.duplicates),
        ("slices", "parts of the data that do worse than the rest", seen.slices),
    )
    for name, words, find in parts:
        try:
            found = find()
        except ValueError as error:  # nothing is held out, or there is nothing to compare
            out.add(name, None, "", f"{name}: {error}")
            continue
        _add_rows(out, name, found, f"{name}: {number(len(found))} {words}")
    try:
        lonely = seen.outliers()
    except ValueError as error:
        out.add("outliers", None, "", f"outliers: {error}")
        return
    first = Table({column: values[:_NEAR] for column, values in lonely.columns.items()})
    _add_rows(out, "outliers", first, "outliers: the distance to their neighbours, over what is usual there")


def _add_rows(out: Out, name: str, table: Table, head: str) -> None:
    rows = [{column: _plain(value) for column, value in row.items()} for row in table]
    texts = [[plain(value, 60) for value in row.values()] for row in rows[:_NEAR]]
    lines = _columns(tuple(table.columns), texts) if rows else []
    more = [f"the first {_NEAR} of {number(len(rows))}"] if len(rows) > _NEAR else []
    out.add(name, {"count": len(rows), "first": rows[:_NEAR]}, "", head, *lines, *more)


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows under their heads, aligned; tab-separated where nobody looks on."""
    if not sys.stdout.isatty():
        return ["\t".join(row) for row in (head, *rows)]
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]


def print_table(table: Table, out: Out) -> None:
    """The rows that a query gave."""
    rows = [[_cell(value) for value in row.values()] for row in table]
    values = [{name: _plain(value) for name, value in row.items()} for row in table]
    out.add("rows", values, *_columns(tuple(table.columns), rows))


def _cell(value: Any) -> str:
    return "" if value is None or value != value else number(value) if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _label(value: Any, names: Sequence[str] | None) -> str:
    found = None if value is None else _number(value)
    if found is None or (isinstance(found, int) and found < 0):
        return ""
    return names[found] if names and isinstance(found, int) and found < len(names) else number(found)


def _number(value: Any) -> int | float | None:
    found = float(value)
    return int(found) if found.is_integer() else found if math.isfinite(found) else None


# -- deciding ----------------------------------------------------------------------------------------------------------


def edit(folder: Path, seen: Examples, action: str, text: str) -> None:
    """Decide about ``3,17,20-25``, with labels ``3=dog,17=0``, or about ``likely:50``, the likeliest label errors."""
    chosen = _chosen(text, seen)
    edits = Edits(folder)
    given = [label is not None for _, label in chosen]
    ids = [example for example, _ in chosen]
    if action != "relabel":
        if any(given):
            raise misfit(f"examples alone to {action}", repr(text), "labels are for relabel")
        edits.edit(ids, action)
        return
    likely = _likely(seen) if not all(given) else {}
    unknown = [example for example, label in chosen if label is None and example not in likely]
    if unknown:
        raise misfit("examples with a likely label", unknown[0], f"say it: --edit relabel {unknown[0]}=LABEL")
    edits.relabel(ids, [label if label is not None else likely[example] for example, label in chosen])


def _likely(seen: Examples) -> dict[int, int]:
    """The label that is right if the one an example has is wrong, where there is a candidate."""
    if "label_error" not in seen.table.columns:
        return {}
    found = seen.label_errors()
    return {
        example: label for example, label in zip(found.ids.tolist(), found.likely.tolist(), strict=True) if label >= 0
    }


def _chosen(text: str, seen: Examples) -> list[tuple[int, str | int | float | None]]:
    word, _, count = text.partition(":")
    if word == "likely":
        found = seen.label_errors()
        most = int(count) if count.isdecimal() else max(found.cut, 0)
        return [(example, None) for example in found.ids[:most].tolist()]
    chosen: list[tuple[int, str | int | float | None]] = []
    for part in text.split(","):
        ids, equals, label = part.strip().partition("=")
        match = _RANGE.fullmatch(ids.strip())
        if match is None or (equals and not label.strip()):
            remedy = "write 3,17,20-25, or 3=cat,17=dog, or likely:50"
            raise misfit("examples by their numbers", repr(text), remedy, "--edit")
        first = int(match[1])
        value = _value(label.strip(), seen.record.classes) if equals else None
        chosen += [(example, value) for example in range(first, int(match[2] or first) + 1)]
    return chosen


def _value(label: str, names: Iterable[str] | None) -> str | int | float:
    """A class by its name before its number, so that a class called "7" is meant by 7."""
    if names is not None and label in names:
        return label
    try:
        value = float(label)
    except ValueError:
        return label
    return int(value) if value.is_integer() else value


def undo(folder: Path, out: Out) -> None:
    """Take back what was decided last."""
    taken = Edits(folder).undo()
    out.add("undone", taken, f"taken back: what was decided last, about {number(taken)} examples")


def edits(folder: Path, out: Out) -> None:
    """How many examples were decided about."""
    found = Edits(folder)
    out.add("edits", found.counts(), f"edits: {found}; the data itself is not changed")


def retrained(folder: Path, task: Task | None, recipe: Recipe | None, seeds: int, out: Out) -> None:
    """Train with the edits and without, and tell the difference."""
    from fogline._examples.retrain import retrain

    run = Run.open(folder, task=task)
    found = retrain(run, None, recipe, seeds, say=(lambda words: None) if out.as_json else say)
    say(found.to_json() if out.as_json else f"\n{found}")
