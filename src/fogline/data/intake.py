"""Data of every kind is opened here, once, before training."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from fogline.data import frames, losses
from fogline.data.arrays import array_facts, in_memory, name_classes, statistics, wrapped_tensors
from fogline.data.datasets import Parts, map_style, stream, take_apart
from fogline.data.facts import Facts, Opened
from fogline.data.images import open_folder
from fogline.data.source import InMemory, Source
from fogline.data.tabular import open_table
from fogline.errors import did_you_mean
from fogline.task import Task

_FORMS = (
    "tensors or arrays (inputs, targets), a pandas or Polars frame with target=, a Dataset, a DataLoader, "
    "an IterableDataset, or the path of a CSV or Parquet file or of a folder of images by class"
)


def open_data(task: Task, *, seed: int = 0) -> Opened:
    """Turn the training and held-out data of a task into sources of batches.

    Where only a frame, a table file or a folder of images was given, 20 percent is held out, in proportion to the
    classes, decided by the seed; tensors and datasets are used as they are.

    Raises:
        TypeError: for data of an unknown kind or structure.
        ValueError: for data that does not fit: empty, of unequal lengths, an unknown column, missing values, one class
            only, labels no loss can use. The message says what was expected, what came and what to do.

    >>> import torch
    >>> from torch import nn
    >>> opened = open_data(Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), (torch.ones(6, 4), torch.arange(6) % 3)))
    >>> opened.train.size, opened.facts.kind, opened.facts.outputs
    (6, 'classification', 3)
    """
    train = _table_or_path(task.train, task, "train")
    valid = _table_or_path(task.valid, task, "valid", train[1] if isinstance(train, tuple) else None)
    if task.valid is not None and type(valid) is not type(train):
        wanted = "data of the same form"
        if train is not None:
            wanted = "a frame or table file" if isinstance(train, tuple) else "a folder of images"
        raise TypeError(
            f"valid: expected {wanted} like the training data ({type(task.train).__name__}), "
            f"received {type(task.valid).__name__}"
        )
    if isinstance(train, tuple):
        table, name = train
        return open_table(table, valid[0] if isinstance(valid, tuple) else None, name, task, seed)
    if isinstance(train, Path):
        if losses.family(task.loss) in ("binary", "elementwise"):
            raise ValueError(
                f"expected a loss over classes for a folder of images by class, received {losses.name(task.loss)}; "
                "use nn.CrossEntropyLoss()"
            )
        return open_folder(train, valid if isinstance(valid, Path) else None, seed, task.model is None)
    return _open_pair(task)


def _table_or_path(
    value: Any,
    task: Task,
    what: str,
    target_name: str | None = None,  # what a separate column of targets is called
) -> tuple[frames.Table, str | None] | Path | None:
    """A table with its target's name, a folder of images, or None for data of another kind."""
    if isinstance(value, (str, Path)):
        return _open_path(Path(value), task, what)
    if frames.is_frame(value):
        return frames.from_frame(value, what), task.target
    if isinstance(value, tuple) and len(value) == 2 and frames.is_frame(value[0]):
        target = value[1].iloc[:, 0] if frames.is_frame(value[1]) and hasattr(value[1], "iloc") else value[1]
        if frames.is_frame(target):
            target = target.to_series(0)
        return frames.with_target(value[0], target, what, target_name)
    return None


def _open_path(path: Path, task: Task, what: str) -> tuple[frames.Table, str | None] | Path:
    path = path.expanduser()
    if not path.exists():
        near = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, near)
        hint = hint if hint.startswith("did") else "check the path"
        raise ValueError(f"{what}: expected the path of a file or folder, but {path} does not exist; {hint}")
    if path.is_dir():
        return path
    if path.suffix.lower() not in frames.FILES:
        raise ValueError(
            f"{what}: expected a folder of images or a file ending in {', '.join(frames.FILES)}, received {path.name}"
        )
    return frames.read(path, what), task.target


def _open_pair(task: Task) -> Opened:
    """Tensors, datasets and loaders."""
    train_value, names, note = name_classes(task.train, "train")
    train, facts = _open(train_value, task, "train")
    valid, held = None, None
    if task.valid is not None:
        valid_value, _, _ = name_classes(task.valid, "valid", names)
        valid, held = _open(valid_value, task, "valid")
        _same_shape(facts, held)
        if facts.kind == "classification":
            facts = replace(facts, outputs=max(facts.outputs, held.outputs))
        facts = replace(facts, notes=facts.notes + tuple(f"held-out data: {said}" for said in held.notes))
    if task.target is not None:
        said = f"target={task.target!r} is for frames and files; the targets of tensors and datasets come with them"
        facts = replace(facts, notes=(*facts.notes, said))
    if names is not None:
        facts = replace(facts, classes=names, notes=(*facts.notes, note))
    if facts.kind == "regression" and isinstance(train, InMemory):
        mean, scale = statistics(train.tensors[1])
        last = valid if isinstance(valid, InMemory) else train
        variance = tuple(value**2 for value in statistics(last.tensors[1])[1])
        facts = replace(facts, target_mean=mean, target_scale=scale, held_out_variance=variance)
    if task.model is None and len(facts.inputs) == 1 and isinstance(train, InMemory) and facts.kind != "other":
        mean, scale = statistics(train.tensors[0])
        facts = replace(facts, input_mean=mean, input_scale=scale)
    return Opened(train, valid, facts)


def _open(value: Any, task: Task, what: str) -> tuple[Source, Facts]:
    parts = take_apart(value, what) if isinstance(value, DataLoader) else Parts(value)
    inner = wrapped_tensors(parts.dataset) if parts.collate is default_collate else None
    if isinstance(parts.dataset, IterableDataset):
        return stream(parts, task, what)
    if inner is not None or _is_arrays(parts.dataset):
        source = in_memory(parts.dataset if inner is None else inner, task, what)
        facts = array_facts(source, task, what)
        return source, replace(
            facts, notes=parts.notes + facts.notes, batch_size=parts.batch_size, shuffle=parts.shuffle
        )
    if hasattr(parts.dataset, "__getitem__") and isinstance(parts.dataset, Sized):
        return map_style(parts, task, what)
    raise TypeError(f"{what}: expected {_FORMS}; received {type(value).__name__}")


def _is_arrays(value: Any) -> bool:
    """Tensors, arrays or series, or a tuple or dict of them; a list of pairs is a dataset instead."""
    if isinstance(value, (Tensor, np.ndarray, dict)) or frames.is_series(value):
        return True
    if isinstance(value, tuple):
        return True
    if isinstance(value, list):
        return not value or not isinstance(value[0], (tuple, dict))
    return False


def _same_shape(train: Facts, valid: Facts) -> None:
    if train.inputs and valid.inputs and len(train.inputs) == len(valid.inputs) == 1 and train.inputs != valid.inputs:
        raise ValueError(
            f"valid: expected inputs with {train.inputs[0]} columns as in the training data, received "
            f"{valid.inputs[0]}; give both the same columns"
        )
