"""Frames and files as plain columns: what pandas, Polars, CSV and Parquet have in common."""

from __future__ import annotations

import csv
import datetime
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fogline.errors import did_you_mean

Values = NDArray[Any]

FILES = (".csv", ".tsv", ".parquet", ".pq")
_DELIMITERS = ",;\t|"
_SHOWN = 5
_NULLS = ["", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "?"]


@dataclass(frozen=True)
class Table:
    """Columns of equal length; each is float64, bool, datetime64 or object (text and mixtures)."""

    columns: dict[str, Values]
    missing: dict[str, NDArray[np.bool_]]
    origin: str  # how to call it in a sentence
    counted_from: str = "counted from 0"
    first: int = 0
    numbers: NDArray[np.int64] | None = None  # the row each was in the whole table; None for all of it

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def require(self, name: str, what: str = "column") -> Values:
        """A column by name.

        Raises:
            ValueError: for an unknown name, with the nearest one.
        """
        if name not in self.columns:
            raise ValueError(f"{self.origin} has no {what} {name!r}: {did_you_mean(name, self.columns)}")
        return self.columns[name]

    def named_rows(self, mask: NDArray[np.bool_]) -> str:
        """The rows of a mask in words, the first few."""
        places = np.flatnonzero(mask)
        rows = ((places if self.numbers is None else self.numbers[places]) + self.first).tolist()
        shown = ", ".join(map(str, rows[:_SHOWN]))
        return shown if len(rows) <= _SHOWN else f"{shown}, ... ({len(rows)} in all)"

    def refuse_missing(self, names: list[str], target: str | None = None) -> None:
        """Raise if a column holds missing or infinite values.

        Raises:
            ValueError: naming each column with its rows.
        """
        found = []
        for name in names:
            mask = self.missing[name]
            if mask.any():
                called = f"target {name!r}" if name == target else f"column {name!r}"
                found.append(f"{called} at rows {self.named_rows(mask)}")
        if found:
            more = f"; and {len(found) - _SHOWN} more columns" if len(found) > _SHOWN else ""
            raise ValueError(
                f"expected a value in every cell of {self.origin}, received missing or infinite ones: "
                f"{'; '.join(found[:_SHOWN])}{more} (rows {self.counted_from}); fill them (with the column's median, "
                "or a category of their own), or drop those rows or columns"
            )

    def take(self, index: NDArray[np.int64]) -> Table:
        """Some of the rows."""
        return Table(
            {name: values[index] for name, values in self.columns.items()},
            {name: mask[index] for name, mask in self.missing.items()},
            self.origin,
            self.counted_from,
            self.first,
            index if self.numbers is None else self.numbers[index],
        )


def is_frame(value: Any) -> bool:
    """Whether this is a pandas or Polars frame, judged without importing either."""
    names = {base.__name__ for base in type(value).__mro__}
    return _library(value) is not None and not names.isdisjoint(("DataFrame", "LazyFrame"))


def is_series(value: Any) -> bool:
    """Whether this is a pandas or Polars column."""
    return _library(value) is not None and "Series" in {base.__name__ for base in type(value).__mro__}


def _library(value: Any) -> str | None:
    for base in type(value).__mro__:
        package = base.__module__.partition(".")[0]
        if package in ("pandas", "polars"):
            return package
    return None


def from_frame(frame: Any, origin: str) -> Table:
    """A pandas or Polars frame.

    Raises:
        TypeError: for a Polars LazyFrame.
        ValueError: for columns of the same name, or none.
    """
    if type(frame).__name__ == "LazyFrame":
        raise TypeError(f"{origin}: expected a frame in memory, received a LazyFrame; pass frame.collect()")
    names = [str(name) for name in frame.columns]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{origin}: expected different column names, received {twice} more than once; rename them")
    raw = {str(name): _series(frame[name]) for name in frame.columns}
    return _table(raw, f"the {origin} frame")


def with_target(frame: Any, target: Any, origin: str, name: str | None = None) -> tuple[Table, str]:
    """A frame of inputs and a separate column of targets as one table, and the target's name in it."""
    table = from_frame(frame, origin)
    if name is None:
        name = str(getattr(target, "name", None) or "target")
        while name in table.columns:
            name += " (target)"
    values, mask = _series(target) if is_series(target) else _plain(np.asarray(target))
    if values.ndim != 1:
        raise ValueError(
            f"{origin}: expected one column of targets beside a frame, received shape {values.shape}; "
            "pass (frame.to_numpy(), targets) for several"
        )
    if len(values) != table.rows:
        raise ValueError(
            f"{origin}: expected as many targets as inputs, received {table.rows} inputs and {len(values)} targets; "
            "check that both come from the same rows"
        )
    both = {**{key: (table.columns[key], table.missing[key]) for key in table.columns}, name: (values, mask)}
    return _table(both, table.origin), name


def _series(series: Any) -> tuple[Values, NDArray[np.bool_]]:
    if _library(series) == "pandas":
        mask = series.isna().to_numpy(dtype=bool)
        if str(series.dtype).startswith("period"):
            series = series.dt.to_timestamp()
        if series.dtype.kind in "iufb" and mask.any():  # the nullable types hold objects when a value is missing
            return series.to_numpy(dtype=np.float64, na_value=np.nan), mask
        if getattr(series.dtype, "tz", None) is not None:
            series = series.dt.tz_convert("UTC").dt.tz_localize(None)
        numpy_kind = {"i": np.int64, "u": np.float64, "f": np.float64, "b": np.bool_}
        return series.to_numpy(dtype=numpy_kind.get(series.dtype.kind)), mask
    mask = series.is_null().to_numpy().astype(bool)
    if str(series.dtype).startswith(("Categorical", "Enum")):
        series = series.cast(str)
    if str(series.dtype).startswith("Decimal"):
        series = series.cast(float)
    return series.to_numpy(), mask


