"""A descent with its life: what it counts, when things are due, and how it is saved and restored."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fogline.descent import checkpoint
from fogline.descent.batches import Batches
from fogline.descent.checkpoint import BEST, Checkpoint
from fogline.descent.optimizers import load_state_tensors, state_scalars, state_tensors, to_eval, to_train
from fogline.descent.randomness import REFRESH, seed_step
from fogline.descent.schedules import PlateauState, curve, update
from fogline.descent.scoring import Scorer, normalisation_layers, refresh_statistics
from fogline.descent.step import CompiledStep, EagerStep, Machine
from fogline.recipe import Duration, Recipe
from fogline.record.probes import Probe
from fogline.record.signals import Recorder
from fogline.record.store import Store

_CHECKPOINT_SHARE = 0.01
_REFRESH_BATCHES = 50
_PATIENT_REFUSALS = 100
_LOOK_SECONDS = 0.05


@dataclass
class Counters:
    """What a checkpoint keeps besides tensors; plain JSON."""

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


class Descent:
    """The state of a run between two steps.

    Attributes:
        recipe: resolved.
        counters: how far it has come.
        total: optimizer steps planned; None when the duration is measured in time.
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
        duration = Duration.parse(recipe.duration)
        self.total = duration.steps(batches.batch_size, batches.examples)
        self.limit = duration.seconds
        self.every = Duration.parse(recipe.validate_every).steps(
            batches.batch_size, batches.examples if batches.examples is not None else batches.batch_size * 1000
        )
        self.every_seconds = Duration.parse(recipe.validate_every).seconds
        assert not isinstance(recipe.lr, str)
        assert not isinstance(recipe.warmup, str)
        self._base = recipe.lr
        self._curve = curve(recipe.schedule, self.total or 1, warmup=recipe.warmup)
        self.average: list[Tensor] | None = None
        if recipe.ema is not None:
            self.average = [p.detach().clone() for p in machine.parameters]
        self.best: dict[str, Tensor] | None = None
        self.scores: dict[str, float] = {}
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

    def progress(self) -> tuple[float, float]:
        """Position and total for the schedule, in steps (in seconds for a duration in time)."""
        if self.total is not None:
            return float(self.step), float(self.total)
        assert self.limit is not None
        done = min(self.elapsed() / self.limit, 1.0)
        rate = max(self.step, 1) / max(done, 1e-6)
        return done * rate, max(rate, 1.0)

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        if self.limit is None:
            return self._base * self._curve(step) * self.counters.plateau.factor
        position, total = self.progress()
        assert not isinstance(self.recipe.warmup, str)
        factor = curve(self.recipe.schedule, total, warmup=self.recipe.warmup)(position)
        return self._base * factor * self.counters.plateau.factor

    def finished(self) -> bool:
        if self.stopped_early or self.counters.refused_in_a_row >= self._most_refusals():
            return True
        return self.elapsed() >= self.limit if self.limit is not None else self.step >= (self.total or 0)

    def _most_refusals(self) -> int:
        per_epoch = self.batches.steps_per_epoch or _PATIENT_REFUSALS
        return max(10, min(_PATIENT_REFUSALS, per_epoch))

    def next_stop(self) -> int:
        """The step before which no call of several steps may reach over: a validation or the end."""
        stop = self.total if self.total is not None else 2**62
        if self.scorer is not None and self.every is not None:
            stop = min(stop, (self.step // self.every + 1) * self.every)
        return stop

    def next_look(self) -> tuple[int, int, float]:
        """The step before which nothing is due but steps, :meth:`next_stop`, and the time before which nothing is."""
        stop, now = self.next_stop(), time.perf_counter()
        step = stop
        wake = now + _LOOK_SECONDS
        if self.recipe.checkpoint_every != "auto":
            steps = Duration.parse(self.recipe.checkpoint_every).steps(self.batches.batch_size, self.batches.examples)
            step = step if steps is None else min(step, (self.step // steps + 1) * steps)
        if self.limit is not None:
            wake = min(wake, now + self.limit - self.elapsed())
        return step, stop, wake

    def validation_due(self) -> bool:
        if self.scorer is None or self.counters.validated == self.step:
            return False
        if self.step == 0 or self.step == self.total:
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
        self.stopped_early = self.recipe.patience is not None and counters.waited >= self.recipe.patience
        if self.stopped_early:
            self.store.event(self.step, "early_stop", f"no better held-out loss for {counters.waited} validations")
        return scores

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a checkpoint of this very moment.

        Raises:
            OSError: it cannot be written; older checkpoints are untouched.
        """
        started = time.perf_counter()
        self.recorder.flush()
        machine = self.machine
        machine_state = machine.objective.model.state_dict()
        model = {name: value for name, value in machine_state.items() if isinstance(value, Tensor)}
        model |= {f"buffer/{n}": b for n, b in machine.objective.model.named_buffers() if n not in machine_state}
        model |= {BEST + name: value for name, value in (self.best or {}).items()}
        optimizer = {f"optimizer/{name}": value for name, value in state_tensors(machine.optimizer).items()}
        if self.average is not None:
            optimizer |= {f"average/{k:06d}": value for k, value in enumerate(self.average)}
        if machine.clipping is not None and machine.clipping.memory is not None:
            optimizer["clipping"] = machine.clipping.memory
        counters = {**asdict(self.counters), "seconds": self.elapsed(), "parts": machine.parts}
        state = {
            "counters": counters,
            "optimizer": state_scalars(machine.optimizer),
            "scaler": {} if machine.scaler is None else machine.scaler.state_dict(),
        }
        saved = checkpoint.save(self.folder, Checkpoint(self.step, model, optimizer, state), self.recipe.keep)
        self._saved_at, self._saved_step = time.perf_counter(), self.step
        self._save_cost = self._saved_at - started
        return saved

    def restore(self) -> bool:
        """Go back to the latest checkpoint that verifies; False where there is none."""
        found, skipped = checkpoint.latest(self.folder)
        for reason in skipped:
            print(f"fogline: {reason}", file=sys.stderr)
            self.store.event(0 if found is None else found.step, "checkpoint_skipped", reason)
        if found is None:
            self.store.rewind(0)
            return False
        machine = self.machine
        values = found.state["counters"]
        self.counters = Counters(**{**values, "plateau": PlateauState(**values["plateau"])})
        self._saved_step = self.step
        patience = self.recipe.patience
        self.stopped_early = patience is not None and self.counters.waited >= patience
        machine.parts = self.counters.parts
        model = {name: v for name, v in found.model.items() if not name.startswith((BEST, "buffer/"))}
        machine.objective.model.load_state_dict(model, strict=False)
        buffers = dict(machine.objective.model.named_buffers())
        for name, value in found.model.items():
            if name.startswith("buffer/"):
                buffers[name.removeprefix("buffer/")].copy_(value)
        best = {name.removeprefix(BEST): v for name, v in found.model.items() if name.startswith(BEST)}
        # Without held-out data the "best" are those that were kept at the end, and the end has moved.
        self.best = {name: v.to(machine.device) for name, v in best.items()} if best and self.scorer else None
        tensors = {n.removeprefix("optimizer/"): v for n, v in found.optimizer.items() if n.startswith("optimizer/")}
        load_state_tensors(machine.optimizer, tensors, found.state["optimizer"])
        for k, value in enumerate(self.average or []):
            value.copy_(found.optimizer[f"average/{k:06d}"])
        if "clipping" in found.optimizer and machine.clipping is not None and machine.clipping.memory is not None:
            machine.clipping.memory.copy_(found.optimizer["clipping"])
        if machine.scaler is not None:
            machine.scaler.load_state_dict(found.state["scaler"])
        self.store.rewind(found.step)
        self._resumed_at = time.perf_counter()
        return True
