"""The bench: trials of one length over the same seeds, of a program with remedies and without them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from fogline.doctor.case import Case, program
from fogline.doctor.descended import Descended
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Remedy, Suspicion, Trial
from fogline.doctor.standing import LEARNS, level
from fogline.doctor.trial import CLEARLY, SEEDS, Laboratory, batch_of, compared, planned_steps

ENOUGH = 0.03
"""A score must differ by this much to be worth a word."""
PLAINLY = 0.1
"""And by this much where the program does about as well as a classical learner: there is always something to gain."""
AS_GOOD = 0.1
"""Of the effect of all remedies: a part whose removal loses less than this is not needed."""
_IN_FULL = 0.9  # of the planned steps
_LAST_BATCH = 1.5  # an epoch's last batch may be short: the same rows make a few more steps

Pair = tuple[Suspicion, Remedy]


@dataclass
class Bench:
    """Trials of one round against one control.

    Attributes:
        laboratory: where descents are run and counted.
        exam: the control, watched.
        kept: remedies that are part of the control by now.
        steps: of each descent.
        seeds: of first weights and order, the same for all.
        margin: what a trial must gain to be won.
        sound: whether the control does about as well as a classical learner: it is held to the score that was seen.
        runs: what was run so far, by the remedies added.
        wholes: scores of descents in full, by the remedies added and the steps.
    """

    laboratory: Laboratory
    exam: Examination
    kept: tuple[Remedy, ...]
    steps: int
    seeds: tuple[int, ...] = SEEDS
    margin: float = ENOUGH
    sound: bool = False
    runs: dict[tuple[str, ...], list[Descended]] = field(default_factory=dict)
    wholes: dict[tuple[tuple[str, ...], int], float] = field(default_factory=dict)

    def against_control(self, remedies: Sequence[Remedy], *, every_seed: bool = False, promising: float = 0.0) -> Trial:
        """Remedies against the program as it is by now; by default the first seed decides whether to go on."""
        title = "; ".join(remedy.title for remedy in remedies)
        return self.between(remedies, (), title, every_seed=every_seed, promising=promising)

    def between(
        self,
        first: Sequence[Remedy],
        second: Sequence[Remedy],
        title: str,
        *,
        every_seed: bool = True,
        promising: float = 0.0,
    ) -> Trial:
        """Two sets of remedies on the same seeds.

        Without ``every_seed`` a first that does not close more than ``promising`` of the distance left is not run on.
        """
        with_it, without = self._run(first, 1), self._run(second, 1)
        behind = with_it[0].score - without[0].score <= promising * (1 - without[0].score)
        count = 1 if behind and not every_seed else len(self.seeds)
        with_it, without = self._run(first, count), self._run(second, count)
        control = "the program as it is" if not second else "the same without it"
        trial = compared(
            first,
            control,
            with_it,
            without,
            seeds=self.seeds[:count],
            metric=self.exam.case.yardstick.name,
            steps=self.steps,
        )
        accepted = trial.accepted and count == len(self.seeds) and self.plain(trial, first)
        return replace(trial, intervention=title, accepted=accepted)

    def plain(self, trial: Trial, remedies: Sequence[Remedy]) -> bool:
        """Whether it gained the margin; or half of it, and the whole against the control's own descent in full.

        A program that runs away late does well for as long as a short trial lasts, and what is mended may still have
        some of its way to go then.
        """
        seen = self.exam.observed
        if trial.effect >= self.margin or seen is None or seen.steps < _IN_FULL * seen.planned:
            return trial.effect >= self.margin
        if trial.effect < self.margin / 2:
            return False
        whole = level(self.exam) + self.margin
        return fmean(trial.with_it) >= whole or (not self._covers and self.in_full(remedies) >= whole)

    def gain(self, remedies: Sequence[Remedy]) -> float:
        """What they gain on the first seed alone."""
        return self._run(remedies, 1)[0].score - self._run((), 1)[0].score

    def affords(self, remedies: Sequence[Remedy]) -> bool:
        """Whether the budget has room for a trial over every seed, and to leave each of several remedies out again."""
        needed: list[Sequence[Remedy]] = [(), remedies]
        if len(remedies) > 1:
            needed += [[other for other in remedies if other is not remedy] for remedy in remedies]
        return sum(self._cost(part) for part in needed) <= self.laboratory.left

    def ran(self, remedies: Sequence[Remedy]) -> bool:
        """Whether a trial of these remedies over every seed was run, and costs nothing to look at again."""
        return all(len(self.runs.get(_key(part), ())) >= len(self.seeds) for part in ((), remedies))

    def _cost(self, remedies: Sequence[Remedy]) -> float:
        """Of the descents that are missing for a trial of these remedies."""
        missing = max(0, len(self.seeds) - len(self.runs.get(_key(remedies), ())))
        recipe = program(self.exam.case, (*self.kept, *remedies)).recipe
        return missing * self._steps(remedies, self.steps) * self.laboratory.price(recipe)

    def _steps(self, remedies: Sequence[Remedy], steps: int) -> int:
        """As many as come of the rows that so many steps of the control read; more where a longer run is tried."""
        case, covers = self.exam.case, self._covers
        return round(steps * max((times_longer(r, case, of_rows=not covers) for r in remedies), default=1.0))

    def scores(self, remedies: Sequence[Remedy]) -> list[float]:
        """Scores of the remedied program, a seed each that was run."""
        self._run(remedies, 1)
        return [descended.score for descended in self.runs[_key(remedies)]]

    def risen(self, remedies: Sequence[Remedy]) -> bool:
        """Whether the held-out loss of the remedied program went up, of most seeds that were run."""
        runs = self.runs[_key(remedies)]
        return 2 * sum(descended.risen for descended in runs) > len(runs)

    def holds(self, trial: Trial, remedies: Sequence[Remedy], *, doubtful: bool = False) -> bool:
        """Whether a trial was won, and the remedied program beats the control's longer descent too.

        What merely learns faster is no remedy of a program that gets there as well. Where the control would be by then
        is told by what it still gained when it was observed, as its own seed may be a lucky one. Where the short trial
        does not reach as far, the remedied program is run for as long on that seed, while the budget lasts.

        Where little speaks for the cause (``doubtful``), the control is given what it will still have gained by the
        end of its run, like one that does well: of a program that is on its way up anything seems to help that learns
        faster.
        """
        if not trial.accepted:
            return False
        if self._covers:
            return True
        own = level(self.exam)
        rising = self.sound or doubtful
        reached = own if rising else min(own, self._still_to_come + fmean(trial.without))
        if fmean(trial.with_it) >= max(self._clearly_above(reached, rising=rising), own + ENOUGH):
            return True
        return self.in_full(remedies) >= self._clearly_above(own, rising=rising)

    def suffices(self, trial: Trial, remedy: Remedy) -> bool:
        """Whether the remedy of a cause that leaves no doubt is kept, although the trial was not won.

        How much a trial must gain guards against findings where nothing is wrong; here something is. So no harm will
        do, and of what takes something away a gain of whatever size beyond the noise of the seeds.
        """
        if not remedy.costs:
            return self.harmless(trial, [remedy])
        return len(trial.seeds) > 1 and trial.steps == self.steps and trial.effect > CLEARLY * trial.error

    def harmless(self, trial: Trial, remedies: Sequence[Remedy]) -> bool:
        """Whether the remedied program is not clearly worse, over as many steps as the control was observed for.

        Where held-out targets are wrong as well, or say little, all scores are low, and so is what counts as a loss.
        """
        possible = self.exam.reference.possible
        little = ENOUGH * (1.0 if possible is None else min(1.0, max(LEARNS, possible)))
        if trial.effect >= -little or (trial.effect >= -ENOUGH and trial.effect > -CLEARLY * trial.error):
            return True
        return not self._covers and self.in_full(remedies) >= level(self.exam) - ENOUGH

    def _clearly_above(self, score: float, *, rising: bool) -> float:
        """What is no chance above a score that the control reached, or will have reached after all its steps."""
        score = min(1.0, score + (still_gains(self.exam) if rising else 0.0))
        return score + max(self.margin, AS_GOOD * (1 - score))

    @property
    def _still_to_come(self) -> float:
        """What the observed control gained after as many steps as a trial has."""
        observed = self.exam.observed
        assert observed is not None
        by_then = [score for step, score, _ in observed.looks if step <= self.steps]
        return max(0.0, level(self.exam) - by_then[-1])

    @property
    def _covers(self) -> bool:
        """Whether the trials are as long as the control's own descent."""
        observed = self.exam.observed
        return observed is None or observed.steps <= self.steps

    def in_full(self, remedies: Sequence[Remedy], least: int = 0) -> float:
        """Score of the remedied program on the run's own seed, after as many steps as the control's own descent.

        Args:
            least: at least so many.
        """
        laboratory, observed = self.laboratory, self.exam.observed
        assert observed is not None
        variant = program(self.exam.case, (*self.kept, *remedies))
        steps = self._steps(remedies, max(least, observed.steps))
        key = _key(remedies), steps
        if key not in self.wholes:
            if laboratory.left + laboratory.reserve < steps * laboratory.price(variant.recipe):
                return -1.0
            self.wholes[key] = laboratory.run(variant, steps, (observed.seed,))[0].score
        return self.wholes[key]

    def _run(self, remedies: Sequence[Remedy], seeds: int) -> list[Descended]:
        have = self.runs.setdefault(_key(remedies), [])
        if len(have) < seeds:
            variant = program(self.exam.case, (*self.kept, *remedies))
            have += self.laboratory.run(variant, self._steps(remedies, self.steps), self.seeds[len(have) : seeds])
        return have[:seeds]


