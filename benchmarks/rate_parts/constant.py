"""Runs whose schedule never lowers the rate: what share of the measured rate they should have.

Probes are annealed, so the rate that they show is one for a run that is annealed too. These cells are trained at a
constant rate throughout, the grid as well, and ``find_lr`` is asked with each of a few shares.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timing
from fogline.rate import find
from rate_parts import peers, report
from rate_parts.grid import Cell, Ready, cell_path

SHARES = (1.0, 0.5, 0.25)
OPTIMIZERS, SEEDS = ("momentum", "adamw"), 2
_DEFAULT = "default"


def folder(cache: Path) -> Path:
    """Where the cells are kept, beside those of annealed runs."""
    return cache / "constant"


def ask(ready: Ready, cell: Cell) -> None:
    """``find_lr`` with each share, and the rate everybody starts from; trained at."""
    for share in SHARES:
        with patch.object(find, "NEVER_LOWERED", share):
            cell.proposals[_name(share)] = peers.propose("fogline", ready, cell)
    cell.proposals[_DEFAULT] = peers.propose(_DEFAULT, ready, cell)
    for proposal in cell.proposals.values():
        if proposal["rate"] is not None:
            cell.at(ready, proposal["rate"])


def cells(cache: Path, tasks: Sequence[str]) -> list[Cell]:
    """Those that were filled."""
    paths = [
        cell_path(folder(cache), task, optimizer, seed)
        for task in tasks
        for optimizer in OPTIMIZERS
        for seed in range(SEEDS)
    ]
    return [Cell.read(path) for path in paths if path.exists()]


def section(found: Mapping[str, Sequence[Cell]]) -> str:
    """A table for each set that has cells with every proposal; empty where none has."""
    parts = []
    for which, filled in found.items():
        asked = [cell for cell in filled if {*map(_name, SHARES), _DEFAULT} <= set(cell.proposals)]
        if asked:
            tasks = ", ".join(dict.fromkeys(cell.task for cell in asked))
            parts += [f"{which.capitalize()} set, {len(asked)} cells: {tasks}.", _table(asked)]
    return "\n\n".join(["## Runs whose rate is never lowered", _INTRODUCTION, *parts]) if parts else ""


_INTRODUCTION = (
    "The same tasks with a constant rate from the first step to the last, the 20 rates of the grid as well; momentum "
    "and AdamW, two seeds. `find_lr` gives such runs a share of what it gives a run that is annealed, "
    f"{find.NEVER_LOWERED:g} now. The share was chosen on the calibration set; the evaluation set was scored once, "
    "behind that choice, and the other shares stand beside it to be seen."
)


def summary(filled: Sequence[Cell]) -> dict[str, list[dict[str, Any]]]:
    """By share, and for the rate everybody starts from: a row a cell."""
    return {name: report.scores_of(name, filled) for name in [*map(_name, SHARES), _DEFAULT]}


def _table(filled: Sequence[Cell]) -> str:
    rows = []
    for name, scores in summary(filled).items():
        regrets, kept = ([row[key] for row in scores] for key in ("regret", "kept_regret"))
        by = [[row["regret"] for row in scores if row["optimizer"] == optimizer] for optimizer in OPTIMIZERS]
        low, high = report.bootstrap(scores)
        rows.append(
            [
                name if name != _DEFAULT else "SGD 0.01, AdamW 1e-3", f"{statistics.fmean(regrets):.3f}",
                f"{low:.3f} to {high:.3f}", f"{statistics.median(regrets):.3f}", f"{max(regrets):.2f}",
                f"{sum(regret > report.FAILED for regret in regrets)} of {len(regrets)}",
                f"{statistics.fmean(kept):.3f}", f"{max(kept):.2f}", *(f"{statistics.fmean(part):.3f}" for part in by),
            ]
        )  # fmt: skip
    header = ["share", "mean regret", "95 %", "median", "worst", "failures", "kept: mean regret", "kept: worst"]
    return timing.table([*header, *OPTIMIZERS], rows)


def _name(share: float) -> str:
    return f"{share:g}"
