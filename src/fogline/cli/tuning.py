"""The command that searches for a recipe. Importing this module imports PyTorch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

import fogline
from fogline._tune.space import parse_dimension
from fogline.cli.saying import say
from fogline.cli.sources import Program, load_module, plain_value, task_and_recipe
from fogline.errors import misfit


def tune(
    program: Program, search: Sequence[str], *, budget: str | None, workers: int, as_json: bool, **options: Any
) -> fogline.Tuned:
    """Search for what a program stands for; ``options`` are those of :func:`fogline.tune`.

    Raises:
        ValueError, TypeError, ImportError, FileNotFoundError: for bad input, before any training.
        fogline.Interrupted: stopped by a signal, and kept.
    """
    task, recipe, space = _asked(program)
    if search:
        space = dict(parse_dimension(text) for text in search)
    if workers > 1:
        _several(workers)
    options["name"] = options["name"] or f"tune-{program.what.stem}"
    tell = None if as_json else say
    amount = plain_value(budget)
    return fogline.tune(task, space, recipe=recipe, budget=amount, progress=tell or False, **options)


def _asked(program: Program) -> tuple[Any, fogline.Recipe, Any]:
    """The task, or the function that makes it, the recipe and the space of a program."""
    if not program.is_task_file():
        return *task_and_recipe(program), "auto"
    module = load_module(program.what)
    made = getattr(module, "make_task", None) or getattr(module, "task", None)
    if made is None:
        raise misfit(
            "`task = fogline.Task(...)`, or a function `make_task(...)` that returns one",
            f"a file without either, {program.what}",
            "add one of them",
        )
    return made, program.recipe(getattr(module, "recipe", None)), getattr(module, "space", "auto")


def _several(workers: int) -> None:
    """All workers but this one: the same command again, which joins the search."""
    words = [word for k, word in enumerate(sys.argv[1:], 1) if not _says_workers(k)]
    command = [sys.executable, "-m", "fogline", *words, "--workers", "1"]
    _OTHERS.extend(subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(workers - 1))


_OTHERS: list[subprocess.Popen[bytes]] = []


def _says_workers(at: int) -> bool:
    return sys.argv[at].startswith("--workers") or (sys.argv[at - 1] == "--workers")


def wait_for_others() -> None:
    """Until the other workers have told their last trials."""
    while _OTHERS:
        _OTHERS.pop().wait()


def print_tuned(tuned: fogline.Tuned, *, as_json: bool, recipe_to: Path | None) -> None:
    """The best trial, what matters and where it lies; or all of it as JSON."""
    if recipe_to is not None:
        recipe_to.write_text(tuned.best.to_toml() if recipe_to.suffix == ".toml" else tuned.best.to_json())
    if as_json:
        typer.echo(tuned.to_json())
        return
    say(str(tuned))
    say(f"search: {tuned.folder}")
    if recipe_to is not None:
        say(f"recipe: {recipe_to}; fogline train TASK --recipe {recipe_to}")
