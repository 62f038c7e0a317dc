"""The laboratory: descents of a program and of its variants, from the same first weights on the same data order.

Everything here runs in memory: no run folder, nothing of the task is changed. What it costs is counted in steps of the
program itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from fogline.data.intake import Opened
from fogline.data.source import Batch, InMemory, cast, leaves
from fogline.descent.batches import Batches
from fogline.descent.length import EXPECTED
from fogline.descent.machine import machine_of, optimizer_of
from fogline.descent.objective import Objective
from fogline.descent.optimizers import to_eval, to_train
from fogline.descent.prepare import Start, operations_of
from fogline.descent.randomness import private_randomness
from fogline.descent.resolve import batch_rows, resolve_by_rule
from fogline.descent.schedules import PlateauState, curve, update
from fogline.descent.step import EagerStep
from fogline.doctor.case import FAILURES, Case, Program
from fogline.doctor.finding import Remedy, Trial
from fogline.doctor.others import drawn, drawn_for_others, loss_of, mean_of_all, nothing, pieces_of, placed
from fogline.doctor.validations import LONGER, Stop, Validation, stopped
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
_ROUNDED = 1e-6
_COLLAPSED = 0.5
"""Where one answer for all rows is so much better than the model's, such answers are what the loss is lowest for."""


@dataclass
class Descended:
    """One descent.

    Attributes:
        score: on rows that were not learned from, by the yardstick. Of a trial that of the weights ``fit`` would keep:
            those of the lowest held-out loss, the last ones where the task has no held-out rows. Of an observation that
            of the last weights; ``best`` is the best on the way.
        losses, norms: of every step; NaN where it was refused.
        refused: how many steps were.
        error: the exception that ended it, or "".
        risen: of a trial, whether no weights on the way had a lower held-out loss than the first ones, which ``fit``
            keeps then.
        validations: of the held-out rows, as often as ``fit`` has them; empty where they were not asked for. In an
            observation they end where a patience :data:`LONGER` times that of the recipe is lost.
    """

    score: float
    losses: NDArray[np.float64]
    norms: NDArray[np.float64]
    refused: int = 0
    error: str = ""
    best: float = -1.0
    risen: bool = False
    validations: list[Validation] = field(default_factory=list)


