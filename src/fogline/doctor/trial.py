"""The laboratory: descents of a program and of its variants, from the same first weights on the same data order.

Everything here runs in memory: no run folder, nothing of the task is changed. What it costs is counted in steps of the
program itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from fogline.data.source import Batch, rows_of, taken
from fogline.descent.length import EXPECTED
from fogline.descent.machine import machine_of, optimizer_of
from fogline.descent.optimizers import to_eval, to_train
from fogline.descent.prepare import Start, operations_of
from fogline.descent.randomness import private_randomness
from fogline.descent.schedules import PlateauState, curve, update
from fogline.descent.step import EagerStep
from fogline.doctor.case import FAILURES, Case, Program
from fogline.doctor.descended import Descended, Observation
from fogline.doctor.finding import Remedy, Trial
from fogline.doctor.scoring import Scores, begin
from fogline.doctor.validations import Validation
from fogline.rate import measure_rate
from fogline.recipe import Duration, Recipe
from fogline.record.probes import Budget, Probe, Probed

SEEDS = (1, 2, 3)
"""Of the trials: other first weights and other orders of the data than the run's own, the same for every variant."""
WORTH = 0.2
"""A remedy must close at least this share of the distance between the control's score and a perfect one ..."""
CLEARLY = 2.0
"""... and be so many standard errors above none."""
CHEAP = 5e6
"""Floating-point operations of a forward pass of a batch below which a step takes the same half millisecond."""
_LOOKS = 16
_TRAIN_ROWS = 1024


@dataclass
class _Lowest:
    """What ``fit`` would keep of a trial: the score where the held-out loss is lowest; ``first`` is that before it."""

    first: float = math.inf
    loss: float = math.inf
    score: float = -1.0

    def take(self, score: float, loss: float) -> None:
        if math.isfinite(loss):
            self.loss, self.score = min((self.loss, self.score), (loss, score))


class _Probing:
    """Pairs of successive steps of an observation, measured where they are due."""

    def __init__(self, model: nn.Module) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self._probe = Probe([n for n, _ in named], [p for _, p in named], Budget(1.0))
        self._measuring = False

    def before(self, *, due: bool) -> None:
        if self._measuring or due:
            self._probe.before()
            self._measuring = True

    def after(self, step: int, stepper: EagerStep, *, finite: bool) -> list[Probed]:
        """What was measured at this step, if anything was."""
        measured = None
        if self._measuring and finite:
            measured = self._probe.after(step, stepper.gradients)
        elif self._measuring:
            self._probe.cancel()
        self._measuring = self._probe.open
        return [measured] if measured is not None else []


