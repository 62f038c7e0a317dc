"""The books of an examination: what is kept, what was rejected, and how the program does by now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fogline.doctor.bench import AS_GOOD, ENOUGH
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Remedy, Suspicion, Trial
from fogline.doctor.report import Rejected
from fogline.doctor.standing import BEHIND, LEARNS
from fogline.doctor.trial import CLEARLY

LIKELY = 0.5
"""A suspicion that is said although it could not be tried."""
_VERY_LIKELY = 0.6
_GOOD = 0.9
_GUESSES = 2
_OPPOSITE = ("lr_too_high", "lr_too_low")
_EACH = 0.25  # of several targets, of which one alone may be half of it
_ONLY_ONE = 0.4  # likely, where nothing else was supposed and it could not be tried


@dataclass
class Kept:
    """A cause that was accepted, with its remedy and the trial that was made; ``proven`` if that was won."""

    suspicion: Suspicion
    remedy: Remedy | None
    trial: Trial | None
    proven: bool = True


@dataclass(kw_only=True)
class Books:
    """What was found out of one program.

    Attributes:
        kept: causes that were accepted, with their remedies.
        rejected, doubted: what did not help, to be told; and as it was supposed.
        planned: steps of the whole run.
        control, control_in: score of the program as it was given, and the steps of the descent that it is taken from.
        healed, healed_in: the same of the remedied program.
        unsure: that is the score of a trial whose held-out loss went up, so that ``fit`` may keep other weights.
    """

    planned: int
    kept: list[Kept] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    doubted: list[tuple[Suspicion, Trial | None]] = field(default_factory=list)
    control: float | None = None
    control_in: int = 0
    healed: float | None = None
    healed_in: int = 0
    unsure: bool = False

    @property
    def remedies(self) -> tuple[Remedy, ...]:
        return tuple(kept.remedy for kept in self.kept if kept.remedy is not None)

    @property
    def kept_causes(self) -> set[str]:
        return {kept.suspicion.cause for kept in self.kept}

    @property
    def settled(self) -> set[str]:
        """Causes that were accepted, or rejected by a trial: of others nothing is known."""
        return self.kept_causes | {item.cause for item in self.rejected if item.trial is not None}

    @property
    def known(self) -> set[str]:
        return self.kept_causes | {item.cause for item in self.rejected}

    @property
    def level(self) -> float:
        """Score of the program as it is by now."""
        level = self.healed if self.healed is not None else self.control
        return -1.0 if level is None else level

    def as_good_as_it_gets(self, exam: Examination) -> bool:
        """Whether no trial could show a gain worth a word."""
        return self.as_good(exam, self.level)

    @staticmethod
    def as_good(exam: Examination, level: float) -> bool:
        """The same of any score."""
        reference = exam.reference.possible
        best = 1 - ENOUGH if reference is None else min(1 - ENOUGH, max(_GOOD, reference - ENOUGH / 2))
        return level >= best

    def does_well(self, exam: Examination) -> bool:
        """Whether nothing need be looked for any more: it is near perfect, or as good as a classical learner.

        Where that learner finds little a network may find more, and must be clearly better to be left in peace.
        """
        return self.well(exam, self.level)

    @staticmethod
    def well(exam: Examination, level: float) -> bool:
        """The same of any score."""
        reference = exam.reference.possible
        if reference is None:
            return level >= 1 - ENOUGH
        return level >= LEARNS and level >= min(1 - ENOUGH, reference + (-ENOUGH if reference > 0.5 else ENOUGH))

    def is_healthy(self, exam: Examination) -> bool:
        """Whether it learns, and about as well as a classical learner: what one gets a sound network gets too."""
        return self.sound(exam, self.level)

    @staticmethod
    def sound(exam: Examination, level: float) -> bool:
        """The same of any score."""
        reference = exam.reference.possible
        stick = exam.case.yardstick
        learns = LEARNS if stick.work != "other" else ENOUGH  # of most losses a part can never go
        learns = _EACH if stick.several else learns
        return level >= learns and (reference is None or level >= reference - BEHIND)

    def reject(self, suspicion: Suspicion, trial: Trial | None, why: str) -> None:
        self.doubted.append((suspicion, trial))
        self.rejected.append(Rejected(suspicion.cause, trial, why))

    def guess(self, noise: float, *, mostly: bool = True) -> None:
        """A program that does not learn has a fault: what is likeliest is said, although no trial could show it.

        What may be of another fault's making is said where nothing else is, and of a rate that was supposed both too
        high and too low nothing. Where something was said already, only what is likelier.

        Args:
            noise: standard error of the difference of two scores.
            mostly: whether half of the run was watched: one that has learned nothing by a third of it may begin late.
        """
        either = {s.cause for s, _ in self.doubted}.issuperset(_OPPOSITE)
        doubted = [pair for pair in self.doubted if not (either and pair[0].cause in _OPPOSITE)]
        not_refuted = [(s, trial) for s, trial in doubted if trial is None or not self._refutes(trial, noise)]
        likely = sorted(not_refuted, key=lambda pair: (pair[0].follows, -pair[0].strength))[:_GUESSES]
        likely = [pair for pair in likely if not pair[0].follows or likely[0][0].follows]
        said = max((kept.suspicion.strength for kept in self.kept), default=0.0)
        untried = len(not_refuted) == 1 and not_refuted[0][1] is None
        least = _VERY_LIKELY if not mostly else _ONLY_ONE if untried else LIKELY
        self.say_untried([pair for pair in likely if pair[0].strength >= least and pair[0].strength > said])

    def _refutes(self, trial: Trial, noise: float) -> bool:
        """Whether a remedy that was tried did harm; or nothing beyond the noise, over all of the run of what learns.

        Where nothing is learned another fault may be in the way of what it would do.
        """
        in_full = trial.steps >= self.planned and len(trial.seeds) > 1 and self.level >= LEARNS
        by_chance = 0.0 if len(trial.seeds) > 1 else CLEARLY * noise
        return trial.effect <= -max(ENOUGH, by_chance) or (in_full and trial.effect < min(ENOUGH, trial.error))

    def say_untried(self, supposed: Sequence[tuple[Suspicion, Trial | None]]) -> None:
        """Findings that no trial has shown."""
        for suspicion, trial in supposed:
            if suspicion.cause not in self.kept_causes:
                helps = trial is not None and trial.effect >= max(AS_GOOD * ENOUGH, trial.error)
                named = trial.intervention if trial is not None else ""
                remedy = next((r for r in suspicion.remedies if helps and r.title == named), None)
                self.kept.append(Kept(suspicion, remedy, trial, proven=False))
                self.rejected = [item for item in self.rejected if item.cause != suspicion.cause]
