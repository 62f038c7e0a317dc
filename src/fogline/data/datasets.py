"""Map-style datasets, DataLoaders and streams as sources of batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from fogline.data import losses
from fogline.data.facts import Facts, Kind
from fogline.data.source import MapStyle, Stream, leaves
from fogline.task import Task

_SCANNED = 10_000  # examples whose labels are read to count the classes for a built-in model


@dataclass(frozen=True)
class Parts:
    """What a DataLoader is made of."""

    dataset: Any
    collate: Callable[[list[Any]], Any] = default_collate
    num_workers: int = 0
    pin: bool = False
    batch_size: int | None = None
    shuffle: bool | None = None
    notes: tuple[str, ...] = ()


def take_apart(loader: DataLoader[Any], what: str) -> Parts:
    """The dataset, collate function, workers and batch size of a DataLoader, and notes on what is replaced.

    Raises:
        ValueError: if the loader makes no batches.
    """
    batch_size = loader.batch_size
    sampler: Any = None if isinstance(loader.dataset, IterableDataset) else loader.sampler
    notes: list[str] = []
    drop_last = loader.drop_last
    if batch_size is None and loader.batch_sampler is not None:
        batch_size = getattr(loader.batch_sampler, "batch_size", None)
        sampler = getattr(loader.batch_sampler, "sampler", None)
        drop_last = bool(getattr(loader.batch_sampler, "drop_last", False))
        if type(loader.batch_sampler) is not BatchSampler:
            notes.append(
                f"the {type(loader.batch_sampler).__name__} of the {what} loader is replaced by fogline's order"
            )
    elif batch_size is None:
        raise ValueError(
            f"{what}: expected a DataLoader that makes batches, received one with batch_size=None; "
            "give it a batch_size, or pass its dataset"
        )
    shuffle = None
    if isinstance(sampler, SequentialSampler):
        shuffle = False
    elif isinstance(sampler, RandomSampler):
        shuffle = True
        if sampler.replacement:
            notes.append(f"the {what} loader sampled with replacement; fogline's order takes every example once")
    elif sampler is not None and not notes:
        notes.append(f"the {type(sampler).__name__} of the {what} loader is replaced by fogline's order")
    kept = f"the {what} loader was taken apart"
    kept += f" (batch size {batch_size}" if batch_size else " ("
    kept += f", {loader.num_workers} workers)" if loader.num_workers else ")"
    if drop_last:
        notes.append(f"drop_last of the {what} loader is not kept: the last batch of an epoch is short, not lost")
    collate = loader.collate_fn
    return Parts(
        loader.dataset,
        collate,
        loader.num_workers,
        loader.pin_memory,
        batch_size,
        shuffle,
        (kept.replace(" ()", ""), *notes),
    )


def map_style(parts: Parts, task: Task, what: str) -> tuple[MapStyle, Facts]:
    """A dataset with ``__getitem__`` and ``__len__`` as a source.

    Raises:
        ValueError: if it is empty.
        TypeError: if its batches are not what the task needs.
    """
    source = MapStyle(parts.dataset, parts.collate, parts.num_workers, parts.pin)
    if source.size == 0:
        raise ValueError(f"{what}: expected at least one example, received a dataset of length 0")
    batch = source.take(torch.arange(min(2, source.size)))
    facts = _facts(batch, task, parts, what)
    classes = _class_names(parts.dataset)
    if facts.kind != "classification":
        return source, facts
    outputs = facts.outputs
    if classes is not None:
        outputs = len(classes)
    elif task.model is None and outputs == 0:
        outputs = _count_classes(source, what)
    return source, replace(facts, classes=classes, outputs=outputs)


def stream(parts: Parts, task: Task, what: str) -> tuple[Stream, Facts]:
    """An ``IterableDataset`` as a source; its first batch is looked at.

    Raises:
        ValueError: if it gives nothing.
        TypeError: if its batches are not what the task needs.
    """
    source = Stream(parts.dataset, parts.collate)
    batch = next(source.batches(2), None)
    if batch is None:
        raise ValueError(f"{what}: expected at least one example, received an empty stream")
    if parts.num_workers:
        note = f"the {what} stream is read in this process, not in {parts.num_workers} workers, to keep its order"
        return source, replace(_facts(batch, task, parts, what), notes=(*parts.notes, note))
    return source, _facts(batch, task, parts, what)


def _facts(batch: Any, task: Task, parts: Parts, what: str) -> Facts:
    kind_of_loss = losses.family(task.loss)
    said = {"notes": parts.notes, "batch_size": parts.batch_size, "shuffle": parts.shuffle}
    if kind_of_loss == "on_batch":
        found = leaves(batch)
        return Facts("other", tuple(found[0].shape[1:]) if found else (), outputs=0, **said)  # type: ignore[arg-type]
    if not (isinstance(batch, tuple) and len(batch) == 2):
        raise TypeError(
            f"{what}: expected batches (inputs, targets), received {described(batch)}; return such pairs from the "
            "dataset or its collate_fn, or pass loss=fogline.on_batch(fn) with fn(model, batch)"
        )
    inputs, targets = batch
    shape = tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else ()
    kind, outputs = _kind(targets, kind_of_loss)
    threshold = 0.5 if losses.on_probabilities(task.loss) else 0.0
    return Facts(kind, shape, outputs=outputs, threshold=threshold, **said)  # type: ignore[arg-type]


def _kind(targets: Any, kind_of_loss: losses.Family) -> tuple[Kind, int]:
    if not isinstance(targets, Tensor):
        return "other", 0
    width = int(targets.shape[1:].numel())
    if kind_of_loss == "binary":
        return "classification", width
    if targets.is_floating_point():
        return ("classification" if kind_of_loss == "classes" else "regression"), width
    if kind_of_loss == "elementwise":
        return "regression", width
    return ("classification", 0) if kind_of_loss == "classes" or targets.ndim == 1 else ("other", 0)


def described(batch: Any) -> str:
    """The structure of a batch in words.

    >>> described({"x": torch.ones(2, 3)})
    "a dict with keys ['x']"
    """
    if isinstance(batch, Tensor):
        return f"one tensor of shape {tuple(batch.shape)}"
    if isinstance(batch, dict):
        return f"a dict with keys {list(batch)}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {len(batch)} ({', '.join(type(item).__name__ for item in batch)})"
    return f"a {type(batch).__name__}"


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    """The ``classes`` attribute that image datasets have by custom."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    classes = getattr(dataset, "classes", None)
    if isinstance(classes, (list, tuple)) and classes and all(isinstance(name, str) for name in classes):
        return tuple(classes)
    return None


def _count_classes(source: MapStyle, what: str) -> int:
    """One more than the largest label, from the dataset's ``targets`` or by reading all of a small dataset."""
    targets = getattr(source.dataset, "targets", None)
    if targets is not None:
        return max(2, int(np.asarray(targets).max()) + 1)
    if source.size > _SCANNED:
        raise ValueError(
            f"{what}: expected a model, or a dataset that names its `classes`, received {source.size} examples without "
            "either; pass model="
        )
    positions = [list(range(start, min(start + 64, source.size))) for start in range(0, source.size, 64)]
    return max(2, *(int(targets.max()) + 1 for _, targets in source.loader(positions, 0)))
