"""Columns of numbers, text, dates and truth values become one matrix, by an encoder that a saved run can use again."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fogline.data.frames import Table, Values, from_frame, is_frame, read

Form = Literal["number", "boolean", "date", "one_hot", "ordinal", "mixed", "dropped"]

MOST_CATEGORIES = 50
"""A column of text with more distinct values than this gets one column, not one each."""
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
        if self.form == "dropped":
            return ()
        indicators = tuple(f"{self.name}={category}" for category in self.categories)
        if self.form == "one_hot":
            return indicators
        return (self.name, *indicators) if self.form == "mixed" else (self.name,)


@dataclass(frozen=True)
class TableEncoder:
    """How rows of a table become inputs; it is plain values and goes through JSON.

    >>> encoder, notes = TableEncoder.fit(_doctest_table(), target="y")
    >>> encoder.names
    ('age', 'city=Bern', 'city=Rome')
    >>> TableEncoder.from_dict(encoder.to_dict()) == encoder
    True
    """

    columns: tuple[Column, ...]
    target: str | None = None
    classes: tuple[str, ...] | None = None

    @classmethod
    def fit(cls, table: Table, target: str | None) -> tuple[TableEncoder, tuple[str, ...]]:
        """Choose the encoding of every input column from the training rows, and say what was done.

        Raises:
            ValueError: for missing values, or if no column is left.
        """
        names = [name for name in table.columns if name != target]
        table.refuse_missing(names)
        columns, notes = [], []
        for name in names:
            column, note = _fit_column(name, table.columns[name])
            columns.append(column)
            notes += [note] if note else []
        if not any(column.names for column in columns):
            raise ValueError(f"expected at least one column of inputs in {table.origin}, received {names}; add columns")
        scaled = sum(column.form in ("number", "date", "ordinal", "mixed") for column in columns)
        if scaled:
            counted = "1 numeric column was" if scaled == 1 else f"{scaled} numeric columns were"
            notes.insert(0, f"{counted} standardised to mean 0 and deviation 1 of the training data")
        return cls(tuple(columns), target), tuple(notes)

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
            return self.inputs(read(Path(data), "encode"))[0]
        if not is_frame(data):
            raise TypeError(f"encode: expected a frame or the path of a table, received {type(data).__name__}")
        return self.inputs(from_frame(data, "given"))[0]

    def inputs(self, table: Table) -> tuple[Tensor, tuple[str, ...]]:
        """The inputs of a table, and sentences on categories that the training data did not have."""
        used = [column for column in self.columns if column.form != "dropped"]
        for column in used:
            table.require(column.name)
        table.refuse_missing([column.name for column in used])
        parts: list[NDArray[np.float64]] = []
        notes = []
        for column in used:
            encoded, unseen = _encode(column, table)
            parts.append(encoded)
            if unseen:
                notes.append(
                    f"column {column.name!r} of {table.origin} has values that training did not: {unseen}; "
                    + ("encoded as the rarest" if column.form == "ordinal" else "encoded as none of the known")
                )
        matrix = np.concatenate(parts, axis=1).astype(np.float32)
        return torch.from_numpy(matrix), tuple(notes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "kind": "table",
            "columns": [asdict(column) for column in self.columns],
            "target": self.target,
            "classes": self.classes,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TableEncoder:
        """The inverse of :meth:`to_dict`."""
        columns = tuple(Column(**{**item, "categories": tuple(item["categories"])}) for item in values["columns"])
        classes = values["classes"]
        return cls(columns, values["target"], None if classes is None else tuple(classes))


def _fit_column(name: str, values: Values) -> tuple[Column, str]:
    if values.dtype.kind == "f":
        return _standardised(name, "number", values)
    if values.dtype.kind == "b":
        return Column(name, "boolean"), ""
    if values.dtype.kind == "M":
        column, note = _standardised(name, "date", _days(values))
        return column, note or f"column {name!r} of dates was encoded as days since 1970"
    return _fit_text(name, values)


def _standardised(name: str, form: Form, numbers: NDArray[np.float64]) -> tuple[Column, str]:
    mean, scale = float(numbers.mean()), float(numbers.std())
    if scale <= 1e-12 * max(1.0, abs(mean)):  # what rounding leaves of a constant
        return Column(
            name, form, mean, 1.0
        ), f"column {name!r} is constant ({mean:g}): the model learns nothing from it"
    return Column(name, form, mean, scale), ""


def _fit_text(name: str, values: Values) -> tuple[Column, str]:
    texts = _texts(values)
    numbers = _numbers(texts)
    words = Counter(text for text, number in zip(texts, numbers, strict=True) if np.isnan(number))
    if not words:
        column, note = _standardised(name, "number", numbers)
        return column, note or f"column {name!r} holds numbers written as text and was read as numbers"
    if 2 * np.isfinite(numbers).sum() >= len(numbers) and len(words) <= MOST_CATEGORIES:
        column, _ = _standardised(name, "mixed", numbers[np.isfinite(numbers)])
        kept = tuple(sorted(words))
        return (
            Column(name, "mixed", column.mean, column.scale, kept),
            f"column {name!r} mixes numbers with text ({_listed(kept)}): the numbers were kept, each text got a column "
            "of its own and the mean as its number",
        )
    counts = Counter(texts)
    if len(counts) == len(texts) >= _FEWEST_NAMES:
        return Column(name, "dropped"), f"column {name!r} differs in every row, like a name or an id, and was dropped"
    if len(counts) == 1:
        only = next(iter(counts))
        return (
            Column(name, "one_hot", categories=(only,)),
            f"column {name!r} is constant ({only!r}): the model learns nothing from it",
        )
    if len(counts) > MOST_CATEGORIES:
        ranked = tuple(sorted(counts, key=lambda text: (-counts[text], text)))
        rank = {text: place for place, text in enumerate(ranked)}
        column, _ = _standardised(name, "ordinal", np.array([float(rank[text]) for text in texts]))
        return (
            Column(name, "ordinal", column.mean, column.scale, ranked),
            f"column {name!r} has {len(counts)} different texts and was encoded as one number, the rank by frequency",
        )
    kept = tuple(sorted(counts))
    return (
        Column(name, "one_hot", categories=kept),
        f"column {name!r} of text was encoded as {len(kept)} one-hot columns ({_listed(kept)})",
    )


def _encode(column: Column, table: Table) -> tuple[NDArray[np.float64], str]:
    """The columns (rows, width) one column becomes, and values unseen in training."""
    values = table.columns[column.name]
    if column.form in ("number", "boolean", "date"):
        return _standard(column, _as_numbers(column, values, table)), ""
    texts = _texts(values)
    if column.form == "ordinal":
        rank = {text: place for place, text in enumerate(column.categories)}
        ranks = np.array([float(rank.get(text, len(rank))) for text in texts])
        return _standard(column, ranks), _listed(sorted(set(texts) - set(rank)))
    place = {text: index for index, text in enumerate(column.categories)}
    hot = np.zeros((len(texts), len(place)))
    for row, text in enumerate(texts):
        if text in place:
            hot[row, place[text]] = 1.0
    if column.form == "one_hot":
        return hot, _listed(sorted(set(texts) - set(place)))
    numbers = _numbers(texts)
    unseen = {text for text, number in zip(texts, numbers, strict=True) if np.isnan(number)} - set(place)
    numbers = np.where(np.isfinite(numbers), numbers, column.mean)
    return np.concatenate([_standard(column, numbers), hot], axis=1), _listed(sorted(unseen))


def _standard(column: Column, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((numbers - column.mean) / column.scale)[:, None]


def _as_numbers(column: Column, values: Values, table: Table) -> NDArray[np.float64]:
    if values.dtype.kind == "M" and column.form == "date":
        return _days(values)
    if values.dtype.kind in "fb" and column.form != "date":
        return values.astype(np.float64)
    numbers = _numbers(_texts(values)) if values.dtype.kind == "O" else np.full(len(values), np.nan)
    wrong = ~np.isfinite(numbers)
    if wrong.any() or column.form == "date":
        raise ValueError(
            f"expected {column.form}s in column {column.name!r} of {table.origin} as in the training data, received "
            f"{values[wrong][0] if wrong.any() else values[0]!r} at rows {table.named_rows(wrong)}; correct these cells"
        )
    return numbers


def _days(values: Values) -> NDArray[np.float64]:
    return (values - np.datetime64(0, "s")) / np.timedelta64(1, "D")


def _texts(values: Values) -> list[str]:
    return [str(item).strip() for item in values]


def _numbers(texts: list[str]) -> NDArray[np.float64]:
    """The numbers that texts spell; NaN for words."""
    found = np.full(len(texts), np.nan)
    for row, text in enumerate(texts):
        try:
            number = float(text)
        except ValueError:
            continue
        found[row] = number if np.isfinite(number) else np.nan
    return found


def _listed(names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown}, ... {len(names)} in all"


def _doctest_table() -> Table:
    columns = {
        "age": np.array([30.0, 40.0]),
        "city": np.array(["Rome", "Bern"], object),
        "y": np.array([0.0, 1.0]),
    }
    return Table(columns, {name: np.zeros(2, bool) for name in columns}, "the example")
