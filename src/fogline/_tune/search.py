"""``tune``: a search over recipes, and over the arguments of the function that makes the task.

Optuna keeps the trials and has samplers of its own; what is ours is what a search knows at the start (the measured
learning rate), what it learns from trials of any length (``belief.py``), what a trial costs (it ends where others do
better or where it diverges) and how trials of small models train (in one program).
"""

from __future__ import annotations

import multiprocessing
import pickle
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fogline._tune.plan import METHODS, PRUNING, Plan, read_budget
from fogline._tune.result import Tuned
from fogline._tune.space import default_space, read_space
from fogline._tune.study import need_optuna, quiet
from fogline.errors import unknown
from fogline.recipe import Duration, Recipe
from fogline.task import Task

if TYPE_CHECKING:
    from fogline.descent.prepare import Start

TOGETHER = 4
"""Trials of a small model that share a program."""
WHOLE_TRIALS = 20.0
"""The budget where neither trials nor a budget are given."""


def tune(
    task: Task | Callable[..., Task],
    space: Mapping[str, Any] | str = "auto",
    *,
    recipe: Recipe | None = None,
    trials: int | None = None,
    budget: float | str | Duration | None = None,
    method: str = "gp",
    pruning: str = "asha",
    workers: int = 1,
    together: bool = True,
    storage: str | None = None,
    runs: str | Path = "runs",
    name: str | None = None,
    progress: bool | Callable[[str], None] | None = None,
    **recipe_fields: Any,
) -> Tuned:
    """Search for the recipe with the lowest held-out loss.

    The first trial is the recipe as it stands, at the measured learning rate; the rate is searched as a multiple of
    the one that :func:`fogline.find_lr` measures. The same call goes on with a search that was stopped.

    Args:
        task: with held-out data; or a function that makes one, whose arguments the space may name.
        space: what may be chosen, by the name of a recipe's field or of an argument: a list of choices,
            ``fogline.log(low, high)``, ``fogline.between(low, high)``, for the learning rate also ``"auto"``, which is
            its neighbourhood of 30 times either way. ``"auto"`` searches the learning rate, the batch size, the weight
            decay and the optimizer, as far as the recipe leaves them open.
        recipe: what is not searched, with the duration of a whole trial.
        trials: the most that are begun.
        budget: what all of them may cost: a number of whole trials, steps (``"20000st"``) or a time (``"30min"``). No
            trial is begun once it is used up. 20 whole trials where neither it nor ``trials`` is given.
        method: "gp" takes the setting with the largest expected gain by a Gaussian process over settings and lengths of
            a trial, which learns from pruned trials too; Optuna's "tpe" (Bergstra et al., 2011) and "cmaes" (Hansen,
            2016; numbers only, choices by TPE); or "random".
        pruning: "asha" compares trials at 1/9 and 1/3 of their length and goes on with the lowest third and half (Li et
            al., 2020, arXiv:1810.05934), with "gp" with those that have a fair chance to end lowest; "hyperband" does
            so in brackets of different haste, "none" trains all to their end.
        workers: processes of this machine.
        together: whether trials of a small model may share one program, in fours.
        storage: a database for many machines, ``"postgresql://user@host/database"``; by default a journal in the
            folder of the search. Each machine calls with the same ``name``.
        runs: the folder that the search's folder lies in.
        name: of that folder, and of the search in its storage; "tune-" and the task's name by default.
        progress: True or False to print a line for each trial or not, or a function that is given it; by default
            where somebody looks on.
        **recipe_fields: fields of the recipe.

    Returns:
        ``tuned.best`` (a recipe), ``tuned.arguments``, ``tuned.value``, ``tuned.trials``, ``tuned.importance``,
        ``tuned.plot()``, ``tuned.fit()``.

    Raises:
        ImportError: Optuna is not installed; names the command.
        ValueError, TypeError: space, task and recipe do not fit, before anything is trained.
        fogline.Interrupted: a signal came; the same call goes on.

    >>> import torch, fogline
    >>> X = torch.randn(300, 3)
    >>> y = X.sum(1, keepdim=True)
    >>> task = fogline.Task(torch.nn.Linear(3, 1), torch.nn.MSELoss(), (X[:200], y[:200]), (X[200:], y[200:]))
    >>> space = {"lr": fogline.log(1e-4, 1.0), "batch_size": [16, 32]}
    >>> tuned = fogline.tune(task, space, trials=4, duration="60st", progress=False)
    >>> tuned.best.batch_size in (16, 32), tuned.value < 1, len(tuned.trials)
    (True, True, 4)
    """
    need_optuna()
    _check(method, pruning, workers, trials)
    if not isinstance(task, Task) and not callable(task):
        raise TypeError(f"expected a fogline.Task or a function that makes one, received a {type(task).__name__}")
    asked = (recipe or Recipe()).replace(**recipe_fields)
    plan = _plan(task, asked, space, Path(runs), name)
    counted = read_budget(budget)
    plan = replace(
        plan, trials=trials, budget=(WHOLE_TRIALS, "trials") if counted is None and trials is None else counted
    )
    plan = replace(plan, method=method, pruning=pruning, together=TOGETHER if together else 1, storage=storage)
    say = _teller(progress)
    with quiet():
        _searched(plan, workers, say)
    return Tuned(plan.folder, storage, task=task)


