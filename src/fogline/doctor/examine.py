"""Observe, suppose, intervene, verify, and again: the examination of one program."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import nn

from fogline.descent.prepare import as_asked
from fogline.descent.randomness import Surroundings
from fogline.doctor.ablations import ablations
from fogline.doctor.bench import ENOUGH
from fogline.doctor.books import Kept
from fogline.doctor.case import CPU, Case, open_case, program
from fogline.doctor.causes import suspicions
from fogline.doctor.descended import Observation
from fogline.doctor.examination import Examination
from fogline.doctor.finding import CAUSES, Finding, Suspicion
from fogline.doctor.interventions import Interventions
from fogline.doctor.reading import answers_are_of_their_rows
from fogline.doctor.remedies import usual
from fogline.doctor.report import Outcome, Report
from fogline.doctor.scoring import Scores
from fogline.doctor.standing import LEARNS, descends, kept_of, level, standing
from fogline.doctor.trial import CHEAP, Laboratory, batch_of, planned_steps
from fogline.doctor.trying import DECISIVE, SHORTEST
from fogline.doctor.yardstick import Yardstick
from fogline.task import Task

FLOOR = 3000
"""Steps that may be spent on a program whose steps cost next to nothing, however short its run is."""
_ROUNDS = 3
_AT_ONCE = 0.125  # of the descent that is watched: as much is seen of what one batch leaves no doubt about
_LIKELY = 0.5
_FAR = 0.9  # from perfect is what scores less
_MOSTLY = 0.5  # of a constant answer's loss is gone
_LONGER = 1.5  # times the steps that were watched: less is no other look
_OBSERVED = 0.3  # of the budget: the control's own descent, and again one of the same length with what helped
# Confidence: how often findings of each kind named a planted cause on the calibration half of benchmarks/faults.
_SURE, _PROVEN = 0.97, 0.95
_DECIDED = 0.9  # at least, where the trial closed half of the distance left
_TRIED = 1.9, 0.42  # times the strength of the suspicion, less this, where a trial was won
_OTHERWISE = 0.6  # of that of a cause: what its other reading has
_UNITS = ("unscaled_input", "unscaled_target")
_UNTRIED = 0.65  # how much of a suspicion's strength is left where it could not be tried


def diagnose(
    task: Task | nn.Module | Callable[[], nn.Module],
    recipe: Any = None,
    budget: float = 1.0,
    *,
    loss: Any = None,
    valid: Any = None,
    metrics: Mapping[str, Any] | None = None,
    target: str | None = None,
    **recipe_fields: Any,
) -> Report:
    """Find out why a program does not learn, and prove the remedy by a controlled re-run.

    One batch is examined; the program is run for a part of its length and watched; each cause that would explain what
    was seen is tried: the program with its remedy and without it, from the same weights and on the same order of the
    data, over three seeds, compared on rows that were not learned from by a score that does not depend on the loss.
    What helps beyond the noise of the seeds is kept, and every part of it that is not needed is dropped again.

    Nothing is disturbed: weights, buffers, ``.grad``, random states and the train/eval modes of what was given are
    bitwise as before.

    Args:
        task, recipe, loss, valid, metrics, target, **recipe_fields: as in :func:`fogline.fit`.
        budget: at most this many times the steps of the run itself, or of what takes but a second or two where that is
            more (3,000 steps of a small model, and as many again for one last look at what a short trial has won, and
            up to as many each time that something was mended and the program still falls short); 0 looks at one batch
            only and trains nothing.

    Returns:
        The report: ``print(report)``, ``report.findings``, ``report.apply(task, recipe)``, ``report.to_json()``.

    Raises:
        ValueError, TypeError: data of which not even rows can be read; a negative budget.

    >>> X = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    >>> y = (X[:, 0] > 0).long()
    >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2), nn.Softmax(dim=1))
    >>> report = diagnose(model, (X, y), loss=nn.CrossEntropyLoss(), optimizer="adam", lr=0.01, duration="20ep")
    >>> report.verdict, report.findings[0].cause
    ('faulty', 'double_softmax')
    """
    task, asked = as_asked(task, recipe, loss, valid, metrics, target, recipe_fields)
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 <= budget < math.inf:
        raise ValueError(f"budget: expected a number of at least 0, received {budget!r}")
    case = open_case(task, asked)
    with Surroundings(CPU, 1 if _floor(case) == FLOOR else torch.get_num_threads()):
        return examine(case, budget)


def examine(case: Case, budget: float, check: Callable[[], None] = lambda: None) -> Report:
    """:func:`diagnose` for a program that is open."""
    planned = planned_steps(case.recipe, case)
    steps, floor = max(planned, _floor(case)), _floor(case)
    more = budget * max(0, 2 * floor - steps)
    laboratory = Laboratory(case, budget * steps, check, more)
    tried = Interventions(case=case, laboratory=laboratory, planned=planned)
    with warnings.catch_warnings(action="ignore"):  # of a program that is asked odd questions
        return _Doctor(case, laboratory, planned, tried, more).report(tries=budget > 0)


def _floor(case: Case) -> int:
    """Steps that take but a second or two: by rule and not by the clock, so that two examinations say the same."""
    return round(FLOOR * min(1.0, CHEAP / max(1.0, case.operations)))


@dataclass
class _Doctor:
    """One examination as it goes on."""

    case: Case
    laboratory: Laboratory
    planned: int
    tried: Interventions
    anew: float  # steps that may be spent on what was mended and still falls short: most such programs have two faults
    notes: list[str] = field(default_factory=list)

    def report(self, *, tries: bool) -> Report:
        first = self._unblocked()
        if first is None:
            return self._written("faulty")
        if not tries:
            for suspicion in first:
                self.tried.take(suspicion, None, None)
            return self._written("faulty" if any(s.proof for s in first) else "undecided")
        exam, rounds = self._watched(first)
        if not self._shown and not self.tried.remedies and self.tried.level < LEARNS:
            exam = self._seen_longer(exam)
        if exam.kept == self.tried.remedies and self._may_be_short(exam) and self.laboratory.left > 0:
            self.tried.verify(exam, self._usual(exam))
            if exam.kept == self.tried.remedies and not self.tried.is_healthy(exam) and not self._holds_nothing(exam):
                self.tried.ablate(exam, list(ablations(exam)))
            rounds.append(len(self.tried.kept))
        if self.tried.remedies and self._may_have_more(exam):
            self._renew()
            exam = self._observed()
            self.tried.verify(exam, list(suspicions(exam)))
            if exam.kept == self.tried.remedies:
                self.tried.ablate(exam, list(ablations(exam)))
            rounds.append(len(self.tried.kept))
        if len({count for count in rounds if count}) > 1:
            self.tried.minimal_again(exam)
        self._leave_out_what_is_gone(exam)
        lacking = [pair for pair in self.tried.doubted if pair[0].of_data]
        if not self.tried.kept and not lacking:
            self.tried.count_rows(exam)
        outcome = self._outcome(exam)
        if not descends(exam):
            self.notes.append("the loss does not fall along its own gradients, as that of opponents: it cannot judge")
        if outcome == "undecided" or (outcome == "faulty" and not self._shown):
            seen = exam.observed
            mostly = seen is None or 2 * seen.steps >= seen.planned or bool(seen.error)
            self.tried.guess(2 * standing(exam).error if seen is not None else 0.0, mostly=mostly)
            return self._written(self._outcome(exam))
        if outcome in ("healthy", "limit_of_data") and lacking:
            self.tried.say_untried(lacking)
            return self._written("limit_of_data")
        return self._written(outcome)

    def _watched(self, first: list[Suspicion]) -> tuple[Examination, list[int]]:
        """The program in motion, and what that shows tried; again with what was kept, which hid the rest.

        What one batch leaves no doubt about is tried before the program is run at length.

        Returns:
            The last examination, and the number of causes that were kept after each round.
        """
        exam = Examination(self.case)
        rounds: list[int] = []
        sure = [s for s in first if s.proof and s.remedies]
        if sure:
            exam = self._observed(_AT_ONCE)
            if self.tried.at_once(exam, sure):
                rounds.append(len(self.tried.kept))
                if self.tried.does_well(exam) and not self.tried.unsure:
                    return exam, rounds
                self._renew()
        for _ in range(_ROUNDS):
            exam = self._observed()
            if self.tried.wait_longer(exam):
                exam = Examination(self.case, self.tried.remedies, exam.observed)
            if self.tried.remedies and self.tried.does_well(exam):
                break
            if self.tried.wider_guard(exam):
                exam = self._observed()
            before = self.tried.remedies
            on_one_batch = self._hidden() if before else first
            self.tried.verify(exam, _merged([*on_one_batch, *suspicions(exam)]))
            rounds.append(len(self.tried.kept))
            if self.tried.remedies == before or (self.tried.does_well(exam) and not self.tried.unsure):
                break
            self._renew()
            if self.laboratory.left < self._glance:
                break
        return exam, rounds

    def _hidden(self) -> list[Suspicion]:
        """What one batch shows of the remedied program: most programs have more than one fault."""
        return [s for s in suspicions(Examination(self.case, self.tried.remedies)) if s.cause not in self.tried.settled]

    def _usual(self, exam: Examination) -> list[Suspicion]:
        """What may help any program that is short of what is possible."""
        mended = Examination(self.case, self.tried.remedies, exam.observed)
        return [s for s in usual(mended, self.laboratory) if s.cause not in self.tried.kept_causes]

    def _unblocked(self) -> list[Suspicion] | None:
        """Mend what keeps the program from being run at all; what else one batch shows. None where it stays so."""
        for _ in range(4):
            found = list(suspicions(Examination(self.case, self.tried.remedies)))
            blocking = [s for s in found if s.blocks]
            if not blocking:
                return found
            new = [s for s in blocking if s.cause not in self.tried.kept_causes]
            if any(not s.remedies for s in new):
                new = [self._cured(s, found) for s in new]
            for suspicion in new:
                self.tried.take(suspicion, next(iter(suspicion.remedies), None), None)
            if not new or not all(s.remedies for s in new):
                return None
        return None

    def _cured(self, blocking: Suspicion, found: Sequence[Suspicion]) -> Suspicion:
        """The same with the remedy of another suspicion, where that is what lets the program be run."""
        for other in found:
            if blocking.remedies or other.blocks or other.strength < _LIKELY or not other.remedies:
                continue
            mended = Examination(self.case, (*self.tried.remedies, other.remedies[0]))
            if not any(s.blocks for s in suspicions(mended)):
                seen = (*blocking.evidence, *other.evidence)
                reading = other.cause, other.explanation
                return replace(blocking, evidence=seen, remedies=other.remedies[:1], advice="", otherwise=reading)
        return blocking

    @property
    def _glance(self) -> int:
        """Steps of a descent that is watched."""
        return min(self.planned, max(SHORTEST, round(_OBSERVED * self.laboratory.budget)))

    def _observed(self, part: float = 1.0) -> Examination:
        """The program as it is by now, watched for a part of its length, or until it does well."""
        exam = Examination(self.case, self.tried.remedies)
        rows = batch_of(self.case.recipe, self.case) / batch_of(exam.program.recipe, self.case)
        steps = round(max(min(SHORTEST, self._glance), part * self._glance) * max(1.0, rows))
        exam.observed = self.laboratory.observe(exam.program, steps, partial(self._enough, exam))
        if self._is_misread(exam):
            self.case.yardstick, self.case.reference = Yardstick("other"), None
            return self._observed(part)
        if exam.observed.error:
            self.notes.append(f"the program stops with an error: {exam.observed.error.splitlines()[0]}")
        if self.tried.kept:
            self.tried.healed, self.tried.healed_in = level(exam), exam.observed.steps
            self.tried.unsure = False
        else:
            self.tried.control, self.tried.control_in = level(exam), exam.observed.steps
        return exam

    def _seen_longer(self, exam: Examination) -> Examination:
        """A program that learned nothing in the part of its run that was watched, watched for as long as can be.

        Some begin late. What was supposed of the shorter part counts only where it is still to be seen.
        """
        seen, price = exam.observed, self.laboratory.price(exam.program.recipe)
        steps = min(self.planned, int(self.laboratory.left / price))
        if seen is None or seen.error or steps < _LONGER * seen.steps:
            return exam
        said, self.tried.kept = self.tried.kept, []
        exam = self._observed(steps / self._glance)
        still = {suspicion.cause for suspicion in suspicions(exam)}
        self.tried.kept = [kept for kept in said if kept.suspicion.cause in still]
        self.tried.doubted = [(s, trial) for s, trial in self.tried.doubted if trial is not None or s.cause in still]
        self.tried.rejected = [item for item in self.tried.rejected if item.trial is not None or item.cause in still]
        return exam

    def _is_misread(self, exam: Examination) -> bool:
        """Whether a program whose answers the yardstick sees nothing in has learned most of what its loss asks for.

        Of numbers it may see something in one of several that are none of the answer, such as the sine of an angle.
        """
        seen, work = exam.observed, self.case.yardstick.work
        little = _MOSTLY if work == "regression" else LEARNS
        if seen is None or seen.start is None or seen.score >= little or work == "other":
            return False
        if not answers_are_of_their_rows(exam):
            return False
        variant = program(replace(self.case, yardstick=Yardstick("other")), self.tried.remedies)
        return Scores().of(seen.start.objective, variant, variant.held)[0] >= _MOSTLY + max(0.0, seen.score)

    def _enough(self, exam: Examination, seen: Observation) -> bool:
        """Whether a program does so well that no more need be seen of it: as given, from half of its run on; as
        mended, where it does no worse than as given.

        Where ``fit`` keeps the best weights, it can do no worse by the end than it did on the way.
        """
        step, last, _ = seen.looks[-1]
        score = kept_of(seen.looks, self.case, last)
        if exam.kept:
            return self.tried.well(exam, score) and score >= (self.tried.control or 0.0)
        return self.case.valid is not None and 2 * step >= self.planned and self.tried.as_good(exam, score)

    def _may_be_short(self, exam: Examination) -> bool:
        """Whether it is behind a classical learner; or far from perfect, where nobody knows what is possible."""
        unknown = exam.reference.possible is None
        return not self.tried.is_healthy(exam) or (unknown and self.tried.level < _FAR)

    def _may_have_more(self, exam: Examination) -> bool:
        """Whether what was mended is far from perfect, and has another likely fault that was not tried yet, or is
        clearly better than a classical learner: nobody knows how far a network can get.

        One that nothing is wrong with is not searched like this: there is always something to gain.
        """
        reference = exam.reference.possible
        if self.tried.level >= _FAR or (reference is not None and reference >= _FAR):
            return False
        unknown = reference is None or self.tried.level >= reference + ENOUGH
        return unknown or any(trial is None and s.strength >= _LIKELY for s, trial in self.tried.doubted)

    def _leave_out_what_is_gone(self, exam: Examination) -> None:
        """How a program fits its rows is of another fault's making where nothing of it is seen once that is mended."""
        fits = [kept for kept in self.tried.kept if kept.suspicion.cause in CAUSES["fit"] and kept.remedy is None]
        if not fits or not exam.kept or exam.kept != self.tried.remedies:
            return
        seen = {suspicion.cause for suspicion in suspicions(exam)}
        for kept in fits:
            if kept.suspicion.cause not in seen:
                self.tried.kept.remove(kept)
                self.tried.reject(kept.suspicion, kept.trial, "not seen any more once the others are mended")

    def _renew(self) -> None:
        """Let what was mended and falls short have as much spent on it as a program that nothing was tried on."""
        self.laboratory.budget += max(0.0, self.anew - self.laboratory.left)

    def _holds_nothing(self, exam: Examination) -> bool:
        """Whether neither the program nor a classical learner gets anything from the data."""
        if exam.observed is not None and exam.observed.error:
            return False
        reference = exam.reference.possible
        nothing = self.tried.level < LEARNS and reference is not None and reference < LEARNS
        return nothing and not answers_are_of_their_rows(exam)

    @property
    def _shown(self) -> bool:
        """Whether a finding leaves no doubt, or rests on a trial, and not on what was seen alone."""
        return any(kept.trial is not None or kept.suspicion.proof for kept in self.tried.kept)

    def _outcome(self, exam: Examination) -> Outcome:
        nothing = self._holds_nothing(exam)
        if self._shown or (self.tried.kept and not nothing):
            return "faulty"
        if self.tried.is_healthy(exam):
            return "healthy"
        return "limit_of_data" if nothing else "undecided"

    def _written(self, verdict: Outcome) -> Report:
        scaled = any(kept.suspicion.cause in _UNITS for kept in self.tried.kept)
        findings = [_finding(kept) for kept in sorted(self.tried.kept, key=partial(_rank, scaled=scaled))]
        readings = [other for kept in self.tried.kept if (other := _otherwise(kept, self.tried.kept_causes))]
        findings += {other.cause: other for other in reversed(readings)}.values()
        exam = Examination(self.case)
        return Report(
            verdict,
            tuple(findings),
            tuple(self.tried.rejected),
            control=self.tried.control,
            control_in=self.tried.control_in,
            healed=self.tried.healed,
            healed_in=self.tried.healed_in,
            metric=self.case.yardstick.name,
            reference=exam.reference.possible,
            cost_steps=math.ceil(self.laboratory.spent),
            planned=self.planned,
            notes=(*self.notes, *(f"could not be looked at: {name} ({why})" for name, why in self.case.failed.items())),
        )