@dataclass
class Observation(Descended):
    """A descent that was looked at on the way.

    Attributes:
        start: what it began from; ``start.objective.model`` is the trained model.
        seed: of first weights and order.
        planned: steps of the run that it stands for.
        looks: (step, score, loss) on held-out rows on the way, the first before any step.
        train_score, train_loss: on learned rows, at the end, in evaluation mode.
        probes: pairs of successive steps that were measured.
        lr: the rate at the top of the schedule.
        cuts: steps after which the plateau schedule cut it.
        stop: where ``fit`` would have stopped early, for lack of patience; the observation goes on.
        validated_every: steps between the validations of the run.
        enough: asked after each look whether no more need be seen.
    """

    start: Start | None = None
    seed: int = 0
    planned: int = 0
    looks: list[tuple[int, float, float]] = field(default_factory=list)
    train_score: float = -1.0
    train_loss: float = math.nan
    probes: list[Probed] = field(default_factory=list)
    lr: float = 0.0
    cuts: list[int] = field(default_factory=list)
    stop: Stop | None = None
    validated_every: int = 0
    enough: Callable[[Observation], bool] = lambda seen: False

    @property
    def steps(self) -> int:
        return len(self.losses)

    def still_waits(self, patience: int | None) -> bool:
        """Note where this patience is lost; whether one :data:`LONGER` times that is not: there is more to be seen."""
        self.stop = self.stop or stopped(self.validations, patience)
        return self.stop is None or stopped(self.validations, LONGER * (patience or 0)) is None


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
        self._firsts: dict[tuple[str, ...], tuple[float, bool]] = {}
        self._below_zero = False

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

    def start(self, variant: Program, seed: int) -> Start:
        """What a descent begins from.

        Raises:
            ValueError, TypeError: the recipe does not fit the data.
        """
        model = variant.new_model(seed)
        if variant.recipe.precision == "float64":
            model = model.double()
        floats = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        train, held = cast(variant.train, floats), cast(variant.held, floats)
        opened = Opened(InMemory(train), InMemory(held), variant.case.facts)
        resolved = resolve_by_rule(variant.recipe.replace(seed=seed), opened, model)
        recipe = resolved.recipe
        device = torch.device(recipe.device)
        objective = Objective(model.to(device), variant.loss, None, device.type)
        rows = batch_rows(recipe, opened.train.size)
        batches = Batches(opened.train, rows, seed, recipe.shuffle, 0, device)
        return Start(variant.task, opened, objective, batches, resolved, [], 0, 1)

    def rate(self, variant: Program) -> float:
        """The learning rate at the top of the schedule; measured, once for each variant, where the recipe asks so."""
        if variant.recipe.lr != "auto":
            return float(variant.recipe.lr)
        key = tuple(remedy.title for remedy in variant.remedies)
        if key not in self._rates:
            begun = self.start(variant, self.case.recipe.seed)
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
                begun = self.start(variant, seed)
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
        probe, refused, kept, price = None, 0, (math.inf, -1.0), self.price(recipe)
        plateau, every = PlateauState(), _validated_every(begun, variant)
        waits = bool(every) and (as_fit or (seen is not None and _may_stop(variant)))
        validations: list[Validation] = []
        if seen is not None:
            seen.start, seen.lr = begun, lr
            named = [(n, p) for n, p in machine.objective.model.named_parameters() if p.requires_grad]
            probe = Probe([n for n, _ in named], [p for _, p in named], Budget(1.0))
            self._look(seen, begun, variant, 0)
            seen.validated_every, seen.validations = every, validations
        first = self.scored(begun.objective, variant, variant.held)[1] if seen is None and len(looks) > 1 else math.inf
        if waits:
            validations.append((0, *self._validate(begun, variant, machine.optimizer)))
        probing = 0
        for k, batch in zip(range(steps), begun.batches.stream(0), strict=False):
            self.check()
            if probe is not None and (probing or k in looks or k == 1):
                probe.before()
                probing = 1 if not probe.open else 2
            outcome = stepper.take(k, batch, lr * at(k) * plateau.factor)
            losses[k], norms[k] = float(outcome.loss), float(outcome.gradient_norm)
            self.spent += price
            if outcome.finite is False:
                losses[k] = math.nan
                refused += 1
                if refused > 5 and refused > 0.5 * (k + 1):
                    losses, norms = losses[: k + 1], norms[: k + 1]
                    break
            if probe is not None and probing:
                measured = _after(probe, k, stepper, finite=outcome.finite is not False)
                if seen is not None and measured is not None:
                    seen.probes.append(measured)
                probing = 1 if probe.open else 0
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
            if seen is not None and k + 1 in looks:
                self._look(seen, begun, variant, k + 1)
                if seen.enough(seen):
                    losses, norms = losses[: k + 1], norms[: k + 1]
                    break
            elif k + 1 in looks and len(looks) > 1:
                score, loss = self.scored(begun.objective, variant, variant.held)
                kept = min(kept, (loss, score)) if math.isfinite(loss) else kept
        if seen is not None:
            self._finish(seen, begun, variant)
            best = max(score for _, score, _ in seen.looks)
            return Descended(seen.looks[-1][1], losses, norms, refused, best=best)
        risen = kept[0] > first
        if not math.isfinite(kept[0]):
            kept = 0.0, self.score(machine.objective.model, variant, variant.held)
        return Descended(kept[1], losses, norms, refused, best=kept[1], risen=risen, validations=validations)

    def _look(self, seen: Observation, begun: Start, variant: Program, step: int) -> None:
        score, loss = self.scored(begun.objective, variant, variant.held)
        seen.looks.append((step, score, loss))

    def _validate(self, begun: Start, variant: Program, optimizer: Optimizer) -> tuple[float, float]:
        """Score and loss of held-out rows by the weights that ``fit`` validates."""
        to_eval(optimizer)
        found = self.scored(begun.objective, variant, variant.held)
        to_train(optimizer)
        return found

    def _finish(self, seen: Observation, begun: Start, variant: Program) -> None:
        rows = min(_TRAIN_ROWS, variant.rows)
        index = torch.arange(rows) * variant.rows // rows
        learned = InMemory(variant.train).take(index)
        seen.train_score, seen.train_loss = self.scored(begun.objective, variant, learned)

    def score(self, model: nn.Module, variant: Program, batch: Batch) -> float:
        """The score of a model on rows, in evaluation mode."""
        device = next(model.parameters()).device
        return self.scored(Objective(model, variant.loss, None, device.type), variant, batch)[0]

    def scored(self, objective: Objective, variant: Program, batch: Batch) -> tuple[float, float]:
        """Score and mean loss on rows, in evaluation mode.

        Where only the loss can read the outputs, the score is the share of a constant answer's loss that is gone.
        """
        model, yardstick = objective.model, variant.case.yardstick
        weights = next(model.parameters())
        batch = cast(batch, weights.dtype)
        outputs, sums, total = [], 0.0, 0
        with objective.without_learning():
            for piece in pieces_of(batch):
                on_device = placed(piece, weights.device)
                rows = len(leaves(piece)[0])
                found, loss = objective.with_outputs(on_device)
                sums += float(loss.detach().double().mean()) * rows
                total += rows
                outputs.append(found)
        mean = sums / max(1, total)
        read = objective.supervised and yardstick.work != "other"
        if not read or not all(isinstance(piece, Tensor) for piece in outputs):
            return self._gone(objective, variant, batch, mean), mean
        targets = batch[1]
        return yardstick(torch.cat([piece.cpu() for piece in outputs]), targets, variant.loss), mean

    def _gone(self, objective: Objective, variant: Program, batch: Batch, loss: float) -> float:
        """The share of the loss of a constant answer that is gone: of that of first weights, of the mean of all answers
        or of zeros, whichever is lowest.

        Of a logarithm of a density, which has no least value, it is what an exponential law makes of the difference.
        """
        first, asks_rows = self._first(variant)
        constants = [loss_of(objective, batch, said) for said in (mean_of_all, nothing)] if asks_rows else []
        for constant in constants:
            near = constant is not None and loss - constant <= _COLLAPSED * max(abs(loss), abs(constant))
            if constant is not None and (near or objective.supervised):
                first = min(first, constant)
        if not math.isfinite(loss) or not math.isfinite(first):
            return -1.0
        self._below_zero |= min(loss, first) < 0
        if self._below_zero:
            return max(-1.0, -math.expm1((loss - first) / max(1.0, abs(first))))
        scale = max(first, loss)
        return (first - loss) / scale if scale > 0 else 0.0

    def _first(self, variant: Program) -> tuple[float, bool]:
        """Held-out loss of first weights, and whether it is another one where rows get the answers of others.

        It is not where answers are compared with one another only, such as those to two views of a row.
        """
        key = tuple(remedy.title for remedy in variant.remedies)
        if key not in self._firsts:
            begun = self.start(variant, self.case.recipe.seed)
            held = placed(variant.held, begun.batches.device)
            with private_randomness(torch.device("cpu")), begun.objective.without_learning():
                first = float(begun.objective(held).detach())
            own, other = (loss_of(begun.objective, held, said) for said in (drawn, drawn_for_others))
            asked = own is not None and other is not None and abs(other - own) > _ROUNDED * abs(own)
            self._firsts[key] = first, asked
        return self._firsts[key]


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
    return len(leaves(rows)[0])


def planned_steps(recipe: Recipe, case: Case) -> int:
    """Steps of the run that the recipe describes; the usual number where its length is a time or open."""
    if recipe.duration == "auto":
        return EXPECTED
    rows = _count(case.train.inputs)
    return Duration.parse(recipe.duration).steps(batch_of(recipe, case), rows) or EXPECTED


def _optimizer(model: nn.Module, recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    """The fused one where there is one: of small models the update is a good part of a step."""
    try:
        return optimizer_of(model, recipe, lr, "fused")
    except (ValueError, RuntimeError):  # not offered for this method, device or type
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


def _after(probe: Probe, step: int, stepper: EagerStep, *, finite: bool) -> Probed | None:
    if not finite:
        probe.cancel()
        return None
    return probe.after(step, stepper.gradients)
