"""From what a run begins from to a descent that is ready for its first step: the parts made and put together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fogline.data.intake import Opened
from fogline.data.source import Stream, fingerprint
from fogline.descent import mechanics, parallel
from fogline.descent.batches import part, rows_of
from fogline.descent.examples import choose_columns, recorder_of
from fogline.descent.group import World, by_first, leads
from fogline.descent.interrupts import StopRequested
from fogline.descent.machine import Machine, is_summed, machine_of, optimizer_of
from fogline.descent.objective import mode
from fogline.descent.optimizers import choose_implementation, set_lr, spec_of
from fogline.descent.parallel import ParallelStep
from fogline.descent.randomness import PROBE, private_randomness, seed_everything
from fogline.descent.resolve import Resolved
from fogline.descent.scoring import Scorer
from fogline.descent.share import Share
from fogline.descent.sharpness import Sharpness, can_measure
from fogline.descent.start import Start
from fogline.descent.state import Descent
from fogline.descent.step import EagerStep
from fogline.record.probes import Budget, Probe, activation_statistics
from fogline.record.signals import Recorder
from fogline.record.snapshots import Snapshots
from fogline.record.store import Discarding, Store
from fogline.task import Task

if TYPE_CHECKING:
    from fogline.descent.sharded import Sharded

_PROBED_ROWS = 32
_LEAST_SCORED = 256


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
    whole = world is None or start.resolved.recipe.parallel != "fsdp"
    examined = choose_columns(start.resolved, start.opened, objective, batches, new=decided is None, whole=whole)
    chosen: dict[str, Any] = {"threads": start.threads, **(decided or {})}
    sharded = None if whole or world is None else _sharded(start, world, chosen)
    machine = _machine(start, _optimizer(start, chosen, sharded, world), sharded)
    eager = EagerStep(machine, batches, deferred=False if isinstance(start.opened.train, Stream) else None)
    descent = _descent(start, folder, eager, sharded, world)
    descent.examples = eager.examples = recorder_of(folder, *examined, start.opened, batches, descent.store, world)
    _look_closely(descent)
    set_lr(machine.optimizer, descent.rate(0))
    _find_reduction(descent)
    _check_blocks(machine)
    if world is not None:
        start.notes += parallel.obstacles(objective, batches, world)
        descent.stepper = _shared_step(descent, eager, world)
        chosen |= {"mode": "eager", "why": f"{world.size} processes send each other gradients within every step"}
    else:
        try:
            descent.stepper = mechanics.choose_step(descent, chosen, chunks=chunks)
        except StopRequested:
            descent.store.close()
            raise
    return Prepared(descent, start.task, start.opened, start.resolved, start.notes, chosen)


def _sharded(start: Start, world: World, chosen: dict[str, Any]) -> Sharded:
    from fogline.descent.sharded import Sharded, check_shardable, implementation_on_parts  # half a second

    recipe = start.resolved.recipe
    check_shardable(recipe)
    sharded = Sharded(start.objective.model, world, start.batches.device)
    chosen["implementation"] = implementation_on_parts(recipe)
    return sharded


def _optimizer(
    start: Start, chosen: dict[str, Any], sharded: Sharded | None, world: World | None
) -> torch.optim.Optimizer:
    """The optimizer in its fastest implementation, which is measured where ``chosen`` does not say."""
    recipe, model = start.resolved.recipe, start.objective.model

    def make(model: nn.Module, implementation: str) -> torch.optim.Optimizer:
        assert not isinstance(recipe.lr, str)
        return optimizer_of(model, recipe, recipe.lr, implementation)

    if "implementation" not in chosen:
        with private_randomness(start.batches.device):
            how, seconds = by_first(world, lambda: choose_implementation(make, model), "the choice of an optimizer")
        chosen |= {"implementation": how, "implementation_seconds": seconds}
    optimizer = make(model, chosen["implementation"])
    if sharded is not None:
        sharded.use(optimizer)
    return optimizer


def _machine(start: Start, optimizer: torch.optim.Optimizer, sharded: Sharded | None) -> Machine:
    recipe, device = start.resolved.recipe, start.batches.device
    machine = machine_of(start.objective, recipe, optimizer, device)
    if recipe.precision == "fp16":
        machine.scaler = torch.amp.GradScaler(device.type)
    machine.recompute = None if recipe.checkpoint_activations == "auto" else recipe.checkpoint_activations
    if sharded is not None:
        machine.parameters = sharded.parts
    return machine


def _descent(start: Start, folder: Path, eager: EagerStep, sharded: Sharded | None, world: World | None) -> Descent:
    """The descent with its eager step; of several processes the first alone writes and probes."""
    recipe, batches, machine = start.resolved.recipe, start.batches, eager.machine
    writes = leads(world)
    store = Store(folder) if writes else Discarding(folder)
    budget = Budget(recipe.watch)
    watched = writes and recipe.watch > 0 and not machine.needs_closure and sharded is None
    probe = _probe(start, machine, budget) if watched else None
    scorer = None
    if start.opened.valid is not None:
        size, whole = max(batches.batch_size, _LEAST_SCORED), sharded is not None
        scorer = Scorer(start.opened.valid, start.task.metrics, size, batches.device, world, in_step=whole)
    recorder = Recorder(store, budget)
    descent = Descent(folder, recipe, machine, batches, eager, store, recorder, probe, scorer, world)
    descent.sharded = sharded
    return descent


def _look_closely(descent: Descent) -> None:
    """Measure the sharpness and keep snapshots of the weights, where there is a way to."""
    machine, budget = descent.machine, descent.recorder.budget
    spec = spec_of(descent.recipe.optimizer)
    if descent.probe is not None and can_measure(machine, spec):
        descent.sharpness = Sharpness(machine, spec, budget)
    if leads(descent.world) and descent.sharded is None:
        names, parameters = _named(machine)
        snapshots = Snapshots(descent.folder, names, parameters, budget, descent.length.expected)
        descent.snapshots = snapshots if snapshots.wanted else None


def _named(machine: Machine) -> tuple[list[str], list[nn.Parameter]]:
    """The names of what is trained, and the parameters."""
    named = [(name, p) for name, p in machine.objective.model.named_parameters() if p.requires_grad]
    return [name for name, _ in named], [p for _, p in named]


def _probe(start: Start, machine: Machine, budget: Budget) -> Probe:
    """The probe with a fixed handful of examples for the activations."""
    objective, device = machine.objective, machine.device
    with private_randomness(device):
        seed_everything(start.resolved.recipe.seed, 0, PROBE, device)
        batch = next(start.batches.stream(0))
    few = part(batch, 0, min(_PROBED_ROWS, rows_of(batch)))

    def activations() -> dict[str, tuple[float, float]]:
        with private_randomness(device), mode(objective.model, training=False):
            return activation_statistics(objective.model, lambda: objective.value(few))

    return Probe(*_named(machine), budget, activations)


def _find_reduction(descent: Descent) -> None:
    """Micro-batches must be weighed as the loss reduces: by their share for a mean, not at all for a sum."""
    machine = descent.machine
    known = getattr(machine.objective.loss, "reduction", None if descent.world else "mean") == "mean"
    if known and (machine.parts == 1 or descent.world is not None):
        return
    with private_randomness(machine.device), mode(machine.objective.model, training=False):
        batch = next(descent.batches.stream(0))
        machine.summed = is_summed(machine.objective, batch)


def _check_blocks(machine: Machine) -> None:
    if machine.recompute and not machine.blocks:
        kind = type(machine.objective.model).__name__
        raise ValueError(
            "checkpoint_activations=True: expected a model with blocks in an nn.Sequential or nn.ModuleList, whose "
            f"activations can be computed again, received {kind} without any; put its layers into one, or leave the "
            "field at 'auto', which takes micro-batches"
        )


def _shared_step(descent: Descent, eager: EagerStep, world: World) -> EagerStep:
    """The step that several processes take together."""
    share = Share(descent.batches, world.rank, world.size, filled=descent.sharded is not None)
    if descent.sharded is None:
        stepper = ParallelStep(descent.machine, share, world, deferred=eager.deferred)
        stepper.examples = descent.examples
        return stepper
    from fogline.descent.sharded import ShardedStep

    return ShardedStep(descent.machine, descent.sharded, share, deferred=eager.deferred)


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