def _plain(values: Values) -> tuple[Values, NDArray[np.bool_]]:
    mask = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)
    return values, mask


def read(path: Path, what: str) -> Table:
    """A CSV or Parquet file, read by DuckDB.

    Raises:
        ValueError: if it cannot be read as such.
    """
    import duckdb

    query = "select * from read_parquet(?)"
    values: list[Any] = [str(path)]
    delimiter = None
    if path.suffix.lower() in (".csv", ".tsv"):
        delimiter = _delimiter(path)
        query = "select * from read_csv(?, header=true, sample_size=-1, nullstr=?"
        query += ", delim=?)" if delimiter else ")"
        values += [_NULLS, delimiter] if delimiter else [_NULLS]
    try:
        with duckdb.connect(":memory:") as connection:
            arrays = connection.execute(query, values).fetchnumpy()
    except duckdb.Error as error:
        reason = _uneven_line(path, delimiter) if delimiter else ""
        reason = reason or "; ".join(str(error).splitlines()[:3])
        raise ValueError(f"{what}: expected a table in {path}, but it could not be read: {reason}") from error
    raw = {}
    for name, array in arrays.items():
        mask = np.broadcast_to(np.ma.getmaskarray(array), array.shape).copy()
        raw[name] = (np.ma.getdata(array), mask)
    return _table(raw, path.name, "counted from 1 below the header", 1)


def _delimiter(path: Path) -> str | None:
    """The separator of the header: a row that lacks a cell is then an error, and not a sign of another separator."""
    with path.open(encoding="utf-8", errors="replace") as file:
        header = re.sub(r'"[^"]*"', "", file.readline())
    best = max(_DELIMITERS, key=header.count)
    return best if best in header else None


def _uneven_line(path: Path, delimiter: str) -> str:
    """The first row whose number of cells differs from the header's, in words."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.reader(file, delimiter=delimiter)
        try:
            expected = len(next(rows))
            for row in rows:
                if row and len(row) != expected:
                    return f"line {rows.line_num} has {len(row)} cells and the header {expected}; correct that line"
        except csv.Error as error:
            return f"line {rows.line_num}: {error}"
    return ""


def _table(
    raw: dict[str, tuple[Values, NDArray[np.bool_]]], origin: str, counted_from: str = "counted from 0", first: int = 0
) -> Table:
    columns: dict[str, Values] = {}
    missing: dict[str, NDArray[np.bool_]] = {}
    for name, (values, mask) in raw.items():
        columns[name], missing[name] = _column(values, mask, f"column {name!r} of {origin}")
    return Table(columns, missing, origin, counted_from, first)


def _column(values: Values, mask: NDArray[np.bool_], what: str) -> tuple[Values, NDArray[np.bool_]]:
    """One of the four types, with NaN and infinity counted as missing.

    Raises:
        ValueError: for cells that hold lists, arrays or complex numbers.
    """
    kind = values.dtype.kind
    if values.ndim > 1 or kind == "c":
        raise _no_cell(what, f"{values.dtype} of shape {values.shape[1:]}")
    if kind in "iuf":
        numbers = values.astype(np.float64)
        return numbers, mask | ~np.isfinite(numbers)
    if kind == "M":
        return values, mask | np.isnat(values)
    if kind == "m":
        return values / np.timedelta64(1, "s"), mask | np.isnat(values)
    if kind == "b":
        return values, mask
    return _objects(values.astype(object), mask, what)


def _objects(objects: Values, mask: NDArray[np.bool_], what: str) -> tuple[Values, NDArray[np.bool_]]:
    """Cells of Python objects: dates, times, decimals and truth values where all are, else text."""
    for item in objects:
        if isinstance(item, (list, tuple, dict, set, np.ndarray)):
            raise _no_cell(what, type(item).__name__)
    blank = mask | np.array([item is None or item != item for item in objects], bool)  # NaN differs from itself
    present = objects[~blank]
    if len(present) and all(isinstance(item, (bool, np.bool_)) for item in present):
        return np.where(blank, False, objects).astype(bool), blank
    if len(present) and all(isinstance(item, (datetime.time, Decimal)) for item in present):
        numbers = np.full(len(objects), np.nan)
        numbers[~blank] = [_seconds(item) if isinstance(item, datetime.time) else float(item) for item in present]
        return numbers, blank | ~np.isfinite(numbers)
    if len(present) and all(isinstance(item, datetime.date) for item in present):
        dates = np.full(len(objects), np.datetime64("NaT", "us"))
        dates[~blank] = present.astype("datetime64[us]")
        return dates, blank
    return objects, blank


def _seconds(time: datetime.time) -> float:
    return 3600.0 * time.hour + 60.0 * time.minute + time.second + 1e-6 * time.microsecond


def _no_cell(what: str, received: str) -> ValueError:
    return ValueError(
        f"expected numbers, text, dates or truth values in {what}, received {received}; "
        "spread it over columns or drop it"
    )
