"""The command that searches for a recipe. Importing this module imports PyTorch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

import fogline
from fogline._tune.space import parse_dimension
from fogline.cli.saying import say
from fogline.cli.sources import existing, load_module, plain_value, read_recipe, task_and_recipe, with_fields
from fogline.errors import misfit


def tune(
    what: Path,
    *,
    target: str | None,
    valid: Path | None,
    recipe_file: Path | None,
    fields: Mapping[str, Any],
    search: Sequence[str],
    budget: str | None,
    workers: int,
    as_json: bool,
    **options: Any,
) -> fogline.Tuned:
    """Search for what a path stands for; ``options`` are those of :func:`fogline.tune`.

    Raises:
        ValueError, TypeError, ImportError, FileNotFoundError: for bad input, before any training.
        fogline.Interrupted: stopped by a signal, and kept.
    """
    task, recipe, space = _asked(what, target, valid, recipe_file, fields)
    if search:
        space = dict(parse_dimension(text) for text in search)
    if workers > 1:
        _several(workers)
    options["name"] = options["name"] or f"tune-{what.stem}"
    tell = None if as_json else say
    amount = plain_value(budget)
    return fogline.tune(task, space, recipe=recipe, budget=amount, progress=tell or False, **options)


def _asked(
    what: Path, target: str | None, valid: Path | None, recipe_file: Path | None, fields: Mapping[str, Any]
) -> tuple[Any, fogline.Recipe, Any]:
    """The task, or the function that makes it, the recipe and the space of a path."""
    existing(what, "a task file, a table or a folder of images")
    if what.suffix != ".py":
        task, recipe = task_and_recipe(what, target=target, valid=valid, recipe_file=recipe_file, fields=fields)
        return task, recipe, "auto"
    if target is not None or valid is not None:
        raise ValueError(f"--target and --valid are for tables and images: say them in {what}, in its Task(...)")
    module = load_module(what)
    made = getattr(module, "make_task", None) or getattr(module, "task", None)
    if made is None:
        raise misfit(
            "`task = fogline.Task(...)`, or a function `make_task(...)` that returns one",
            f"a file without either, {what}",
            "add one of them",
        )
    recipe = getattr(module, "recipe", None) or fogline.Recipe()
    if recipe_file is not None:
        recipe = read_recipe(recipe_file)
    return made, with_fields(recipe, fields), getattr(module, "space", "auto")


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