class Laboratory:
    """Runs descents and counts what they cost.

    Args:
        case: the program under examination.
        budget: steps that may be spent.
        check: called between steps; may raise to stop.
        reserve: steps beyond it, for a last look at what has won a short trial already.
    """

    def __init__(
        self, case: Case, budget: float, check: Callable[[], None] = lambda: None, reserve: float = 0.0
    ) -> None:
        self.case, self.budget, self.check, self.reserve = case, budget, check, reserve
        self.spent = 0.0
        self._rates: dict[tuple[str, ...], float] = {}
        self._scores = Scores()

    @property
    def left(self) -> float:
        return self.budget - self.spent

    @property
    def planned(self) -> int:
        """Steps of the whole run."""
        return planned_steps(self.case.recipe, self.case)

    def price(self, recipe: Recipe) -> float:
        """What a step costs, as a share of one of the program itself: one of fewer rows has less to calculate."""
        operations, share = self.case.operations, batch_of(recipe, self.case) / batch_of(self.case.recipe, self.case)
        return min(1.0, max(CHEAP, operations * share) / max(CHEAP, operations))

    def rate(self, variant: Program) -> float:
        """The learning rate at the top of the schedule; measured, once for each variant, where the recipe asks so."""
        if variant.recipe.lr != "auto":
            return float(variant.recipe.lr)
        key = tuple(remedy.title for remedy in variant.remedies)
        if key not in self._rates:
            begun = begin(variant, self.case.recipe.seed)
            begun.operations = operations_of(begun.objective, next(begun.batches.stream(0)))
            measured = measure_rate(begun, self.check)
            self._rates[key] = measured.value
            self.spent += measured.cost_steps
        return self._rates[key]

    def run(self, variant: Program, steps: int, seeds: Sequence[int] = SEEDS) -> list[Descended]:
        """Descents of one variant, a seed each; a failure of the program is told in ``error``."""
        return [self._guarded(variant, steps, seed) for seed in seeds]

    def validated(self, variant: Program, steps: int) -> list[Descended]:
        """Descents over the first steps of the whole run, a seed each, with all that ``fit`` validates in them."""
        return [self._guarded(variant, steps, seed, as_fit=True) for seed in SEEDS]

    def observe(
        self, variant: Program, steps: int, enough: Callable[[Observation], bool] = lambda seen: False
    ) -> Observation:
        """One descent with the run's own seed, looked at on the way; it ends at the look that is ``enough``."""
        seed = self.case.recipe.seed
        seen = Observation(-1.0, np.empty(0), np.empty(0), seed=seed, planned=self.planned, enough=enough)
        found = self._guarded(variant, steps, seed, seen)
        seen.score, seen.best, seen.losses, seen.norms = found.score, found.best, found.losses, found.norms
        seen.refused, seen.error = found.refused, found.error
        return seen

    def _guarded(
        self, variant: Program, steps: int, seed: int, seen: Observation | None = None, *, as_fit: bool = False
    ) -> Descended:
        try:
            with private_randomness(torch.device("cpu")):
                lr = self.rate(variant)
                begun = begin(variant, seed)
                return self._descend(begun, variant, steps, lr, seen, as_fit=as_fit)
        except FAILURES as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return Descended(-1.0, np.full(1, np.nan), np.full(1, np.nan), 1, str(error) or type(error).__name__)

    def _descend(
        self, begun: Start, variant: Program, steps: int, lr: float, seen: Observation | None, *, as_fit: bool
    ) -> Descended:
        recipe = begun.resolved.recipe
        objective = begun.objective
        machine = machine_of(objective, recipe, _optimizer(objective.model, recipe, lr), begun.batches.device)
        machine.summed = getattr(objective.loss, "reduction", "mean") == "sum"
        stepper = EagerStep(machine, begun.batches, deferred=False)
        length = self.planned if as_fit else steps
        at = curve(recipe.schedule, length, warmup=_compressed(recipe, length, self.planned))
        losses, norms = np.full(steps, np.nan), np.full(steps, np.nan)
        looks = _looks(begun, variant, steps, watched=seen is not None)
        refused, price = 0, self.price(recipe)
        plateau, every = PlateauState(), _validated_every(begun, variant)
        waits = bool(every) and (as_fit or (seen is not None and _may_stop(variant)))
        validations: list[Validation] = []
        lowest = _Lowest() if seen is None and len(looks) > 1 else None
        probing = None
        if seen is not None:
            seen.start, seen.lr, seen.validated_every, seen.validations = begun, lr, every, validations
            self._look(seen, begun, variant, 0)
            probing = _Probing(objective.model)
        elif lowest is not None:
            lowest.first = self._held_out(begun, variant)[1]
        if waits:
            validations.append((0, *self._validate(begun, variant, machine.optimizer)))
        for k, batch in zip(range(steps), begun.batches.stream(0), strict=False):
            self.check()
            if probing is not None:
                probing.before(due=k in looks or k == 1)
            outcome = stepper.take(k, batch, lr * at(k) * plateau.factor)
            losses[k], norms[k] = float(outcome.loss), float(outcome.gradient_norm)
            self.spent += price
            if outcome.finite is False:
                losses[k] = math.nan
                refused += 1
                if refused > 5 and refused > 0.5 * (k + 1):
                    losses, norms = losses[: k + 1], norms[: k + 1]
                    break
            if seen is not None and probing is not None:
                seen.probes += probing.after(k, stepper, finite=outcome.finite is not False)
            if every and (k + 1) % every == 0 and (waits or recipe.schedule == "plateau"):
                validation = (k + 1, *self._validate(begun, variant, machine.optimizer))
                before = plateau.factor
                if recipe.schedule == "plateau":
                    plateau = update(plateau, validation[2])
                if seen is not None and plateau.factor < before:
                    seen.cuts.append(k + 1)
                if waits:
                    validations.append(validation)
                    waits = seen is None or seen.still_waits(recipe.patience)
            if k + 1 not in looks:
                continue
            if seen is not None:
                self._look(seen, begun, variant, k + 1)
                if seen.enough(seen):
                    losses, norms = losses[: k + 1], norms[: k + 1]
                    break
            elif lowest is not None:
                lowest.take(*self._held_out(begun, variant))
        if seen is not None:
            self._finish(seen, begun, variant)
            best = max(score for _, score, _ in seen.looks)
            return Descended(seen.looks[-1][1], losses, norms, refused, best=best)
        kept = lowest is not None and math.isfinite(lowest.loss)
        score = lowest.score if lowest is not None and kept else self._held_out(begun, variant)[0]
        risen = lowest is not None and lowest.loss > lowest.first
        return Descended(score, losses, norms, refused, best=score, risen=risen, validations=validations)

    def _held_out(self, begun: Start, variant: Program) -> tuple[float, float]:
        """Score and loss of held-out rows by the weights as they are."""
        return self._scores.of(begun.objective, variant, variant.held)

    def _look(self, seen: Observation, begun: Start, variant: Program, step: int) -> None:
        seen.looks.append((step, *self._held_out(begun, variant)))

    def _validate(self, begun: Start, variant: Program, optimizer: Optimizer) -> tuple[float, float]:
        """Score and loss of held-out rows by the weights that ``fit`` validates."""
        to_eval(optimizer)
        found = self._held_out(begun, variant)
        to_train(optimizer)
        return found

    def _finish(self, seen: Observation, begun: Start, variant: Program) -> None:
        rows = min(_TRAIN_ROWS, variant.rows)
        index = torch.arange(rows) * variant.rows // rows
        learned = taken(variant.train, index)
        seen.train_score, seen.train_loss = self._scores.of(begun.objective, variant, learned)


