"""The report: a page that a tired person understands, and its twin in JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fogline.doctor.case import apply_to
from fogline.doctor.finding import Finding, Trial
from fogline.doctor.unfolded import unfolded
from fogline.recipe import Recipe
from fogline.task import Task

Outcome = Literal["healthy", "faulty", "limit_of_data", "undecided"]

_SENTENCES = {
    "healthy": "Nothing is wrong: the program learns, and nothing that was tried does clearly better.",
    "faulty": "Something is wrong.",
    "limit_of_data": "The data holds no more: neither this program nor a classical learner gets more out of it.",
    "undecided": "It does not learn as it should, and the cause was not found within the budget.",
}
_OF_A_RECORD = {
    "healthy": "Nothing wrong was seen in the record of this run: its loss fell, and no signal stands out.",
    "undecided": "Nothing was seen that explains this run, and its record does not show that it learns.",
}
_UNDECIDED_IN_PART = (
    "It has learned little in the part of its run that was watched, and nothing that was tried there does clearly "
    "better. A larger budget shows whether it begins late."
)
_LITTLE = 0.5
_HEALTHY_WITH_LITTLE = (
    "Nothing is wrong that shows in training: the program gets {much}. If that is too little, look at what the inputs "
    "say of the targets, at wrong labels, and for more rows."
)
_WIDTH = 100


@dataclass(frozen=True)
class Rejected:
    """What was supposed and did not help.

    Attributes:
        cause: that it would have been.
        trial: the controlled re-run; None where it could not be made, and ``why``.
    """

    cause: str
    trial: Trial | None
    why: str


@dataclass(frozen=True)
class Report:
    """What :func:`fogline.diagnose` found.

    Attributes:
        verdict: "healthy", "faulty", "limit_of_data" or "undecided".
        findings: causes, most likely first; after them other readings of some, that nothing tells from them.
        rejected: what was tried and did not help.
        control: score of the program as it was given, on rows it did not learn from; None where it was not run.
        healed: score with all remedies; None where none was tried.
        control_in, healed_in: after so many steps.
        metric: what the scores are.
        reference: score of a classical learner on the same rows, where the work allows one.
        cost_steps: what the diagnosis cost, in steps of the program; ``planned`` are those of the run itself.
        notes: sentences.
    """

    verdict: Outcome
    findings: tuple[Finding, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    control: float | None = None
    healed: float | None = None
    control_in: int = 0
    healed_in: int = 0
    metric: str = ""
    reference: float | None = None
    cost_steps: int = 0
    planned: int = 0
    notes: tuple[str, ...] = ()

    @property
    def remedies(self) -> tuple[Any, ...]:
        """The remedies of the findings, each once."""
        found = [finding.remedy for finding in self.findings if finding.remedy is not None]
        return tuple({remedy.title: remedy for remedy in found}.values())

    def apply(self, task: Task, recipe: Recipe) -> tuple[Task, Recipe]:
        """Task and recipe with the smallest set of remedies that the trials left.

        Inputs, targets and metrics stay as they are, and outputs keep their units.

        Raises:
            TypeError: a remedy changes rows of a stream.
        """
        of_pairs = any(remedy.on_loss is not None or remedy.on_rows is not None for remedy in self.remedies)
        if of_pairs or any(remedy.on_model is not None for remedy in self.remedies):
            paired = unfolded(task)  # a model that takes several things is edited as one that takes a tuple of them
            task = paired if of_pairs or paired.model is not task.model else task
        task, recipe, _ = apply_to(task, recipe, self.remedies, loss=task.loss)
        return task, recipe

    def to_json(self) -> str:
        """Everything as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that fit in JSON."""
        return {
            "verdict": self.verdict,
            "sentence": self._sentence,
            "metric": self.metric,
            "control": self.control,
            "control_steps": self.control_in,
            "healed": self.healed,
            "healed_steps": self.healed_in,
            "reference": self.reference,
            "cost_steps": self.cost_steps,
            "planned_steps": self.planned,
            "findings": [finding.to_dict() for finding in self.findings],
            "rejected": [
                {"cause": item.cause, "why": item.why, "trial": None if item.trial is None else str(item.trial)}
                for item in self.rejected
            ],
            "notes": list(self.notes),
        }

    def plot(self, *, dark: bool = False) -> Any:
        """The trials, seed by seed: the unchanged program against each remedy; a ``plotly.graph_objects.Figure``."""
        from fogline.plots.diagnosis import tried_figure

        return tried_figure(self, dark=dark)

    def html(self, path: str | Path) -> Path:
        """Write one self-contained HTML file with the causes, their evidence, remedies and trials; returns its path."""
        from fogline.plots.diagnosis import write_diagnosis

        return write_diagnosis(self, path)

    def __str__(self) -> str:
        lines = [self.headline, ""]
        for number, finding in enumerate(self.findings, 1):
            lines += [*_paragraph(number, finding), ""]
        if self.rejected:
            lines.append("Tried without help, or without need:")
            lines += [f"  - {item.cause}: {item.why}" for item in self.rejected]
            lines.append("")
        lines += [f"Note: {note}" for note in self.notes]
        lines.append(self.cost)
        return "\n".join(lines)

    @property
    def headline(self) -> str:
        """The answer in a line, and the scores in a second one where there are any."""
        if self.verdict != "faulty":
            head = self._sentence
        else:
            named = [finding.cause + self._or_else(finding) for finding in self.findings if not finding.instead_of]
            head = "One thing is wrong" if len(named) == 1 else f"{len(named)} things are wrong"
            head += f": {', '.join(named)}."
        scores = []
        if self.control is not None:
            scores.append(f"as it is {self.control:.3g}{self._after(self.control_in)}")
        if self.healed is not None:
            scores.append(f"with the remedies {self.healed:.3g}{self._after(self.healed_in)}")
        if self.reference is not None:
            scores.append(f"a classical learner {self.reference:.3g}")
        return head + (f"\n{self.metric[:1].upper()}{self.metric[1:]}: {', '.join(scores)}." if scores else "")

    def _or_else(self, finding: Finding) -> str:
        other = [each.cause for each in self.findings if each.instead_of == finding.cause]
        return f" (or else {', '.join(other)})" if other else ""

    def _after(self, steps: int) -> str:
        return f" after {steps:,} of {self.planned:,} steps" if 0 < steps < self.planned else ""

    @property
    def _sentence(self) -> str:
        if self.verdict == "healthy" and self.planned and self.control is not None and self.control < _LITTLE:
            unknown = self.reference is None
            much = "a part of what there may be" if unknown else "about as much as classical learners get"
            return _HEALTHY_WITH_LITTLE.format(much=much)
        if self.verdict == "undecided" and 0 < self.control_in < self.planned:
            return _UNDECIDED_IN_PART
        return (_SENTENCES if self.planned else {**_SENTENCES, **_OF_A_RECORD})[self.verdict]

    @property
    def cost(self) -> str:
        """What it cost, in a sentence."""
        if not self.planned:
            return "Looked at the record; nothing was run."
        share = self.cost_steps / self.planned
        return f"Cost: {self.cost_steps:,} steps, {share:.2f} times the run of {self.planned:,}."


def _paragraph(number: int, finding: Finding) -> list[str]:
    instead = f", instead of {finding.instead_of}" if finding.instead_of else ""
    lines = [f"{number}. {finding.cause}  ({finding.severity}, {finding.confidence:.0%} sure{instead})"]
    lines += _wrapped(finding.explanation)
    lines += [line for item in finding.evidence for line in _wrapped(f"seen: {item}")]
    if finding.trial is not None:
        changed = "" if finding.remedy is not None else f", {finding.trial.intervention}"
        lines += _wrapped(f"tried{changed}: {finding.trial}")
    else:
        lines += _wrapped("tried: nothing; this is said from what was seen alone")
    if finding.remedy is not None:
        lines += _wrapped(f"remedy: {finding.remedy.title}")
        lines += [f"        | {line}" for line in finding.remedy.patch.splitlines()]
    if finding.advice:
        lines += _wrapped(f"to do: {finding.advice}")
    return [*lines, f"   more: {finding.page} (fogline explain {finding.cause})"]


def _wrapped(text: str) -> Sequence[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="   ", subsequent_indent="      ")
