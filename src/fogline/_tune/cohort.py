"""Several trials of a small model in one program: learning rates, schedules and decays of their own, the same batches.

A step of all of them costs little more than a step of one. Those that the study prunes leave the program on the way;
what each costs is counted as if it had trained alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from fogline._tune.sampling import OWN, RUNGS
from fogline._tune.trial import PARTS, Asked, pruned_words
from fogline.data.source import InMemory
from fogline.descent.member_decay import DECAYS_IN_GRADIENT, DECAYS_WEIGHTS
from fogline.descent.optimizers import spec_of
from fogline.descent.population import obstacle
from fogline.descent.prepare import Start
from fogline.descent.randomness import Surroundings
from fogline.descent.schedules import curve
from fogline.descent.together import Together
from fogline.rate.find import is_small
from fogline.recipe import Recipe

_SCORED_AT_ONCE = 1024
_EXPLODED = 2.0  # of the first held-out loss and of everything gained


def own_names(names: Sequence[str], recipe: Recipe) -> list[str]:
    """Those of the searched names that members of one program need not share."""
    decays = recipe.optimizer in DECAYS_IN_GRADIENT + DECAYS_WEIGHTS
    return [name for name in names if name in OWN and (name != "weight_decay" or decays)]


def fits_one_program(start: Start) -> bool:
    """Whether trials that begin like this can train in one program, and gain by it: by rule, not by the clock."""
    recipe = start.resolved.recipe
    plain = recipe.ema is None and recipe.precision in ("float32", "float64") and recipe.patience is None
    in_memory = isinstance(start.opened.train, InMemory) and isinstance(start.opened.valid, InMemory)
    if not (plain and in_memory and recipe.accumulate == 1 and recipe.schedule != "plateau"):
        return False
    if not (spec_of(recipe.optimizer).proportional and is_small(start)):
        return False
    with Surroundings(start.batches.device, start.threads):
        return obstacle(start.objective, recipe, start.batches) is None


class Cohort:
    """Members of one program.

    Args:
        members: trials that differ in nothing but what :func:`own_names` gives.
        start: what all of them begin from.
        prune: whether the study may end some on the way.
        check: called between steps; may raise to stop.
    """

    def __init__(self, members: Sequence[Asked], start: Start, *, prune: bool, check: Callable[[], None]) -> None:
        self.members, self.start, self.prune, self.check = list(members), start, prune, check
        recipe = start.resolved.recipe
        self.steps = members[0].planned or 0
        self._decays = None
        if recipe.optimizer in DECAYS_IN_GRADIENT + DECAYS_WEIGHTS:
            usual = spec_of(recipe.optimizer).weight_decay or 0.0
            found = [member.recipe.weight_decay for member in members]
            self._decays = [usual if decay is None else decay for decay in found]
        self._first = math.inf

    def run(self) -> None:
        """Train them all; each ends with its curve and how it ended."""
        start, recipe = self.start, self.start.resolved.recipe
        began = time.perf_counter()
        with Surroundings(start.batches.device, start.threads):
            population = Together(start.objective, recipe, len(self.members), decays=self._decays)
            self._descend(population)
        seconds = (time.perf_counter() - began) / len(self.members)
        for member in self.members:
            member.seconds, member.together = seconds, len(self.members)

    def _descend(self, population: Together) -> None:
        living = list(self.members)
        at = {
            id(each): curve(*_schedule(each, self.start), self.steps, warmup=_warmup(each, self.start))
            for each in living
        }
        self._look(population, living, 0)
        every = max(1, math.ceil(self.steps / PARTS))
        for number, batch in enumerate(islice(self.start.batches.stream(0), self.steps)):
            self.check()
            rates = [float(each.recipe.lr) * at[id(each)](number) for each in living]
            losses = population.step(number, batch, rates)
            done = number + 1
            for each, loss in zip(living, losses, strict=True):
                each.steps = done
                if not math.isfinite(loss):
                    each.ended, each.why = "diverged", f"diverged at step {done}: the loss is not finite"
            if done % every == 0 or done == self.steps:
                self._look(population, living, done)
                part = int(PARTS * done / self.steps + 1e-9)
                self._compare([each for each in living if each.ended == "running"], part)
            staying = [k for k, each in enumerate(living) if each.ended == "running"]
            if len(staying) < len(living):
                living = [living[k] for k in staying]
                if not living:
                    return
                population.keep(staying)
        for each in living:
            each.ended = "complete"

    def _look(self, population: Together, living: list[Asked], step: int) -> None:
        """Score all members on the held-out data; end those whose loss ran away."""
        source = self.start.opened.valid
        assert isinstance(source, InMemory)
        sums = [0.0] * len(living)
        for begin in range(0, source.size, _SCORED_AT_ONCE):
            rows = min(_SCORED_AT_ONCE, source.size - begin)
            found = population.losses(self.start.batches.placed(source.slice(begin, begin + rows)))
            sums = [total + rows * loss for total, loss in zip(sums, found, strict=True)]
        for each, total in zip(living, sums, strict=True):
            loss = total / source.size
            each.curve.append((step, loss))
            self._first = loss if step == 0 else self._first
            rose = loss - self._first
            if not math.isfinite(loss) or rose > _EXPLODED * max(abs(self._first), self._first - each.best):
                each.ended = "diverged"
                each.why = f"diverged at step {step}: the held-out loss rose from {self._first:.4g} to {loss:.4g}"

    def _compare(self, running: list[Asked], part: int) -> None:
        """Report what they have come to, and end those that others are better than; the best is looked at first."""
        if part not in RUNGS[:-1]:
            return
        for each in running:
            each.report(part)
        for each in sorted(running, key=lambda each: each.best):
            if self.prune and each.trial.should_prune():
                each.ended, each.why = "pruned", pruned_words(each.curve[-1][1], part)


def _schedule(asked: Asked, start: Start) -> tuple[str]:
    recipe = asked.recipe
    return (start.resolved.recipe.schedule if recipe.schedule == "auto" else recipe.schedule,)


def _warmup(asked: Asked, start: Start) -> float:
    warmup: Any = asked.recipe.warmup
    return float(start.resolved.recipe.warmup if warmup == "auto" else warmup)
