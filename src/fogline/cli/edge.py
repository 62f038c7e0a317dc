"""The command that writes a run as a file for a device. Importing this module imports PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

import fogline
from fogline.cli.listing import find_run
from fogline.cli.sources import read_recipe, task_of_run
from fogline.doctor.healing import Healing
from fogline.edge.export import Tuning
from fogline.edge.report import ExportReport
from fogline.record.store import read_info
from fogline.task import Task

_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "executorch": ".pte"}


def write(
    name: str,
    runs: Path,
    *,
    output: Path | None,
    task_file: Path | None,
    qat: str,
    recipe_file: Path | None,
    target: str,
    **options: Any,
) -> ExportReport:
    """The export of a run.

    Args:
        name: of the run, or its folder.
        runs: the folder that holds the run folders.
        output: the file; in the run folder if not given.
        task_file: of a run that was started from Python; others know where their task comes from.
        qat: auto or none.
        recipe_file: of the fine-tuning, which is then done.
        target, **options: of :func:`fogline.export`.

    Raises:
        ValueError, TypeError, FileNotFoundError, ModuleNotFoundError: for bad input.
    """
    folder = find_run(name, runs)
    if qat not in ("auto", "none"):
        raise ValueError(f"--qat: expected auto or none, received {qat!r}; a recipe is given with --recipe FILE")
    tuning: Tuning = "auto" if qat == "auto" else None
    if recipe_file is not None:
        tuning = read_recipe(recipe_file)
    path = output or folder / f"model{_SUFFIXES.get(target, '.onnx')}"
    run = fogline.Run.open(folder, task=_task(folder, task_file))
    return fogline.export(run, path, target, qat=tuning, **options)


def _task(folder: Path, task_file: Path | None) -> Task:
    """The task of a run, with the remedies that it was trained with."""
    task, healed = task_of_run(folder, task_file, "fogline.export(run, path)"), read_info(folder).get("healed")
    return task if task_file is not None or healed is None else Healing.again(task, healed).task


def print_report(report: ExportReport, *, as_json: bool) -> None:
    """The report in lines, or JSON and nothing else."""
    typer.echo(report.to_json() if as_json else str(report))
