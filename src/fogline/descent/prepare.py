"""From a task and a recipe to a descent that is ready for its first step."""

from __future__ import annotations

import copy
import math
import re
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
from fogline.data.source import Batch, Facts, Stream, fingerprint, map_tree
from fogline.data.streamed import Streamed
from fogline.descent import checkpoint, mechanics, parallel
from fogline.descent.batches import Batches, part, rows_of
from fogline.descent.checkpoint import Checkpoint, load_model_tensors, model_tensors
from fogline.descent.clipping import Clipping
from fogline.descent.examples import choose_columns, recorder_of
from fogline.descent.group import World
from fogline.descent.interrupts import StopRequested
from fogline.descent.objective import Objective, mode
from fogline.descent.optimizers import build, choose_implementation, set_lr, spec_of
from fogline.descent.parallel import ParallelStep
from fogline.descent.precision import compare
from fogline.descent.randomness import INITIAL, PROBE, private_randomness, seed_everything
from fogline.descent.resolve import Resolved, batch_rows, resolve_by_rule, resolve_precision
from fogline.descent.scoring import Scorer
from fogline.descent.share import Share
from fogline.descent.sharpness import Sharpness, can_measure
from fogline.descent.state import Counters, Descent
from fogline.descent.step import EagerStep, Machine, is_summed
from fogline.recipe import Recipe
from fogline.record.probes import Budget, Probe, activation_statistics
from fogline.record.signals import Recorder
from fogline.record.snapshots import Snapshots
from fogline.record.store import Discarding, Store
from fogline.task import Loss, Metric, OnBatch, Task

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


