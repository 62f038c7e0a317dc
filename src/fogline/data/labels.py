"""Target columns: classes as 0..C-1 with their names kept, or numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fogline.data.frames import Table, Values
from fogline.data.losses import Family
from fogline.errors import did_you_mean

_MOST_WHOLE_CLASSES = 20  # more different whole numbers than this are quantities, unless they are exactly 0..C-1
_ROWS_PER_CLASS = 10


@dataclass(frozen=True)
class Target:
    """How the target column is read."""

    name: str
    kind: Literal["classification", "regression"]
    classes: tuple[str, ...] | None
    as_float: bool = False  # a column (rows, 1) of 0.0 and 1.0, for the binary losses

    def encode(self, table: Table) -> Tensor:
        """Labels (rows,) int64, or numbers (rows, 1) float32.

        Raises:
            ValueError: for missing targets and for labels that training did not have, by row.
        """
        values = table.require(self.name, "target column")
        table.refuse_missing([self.name], self.name)
        if self.classes is None:
            if values.dtype.kind not in "fb":
                raise ValueError(f"target {self.name!r} of {table.origin}: expected numbers, received text")
            return torch.from_numpy(values.astype(np.float32))[:, None]
        place = {name: label for label, name in enumerate(self.classes)}
        names = class_names(values)
        unseen = np.array([name not in place for name in names], bool)
        if unseen.any():
            word = names[int(unseen.argmax())]
            raise ValueError(
                f"target {self.name!r} of {table.origin}: expected the classes of the training data, received {word!r} "
                f"at rows {table.named_rows(unseen)}; {did_you_mean(word, self.classes)}"
            )
        labels = torch.tensor([place[name] for name in names])
        return labels.float()[:, None] if self.as_float else labels


def read_target(table: Table, name: str, family: Family) -> tuple[Target, tuple[str, ...]]:
    """Decide from the values and the loss whether a column holds classes or numbers, and say so.

    Text, truth values and few different whole numbers are classes; everything else is a number.

    Raises:
        ValueError: for an unknown column, missing values, one class only, or values the loss cannot work on.
    """
    values = table.require(name, "target column")
    table.refuse_missing([name], name)
    if table.rows == 0:
        raise ValueError(f"{table.origin}: expected at least one row, received none")
    text = values.dtype.kind not in "fbM"
    if values.dtype.kind == "M":
        raise ValueError(f"target {name!r}: expected classes or numbers, received dates; convert them to numbers")
    whole = values.dtype.kind == "b" or (not text and bool((values == np.round(values)).all()))
    if family == "elementwise":
        if text:
            raise ValueError(
                f"target {name!r}: expected numbers for this loss, received text such as {str(values[0])!r}; "
                "use a loss over classes such as nn.CrossEntropyLoss()"
            )
        return Target(name, "regression", None), ()
    if family in ("classes", "binary") and not (text or whole):
        raise ValueError(
            f"target {name!r}: expected class labels for this loss, received numbers such as {values[0]:g}; "
            "use a loss over numbers such as nn.MSELoss()"
        )
    if family not in ("classes", "binary") and not text and not (whole and _few(values)):
        return Target(name, "regression", None), (f"target {name!r} was read as numbers: regression",)
    return _classes(table, name, values, family)


def _classes(table: Table, name: str, values: Values, family: Family) -> tuple[Target, tuple[str, ...]]:
    names = _sorted(values)
    if len(names) == 1:
        raise ValueError(
            f"target {name!r} of {table.origin}: expected at least two classes, received only {names[0]!r} in all "
            f"{table.rows} rows; add rows of another class"
        )
    if family == "binary" and len(names) > 2:
        raise ValueError(
            f"target {name!r}: expected two classes for a binary loss, received {len(names)}; use nn.CrossEntropyLoss()"
        )
    if len(names) == table.rows > 2 or len(names) > 1000:
        raise ValueError(
            f"target {name!r} of {table.origin}: expected classes with several rows each, received {len(names)} "
            f"different values in {table.rows} rows; choose another target column"
        )
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    note = f"target {name!r} was read as {len(names)} classes ({shown})"
    if values.dtype.kind == "f" and family == "unknown":
        note += "; pass loss=nn.MSELoss() to treat it as a number"
    return Target(name, "classification", names, family == "binary"), (note,)


def _few(values: Values) -> bool:
    distinct = np.unique(values)
    if len(distinct) <= _MOST_WHOLE_CLASSES:
        return 2 * len(distinct) <= len(values)
    counted = np.array_equal(distinct, np.arange(len(distinct)))
    return counted and len(values) >= _ROWS_PER_CLASS * len(distinct) and len(distinct) <= 1000


def class_names(values: Values) -> list[str]:
    """The name of each row's class: whole numbers without a decimal point, text without surrounding blanks."""
    if values.dtype.kind == "f":
        return [str(int(value)) if value == int(value) else f"{value:g}" for value in values]
    return [str(value).strip() for value in values]


def _sorted(values: Values) -> tuple[str, ...]:
    if values.dtype.kind == "f":
        return tuple(class_names(np.unique(values)))
    return tuple(sorted(set(class_names(values))))


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
