"""Frames and files as plain columns: what pandas, Polars, CSV and Parquet have in common."""

from __future__ import annotations

import csv
import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fogline.errors import did_you_mean, misfit, some

Values = NDArray[Any]

FILES = (".csv", ".tsv", ".parquet", ".pq")
_DELIMITERS = ",;\t|"
_COMMA = re.compile(r"\s*[+-]?\d+(,\d+)?([eE][+-]?\d+)?\s*")  # a number that may have a decimal comma
NULLS = ["", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "?"]
# Without truth values: yes, no, true and false are words like any other, and come back as they were written.
_TYPES = ["BIGINT", "DOUBLE", "TIME", "DATE", "TIMESTAMP", "VARCHAR"]


@dataclass(frozen=True)
class Table:
    """Columns of equal length; each is float64, bool, datetime64 or object (text and mixtures).

    A missing value is NaN, infinity, NaT or None.
    """

    columns: dict[str, Values]
    origin: str  # how to call it in a sentence
    target: str | None  # the column to predict
    numbers: NDArray[np.int64]  # the number of each row in the frame or file it came from
    first: int  # the number of the first row there: 0 in a frame, 1 in a file

    @property
    def rows(self) -> int:
        return len(self.numbers)

    def values(self, name: str) -> Values:
        """A column by name; no cell of it may be missing.

        Raises:
            ValueError: for an unknown name, with the nearest one, and for missing values, by row.
        """
        found = self.cells(name)
        self.refuse_missing([name])
        return found

    def cells(self, name: str) -> Values:
        """A column by name, of which some cells may be missing.

        Raises:
            ValueError: for an unknown name, with the nearest one.
        """
        if name not in self.columns:
            what = "target column" if name == self.target else "column"
            raise ValueError(f"{self.origin} has no {what} {name!r}: {did_you_mean(name, self.columns)}")
        return self.columns[name]

    def named_rows(self, mask: NDArray[np.bool_]) -> str:
        """The rows of a mask in words, the first few."""
        return some(self.numbers[mask].tolist())

    def refuse_missing(self, names: Iterable[str]) -> None:
        """Raise if a column holds missing or infinite values.

        Raises:
            ValueError: naming each column with its rows.
        """
        masks = {name: _missing(self.columns[name]) for name in names if not _plainly_whole(self.columns[name])}
        found = [
            f"{'target' if name == self.target else 'column'} {name!r} at rows {self.named_rows(mask)}"
            for name, mask in masks.items()
            if mask.any()
        ]
        if found:
            more = f"; and {len(found) - 5} more columns" if len(found) > 5 else ""
            counted = "counted from 1 below the header" if self.first else "counted from 0"
            raise ValueError(
                f"expected a value in every cell of {self.origin}, received missing or infinite ones: "
                f"{'; '.join(found[:5])}{more} (rows {counted}); fill them (with the column's median, "
                "or a category of their own), or drop those rows or columns"
            )

    def take(self, index: NDArray[np.int64]) -> Table:
        """Some of the rows."""
        columns = {name: values[index] for name, values in self.columns.items()}
        return replace(self, columns=columns, numbers=self.numbers[index])


def places(texts: Sequence[str], known: Sequence[str]) -> NDArray[np.int64]:
    """The place of each text among the known ones, and their number for one that is not among them.

    >>> places(["b", "c", "a"], ["a", "b"]).tolist()
    [1, 2, 0]
    """
    place = {text: index for index, text in enumerate(known)}
    return np.array([place.get(text, len(place)) for text in texts], dtype=np.int64)


def make_table(columns: Mapping[str, Any], origin: str, target: str | None = None, first: int = 0) -> Table:
    """A table of arrays or lists.

    Raises:
        ValueError: for cells that hold lists, arrays or complex numbers.
    """
    made = {name: _column(values, f"column {name!r} of {origin}") for name, values in columns.items()}
    rows = len(next(iter(made.values()))) if made else 0
    return Table(made, origin, target, np.arange(first, first + rows), first)


