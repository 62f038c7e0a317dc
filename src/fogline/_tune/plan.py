"""What a search is about: everything a worker needs to make trials, in one process or in several."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fogline._tune.space import Space, Span, label
from fogline.recipe import Duration, Recipe
from fogline.task import Task

METHODS = ("gp", "tpe", "cmaes", "random")
PRUNING = ("asha", "hyperband", "none")


@dataclass(frozen=True)
class Plan:
    """A search.

    Attributes:
        task: or the function that makes one.
        recipe: what is not searched.
        space: what is.
        folder: of the study, with a run folder for each trial that has one.
        storage: address of a database, or None for a journal in the folder.
        trials: the most there may be, or None.
        budget: (amount, "trials" | "steps" | "seconds"), or None.
        method: how settings are suggested.
        pruning: how unpromising trials are ended.
        together: how many trials share one program where the model allows.
    """

    task: Task | Callable[..., Task]
    recipe: Recipe
    space: Space
    folder: Path
    storage: str | None
    trials: int | None
    budget: tuple[float, str] | None
    method: str
    pruning: str
    together: int
    _made: dict[str, Task] = field(default_factory=dict, repr=False, compare=False)

    def make_task(self, arguments: Mapping[str, Any]) -> Task:
        """The task for these arguments; the last few are kept.

        Raises:
            TypeError: the function made something else.
        """
        if isinstance(self.task, Task):
            return self.task
        key = str({name: label(value) for name, value in arguments.items()})
        if key not in self._made:
            made = self.task(**arguments)
            if not isinstance(made, Task):
                raise TypeError(
                    f"expected the task's function to return a fogline.Task, received a {type(made).__name__}"
                )
            while len(self._made) > 3:
                self._made.pop(next(iter(self._made)))
            self._made[key] = made
        return self._made[key]

    def make_recipe(self, values: Mapping[str, Any], lr: float | str) -> Recipe:
        """The recipe of a trial."""
        fields, _ = self.space.split(values)
        fields.pop("lr", None)
        return self.recipe.replace(**fields, lr=lr)

    def usual(self, name: str, resolved: Recipe) -> Any:
        """The value a trial has that nothing is known about: what the recipe or the function says, else the middle."""
        dimension = self.space.dimensions[name]
        assert not isinstance(dimension, str)
        wanted = self._said(name, resolved)
        if isinstance(dimension, Span):
            return wanted if wanted in dimension else dimension.at(0.5)
        known = {label(choice): choice for choice in dimension}
        fallback = dimension[len(dimension) // 2] if isinstance(dimension[0], int | float) else dimension[0]
        return known.get(label(wanted), fallback)

    def _said(self, name: str, resolved: Recipe) -> Any:
        if name in self.space.arguments:
            assert callable(self.task)
            return inspect.signature(self.task).parameters[name].default
        if name == "weight_decay" and resolved.weight_decay is None:
            from fogline.descent.optimizers import spec_of

            return spec_of(resolved.optimizer).weight_decay
        return getattr(resolved, name)


def read_budget(budget: float | str | Duration | None) -> tuple[float, str] | None:
    """A budget with what it counts.

    Raises:
        ValueError, TypeError: it is none.

    >>> read_budget(20), read_budget("5000st"), read_budget("10min")
    ((20.0, 'trials'), (5000.0, 'steps'), (600.0, 'seconds'))
    """
    if budget is None:
        return None
    if isinstance(budget, int | float) and not isinstance(budget, bool):
        if not budget > 0:
            raise ValueError(f"budget: expected a number of whole trials above 0, received {budget!r}")
        return float(budget), "trials"
    duration = Duration.parse(budget)  # type: ignore[arg-type]
    if duration.seconds is not None:
        return duration.seconds, "seconds"
    if duration.unit != "st":
        raise ValueError(
            f"budget: expected whole trials such as 20, steps such as '20000st' or a time such as '30min', "
            f"received {budget!r}"
        )
    return duration.value, "steps"
