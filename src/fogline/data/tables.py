"""Columns of numbers, text, dates and truth values become inputs and targets, by an encoder a run can use again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fogline.data.frames import Table, Values, from_frame, is_frame, places, read
from fogline.data.losses import Family
from fogline.errors import did_you_mean, misfit, some

Rows = NDArray[np.int64]
Form = Literal["number", "boolean", "date", "one_hot", "ordinal", "mixed", "dropped"]

MOST_CATEGORIES = 50
"""A column of text with more distinct values than this gets one column, not one each."""
_MOST_WHOLE_CLASSES = 20  # more different whole numbers than this are quantities, unless they are exactly 0..C-1
_ROWS_PER_CLASS = 10
MOST_CLASSES = 1000
_HELD_OUT = 0.2
_TRUTHS = {"true": 1.0, "yes": 1.0, "t": 1.0, "false": 0.0, "no": 0.0, "f": 0.0}
_FEWEST_NAMES = 10  # a column of text that differs in every row is taken for a name from this many rows on


@dataclass(frozen=True)
class Column:
    """How one column is encoded.

    number, date, ordinal and mixed are standardised: ``(value - mean) / scale``, statistics of the training data.
    """

    name: str
    form: Form
    mean: float = 0.0
    scale: float = 1.0
    categories: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The columns it becomes."""
        own = () if self.form in ("dropped", "one_hot") else (self.name,)
        hot = self.categories if self.form in ("one_hot", "mixed") else ()
        return own + tuple(f"{self.name}={category}" for category in hot)