def is_frame(value: Any) -> bool:
    """Whether this is a pandas or Polars frame, judged without importing either."""
    return _is_a(value, "DataFrame", "LazyFrame")


def is_series(value: Any) -> bool:
    """Whether this is a pandas or Polars column."""
    return _is_a(value, "Series")


def _is_a(value: Any, *names: str) -> bool:
    bases = type(value).__mro__
    return any(base.__name__ in names and base.__module__.startswith(("pandas", "polars")) for base in bases)


def from_frame(frame: Any, origin: str) -> Table:
    """A pandas or Polars frame.

    Raises:
        TypeError: for a Polars LazyFrame.
        ValueError: for columns of the same name, or none.
    """
    if _is_a(frame, "LazyFrame"):
        raise misfit("a frame in memory", "a LazyFrame", "pass frame.collect()", origin, TypeError)
    names = [str(name) for name in frame.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise misfit("different column names", f"{twice} more than once", "rename them", origin)
    return make_table({str(name): _cells(frame[name]) for name in frame.columns}, f"the {origin} frame")


def with_target(frame: Any, target: Any, origin: str, name: str | None = None) -> Table:
    """A frame of inputs and a separate column of targets, whose name may be given, as one table."""
    table = from_frame(frame, origin)
    if is_frame(target) and len(target.columns) == 1:
        target = target[target.columns[0]]
    if name is None:
        name = str(getattr(target, "name", None) or "target")
        name += " (target)" if name in table.columns else ""
    cells = _cells(target) if is_series(target) else np.asarray(target)
    if cells.ndim != 1:
        remedy = "pass (frame.to_numpy(), targets) for several"
        raise misfit("one column of targets beside a frame", f"shape {cells.shape}", remedy, origin)
    if len(cells) != table.rows:
        received = f"{table.rows} inputs and {len(cells)} targets"
        raise misfit("as many targets as inputs", received, "check that both come from the same rows", origin)
    columns = {**table.columns, name: _column(cells, f"the targets of {table.origin}")}
    return replace(table, columns=columns, target=name)


def _cells(series: Any) -> Values:
    """A pandas or Polars column as an array, with NaN, NaT or None where a value is missing."""
    if not hasattr(series, "isna"):
        return np.asarray(series.to_numpy())  # Polars
    if str(series.dtype).startswith("period"):
        series = series.dt.to_timestamp()
    if getattr(series.dtype, "tz", None) is not None:
        series = series.dt.tz_convert("UTC").dt.tz_localize(None)
    if series.dtype.kind in "iuf":  # the nullable types would hold objects
        return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    if series.isna().any():
        series = series.astype(object).where(series.notna(), None)
    return np.asarray(series.to_numpy())


def read(path: Path, what: str) -> Table:
    """A CSV or Parquet file, read by DuckDB.

    Raises:
        ValueError: if it cannot be read as such.
    """
    import duckdb

    query: tuple[str, list[Any]] = "select * from read_parquet(?)", [str(path)]
    delimiter = delimiter_of(path) if path.suffix.lower() in (".csv", ".tsv") else None
    if delimiter:
        options = "delim=?, header=true, sample_size=-1, nullstr=?, auto_type_candidates=?"
        query = f"select * from read_csv(?, {options})", [str(path), delimiter, NULLS, _TYPES]
    expected = f"{what}: expected a table in {path}, but it could not be read"
    try:
        with duckdb.connect(":memory:") as connection:
            columns = connection.execute(*query).fetchnumpy()
    except duckdb.Error as error:
        reason = (_oddity(path, delimiter) if delimiter else "") or "; ".join(str(error).splitlines()[:3])
        raise ValueError(f"{expected}: {reason}") from error
    # Where later lines have another number of cells, DuckDB takes one of them for the header and passes over the rest.
    if delimiter and len(columns) != _cells_of_header(path, delimiter) and (oddity := _oddity(path, delimiter)):
        raise ValueError(f"{expected}: {oddity}")
    if delimiter and delimiter != ",":
        columns = {name: _with_points(values) for name, values in columns.items()}
    return make_table(columns, path.name, first=1)


def delimiter_of(path: Path) -> str:
    """The separator of the header: a row that lacks a cell is then an error, and not a sign of another separator."""
    with path.open(encoding="utf-8", errors="replace") as file:
        header = re.sub(r'"[^"]*"', "", file.readline())
    return max(_DELIMITERS, key=header.count)


def _cells_of_header(path: Path, delimiter: str) -> int:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return len(next(filter(None, csv.reader(file, delimiter=delimiter)), ()))


def _oddity(path: Path, delimiter: str) -> str:
    """In words: that it is not UTF-8, or the first row whose number of cells differs from the header's.

    A first line of one cell is a title or a remark, which is passed over.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=delimiter)
        try:
            expected = len(next(filter(None, rows), ()))
            for row in rows:
                if row and expected > 1 and len(row) != expected:
                    return f"line {rows.line_num} has {len(row)} cells and the header {expected}; correct that line"
        except UnicodeDecodeError:
            return "it is not text in UTF-8; save it as UTF-8"
        except csv.Error as error:
            return f"line {rows.line_num}: {error}"
    return ""


def _with_points(values: Values) -> Values:
    """Numbers with a decimal comma, in a file whose cells are not separated by commas, as numbers."""
    there = ~np.ma.getmaskarray(values)
    texts = np.ma.getdata(values)[there]
    if texts.dtype.kind != "O" or not all(isinstance(text, str) and _COMMA.fullmatch(text) for text in texts):
        return values
    if not any("," in text for text in texts):
        return values
    made = np.full(len(values), np.nan)
    made[there] = [float(text.replace(",", ".")) for text in texts]
    return made


def _column(values: Any, what: str) -> Values:
    """An array of one of the four types."""
    data = np.ma.getdata(values)
    if np.ma.is_masked(values):
        data = data.astype(object)
        data[np.ma.getmaskarray(values)] = None
    if data.dtype.kind not in "biufmM" or data.ndim > 1:
        data = _from_objects(data.astype(object), what)
    if data.dtype.kind == "m":
        data = data / np.timedelta64(1, "s")
    return data.astype(np.float64) if data.dtype.kind in "iuf" else data


_CELLS: Sequence[tuple[Any, str, Any]] = (
    ((bool, np.bool_), "bool", bool),
    (Decimal, "float64", float),
    (datetime.time, "float64", lambda at: 3600 * at.hour + 60 * at.minute + at.second + 1e-6 * at.microsecond),
    (datetime.date, "datetime64[us]", np.datetime64),
)
"""Types of Python objects, the type of array they become where all are of that type, and how."""


def _from_objects(cells: Values, what: str) -> Values:
    """Cells of Python objects: dates, times, decimals and truth values where all are, else text."""
    for row, cell in enumerate(cells):
        if isinstance(cell, (list, tuple, dict, set, np.ndarray, complex)):
            expected = f"numbers, text, dates or truth values in {what}"
            raise misfit(expected, type(cell).__name__, "spread it over columns or drop it")
        if cell != cell:  # NaN and NaT differ from themselves
            cells[row] = None
    for kinds, dtype, convert in _CELLS:
        if len(cells) and all(isinstance(cell, kinds) for cell in cells):
            return np.array([convert(cell) for cell in cells], dtype)
    return cells


def _plainly_whole(values: Values) -> bool:
    """Whether one pass shows that nothing is missing: NaN and infinity survive a sum."""
    return values.dtype.kind == "b" or (values.dtype.kind == "f" and bool(np.isfinite(values.sum())))


def _missing(values: Values) -> NDArray[np.bool_]:
    if values.dtype.kind == "f":
        return ~np.isfinite(values)
    if values.dtype.kind == "M":
        return np.isnat(values)
    return np.array([value is None for value in values], bool)