def _check(method: str, pruning: str, workers: int, trials: int | None) -> None:
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if pruning not in PRUNING:
        raise unknown("pruning", pruning, PRUNING)
    for name, value in (("workers", workers), ("trials", trials)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: expected a whole number of at least 1, received {value!r}")


def _plan(task: Any, recipe: Recipe, space: Any, runs: Path, name: str | None) -> Plan:
    """The plan with everything that must be the same for all trials settled: space and duration."""
    factory = None if isinstance(task, Task) else task
    missing = [
        argument
        for argument, parameter in _parameters(factory).items()
        if parameter.default is parameter.empty and not (isinstance(space, Mapping) and argument in space)
    ]
    if missing:
        raise ValueError(
            f"expected every argument of the task's function to have a default or a place in the space; "
            f"{missing[0]!r} has neither"
        )
    first = Plan(task, recipe, read_space({"lr": "auto"}, recipe, None), runs, None, None, None, "", "", 1)
    known = {} if not isinstance(space, Mapping) else space
    read = read_space(known, recipe, factory) if isinstance(space, Mapping) else None
    if read is not None:
        first = replace(first, space=read)
    arguments = {name: first.usual(name, recipe) for name in (read.arguments if read else ())}
    start = _begun(first.make_task(arguments), recipe)
    resolved = start.resolved.recipe
    if start.opened.valid is None:
        raise ValueError(
            "expected held-out data to compare trials by, received none; give the Task valid=(X_valid, y_valid)"
        )
    if read is None:
        if space != "auto":
            raise ValueError(f'space: expected a mapping or "auto", received {space!r}')
        read = read_space(_usual_space(start, recipe), recipe, None)
    if recipe.duration == "auto":
        recipe = recipe.replace(duration=str(resolved.duration), schedule=resolved.schedule)
        if "schedule" in read.dimensions:
            recipe = recipe.replace(schedule="auto")
    if recipe.lr != "auto" and "lr" in read.dimensions:
        recipe = recipe.replace(lr="auto")
    folder = runs / (name or f"tune-{_slug(start.task.name or _title(task, start))}")
    return replace(first, recipe=recipe, space=read, folder=folder, _made=first._made)


def _begun(task: Task, recipe: Recipe) -> Start:
    """What the recipe comes to; a search needs a length that is known."""
    from fogline.descent.prepare import begin

    if recipe.duration == "auto" and recipe.schedule in ("auto", "wsd"):
        recipe = recipe.replace(schedule="linear")
    return begin(task, recipe)


def _usual_space(start: Start, recipe: Recipe) -> dict[str, Any]:
    from fogline.descent.optimizers import spec_of
    from fogline.descent.resolve import takes_all_examples

    resolved = start.resolved.recipe
    size = None if takes_all_examples(resolved.optimizer) else resolved.batch_size
    if start.opened.facts.batch_size is not None or start.opened.train.size is None:
        size = None
    decay = spec_of(resolved.optimizer).weight_decay
    return default_space(recipe, size if isinstance(size, int) else None, decay)


def _parameters(factory: Callable[..., Task] | None) -> Mapping[str, Any]:
    import inspect

    return {} if factory is None else inspect.signature(factory).parameters


def _title(task: Any, start: Start) -> str:
    named = getattr(task, "__name__", "") if not isinstance(task, Task) else ""
    return named if named and named != "<lambda>" else type(start.objective.model).__name__


def _slug(title: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", title).strip("-") or "task"


def _teller(progress: bool | Callable[[str], None] | None) -> Callable[[str], None]:
    if callable(progress):
        return progress
    if progress or (progress is None and sys.stderr.isatty()):
        return lambda words: print(words, file=sys.stderr)
    return lambda words: None


def _searched(plan: Plan, workers: int, say: Callable[[str], None]) -> None:
    """Run the search here, or in processes of its own."""
    from fogline._tune.worker import Worker

    worker = Worker(plan, say)
    worker.study.set_user_attr("arguments", list(plan.space.arguments))
    if workers == 1:
        worker.run()
        return
    _in_processes(plan, workers)
    from fogline._tune.study import write_summary

    write_summary(worker.study, plan)


def _in_processes(plan: Plan, workers: int) -> None:
    """Each worker is a process that is begun anew, which is safe with threads and accelerators alike."""
    plan = replace(plan, _made={})
    try:
        pickle.dumps(plan)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"workers={workers}: expected a task that can be sent to other processes, received one that cannot "
            f"({error}); define its functions at the top level of a module, or start the same search in several "
            "terminals: they share it"
        ) from None
    from fogline._tune.processes import run_all

    run_all(plan, workers, multiprocessing.get_context("spawn"))
