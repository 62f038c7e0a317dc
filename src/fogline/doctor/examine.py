"""Observe, suppose, intervene, verify, and again: the examination of one program."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import torch
from torch import nn

from fogline.descent.objective import Objective
from fogline.descent.prepare import as_asked, operations_of
from fogline.descent.randomness import Surroundings
from fogline.doctor.bench import (
    AS_GOOD,
    ENOUGH,
    PLAINLY,
    Bench,
    Pair,
    compatible,
    edits,
    lengthens,
    times_longer,
)
from fogline.doctor.case import CPU, FAILURES, Case, open_case
from fogline.doctor.causes import suspicions
from fogline.doctor.examination import Examination
from fogline.doctor.finding import CAUSES, Finding, Remedy, Suspicion, Trial
from fogline.doctor.remedies import usual
from fogline.doctor.report import Outcome, Rejected, Report
from fogline.doctor.standing import level, standing
from fogline.doctor.trial import SEEDS, Laboratory, planned_steps
from fogline.task import Task

FLOOR = 3000
"""Steps that may be spent on a program whose steps cost next to nothing, however short its run is."""
_CHEAP = 5e6  # floating-point operations of a forward pass of a batch: a step takes about half a millisecond
_OBSERVED = 0.3  # of the budget: the control's own descent, and again one of the same length with what helped
_SHORTEST, _MOST_AT_ONCE = 20, 6
_GOOD = 0.9
_LEARNS = 0.1  # a score above which a program does learn something
_BEHIND = 0.15  # twice as far behind a classical learner as any healthy program of the calibration half was seen to be
_LIKELY = 0.5  # a suspicion that is said although it could not be tried
# Confidence: how often findings of each kind named a planted cause on the calibration half of benchmarks/faults.
_SURE, _PROVEN = 0.97, 0.95
_TRIED = 1.9, 0.42  # times the strength of the suspicion, less this, where a trial was won
_GUESSES = 2
_DECISIVE = 0.5  # of the distance that was left, closed in a short trial
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
            more (3,000 steps of a small model); 0 looks at one batch only and trains nothing.

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
    doctor = _Doctor(case, Laboratory(case, budget * max(planned, _floor(case)), check), planned)
    return doctor.report(tries=budget > 0)


def _floor(case: Case) -> int:
    """Steps that take but a second or two: by rule and not by the clock, so that two examinations say the same."""
    operations = 2.0 * case.batch_size * sum(p.numel() for p in case.new_model().parameters())
    with suppress(*FAILURES):  # what fails here is told later
        operations = max(operations, operations_of(Objective(case.new_model(), case.loss), case.batch))
    return round(FLOOR * min(1.0, _CHEAP / max(1.0, operations)))


@dataclass
class _Kept:
    """A cause that was accepted, with its remedy and the trial that was made; ``proven`` if that was won."""

    suspicion: Suspicion
    remedy: Remedy | None
    trial: Trial | None
    proven: bool = True


@dataclass
class _Doctor:
    """One examination as it goes on."""

    case: Case
    laboratory: Laboratory
    planned: int
    kept: list[_Kept] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    doubted: list[tuple[Suspicion, Trial | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    control: float | None = None
    healed: float | None = None
    healed_in: int = 0
    _benches: dict[tuple[int, tuple[Remedy, ...], int], Bench] = field(default_factory=dict)

    @property
    def remedies(self) -> tuple[Remedy, ...]:
        return tuple(kept.remedy for kept in self.kept if kept.remedy is not None)

    def report(self, *, tries: bool) -> Report:
        first = self._unblocked()
        if first is None:
            return self._written("faulty")
        if not tries:
            for suspicion in first:
                self._take(suspicion, None, None)
            return self._written("faulty" if any(s.proof for s in first) else "undecided")
        exam = self._observed()
        self._verify(exam, _merged([*first, *suspicions(exam)]))
        rounds = [len(self.kept)]
        if self.remedies and not self._does_well(exam) and self.laboratory.left >= self._glance:
            exam = self._observed()
            if not self._does_well(exam):
                self._verify(exam, _merged([*self._hidden(), *suspicions(exam)]))
                rounds.append(len(self.kept))
        if exam.kept == self.remedies and not self._is_healthy(exam) and self.laboratory.left > 0:
            self._verify(exam, self._usual(exam))
            rounds.append(len(self.kept))
        if len({count for count in rounds if count}) > 1:
            self._minimal_again(exam)
        outcome = self._outcome(exam)
        if outcome == "undecided":
            self._guess()
            return self._written(self._outcome(exam))
        lacking = [pair for pair in self.doubted if pair[0].of_data]
        if outcome == "healthy" and lacking:
            self._say_untried(lacking)
            return self._written("limit_of_data")
        return self._written(outcome)

    def _hidden(self) -> list[Suspicion]:
        """What one batch shows of the remedied program: most programs have more than one fault."""
        return [s for s in suspicions(Examination(self.case, self.remedies)) if s.cause not in self._known]

    def _usual(self, exam: Examination) -> list[Suspicion]:
        """What may help any program that is short of what is possible."""
        mended = Examination(self.case, self.remedies, exam.observed)
        return [s for s in usual(mended, self.laboratory) if s.cause not in self._kept_causes]

    @property
    def _kept_causes(self) -> set[str]:
        return {kept.suspicion.cause for kept in self.kept}

    @property
    def _known(self) -> set[str]:
        return self._kept_causes | {item.cause for item in self.rejected}

    def _unblocked(self) -> list[Suspicion] | None:
        """Mend what keeps the program from being run at all; what else one batch shows. None where it stays so."""
        for _ in range(4):
            found = list(suspicions(Examination(self.case, self.remedies)))
            blocking = [s for s in found if s.blocks]
            if not blocking:
                return found
            new = [s for s in blocking if s.cause not in self._kept_causes]
            for suspicion in new:
                self._take(suspicion, next(iter(suspicion.remedies), None), None)
            if not new or not all(s.remedies for s in new):
                return None
        return None

    @property
    def _glance(self) -> int:
        """Steps of a descent that is watched."""
        return min(self.planned, max(_SHORTEST, round(_OBSERVED * self.laboratory.budget)))

    def _observed(self) -> Examination:
        """The program as it is by now, watched for a part of its length."""
        exam = Examination(self.case, self.remedies)
        exam.observed = self.laboratory.observe(exam.program, self._glance)
        if exam.observed.error:
            self.notes.append(f"the program stops with an error: {exam.observed.error.splitlines()[0]}")
        if self.kept:
            self.healed, self.healed_in = level(exam), self._glance
        else:
            self.control = level(exam)
        return exam

    def _verify(self, exam: Examination, supposed: Sequence[Suspicion]) -> None:
        """Try what was supposed: what leaves no doubt first, and the rest only where that was of no avail.

        Else the rest is looked for again in what was mended: most symptoms are of another fault's making.
        """
        supposed = [s for s in supposed if s.cause not in self._kept_causes]
        if self._as_good_as_it_gets(exam):
            for suspicion in supposed:
                if not suspicion.proof:
                    self._reject(suspicion, None, "not tried: the program does as well as can be expected")
            supposed = [s for s in supposed if s.proof]
        able = (s for s in supposed if s.remedies and not lengthens(s, self.case))
        pool = sorted(able, key=lambda s: (-s.proof, -s.strength))
        rest = [s for s in supposed if s not in pool]
        pool, later = pool[:_MOST_AT_ONCE], pool[_MOST_AT_ONCE:]
        for suspicion in later:
            if not suspicion.proof:
                self._reject(suspicion, None, "not tried: others were more likely")
        if pool and not self._sure_alone(exam, pool):
            self._try(exam, pool)
        for suspicion in rest:
            if suspicion.proof or exam.kept == self.remedies:  # else it is looked for again in what was mended
                self._said(exam, suspicion)

    def _sure_alone(self, exam: Examination, pool: list[Suspicion]) -> bool:
        """Whether the remedies of what leaves no doubt win a trial without those of what is only likely."""
        sure = [s for s in pool if s.proof]
        if not sure or len(sure) == len(pool):
            return False
        return self._wins(exam, compatible(sure), self._horizon(exam, len(pool)))

    def _try(self, exam: Examination, pool: list[Suspicion]) -> None:
        """All together, since faults hide one another; where that fails, one after another."""
        steps = self._horizon(exam, len(pool))
        if self._as_good_as_it_gets(exam):  # only that the remedies of proofs do no harm is to be seen
            steps = max(_SHORTEST, steps // 4)
        before = len(self.kept)
        if not self._together(exam, pool, steps):
            self._one_by_one(exam, pool, steps)
        if len(self.kept) == before and not self._does_well(exam):
            self._in_the_long_run(exam, compatible(pool)[:1], steps)

    def _said(self, exam: Examination, suspicion: Suspicion) -> None:
        """A cause that no trial of the same length can show: it is said where the program falls short."""
        remedy = next(iter(suspicion.remedies), None)
        if suspicion.proof:
            self._take(suspicion, remedy, None)
            return
        trial, why = None, ""
        if suspicion.cause in self._known or self._does_well(exam):
            why = "not needed: the program does well"
        else:
            trial = None if remedy is None else self._longer(exam, remedy)
            if trial is not None and not trial.accepted:
                why = f"no clear gain: {trial}"
            elif trial is None and (suspicion.strength < _LIKELY or self._is_healthy(exam)):
                why = "not tried: the budget does not allow a longer run"
        if why:
            self._reject(suspicion, trial, why)
            return
        if trial is not None:
            self.healed, self.healed_in = fmean(trial.with_it), trial.steps
        self._take(suspicion, remedy, trial)

    def _longer(self, exam: Examination, remedy: Remedy) -> Trial | None:
        """A trial of a longer run against the run as it is, both in full; None where that cannot be afforded."""
        times = times_longer(remedy, self.case)
        cost = len(SEEDS) * self.planned * (1 + times)
        if times <= 1 or cost > self.laboratory.left:
            return None
        return self._bench(exam, self.planned).between([remedy], (), remedy.title)

    @property
    def _level(self) -> float:
        """Score of the program as it is by now."""
        level = self.healed if self.healed is not None else self.control
        return -1.0 if level is None else level

    def _as_good_as_it_gets(self, exam: Examination) -> bool:
        """Whether no trial could show a gain worth a word."""
        reference = exam.reference.score
        best = 1 - ENOUGH if reference is None else min(1 - ENOUGH, max(_GOOD, reference - ENOUGH / 2))
        return self._level >= best

    def _does_well(self, exam: Examination) -> bool:
        """Whether nothing need be looked for any more: it is near perfect, or as good as a classical learner.

        Where that learner finds little a network may find more, and must be clearly better to be left in peace.
        """
        level, reference = self._level, exam.reference.score
        if reference is None:
            return level >= 1 - ENOUGH
        return level >= _LEARNS and level >= min(1 - ENOUGH, reference + (-ENOUGH if reference > 0.5 else ENOUGH))

    def _together(self, exam: Examination, pool: list[Suspicion], steps: int) -> bool:
        """All remedies at once, then with a measured rate as well: what was mended may want another one."""
        chosen = compatible(pool)
        if len(chosen) < 2 and any(remedy.place == "rate" for _, remedy in chosen):
            return False
        for group in self._with_rate(exam, chosen):
            if self._wins(exam, group, min(steps, self._horizon(exam, len(group)))):
                return True
            if self._does_well(exam):
                return False
        return self._in_the_long_run(exam, group, steps)

    def _wins(self, exam: Examination, group: list[Pair], steps: int) -> bool:
        """Whether remedies together win a trial, a short one or a long one; what of them is needed is kept then."""
        benches = self._rungs(exam, steps)
        for bench in benches:
            if not bench.affords(edits(group)):
                return False
            trial = bench.against_control(edits(group))
            if self._won(benches, bench, trial) and bench.holds(trial, edits(group)):
                # In a short trial whatever learns faster seems needed: parts are left out in a long one.
                longest = benches[-1] if len(group) > 1 and benches[-1].affords(edits(group)) else bench
                self._minimal(longest, group, longest.against_control(edits(group), every_seed=True))
                return True
        return False

    def _rungs(self, exam: Examination, steps: int) -> list[Bench]:
        """Benches for a short trial and a long one: where the short one is decisive the long one is saved."""
        lengths = [length for length in (steps // 4, steps) if length >= _SHORTEST]
        return [self._bench(exam, length) for length in lengths]

    def _bench(self, exam: Examination, steps: int) -> Bench:
        """One for each length, so that what was run there for the control is not run again."""
        key = (id(exam), self.remedies, steps)
        if key not in self._benches:
            margin = max(PLAINLY if self._is_healthy(exam) else ENOUGH, standing(exam).error)
            self._benches[key] = Bench(self.laboratory, exam, self.remedies, steps, margin=margin)
        return self._benches[key]

    @staticmethod
    def _won(benches: list[Bench], bench: Bench, trial: Trial) -> bool:
        """Whether a trial is won, on a short bench by so much that a longer one is not needed."""
        room = 1 - fmean(trial.without)
        return trial.accepted and (bench is benches[-1] or trial.effect >= _DECISIVE * room)

    def _in_the_long_run(self, exam: Examination, group: list[Pair], steps: int) -> bool:
        """Remedies for as long as what is left of the budget allows: some programs take long to show anything."""
        observed = exam.observed
        longer = int(self.laboratory.left / (len(SEEDS) * (2 + (len(group) if len(group) > 1 else 0))))
        if observed is None or min(longer, observed.steps) <= steps:
            return False
        bench = self._bench(exam, min(longer, observed.steps))
        trial = bench.against_control(edits(group))
        if trial.accepted:
            causes = {suspicion.cause for suspicion, _ in group}
            self.rejected = [item for item in self.rejected if item.cause not in causes]
            self._minimal(bench, group, trial)
        return trial.accepted

    def _with_rate(self, exam: Examination, chosen: list[Pair]) -> Iterator[list[Pair]]:
        yield chosen
        if not any(remedy.place == "rate" for _, remedy in chosen):
            mended = Examination(self.case, (*self.remedies, *edits(chosen)), exam.observed)
            rates = [(s, s.remedies[0]) for s in usual(mended, self.laboratory)]
            if rates:
                yield [*chosen, *rates]

    def _one_by_one(self, exam: Examination, pool: list[Suspicion], steps: int) -> None:
        """Each on its own, the likeliest first; what helps is kept, and the others are tried beside it."""
        benches, left = self._rungs(exam, steps), list(pool)
        for suspicion in pool:
            before = len(self.remedies)
            self._alone(benches, suspicion)
            left.remove(suspicion)
            if len(self.remedies) > before:
                benches = self._rungs(exam, steps)
                if self._does_well(exam):
                    break
        for suspicion in left:
            if suspicion.proof:
                self._take(suspicion, None, None)
            else:
                self._reject(suspicion, None, "not tried: another cause explains it")

    def _horizon(self, exam: Examination, count: int) -> int:
        """Steps of a trial: what the budget allows for the control, all together, and each left out."""
        observed = exam.observed.steps if exam.observed is not None else self.planned
        affordable = (self.laboratory.left - observed) / (len(SEEDS) * (2 + count))
        return max(_SHORTEST, min(int(affordable), observed))

    def _minimal(self, bench: Bench, chosen: list[Pair], whole: Trial) -> None:
        """Leave out each part, what may follow from others and what is least likely first; what is not missed goes."""
        needed, shown = list(chosen), {suspicion.cause: whole for suspicion, _ in chosen}
        for part in sorted(chosen, key=_missed_least):
            without = [pair for pair in needed if pair is not part]
            if not without:
                break
            trial = bench.between(edits(needed), edits(without), part[1].title)
            gained = min(whole.effect, max(0.0, fmean(whole.with_it)))  # scores below none at all are no scale
            missed = trial.effect >= max(AS_GOOD * gained, ENOUGH / 2) and trial.effect > trial.error
            if missed or (part[0].proof and not part[1].costs and trial.effect >= -ENOUGH):
                shown[part[0].cause] = trial
                continue
            needed = without
            if part[0].proof:
                self._take(part[0], None, trial)
            else:
                self._reject(part[0], trial, f"not needed beside the others: {trial}")
        self.healed, self.healed_in = fmean(bench.scores(edits(needed))), bench.steps
        if len(needed) == 1 < len(chosen) and shown[needed[0][0].cause] is whole:  # both were run already
            shown[needed[0][0].cause] = bench.against_control(edits(needed), every_seed=True)
        for suspicion, remedy in needed:
            self._take(suspicion, remedy, shown[suspicion.cause])

    def _minimal_again(self, exam: Examination) -> None:
        """What later rounds kept may make needless what earlier ones did."""
        pairs = [(kept.suspicion, kept.remedy) for kept in self.kept if kept.remedy is not None and kept.trial]
        if len(pairs) < 2:
            return
        chosen = [(suspicion, remedy) for suspicion, remedy in pairs if remedy is not None]
        before = self.kept
        self.kept = [kept for kept in before if (kept.suspicion, kept.remedy) not in pairs]
        bench = self._bench(exam, self._horizon(exam, len(chosen)))
        whole = bench.against_control(edits(chosen)) if bench.affords(edits(chosen)) else None
        if whole is not None and whole.accepted:
            self._minimal(bench, chosen, whole)
        else:
            self.kept = before

    def _alone(self, benches: list[Bench], suspicion: Suspicion) -> None:
        tried: list[Trial] = []
        for remedy in suspicion.remedies:
            trial = None
            for bench in benches:
                if not bench.affords([remedy]):
                    break
                trial = bench.against_control([remedy], every_seed=suspicion.proof and bench is benches[-1])
                if self._won(benches, bench, trial) and bench.holds(trial, [remedy]):
                    self.healed, self.healed_in = fmean(trial.with_it), bench.steps
                    self._take(suspicion, remedy, trial)
                    return
            if trial is None:
                continue
            tried.append(trial)
            if suspicion.proof and benches[-1].suffices(trial, remedy):
                self._take(suspicion, remedy, trial)
                return
        best = max(tried, key=lambda trial: (len(trial.seeds), trial.effect), default=None)
        if suspicion.proof:
            self._take(suspicion, None, best)
            return
        why = "not tried: the budget is spent" if best is None else f"no clear gain: {best}"
        self._reject(suspicion, best, why)

    def _reject(self, suspicion: Suspicion, trial: Trial | None, why: str) -> None:
        self.doubted.append((suspicion, trial))
        self.rejected.append(Rejected(suspicion.cause, trial, why))

    def _guess(self) -> None:
        """A program that does not learn has a fault: what is likeliest is said, although no trial could show it."""
        likely = sorted(self.doubted, key=lambda pair: -pair[0].strength)[:_GUESSES]
        self._say_untried([pair for pair in likely if pair[0].strength >= _LIKELY])

    def _say_untried(self, supposed: Sequence[tuple[Suspicion, Trial | None]]) -> None:
        """Findings that no trial has shown."""
        for suspicion, trial in supposed:
            if suspicion.cause not in self._kept_causes:
                helps = trial is not None and trial.effect > 0
                named = trial.intervention if trial is not None else ""
                remedy = next((r for r in suspicion.remedies if helps and r.title == named), None)
                self.kept.append(_Kept(suspicion, remedy, trial, proven=False))
                self.rejected = [item for item in self.rejected if item.cause != suspicion.cause]

    def _take(self, suspicion: Suspicion, remedy: Remedy | None, trial: Trial | None) -> None:
        self.kept.append(_Kept(suspicion, remedy, trial))

    def _outcome(self, exam: Examination) -> Outcome:
        reference = exam.reference.score
        nothing = self._level < _LEARNS and reference is not None and reference < _LEARNS
        if any(kept.trial is not None or kept.suspicion.proof for kept in self.kept) or (self.kept and not nothing):
            return "faulty"
        if self._is_healthy(exam):
            return "healthy"
        return "limit_of_data" if nothing else "undecided"

    def _is_healthy(self, exam: Examination) -> bool:
        """Whether it learns, and about as well as a classical learner: what one gets a sound network gets too."""
        reference = exam.reference.score
        return self._level >= _LEARNS and (reference is None or self._level >= reference - _BEHIND)

    def _written(self, verdict: Outcome) -> Report:
        findings = [_finding(kept) for kept in sorted(self.kept, key=_rank)]
        exam = Examination(self.case)
        return Report(
            verdict,
            tuple(findings),
            tuple(self.rejected),
            control=self.control,
            healed=self.healed if self.healed_in >= self._glance else None,
            metric=self.case.yardstick.name,
            reference=exam.reference.score,
            cost_steps=math.ceil(self.laboratory.spent),
            planned=self.planned,
            notes=tuple(self.notes),
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


def _finding(kept: _Kept) -> Finding:
    suspicion, trial = kept.suspicion, kept.trial
    helped = kept.proven and trial is not None and trial.effect > 0
    if suspicion.proof:
        confidence = _SURE if helped or suspicion.blocks else _PROVEN
    else:
        steep = _TRIED[0] * suspicion.strength - _TRIED[1]
        confidence = min(_PROVEN, max(0.3, steep)) if helped else _UNTRIED * suspicion.strength
    return Finding(
        suspicion.cause,
        suspicion.severity,
        min(0.99, confidence),
        suspicion.evidence,
        suspicion.explanation,
        trial,
        kept.remedy,
        suspicion.advice,
    )


def _missed_least(part: Pair) -> tuple[float, ...]:
    """In which order remedies are left out."""
    suspicion, remedy = part
    return suspicion.proof, not suspicion.follows, remedy.place != "rate", suspicion.strength


def _rank(kept: _Kept) -> tuple[float, ...]:
    """What keeps a program from running first, then what leaves no doubt, then what gains most.

    What may follow from another fault comes after it. Of equals, a step that is too long or too short comes last:
    something else may have made it so.
    """
    suspicion, trial = kept.suspicion, kept.trial
    effect = trial.effect if trial is not None else 0.0
    of_step = suspicion.cause in CAUSES["step"]
    likely = not suspicion.blocks, not suspicion.proof, not kept.proven, suspicion.follows
    return *likely, -round(effect, 1), of_step, -suspicion.strength
