"""Try remedies: all at once, one after another, in short descents before long ones; and what of them is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from fogline.doctor.bench import AS_GOOD, ENOUGH, PLAINLY, Bench, Pair, compatible, edits
from fogline.doctor.books import LIKELY, Books, Kept
from fogline.doctor.case import Case
from fogline.doctor.examination import Examination
from fogline.doctor.finding import CAUSES, Remedy, Suspicion, Trial
from fogline.doctor.remedies import measured_rate, usual
from fogline.doctor.standing import standing
from fogline.doctor.trial import SEEDS, Laboratory

SHORTEST = 20
"""Steps of a descent below which nothing is to be seen."""
DECISIVE = 0.5
"""Of the distance that was left, closed in a short trial."""


@dataclass(kw_only=True)
class Trying(Books):
    """How remedies are tried on one program.

    Attributes:
        case: the program under examination.
        laboratory: where descents are run and counted.
    """

    case: Case
    laboratory: Laboratory
    _benches: dict[tuple[int, tuple[Remedy, ...], int], Bench] = field(default_factory=dict)

    def take(self, suspicion: Suspicion, remedy: Remedy | None, trial: Trial | None) -> None:
        sure = trial is not None or suspicion.proof or suspicion.blocks
        self.kept.append(Kept(self._turned(suspicion, remedy), remedy, trial, proven=sure))
        self.rejected = [item for item in self.rejected if item.cause != self.kept[-1].suspicion.cause]

    def _turned(self, suspicion: Suspicion, remedy: Remedy | None) -> Suspicion:
        """A rate that was supposed too high is not, where the measured one that helps is higher still; nor too low.

        It is measured with what else was mended: steps may have been too long for the units of the data alone.
        """
        measured = remedy is not None and remedy.title == measured_rate().title
        if not measured or suspicion.cause not in ("lr_too_high", "lr_too_low"):
            return suspicion
        told = next(usual(Examination(self.case, self.remedies), self.laboratory), suspicion)
        return suspicion if told.cause == suspicion.cause else replace(told, strength=suspicion.strength)

    def _try(self, exam: Examination, pool: list[Suspicion]) -> None:
        """All together, since faults hide one another; where that fails, one after another."""
        steps = self._horizon(exam, len(pool))
        if self.as_good_as_it_gets(exam):  # only that the remedies of proofs do no harm is to be seen
            steps = max(SHORTEST, steps // 4)
        before = len(self.kept)
        if not self._together(exam, pool, steps):
            self._one_by_one(exam, pool, steps)
        if len(self.kept) == before and not self.does_well(exam):
            self._in_the_long_run(exam, compatible(pool)[:1], steps)

    def _together(self, exam: Examination, pool: list[Suspicion], steps: int) -> bool:
        """All remedies at once, then with a measured rate as well: what was mended may want another one."""
        chosen = compatible(pool)
        if len(chosen) < 2 and any(remedy.place == "rate" for _, remedy in chosen):
            return False
        for group in self._with_rate(exam, chosen):
            if self._wins(exam, group, min(steps, self._horizon(exam, len(group)))):
                return True
            if self.does_well(exam):
                return False
        return self._in_the_long_run(exam, group, steps)

    def _wins(self, exam: Examination, group: list[Pair], steps: int, *, briefly: bool = False) -> bool:
        """Whether remedies together win a trial, a short one or a long one; what of them is needed is kept then."""
        benches = self._rungs(exam, steps, of=len(group))
        for bench in benches[:-1] if briefly else benches:
            if not bench.affords(edits(group)):
                return False
            trial = bench.against_control(edits(group), promising=self._promising(benches, bench))
            if self._won(benches, bench, trial) and bench.holds(trial, edits(group), doubtful=self._doubtful(group)):
                # In a short trial whatever learns faster seems needed: parts are left out in a long one.
                longest = benches[-1] if len(group) > 1 and benches[-1].affords(edits(group)) else bench
                self._minimal(longest, group, longest.against_control(edits(group), every_seed=True))
                return True
        return False

    def _doubtful(self, group: Sequence[Pair]) -> bool:
        """Whether nothing is known to be wrong yet, and none of these causes is likely before any trial."""
        return not self.remedies and all(s.strength < LIKELY and not s.proof for s, _ in group)

    def _rungs(self, exam: Examination, steps: int, *, of: int) -> list[Bench]:
        """Benches for ever longer trials: where a short one is decisive the longer ones are saved.

        One remedy alone begins with the shortest; of several each must be left out again, for which that is too short.
        """
        shares = (8, 4) if of == 1 else (4,)
        lengths = [steps // share for share in shares if steps // share >= SHORTEST]
        return [self._bench(exam, length) for length in (*lengths, steps)]

    def _bench(self, exam: Examination, steps: int) -> Bench:
        """One for each length, so that what was run there for the control is not run again."""
        key = (id(exam), self.remedies, steps)
        if key not in self._benches:
            sound = self.is_healthy(exam)
            # Of what was mended it is known that something was wrong.
            least = ENOUGH if not sound else PLAINLY / 2 if self.remedies else PLAINLY
            margin = max(least, standing(exam).error)
            self._benches[key] = Bench(self.laboratory, exam, self.remedies, steps, margin=margin, sound=sound)
        return self._benches[key]

    @staticmethod
    def _promising(benches: Sequence[Bench], bench: Bench) -> float:
        """Share of the distance left that the first seed must close, if a short trial is to be decisive."""
        return 0.0 if bench is benches[-1] else DECISIVE / 2

    @staticmethod
    def _won(benches: Sequence[Bench], bench: Bench, trial: Trial) -> bool:
        """Whether a trial is won, on a short bench by so much that a longer one is not needed."""
        room = 1 - fmean(trial.without)
        return trial.accepted and (bench is benches[-1] or trial.effect >= DECISIVE * room)

    def _in_the_long_run(self, exam: Examination, group: list[Pair], steps: int) -> bool:
        """Remedies for as long as what is left of the budget allows: some programs take long to show anything."""
        observed = exam.observed
        longer = int(self.laboratory.left / (len(SEEDS) * (2 + (len(group) if len(group) > 1 else 0))))
        if observed is None or min(longer, observed.steps) <= steps:
            return False
        bench = self._bench(exam, min(longer, observed.steps))
        trial = bench.against_control(edits(group))
        won = bench.holds(trial, edits(group), doubtful=self._doubtful(group))
        if won:
            causes = {suspicion.cause for suspicion, _ in group}
            self.rejected = [item for item in self.rejected if item.cause not in causes]
            self._minimal(bench, group, trial)
        return won

    def _with_rate(self, exam: Examination, chosen: list[Pair]) -> Iterator[list[Pair]]:
        yield chosen
        has_one = any(remedy.place == "rate" for _, remedy in chosen)
        of_another_loss = any(remedy.on_loss for _, remedy in chosen)  # which wants a rate of its own in any case
        if not has_one and (of_another_loss or not self.is_healthy(exam)):
            mended = Examination(self.case, (*self.remedies, *edits(chosen)), exam.observed)
            rates = [(s, s.remedies[0]) for s in usual(mended, self.laboratory)]
            if rates:
                yield [*chosen, *rates]

    def _one_by_one(self, exam: Examination, pool: list[Suspicion], steps: int) -> None:
        """Each on its own, the likeliest first; what helps is kept, and the others are tried beside it."""
        benches, left = self._rungs(exam, steps, of=1), list(pool)
        for suspicion in pool:
            before = len(self.remedies)
            self._alone(benches, suspicion)
            left.remove(suspicion)
            if len(self.remedies) > before:
                benches = self._rungs(exam, steps, of=1)
                if self.does_well(exam):
                    break
        for suspicion in left:
            if suspicion.proof:
                self.take(suspicion, None, None)
            else:
                self.reject(suspicion, None, "not tried: another cause explains it")

    def _alone(self, benches: list[Bench], suspicion: Suspicion) -> None:
        tried: list[Trial] = []
        for remedy in suspicion.remedies:
            doubtful = self._doubtful([(suspicion, remedy)])
            trial = None
            for k, bench in enumerate(benches):
                if not bench.affords([remedy]):
                    # Won, but not so that it is decided: one descent in full has to do for three longer ones.
                    if (
                        trial is not None
                        and trial.accepted
                        and benches[k - 1].holds(trial, [remedy], doubtful=doubtful)
                    ):
                        self.healed, self.healed_in = fmean(trial.with_it), benches[k - 1].steps
                        self.take(suspicion, remedy, trial)
                        return
                    break
                promising, every_seed = self._promising(benches, bench), suspicion.proof and bench is benches[-1]
                trial = bench.against_control([remedy], promising=promising, every_seed=every_seed)
                if self._won(benches, bench, trial) and bench.holds(trial, [remedy], doubtful=doubtful):
                    self.healed, self.healed_in = fmean(trial.with_it), bench.steps
                    self.take(suspicion, remedy, trial)
                    return
            if trial is None:
                continue
            tried.append(trial)
            if suspicion.proof and benches[-1].suffices(trial, remedy):
                self.take(suspicion, remedy, trial)
                return
        if not tried and suspicion.proof:
            before = len(self.kept)
            tried += self._judged_by_what_was_run(benches[0], suspicion)
            if len(self.kept) > before:
                return
        best = max(tried, key=lambda trial: (len(trial.seeds), trial.effect), default=None)
        if suspicion.proof and not self._may_be_gone(suspicion):
            self.take(suspicion, None, best)
            return
        why = "not tried: the budget is spent" if best is None else f"no clear gain: {best}"
        self.reject(suspicion, best, why)

    def _judged_by_what_was_run(self, like: Bench, suspicion: Suspicion) -> list[Trial]:
        """The longest trial of each remedy alone, where the budget went into such before; one that suffices is kept."""
        trials = []
        for remedy in suspicion.remedies:
            here = (b for b in self._benches.values() if b.exam.kept == like.exam.kept and b.kept == like.kept)
            alike = [bench for bench in here if bench.ran([remedy])]
            if alike:
                bench = max(alike, key=lambda bench: bench.steps)
                trials.append(bench.against_control([remedy], every_seed=True))
                if trials[-1].effect >= 0 and bench.suffices(trials[-1], remedy):
                    self.take(suspicion, remedy, trials[-1])
                    break
        return trials

    def _may_be_gone(self, suspicion: Suspicion) -> bool:
        """Whether something else was mended: how rows are fitted is worth a word then where an edit of it helps."""
        return suspicion.cause in CAUSES["fit"] and bool(self.remedies)

    def _horizon(self, exam: Examination, count: int) -> int:
        """Steps of a trial: what the budget allows for the control, all together, and each left out."""
        observed = exam.observed.steps if exam.observed is not None else self.planned
        affordable = (self.laboratory.left - observed) / (len(SEEDS) * (2 + count))
        return max(SHORTEST, min(int(affordable), observed))

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
            slower = self._without_rate(bench, part, without) if missed else None
            if slower is not None:
                whole, needed = slower, without
                shown = {suspicion.cause: whole for suspicion, _ in chosen}
                self.reject(part[0], trial, "not needed beside the others: it is faster, and the run has the time")
                continue
            if missed or (part[0].proof and not part[1].costs and trial.effect >= -ENOUGH):
                shown[part[0].cause] = trial
                continue
            needed = without
            if part[0].proof and not self._may_be_gone(part[0]):
                self.take(part[0], None, trial)
            else:
                self.reject(part[0], trial, f"not needed beside the others: {trial}")
        self.healed, self.healed_in = fmean(bench.scores(edits(needed))), bench.steps
        self.unsure = bench.risen(edits(needed))
        if len(needed) == 1 < len(chosen) and shown[needed[0][0].cause] is whole:  # both were run already
            shown[needed[0][0].cause] = bench.against_control(edits(needed), every_seed=True)
        for suspicion, remedy in sorted(needed, key=lambda part: part[1].place == "rate"):
            self.take(suspicion, remedy, shown[suspicion.cause])

    def _without_rate(self, bench: Bench, part: Pair, others: list[Pair]) -> Trial | None:
        """The trial of the others, where a part is another rate and the run does as well as can be without it, in full.

        In a short trial another rate seems needed wherever it learns faster.
        """
        if part[0].proof or part[1].place != "rate":
            return None
        trial = bench.against_control(edits(others), every_seed=True)
        if not trial.accepted:
            return None
        steps = min(self.planned, int(self.laboratory.left))  # the given program may have been over soon
        return trial if self.as_good(bench.exam, bench.in_full(edits(others), steps)) else None


def _missed_least(part: Pair) -> tuple[float, ...]:
    """In which order remedies are left out."""
    suspicion, remedy = part
    return suspicion.proof, not suspicion.follows, remedy.place != "rate", suspicion.strength