def _merged(found: Sequence[Suspicion]) -> list[Suspicion]:
    """One suspicion a cause: the strongest, with what all of them saw."""
    by_cause: dict[str, Suspicion] = {}
    for suspicion in found:
        other = by_cause.get(suspicion.cause)
        if other is None:
            by_cause[suspicion.cause] = suspicion
            continue
        first, second = sorted((suspicion, other), key=lambda s: (-s.proof, -s.strength))
        evidence = (*first.evidence, *(item for item in second.evidence if item not in first.evidence))
        by_cause[suspicion.cause] = replace(first, evidence=evidence)
    return list(by_cause.values())


def _finding(kept: Kept) -> Finding:
    suspicion, trial = kept.suspicion, kept.trial
    helped = kept.proven and trial is not None and trial.effect > 0
    if suspicion.proof:
        confidence = _SURE if helped or suspicion.blocks else _PROVEN
    else:
        steep = _TRIED[0] * suspicion.strength - _TRIED[1]
        decided = helped and trial is not None and trial.effect >= DECISIVE * (1 - fmean(trial.without))
        confidence = min(_PROVEN, max(_DECIDED if decided else 0.3, steep)) if helped else _UNTRIED * suspicion.strength
    advice = suspicion.advice
    if not advice and kept.remedy is None and trial is None and suspicion.remedies:
        advice = f"Not tried within the budget: {suspicion.remedies[0].title}."
    return Finding(
        suspicion.cause,
        suspicion.severity,
        min(0.99, confidence),
        suspicion.evidence,
        suspicion.explanation,
        trial,
        kept.remedy,
        advice,
    )


