"""Tensors, NumPy arrays and lists become tensors, and their targets tell what the work is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset, TensorDataset

from fogline.data import losses
from fogline.data.facts import Facts, Kind
from fogline.data.source import InMemory, leaves, map_tree
from fogline.errors import did_you_mean
from fogline.task import Task

_SHOWN = 5


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
    return _tensor(value, what)


def _tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return torch.stack([item.detach() for item in value])
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"{what}: expected rows of equal length, received a ragged {type(value).__name__}") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{what}: expected numbers, received {type(value).__name__} of {array.dtype}; "
            "for columns of text pass a frame or a CSV file with target=, and they are encoded"
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    if isinstance(value, list) and array.dtype == np.float64:
        array = array.astype(np.float32)  # Python has but one float: a list says nothing about precision
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(native if native.flags.writeable else native.copy())


def wrapped_tensors(dataset: Any) -> Any | None:
    """The tensors of a TensorDataset, or of a Subset, ConcatDataset or StackDataset of such; None for other datasets.

    Only exact types are looked into: a subclass may change what an example is.
    """
    if type(dataset) is TensorDataset:
        return tuple(dataset.tensors) if len(dataset.tensors) > 1 else dataset.tensors[0]
    if type(dataset) is StackDataset:
        return _stacked(dataset)
    if type(dataset) is Subset:
        inner = wrapped_tensors(dataset.dataset)
        if inner is None:
            return None
        index = torch.as_tensor(list(dataset.indices), dtype=torch.int64)
        return map_tree(lambda leaf: leaf.index_select(0, index.to(leaf.device)), inner)
    if type(dataset) is ConcatDataset:
        parts: list[Any] = [wrapped_tensors(part) for part in dataset.datasets]
        if any(type(part) is not tuple for part in parts) or len({len(part) for part in parts}) != 1:
            return None
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))
    return None


def _stacked(dataset: StackDataset[Any]) -> Any | None:
    parts = dataset.datasets
    values = list(parts.values()) if isinstance(parts, dict) else list(parts)
    if not all(isinstance(value, (Tensor, Dataset)) for value in values):
        return None
    inner = [value if isinstance(value, Tensor) else wrapped_tensors(value) for value in values]
    if not all(isinstance(value, Tensor) for value in inner):
        return None
    return dict(zip(parts, inner, strict=True)) if isinstance(parts, dict) else tuple(inner)


def in_memory(value: Any, task: Task, what: str) -> InMemory:
    """Tensors in memory that fit the task.

    Raises:
        TypeError: if supervised work got no pair of (inputs, targets).
        ValueError: if there are no rows, or inputs and targets differ in length.
    """
    if isinstance(value, list) and len(value) == 2 and all(isinstance(item, (Tensor, np.ndarray)) for item in value):
        value = tuple(value)
    tensors = to_tensors(value, what)
    kind_of_loss = losses.family(task.loss)
    supervised = kind_of_loss != "on_batch"
    if supervised and not (isinstance(tensors, tuple) and len(tensors) == 2):
        received = f"{len(tensors)} parts" if isinstance(tensors, (tuple, dict)) else "a single tensor"
        raise TypeError(
            f"{what}: expected a pair (inputs, targets), received {received}; for other work pass "
            "loss=fogline.on_batch(fn) with fn(model, batch)"
        )
    found = leaves(tensors)
    if not found:
        raise TypeError(f"{what}: expected tensors, received {type(value).__name__} without any tensor in it")
    for leaf in found:
        if leaf.ndim == 0:
            raise ValueError(
                f"{what}: expected tensors whose first dimension counts examples, received a single number"
            )
    _same_length(tensors, found, what, supervised)
    if found[0].shape[0] == 0:
        raise ValueError(f"{what}: expected at least one example, received 0 rows")
    truth = (torch.bool,) if kind_of_loss == "classes" or task.loss is None else ()
    if supervised and isinstance(tensors[1], Tensor) and tensors[1].dtype in (*_SMALL_WHOLE, *truth):
        tensors = (tensors[0], tensors[1].long())  # the losses over classes take int64
    if supervised and task.model is None and _single_numbers(tensors[1]):
        tensors = (tensors[0], tensors[1][:, None])  # the built-in model's outputs are columns
    return InMemory(tensors)


def _single_numbers(targets: Any) -> bool:
    return isinstance(targets, Tensor) and targets.ndim == 1 and targets.is_floating_point()


_SMALL_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32)


def _same_length(tensors: Any, found: list[Tensor], what: str, supervised: bool) -> None:
    rows = [leaf.shape[0] for leaf in found]
    if len(set(rows)) == 1:
        return
    if supervised and len(found) == 2:
        raise ValueError(
            f"{what}: expected as many targets as inputs, received {rows[0]} inputs and {rows[1]} targets; "
            "check that both come from the same rows"
        )
    raise ValueError(f"{what}: expected tensors with the same number of rows, received {rows} rows")


def array_facts(source: InMemory, task: Task, what: str = "train") -> Facts:
    """Kind of work, shapes and widths, from the tensors and the loss.

    Raises:
        ValueError: if there is one class only, or labels no loss over classes can use.
    """
    kind_of_loss = losses.family(task.loss)
    notes = not_finite_notes(source)
    if kind_of_loss == "on_batch":
        return Facts("other", tuple(leaves(source.tensors)[0].shape[1:]), outputs=0, notes=notes)
    inputs, targets = source.tensors
    shape = tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else ()
    if not isinstance(targets, Tensor):
        return Facts("other", shape, outputs=0, notes=notes)
    kind, outputs = _kind(targets, task.loss, what)
    if kind == "classification" and what == "train" and kind_of_loss != "unknown":
        _more_than_one_class(targets, what)
    threshold = 0.5 if losses.on_probabilities(task.loss) else 0.0
    return Facts(kind, shape, outputs=outputs, notes=notes, threshold=threshold)


def _kind(targets: Tensor, loss: Any, what: str) -> tuple[Kind, int]:
    """What the targets are, and the width of output they need."""
    width = int(targets.shape[1:].numel())
    whole = not (targets.is_floating_point() or targets.is_complex())
    kind_of_loss = losses.family(loss)
    if kind_of_loss == "binary":
        return "classification", width
    if kind_of_loss == "elementwise":
        return "regression", width
    if kind_of_loss == "classes" and not whole:
        return "classification", width  # probabilities of classes, one column a class
    if not whole:
        return "regression", width
    if kind_of_loss == "classes":
        return "classification", _count_classes(targets, loss, what)
    if targets.ndim == 1 and int(targets.min()) >= 0:
        return "classification", max(2, int(targets.max()) + 1)
    if loss is None:
        raise ValueError(
            f"{what}: expected labels 0..C-1 of shape (examples,) or floating-point numbers, received whole numbers of "
            f"shape {tuple(targets.shape)} from {int(targets.min())} to {int(targets.max())}; use "
            "torch.unique(y, return_inverse=True)[1] for classes or y.float() for numbers"
        )
    return "other", 0


def _count_classes(targets: Tensor, loss: Any, what: str) -> int:
    """One more than the largest label.

    Raises:
        ValueError: for negative labels other than the loss's ``ignore_index``.
    """
    ignored = getattr(loss, "ignore_index", -100)
    used = targets if int(targets.min()) >= 0 else targets[targets != ignored]
    if used.numel() and int(used.min()) < 0:
        raise ValueError(
            f"{what}: expected labels 0..C-1 for {losses.name(loss)}, received {labels_in_words(used)}; map them with "
            "classes, y = torch.unique(y, return_inverse=True)"
        )
    return max(2, int(used.max()) + 1) if used.numel() else 2


def labels_in_words(labels: Tensor) -> str:
    """The different labels there are, the first few.

    >>> labels_in_words(torch.tensor([3, 1, 3]))
    'labels 1, 3'
    """
    return "labels " + _some(np.unique(labels.detach().cpu().numpy()).tolist())


def _more_than_one_class(targets: Tensor, what: str) -> None:
    if not (targets.is_floating_point() and targets.ndim > 1 and targets.shape[1] > 1) and bool(
        targets.min() == targets.max()
    ):
        raise ValueError(
            f"{what}: expected at least two classes, received only {targets.flatten()[0].item():g} in all "
            f"{targets.shape[0]} rows; add rows of another class"
        )


def name_classes(
    value: Any, what: str, names: tuple[str, ...] | None = None
) -> tuple[Any, tuple[str, ...] | None, str]:
    """Replace targets of text by labels 0..C-1; returns the data, the names of the classes and a note.

    Raises:
        ValueError: for a label that is not among ``names``.
    """
    if not (isinstance(value, (tuple, list)) and len(value) == 2 and not isinstance(value[1], (Tensor, tuple, dict))):
        return value, names, ""
    try:
        targets = np.asarray(value[1])
    except ValueError:  # ragged: refused with a better message where tensors are made
        return value, names, ""
    if targets.dtype.kind not in "USO" or targets.ndim != 1 or not all(isinstance(item, str) for item in targets):
        return value, names, ""
    texts = targets.astype(str)
    names = tuple(sorted(set(texts.tolist()))) if names is None else names
    place = {name: label for label, name in enumerate(names)}
    unseen = sorted(set(texts.tolist()) - set(names))
    if unseen:
        raise ValueError(
            f"{what}: expected the classes of the training data, received {unseen[0]!r}; "
            f"{did_you_mean(unseen[0], names)}"
        )
    labels = torch.tensor([place[text] for text in texts.tolist()], dtype=torch.int64)
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return (value[0], labels), names, f"targets of text were read as {len(names)} classes ({shown})"


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


def not_finite_notes(source: InMemory) -> tuple[str, ...]:
    """A sentence for inputs and for targets that hold NaN or infinity, with rows and columns."""
    pair = source.tensors
    named = (
        [("inputs", pair[0]), ("targets", pair[1])]
        if isinstance(pair, tuple) and len(pair) == 2
        else [("the data", pair)]
    )
    notes = []
    for what, tree in named:
        for leaf in leaves(tree):
            note = _not_finite(leaf, what)
            notes += [note] if note else []
    return tuple(notes)


def _not_finite(leaf: Tensor, what: str) -> str:
    if not leaf.is_floating_point() or bool(torch.isfinite(leaf.sum(dtype=torch.float64))):
        return ""  # NaN and infinity survive a sum: one pass without a copy
    flat = ~torch.isfinite(leaf.reshape(leaf.shape[0], -1))
    rows = flat.any(1).nonzero().flatten().tolist()
    if not rows:
        return ""
    columns = flat.any(0).nonzero().flatten().tolist()
    return (
        f"{len(rows)} of {leaf.shape[0]} rows of {what} hold NaN or infinity: rows {_some(rows)}, "
        f"columns {_some(columns)}; steps they make non-finite are refused; drop or fill these rows"
    )


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    return shown if len(numbers) <= _SHOWN else f"{shown}, ... ({len(numbers)} in all)"
