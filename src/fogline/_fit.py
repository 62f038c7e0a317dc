"""``fit``, ``descend`` and ``resume``: a task and a recipe in, a run out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fogline._session import Progress, trained
from fogline.descent.group import World, by_first, joined
from fogline.descent.launch import begun_before, same_for_all
from fogline.descent.loop import Step
from fogline.descent.prepare import as_asked
from fogline.descent.state import Descent
from fogline.doctor.healing import Healing
from fogline.recipe import Duration, Recipe
from fogline.record.info import new_folder
from fogline.record.store import read_info
from fogline.run import Run
from fogline.task import Task
from fogline.verdict import Verdict


def fit(
    task: Task | nn.Module | Callable[[], nn.Module],
    recipe: Recipe | Any = None,
    *,
    loss: Any = None,
    valid: Any = None,
    metrics: Mapping[str, Any] | None = None,
    target: str | None = None,
    runs: str | Path = "runs",
    name: str | None = None,
    progress: Progress = None,
    source: Mapping[str, Any] | None = None,
    heal: bool = False,
    **recipe_fields: Any,
) -> Run:
    """Train until the recipe's duration is over and say how it went.

    Either ``fit(task, recipe)``, or ``fit(model, data, loss=..., valid=...)``; fields of the recipe can be given by
    name in both forms, and what is not given is measured.

    Args:
        task: a :class:`Task`, or a module or a function that makes one.
        recipe: a :class:`Recipe`; with a model, the training data.
        loss, valid, metrics, target: of the task, when a model was given.
        runs: the folder that run folders lie in.
        name: of the run folder; a dated name by default.
        progress: True or False to show a bar or not, a function to be told; by default a bar where somebody looks on.
        source: how to make the task again, for ``fogline resume``; written to ``run.json``.
        heal: examine the program first, as :func:`fogline.diagnose` does, and train it with the remedies that a trial
            proved. Findings and remedies are among the run's events; ``run.task`` is the remedied task.
        **recipe_fields: fields of :class:`Recipe`.

    Returns:
        The run: ``run.verdict``, ``run.model`` (best held-out weights restored), ``run.steps``, ``run.report(path)``.

    Raises:
        ValueError, TypeError: what does not fit, before any training time is spent.
        Interrupted: a signal came; the run was saved.
        OSError: the run folder cannot be written; older checkpoints are intact.

    >>> import torch
    >>> X = torch.linspace(-1, 1, 64)[:, None]
    >>> data = X, 3 * X + 1
    >>> run = fit(nn.Linear(1, 1), data, loss=nn.MSELoss(), lr=0.1, optimizer="momentum", duration="100ep")
    >>> round(run.model.weight.item(), 2)
    3.0
    """
    task, asked = as_asked(task, recipe, loss, valid, metrics, target, recipe_fields)
    world = joined(asked.device)
    folder, before = _folder(Path(runs), name, task, world)
    healing = None
    if heal:
        healing = Healing.of(task, asked)
        task, asked = healing.task, healing.recipe
        if world is not None:
            same_for_all(world, "remedies", ", ".join(remedy.title for remedy in healing.report.remedies))
    if before is not None and _ended(before):
        return Run(folder, task=task)
    loop = trained(task, asked, folder, progress, source, chunks=True, before=before, healing=healing, world=world)
    return _completed(loop)


def descend(
    task: Task | nn.Module | Callable[[], nn.Module],
    recipe: Recipe | Any = None,
    *,
    loss: Any = None,
    valid: Any = None,
    metrics: Mapping[str, Any] | None = None,
    target: str | None = None,
    runs: str | Path = "runs",
    name: str | None = None,
    progress: Progress = False,
    source: Mapping[str, Any] | None = None,
    **recipe_fields: Any,
) -> Iterator[Step]:
    """The loop of :func:`fit`, one step at a time.

    Leaving the loop early saves the run, which can then be resumed.

    >>> import torch
    >>> X = torch.linspace(-1, 1, 64)[:, None]
    >>> for step in descend(nn.Linear(1, 1), (X, 2 * X), loss=nn.MSELoss(), lr=0.1, optimizer="sgd", duration="3st"):
    ...     print(step.number, step.loss > 0)
    0 True
    1 True
    2 True
    """
    task, asked = as_asked(task, recipe, loss, valid, metrics, target, recipe_fields)
    world = joined(asked.device)
    folder, before = _folder(Path(runs), name, task, world)
    return trained(task, asked, folder, progress, source, chunks=False, before=before, world=world)


def resume(
    folder: str | Path,
    task: Task | None = None,
    *,
    duration: str | Duration | None = None,
    progress: Progress = None,
) -> Run:
    """Go on with a run where its latest checkpoint stands, bit for bit as if it had never stopped.

    Args:
        folder: the run folder.
        task: the task as it was given at first; the data must be the same.
        duration: a longer duration than before, to go on with a finished run.
        progress: as in :func:`fit`.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: the task's data is not that of the run, or the run is finished and no longer duration is given.
    """
    folder = Path(folder)
    world = joined("auto")
    info = by_first(world, lambda: read_info(folder), "the run to go on with")
    if task is None:
        raise TypeError(f"expected the task of the run, received None; pass resume({str(folder)!r}, task)")
    asked = Recipe.from_dict(info["asked"])
    if "healed" in info:
        task = Healing.again(task, info["healed"]).task
    if duration is not None:
        asked = asked.replace(duration=str(Duration.parse(duration)))
        _longer(asked, info)
    elif _ended(info):
        return Run(folder, task=task)
    source = info.get("source")
    return _completed(trained(task, asked, folder, progress, source, chunks=True, before=info, world=world))


def _longer(asked: Recipe, info: Mapping[str, Any]) -> None:
    """Refuse a duration that is over already."""
    size = info.get("recipe", {}).get("batch_size")
    if asked.duration == "auto" or not isinstance(size, int) or not info.get("steps"):
        return
    steps = Duration.parse(asked.duration).steps(size * asked.accumulate, info["task"]["train_examples"])
    if steps is not None and steps < info["steps"]:
        raise ValueError(
            f"expected a duration of more than the {info['steps']} steps that are done, received '{asked.duration}', "
            f"which is {steps}; take a longer one"
        )


def attended(
    task: Task, recipe: Recipe, folder: Path, attendant: Callable[[Descent], str | None], *, go_on: bool = False
) -> Run:
    """The run of :func:`fit` in this very folder, which an attendant may end; ``go_on`` where it was left."""
    before = read_info(folder) if go_on else None
    return _completed(trained(task, recipe, folder, False, None, chunks=True, before=before, attendant=attendant))


def _completed(loop: Generator[Step, None, Run]) -> Run:
    """Run the loop to its end."""
    try:
        while True:
            next(loop)
    except StopIteration as end:
        run: Run = end.value
        return run


def _ended(info: Mapping[str, Any]) -> bool:
    return info.get("verdict") is not None and info["verdict"]["name"] != Verdict.INTERRUPTED.name


def _folder(runs: Path, name: str | None, task: Task, world: World | None) -> tuple[Path, dict[str, Any] | None]:
    """The folder of a new run, as process 0 chooses it, and no ``run.json``.

    Where ``torchrun`` has started the processes again, it is the folder of the run that they were in, and what its
    ``run.json`` says.
    """
    if world is None:
        return _new_folder(runs, name, task), None

    def choose() -> Any:
        begun = begun_before(runs, name)
        return [str(_new_folder(runs, name, task)), None] if begun is None else [str(begun), read_info(begun)]

    folder, before = world.by_first(choose, "the run folder")
    return Path(folder), before


def _new_folder(runs: str | Path, name: str | None, task: Task) -> Path:
    model = task.model
    kind = task.name or (type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "run"))
    kind = "run" if kind == "<lambda>" else kind
    return new_folder(Path(runs), name, kind, remedy="take another name, or go on with it by fogline.resume")
