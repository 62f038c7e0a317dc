"""From a task and a recipe to a descent that is ready for its first step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fogline.data.check import check_first_batch
from fogline.data.defaults import default_loss, default_metrics, default_model
from fogline.data.intake import Opened, open_data
from fogline.data.source import Batch, Stream, fingerprint
from fogline.descent import checkpoint, mechanics
from fogline.descent.batches import Batches, part, rows_of
from fogline.descent.checkpoint import Checkpoint, load_model_tensors, model_tensors
from fogline.descent.clipping import Clipping
from fogline.descent.examples import choose_columns, recorder_of
from fogline.descent.interrupts import StopRequested
from fogline.descent.objective import Objective, mode
from fogline.descent.optimizers import build, choose_implementation, set_lr, spec_of
from fogline.descent.randomness import INITIAL, PROBE, private_randomness, seed_everything
from fogline.descent.resolve import Resolved, batch_rows, resolve_by_rule
from fogline.descent.scoring import Scorer
from fogline.descent.sharpness import Sharpness, can_measure
from fogline.descent.state import Counters, Descent
from fogline.descent.step import EagerStep, Machine, is_summed
from fogline.recipe import Recipe
from fogline.record.probes import Budget, Probe, activation_statistics
from fogline.record.signals import Recorder
from fogline.record.snapshots import Snapshots
from fogline.record.store import Store
from fogline.task import OnBatch, Task

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PROBED_ROWS = 32
_LEAST_SCORED = 256
# Floating-point operations of a forward pass below which a second thread costs more than it brings: handing work over
# takes as long as the work, and on a machine that has other things to do, many times as long.
_SMALL_STEP = 2e8


@dataclass
class Prepared:
    """A descent and what is known of it before its first step.

    Attributes:
        task: with model, loss and metrics filled in.
        opened: the data.
        resolved: the recipe with reasons.
        notes: sentences for the user.
        mechanics: how steps are taken: mode, implementation, measured times.
    """

    descent: Descent
    task: Task
    opened: Opened
    resolved: Resolved
    notes: list[str] = field(default_factory=list)
    mechanics: dict[str, Any] = field(default_factory=dict)


@dataclass
class Start:
    """What a run begins from: opened data, a model with its first weights, a recipe resolved by rule."""

    task: Task
    opened: Opened
    objective: Objective
    batches: Batches
    resolved: Resolved
    notes: list[str]
    operations: int  # floating-point, of one forward pass
    threads: int


def as_asked(
    task: Any,
    recipe: Any,
    loss: Any,
    valid: Any,
    metrics: Mapping[str, Any] | None,
    target: str | None,
    fields: Mapping[str, Any],
) -> tuple[Task, Recipe]:
    """Task and recipe from what was given: ``(task, recipe)``, or ``(model, data)`` with the rest by name.

    Raises:
        TypeError: the two ways are mixed, or there is no data.
    """
    if isinstance(task, Task):
        given = {"loss": loss, "valid": valid, "metrics": metrics, "target": target}
        for name, value in given.items():
            if value is not None:
                raise TypeError(
                    f"expected {name} in the Task, received it beside the Task; write Task(..., {name}=...)"
                )
        if recipe is not None and not isinstance(recipe, Recipe):
            raise TypeError(f"expected a Recipe after the Task, received {type(recipe).__name__}")
        return task, (recipe or Recipe()).replace(**fields)
    if isinstance(recipe, Recipe) or recipe is None:
        raise TypeError(
            "expected training data after the model, as in fit(model, (X, y), loss=...), or fit(task, recipe)"
        )
    made = Task(model=task, loss=loss, train=recipe, valid=valid, metrics=metrics or {}, target=target)
    return made, Recipe().replace(**fields)


def begin(task: Task, asked: Recipe, decided: Mapping[str, Any] | None = None) -> Start:
    """Open the data, make the model and try both on one batch, before any training time is spent.

    Args:
        task: as the user gave it.
        asked: as the user gave it.
        decided: the resolved recipe of a run that is resumed; nothing is decided again.

    Raises:
        ValueError, TypeError: whatever does not fit, with what was expected, what came and what to do.
    """
    opened = open_data(task, seed=asked.seed)
    device = torch.device("cpu")
    with private_randomness(device):
        seed_everything(asked.seed, 0, INITIAL, device)
        model = _made(task, opened)
    loss = task.loss if task.loss is not None else default_loss(opened.facts)
    metrics = dict(task.metrics) or ({} if isinstance(loss, OnBatch) else default_metrics(opened.facts))
    resolved = resolve_by_rule(asked, opened, model) if decided is None else Resolved(Recipe.from_dict(decided))
    recipe = resolved.recipe
    if recipe.precision == "float64":
        model = model.double()
    opened = _cast(opened, model)
    device = torch.device(recipe.device)
    model = model.to(device)
    autocast = _TYPES.get(recipe.precision)
    objective = Objective(model, loss, autocast, device.type)
    rows = batch_rows(recipe, opened.train.size)
    batches = Batches(opened.train, rows, recipe.seed, recipe.shuffle, recipe.workers, device)
    with private_randomness(device):
        seed_everything(recipe.seed, 0, PROBE, device)
        first = next(batches.stream(0))
        odd = check_first_batch(model, loss, first, metrics, opened.facts)
    named = replace(task, model=task.model or (lambda: _made(task, opened)), loss=loss, metrics=metrics)
    operations = operations_of(objective, first)
    threads = 1 if device.type == "cpu" and operations < _SMALL_STEP else torch.get_num_threads()
    return Start(named, opened, objective, batches, resolved, [*opened.facts.notes, *odd], operations, threads)


def keep_start(start: Start, folder: Path) -> None:
    """Save the first weights as the checkpoint of step 0, or go back to those that are there.

    Done before anything is measured: a run that is stopped there goes on from the weights it began with, also where
    the function that makes the model draws others each time.

    Raises:
        OSError: the run folder cannot be written.
    """
    model = start.objective.model
    found, _ = checkpoint.latest(folder)
    if found is None:
        first = Checkpoint(0, model_tensors(model), {}, {"counters": asdict(Counters())})
        checkpoint.save(folder, first, start.resolved.recipe.keep)
    elif found.step == 0:
        load_model_tensors(model, found.model)


def measure(start: Start, find_rate: Callable[[], Any]) -> None:
    """Resolve what is measured: precision by its self-check, the learning rate by ``find_rate``.

    Raises:
        StopRequested: a signal came meanwhile.
    """
    resolved = start.resolved
    _check_precision(start)
    if resolved.recipe.guard == "auto":
        measured = resolved.recipe.lr == "auto" and not spec_of(resolved.recipe.optimizer).needs_closure
        why = "the learning rate is measured" if measured else "the learning rate is yours, or the method's own"
        resolved.choose("guard", measured, why)
    if resolved.recipe.lr != "auto":
        return
    rate = find_rate()
    resolved.choose("lr", rate.value, rate.evidence["rule"])
    resolved.why["lr"] |= {
        "interval": rate.interval,
        "cost_steps": rate.cost_steps,
        "evidence": rate.evidence,
        "warnings": list(rate.warnings),
    }


def assemble(start: Start, folder: Path, decided: Mapping[str, Any] | None = None, *, chunks: bool = True) -> Prepared:
    """Build optimizer, step, recorder and scorer.

    Args:
        start: with its recipe fully resolved.
        folder: the run folder.
        decided: the mechanics of a run that is resumed: the same bits want the same implementation and step mode.
        chunks: whether several steps may be taken in one call.
    """
    objective, batches = start.objective, start.batches
    examined = choose_columns(start.resolved, start.opened, objective, batches, new=decided is None)
    recipe = start.resolved.recipe
    device = batches.device

    def make(model: nn.Module, implementation: str | None = None) -> torch.optim.Optimizer:
        assert not isinstance(recipe.lr, str)
        return build(
            model,
            recipe.optimizer,
            recipe.lr,
            weight_decay=recipe.weight_decay,
            options=dict(recipe.options),
            lr_scale=recipe.lr_scale,
            implementation=implementation,
        )

    chosen: dict[str, Any] = {"threads": start.threads, **(decided or {})}
    with private_randomness(device):
        if "implementation" not in chosen:
            chosen["implementation"], chosen["implementation_seconds"] = choose_implementation(make, objective.model)
    optimizer = make(objective.model, chosen["implementation"])
    like = next(p for p in objective.model.parameters() if p.requires_grad)
    machine = Machine(
        objective,
        optimizer,
        device,
        seed=recipe.seed,
        clipping=None if recipe.clip is None else Clipping(recipe.clip, like),
        scaler=torch.amp.GradScaler(device.type) if recipe.precision == "fp16" else None,
        parts=recipe.accumulate,
        needs_closure=spec_of(recipe.optimizer).needs_closure,
    )
    store = Store(folder)
    budget = Budget(recipe.watch)
    probe = _probe(start, machine, budget) if recipe.watch > 0 and not machine.needs_closure else None
    scorer = None
    if start.opened.valid is not None:
        size = max(batches.batch_size, _LEAST_SCORED)
        scorer = Scorer(start.opened.valid, start.task.metrics, size, device)
    eager = EagerStep(machine, batches, deferred=False if isinstance(start.opened.train, Stream) else None)
    descent = Descent(folder, recipe, machine, batches, eager, store, Recorder(store, budget), probe, scorer)
    descent.examples = eager.examples = recorder_of(folder, *examined, start.opened, batches, store)
    spec = spec_of(recipe.optimizer)
    if probe is not None and can_measure(machine, spec):
        descent.sharpness = Sharpness(machine, spec, budget)
    named = [(name, p) for name, p in objective.model.named_parameters() if p.requires_grad]
    descent.snapshots = Snapshots.of(
        folder, [n for n, _ in named], [p for _, p in named], budget, descent.length.expected
    )
    set_lr(optimizer, descent.rate(0))
    _find_reduction(descent)
    prepared = Prepared(descent, start.task, start.opened, start.resolved, start.notes, chosen)
    try:
        descent.stepper = mechanics.choose_step(descent, chosen, chunks=chunks)
    except StopRequested:
        store.close()
        raise
    return prepared


def summary(prepared: Prepared) -> dict[str, Any]:
    """What ``run.json`` says about the task."""
    opened, objective = prepared.opened, prepared.descent.machine.objective
    loss = prepared.task.loss
    return {
        "model": type(objective.model).__name__,
        "architecture": str(objective.model)[:20000],
        "parameters": sum(p.numel() for p in objective.model.parameters()),
        "loss": getattr(loss, "__name__", type(loss).__name__),
        "metrics": list(prepared.task.metrics),
        "kind": opened.facts.kind,
        "train_examples": opened.train.size,
        "valid_examples": None if opened.valid is None else opened.valid.size,
        "inputs": list(opened.facts.inputs),
        "classes": None if opened.facts.classes is None else list(opened.facts.classes),
        "columns": None if opened.facts.columns is None else list(opened.facts.columns),
        "fingerprint": fingerprint(opened.train),
    }


def operations_of(objective: Objective, batch: Batch) -> int:
    """Floating-point operations of one forward pass: products and convolutions."""
    device = torch.device(objective.device_type)
    counter = FlopCounterMode(display=False)
    # A loss that differentiates its inputs cannot be counted to its end; what was counted by then is enough.
    with private_randomness(device), suppress(RuntimeError), mode(objective.model, training=False), counter:
        objective(batch)
    return counter.get_total_flops()


def _made(task: Task, opened: Opened) -> nn.Module:
    if isinstance(task.model, nn.Module):
        return copy.deepcopy(task.model)
    model = task.model() if task.model is not None else default_model(opened.facts)()
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"expected the model function to return a torch.nn.Module, received {type(model).__name__}; "
            "pass the module itself or a function without arguments that makes one"
        )
    return model


def _cast(opened: Opened, model: nn.Module) -> Opened:
    """Numbers in the type of the weights: data is mostly made in float64, models in float32."""
    wanted = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    valid = None if opened.valid is None else opened.valid.astype(wanted)
    return replace(opened, train=opened.train.astype(wanted), valid=valid)


def _check_precision(start: Start) -> None:
    """Mixed precision must give the loss of full precision within five percent, else it is not used."""
    objective = start.objective
    if objective.autocast is None:
        return
    with private_randomness(start.batches.device), mode(objective.model, training=False):
        seed_everything(start.resolved.recipe.seed, 0, PROBE, start.batches.device)
        batch = next(start.batches.stream(0))
        mixed = float(objective.value(batch))
        full = float(replace(objective, autocast=None).value(batch))
    if not abs(mixed - full) <= 0.05 * abs(full) + 1e-3:
        why = f"self-check failed: the first loss is {mixed:.6g}, in float32 it is {full:.6g}"
        start.resolved.choose("precision", "float32", why)
        start.notes.append(why)
        objective.autocast = None


def _find_reduction(descent: Descent) -> None:
    """Micro-batches must be weighed as the loss reduces: by their share for a mean, not at all for a sum."""
    machine = descent.machine
    if machine.parts == 1 and getattr(machine.objective.loss, "reduction", "mean") == "mean":
        return
    with private_randomness(machine.device), mode(machine.objective.model, training=False):
        batch = next(descent.batches.stream(0))
        machine.summed = is_summed(machine.objective, batch)


def _probe(start: Start, machine: Machine, budget: Budget) -> Probe:
    """The probe with a fixed handful of examples for the activations."""
    objective, device = machine.objective, machine.device
    named = [(name, p) for name, p in objective.model.named_parameters() if p.requires_grad]
    with private_randomness(device):
        seed_everything(start.resolved.recipe.seed, 0, PROBE, device)
        batch = next(start.batches.stream(0))
    few = part(batch, 0, min(_PROBED_ROWS, rows_of(batch)))

    def activations() -> dict[str, tuple[float, float]]:
        with private_randomness(device), mode(objective.model, training=False):
            return activation_statistics(objective.model, lambda: objective.value(few))

    return Probe([n for n, _ in named], [p for _, p in named], budget, activations)
