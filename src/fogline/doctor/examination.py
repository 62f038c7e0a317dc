"""Everything that is known of a program while its causes are looked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fogline.data.source import Batch, taken
from fogline.doctor.anatomy import Anatomy, dissect
from fogline.doctor.case import FAILURES, Case, Program, program, some_batch
from fogline.doctor.descended import Observation
from fogline.doctor.finding import Remedy
from fogline.doctor.reference import Reference, refer
from fogline.doctor.trial import planned_steps


@dataclass
class Examination:
    """A program with the remedies kept so far, on one batch and, once it was run, in motion.

    Attributes:
        case: the program as it was given.
        kept: remedies that are part of the program by now.
        observed: the control's descent; None before it was run (causes then see one batch only).
    """

    case: Case
    kept: tuple[Remedy, ...] = ()
    observed: Observation | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def program(self) -> Program:
        """Task, recipe and rows with what was kept."""
        return program(self.case, self.kept)

    def program_with(self, *remedies: Remedy) -> Program:
        """The program with more remedies."""
        return program(self.case, (*self.kept, *remedies))

    @cached_property
    def anatomy(self) -> Anatomy:
        """The program on its first batch, with first weights."""
        return dissect(self.program.new_model(self.case.recipe.seed), self.program.loss, self._batch)

    @cached_property
    def trained_anatomy(self) -> Anatomy | None:
        """The same with the weights that the observed descent ended with."""
        if self.observed is None or self.observed.start is None:
            return None
        return dissect(self.observed.start.objective.model, self.program.loss, self._batch)

    @property
    def _batch(self) -> Batch:
        case, rows = self.case, self.program.train
        inputs, targets = rows if case.supervised else (rows, None)
        return taken(rows, some_batch(inputs, targets, case.batch_size, case.yardstick))

    @cached_property
    def reference(self) -> Reference:
        """What classical learners get from the same rows: whether there is anything to be learned."""
        if self.case.reference is None:
            try:
                self.case.reference = refer(self.case)
            except FAILURES as error:  # data of a kind that nobody thought of
                self.case.failed["reference"] = f"{type(error).__name__}: {error}"
                self.case.reference = Reference()
        found: Reference = self.case.reference
        return found

    @property
    def planned(self) -> int:
        """Steps of the whole run."""
        return planned_steps(self.program.recipe, self.case)
