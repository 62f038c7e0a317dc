"""The database of a run, read while another process writes it. Without NumPy, so that the first page comes at once."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

_SECONDS = 10.0  # a query may take
ENDS = "select (select min(step) from steps), (select max(step) from steps)"  # together they would read every row


@contextmanager
def reading(folder: Path, *needed: str) -> Iterator[sqlite3.Connection]:
    """The database of a run, read only, also while another process writes it; a query ends after ten seconds.

    Args:
        folder: of the run.
        needed: tables; one that is not there is there without rows: nothing has been recorded yet, or by an earlier
            version.

    Raises:
        sqlite3.Error: the file is no database of a run.
    """
    path = folder / "run.sqlite"
    place = f"{path.absolute().as_uri()}?mode=ro" if path.is_file() else "file::memory:"
    end = time.monotonic() + _SECONDS
    with closing(sqlite3.connect(place, uri=True, timeout=5)) as connection:
        connection.execute("pragma trusted_schema = off")
        connection.execute("pragma temp_store = memory")
        there = {row[0] for row in connection.execute("select name from sqlite_master")}
        if not there.issuperset(needed):
            _add(connection, set(needed) - there)
        connection.set_progress_handler(lambda: time.monotonic() > end, 100_000)
        yield connection


def _add(connection: sqlite3.Connection, tables: set[str]) -> None:
    from fogline.record.store import _TABLES

    for table in tables:
        connection.execute(f"create temp table {table} ({_TABLES[table]})")


def last_step(connection: sqlite3.Connection) -> tuple[int | None, float | None]:
    """The number of the last step and its loss."""
    row = connection.execute("select step, loss from steps order by step desc limit 1").fetchone()
    return (None, None) if row is None else (row[0], row[1])


def sampled_losses(connection: sqlite3.Connection, count: int = 48) -> list[float]:
    """Losses at equal distances, for a line that is small: a look-up each."""
    first, last = connection.execute(ENDS).fetchone()
    if first is None:
        return []
    places = sorted({first + at * (last - first) // (count - 1) for at in range(count)})
    values = ",".join(["(?)"] * len(places))
    nearest = "select loss from steps where step >= place order by step limit 1"
    query = f"with places(place) as (values {values}) select ({nearest}) from places"
    found = [row[0] for row in connection.execute(query, places)]
    return [value for value in found if isinstance(value, float) and math.isfinite(value)]
