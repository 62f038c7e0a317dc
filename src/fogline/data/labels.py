"""Target columns: classes as 0..C-1 with their names kept, or numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fogline.data.frames import Table, Values, places
from fogline.data.losses import Family
from fogline.errors import did_you_mean, misfit, some

_MOST_WHOLE_CLASSES = 20  # more different whole numbers than this are quantities, unless they are exactly 0..C-1
_ROWS_PER_CLASS = 10
_MOST_CLASSES = 1000


@dataclass(frozen=True)
class Target:
    """How a column of targets is read."""

    name: str
    classes: tuple[str, ...] | None = None  # None for numbers
    as_float: bool = False  # a column (rows, 1) of 0.0 and 1.0, for the binary losses

    def encode(self, table: Table) -> Tensor:
        """Labels (rows,) int64, or numbers (rows, 1) float32.

        Raises:
            ValueError: for missing targets and for labels that training did not have, by row.
        """
        values = table.values(self.name, "target column")
        where = f"target {self.name!r} of {table.origin}"
        if self.classes is None:
            if values.dtype.kind not in "fb":
                raise misfit("numbers", "text", "correct the column", where)
            return torch.from_numpy(values.astype(np.float32))[:, None]
        names = class_names(values)
        labels = places(names, self.classes)
        unseen = labels == len(self.classes)
        if unseen.any():
            word = names[int(unseen.argmax())]
            received, remedy = f"{word!r} at rows {table.named_rows(unseen)}", did_you_mean(word, self.classes)
            raise misfit("the classes of the training data", received, remedy, where)
        encoded = torch.from_numpy(labels)
        return encoded.float()[:, None] if self.as_float else encoded


def read_target(table: Table, name: str, family: Family) -> tuple[Target, tuple[str, ...]]:
    """Decide from the values and the loss whether a column holds classes or numbers, and say so.

    Text, truth values and few different whole numbers are classes; everything else is a number.

    Raises:
        ValueError: for an unknown column, missing values, one class only, or values the loss cannot work on.
    """
    values = table.values(name, "target column")
    where, kind = f"target {name!r}", values.dtype.kind
    whole = kind == "b" or (kind == "f" and bool((values == np.round(values)).all()))
    over_classes = family in ("classes", "binary")
    if kind == "M":
        raise misfit("classes or numbers", "dates", "convert them to numbers", where)
    if family == "elementwise" and kind == "O":
        remedy = "use a loss over classes such as nn.CrossEntropyLoss()"
        raise misfit("numbers for this loss", f"text such as {str(values[0])!r}", remedy, where)
    if over_classes and kind == "f" and not whole:
        remedy = "use a loss over numbers such as nn.MSELoss()"
        raise misfit("class labels for this loss", f"numbers such as {values[0]:g}", remedy, where)
    if family == "elementwise":
        return Target(name), ()
    if not over_classes and kind != "O" and not (whole and _few(values)):
        return Target(name), (f"{where} was read as numbers: regression",)
    return _classes(table, name, values, family)


def _classes(table: Table, name: str, values: Values, family: Family) -> tuple[Target, tuple[str, ...]]:
    numeric = values.dtype.kind == "f"
    names = tuple(class_names(np.unique(values))) if numeric else tuple(sorted(set(class_names(values))))
    where = f"target {name!r} of {table.origin}"
    if len(names) == 1:
        received = f"only {names[0]!r} in all {table.rows} rows"
        raise misfit("at least two classes", received, "add rows of another class", where)
    if family == "binary" and len(names) > 2:
        raise misfit("two classes for a binary loss", len(names), "use nn.CrossEntropyLoss()", where)
    if len(names) == table.rows > 2 or len(names) > _MOST_CLASSES:
        received = f"{len(names)} different values in {table.rows} rows"
        raise misfit("classes with several rows each", received, "choose another target column", where)
    note = f"target {name!r} was read as {len(names)} classes ({some(names, 8)})"
    if numeric and family == "unknown":
        note += "; pass loss=nn.MSELoss() to treat it as a number"
    return Target(name, names, family == "binary"), (note,)


def _few(values: Values) -> bool:
    distinct = np.unique(values)
    if len(distinct) <= _MOST_WHOLE_CLASSES:
        return 2 * len(distinct) <= len(values)
    counted = np.array_equal(distinct, np.arange(len(distinct)))
    return counted and len(values) >= _ROWS_PER_CLASS * len(distinct) and len(distinct) <= _MOST_CLASSES


def class_names(values: Values) -> list[str]:
    """The name of each row's class: whole numbers without a decimal point, text without surrounding blanks."""
    if values.dtype.kind == "f":
        return [str(int(value)) if value == int(value) else f"{value:g}" for value in values]
    return [str(value).strip() for value in values]


def hold_out(
    labels: NDArray[np.int64] | None,  # (rows,) classes to keep in proportion
    rows: int,
    seed: int,
    share: float = 0.2,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers of (training, held-out), both ascending; of every class with two rows or more both get some.

    >>> train, valid = hold_out(np.array([0] * 10 + [1] * 5), 15, seed=0)
    >>> len(valid), int((valid >= 10).sum())
    (3, 1)
    """
    generator = torch.Generator().manual_seed(seed)
    groups = [np.arange(rows)] if labels is None else [np.flatnonzero(labels == label) for label in np.unique(labels)]
    held = np.zeros(rows, bool)
    for group in groups:
        count = min(max(round(share * len(group)), 1), len(group) - 1)
        order = torch.randperm(len(group), generator=generator).numpy()
        held[group[order[:count]]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
