"""The run folder: ``run.json`` and ``run.sqlite``, written by one process and readable live by others."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TABLES = {
    "steps": "step integer primary key, epoch real, examples integer, seconds real, loss real, lr real, "
    "grad_norm real, update_norm real, update_ratio real, step_cosine real, overshoot real, sharpness real",
    "layers": "step integer, layer text, weight_norm real, grad_norm real, update_norm real, activation_rms real, "
    "zero_share real, primary key (step, layer)",
    "scores": "step integer, split text, name text, value real, primary key (step, split, name)",
    "events": "id integer primary key, step integer, seconds real, kind text, message text, data text",
    "findings": "id integer primary key, step integer, cause text, severity text, confidence real, data text",
    "confusion": "target integer, predicted integer, count integer, primary key (target, predicted)",
    "edits": "id integer primary key, example integer, action text, value text, seconds real",
}
_COLUMNS = {
    table: {column.split()[0]: column.split()[1] for column in columns.split(", primary key (")[0].split(", ")}
    for table, columns in _TABLES.items()
}
"""The types of the columns by name, by table."""
STEP_COLUMNS = tuple(_COLUMNS["steps"])
_TYPES = {"integer": np.int64, "real": np.float64, "text": object}
_AT_ONCE = 50_000


@dataclass(frozen=True)
class Table:
    """Columns of equal length by name, as NumPy arrays.

    >>> table = Table({"step": np.arange(3), "loss": np.array([3.0, 2.0, 1.0])})
    >>> len(table), table["loss"][-1]
    (3, np.float64(1.0))
    """

    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self.columns:
            raise KeyError(f"expected one of the columns {', '.join(self.columns)}, received {name!r}")
        return self.columns[name]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows, as plain values by column name."""
        names = list(self.columns)
        for values in zip(*(self.columns[name].tolist() for name in names), strict=True):
            yield dict(zip(names, values, strict=True))

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` of the columns; pandas must be installed."""
        import pandas

        return pandas.DataFrame(dict(self.columns))


class Store:
    """The writer of a run folder. Rows are kept in memory and written in one transaction by :meth:`flush`.

    Attributes:
        listener: called with step, kind and data of every event, if there is one.
    """

    def __init__(self, folder: Path) -> None:
        self.listener: Callable[[int, str, dict[str, Any]], None] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._connection = sqlite3.connect(folder / "run.sqlite", isolation_level=None, timeout=30)
        self._connection.execute("pragma journal_mode=wal")
        # Losing the last rows to a power cut is harmless: a resumed run writes them again.
        self._connection.execute("pragma synchronous=normal")
        for table, columns in _TABLES.items():
            self._connection.execute(f"create table if not exists {table} ({columns})")
            self._complete(table)
        self._pending: list[tuple[str, Sequence[Sequence[Any]]]] = []

    def _complete(self, table: str) -> None:
        """Add the columns that a folder of an earlier version lacks."""
        there = _columns_there(self._connection, table)
        for name, kind in _COLUMNS[table].items():
            if name not in there:
                self._connection.execute(f"alter table {table} add column {name} {kind}")

    def steps(self, rows: Sequence[Sequence[Any]]) -> None:
        """Queue rows of the table ``steps``, in the order of STEP_COLUMNS; the last ones may be left out."""
        self._queue("steps", rows)

    def sharpness(self, step: int, value: float) -> None:
        """Queue what was measured after a step; it goes into the row of that step, or of the last that has one."""
        statement = "update steps set sharpness = ? where step = (select max(step) from steps where step <= ?)"
        self._add(statement, [(value, step)])

    def confusion(self, rows: Sequence[tuple[int, int, int]]) -> None:
        """Queue how often each target was predicted as what, in the place of what was kept before."""
        self._add("delete from confusion", [()])
        self._queue("confusion", rows)

    def layers(self, rows: Sequence[Sequence[Any]]) -> None:
        """Queue rows of the table ``layers``."""
        self._queue("layers", rows)

    def scores(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._queue("scores", [(step, split, name, float(value)) for name, value in values.items()])

    def event(self, step: int, kind: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        self._queue("events", [(None, step, time.time(), kind, message, json.dumps(data or {}))])
        if self.listener is not None:
            self.listener(step, kind, dict(data or {}))

    def finding(self, step: int, found: Mapping[str, Any], message: str) -> None:
        """Queue a row of the table ``findings``, and the event that says so.

        Args:
            found: plain values, among them ``cause``, ``severity`` and ``confidence``.
        """
        row = (None, step, found["cause"], found["severity"], found["confidence"], json.dumps(found))
        self._queue("findings", [row])
        self.event(step, "finding", message, {"cause": found["cause"]})

    def _queue(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        if rows:
            names = list(_COLUMNS[table])[: len(rows[0])]
            statement = f"insert or replace into {table} ({','.join(names)}) values ({','.join('?' * len(names))})"
            self._add(statement, rows)

    def _add(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        self._pending.append((statement, rows))

    def flush(self) -> None:
        """Write what was queued in one transaction.

        Raises:
            OSError: the folder cannot be written (disk full, removed).
        """
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        try:
            self._connection.execute("begin")
            for statement, rows in pending:
                self._connection.executemany(statement, rows)
            self._connection.execute("commit")
        except sqlite3.OperationalError as error:
            if self._connection.in_transaction:
                self._connection.execute("rollback")
            raise OSError(f"the run folder {self.folder} cannot be written: {error}") from error

    def last_event(self) -> int:
        """The number of the last event that was written."""
        found: int = self._connection.execute("select coalesce(max(id), 0) from events").fetchone()[0]
        return found

    def rewind(self, step: int, last_event: int = 0) -> None:
        """Forget what lies after ``step`` and after an event: the resumed run writes it again.

        Events of one step come before and after its checkpoint, so they are told apart by their numbers.
        """
        for table in ("steps", "layers", "scores", "findings"):
            comparison = ">" if table == "scores" else ">="
            self._connection.execute(f"delete from {table} where step {comparison} ?", (step,))
        self._connection.execute("delete from events where id > ?", (last_event,))
        self._connection.execute("delete from confusion")

    def close(self) -> None:
        self.flush()
        self._connection.close()

    def write_info(self, info: Mapping[str, Any]) -> None:
        write_json(self.folder / "run.json", info)


class Discarding(Store):
    """Keeps nothing: of several processes only one writes the folder of their run."""

    def __init__(self, folder: Path) -> None:
        self.listener = None
        self.folder = folder

    def _add(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        return None

    def flush(self) -> None:
        return None

    def last_event(self) -> int:
        return 0

    def rewind(self, step: int, last_event: int = 0) -> None:
        return None

    def close(self) -> None:
        return None

    def write_info(self, info: Mapping[str, Any]) -> None:
        return None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write beside, sync, rename: a reader sees the old file or the new one, never a part."""
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    with beside.open("w") as file:
        json.dump(value, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def sync_file(path: Path) -> None:
    """See to it that a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_info(folder: Path) -> dict[str, Any]:
    """The contents of ``run.json``.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: it cannot be read.
    """
    path = folder / "run.json"
    if not path.exists():
        raise FileNotFoundError(f"expected a run folder with a run.json, found none in {folder}")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"expected the JSON of a run in {path}, received text that is not: {error}") from error
    if not isinstance(info, dict):
        raise ValueError(f"expected the JSON of a run in {path}, received a {type(info).__name__}")
    return info


def read_table(
    folder: Path,
    name: str,
    order: str = "step",
    columns: Sequence[str] = (),
    filled: str | None = None,
    after: int | None = None,
) -> Table:
    """One table of ``run.sqlite``, also while another process writes it.

    A table or a column that a folder of an earlier version lacks is there, without rows or full of NaN.

    Args:
        folder: the run folder.
        name: of the table.
        order: the columns that the rows are sorted by.
        columns: those that are wanted; all of them if none are named.
        filled: a column; only rows that have a value in it are read.
        after: only rows with a step beyond this one are read.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    wanted = {column: _COLUMNS[name][column] for column in columns or _COLUMNS[name]}
    with reading(folder) as connection:
        known = _columns_there(connection, name)
        there = [column for column in known if column in wanted]
        if not there or (filled is not None and filled not in known):
            return Table({column: np.array([], dtype=_TYPES[kind]) for column, kind in wanted.items()})
        only = ["true"] if filled is None else [f"{filled} is not null"]
        only += [] if after is None else [f"step > {int(after)}"]
        query = f"select {', '.join(there)} from {name} where {' and '.join(only)} order by {order}"
        cursor = connection.execute(query)
        blocks = [_block(rows, [wanted[column] for column in there]) for rows in iter(partial(_some, cursor), [])]
    parts = list(zip(*blocks, strict=True)) if blocks else [[np.array([], dtype=_TYPES[wanted[c]])] for c in there]
    found = {column: np.concatenate(values) for column, values in zip(there, parts, strict=True)}
    count = len(found[there[0]])
    return Table({column: found.get(column, np.full(count, np.nan)) for column in wanted})


def count_rows(folder: Path, table: str) -> int:
    """How many rows a table of ``run.sqlite`` has."""
    with reading(folder) as connection:
        found: int = connection.execute(f"select count(*) from {table}").fetchone()[0]
    return found


def read_groups(folder: Path, column: str, count: int) -> Table:
    """A signal of the table ``steps`` in groups of neighbours: many times faster than row by row where they are many.

    Args:
        folder: the run folder.
        column: the signal.
        count: how many groups there are at most, of equal numbers of steps.

    Returns:
        For each group its ``step`` in the middle, and ``low``, ``high`` and ``mean`` of its finite values, NaN where
        there are none.
    """
    # Asked range by range, SQLite walks along its index; to group by a number it computes it would sort all rows.
    query = (
        f"select min({column}), max({column}), avg({column}) from steps "
        f"where step >= ? and step < ? and {column} between -9e307 and 9e307"
    )
    with reading(folder) as connection:
        last = connection.execute("select max(step) from steps").fetchone()[0] or 0
        width = last // count + 1
        starts = range(0, last + 1, width)
        rows = [connection.execute(query, (start, start + width)).fetchone() for start in starts]
    low, high, mean = np.array(rows, dtype=np.float64).T
    return Table({"step": np.array(starts) + (width - 1) / 2, "low": low, "high": high, "mean": mean})


@contextmanager
def reading(folder: Path) -> Iterator[sqlite3.Connection]:
    """A connection that reads ``run.sqlite``, also while another process writes it.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: the file is no database.
    """
    path = folder / "run.sqlite"
    if not path.exists():
        raise FileNotFoundError(f"expected a run folder with a run.sqlite, found none in {folder}")
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
            yield connection
    except sqlite3.DatabaseError as error:
        raise ValueError(f"expected the record of a run in {path}, which cannot be read: {error}") from error


@contextmanager
def changing(folder: Path, table: str) -> Iterator[sqlite3.Connection]:
    """A connection for one small change of ``run.sqlite``, also while another process writes it: all of it or nothing.

    Args:
        folder: the run folder.
        table: that is changed; it is made where a folder of an earlier version lacks it.

    Raises:
        OSError: the folder cannot be written (disk full, read only).
    """
    try:
        with closing(sqlite3.connect(folder / "run.sqlite", isolation_level=None, timeout=30)) as connection:
            connection.execute("pragma journal_mode=wal")
            connection.execute("begin immediate")
            connection.execute(f"create table if not exists {table} ({_TABLES[table]})")
            yield connection
            connection.execute("commit")
    except sqlite3.OperationalError as error:
        raise OSError(f"the run folder {folder} cannot be written: {error}") from error


def _some(cursor: sqlite3.Cursor) -> list[tuple[Any, ...]]:
    return cursor.fetchmany(_AT_ONCE)


def _block(rows: list[tuple[Any, ...]], kinds: Sequence[str]) -> list[NDArray[Any]]:
    """The columns of some rows; numbers without a value are NaN."""
    if "text" in kinds:
        return [_column(values, kind) for values, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
    numbers = np.array(rows, dtype=np.float64)
    return [_whole(column) if kind == "integer" else column for column, kind in zip(numbers.T, kinds, strict=True)]


def _column(values: tuple[Any, ...], kind: str) -> NDArray[Any]:
    if kind == "text":
        return np.array(values, dtype=object)
    numbers = np.array(values, dtype=np.float64)
    return _whole(numbers) if kind == "integer" else numbers


def _whole(numbers: NDArray[np.float64]) -> NDArray[Any]:
    """As integers, unless one of them has no value."""
    return numbers if np.isnan(numbers).any() else numbers.astype(np.int64)


def _columns_there(connection: sqlite3.Connection, table: str) -> list[str]:
    """The columns of a table as they are in the file; none where there is no such table."""
    return [row[1] for row in connection.execute(f"pragma table_info({table})")]
