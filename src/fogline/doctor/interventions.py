"""Intervene and verify: what is tried on a program, and when; and what of it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from fogline.doctor.bench import ENOUGH, compatible, edits, lengthens, still_gains, times_longer
from fogline.doctor.books import LIKELY, Kept
from fogline.doctor.examination import Examination
from fogline.doctor.finding import CAUSES, Remedy, Suspicion, Trial
from fogline.doctor.learning_curve import short_of_rows
from fogline.doctor.patience import stopped_early, waited
from fogline.doctor.standing import level
from fogline.doctor.trial import SEEDS
from fogline.doctor.trying import SHORTEST, Trying

_MOST_AT_ONCE = 6
_MOST = 0.5
"""Of what a remedy gains: a part of it that gains as much by itself is what was needed."""


class Interventions(Trying):
    """What is tried on one program, and what comes of it."""

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

    def count_rows(self, exam: Examination) -> None:
        """Say that rows are too few, where a part of them does so much worse that more would do better."""
        won = short_of_rows(exam, self.laboratory)
        if won is not None:
            self.take(won[0], None, won[1])

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
            trial = bench.against_control([remedy], promising=_MOST * won.effect / max(won.effect, 1 - won.without[0]))
            if trial.accepted and trial.effect >= _MOST * won.effect:
                self.reject(kept.suspicion, won, f"not needed beside the smaller edit {remedy.title!r}: {won}")
                self.kept = rest
                kept.suspicion, kept.remedy, kept.trial = self._turned(simple, remedy), remedy, trial
                self.kept = now
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
