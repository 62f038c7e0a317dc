"""A descent with its life: what it counts, when things are due, and how it is saved and restored."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from fogline.descent import checkpoint, saving
from fogline.descent.batches import Batches
from fogline.descent.checkpoint import Checkpoint
from fogline.descent.counters import Counters
from fogline.descent.group import World, leads
from fogline.descent.guard import MOST, Guard
from fogline.descent.length import Length
from fogline.descent.machine import Machine, below
from fogline.descent.replica import check_alike, latest_of_all
from fogline.descent.scoring import Scorer
from fogline.descent.sharpness import Sharpness
from fogline.descent.step import CompiledStep, EagerStep
from fogline.recipe import Duration, Recipe
from fogline.record.examples import ExampleRecorder
from fogline.record.probes import Probe
from fogline.record.signals import Recorder
from fogline.record.snapshots import Snapshots
from fogline.record.store import Store

if TYPE_CHECKING:
    from fogline.descent.sharded import Sharded

_CHECKPOINT_SHARE = 0.01
_PATIENT_REFUSALS = 100
_LOOK_SECONDS = 0.05


class Verification(Protocol):
    """Tries other learning rates from the state of a descent."""

    @property
    def step(self) -> int:
        """Of the run, at which it is done."""

    def __call__(self, descent: Descent) -> tuple[float, str]:
        """What the rate is to be multiplied by from here on, and why; the descent is left as it was."""


class Descent:
    """The state of a run between two steps.

    Attributes:
        recipe: resolved.
        counters: how far it has come.
        length: how long it goes on.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        machine: Machine,
        batches: Batches,
        stepper: EagerStep | CompiledStep,
        store: Store,
        recorder: Recorder,
        probe: Probe | None,
        scorer: Scorer | None,
        world: World | None = None,
    ) -> None:
        self.folder, self.recipe, self.machine, self.batches = folder, recipe, machine, batches
        self.stepper, self.store, self.recorder, self.probe, self.scorer = stepper, store, recorder, probe, scorer
        self.world = world
        self.clock: Callable[[], float] = time.perf_counter if world is None else world.clock
        self.counters = Counters(parts=machine.parts)
        self.length = Length(recipe, batches.batch_size, batches.examples)
        self.every = Duration.parse(recipe.validate_every).steps(
            batches.batch_size, batches.examples if batches.examples is not None else batches.batch_size * 1000
        )
        self.every_seconds = Duration.parse(recipe.validate_every).seconds
        assert not isinstance(recipe.lr, str)
        self._base = recipe.lr
        self.average: list[Tensor] | None = None
        if recipe.ema is not None:
            self.average = [p.detach().clone() for p in machine.parameters]
        self.guard = Guard(machine, self.average, self.length.expected) if recipe.guard is True else None
        self.verification: Verification | None = None
        self.attendant: Callable[[Descent], str | None] | None = None
        self.sharpness: Sharpness | None = None
        self.snapshots: Snapshots | None = None
        self.examples: ExampleRecorder | None = None
        self.sharded: Sharded | None = None
        self.best: dict[str, Tensor] | None = None
        self.scores: dict[str, float] = {}
        self.since_check: list[float | Tensor] = []
        self.stopped_early = False
        self._resumed_at = self.saved_at = self.validated_at = self.clock()
        self.saved_step = 0
        self._save_cost = 0.0

    # -- what is due ---------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        return self.counters.step

    def elapsed(self, now: float | None = None) -> float:
        """Seconds of training so far, over all sessions; ``now`` is a reading of the clock one has already."""
        return self.counters.seconds + (self.clock() if now is None else now) - self._resumed_at

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        length, counters = self.length, self.counters
        if length.fixed is not None:
            factor = length.fixed(step)
        else:
            factor = length.multiplier(step, 0.0 if length.limit is None else self.elapsed())
        return self._base * factor * counters.plateau.factor * counters.rate_factor

    def finished(self) -> bool:
        if self.stopped_early or self.counters.refused_in_a_row >= self._most_refusals():
            return True
        if self.counters.rollbacks > MOST:
            return True
        return self.length.over(self.step, 0.0 if self.length.limit is None else self.elapsed())

    def _most_refusals(self) -> int:
        per_epoch = self.batches.steps_per_epoch or _PATIENT_REFUSALS
        return max(10, min(_PATIENT_REFUSALS, per_epoch))

    def next_stop(self) -> int:
        """The step before which no call of several steps may reach over: a validation or the end."""
        length = self.length
        stop = length.total if length.total is not None else 2**62
        if (self.scorer is not None or length.open) and self.every is not None:
            stop = min(stop, (self.step // self.every + 1) * self.every)
        if self.verification is not None and self.step < self.verification.step:
            stop = min(stop, self.verification.step)
        return stop

    def next_look(self) -> tuple[int, int, float]:
        """The step before which nothing is due but steps, :meth:`next_stop`, and the time before which nothing is."""
        stop, now = self.next_stop(), self.clock()
        step = stop if self.guard is None else min(stop, self.guard.memory.following)
        wake = now + _LOOK_SECONDS
        if self.recipe.checkpoint_every != "auto":
            steps = Duration.parse(self.recipe.checkpoint_every).steps(self.batches.batch_size, self.batches.examples)
            step = step if steps is None else min(step, (self.step // steps + 1) * steps)
        if self.length.limit is not None:
            wake = min(wake, now + self.length.limit - self.elapsed())
        return step, stop, wake

    def validation_due(self) -> bool:
        if self.scorer is None or self.counters.validated == self.step:
            return False
        if self.step == 0 or self.step == self.length.total:
            return True
        if self.every is None:
            assert self.every_seconds is not None
            return self.clock() - self.validated_at >= self.every_seconds
        return self.step % self.every == 0

    def checkpoint_due(self) -> bool:
        wait = self.recipe.checkpoint_every
        since = self.clock() - self.saved_at
        if wait == "auto":
            return since >= max(1.0, self._save_cost / _CHECKPOINT_SHARE)
        every = Duration.parse(wait)
        if every.seconds is not None:
            return since >= every.seconds
        steps = every.steps(self.batches.batch_size, self.batches.examples) or 1
        return self.step // steps > self.saved_step // steps  # a call of several steps may pass the step it falls on

    def epoch(self) -> float:
        """Passes over the data so far, with their fraction."""
        if self.batches.examples is None:
            return 0.0
        return self.counters.examples / self.batches.examples

    def saw(self, losses: list[float | Tensor]) -> None:
        """Take note of the losses of the steps just taken."""
        if self.guard is not None:
            self.guard.saw(losses)
        if self.length.open and self.scorer is None:
            self.since_check += losses

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save(self) -> Path | None:
        """Write a checkpoint of this very moment; of several processes one does, and gives its place.

        Raises:
            OSError: it cannot be written; older checkpoints are untouched.
        """
        started = self.clock()
        self.recorder.flush()
        saved = None
        if self.examples is not None:
            self.examples.meet(self.step)
        if self.sharded is not None:
            from fogline.descent import parts

            parts.save(self.folder, saving.checkpoint_of(self), self.recipe.keep, self.sharded)
        elif self.world is not None:
            self.machine.parts = check_alike(self.world, self.machine, self.step)
        if self.sharded is None and leads(self.world):
            saved = checkpoint.save(self.folder, saving.checkpoint_of(self), self.recipe.keep)
        if self.world is not None:
            self.world.agree(f"the checkpoint of step {self.step}")
        self.saved_at, self.saved_step = self.clock(), self.step
        self._save_cost = self.saved_at - started
        return saved

    def restore(self) -> bool:
        """Go back to the latest checkpoint that verifies; False where there is none but that of the start."""
        found, skipped = self._latest()
        step = 0 if found is None else found.step
        for reason in skipped:
            print(f"fogline: {reason}", file=sys.stderr)
            self.store.event(step, "checkpoint_skipped", reason)
        if self.snapshots is not None:
            self.snapshots.restore(step)
        if self.examples is not None:
            self.examples.load({} if found is None else below(found.optimizer, saving.EXAMPLES), step)
        if found is None or step == 0:
            self.store.rewind(0)
            return False
        saving.load(self, found)
        self.store.rewind(found.step, found.state["last_event"])
        self._resumed_at = self.clock()
        return True

    def _latest(self) -> tuple[Checkpoint | None, list[str]]:
        if self.world is None:
            return checkpoint.latest(self.folder)
        if self.sharded is not None:
            from fogline.descent import parts

            return parts.latest(self.folder, self.sharded)
        return latest_of_all(self.world, self.folder)
