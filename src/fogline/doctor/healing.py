"""The remedies that a run is trained with, proven before it began, and found again when it is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fogline.recipe import Recipe
from fogline.record.store import Store
from fogline.task import Task

if TYPE_CHECKING:
    from fogline.doctor.report import Report


@dataclass(frozen=True)
class Healing:
    """An examination and what it made of a program.

    Attributes:
        report: of the program as it was given.
        asked: the recipe as it was given.
        task, recipe: with the remedies.
    """

    report: Report
    asked: Recipe
    task: Task
    recipe: Recipe

    @classmethod
    def of(cls, task: Task, asked: Recipe) -> Healing:
        """Examine a program and apply what was proven."""
        from fogline.doctor.examine import diagnose  # as much as all the rest of a run: only where it is asked for

        report = diagnose(task, asked)
        return cls(report, asked, *report.apply(task, asked))

    @classmethod
    def again(cls, task: Task, known: Mapping[str, Any]) -> Healing:
        """The same of a run that is resumed: two examinations of one program say the same.

        Raises:
            ValueError: they do not, so the task is another one.
        """
        found = cls.of(task, Recipe.from_dict(known["asked"]))
        before, now = known["remedies"], [remedy.title for remedy in found.report.remedies]
        if before != now:
            raise ValueError(
                f"expected the task the run was healed from (remedies {before}), received one that gets {now}; "
                "start a new run for another task"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it."""
        return {
            "asked": self.asked.to_dict(),
            "remedies": [remedy.title for remedy in self.report.remedies],
            "verdict": self.report.verdict,
            "cost_steps": self.report.cost_steps,
        }

    def tell(self, store: Store) -> None:
        """Write findings and remedies to the record of a run."""
        for finding in self.report.findings:
            store.finding(0, finding.to_dict(), finding.sentence)
        for remedy in self.report.remedies:
            store.event(0, "remedy", remedy.title, {"patch": remedy.patch})
