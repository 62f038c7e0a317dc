"""The columns that figures are drawn from, read once for all figures and for both looks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fogline.plots.thinning import smooth
from fogline.record.store import Table, count_rows, read_groups, read_table

if TYPE_CHECKING:
    from fogline.run import Run

Numbers = NDArray[np.float64]

LONG = 50_000
"""Rows above which the signals of every step are read in groups."""
_GROUPS = 1000
_ORDERS = {"scores": "step, split, name", "layers": "step, rowid", "confusion": "target, predicted"}


@runtime_checkable
class Reading(Protocol):
    """A run that reads its tables itself, thinned or kept from before: the views of a program that shows many runs."""

    def columns(self, table: str, filled: str | None = None) -> Table:
        """A table by name; of ``filled`` columns only the rows that have a value. A column ``<name>_mean`` beside a
        signal of ``steps`` holds the means that a running mean is to be made of."""


def columns(run: Run, table: str, *names: str, filled: str | None = None) -> Table:
    """Some columns of a table of a run; read again only when its file has changed.

    Args:
        run: the run.
        table: its name.
        names: of the columns; all of them if none are named.
        filled: a column; only rows that have a value in it are read.
    """
    if isinstance(run, Reading):
        return run.columns(table, filled)
    return _read(run.folder, table, names, filled, _stamp(run.folder))


@dataclass(frozen=True)
class Curve:
    """A signal of every step.

    Attributes:
        x, y: the steps and the values as they came; of a long run the lowest and the highest of each group of steps.
        middle_x, middle: their running mean.
    """

    x: Numbers
    y: Numbers
    middle_x: Numbers
    middle: Numbers


def curve(run: Run, name: str) -> Curve:
    """The signal "loss", "lr" or "grad_norm" of a run."""
    if isinstance(run, Reading) or _count(run.folder, _stamp(run.folder)) <= LONG:
        table = columns(run, "steps", "step", name)
        x = table["step"].astype(float)
        return Curve(x, table[name], x, smooth(table.columns.get(f"{name}_mean", table[name])))
    groups = _groups(run.folder, name, _stamp(run.folder))
    x = groups["step"]
    y = np.stack([groups["low"], groups["high"]], axis=1).ravel()
    return Curve(np.repeat(x, 2), y, x, smooth(groups["mean"]))


@lru_cache(maxsize=16)
def _count(folder: Path, _: tuple[int, ...]) -> int:
    return count_rows(folder, "steps")


@lru_cache(maxsize=16)
def _groups(folder: Path, name: str, _: tuple[int, ...]) -> Table:
    return read_groups(folder, name, _GROUPS)


@lru_cache(maxsize=8)
def _read(folder: Path, table: str, names: tuple[str, ...], filled: str | None, _: tuple[int, ...]) -> Table:
    return read_table(folder, table, _ORDERS.get(table, "step"), names, filled)


def _stamp(folder: Path) -> tuple[int, ...]:
    """Changes with every write: rows go into the log beside the file first."""
    files = [folder / "run.sqlite", folder / "run.sqlite-wal"]
    there = [path.stat() for path in files if path.exists()]
    return tuple(number for found in there for number in (found.st_mtime_ns, found.st_size))
