"""What people decided about examples: another label, left out, or right as it is.

Decisions lie over the data as a slide lies over a map: they are kept in the table ``edits`` of the run, and nothing
of the data itself is ever changed. :func:`fogline._examples.edited.edited` makes a task that follows them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fogline.errors import misfit, some, unknown
from fogline.record.store import Table, changing, read_info, read_table

if TYPE_CHECKING:
    from fogline.task import Task

ACTIONS = ("relabel", "drop", "keep")
"""``relabel``: it has another label. ``drop``: it is left out. ``keep``: it was looked at, and is right as it is."""

Label = int | float | str


class Edits:
    """The decisions about the examples of a run. The last one about an example counts.

    Args:
        folder: of the run.

    Raises:
        FileNotFoundError: the folder holds no run.

    >>> import fogline, torch
    >>> X = torch.randn(8, 2)
    >>> task = fogline.Task(torch.nn.Linear(2, 2), torch.nn.CrossEntropyLoss(), (X, torch.arange(8) % 2))
    >>> run = fogline.fit(task, lr=0.1, optimizer="sgd", duration="2ep", name="edited")
    >>> edits = Edits(run.folder)
    >>> edits.drop([3, 5])
    >>> edits.relabel([2], 1)
    >>> [(row["example"], row["action"]) for row in edits.table]
    [(2, 'relabel'), (3, 'drop'), (5, 'drop')]
    >>> len(edits.applied(task).train[0])
    6
    >>> edits.undo(), len(edits)
    (1, 2)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        info = read_info(self.folder)
        about, task = info.get("examples") or {}, info.get("task") or {}
        self.classes: tuple[str, ...] | None = _names(about.get("classes") or task.get("classes"))
        self._kind = str(about.get("kind") or task.get("kind") or "")
        count = about.get("count", task.get("train_examples"))
        self._count: int | None = count if isinstance(count, int) else None

    # -- deciding ------------------------------------------------------------------------------------------------

    def edit(self, ids: Iterable[int], action: str, labels: Label | Sequence[Label] | None = None) -> None:
        """Decide about examples.

        Args:
            ids: their positions in the training data.
            action: one of :data:`ACTIONS`.
            labels: for ``relabel``, one for all or one for each: a class by its number or its name, or the number to
                predict.

        Raises:
            ValueError: an unknown action, an example or a class that the run does not have, or labels that are
                missing or too many.
            TypeError: an id that is no whole number.
            OSError: the run folder cannot be written.
        """
        if action not in ACTIONS:
            raise unknown("action", action, ACTIONS)
        chosen = self._checked(ids)
        values = self._labels(labels, len(chosen)) if action == "relabel" else [None] * len(chosen)
        if action != "relabel" and labels is not None:
            raise ValueError(f"expected labels only to relabel, received {labels!r} to {action}")
        if not chosen:
            return
        with changing(self.folder, "edits") as connection:
            last = connection.execute("select max(seconds) from edits").fetchone()[0] or 0.0
            when = max(time.time(), math.nextafter(last, math.inf))  # one moment for each call: what undo takes back
            rows = [(example, action, value, when) for example, value in zip(chosen, values, strict=True)]
            connection.executemany("insert into edits (example, action, value, seconds) values (?, ?, ?, ?)", rows)

    def relabel(self, ids: Iterable[int], labels: Label | Sequence[Label]) -> None:
        """Give examples another label; see :meth:`edit`."""
        self.edit(ids, "relabel", labels)

    def drop(self, ids: Iterable[int]) -> None:
        """Leave examples out; see :meth:`edit`."""
        self.edit(ids, "drop")

    def keep(self, ids: Iterable[int]) -> None:
        """Say that examples were looked at and are right as they are; see :meth:`edit`."""
        self.edit(ids, "keep")

    def undo(self, ids: Iterable[int] | None = None) -> int:
        """Take back the last call, or everything that was decided about some examples.

        Returns:
            About how many examples something was taken back.
        """
        with changing(self.folder, "edits") as connection:
            if ids is None:
                query = "delete from edits where seconds = (select max(seconds) from edits) returning example"
                return len({row[0] for row in connection.execute(query).fetchall()})
            taken = 0
            for example in self._checked(ids):
                taken += connection.execute("delete from edits where example = ?", (example,)).rowcount > 0
            return taken

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def table(self) -> Table:
        """The last decision about each example: ``example``, ``action``, ``label`` (NaN but for relabelled ones) and
        ``seconds`` since 1970, by example."""
        rows = read_table(self.folder, "edits", "id")
        last = {example: at for at, example in enumerate(rows["example"].tolist())}
        chosen = np.array([last[example] for example in sorted(last)], dtype=np.int64)
        labels = np.array([_number(rows["value"][at]) for at in chosen], dtype=np.float64)
        columns = {"example": rows["example"], "action": rows["action"], "seconds": rows["seconds"]}
        found: dict[str, NDArray[Any]] = {name: values[chosen] for name, values in columns.items()}
        return Table({"example": found["example"], "action": found["action"], "label": labels, **found})

    def __len__(self) -> int:
        """How many examples something was decided about."""
        return len(self.table)

    def counts(self) -> dict[str, int]:
        """How many examples each action was taken on.

        The actions in the order of :data:`ACTIONS`, all of them.
        """
        actions = self.table["action"].tolist()
        return {action: actions.count(action) for action in ACTIONS}

    @property
    def dropped(self) -> list[int]:
        """The examples that are left out."""
        return [row["example"] for row in self.table if row["action"] == "drop"]

    @property
    def relabelled(self) -> dict[int, float]:
        """The labels of examples that have another, by example."""
        return {row["example"]: row["label"] for row in self.table if row["action"] == "relabel"}

    def __str__(self) -> str:
        counts = self.counts()
        return f"{counts['relabel']} relabelled, {counts['drop']} left out, {counts['keep']} kept"

    # -- following -----------------------------------------------------------------------------------------------

    def applied(self, task: Task) -> Task:
        """The task with these decisions carried out; ``task`` and its data are left as they are.

        Where the data was split by fogline (frames, files, folders) it is split as it was in the run, so the held-out
        rows are the same.

        Raises:
            ValueError: the task's data is not that of the run; labels of this data cannot be replaced by one number.
            TypeError: the data is a stream: its examples have no positions.
        """
        from fogline._examples.edited import edited

        return edited(task, self.dropped, self.relabelled, read_info(self.folder))

    # -- checking ------------------------------------------------------------------------------------------------

    def _checked(self, ids: Iterable[int]) -> list[int]:
        chosen = list(ids)
        for example in chosen:
            if isinstance(example, bool | np.bool_) or not hasattr(example, "__index__"):
                raise TypeError(f"expected examples by whole numbers, received {example!r}")
        chosen = list(dict.fromkeys(map(int, chosen)))
        wrong = [example for example in chosen if example < 0 or (self._count is not None and example >= self._count)]
        if wrong:
            there = "0 and up" if self._count is None else f"0 to {self._count - 1}"
            raise misfit(f"examples {there}", some(wrong), "take their positions in the training data")
        return chosen

    def _labels(self, labels: Label | Sequence[Label] | None, count: int) -> list[str]:
        if labels is None:
            raise ValueError("expected the label that the examples are to have, received None; pass labels=")
        one = isinstance(labels, str | Real)
        given: Sequence[Label] = [labels] * count if one else list(labels)  # type: ignore[list-item, arg-type]
        if len(given) != count:
            raise misfit(f"one label for all or {count}, one each", f"{len(given)} labels", "give as many as examples")
        return [self._label(label) for label in given]

    def _label(self, label: Label) -> str:
        """A label as it is kept: a number, as text."""
        if isinstance(label, str):
            if self.classes is None or label not in self.classes:
                raise unknown("class", label, self.classes or ("a number",))
            return str(self.classes.index(label))
        value = float(label)
        if self._kind == "classification":
            known = "0 and up" if self.classes is None else f"0 to {len(self.classes) - 1}"
            outside = self.classes is not None and value >= len(self.classes)
            if not value.is_integer() or value < 0 or outside:
                raise misfit(f"a class by its name or its number, {known}", repr(label), "give one of these")
        if not math.isfinite(value):
            raise misfit("a finite label", repr(label), "give a number")
        return str(int(value)) if value.is_integer() else repr(value)


def edit_columns(edits: Table, count: int) -> Mapping[str, NDArray[Any]]:
    """The decisions as columns of the table of all examples.

    Args:
        edits: :attr:`Edits.table`.
        count: of examples.

    Returns:
        ``edit`` (the action, "" where nothing was decided) and ``edit_label`` (NaN but for relabelled ones), both of
        shape (count,).
    """
    inside = edits["example"] < count
    at = edits["example"][inside].astype(np.int64)
    action, label = np.full(count, "", dtype=object), np.full(count, np.nan)
    action[at], label[at] = edits["action"][inside], edits["label"][inside]
    return {"edit": action, "edit_label": label}


def _names(classes: Any) -> tuple[str, ...] | None:
    return tuple(map(str, classes)) if isinstance(classes, list) and classes else None


def _number(text: Any) -> float:
    return math.nan if text is None else float(text)
