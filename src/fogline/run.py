"""What happened: a run folder on disk and the values read from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fogline.errors import unknown
from fogline.record import example_files
from fogline.record.store import Table, read_info, read_table
from fogline.verdict import Judgement, Verdict

if TYPE_CHECKING:
    from torch import nn

    from fogline.doctor.report import Report
    from fogline.recipe import Recipe
    from fogline.task import Task

_ORDERS = {
    "steps": "step", "layers": "step, layer", "scores": "step, split, name", "confusion": "target, predicted",
}  # fmt: skip


class Run:
    """What happened in a descent.

    Attributes:
        folder: where it lies: ``run.json``, ``run.sqlite``, ``checkpoints/``.
        task: the task it ran, or None for a run that was only opened or watched.

    Example::

        run = fogline.Run.open("runs/digits")
        print(run.verdict)
        run.report("run.html")
    """

    def __init__(self, folder: str | Path, *, task: Task | None = None, model: nn.Module | None = None) -> None:
        self.folder = Path(folder)
        self.task = task
        self._model = model

    @classmethod
    def open(cls, folder: str | Path, *, task: Task | None = None) -> Run:
        """Open a run folder, finished or still training.

        Raises:
            FileNotFoundError: the folder holds no run.
        """
        read_info(Path(folder))
        return cls(folder, task=task)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def info(self) -> dict[str, Any]:
        """The contents of ``run.json`` as it is now."""
        return read_info(self.folder)

    @property
    def judgement(self) -> Judgement | None:
        """The verdict with its evidence; None while the run goes on."""
        verdict = self.info.get("verdict")
        return None if verdict is None else Judgement(Verdict[verdict["name"]], verdict["evidence"])

    @property
    def verdict(self) -> Verdict | None:
        """How it ended; ``str()`` of it says what to do next. None while the run goes on."""
        judgement = self.judgement
        return None if judgement is None else judgement.verdict

    @property
    def recipe(self) -> Recipe:
        """The recipe with every ``"auto"`` resolved."""
        from fogline.recipe import Recipe  # it brings PyTorch, which looking at a run does not need

        return Recipe.from_dict(self.info["recipe"])

    @property
    def steps(self) -> Table:
        """Signals by step: loss, lr, grad_norm.

        Where probed also update_norm, update_ratio, step_cosine, overshoot and sharpness, which is a share of what the
        optimizer can bear: 1 is its limit.
        """
        return self._table("steps")

    @property
    def layers(self) -> Table:
        """Signals by probed step and layer."""
        return self._table("layers")

    @property
    def scores(self) -> Table:
        """Held-out loss and metrics by step."""
        return self._table("scores")

    @property
    def events(self) -> Table:
        """What was decided or went wrong, by step; ``data`` is JSON."""
        return self._table("events")

    @property
    def findings(self) -> Table:
        """Faults that were seen while it ran, in the order they were; ``data`` is JSON with evidence and remedy."""
        return self._table("findings")

    @property
    def confusion(self) -> Table:
        """How often a class (``target``) of the held-out data was taken for which (``predicted``): ``count``.

        Counted with the weights that were kept; without rows where the work is no classification.
        """
        return self._table("confusion")

    @property
    def examples(self) -> Table:
        """One row per training example, over the epochs recorded so far; without rows where none was.

        Columns: example (its position in the training data), target where it is one number, epochs (how many saw it),
        and the mean over them of loss and, where they are known, margin, confidence, correct (a share), gradient_norm
        and residual; variability (standard deviation of the confidence), forgetting (how often it went from right to
        wrong) and predicted (by the last epoch). Files are read one at a time.
        """
        return example_files.summary(self.folder)

    def _table(self, name: str) -> Table:
        return read_table(self.folder, name, _ORDERS.get(name, "id"))

    def final_scores(self) -> dict[str, float]:
        """Held-out loss and metrics of the weights that were kept."""
        scores: dict[str, float] = self.info.get("scores", {})
        return scores

    @property
    def model(self) -> nn.Module:
        """The trained module in evaluation mode, best held-out weights restored.

        Raises:
            ValueError: the run was opened without the task that made the model.
        """
        if self._model is None:
            self._model = self._load_model()
        return self._model

    def attach(self, model: nn.Module) -> None:
        """Give the run the module that is being trained, so that ``run.model`` is that one."""
        self._model = model

    def _load_model(self) -> nn.Module:
        from torch import nn

        from fogline.descent.checkpoint import kept_weights
        from fogline.descent.copies import copied

        if self.task is None or self.task.model is None:
            raise ValueError(
                "expected the task that made the model, received none; open the run with Run.open(folder, task=task)"
            )
        made = self.task.model
        model: nn.Module = copied(made) if isinstance(made, nn.Module) else made()
        model.load_state_dict(kept_weights(self.folder))
        return model.eval()

    def diagnose(self, task: Task | None = None, budget: float = 1.0) -> Report:
        """Say what is wrong with the run.

        From its record alone, where there is no task: nothing is run, and nothing is proven. With the task the program
        is examined as by :func:`fogline.diagnose`, with the recipe that was asked for, and remedies are tried.

        Args:
            task: the task of the run; by default the one it was made with.
            budget: of the examination, in lengths of the run.

        Raises:
            ValueError, TypeError: the task's data cannot be read.
        """
        from fogline.doctor.examine import diagnose
        from fogline.doctor.record import diagnose_record
        from fogline.recipe import Recipe

        task = task or self.task
        if task is None:
            return diagnose_record(self)
        info = self.info
        return diagnose(task, Recipe.from_dict(info.get("asked") or info["recipe"]), budget)

    def plot(self, name: str = "loss", *, dark: bool = False) -> Any:
        """One figure of the run, a ``plotly.graph_objects.Figure``; a notebook shows it.

        Args:
            name: "loss", "lr", "gradient", "limits", "layers", "confusion", "data_map", "rate", "landscape",
                "landscape_3d";
                ``fogline.plots.figures_of(run)`` names those that the run has the data for.
            dark: the dark palette.

        Raises:
            ValueError: for an unknown figure.
        """
        from fogline.plots import FIGURES

        if name not in FIGURES:
            raise unknown("figure", name, FIGURES)
        return FIGURES[name](self, dark=dark)

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML file with verdict, findings, figures, recipe and events; returns its path."""
        from fogline.plots.report import write_report

        return write_report(self, Path(path))

    def __repr__(self) -> str:
        verdict = self.verdict
        return f"Run({str(self.folder)!r}, {'training' if verdict is None else verdict.name})"

    def to_json(self) -> str:
        return json.dumps(self.info, indent=2)