@dataclass(frozen=True)
class TableEncoder:
    """How rows of a table become inputs and targets; it is plain values and goes through JSON.

    >>> from fogline.data.frames import make_table
    >>> table = make_table({"age": [30.0, 40.0], "city": ["Rome", "Bern"], "y": [0.0, 1.0]}, "the example", "y")
    >>> encoder = TableEncoder(target="y").fit(table, [])
    >>> encoder.names
    ('age', 'city=Bern', 'city=Rome')
    >>> TableEncoder.from_dict(encoder.to_dict()) == encoder
    True
    """

    columns: tuple[Column, ...] = ()
    target: str | None = None
    classes: tuple[str, ...] | None = None  # None where the target is a number
    as_float: bool = False  # classes as a column (rows, 1) of 0.0 and 1.0, for the binary losses

    def fit(self, table: Table, notes: list[str]) -> TableEncoder:
        """Choose the encoding of every input column from the training rows, and note what was done.

        Raises:
            ValueError: for missing values, or if no column is left.
        """
        names = [name for name in table.columns if name != self.target]
        table.refuse_missing(names)
        fitted = [_fit_column(name, table.values(name)) for name in names]
        encoder = replace(self, columns=tuple(column for column, _ in fitted))
        if not encoder.names:
            raise misfit(f"at least one column of inputs in {table.origin}", names, "add columns")
        notes += [f"column {column.name!r} {said}" for column, said in fitted if said]
        scaled = sum(column.form in ("number", "date", "ordinal", "mixed") for column in encoder.columns)
        if scaled:
            counted = "1 numeric column was" if scaled == 1 else f"{scaled} numeric columns were"
            notes.append(f"{counted} standardised to mean 0 and deviation 1 of the training data")
        return encoder

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of the encoded matrix."""
        return tuple(name for column in self.columns for name in column.names)

    def encode(self, data: Any) -> Tensor:
        """New rows of a pandas or Polars frame or of a CSV or Parquet file as inputs, (rows, len(names)) float32.

        Raises:
            TypeError: for other data.
            ValueError: for a column that is absent, and for missing values, by column and row.
        """
        if isinstance(data, (str, Path)):
            return self.inputs(read(Path(data), "encode"), [])
        if is_frame(data):
            return self.inputs(from_frame(data, "given"), [])
        raise TypeError(f"encode: expected a frame or the path of a table, received {type(data).__name__}")

    def tensors(self, table: Table, notes: list[str]) -> Any:
        """The inputs of a table with its targets, if it has any."""
        inputs = self.inputs(table, notes)
        return inputs if self.target is None else (inputs, self.targets(table))

    def inputs(self, table: Table, notes: list[str]) -> Tensor:
        """The inputs of a table; categories that the training data did not have are noted."""
        used = [column for column in self.columns if column.form != "dropped"]
        table.refuse_missing([column.name for column in used if column.name in table.columns])
        made, place = np.empty((len(self.names), table.rows), np.float32), 0  # column by column: the cache holds one
        for column in used:
            width = len(column.names)
            if column.form == "number" and table.cells(column.name).dtype.kind == "f":
                centred = table.columns[column.name] - column.mean
                np.divide(centred, column.scale, out=made[place], casting="same_kind")
            else:
                made[place : place + width] = _encode(column, table, notes).T
            place += width
        return torch.from_numpy(made).t().contiguous()

    def targets(self, table: Table) -> Tensor:
        """Labels (rows,) int64, or numbers (rows, 1) float32.

        Raises:
            ValueError: for missing targets and for labels that training did not have, by row.
        """
        values = table.values(str(self.target))
        if self.classes is not None and values.dtype.kind == "f":
            distinct, values = _counted(values)
            return self._labels(class_names(distinct), values, table)
        where = f"target {self.target!r} of {table.origin}"
        if self.classes is None:
            if values.dtype.kind not in "fb":
                raise misfit("numbers", "text", "correct the column", where)
            return torch.from_numpy(values.astype(np.float32))[:, None]
        return self._labels(class_names(values), np.arange(len(values)), table)

    def _labels(self, names: list[str], which: Rows, table: Table) -> Tensor:
        """Labels of the rows, whose class is that of some of the names."""
        assert self.classes is not None
        labels = places(names, self.classes)[which]
        unseen = labels == len(self.classes)
        if unseen.any():
            word = names[which[int(unseen.argmax())]]
            where = f"target {self.target!r} of {table.origin}"
            received, remedy = f"{word!r} at rows {table.named_rows(unseen)}", did_you_mean(word, self.classes)
            raise misfit("the classes of the training data", received, remedy, where)
        return torch.from_numpy(labels).float()[:, None] if self.as_float else torch.from_numpy(labels)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"kind": "table", **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TableEncoder:
        """The inverse of :meth:`to_dict`."""
        columns = tuple(Column(**{**item, "categories": tuple(item["categories"])}) for item in values["columns"])
        classes = None if values["classes"] is None else tuple(values["classes"])
        return cls(columns, values["target"], classes, values.get("as_float", False))


def read_target(table: Table, family: Family, notes: list[str]) -> TableEncoder:
    """Decide from the values and the loss whether a column holds classes or numbers: an encoder without columns yet.

    Text, truth values and few different whole numbers are classes; everything else is a number.

    Raises:
        ValueError: for an unknown column, missing values, one class only, or values the loss cannot work on.
    """
    name = str(table.target)
    values = table.values(name)
    where, text, number = f"target {name!r}", values.dtype.kind == "O", values.dtype.kind == "f"
    whole = not number or bool((values == np.round(values)).all())
    if values.dtype.kind == "M":
        raise misfit("classes or numbers", "dates", "convert them to numbers", where)
    if family == "elementwise" and text:
        remedy = "use a loss over classes such as nn.CrossEntropyLoss()"
        raise misfit("numbers for this loss", f"text such as {str(values[0])!r}", remedy, where)
    if family in ("classes", "binary") and not whole:
        remedy = "use a loss over numbers such as nn.MSELoss()"
        raise misfit("class labels for this loss", f"numbers such as {values[0]:g}", remedy, where)
    if family == "elementwise":
        return TableEncoder(target=name)
    if family in ("classes", "binary") or text or (whole and _few(values)):
        return _classes(table, name, values, family, notes)
    notes.append(f"{where} was read as numbers: regression")
    return TableEncoder(target=name)


def hold_out(labels: Rows | None, rows: int, seed: int) -> tuple[Rows, Rows]:
    """Row numbers of (training, held-out), both ascending; of every class with two rows or more both get some.

    Args:
        labels: (rows,) classes to keep in proportion; None for none.
        rows: how many there are.
        seed: decides which fifth is held out.

    >>> train, valid = hold_out(np.array([0] * 10 + [1] * 5), 15, seed=0)
    >>> len(valid), int((valid >= 10).sum())
    (3, 1)
    """
    generator = torch.Generator().manual_seed(seed)
    groups = [np.arange(rows)] if labels is None else [np.flatnonzero(labels == label) for label in np.unique(labels)]
    held = np.zeros(rows, bool)
    for group in groups:
        count = min(max(round(_HELD_OUT * len(group)), 1), len(group) - 1)
        order = torch.randperm(len(group), generator=generator).numpy()
        held[group[order[:count]]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _fit_column(name: str, values: Values) -> tuple[Column, str]:
    """The encoding of a column, and what to say of it."""
    if values.dtype.kind == "b":
        return Column(name, "boolean"), ""
    if values.dtype.kind == "M":
        return _standardised(name, "date", _numbers(values), "of dates was encoded as days since 1970")
    return _fit_text(name, values) if values.dtype.kind == "O" else _standardised(name, "number", values)


def _fit_text(name: str, values: Values) -> tuple[Column, str]:
    numbers, texts = _numbers(values), _texts(values)
    if {text.lower() for text in texts} == {"true", "false"}:
        return Column(name, "boolean"), ""
    counts, spelled = Counter(texts), np.isfinite(numbers)
    words = sorted({texts[row] for row in np.flatnonzero(~spelled)})
    if not words:
        return _standardised(name, "number", numbers, "holds numbers written as text and was read as numbers")
    if 2 * spelled.sum() >= len(texts) and len(words) <= MOST_CATEGORIES:
        said = "the numbers were kept, each text got a column of its own and the mean as its number"
        said = f"mixes numbers with text ({_listed(words)}): {said}"
        return _standardised(name, "mixed", numbers[spelled], said, words)
    if len(counts) == len(texts) >= _FEWEST_NAMES:
        return Column(name, "dropped"), "differs in every row, like a name or an id, and was dropped"
    if len(counts) > MOST_CATEGORIES:
        ranked = sorted(counts, key=lambda text: (-counts[text], text))
        said = f"has {len(counts)} different texts and was encoded as one number, the rank by frequency"
        return _standardised(name, "ordinal", places(texts, ranked).astype(np.float64), said, ranked)
    kept = sorted(counts)
    said = f"of text was encoded as {len(kept)} one-hot columns ({_listed(kept)})"
    said = said if len(kept) > 1 else f"is constant ({kept[0]!r}): the model learns nothing from it"
    return Column(name, "one_hot", categories=tuple(kept)), said


def _standardised(
    name: str, form: Form, numbers: NDArray[np.float64], said: str = "", categories: Sequence[str] = ()
) -> tuple[Column, str]:
    mean, scale = float(numbers.mean()), float(numbers.std())
    if scale <= 1e-12 * max(1.0, abs(mean)):  # what rounding leaves of a constant
        scale = 1.0
        said = said if categories else f"is constant ({mean:g}): the model learns nothing from it"
    return Column(name, form, mean, scale, tuple(categories)), said


def _encode(column: Column, table: Table, notes: list[str]) -> NDArray[np.float64]:
    """The columns (rows, width) one column becomes; none of its cells may be missing."""
    values = table.cells(column.name)
    if not column.categories:
        return _scaled(column, _numbers_only(column, values, table))
    texts, known = _texts(values), len(column.categories)
    place = places(texts, column.categories)
    numbers = _numbers(values) if column.form == "mixed" else np.full(len(texts), np.nan)
    unseen = sorted({texts[row] for row in np.flatnonzero((place == known) & np.isnan(numbers))})
    if unseen:
        taken = "the rarest" if column.form == "ordinal" else "none of the known"
        where = f"column {column.name!r} of {table.origin}"
        notes.append(f"{where} has values that training did not: {_listed(unseen)}; encoded as {taken}")
    if column.form == "ordinal":
        return _scaled(column, place.astype(np.float64))
    indicators: NDArray[np.float64] = (place[:, None] == np.arange(known)).astype(np.float64)
    if column.form == "one_hot":
        return indicators
    filled = np.where(np.isnan(numbers), column.mean, numbers)
    return np.concatenate([_scaled(column, filled), indicators], axis=1)


def _scaled(column: Column, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((numbers - column.mean) / column.scale)[:, None]


def _numbers_only(column: Column, values: Values, table: Table) -> NDArray[np.float64]:
    if values.dtype.kind == "f" and column.form != "date":
        return values
    numbers = _numbers(values)
    if column.form == "boolean" and values.dtype.kind == "O":  # truth values in a CSV file are words
        numbers = np.array([_TRUTHS.get(text.lower(), _number(text)) for text in _texts(values)], dtype=np.float64)
    wrong = np.isnan(numbers) | ((values.dtype.kind == "M") != (column.form == "date"))
    if wrong.any():
        expected = f"{column.form}s in column {column.name!r} of {table.origin} as in the training data"
        raise misfit(expected, f"{values[wrong][0]!r} at rows {table.named_rows(wrong)}", "correct these cells")
    return numbers


def _numbers(values: Values) -> NDArray[np.float64]:
    """The numbers in a column, dates as days since 1970 and truth values as 0 and 1; NaN for words."""
    if values.dtype.kind == "M":
        return (values - np.datetime64(0, "s")) / np.timedelta64(1, "D")
    if values.dtype.kind != "O":
        return values.astype(np.float64)
    return np.array([_number(text) for text in _texts(values)], dtype=np.float64)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return np.nan
    return number if np.isfinite(number) else np.nan


def _texts(values: Values) -> list[str]:
    """The cells as text, numbers as :func:`class_names` has them: a file may hold only those categories that are."""
    return class_names(values)


def _listed(names: list[str]) -> str:
    return some([repr(name) for name in names])


def _classes(table: Table, name: str, values: Values, family: Family, notes: list[str]) -> TableEncoder:
    numeric = values.dtype.kind == "f"
    names = tuple(class_names(np.unique(values))) if numeric else tuple(sorted(set(class_names(values))))
    where = f"target {name!r} of {table.origin}"
    if len(names) == 1:
        received = f"only {names[0]!r} in all {table.rows} rows"
        raise misfit("at least two classes", received, "add rows of another class", where)
    if family == "binary" and len(names) > 2:
        raise misfit("two classes for a binary loss", len(names), "use nn.CrossEntropyLoss()", where)
    if len(names) == table.rows > 2 or len(names) > MOST_CLASSES:
        received = f"{len(names)} different values in {table.rows} rows"
        raise misfit("classes with several rows each", received, "choose another target column", where)
    hint = "; pass loss=nn.MSELoss() to treat it as a number" if numeric and family == "unknown" else ""
    notes.append(f"target {name!r} was read as {len(names)} classes ({some(names, 8)}){hint}")
    return TableEncoder((), name, names, family == "binary")


def _counted(values: Values) -> tuple[Values, Rows]:
    """The different numbers, and which of them each row has; whole numbers near zero need no sorting."""
    low, high = values.min(initial=0), values.max(initial=0)
    if low >= 0 and high <= MOST_CLASSES and (values == (whole := values.astype(np.int64))).all():
        distinct = np.flatnonzero(np.bincount(whole))
        return distinct.astype(np.float64), np.searchsorted(distinct, whole)
    return np.unique(values, return_inverse=True)


def _few(values: Values) -> bool:
    distinct = np.unique(values)
    if len(distinct) <= _MOST_WHOLE_CLASSES:
        return 2 * len(distinct) <= len(values)
    counted = np.array_equal(distinct, np.arange(len(distinct)))
    return counted and len(values) >= _ROWS_PER_CLASS * len(distinct) and len(distinct) <= MOST_CLASSES


def class_names(values: Values) -> list[str]:
    """The name of each row's class: whole numbers without a decimal point, text without surrounding blanks."""
    if values.dtype.kind == "f":
        return [str(int(value)) if value == int(value) else f"{value:g}" for value in values]
    return [str(value).strip() for value in values]