def begin(task: Task, asked: Recipe, decided: Mapping[str, Any] | None = None, world: World | None = None) -> Start:
    """Open the data, make the model and try both on one batch, before any training time is spent.

    Args:
        task: as the user gave it.
        asked: as the user gave it.
        decided: the resolved recipe of a run that is resumed; nothing is decided again.
        world: the processes of the run, if there are several; each tries its model on as many rows as it will get.

    Raises:
        ValueError, TypeError: whatever does not fit, with what was expected, what came and what to do.
    """
    opened = open_data(task, seed=asked.seed)
    device = torch.device("cpu")
    with private_randomness(device):
        seed_everything(asked.seed, 0, INITIAL, device)
        model = _made_without_memory(task, opened) if _only_parts(asked, world) else _made(task, opened)
    loss = task.loss if task.loss is not None else default_loss(opened.facts)
    metrics = dict(task.metrics) or ({} if isinstance(loss, OnBatch) else default_metrics(opened.facts))
    resolved = resolve_by_rule(asked, opened, model) if decided is None else Resolved(Recipe.from_dict(decided))
    recipe = resolved.recipe
    if recipe.precision == "float64":
        model = model.double()
    opened = _cast(_windowed(opened, recipe), model)
    device = torch.device(recipe.device)
    spread = world is not None and recipe.parallel == "fsdp"
    if not spread:
        model = model.to(device)
    objective = Objective(model, loss, device_type=device.type)
    rows = batch_rows(recipe, opened.train.size)
    batches = Batches(opened.train, rows, recipe.seed, recipe.shuffle, recipe.workers, device)
    with private_randomness(device):
        seed_everything(recipe.seed, 0, PROBE, device)
        first = next(batches.stream(0))
        if world is not None:
            first = part(first, 0, max(2, -(-rows_of(first) // world.size)))
        if spread:
            first = map_tree(lambda leaf: leaf.cpu(), first)
        odd: tuple[str, ...] = ()
        if not _only_parts(recipe, world):
            first, odd = _tried(model, loss, first, metrics, opened.facts)
    if not spread:
        _optimizer(model, recipe)  # its options are refused here, before there is a folder
    named = replace(task, model=task.model or (lambda: _made(task, opened)), loss=loss, metrics=metrics)
    operations = 0 if spread else operations_of(objective, first)
    resolve_precision(resolved, math.inf if spread else operations)
    objective.autocast = _TYPES.get(resolved.recipe.precision)
    threads = 1 if device.type == "cpu" and operations < _SMALL_STEP else torch.get_num_threads()
    return Start(named, opened, objective, batches, resolved, [*opened.facts.notes, *odd], operations, threads)


def _optimizer(model: nn.Module, recipe: Recipe, implementation: str | None = None) -> torch.optim.Optimizer:
    """The optimizer of a recipe, at any rate where that is not known yet."""
    return build(
        model,
        recipe.optimizer,
        1.0 if isinstance(recipe.lr, str) else recipe.lr,
        weight_decay=recipe.weight_decay,
        options=dict(recipe.options),
        lr_scale=recipe.lr_scale,
        implementation=implementation,
    )


def _tried(
    model: nn.Module, loss: Loss | OnBatch, batch: Batch, metrics: Mapping[str, Metric], facts: Facts
) -> tuple[Batch, tuple[str, ...]]:
    """As much of the first batch as the memory holds, and what is odd about it."""
    while True:
        try:
            return batch, check_first_batch(model, loss, batch, metrics, facts)
        except torch.OutOfMemoryError:
            if rows_of(batch) < 2:
                raise
        batch = part(batch, 0, rows_of(batch) // 2)


def keep_start(start: Start, folder: Path, world: World | None = None) -> None:
    """Save the first weights as the checkpoint of step 0, or go back to those that are there.

    Done before anything is measured: a run that is stopped there goes on from the weights it began with, also where
    the function that makes the model draws others each time.

    Raises:
        OSError: the run folder cannot be written.
    """
    model = start.objective.model
    if world is None or world.first:
        _keep_start(start, model, folder)
    if world is not None:
        world.together("the first checkpoint")
    if world is not None and start.resolved.recipe.parallel != "fsdp":
        world.spread([*model.parameters(), *model.buffers()])


def _keep_start(start: Start, model: nn.Module, folder: Path) -> None:
    found, _ = checkpoint.latest(folder)
    if found is None:
        first = Checkpoint(0, model_tensors(model), {}, {"counters": asdict(Counters())})
        checkpoint.save(folder, first, start.resolved.recipe.keep)
    elif found.step == 0:
        load_model_tensors(model, found.model)


def measure(start: Start, find_rate: Callable[[], Any], world: World | None = None) -> None:
    """Resolve what is measured: precision by its self-check, the learning rate by ``find_rate``.

    Of several processes one measures, on batches of all rows, and the others take what it found.

    Raises:
        StopRequested: a signal came meanwhile.
    """
    if world is None:
        _measure(start, find_rate)
        return

    def measured() -> Any:
        _measure(start, find_rate)
        return [start.resolved.recipe.to_dict(), start.resolved.why, start.notes]

    recipe, why, start.notes = world.by_first(measured, "the measurement of the learning rate")
    start.resolved = Resolved(Recipe.from_dict(recipe), why)
    start.objective.autocast = _TYPES.get(start.resolved.recipe.precision)


def _measure(start: Start, find_rate: Callable[[], Any]) -> None:
    resolved = start.resolved
    _check_precision(start)
    if resolved.recipe.parallel == "fsdp" and resolved.recipe.guard == "auto":
        resolved.choose("guard", False, "a model in parts is not kept twice")
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


def assemble(
    start: Start,
    folder: Path,
    decided: Mapping[str, Any] | None = None,
    *,
    chunks: bool = True,
    world: World | None = None,
) -> Prepared:
    """Build optimizer, step, recorder and scorer.

    Args:
        start: with its recipe fully resolved.
        folder: the run folder.
        decided: the mechanics of a run that is resumed: the same bits want the same implementation and step mode.
        chunks: whether several steps may be taken in one call.
        world: the processes of the run, if there are several.
    """
    objective, batches = start.objective, start.batches
    whole = not (world is not None and start.resolved.recipe.parallel == "fsdp")
    examined = choose_columns(start.resolved, start.opened, objective, batches, new=decided is None, whole=whole)
    recipe = start.resolved.recipe
    device = batches.device

    def make(model: nn.Module, implementation: str | None = None) -> torch.optim.Optimizer:
        return _optimizer(model, recipe, implementation)

    chosen: dict[str, Any] = {"threads": start.threads, **(decided or {})}
    sharded = None
    if world is not None and recipe.parallel == "fsdp":
        from fogline.descent.sharded import Sharded, check_shardable, implementation_on_parts  # half a second

        check_shardable(recipe)
        sharded = Sharded(objective.model, world, device)
        chosen["implementation"] = implementation_on_parts(recipe)
    with private_randomness(device):
        if "implementation" not in chosen:

            def chosen_one() -> Any:
                return choose_implementation(make, objective.model)

            how, seconds = chosen_one() if world is None else world.by_first(chosen_one, "the choice of an optimizer")
            chosen |= {"implementation": how, "implementation_seconds": seconds}
    optimizer = make(objective.model, chosen["implementation"])
    if sharded is not None:
        sharded.use(optimizer)
    like = next(p for p in objective.model.parameters() if p.requires_grad)
    machine = Machine(
        objective,
        optimizer,
        device,
        seed=recipe.seed,
        clipping=None if recipe.clip is None else Clipping(recipe.clip, like),
        scaler=torch.amp.GradScaler(device.type) if recipe.precision == "fp16" else None,
        parts=recipe.accumulate,
        recompute=None if recipe.checkpoint_activations == "auto" else recipe.checkpoint_activations,
        needs_closure=spec_of(recipe.optimizer).needs_closure,
    )
    writes = world is None or world.first
    if sharded is not None:
        machine.parameters = sharded.parts
    store = Store(folder) if writes else Discarding(folder)
    budget = Budget(recipe.watch)
    watched = writes and recipe.watch > 0 and not machine.needs_closure and sharded is None
    probe = _probe(start, machine, budget) if watched else None
    scorer = None
    if start.opened.valid is not None:
        size = max(batches.batch_size, _LEAST_SCORED)
        scorer = Scorer(start.opened.valid, start.task.metrics, size, device, world, in_step=sharded is not None)
    eager = EagerStep(machine, batches, deferred=False if isinstance(start.opened.train, Stream) else None)
    descent = Descent(folder, recipe, machine, batches, eager, store, Recorder(store, budget), probe, scorer, world)
    descent.examples = eager.examples = recorder_of(folder, *examined, start.opened, batches, store, world)
    descent.sharded = sharded
    spec = spec_of(recipe.optimizer)
    if probe is not None and can_measure(machine, spec):
        descent.sharpness = Sharpness(machine, spec, budget)
    if writes and sharded is None:
        named = [(name, p) for name, p in objective.model.named_parameters() if p.requires_grad]
        descent.snapshots = Snapshots.of(
            folder, [n for n, _ in named], [p for _, p in named], budget, descent.length.expected
        )
    set_lr(optimizer, descent.rate(0))
    _find_reduction(descent)
    _check_blocks(machine)
    prepared = Prepared(descent, start.task, start.opened, start.resolved, start.notes, chosen)
    if world is not None:
        start.notes += parallel.obstacles(start.objective, batches, world)
        share = Share(batches, world.rank, world.size, filled=sharded is not None)
        if sharded is None:
            descent.stepper = ParallelStep(machine, share, world, deferred=eager.deferred)
            descent.stepper.examples = descent.examples
        else:
            from fogline.descent.sharded import ShardedStep

            descent.stepper = ShardedStep(machine, sharded, share, deferred=eager.deferred)
        chosen |= {"mode": "eager", "why": f"{world.size} processes send each other gradients within every step"}
        return prepared
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
        "model": plain_name(type(objective.model).__name__),
        "architecture": plain_name(str(objective.model))[:20000],
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


def plain_name(text: str) -> str:
    """A description of a model without what FSDP calls its classes.

    >>> plain_name("FSDPSequential(0: FSDPLinear)")
    'Sequential(0: Linear)'
    """
    return re.sub(r"\bFSDP(?=[A-Z])", "", text)


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


def _only_parts(recipe: Recipe, world: World | None) -> bool:
    """Whether this process is to hold parts of a model alone, and never the whole."""
    return world is not None and not world.first and recipe.parallel == "fsdp"


def _made_without_memory(task: Task, opened: Opened) -> nn.Module:
    """The model with the shapes of its weights and nothing in them."""
    if isinstance(task.model, nn.Module):
        return copy.deepcopy(task.model).to("meta")
    with torch.device("meta"):
        return _made(task, opened).to("meta")


def _cast(opened: Opened, model: nn.Module) -> Opened:
    """Numbers in the type of the weights: data is mostly made in float64, models in float32."""
    wanted = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    valid = None if opened.valid is None else opened.valid.astype(wanted)
    return replace(opened, train=opened.train.astype(wanted), valid=valid)


def _windowed(opened: Opened, recipe: Recipe) -> Opened:
    """A table in chunks, or a stream, with the window that the recipe came to."""
    if not isinstance(opened.train, Streamed | Stream) or recipe.window == "auto":
        return opened
    return replace(opened, train=replace(opened.train, window=recipe.window))


def _check_precision(start: Start) -> None:
    """Mixed precision must give the loss and the gradient of full precision, else it is not used."""
    objective, resolved = start.objective, start.resolved
    if objective.autocast is None:
        return
    with private_randomness(start.batches.device):
        seed_everything(resolved.recipe.seed, 0, PROBE, start.batches.device)
        found = compare(objective, next(start.batches.stream(0)))
    if found.fault:
        why = f"self-check failed: {found.fault}"
        start.notes.append(f"{resolved.recipe.precision} is not used: {why}")
        resolved.choose("precision", "float32", why)
        objective.autocast = None
        return
    resolved.choose("precision", resolved.recipe.precision, f"self-check passed: {found}")
    if found.doubt:
        start.notes.append(f"{resolved.recipe.precision}: {found.doubt}")


def _check_blocks(machine: Machine) -> None:
    if machine.recompute and not machine.blocks:
        kind = type(machine.objective.model).__name__
        raise ValueError(
            "checkpoint_activations=True: expected a model with blocks in an nn.Sequential or nn.ModuleList, whose "
            f"activations can be computed again, received {kind} without any; put its layers into one, or leave the "
            "field at 'auto', which takes micro-batches"
        )


def _find_reduction(descent: Descent) -> None:
    """Micro-batches must be weighed as the loss reduces: by their share for a mean, not at all for a sum."""
    machine = descent.machine
    known = getattr(machine.objective.loss, "reduction", None if descent.world else "mean") == "mean"
    if known and (machine.parts == 1 or descent.world is not None):
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
