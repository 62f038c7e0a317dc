"""The command that examines a program or a run. Importing this module imports PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import fogline
from fogline.cli.listing import find_run
from fogline.cli.sources import Program, task_and_recipe, task_from_source
from fogline.record.store import read_info

if TYPE_CHECKING:
    from fogline.doctor.report import Report
    from fogline.run import Run


def examine(program: Program, runs: Path, budget: float, *, fix: bool) -> tuple[Report, Run | None]:
    """The report on what a path stands for, a program or a run; with ``fix`` also the run of the remedied program.

    A run that was started from the command line is examined with the program it ran; of any other only its record is
    looked at.

    Raises:
        ValueError, TypeError, FileNotFoundError: for bad input.
    """
    folder = _run_folder(program.what, runs)
    if folder is not None:
        return _examined_run(folder, runs, budget, fix=fix)
    task, recipe = task_and_recipe(program)
    report = fogline.diagnose(task, recipe, budget)
    if not fix or not report.remedies:
        return report, None
    task, recipe = report.apply(task, recipe)
    return report, fogline.fit(task, recipe, runs=runs, source={**program.source(), "kind": "remedied"})


def _examined_run(folder: Path, runs: Path, budget: float, *, fix: bool) -> tuple[Report, Run | None]:
    info = read_info(folder)
    known = (info.get("source") or {}).get("kind") in ("task", "data")
    task = task_from_source(info["source"], folder)[0] if known else None
    if task is None and fix:
        raise ValueError(
            f"--fix: expected a run started by `fogline train`, received {folder}, whose program only its author has; "
            "use fogline.diagnose(task, recipe) and report.apply(task, recipe) there"
        )
    run = fogline.Run.open(folder, task=task)
    report = run.diagnose(budget=budget)
    if task is None or not fix or not report.remedies:
        return report, None
    mended, recipe = report.apply(task, fogline.Recipe.from_dict(info["asked"]))
    return report, fogline.fit(mended, recipe, runs=runs, source={**info["source"], "kind": "remedied"})


def _run_folder(what: Path, runs: Path) -> Path | None:
    """The run that is meant, or None where the path is a program or data."""
    if what.suffix == ".py" or (what.exists() and not (what / "run.json").is_file()):
        return None
    return find_run(str(what), runs)
