"""A descent with its life: what it counts, when things are due, and how it is saved and restored."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Protocol

import torch
from torch import Tensor

from fogline.descent import checkpoint
from fogline.descent import guard as guarding
from fogline.descent.batches import Batches
from fogline.descent.checkpoint import BEST, Checkpoint, load_model_tensors, model_tensors
from fogline.descent.guard import Guard
from fogline.descent.length import Length
from fogline.descent.optimizers import load_state_tensors, state_scalars, state_tensors, to_eval, to_train
from fogline.descent.randomness import REFRESH, private_randomness, seed_step
from fogline.descent.schedules import PlateauState, update
from fogline.descent.scoring import Scorer, normalisation_layers, refresh_statistics
from fogline.descent.sharpness import Sharpness
from fogline.descent.step import CompiledStep, EagerStep, Machine
from fogline.recipe import Duration, Recipe
from fogline.record.examples import ExampleRecorder
from fogline.record.probes import Probe
from fogline.record.signals import Recorder, numbers
from fogline.record.snapshots import Snapshots
from fogline.record.store import Store

_GUARD = "guard/"
_EXAMPLES = "examples/"
_CHECKPOINT_SHARE = 0.01
_REFRESH_BATCHES = 50
_PATIENT_REFUSALS = 100
_LOOK_SECONDS = 0.05


@dataclass
class Counters:
    """What a checkpoint keeps besides tensors; plain JSON.

    ``rate_factor`` is what the learning rate is multiplied by since the guard went back or the rate was verified.
    """

    step: int = 0
    examples: int = 0
    seconds: float = 0.0
    refused: int = 0
    refused_in_a_row: int = 0
    validated: int = -1
    best_score: float | None = None
    best_step: int | None = None
    waited: int = 0
    parts: int = 1
    plateau: PlateauState = field(default_factory=PlateauState)
    rollbacks: int = 0
    rate_factor: float = 1.0
    verified: bool = False


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
    ) -> None:
        self.folder, self.recipe, self.machine, self.batches = folder, recipe, machine, batches
        self.stepper, self.store, self.recorder, self.probe, self.scorer = stepper, store, recorder, probe, scorer
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
        self.sharpness: Sharpness | None = None
        self.snapshots: Snapshots | None = None
        self.examples: ExampleRecorder | None = None
        self.best: dict[str, Tensor] | None = None
        self.scores: dict[str, float] = {}
        self._since_check: list[float | Tensor] = []
        self.stopped_early = False
        self._resumed_at = self._saved_at = self._validated_at = time.perf_counter()
        self._saved_step = 0
        self._save_cost = 0.0

    # -- what is due ---------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        return self.counters.step

    def elapsed(self, now: float | None = None) -> float:
        """Seconds of training so far, over all sessions; ``now`` is a reading of the clock one has already."""
        return self.counters.seconds + (time.perf_counter() if now is None else now) - self._resumed_at

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
        if self.counters.rollbacks > guarding.MOST:
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
        stop, now = self.next_stop(), time.perf_counter()
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
            return time.perf_counter() - self._validated_at >= self.every_seconds
        return self.step % self.every == 0

    def checkpoint_due(self) -> bool:
        wait = self.recipe.checkpoint_every
        since = time.perf_counter() - self._saved_at
        if wait == "auto":
            return since >= max(1.0, self._save_cost / _CHECKPOINT_SHARE)
        every = Duration.parse(wait)
        if every.seconds is not None:
            return since >= every.seconds
        steps = every.steps(self.batches.batch_size, self.batches.examples) or 1
        return self.step // steps > self._saved_step // steps  # a call of several steps may pass the step it falls on

    def epoch(self) -> float:
        """Passes over the data so far, with their fraction."""
        if self.batches.examples is None:
            return 0.0
        return self.counters.examples / self.batches.examples

    def look_after(self) -> None:
        """At the end of a block of steps: keep its state, or go back to the last good one at a lower rate."""
        guard, counters = self.guard, self.counters
        wrong = None if guard is None else guard.look(self.step, counters.refused_in_a_row)
        if guard is None or wrong is None:
            return
        counters.rollbacks += 1
        if counters.rollbacks > guarding.MOST:
            self.store.event(self.step, "gave_up", f"{wrong}; it went back {guarding.MOST} times already")
            return
        kept, counters.refused_in_a_row = guard.back(), 0
        counters.rate_factor *= guarding.LOWER
        self.store.event(
            self.step,
            "rollback",
            f"{wrong}: back to the weights of step {kept}, at a third of the learning rate "
            f"(time {counters.rollbacks} of at most {guarding.MOST})",
        )

    def verify_rate(self) -> None:
        """Once, where the verification says: try other rates from this very state, and take one that is clearly better.

        Raises:
            StopRequested: a signal came meanwhile; it is done again when the run goes on.
        """
        verification, counters = self.verification, self.counters
        if verification is None or counters.verified or self.step != verification.step:
            return
        with private_randomness(self.machine.device):
            factor, why = verification(self)
        counters.verified = True
        counters.rate_factor *= factor
        chosen = "kept" if factor == 1 else f"multiplied by {factor:.3g}"
        self.store.event(self.step, "rate_verified", f"learning rate {chosen}: {why}", {"factor": factor})

    def look_at_sharpness(self) -> None:
        """Measure how near the steps are to the limit of the optimizer, when the budget affords it."""
        stepper, step = self.stepper, self.step
        if self.sharpness is None or not self.sharpness.affords(step) or not step:
            return
        several = isinstance(stepper, CompiledStep) and stepper.chunked is not None
        batch = self.batches.at(step - 1) if several else stepper.batch
        value = None if batch is None else self.sharpness.measure(step, batch, self.rate(step - 1))
        if value is not None:
            self.recorder.sharpness(step - 1, value)

    # -- validation ----------------------------------------------------------------------------------------------

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """The weights that are judged and kept: averaged ones where the recipe or the optimizer averages."""
        machine = self.machine
        if self.average is None:
            to_eval(machine.optimizer)
            try:
                yield
            finally:
                to_train(machine.optimizer)
            return
        kept = [value.detach().clone() for value in (*machine.parameters, *machine.buffers)]
        with torch.no_grad():
            torch._foreach_copy_([p.data for p in machine.parameters], self.average)
        try:
            if normalisation_layers(machine.objective.model):
                seed_step(machine.seed, self.step, REFRESH, machine.device)
                count = min(self.batches.steps_per_epoch or _REFRESH_BATCHES, _REFRESH_BATCHES)
                refresh_statistics(machine.objective, self.batches.stream(0), count)
            yield
        finally:
            with torch.no_grad():
                for value, old in zip((*machine.parameters, *machine.buffers), kept, strict=True):
                    value.data.copy_(old)

    def validate(self) -> dict[str, float]:
        """Score the held-out data; remember the best weights; decide on early stopping and the plateau."""
        assert self.scorer is not None
        counters = self.counters
        with self.evaluation_weights():
            scores = self.scorer(self.machine.objective)
            loss = scores["loss"]
            better = math.isfinite(loss) and (counters.best_score is None or loss < counters.best_score)
            if better:
                state = self.machine.objective.model.state_dict()
                self.best = {k: v.detach().clone() for k, v in state.items() if isinstance(v, Tensor)}
        counters.waited = 0 if better else counters.waited + 1
        if better:
            counters.best_score, counters.best_step = loss, self.step
        if self.recipe.schedule == "plateau" and self.step:
            counters.plateau = update(counters.plateau, loss)
        counters.validated = self.step
        self._validated_at = time.perf_counter()
        self.scores = scores
        self.store.scores(self.step, "valid", scores)
        self._check_length(loss)
        self.stopped_early = self.recipe.patience is not None and counters.waited >= self.recipe.patience
        if self.stopped_early:
            self.store.event(self.step, "early_stop", f"no better held-out loss for {counters.waited} validations")
        return scores

    def saw(self, losses: list[float | Tensor]) -> None:
        """Take note of the losses of the steps just taken."""
        if self.guard is not None:
            self.guard.saw(losses)
        if self.length.open and self.scorer is None:
            self._since_check += losses

    def check_training(self) -> None:
        """Without held-out data an open-ended run is judged by its training loss, as often as it would be validated."""
        if self._since_check and self.every is not None and self.step % self.every == 0:
            self._check_length(self._mean_since_check())
            self._since_check = []

    def _mean_since_check(self) -> float:
        finite = [loss for loss in numbers(self._since_check) if math.isfinite(loss)]
        return fmean(finite) if finite else math.nan

    def _check_length(self, loss: float) -> None:
        why = self.length.check(self.step, loss)
        if why is not None:
            self.store.event(self.step, "cool_down", f"{why}: {(self.length.total or 0) - self.step} more steps")

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a checkpoint of this very moment.

        Raises:
            OSError: it cannot be written; older checkpoints are untouched.
        """
        started = time.perf_counter()
        self.recorder.flush()
        if self.snapshots is not None:
            self.snapshots.save()  # first: a run that goes on from this checkpoint finds all up to it
        machine = self.machine
        model = model_tensors(machine.objective.model)
        model |= {BEST + name: value for name, value in (self.best or {}).items()}
        optimizer = {f"optimizer/{name}": value for name, value in state_tensors(machine.optimizer).items()}
        if self.average is not None:
            optimizer |= {f"average/{k:06d}": value for k, value in enumerate(self.average)}
        if machine.clipping is not None and machine.clipping.memory is not None:
            optimizer["clipping"] = machine.clipping.memory
        kept, remembered = ({}, None) if self.guard is None else self.guard.state()
        optimizer |= {_GUARD + name: value for name, value in kept.items()}
        if self.examples is not None:
            optimizer |= {_EXAMPLES + name: value for name, value in self.examples.state(self.step).items()}
        counters = {**asdict(self.counters), "seconds": self.elapsed(), "parts": machine.parts}
        state = {
            "counters": counters,
            "optimizer": state_scalars(machine.optimizer),
            "scaler": {} if machine.scaler is None else machine.scaler.state_dict(),
            "guard": remembered,
            "length": self.length.state(),
            "last_event": self.store.last_event(),
            "since_check": numbers(self._since_check),
        }
        saved = checkpoint.save(self.folder, Checkpoint(self.step, model, optimizer, state), self.recipe.keep)
        self._saved_at, self._saved_step = time.perf_counter(), self.step
        self._save_cost = self._saved_at - started
        return saved

    def restore(self) -> bool:
        """Go back to the latest checkpoint that verifies; False where there is none but that of the start."""
        found, skipped = checkpoint.latest(self.folder)
        for reason in skipped:
            print(f"fogline: {reason}", file=sys.stderr)
            self.store.event(0 if found is None else found.step, "checkpoint_skipped", reason)
        if self.snapshots is not None:
            self.snapshots.restore(0 if found is None else found.step)
        if self.examples is not None:
            kept = {} if found is None else _below(found.optimizer, _EXAMPLES)
            self.examples.load(kept, 0 if found is None else found.step)
        if found is None or found.step == 0:
            self.store.rewind(0)
            return False
        machine = self.machine
        values = found.state["counters"]
        self.counters = Counters(**{**values, "plateau": PlateauState(**values["plateau"])})
        self._saved_step = self.step
        patience = self.recipe.patience
        self.stopped_early = patience is not None and self.counters.waited >= patience
        machine.parts = self.counters.parts
        load_model_tensors(machine.objective.model, found.model)
        best = {name.removeprefix(BEST): v for name, v in found.model.items() if name.startswith(BEST)}
        # Without held-out data the "best" are those that were kept at the end, and the end has moved.
        self.best = {name: v.to(machine.device) for name, v in best.items()} if best and self.scorer else None
        load_state_tensors(machine.optimizer, _below(found.optimizer, "optimizer/"), found.state["optimizer"])
        for k, value in enumerate(self.average or []):
            value.copy_(found.optimizer[f"average/{k:06d}"])
        if "clipping" in found.optimizer and machine.clipping is not None and machine.clipping.memory is not None:
            machine.clipping.memory.copy_(found.optimizer["clipping"])
        if machine.scaler is not None:
            machine.scaler.load_state_dict(found.state["scaler"])
        self.length.load(found.state["length"])
        self._since_check = list(found.state["since_check"])
        if self.guard is not None and found.state.get("guard"):
            self.guard.load(_below(found.optimizer, _GUARD), found.state["guard"])
        self.store.rewind(found.step, found.state["last_event"])
        self._resumed_at = time.perf_counter()
        return True


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
