"""The commands that train. Importing this module imports PyTorch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

import fogline
from fogline.cli.errors import BAD_RUN, DONE
from fogline.cli.showing import print_ending
from fogline.cli.sources import Program, task_and_recipe, task_from_source
from fogline.record.store import read_info

if TYPE_CHECKING:
    from fogline.run import Run


def train(program: Program, runs: Path, name: str | None = None) -> Run:
    """Train what a program stands for.

    Raises:
        ValueError, TypeError, FileNotFoundError: for bad input, before any training.
        fogline.Interrupted: stopped by a signal, and saved.
    """
    task, recipe = task_and_recipe(program)
    with _telling_how_to_resume():
        return fogline.fit(task, recipe, runs=runs, name=name, source=program.source())


def resume(folder: Path, duration: str | None) -> Run:
    """Rebuild the task a run was started from and go on.

    Raises:
        ValueError: the run was not started from the command line.
        fogline.Interrupted: stopped by a signal, and saved.
    """
    task, _ = task_from_source(read_info(folder).get("source"), folder)
    with _telling_how_to_resume():
        return fogline.resume(folder, task, duration=duration)


def told(run: Run, report: Path | None) -> int:
    """Say how the run ended, write the report if one is wanted; returns the exit code of the verdict."""
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        print_ending(run.folder)
        if report is not None:
            typer.echo(f"report: {run.report(report)}")
    verdict = run.verdict
    return BAD_RUN if verdict is not None and verdict.name in ("DIVERGED", "NONFINITE") else DONE


@contextmanager
def _telling_how_to_resume() -> Iterator[None]:
    try:
        yield
    except fogline.Interrupted as stopped:
        if os.environ.get("RANK", "0") == "0":
            print_ending(stopped.run.folder, err=True)
            typer.echo(f"go on with: fogline resume {stopped.run.folder}", err=True)
        raise