def _looks(begun: Start, variant: Program, steps: int, *, watched: bool) -> list[int]:
    """Steps after which held-out rows are scored: where the task has some, after each epoch as ``fit`` does.

    ``fit`` keeps the weights whose held-out loss is lowest, so these are what a trial compares.
    """
    epoch = begun.batches.steps_per_epoch
    count = 1 if variant.case.valid is None or epoch is None else min(_LOOKS, max(1, steps // epoch))
    return sorted(
        {round(k * steps / _LOOKS) for k in range(_LOOKS + 1)}
        if watched
        else {round(k * steps / count) for k in range(1, count + 1)}
    )


def _validated_every(begun: Start, variant: Program) -> int:
    """Steps between the validations that the plateau schedule and patience decide by; 0 where there are none.

    Those that come by the clock are left out: what comes of them is never the same again.
    """
    recipe, batches = begun.resolved.recipe, begun.batches
    if variant.case.valid is None:
        return 0
    return Duration.parse(recipe.validate_every).steps(batches.batch_size, batches.examples or 1000) or 0


def _may_stop(variant: Program) -> bool:
    """Whether the run may stop early by scores that a descent here has too: not of averaged weights, nor of more rows.

    Fewer held-out rows than the run has are noisier, and patience is lost sooner.
    """
    recipe, case = variant.recipe, variant.case
    asked = recipe.patience is not None and recipe.ema is None and recipe.duration != "auto"
    valid = case.valid
    return asked and case.in_memory and valid is not None and _count(valid.inputs) == _count(variant.held)


def _count(rows: Batch) -> int:
    return rows_of(rows)


def planned_steps(recipe: Recipe, case: Case) -> int:
    """Steps of the run that the recipe describes; the usual number where its length is a time or open."""
    if recipe.duration == "auto":
        return EXPECTED
    rows = _count(case.train.inputs)
    return Duration.parse(recipe.duration).steps(batch_of(recipe, case), rows) or EXPECTED


def _optimizer(model: nn.Module, recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    """The fused one where there is one: of small models the update is a good part of a step."""
    if not any(parameter.is_complex() for parameter in model.parameters()):  # which is told no sooner than at a step
        with suppress(ValueError, RuntimeError):  # not offered for this method, device or type
            return optimizer_of(model, recipe, lr, "fused")
    return optimizer_of(model, recipe, lr)


def batch_of(recipe: Recipe, case: Case) -> int:
    """Rows of a step by a recipe for the case."""
    rows, asked = _count(case.train.inputs), recipe.batch_size
    if asked == "full":
        return rows
    return case.batch_size if asked == "auto" else min(int(asked) * recipe.accumulate, rows)


def compared(
    remedies: Sequence[Remedy],
    control_name: str,
    with_it: Sequence[Descended],
    without: Sequence[Descended],
    *,
    seeds: Sequence[int],
    metric: str,
    steps: int,
) -> Trial:
    """The trial of remedies against a control on the same seeds; accepted where it helps beyond the noise of the seeds.

    The distance still to go counts, not the score: from 0.95 to 0.96 closes a fifth of it, as from 0 to 0.2.
    """
    first, second = tuple(d.score for d in with_it), tuple(d.score for d in without)
    trial = Trial(
        "; ".join(remedy.title for remedy in remedies),
        control_name,
        tuple(seeds),
        metric,
        first,
        second,
        steps,
        steps * len(seeds),
        accepted=False,
    )
    room = 1 - fmean(second)
    helped = trial.effect > CLEARLY * trial.error and trial.effect >= WORTH * room and trial.effect > 0
    return replace(trial, accepted=helped)


def _compressed(recipe: Recipe, steps: int, planned: int) -> float:
    """The warm-up of the whole run, as much shorter as the descent is."""
    warmup = recipe.warmup
    assert not isinstance(warmup, str)
    return warmup if warmup < 1 else warmup * min(1.0, steps / max(1, planned))
