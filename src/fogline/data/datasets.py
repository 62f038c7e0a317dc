"""Arrays, map-style datasets, DataLoaders and streams as sources of batches, and what their targets say of the work."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data
from torch.utils.data import DataLoader, IterableDataset, default_collate

from fogline.data import losses
from fogline.data.frames import is_series
from fogline.data.source import Batch, Facts, InMemory, Kind, MapStyle, Source, Stream, are_rows, leaves, map_tree
from fogline.errors import misfit, some
from fogline.task import Task

_FORMS = (
    "tensors or arrays (inputs, targets), a pandas or Polars frame with target=, a Dataset, a DataLoader, "
    "an IterableDataset, or the path of a CSV or Parquet file or of a folder of images by class"
)
_SCANNED = 10_000  # examples whose labels are read to count the classes for a built-in model
_SMALL_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32)


def open_source(value: Any, task: Task, what: str) -> tuple[Source, Facts]:
    """Everything that is no table and no folder.

    Raises:
        TypeError: for data of an unknown kind or structure.
        ValueError: for data that is empty or does not fit the loss.
    """
    parts, said = _take_apart(value, what) if isinstance(value, DataLoader) else (MapStyle(value), Facts("other"))
    dataset = parts.dataset
    tensors = _wrapped_tensors(dataset) if parts.collate is default_collate else None
    source: Source
    if isinstance(dataset, IterableDataset):
        source, facts = _stream(parts, task, what)
    elif tensors is not None or _is_arrays(dataset):
        source, facts = _in_memory(dataset if tensors is None else tensors, task, what)
    elif hasattr(dataset, "__getitem__") and isinstance(dataset, Sized):
        source, facts = _map_style(parts, task, what)
    else:
        raise TypeError(f"{what}: expected {_FORMS}; received {type(value).__name__}")
    return source, replace(facts, notes=said.notes + facts.notes, batch_size=said.batch_size, shuffle=said.shuffle)


def _take_apart(loader: DataLoader[Any], what: str) -> tuple[MapStyle, Facts]:
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
    shuffle = {data.SequentialSampler: False, data.RandomSampler: True}.get(type(sampler))
    plain = type(batches) is data.BatchSampler
    kept = plain and shuffle is not None and not getattr(sampler, "replacement", False)
    if not kept and not isinstance(loader.dataset, IterableDataset):
        replaced = type(sampler if plain else batches).__name__
        notes.append(f"the {replaced} of the {what} loader is replaced by fogline's order: every example once")
    if getattr(batches, "drop_last", False):
        notes.append(f"drop_last of the {what} loader is not kept: the last batch of an epoch is short, not lost")
    parts = MapStyle(loader.dataset, loader.collate_fn, loader.num_workers, loader.pin_memory)
    return parts, Facts("other", batch_size=batch_size, shuffle=shuffle, notes=tuple(notes))


def _wrapped_tensors(dataset: Any) -> Any | None:
    """The tensors of a TensorDataset or StackDataset, or of a Subset or ConcatDataset of such; None for other datasets.

    Only exact types are looked into: a subclass may change what an example is.
    """
    kind = type(dataset)
    if kind is data.TensorDataset:
        return tuple(dataset.tensors) if len(dataset.tensors) > 1 else dataset.tensors[0]
    if kind is data.StackDataset and all(isinstance(part, Tensor) for part in dataset.datasets):
        return dataset.datasets
    if kind is data.Subset:
        inner, index = _wrapped_tensors(dataset.dataset), torch.tensor(list(dataset.indices), dtype=torch.int64)
        return None if inner is None else map_tree(lambda leaf: leaf[index.to(leaf.device)], inner)
    if kind is data.ConcatDataset:
        pairs: list[Any] = [_wrapped_tensors(part) for part in dataset.datasets]
        if all(type(pair) is tuple and len(pair) == len(pairs[0]) for pair in pairs):
            return tuple(torch.cat(column) for column in zip(*pairs, strict=True))
    return None


def _is_arrays(value: Any) -> bool:
    """Tensors, arrays or series, or a tuple or dict of them; a list of pairs is a dataset instead."""
    if isinstance(value, list):
        return not value or not isinstance(value[0], (tuple, dict))
    return isinstance(value, (Tensor, np.ndarray, dict, tuple)) or is_series(value)


def _stream(parts: MapStyle, task: Task, what: str) -> tuple[Stream, Facts]:
    """An ``IterableDataset``; its first batch is looked at."""
    source = Stream(parts.dataset, parts.collate)
    batch = next(source.batches(2), None)
    if batch is None:
        raise ValueError(f"{what}: expected at least one example, received an empty stream")
    if losses.family(task.loss) == "on_batch" and not are_rows(batch, 2):
        source = replace(source, whole=True)
    note = f"the {what} stream is read by one process, not in {parts.num_workers} workers, to keep its order"
    return source, replace(_facts(batch, task, what), notes=(note,) if parts.num_workers else ())


def _are_parted(source: MapStyle, two: Batch) -> bool:
    """Whether batches are tensors of as many rows as examples, by one of two; of lists also by one of three."""
    lists = isinstance(two, tuple) and any(isinstance(part, (tuple, list)) for part in two)
    counts = {min(2, source.size): two}
    if lists and source.size > 2:
        counts[3] = source.take(torch.arange(3))
    return all(are_rows(batch, count) for count, batch in counts.items())


def _map_style(source: MapStyle, task: Task, what: str) -> tuple[MapStyle, Facts]:
    """A dataset with ``__getitem__`` and ``__len__``; its first two examples are looked at."""
    if source.size == 0:
        raise ValueError(f"{what}: expected at least one example, received a dataset of length 0")
    batch = source.take(torch.arange(min(2, source.size)))
    facts = _facts(batch, task, what)
    if facts.kind != "classification":
        parted = losses.family(task.loss) != "on_batch" or _are_parted(source, batch)
        return source if parted else replace(source, whole=True), facts
    classes, outputs = _class_names(source.dataset), facts.outputs
    if outputs == 0 and classes is not None:
        outputs = len(classes)
    elif outputs == 0 and task.model is None:
        if source.size > _SCANNED:
            received = f"{source.size} examples without either"
            raise misfit("a model, or a dataset that names its `classes`", received, "pass model=", what)
        labels = [source.take(part)[1] for part in torch.split(torch.arange(source.size), 64)]
        outputs = _count_classes(torch.cat(labels), task.loss, what)
    return source, replace(facts, classes=classes, outputs=outputs)


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    """The ``classes`` attribute that image datasets have by custom."""
    while isinstance(dataset, data.Subset):
        dataset = dataset.dataset
    classes = getattr(dataset, "classes", None)
    if isinstance(classes, (list, tuple)) and classes and all(isinstance(name, str) for name in classes):
        return tuple(classes)
    return None


def _in_memory(value: Any, task: Task, what: str) -> tuple[InMemory, Facts]:
    """Tensors, arrays and lists as tensors that fit the task."""
    if isinstance(value, list) and len(value) == 2 and all(isinstance(item, (Tensor, np.ndarray)) for item in value):
        value = tuple(value)
    tensors = _to_tensors(value, what)
    if losses.family(task.loss) != "on_batch":
        inputs, targets = losses.pair(tensors, what)
        rows = [len(part) for part in (inputs, targets) if isinstance(part, Tensor) and part.ndim]
        if len(rows) == 2 and rows[0] != rows[1]:
            received = f"{rows[0]} inputs and {rows[1]} targets"
            raise misfit("as many targets as inputs", received, "check that both come from the same rows", what)
        tensors = inputs, _fitting(targets, task)
    source = InMemory(tensors, f"{what}: ")
    if source.size == 0:
        raise ValueError(f"{what}: expected at least one example, received 0 rows")
    facts = replace(_facts(tensors, task, what), notes=_not_finite_notes(tensors))
    if facts.kind == "classification" and facts.outputs < 2:
        outputs = _count_classes(tensors[1], task.loss, what)
        facts = replace(facts, outputs=facts.outputs or outputs)
    return source, facts


def _to_tensors(value: Any, what: str) -> Any:
    """Arrays and lists of numbers as tensors, inside tuples and dicts too.

    Raises:
        TypeError: for text, objects or ragged lists.
    """
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _to_tensors(item, f"{what}[{key!r}]") for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_to_tensors(item, f"{what}[{place}]") for place, item in enumerate(value))
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return torch.stack([item.detach() for item in value])
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"{what}: expected rows of equal length, received a ragged {type(value).__name__}") from error
    kind, size = array.dtype.kind, min(array.dtype.itemsize, 8)
    if kind not in "biuf":
        remedy = "for columns of text pass a frame or a CSV file with target=, and they are encoded"
        raise misfit("numbers", f"{type(value).__name__} of {array.dtype}", remedy, what, TypeError)
    if kind == "u" and size > 1:
        kind, size = "i", 8  # PyTorch can do little with wide unsigned numbers
    if kind == "f" and isinstance(value, list):
        size = 4  # Python has but one float: a list says nothing about precision
    native = np.ascontiguousarray(array, dtype=f"{kind}{size}")
    return torch.from_numpy(native if native.flags.writeable else native.copy())


def _fitting(targets: Any, task: Task) -> Any:
    """Targets in the type and shape that losses over classes and the built-in model take."""
    if not isinstance(targets, Tensor):
        return targets
    over_classes = task.loss is None or losses.family(task.loss) == "classes"
    if targets.dtype in _SMALL_WHOLE or (targets.dtype == torch.bool and over_classes):
        return targets.long()
    single_numbers = targets.ndim == 1 and targets.is_floating_point()
    return targets[:, None] if single_numbers and task.model is None else targets


def _facts(batch: Batch, task: Task, what: str) -> Facts:
    """Kind of work, shapes and widths, from a batch and the loss; ``outputs`` is 0 where labels have to be counted."""
    if losses.family(task.loss) == "on_batch":
        found = leaves(batch)
        return Facts("other", tuple(found[0].shape[1:]) if found else (), outputs=0)
    inputs, targets = losses.pair(batch, what)
    shape = tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else ()
    kind, outputs = _kind(targets, task.loss, what) if isinstance(targets, Tensor) else ("other", 0)
    return Facts(kind, shape, outputs=outputs, threshold=0.5 if losses.on_probabilities(task.loss) else 0.0)


def _kind(targets: Tensor, loss: Any, what: str) -> tuple[Kind, int]:
    """What the targets are, and the width of output they need."""
    width, family = int(targets.shape[1:].numel()), losses.family(loss)
    if family in ("binary", "elementwise"):
        return "classification" if family == "binary" else "regression", width
    if targets.is_floating_point() or targets.is_complex():
        return "classification" if family == "classes" else "regression", width  # probabilities, a column a class
    if family == "classes" or (targets.ndim == 1 and int(targets.min()) >= 0):
        return "classification", 0
    if loss is None:
        received = f"whole numbers of shape {tuple(targets.shape)} from {int(targets.min())} to {int(targets.max())}"
        remedy = "use torch.unique(y, return_inverse=True)[1] for classes or y.float() for numbers"
        raise misfit("labels 0..C-1 of shape (examples,) or floating-point numbers", received, remedy, what)
    return "other", 0


def _count_classes(targets: Tensor, loss: Any, what: str) -> int:
    """One more than the largest label.

    Raises:
        ValueError: for negative labels other than the loss's ``ignore_index``, and for training on one class only.
    """
    used = losses.labels_that_count(loss, targets)
    labels = used.numel() > 0 and not targets.is_floating_point()
    low, high = (int(used.min()), int(used.max())) if labels else (0, 1)
    if low < 0 and losses.family(loss) != "binary":
        remedy = "map them with classes, y = torch.unique(y, return_inverse=True)"
        raise misfit(f"labels 0..C-1 for {losses.name(loss)}", losses.labels_in_words(used), remedy, what)
    single = bool((targets == targets.flatten()[0]).all()) and what == "train"
    if single and losses.family(loss) != "unknown":
        received = f"only {targets.flatten()[0].item():g} in all {len(targets)} rows"
        raise misfit("at least two classes", received, "add rows of another class", what)
    return max(2, high + 1)


def statistics(tensor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation (1 where constant) of each column over the finite rows; empty where there is no tensor."""
    if not isinstance(tensor, Tensor):
        return (), ()
    columns = tensor.detach().double().reshape(tensor.shape[0], -1)
    columns = columns[torch.isfinite(columns).all(1)]
    if not columns.numel():
        return (), ()
    scale = columns.std(0, correction=0)
    scale[scale == 0] = 1.0
    return tuple(columns.mean(0).tolist()), tuple(scale.tolist())


def _not_finite_notes(tensors: Any) -> tuple[str, ...]:
    """A sentence for inputs and for targets that hold NaN or infinity, with rows and columns."""
    pair, notes = isinstance(tensors, tuple) and len(tensors) == 2, []
    named = zip(("inputs", "targets"), tensors, strict=True) if pair else [("the data", tensors)]
    for name, leaf in ((name, leaf) for name, tree in named for leaf in leaves(tree) if leaf.is_floating_point()):
        if bool(torch.isfinite(leaf.sum(dtype=torch.float64))):
            continue  # NaN and infinity survive a sum: one pass without a copy
        wrong = ~torch.isfinite(leaf.reshape(leaf.shape[0], -1))
        rows, columns = (wrong.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
        found = f"{len(rows)} of {leaf.shape[0]} rows of {name} hold NaN or infinity"
        remedy = "steps they make non-finite are refused; drop or fill these rows"
        notes += [f"{found}: rows {some(rows)}, columns {some(columns)}; {remedy}"] if rows else []
    return tuple(notes)
