"""The commands that train. Importing this module imports PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import fogline
from fogline.cli.showing import print_ending
from fogline.cli.sources import (
    data_task,
    describe_source,
    existing,
    load_task_file,
    read_recipe,
    task_from_source,
    with_fields,
)
from fogline.recipe import Recipe
from fogline.record.store import read_info

if TYPE_CHECKING:
    from fogline.run import Run


def train(
    what: Path,
    *,
    target: str | None,
    valid: Path | None,
    recipe_file: Path | None,
    fields: Mapping[str, Any],
    options: Sequence[str],
    runs: Path,
    name: str | None,
) -> Run:
    """Train what a path stands for; the fields win over the recipe file, which wins over the task file's recipe.

    Raises:
        ValueError, TypeError, FileNotFoundError: for bad input, before any training.
        fogline.Interrupted: stopped by a signal, and saved.
    """
    existing(what, "a task file, a table or a folder of images")
    recipe = None
    if what.suffix == ".py":
        if target is not None or valid is not None:
            raise ValueError(f"--target and --valid are for tables and images: say them in {what}, in its Task(...)")
        task, recipe = load_task_file(what)
    else:
        held_out = None if valid is None else str(existing(valid, "held-out data"))
        task = data_task(what, target, held_out)
    if recipe_file is not None:
        recipe = read_recipe(recipe_file)
    recipe = with_fields(recipe or Recipe(), fields, options)
    source = describe_source(what, target, valid)
    with _telling_how_to_resume():
        return fogline.fit(task, recipe, runs=runs, name=name, source=source)


def resume(folder: Path, duration: str | None) -> Run:
    """Rebuild the task a run was started from and go on.

    Raises:
        ValueError: the run was not started from the command line.
        fogline.Interrupted: stopped by a signal, and saved.
    """
    task, _ = task_from_source(read_info(folder).get("source"), folder)
    with _telling_how_to_resume():
        return fogline.resume(folder, task, duration=duration)


@contextmanager
def _telling_how_to_resume() -> Iterator[None]:
    try:
        yield
    except fogline.Interrupted as stopped:
        print_ending(stopped.run.folder, err=True)
        typer.echo(f"go on with: fogline resume {stopped.run.folder}", err=True)
        raise
