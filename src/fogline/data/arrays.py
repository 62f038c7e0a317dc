"""Tensors, NumPy arrays and lists become tensors in memory, and targets tell what the work is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, StackDataset, Subset, TensorDataset

from fogline.data import losses
from fogline.data.facts import Facts, Kind
from fogline.data.frames import is_series
from fogline.data.source import Batch, InMemory, leaves, map_tree
from fogline.errors import misfit, some
from fogline.task import Task

_SMALL_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32)


def is_arrays(value: Any) -> bool:
    """Tensors, arrays or series, or a tuple or dict of them; a list of pairs is a dataset instead."""
    if isinstance(value, list):
        return not value or not isinstance(value[0], (tuple, dict))
    return isinstance(value, (Tensor, np.ndarray, dict, tuple)) or is_series(value)


def wrapped_tensors(dataset: Any) -> Any | None:
    """The tensors of a TensorDataset or StackDataset, or of a Subset or ConcatDataset of such; None for other datasets.

    Only exact types are looked into: a subclass may change what an example is.
    """
    if type(dataset) is TensorDataset:
        return tuple(dataset.tensors) if len(dataset.tensors) > 1 else dataset.tensors[0]
    if type(dataset) is StackDataset:
        parts = dataset.datasets
        values = parts.values() if isinstance(parts, dict) else parts
        return parts if all(isinstance(value, Tensor) for value in values) else None
    if type(dataset) is Subset:
        inner, index = wrapped_tensors(dataset.dataset), torch.tensor(list(dataset.indices), dtype=torch.int64)
        return None if inner is None else map_tree(lambda leaf: leaf[index.to(leaf.device)], inner)
    if type(dataset) is ConcatDataset:
        pairs: list[Any] = [wrapped_tensors(part) for part in dataset.datasets]
        if all(type(pair) is tuple and len(pair) == len(pairs[0]) for pair in pairs):
            return tuple(torch.cat(column) for column in zip(*pairs, strict=True))
    return None


def to_tensors(value: Any, what: str) -> Any:
    """Arrays and lists of numbers as tensors, inside tuples and dicts too.

    Raises:
        TypeError: for text, objects or ragged lists.
    """
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: to_tensors(item, f"{what}[{key!r}]") for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(to_tensors(item, f"{what}[{place}]") for place, item in enumerate(value))
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


def open_arrays(value: Any, task: Task, what: str) -> tuple[InMemory, Facts]:
    """Tensors in memory that fit the task, and what they are.

    Raises:
        TypeError: if supervised work got no pair of (inputs, targets).
        ValueError: if there are no rows, inputs and targets differ in length, there is one class only, or labels no
            loss over classes can use.
    """
    if isinstance(value, list) and len(value) == 2 and all(isinstance(item, (Tensor, np.ndarray)) for item in value):
        value = tuple(value)
    tensors = to_tensors(value, what)
    if losses.family(task.loss) != "on_batch":
        inputs, targets = losses.pair(tensors, what)
        tensors = inputs, _fitting(targets, task)
        _check_lengths(inputs, targets, what)
    source = InMemory(tensors)
    if source.size == 0:
        raise ValueError(f"{what}: expected at least one example, received 0 rows")
    facts = replace(facts_of(tensors, task, what), notes=_not_finite_notes(tensors))
    if facts.kind == "classification" and isinstance(tensors[1], Tensor):
        facts = replace(facts, outputs=facts.outputs or _count_classes(tensors[1], task.loss, what))
        if what == "train" and losses.family(task.loss) != "unknown":
            _more_than_one_class(tensors[1], what)
    return source, facts


def _fitting(targets: Any, task: Task) -> Any:
    """Targets in the type and shape that losses over classes and the built-in model take."""
    if not isinstance(targets, Tensor):
        return targets
    over_classes = task.loss is None or losses.family(task.loss) == "classes"
    if targets.dtype in _SMALL_WHOLE or (targets.dtype == torch.bool and over_classes):
        return targets.long()
    single_numbers = targets.ndim == 1 and targets.is_floating_point()
    return targets[:, None] if single_numbers and task.model is None else targets


def _check_lengths(inputs: Any, targets: Any, what: str) -> None:
    rows = [len(part) for part in (inputs, targets) if isinstance(part, Tensor) and part.ndim]
    if len(rows) == 2 and rows[0] != rows[1]:
        received = f"{rows[0]} inputs and {rows[1]} targets"
        raise misfit("as many targets as inputs", received, "check that both come from the same rows", what)


def facts_of(batch: Batch, task: Task, what: str) -> Facts:
    """Kind of work, shapes and widths, from a batch and the loss; ``outputs`` is 0 where labels have to be counted.

    Raises:
        TypeError: if supervised work got no pair of (inputs, targets).
        ValueError: for whole numbers that are no labels, where no loss says what they are.
    """
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
        ValueError: for negative labels other than the loss's ``ignore_index``.
    """
    used = losses.labels_that_count(loss, targets)
    if used.numel() and int(used.min()) < 0:
        remedy = "map them with classes, y = torch.unique(y, return_inverse=True)"
        raise misfit(f"labels 0..C-1 for {losses.name(loss)}", losses.labels_in_words(used), remedy, what)
    return max(2, int(used.max()) + 1) if used.numel() else 2


def _more_than_one_class(targets: Tensor, what: str) -> None:
    probabilities = targets.is_floating_point() and targets.ndim > 1 and targets.shape[1] > 1
    if not probabilities and bool(targets.min() == targets.max()):
        received = f"only {targets.flatten()[0].item():g} in all {len(targets)} rows"
        raise misfit("at least two classes", received, "add rows of another class", what)


def statistics(tensor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation (1 where constant) of each column over the finite rows; empty where there is no tensor."""
    if not isinstance(tensor, Tensor):
        return (), ()
    columns = tensor.detach().double().reshape(tensor.shape[0], -1)
    columns = columns[torch.isfinite(columns).all(1)]
    if not columns.numel():
        return (), ()
    scale = columns.std(0, correction=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return tuple(columns.mean(0).tolist()), tuple(scale.tolist())


def _not_finite_notes(tensors: Any) -> tuple[str, ...]:
    """A sentence for inputs and for targets that hold NaN or infinity, with rows and columns."""
    pair = isinstance(tensors, tuple) and len(tensors) == 2
    named = zip(("inputs", "targets"), tensors, strict=True) if pair else [("the data", tensors)]
    notes = [_not_finite(leaf, name) for name, tree in named for leaf in leaves(tree)]
    return tuple(note for note in notes if note)


def _not_finite(leaf: Tensor, name: str) -> str:
    if not leaf.is_floating_point() or bool(torch.isfinite(leaf.sum(dtype=torch.float64))):
        return ""  # NaN and infinity survive a sum: one pass without a copy
    wrong = ~torch.isfinite(leaf.reshape(leaf.shape[0], -1))
    rows, columns = (wrong.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    if not rows:
        return ""
    return (
        f"{len(rows)} of {leaf.shape[0]} rows of {name} hold NaN or infinity: rows {some(rows)}, columns "
        f"{some(columns)}; steps they make non-finite are refused; drop or fill these rows"
    )
