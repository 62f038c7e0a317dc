"""A run as it is drawn: of a long one the rows that make the picture, read from SQLite without the rest."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fogline.dashboard.reading import ENDS, reading
from fogline.record.store import STEP_COLUMNS, Table
from fogline.run import Run

WHOLE = 4000  # so many steps are read as they are
_FEW = 25_000  # so many rows of a signal that was measured now and then
_OFTEN = ("loss", "lr", "grad_norm")  # signals that nearly every step has
BUCKETS = 500
_PROBES = 300
_ROWS = 5000
_EXTREMES = (("min", "loss"), ("max", "loss"), ("max", "grad_norm"))
_ORDERS = {"scores": "step, split, name", "confusion": "target, predicted"}
_NUMBERS = {"confidence", "value", "weight_norm", "grad_norm", "update_norm", "activation_rms", "zero_share", "seconds"}


class View(Run):
    """A run read once, with thinned tables; what :data:`fogline.plots.FIGURES` draw is what they would of the whole.

    Args:
        folder: of the run.
        info: the contents of its ``run.json``.
        thinners: keep what was read of its steps before, for a run that goes on.
    """

    def __init__(self, folder: Path, info: dict[str, Any], thinners: dict[str, Thinner] | None = None) -> None:
        super().__init__(folder)
        self._info, self._thinners = info, {} if thinners is None else thinners
        self._read: dict[tuple[str, str | None], Table] = {}

    @property
    def info(self) -> dict[str, Any]:
        return self._info

    def _table(self, name: str) -> Table:
        return self.columns(name)

    def columns(self, table: str, filled: str | None = None) -> Table:
        """A table, thinned where it is long.

        Args:
            table: its name.
            filled: a column of ``steps`` that few rows have a value in; others are left out.
        """
        if table == "steps" and filled in _OFTEN:
            filled = None
        if (table, filled) not in self._read:
            with reading(self.folder, table) as connection:
                self._read[table, filled] = self._columns(connection, table, filled)
        return self._read[table, filled]

    def _columns(self, connection: sqlite3.Connection, table: str, filled: str | None) -> Table:
        if table == "steps":
            extremes = _EXTREMES if filled is None else (("min", filled), ("max", filled))
            return self._thinners.setdefault(filled or "", Thinner(extremes, filled)).read(connection)
        if table == "layers":
            probed = [row[0] for row in connection.execute("select distinct step from layers order by step")]
            wanted = probed[:: -(-len(probed) // _PROBES) or 1]
            marks = ",".join("?" * len(wanted))
            return _table(
                connection.execute(f"select * from layers where step in ({marks}) order by step, rowid", wanted)
            )
        newest = f"select rowid as row, * from {table} order by row desc limit {_ROWS}"
        rows = connection.execute(f"select * from ({newest}) order by {_ORDERS.get(table, 'row')}")
        return _table(rows, left_out=1)


class Thinner:
    """Reads the steps of a run: all of a short one; of a long one the lowest and highest rows of equal stretches.

    A stretch that lies behind is read once, so that following a long run costs little. A row of a thinned table has in
    ``loss_mean`` and ``grad_norm_mean`` the means of its stretch: what a smoothed line has to be made of.

    Args:
        extremes: which rows of a stretch are kept, as functions and columns.
        filled: a column; rows without a value in it are left out.
    """

    def __init__(self, extremes: Sequence[tuple[str, str]], filled: str | None = None) -> None:
        self._extremes, self._filled = extremes, filled
        self._width = self._last = 0
        self._file: tuple[int, int] | None = None
        self._kept: dict[int, list[tuple[Any, ...]]] = {}
        self._reading = threading.Lock()  # several figures of a page are asked for at once

    def read(self, connection: sqlite3.Connection) -> Table:
        """The table ``steps``, whole or thinned."""
        with self._reading:
            return self._whole_or_thinned(connection)

    def _whole_or_thinned(self, connection: sqlite3.Connection) -> Table:
        names = [row[1] for row in connection.execute("pragma table_info(steps)")]
        if self._filled is not None and self._filled not in names:
            return _completed(names, [])
        first, last = connection.execute(ENDS).fetchone()
        there = "" if self._filled is None else f"where {self._filled} is not null"
        if first is None or last - first < WHOLE or (there and self._few(connection)):
            return _completed(names, connection.execute(f"select * from steps {there} order by step").fetchall())
        self._forget(connection, last, _width(last))
        rows: list[tuple[Any, ...]] = []
        for bucket in range(first // self._width, last // self._width + 1):
            if bucket not in self._kept:
                self._kept[bucket] = self._stretch(connection, bucket * self._width, (bucket + 1) * self._width)
            rows += self._kept[bucket]
        del self._kept[last // self._width]  # it still grows
        return _completed([*names, "loss_mean", "grad_norm_mean"], rows)

    def _few(self, connection: sqlite3.Connection) -> bool:
        count: int = connection.execute(f"select count({self._filled}) from steps").fetchone()[0]
        return count <= _FEW

    def _forget(self, connection: sqlite3.Connection, last: int, width: int) -> None:
        """What was kept is void where stretches became longer, the run went back, or another has its place."""
        place = Path(connection.execute("pragma database_list").fetchone()[2]).stat()
        file = (place.st_dev, place.st_ino)
        if (width, file) != (self._width, self._file) or last < self._last:
            self._kept.clear()
        self._width, self._last, self._file = width, last, file

    def _stretch(self, connection: sqlite3.Connection, start: int, stop: int) -> list[tuple[Any, ...]]:
        """The rows that stand out between two steps, the first and the last, each with the means between them.

        SQLite gives, beside a single ``min`` or ``max``, the other columns of the row that has it.
        """
        where = "from steps where step >= ? and step < ?" + (f" and {self._filled} is not null" if self._filled else "")
        first, *others = (f"{function}({column})" for function, column in self._extremes)
        asked = [f"select *, avg(loss), avg(grad_norm), {first} {where}"]
        asked += [f"select *, 0, 0, {other} {where}" for other in others]
        asked += [f"select *, 0, 0, 0 {where} order by step {direction} limit 1" for direction in ("asc", "desc")]
        rows = [connection.execute(query, (start, stop)).fetchone() for query in asked]
        means = rows[0][-3:-1]
        found = {row[0]: (*row[:-3], *means) for row in rows if row is not None and row[0] is not None}
        return [found[step] for step in sorted(found)]


def _width(last: int) -> int:
    """A power of two: stretches stay where they are until there are twice as many as wanted."""
    return 1 << max(0, (last // BUCKETS).bit_length())


def _completed(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> Table:
    """Columns of numbers; those that a run of an earlier version lacks are full of NaN."""
    numbers = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))
    found: dict[str, NDArray[Any]] = {name: numbers[:, at] for at, name in enumerate(names)}
    found["step"] = found["step"].astype(np.int64)
    return Table({name: np.full(len(rows), np.nan) for name in STEP_COLUMNS} | found)


def _table(cursor: sqlite3.Cursor, left_out: int = 0) -> Table:
    """The rows as columns, without the first ``left_out`` columns."""
    names = [column[0] for column in cursor.description]
    rows = cursor.fetchall()
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    pairs = list(zip(names, columns, strict=True))[left_out:]
    return Table({name: _column(name, values) for name, values in pairs})


def _column(name: str, values: Sequence[Any]) -> NDArray[Any]:
    if name in _NUMBERS:
        return np.array(values, dtype=np.float64)
    whole = all(isinstance(value, int) for value in values)
    return np.array(values, dtype=np.int64 if whole else object)
