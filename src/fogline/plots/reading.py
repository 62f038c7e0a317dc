"""The columns that figures are drawn from, read once for all figures and for both looks."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from fogline.record.store import Table, read_table

if TYPE_CHECKING:
    from fogline.run import Run

_ORDERS = {"scores": "step, split, name", "layers": "step, rowid", "confusion": "target, predicted"}


def columns(run: Run, table: str, *names: str, filled: str | None = None) -> Table:
    """Some columns of a table of a run; read again only when its file has changed.

    Args:
        run: the run.
        table: its name.
        names: of the columns; all of them if none are named.
        filled: a column; only rows that have a value in it are read.
    """
    return _read(run.folder, table, names, filled, _stamp(run.folder))


@lru_cache(maxsize=8)
def _read(folder: Path, table: str, names: tuple[str, ...], filled: str | None, _: tuple[int, ...]) -> Table:
    return read_table(folder, table, _ORDERS.get(table, "step"), names, filled)


def _stamp(folder: Path) -> tuple[int, ...]:
    """Changes with every write: rows go into the log beside the file first."""
    files = [folder / "run.sqlite", folder / "run.sqlite-wal"]
    there = [path.stat() for path in files if path.exists()]
    return tuple(number for found in there for number in (found.st_mtime_ns, found.st_size))
