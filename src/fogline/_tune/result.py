"""What came of a search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fogline._tune.study import SUMMARY, best_row, importance_of, need_optuna, open_storage, quiet, table
from fogline.errors import unknown
from fogline.words import number

if TYPE_CHECKING:
    from collections.abc import Callable

    from fogline.recipe import Recipe
    from fogline.run import Run
    from fogline.task import Task


class Tuned:
    """A search that was made, or is being made.

    Attributes:
        folder: where it lies: its journal, what the dashboard reads, and a run folder for each trial that has one.
        storage: the address of its database; None where the journal is in the folder.

    Example::

        tuned = fogline.Tuned.open("runs/tune-digits")
        print(tuned)
        tuned.best.replace(duration="100ep")
    """

    def __init__(
        self, folder: str | Path, storage: str | None = None, *, task: Task | Callable[..., Task] | None = None
    ) -> None:
        self.folder, self.storage, self._task = Path(folder), storage, task
        optuna = need_optuna()
        with quiet():
            try:
                self.study = optuna.load_study(
                    study_name=self.folder.name, storage=open_storage(self.folder, self.storage)
                )
            except KeyError:
                raise FileNotFoundError(
                    f"expected a search named {self.folder.name!r} in {folder}, found none"
                ) from None

    @classmethod
    def open(
        cls, folder: str | Path, storage: str | None = None, *, task: Task | Callable[..., Task] | None = None
    ) -> Tuned:
        """Open a search, finished or not; nothing is trained.

        Args:
            folder: of the search.
            storage: the address of its database, where it has one.
            task: of the search, or the function that makes it, for :meth:`fit`.

        Raises:
            FileNotFoundError: the folder holds no search.
        """
        if storage is None and not (Path(folder) / SUMMARY).is_file():
            raise FileNotFoundError(f"expected a search made by fogline.tune in {folder}, found none")
        return cls(folder, storage, task=task)

    @property
    def trials(self) -> list[dict[str, Any]]:
        """A row for each trial: number, state, loss, why, lr, values, steps, seconds, run, together, curve.

        ``state`` is "complete", "pruned" (the others were better), "diverged", "failed" or "running"; ``why`` says why
        it ended before its time. ``loss`` is the lowest held-out one; ``run`` the name of its run folder, None where
        it shared a program with others (``together``, how many).
        """
        return table(self.study)

    @property
    def value(self) -> float:
        """The lowest held-out loss of a whole trial."""
        return float(self._best()["loss"])

    @property
    def best(self) -> Recipe:
        """The recipe of the best trial.

        Raises:
            ValueError: no trial was trained to its end; says why they ended.
        """
        from fogline.recipe import Recipe

        return Recipe.from_dict(self.study.trials[self._best()["number"]].user_attrs["recipe"])

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the task's function in the best trial; empty where a task was given."""
        names = self.study.user_attrs.get("arguments", [])
        return {name: value for name, value in self._best()["values"].items() if name in names}

    @property
    def importance(self) -> dict[str, float]:
        """How much of the spread of the loss each choice accounts for, most important first; they add up to 1.

        By PED-ANOVA (Watanabe et al., 2023, arXiv:2304.10255), which asks what tells good trials from all. Empty where
        fewer than six trials were trained to their end.
        """
        return importance_of(self.study)

    def plot(self, name: str = "history", *, dark: bool = False) -> Any:
        """One of Optuna's figures in our look, a ``plotly.graph_objects.Figure``.

        Args:
            name: "history", "importance", "slices", "parallel", "curves", "contour" or "timeline".
            dark: the dark palette.

        Raises:
            ValueError: for an unknown figure.
        """
        from fogline.plots.tuning import FIGURES

        if name not in FIGURES:
            raise unknown("figure", name, FIGURES)
        return FIGURES[name](self, dark=dark)

    def fit(self, task: Task | None = None, **others: Any) -> Run:
        """Train the best recipe anew, as :func:`fogline.fit` does.

        Args:
            task: by default that of the search, made with the best arguments.
            others: arguments of :func:`fogline.fit`, and fields of the recipe that shall differ, such as a longer
                ``duration``.
        """
        from fogline._fit import fit

        return fit(task or self.task, self.best, **others)

    @property
    def task(self) -> Task:
        """The task of the best trial.

        Raises:
            ValueError: the search was opened without it.
        """
        from fogline.task import Task

        if self._task is None:
            raise ValueError(
                "expected the task of the search, received none; open it with Tuned.open(folder, task=task)"
            )
        return self._task if isinstance(self._task, Task) else self._task(**self.arguments)

    def _best(self) -> dict[str, Any]:
        rows = self.trials
        row = best_row(rows)
        if row is None:
            whys = [row["why"] for row in rows if row["why"]]
            raise ValueError(
                f"expected a trial that was trained to its end, received {len(rows)} that were not; "
                + (f"the last one: {whys[-1]}" if whys else "none was begun")
            )
        return row

    def __str__(self) -> str:
        rows = self.trials
        states = [row["state"] for row in rows]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        row = best_row(rows)
        if row is None:
            return f"{len(rows)} trials ({counts}); none was trained to its end"
        chosen = ", ".join(f"{name} {_short(value)}" for name, value in row["values"].items())
        matters = ", ".join(f"{name} {share:.0%}" for name, share in self.importance.items())
        lines = [
            f"held-out loss {number(row['loss'])} (trial {row['number']} of {len(rows)}: {counts})",
            f"with {chosen}",
        ]
        return "\n".join([*lines, *([f"what matters: {matters}"] if matters else [])])

    def __repr__(self) -> str:
        return f"Tuned({str(self.folder)!r}, {len(self.trials)} trials)"

    def to_json(self) -> str:
        """Best recipe, its arguments and loss, importance and all trials."""
        found = {
            "value": self.value,
            "best": self.best.to_dict(),
            "arguments": self.arguments,
            "importance": self.importance,
            "trials": self.trials,
        }
        return json.dumps(found, default=str)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
