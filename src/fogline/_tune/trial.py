"""One trial: an ordinary run in a folder of its own, compared with the others on its way."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fogline._fit import attended
from fogline._tune.sampling import RUNGS
from fogline.descent.checkpoint import latest
from fogline.descent.state import Descent
from fogline.doctor.case import FAILURES
from fogline.recipe import Duration, Recipe
from fogline.run import Run
from fogline.task import Task
from fogline.verdict import Verdict

PARTS = RUNGS[-1]
_NOT_FINITE = 3  # steps in a row
_TOLD = ("rollback", "refused", "ended")


@dataclass
class Asked:
    """A trial that is to be made, and what comes of it.

    Attributes:
        trial: Optuna's.
        values: what was chosen, by name.
        arguments: those of them that are the task function's.
        recipe: with the learning rate it is to have.
        planned: steps; None where the duration is one of time.
        curve: (step, held-out loss).
        ended: "complete", "pruned", "diverged" or "failed"; "running" until then.
        why: it ended before its time.
        steps, seconds: what it took.
        run: the name of its run folder; None where it shared a program with others.
        together: how many trials stepped in its program.
        findings: what the doctor told while it ran.
    """

    trial: Any
    values: dict[str, Any]
    arguments: dict[str, Any]
    recipe: Recipe
    planned: int | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    ended: str = "running"
    why: str = ""
    steps: int = 0
    seconds: float = 0.0
    run: str | None = None
    together: int = 1
    findings: list[str] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The lowest held-out loss on its way; infinite where there is none."""
        return min((loss for _, loss in self.curve if math.isfinite(loss)), default=math.inf)

    @property
    def share(self) -> float:
        """Of the whole trial, that was made."""
        return min(1.0, self.steps / self.planned) if self.planned else float(self.ended == "complete")

    def report(self, part: int) -> None:
        """Tell the study the loss of a part; one that a stopped process has told before stays."""
        told = self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values
        if part not in told and math.isfinite(self.best):
            self.trial.report(self.best, part)

    def attributes(self) -> dict[str, Any]:
        """What the study keeps of it; JSON-able."""
        return {
            "ended": self.ended,
            "why": self.why,
            "lr": self.recipe.lr,
            "values": {name: value for name, value in self.values.items() if not callable(value)},
            "recipe": self.recipe.to_dict(),
            "cost": {"steps": self.steps, "trials": self.share, "seconds": self.seconds},
            "run": self.run,
            "together": self.together,
            "curve": [[step, loss if math.isfinite(loss) else None] for step, loss in self.curve],
            "findings": self.findings,
        }


def with_looks(recipe: Recipe, planned: int | None) -> Recipe:
    """The recipe of a trial: scored at each ninth, and guarded, so that a loss that runs away is seen at once."""
    if planned is not None:
        every = f"{max(1, math.ceil(planned / PARTS))}st"
    else:
        seconds = Duration.parse(recipe.duration).seconds
        assert seconds is not None
        every = f"{seconds / PARTS:g}s"
    return recipe.replace(validate_every=every, guard=True, keep=1)


class Attendant:
    """Asked between steps whether a trial goes on: not where it diverges, nor where the others do better."""

    def __init__(self, asked: Asked, *, prune: bool) -> None:
        self.asked, self.prune = asked, prune
        self._reported = 0

    def __call__(self, descent: Descent) -> str | None:
        asked, counters = self.asked, descent.counters
        asked.steps = descent.step
        if counters.rollbacks or counters.refused_in_a_row >= _NOT_FINITE:
            asked.ended = "diverged"
            return "diverged: no setting like this is wanted"
        if counters.validated != descent.step or not descent.step:
            return None
        loss = descent.scores["loss"]
        asked.curve.append((descent.step, loss))
        part = self._part(descent)
        if part not in RUNGS[:-1] or part <= self._reported:
            return None
        self._reported = part
        asked.report(part)
        if self.prune and asked.trial.should_prune():
            asked.ended = "pruned"
            return pruned_words(loss, part)
        return None

    def _part(self, descent: Descent) -> int:
        position, total = descent.length.position(descent.step, descent.elapsed())
        return int(PARTS * position / total + 1e-9)


def pruned_words(loss: float, part: int) -> str:
    """Why a trial was ended on its way.

    >>> pruned_words(0.5, 1)
    'held-out loss 0.5 after 1/9 of the trial: others were lower there'
    """
    return f"held-out loss {loss:.4g} after {part}/{PARTS} of the trial: others were lower there"


def make_trial(asked: Asked, task: Task, folder: Path, *, prune: bool) -> Run | None:
    """Make a trial as a run in the study's folder; where one was left there, go on with it.

    Returns:
        The run; None where the program failed with these settings.

    Raises:
        fogline.Interrupted: a signal came; the run was saved and the same search goes on with it.
    """
    place = folder / f"trial-{asked.trial.number:04d}"
    asked.run, began = place.name, time.perf_counter()
    run = None
    try:
        run = attended(
            task,
            with_looks(asked.recipe, asked.planned),
            place,
            Attendant(asked, prune=prune),
            go_on=(place / "run.json").exists() and latest(place)[0] is not None,
        )
        _read(asked, run)
    except FAILURES as error:
        asked.ended, asked.why = "failed", f"{type(error).__name__}: {error}"
    asked.seconds = time.perf_counter() - began
    return run


def _read(asked: Asked, run: Run) -> None:
    """What the run folder says of a trial that is over."""
    asked.steps = int(run.info["steps"])
    if asked.planned is None:
        asked.planned = asked.steps if asked.ended in ("running", "complete") else None
    scores = [row for row in run.scores if row["name"] == "loss" and row["split"] == "valid"]
    asked.curve = [(row["step"], row["value"] if row["value"] is not None else math.nan) for row in scores]
    asked.findings = list(dict.fromkeys(str(row["cause"]) for row in run.findings))
    told = [str(row["message"]) for row in run.events if row["kind"] in _TOLD]
    if asked.ended == "running" and run.verdict in (Verdict.DIVERGED, Verdict.NONFINITE):
        asked.ended = "diverged"
        asked.why = told[-1] if told else str(run.verdict)
    elif asked.ended == "diverged":
        asked.why = f"diverged at step {asked.steps}: {told[0].split(': back to')[0] if told else run.verdict}"
    elif asked.ended == "pruned":
        asked.why = told[-1]
    else:
        asked.ended = "complete"


def values_in_words(values: Mapping[str, Any]) -> str:
    """
    >>> values_in_words({"lr": 0.0123456, "batch_size": 32})
    'lr 0.01235, batch_size 32'
    """
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