def still_gains(exam: Examination) -> float:
    """What a program that does well still gains in the steps that it was not observed for.

    As much for each doubling of its steps as for the last one that was seen.
    """
    seen = exam.observed
    if seen is None or seen.steps >= seen.planned:
        return 0.0
    half = [score for step, score, _ in seen.looks if step <= seen.steps / 2][-1]
    return max(0.0, level(exam) - half) * math.log2(seen.planned / seen.steps)


def _key(remedies: Sequence[Remedy]) -> tuple[str, ...]:
    return tuple(remedy.title for remedy in remedies)


def lengthens(suspicion: Suspicion, case: Case) -> bool:
    """Whether the remedy means more to read, which a trial over as many rows as the control cannot show."""
    if not suspicion.remedies:
        return False
    remedy = suspicion.remedies[0]
    return times_longer(remedy, case) > _LAST_BATCH * times_longer(remedy, case, of_rows=True)


def times_longer(remedy: Remedy, case: Case, *, of_rows: bool = False) -> float:
    """How many times as many steps the run takes; ``of_rows``: those that the same number of rows make."""
    if remedy.on_recipe is None:
        return 1.0
    recipe, changed = case.recipe, remedy.on_recipe(case.recipe)
    if of_rows:
        return max(1.0, batch_of(recipe, case) / batch_of(changed, case))
    return max(1.0, planned_steps(changed, case) / planned_steps(recipe, case))


def compatible(pool: Sequence[Suspicion]) -> list[Pair]:
    """The first remedy of each, but one a place: the likelier cause has it."""
    chosen: list[Pair] = []
    for suspicion in pool:
        taken = {remedy.place for _, remedy in chosen if remedy.place}
        free = next((remedy for remedy in suspicion.remedies if remedy.place not in taken), None)
        if free is not None:
            chosen.append((suspicion, free))
    return chosen


def edits(pairs: Sequence[Pair]) -> list[Remedy]:
    return [remedy for _, remedy in pairs]
