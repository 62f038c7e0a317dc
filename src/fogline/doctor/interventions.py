"""Intervene and verify: which of the supposed remedies help, and what of them is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from fogline.doctor.bench import (
    AS_GOOD,
    ENOUGH,
    PLAINLY,
    Bench,
    Pair,
    compatible,
    edits,
    lengthens,
    still_gains,
    times_longer,
)
from fogline.doctor.books import LIKELY, Books, Kept
from fogline.doctor.case import Case
from fogline.doctor.examination import Examination
from fogline.doctor.finding import CAUSES, Remedy, Suspicion, Trial
from fogline.doctor.patience import stopped_early, waited
from fogline.doctor.remedies import measured_rate, usual
from fogline.doctor.standing import level, standing
from fogline.doctor.trial import SEEDS, Laboratory

SHORTEST = 20
"""Steps of a descent below which nothing is to be seen."""
_MOST_AT_ONCE = 6
DECISIVE = 0.5
"""Of the distance that was left, closed in a short trial."""
MOST = 0.5
"""Of what a remedy gains: a part of it that gains as much by itself is what was needed."""


@dataclass(kw_only=True)
class Interventions(Books):
    """What is tried on one program, and what comes of it.

    Attributes:
        case: the program under examination.
        laboratory: where descents are run and counted.
        planned: steps of the whole run.
    """

    case: Case
    laboratory: Laboratory
    planned: int
    _benches: dict[tuple[int, tuple[Remedy, ...], int], Bench] = field(default_factory=dict)

    def verify(self, exam: Examination, supposed: Sequence[Suspicion]) -> None:
        """Try what was supposed: what leaves no doubt first, and the rest only where that was of no avail.

        Else the rest is looked for again in what was mended: most symptoms are of another fault's making.
        """
        supposed = [s for s in supposed if s.cause not in self.kept_causes]
        if self.as_good_as_it_gets(exam):
            for suspicion in supposed:
                if not suspicion.proof:
                    self.reject(suspicion, None, "not tried: the program does as well as can be expected")
            supposed = [s for s in supposed if s.proof]
        able = (s for s in supposed if s.remedies and not self._longer_than_a_trial(s))
        pool = sorted(able, key=lambda s: (-s.proof, -s.strength))
        rest = [s for s in supposed if s not in pool]
        pool, later = pool[:_MOST_AT_ONCE], pool[_MOST_AT_ONCE:]
        for suspicion in later:
            if not suspicion.proof:
                self.reject(suspicion, None, "not tried: others were more likely")
        before = len(self.kept)
        leads = [s for s in pool if s.proof] or [s for s in pool[:1] if s.strength >= LIKELY]
        if pool and not (0 < len(leads) < len(pool) and self.at_once(exam, leads)):
            self._try(exam, pool)
        for kept in self.kept[before:]:
            self._best_of(exam, kept)
            self._simplest_of(exam, kept)
        for suspicion in rest:
            if suspicion.proof or exam.kept == self.remedies:  # else it is looked for again in what was mended
                self._said(exam, suspicion)

    def at_once(self, exam: Examination, sure: Sequence[Suspicion]) -> bool:
        """Whether the remedies of what is surest win a short trial, without those of what is less likely."""
        group = compatible(sure)
        return self._wins(exam, group, self._horizon(exam, len(group)), briefly=not sure[0].proof)

    def _longer_than_a_trial(self, suspicion: Suspicion) -> bool:
        """Whether the remedy takes more steps than trials compare, which are of 20 where the run has fewer."""
        more = times_longer(suspicion.remedies[0], self.case) > 1
        return lengthens(suspicion, self.case) or (more and self.planned < SHORTEST)

    def ablate(self, exam: Examination, supposed: Sequence[Suspicion]) -> None:
        """Changes that nothing points to: which gains most is seen in short descents, and must win a trial."""
        supposed = [s for s in supposed if s.cause not in self.kept_causes]
        steps = int(self.laboratory.left / (len(SEEDS) * 3 + (1 + len(supposed)) / 2))
        observed = exam.observed.steps if exam.observed is not None else self.planned
        steps = min(steps, observed)
        if not supposed or steps < 2 * SHORTEST:
            return
        short, long = (self._bench(exam, count) for count in (steps // 2, steps))
        gains = [short.gain([s.remedies[0]]) for s in supposed]
        ranked = sorted(range(len(supposed)), key=lambda k: -gains[k])
        for k in ranked[:2]:
            remedy = supposed[k].remedies[0]
            if gains[k] < ENOUGH or not long.affords([remedy]):
                break
            trial = long.against_control([remedy])
            # What was mended may have been seen for a part of its run only, and have the rest of its way to go.
            least = still_gains(exam) + ENOUGH if self.remedies else ENOUGH
            if trial.accepted and trial.effect >= least and long.holds(trial, [remedy]):
                self.healed, self.healed_in = fmean(trial.with_it), long.steps
                self.take(supposed[k], remedy, trial)
                self._simplest_of(exam, self.kept[-1])
                return
            self.reject(supposed[k], trial, f"no clear gain: {trial}")

    def wider_guard(self, exam: Examination) -> bool:
        """Whether a wider guard does better than the one that a program needed to be run at all; it is kept then."""
        for kept in self.kept:
            others = [r for r in kept.suspicion.remedies if kept.remedy and r.place == kept.remedy.place == "domain"]
            if kept.trial is not None or len(others) < 2:
                continue
            now, self.kept = self.kept, [other for other in self.kept if other is not kept]
            bench = self._bench(exam, self._horizon(exam, 1))
            self.kept = now
            if bench.affords(others[:1]) and bench.affords(others[1:2]):
                trial = bench.between(others[1:2], others[:1], others[1].title, every_seed=False)
                if trial.effect > max(trial.error, ENOUGH) and len(trial.seeds) > 1:
                    kept.remedy = others[1]
                    return True
        return False

    def wait_longer(self, exam: Examination) -> bool:
        """Whether the run stops too early, and does better with a longer patience; it is kept then.

        The descent that was observed goes on where the run stops: it is that of the remedied program.
        """
        suspicion = None if "too_few_steps" in self.kept_causes else stopped_early(exam)
        if suspicion is None or exam.observed is None or exam.observed.stop is None:
            return False
        stop = exam.observed.stop
        won = waited(exam, self.laboratory, suspicion, sound=self.sound(exam, stop.score))
        if won is None:
            return False
        if not self.kept:
            self.control, self.control_in = stop.score, stop.step
        self.take(suspicion, *won)
        self.healed, self.healed_in = level(exam), exam.observed.steps
        return True

    def take(self, suspicion: Suspicion, remedy: Remedy | None, trial: Trial | None) -> None:
        sure = trial is not None or suspicion.proof or suspicion.blocks
        self.kept.append(Kept(self._turned(suspicion, remedy), remedy, trial, proven=sure))
        self.rejected = [item for item in self.rejected if item.cause != self.kept[-1].suspicion.cause]

    def _turned(self, suspicion: Suspicion, remedy: Remedy | None) -> Suspicion:
        """A rate that was supposed too high is not, where the measured one that helps is higher still; nor too low."""
        measured = remedy is not None and remedy.title == measured_rate().title
        if not measured or suspicion.cause not in ("lr_too_high", "lr_too_low"):
            return suspicion
        told = next(usual(Examination(self.case), self.laboratory), suspicion)
        return suspicion if told.cause == suspicion.cause else replace(told, strength=suspicion.strength)

    def minimal_again(self, exam: Examination) -> None:
        """What later rounds kept may make needless what earlier ones did."""
        pairs = [
            (kept.suspicion, kept.remedy)
            for kept in self.kept
            if kept.remedy is not None and kept.trial and kept.remedy.place != "patience"  # no trial stops early
        ]
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

    def _best_of(self, exam: Examination, kept: Kept) -> None:
        """The remedy that gains most of those of a cause, while the program falls short.

        What is wrong with a step or a layer is mended wholly or not at all. Of what rows lack each remedy gives back
        a part, and which one most depends on the rows; so it does how quiet a term of the loss must be.
        """
        best, won = kept.remedy, kept.trial
        rest = [other for other in self.kept if other is not kept]
        taken = {other.remedy.place for other in rest if other.remedy is not None}
        others = [r for r in kept.suspicion.remedies if r is not best and r.place not in taken]
        if best is None or won is None or not won.accepted or self.does_well(exam):
            return
        if kept.suspicion.cause not in (*CAUSES["data"], *CAUSES["fit"]) and best.place != "term":
            return
        now, self.kept = self.kept, rest
        bench = self._bench(exam, self._horizon(exam, 1))
        self.kept = now
        for other in others:
            if bench.steps < won.steps or not (bench.affords([best]) and bench.affords([other])):
                break
            trial = bench.between([other], [best], other.title, every_seed=False)
            best = other if len(trial.seeds) > 1 and trial.effect > max(trial.error, ENOUGH / 2) else best
        if best is not kept.remedy:
            kept.remedy, kept.trial = best, bench.against_control([best], every_seed=True)
            self.healed, self.healed_in = fmean(bench.scores([best])), bench.steps

    def _simplest_of(self, exam: Examination, kept: Kept) -> None:
        """A smaller edit that is a part of what the remedy does, where it closes most of the distance by itself."""
        won, rest = kept.trial, [other for other in self.kept if other is not kept]
        if won is None or not won.accepted or not kept.suspicion.simpler:
            return
        now, self.kept = self.kept, rest
        bench = self._bench(exam, won.steps)
        self.kept = now
        for simple in kept.suspicion.simpler:
            remedy = simple.remedies[0]
            if simple.cause in self.kept_causes or not bench.affords([remedy]):
                continue
            trial = bench.against_control([remedy], promising=MOST * won.effect / max(won.effect, 1 - won.without[0]))
            if trial.accepted and trial.effect >= MOST * won.effect:
                self.reject(kept.suspicion, won, f"not needed beside the smaller edit {remedy.title!r}: {won}")
                kept.suspicion, kept.remedy, kept.trial = simple, remedy, trial
                self.healed, self.healed_in = fmean(trial.with_it), trial.steps
                return

    def _said(self, exam: Examination, suspicion: Suspicion) -> None:
        """A cause that no trial of the same length can show: it is said where the program falls short."""
        remedy = next(iter(suspicion.remedies), None)
        if suspicion.proof:
            self.take(suspicion, remedy, None)
            return
        trial, why = None, ""
        if suspicion.cause in self.known or self.does_well(exam):
            why = "not needed: the program does well"
        elif any(kept.suspicion.proof and kept.remedy is None for kept in self.kept):
            why = "not tried: what leaves no doubt is to be mended first"
        else:
            remedy, trial = self._long_enough(exam, suspicion.remedies)
            if trial is not None and not trial.accepted:
                why = f"no clear gain: {trial}"
            elif trial is None and (suspicion.strength < LIKELY or self.is_healthy(exam)):
                why = "not tried: the budget does not allow a longer run"
        if why:
            self.reject(suspicion, trial, why)
            return
        if trial is not None:
            self.healed, self.healed_in = fmean(trial.with_it), trial.steps
        self.take(suspicion, remedy, trial)

    def _long_enough(self, exam: Examination, remedies: Sequence[Remedy]) -> tuple[Remedy | None, Trial | None]:
        """Of longer and longer runs the first that a longer one gains nothing on, and its trial."""
        kept: tuple[Remedy | None, Trial | None] = next(iter(remedies), None), None
        for remedy in remedies:
            trial = self._longer(exam, remedy)
            gained = trial is not None and (kept[1] is None or fmean(trial.with_it) > fmean(kept[1].with_it) + ENOUGH)
            if trial is None or not gained:
                break
            kept = remedy, trial
            hopeless = not trial.accepted and trial.effect <= trial.error
            if hopeless or fmean(trial.with_it) >= 1 - ENOUGH:
                break
        return kept

    def _longer(self, exam: Examination, remedy: Remedy) -> Trial | None:
        """A trial of a longer run against the run as it is, both in full; None where that cannot be afforded."""
        times = times_longer(remedy, self.case)
        bench = self._bench(exam, self.planned)
        if times <= 1 or not bench.affords([remedy]):
            return None
        return bench.between([remedy], (), remedy.title)

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
        if trial.accepted:
            causes = {suspicion.cause for suspicion, _ in group}
            self.rejected = [item for item in self.rejected if item.cause not in causes]
            self._minimal(bench, group, trial)
        return trial.accepted

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
        for suspicion, remedy in needed:
            self.take(suspicion, remedy, shown[suspicion.cause])

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


def _missed_least(part: Pair) -> tuple[float, ...]:
    """In which order remedies are left out."""
    suspicion, remedy = part
    return suspicion.proof, not suspicion.follows, remedy.place != "rate", suspicion.strength