def _otherwise(kept: Kept, known: set[str]) -> Finding | None:
    """The other reading of what was seen, where a cause has one that is not among the findings."""
    suspicion = kept.suspicion
    if suspicion.otherwise is None or suspicion.otherwise[0] in known:
        return None
    cause, why = suspicion.otherwise
    sure = _OTHERWISE * _finding(kept).confidence
    return Finding(cause, suspicion.severity, sure, suspicion.evidence, why, instead_of=suspicion.cause)


def _rank(kept: Kept, *, scaled: bool) -> tuple[float, ...]:
    """What keeps a program from running first, then what leaves no doubt, then what gains most.

    What may follow from another fault comes after it, as does how rows are fitted. A step that is too long or too short
    comes after units that no step suits (``scaled``: they are among the findings); of equals it comes last, as
    something else may have made it so.
    """
    suspicion, trial = kept.suspicion, kept.trial
    effect = trial.effect if trial is not None else 0.0
    of_step = suspicion.cause in CAUSES["step"]
    of_fit = suspicion.cause in ("overfitting", "underfitting") and not suspicion.blocks
    follows = suspicion.follows or (of_step and scaled)
    likely = not suspicion.blocks, of_fit, not suspicion.proof, not kept.proven, follows
    return *likely, -round(effect, 1), of_step, -suspicion.strength
