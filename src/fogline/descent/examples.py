"""Whether the examples of a run are recorded, and with which columns: decided before its first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fogline.data.intake import Opened
from fogline.data.source import InMemory, Stream
from fogline.descent.batches import Batches
from fogline.descent.group import World, leads
from fogline.descent.objective import Objective, mode
from fogline.descent.randomness import PROBE, private_randomness, seed_everything
from fogline.descent.resolve import Resolved
from fogline.descent.shared_examples import SharedExamples
from fogline.record import example_files
from fogline.record.columns import Columns, of_losses, plan
from fogline.record.example_writer import known_targets
from fogline.record.examples import LARGEST, ExampleRecorder
from fogline.record.store import Store


def choose_columns(
    resolved: Resolved, opened: Opened, objective: Objective, batches: Batches, *, new: bool, whole: bool = True
) -> tuple[Columns | None, str]:
    """What is recorded of each example, or None, and why; a recipe that leaves it open is resolved.

    Args:
        resolved: says what is wanted.
        opened, objective, batches: of the run.
        new: the run begins, so that what is open is decided now.
        whole: every process has all weights, not a part of them.
    """
    asked = resolved.recipe.examples
    if asked is False or not (new or asked is True):
        return None, ""
    if asked == "auto" and not resolved.recipe.watch:
        resolved.choose("examples", False, "nothing is to be watched")
        return None, ""
    columns, why = _possible(resolved, opened, objective, batches) if whole else (None, "the model lies in parts")
    if asked == "auto":
        resolved.choose("examples", columns is not None, why)
    return columns, why if columns is None or columns.each is None else ""


def _possible(resolved: Resolved, opened: Opened, objective: Objective, batches: Batches) -> tuple[Columns | None, str]:
    if isinstance(opened.train, Stream) or batches.examples is None:
        return None, "the examples of a stream have no numbers to know them by"
    found = _planned(resolved.recipe.seed, opened, objective, batches)
    if isinstance(found, str):
        return None, found
    found = _fitted(found, opened.train.tensors) if isinstance(opened.train, InMemory) else found.with_targets()
    if isinstance(found, str):
        return None, found
    size = 4 * found.width * batches.examples
    if resolved.recipe.examples == "auto" and size > LARGEST:
        said = f"one epoch of {batches.examples:,} examples takes {size >> 20} MB, more than {LARGEST >> 20}"
        return None, f"{said}; examples=True records them all the same"
    return found, "training examples have numbers to know them by, and an epoch of them fits in memory"


def _fitted(columns: Columns, tensors: Any) -> Columns | str:
    """By all labels: no classes where there are more than outputs, no look for those that do not count without any."""
    if columns.form != "classes" or not isinstance(tensors[1], Tensor) or tensors[1].is_floating_point():
        return columns
    low, high = (int(value) for value in tensors[1].aminmax())
    if high >= columns.classes:
        return of_losses(columns.each)
    ignored = columns.ignored is not None and low <= columns.ignored <= high
    return columns if ignored or low < 0 else replace(columns, ignored=None)


def _planned(seed: int, opened: Opened, objective: Objective, batches: Batches) -> Columns | str:
    """Try a batch as a step would; weights, buffers and random numbers are left as they are."""
    model = objective.model
    buffers = [buffer.clone() for buffer in model.buffers()]
    with private_randomness(batches.device), mode(model, training=True):
        seed_everything(seed, 0, PROBE, batches.device)
        with torch.set_grad_enabled(not objective.supervised):
            found = plan(objective, next(batches.stream(0)), opened.facts.kind == "classification")
    with torch.no_grad():
        for buffer, old in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(old)
    return found


def recorder_of(
    folder: Path,
    columns: Columns | None,
    why: str,
    opened: Opened,
    batches: Batches,
    store: Store,
    world: World | None = None,
) -> ExampleRecorder | None:
    """What records them; the targets are written where they are known.

    Args:
        columns, why: of :func:`choose_columns`; what is not recorded is said among the events.
        world: the processes of the run, if there are several.

    Raises:
        OSError: the run folder cannot be written.
    """
    if why:
        store.event(0, "examples", _said(columns, why))
    if columns is None:
        return None
    tensors = opened.train.tensors if isinstance(opened.train, InMemory) else None
    if isinstance(tensors, tuple) and len(tensors) == 2 and isinstance(tensors[1], Tensor):
        targets = known_targets(columns, tensors[1])
        if targets is not None and leads(world):
            example_files.write(example_files.targets_file(folder, targets))
    if world is not None:
        return SharedExamples(folder, columns, batches, store, world)
    return ExampleRecorder(folder, columns, batches, store)


def _said(columns: Columns | None, why: str) -> str:
    if columns is None:
        return f"what each example does is not recorded: {why}"
    return "the loss of each example is not recorded: it cannot be had from the loss of a batch"
