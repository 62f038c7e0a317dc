"""Arrays, map-style datasets, DataLoaders and streams as sources of batches."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from fogline.data.arrays import facts_of, is_arrays, open_arrays, wrapped_tensors
from fogline.data.facts import Facts
from fogline.data.source import MapStyle, Source, Stream
from fogline.errors import misfit
from fogline.task import Task

_FORMS = (
    "tensors or arrays (inputs, targets), a pandas or Polars frame with target=, a Dataset, a DataLoader, "
    "an IterableDataset, or the path of a CSV or Parquet file or of a folder of images by class"
)
_SCANNED = 10_000  # examples whose labels are read to count the classes for a built-in model


def open_source(value: Any, task: Task, what: str) -> tuple[Source, Facts]:
    """Everything that is no table and no folder.

    Raises:
        TypeError: for data of an unknown kind or structure.
        ValueError: for data that is empty or does not fit the loss.
    """
    parts, said = take_apart(value, what) if isinstance(value, DataLoader) else (MapStyle(value), Facts("other"))
    dataset = parts.dataset
    tensors = wrapped_tensors(dataset) if parts.collate is default_collate else None
    source: Source
    if isinstance(dataset, IterableDataset):
        source, facts = _stream(parts, task, what)
    elif tensors is not None or is_arrays(dataset):
        source, facts = open_arrays(dataset if tensors is None else tensors, task, what)
    elif hasattr(dataset, "__getitem__") and isinstance(dataset, Sized):
        source, facts = parts, _map_style(parts, task, what)
    else:
        raise TypeError(f"{what}: expected {_FORMS}; received {type(value).__name__}")
    return source, replace(facts, notes=said.notes + facts.notes, batch_size=said.batch_size, shuffle=said.shuffle)


def take_apart(loader: DataLoader[Any], what: str) -> tuple[MapStyle, Facts]:
    """The dataset, collate function and workers of a DataLoader; its batch size, and notes on what is replaced.

    Raises:
        ValueError: if the loader makes no batches.
    """
    batches: Any = loader.batch_sampler
    if batches is None:
        received, remedy = "one with batch_size=None", "give it a batch_size, or pass its dataset"
        raise misfit("a DataLoader that makes batches", received, remedy, what)
    batch_size, sampler = getattr(batches, "batch_size", None), getattr(batches, "sampler", None)
    notes = [f"the {what} loader was taken apart (batch size {batch_size}, {loader.num_workers} workers)"]
    shuffle = {SequentialSampler: False, RandomSampler: True}.get(type(sampler))
    if type(batches) is not BatchSampler or (shuffle is None and not isinstance(loader.dataset, IterableDataset)):
        replaced = sampler if type(batches) is BatchSampler else batches
        notes.append(f"the {type(replaced).__name__} of the {what} loader is replaced by fogline's order")
    elif getattr(sampler, "replacement", False):
        notes.append(f"the {what} loader sampled with replacement; fogline's order takes every example once")
    if getattr(batches, "drop_last", False):
        notes.append(f"drop_last of the {what} loader is not kept: the last batch of an epoch is short, not lost")
    parts = MapStyle(loader.dataset, loader.collate_fn, loader.num_workers, loader.pin_memory)
    return parts, Facts("other", batch_size=batch_size, shuffle=shuffle, notes=tuple(notes))


def _stream(parts: MapStyle, task: Task, what: str) -> tuple[Stream, Facts]:
    """An ``IterableDataset``; its first batch is looked at."""
    source = Stream(parts.dataset, parts.collate)
    batch = next(source.batches(2), None)
    if batch is None:
        raise ValueError(f"{what}: expected at least one example, received an empty stream")
    note = f"the {what} stream is read in this process, not in {parts.num_workers} workers, to keep its order"
    return source, replace(facts_of(batch, task, what), notes=(note,) if parts.num_workers else ())


def _map_style(source: MapStyle, task: Task, what: str) -> Facts:
    """A dataset with ``__getitem__`` and ``__len__``; its first two examples are looked at."""
    if source.size == 0:
        raise ValueError(f"{what}: expected at least one example, received a dataset of length 0")
    facts = facts_of(source.take(torch.arange(min(2, source.size))), task, what)
    if facts.kind != "classification":
        return facts
    classes, outputs = _class_names(source.dataset), facts.outputs
    if classes is not None:
        outputs = outputs or len(classes)
    elif task.model is None:
        outputs = outputs or _count_classes(source, what)
    return replace(facts, classes=classes, outputs=outputs)


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
        received = f"{source.size} examples without either"
        raise misfit("a model, or a dataset that names its `classes`", received, "pass model=", what)
    positions = torch.split(torch.arange(source.size), 64)
    return max(2, *(int(source.take(part)[1].max()) + 1 for part in positions))
