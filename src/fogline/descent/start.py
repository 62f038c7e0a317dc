"""What a run begins from: its data opened, a model with its first weights, both tried on one batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fogline.data.check import check_first_batch, that_fit
from fogline.data.defaults import default_loss, default_metrics, default_model
from fogline.data.intake import Opened, open_data
from fogline.data.source import Batch, Facts, Stream, float_type, map_tree
from fogline.data.streamed import Streamed
from fogline.descent import checkpoint
from fogline.descent.batches import Batches, part, rows_of
from fogline.descent.checkpoint import Checkpoint, load_model_tensors, model_tensors
from fogline.descent.copies import copied
from fogline.descent.counters import Counters
from fogline.descent.group import World, leads
from fogline.descent.machine import optimizer_of
from fogline.descent.objective import Objective, mode
from fogline.descent.randomness import INITIAL, PROBE, private_randomness, seed_everything
from fogline.descent.resolve import Resolved, batch_rows, resolve_by_rule, resolve_precision
from fogline.descent.shared_norm import normalises_batches
from fogline.errors import misfit
from fogline.recipe import Recipe
from fogline.task import Loss, Metric, OnBatch, Task

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What a forward pass of mixed precision computes in."""
# Floating-point operations of a forward pass below which a second thread costs more than it brings: handing work over
# takes as long as the work, and on a machine that has other things to do, many times as long.
_SMALL_STEP = 2e8


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
    model = _first_model(task, opened, asked, world)
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
    odd: tuple[str, ...] = ()
    with private_randomness(device):
        seed_everything(recipe.seed, 0, PROBE, device)
        first = next(batches.stream(0))
        if world is not None:
            first = part(first, 0, max(2, -(-rows_of(first) // world.size)))
        if spread:
            first = map_tree(lambda leaf: leaf.cpu(), first)
        if metrics and not task.metrics and not spread:
            metrics = that_fit(metrics, model, first)
        if not _only_parts(recipe, world):
            first, odd = _tried(model, loss, first, metrics, opened.facts)
            if world is None:  # of several processes each is to have a row, which is told elsewhere
                _refuse_a_batch_of_one(model, loss, first, opened.facts, batches)
    if not spread:  # options of the optimizer are refused here, before there is a folder
        optimizer_of(model, recipe, 1.0 if isinstance(recipe.lr, str) else recipe.lr)
    named = replace(task, model=task.model or (lambda: _made(task, opened)), loss=loss, metrics=metrics)
    operations = 0 if spread else operations_of(objective, first)
    resolve_precision(resolved, math.inf if spread else operations)
    objective.autocast = TYPES.get(resolved.recipe.precision)
    threads = 1 if device.type == "cpu" and operations < _SMALL_STEP else torch.get_num_threads()
    notes = [*opened.facts.notes, *odd, *([_ONLY_TRAINED] if objective.only_trained else [])]
    return Start(named, opened, objective, batches, resolved, notes, operations, threads)


_ONLY_TRAINED = (
    "the model gives its loss in training mode only: where it is evaluated its own modules stay in training mode, and "
    "dropout and batch normalisation are in evaluation mode"
)


def keep_start(start: Start, folder: Path, world: World | None = None) -> None:
    """Save the first weights as the checkpoint of step 0, or go back to those that are there.

    Done before anything is measured: a run that is stopped there goes on from the weights it began with, also where
    the function that makes the model draws others each time.

    Raises:
        OSError: the run folder cannot be written.
    """
    model = start.objective.model
    if leads(world):
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


def operations_of(objective: Objective, batch: Batch) -> int:
    """Floating-point operations of one forward pass: products and convolutions."""
    device = torch.device(objective.device_type)
    counter = FlopCounterMode(display=False)
    # A loss that differentiates its inputs cannot be counted to its end; what was counted by then is enough.
    with private_randomness(device), suppress(RuntimeError), mode(objective.model, training=False), counter:
        objective(batch)
    return counter.get_total_flops()


def _first_model(task: Task, opened: Opened, asked: Recipe, world: World | None) -> nn.Module:
    """The model with its first weights; with none, where this process is to hold parts of it alone."""
    device = torch.device("cpu")
    with private_randomness(device):
        seed_everything(asked.seed, 0, INITIAL, device)
        return _made_without_memory(task, opened) if _only_parts(asked, world) else _made(task, opened)


def _only_parts(recipe: Recipe, world: World | None) -> bool:
    """Whether this process is to hold parts of a model alone, and never the whole."""
    return not leads(world) and recipe.parallel == "fsdp"


def _made(task: Task, opened: Opened) -> nn.Module:
    if isinstance(task.model, nn.Module):
        return copied(task.model)
    model = task.model() if task.model is not None else default_model(opened.facts)()
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"expected the model function to return a torch.nn.Module, received {type(model).__name__}; "
            "pass the module itself or a function without arguments that makes one"
        )
    return model


def _made_without_memory(task: Task, opened: Opened) -> nn.Module:
    """The model with the shapes of its weights and nothing in them."""
    if isinstance(task.model, nn.Module):
        return copied(task.model).to("meta")
    with torch.device("meta"):
        return _made(task, opened).to("meta")


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


def _refuse_a_batch_of_one(
    model: nn.Module, loss: Loss | OnBatch, batch: Batch, facts: Facts, batches: Batches
) -> None:
    """Batch normalisation takes no statistics of one number: told now, and not at the end of the first epoch."""
    rows, size = batches.examples, batches.batch_size
    if not rows or rows % size != 1 or not normalises_batches(model):
        return
    try:
        check_first_batch(model, loss, part(batch, 0, 1), {}, facts)
    except ValueError as error:
        if "value per channel" not in str(error):
            raise
        other = next(other for other in range(size + 1, rows + 1) if rows % other != 1)
        received = f"a last batch of one row ({rows} rows in batches of {size})"
        remedy = f"take batch_size={other}, or leave a row out"
        raise misfit("at least two rows in every batch, because of batch normalisation", received, remedy) from error


def _cast(opened: Opened, model: nn.Module) -> Opened:
    """Numbers in the type of the weights: data is mostly made in float64, models in float32."""
    wanted = float_type(model)
    valid = None if opened.valid is None else opened.valid.astype(wanted)
    return replace(opened, train=opened.train.astype(wanted), valid=valid)


def _windowed(opened: Opened, recipe: Recipe) -> Opened:
    """A table in chunks, or a stream, with the window that the recipe came to."""
    if not isinstance(opened.train, Streamed | Stream) or recipe.window == "auto":
        return opened
    return replace(opened, train=replace(opened.train, window=recipe.window))
