"""Data of every kind is opened here, once, before training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fogline.data import frames, losses
from fogline.data.datasets import open_source, statistics
from fogline.data.facts import Facts, Opened
from fogline.data.images import ImageEncoder, open_folder
from fogline.data.source import InMemory, Source
from fogline.data.tables import TableEncoder, Target, hold_out, read_target
from fogline.errors import did_you_mean, misfit, unknown
from fogline.task import Task

_FEWEST_TO_SPLIT = 5


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
    train, name = _table_or_folder(task.train, "train", task.target)
    valid, _ = _table_or_folder(task.valid, "valid", name)
    if task.valid is not None and type(valid) is not type(train):
        form = "a folder of images" if isinstance(train, Path) else "data of the same form"
        form = "a frame or table file" if isinstance(train, frames.Table) else form
        expected = f"{form} like the training data ({type(task.train).__name__})"
        raise misfit(expected, type(task.valid).__name__, "give both in one form", "valid", TypeError)
    if isinstance(train, frames.Table):
        return _open_table(train, valid if isinstance(valid, frames.Table) else None, name, task, seed)
    if isinstance(train, Path):
        if losses.family(task.loss) in ("binary", "elementwise"):
            expected = "a loss over classes for a folder of images by class"
            raise misfit(expected, losses.name(task.loss), "use nn.CrossEntropyLoss()")
        return open_folder(train, valid if isinstance(valid, Path) else None, seed, task.model is None)
    return _open_pair(task)


def load_encoder(values: dict[str, Any]) -> TableEncoder | ImageEncoder:
    """An encoder from its ``to_dict()``; its ``encode`` turns new rows or image files into inputs.

    Raises:
        ValueError: for values of another kind.

    >>> load_encoder(TableEncoder(()).to_dict())
    TableEncoder(columns=(), target=None, classes=None)
    """
    encoders: dict[Any, type[TableEncoder | ImageEncoder]] = {"image": ImageEncoder, "table": TableEncoder}
    if values.get("kind") not in encoders:
        raise unknown("kind of encoder", values.get("kind"), encoders)
    return encoders[values["kind"]].from_dict(values)


def _table_or_folder(value: Any, what: str, target: str | None) -> tuple[frames.Table | Path | None, str | None]:
    """A table with its target's name, a folder, or None for data of another kind."""
    if frames.is_frame(value):
        return frames.from_frame(value, what), target
    if isinstance(value, tuple) and len(value) == 2 and frames.is_frame(value[0]):
        return frames.with_target(value[0], value[1], what, target if what == "valid" else None)
    if not isinstance(value, (str, Path)):
        return None, target
    path = Path(value).expanduser()
    if not path.exists():
        near = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, near)
        hint = hint if hint.startswith("did") else "check the path"
        raise ValueError(f"{what}: expected the path of a file or folder, but {path} does not exist; {hint}")
    if path.is_dir():
        return path, target
    if path.suffix.lower() not in frames.FILES:
        expected = f"a folder of images or a file ending in {', '.join(frames.FILES)}"
        raise misfit(expected, path.name, "convert the file, or pass a frame", what)
    return frames.read(path, what), target


def _open_table(table: frames.Table, valid: frames.Table | None, name: str | None, task: Task, seed: int) -> Opened:
    """Encode the training rows, and the held-out rows by the same encoder; without those, hold out 20 percent."""
    family = losses.family(task.loss)
    if table.rows == 0:
        raise ValueError(f"{table.origin}: expected at least one row, received none")
    if name is None and family != "on_batch":
        has = f"None; {table.origin} has {', '.join(map(repr, table.columns))}"
        raise TypeError(f"expected target= with the column to predict, received {has}")
    target, notes = None, tuple[str, ...]()
    if name is not None:
        if name in table.columns:
            table.refuse_missing(list(table.columns), name)
        target, notes = read_target(table, name, family)
        table, valid, split = _split(table, valid, target, seed)
        notes += (split,)
    encoder, said = TableEncoder.fit(table, name, target.classes if target else None)
    train, _ = _encoded(table, encoder, target)
    held, unseen = (None, ()) if valid is None else _encoded(valid, encoder, target)
    facts = Facts("other", (len(encoder.names),), outputs=0, columns=encoder.names, notes=(*notes, *said, *unseen))
    if target is not None and target.classes is not None:
        outputs = 1 if target.as_float else len(target.classes)
        facts = replace(facts, kind="classification", classes=target.classes, outputs=outputs)
    elif target is not None:
        facts = _with_scale(replace(facts, kind="regression", outputs=1), train, held)
    return Opened(train, held, facts, encoder)


def _split(
    table: frames.Table, valid: frames.Table | None, target: Target, seed: int
) -> tuple[frames.Table, frames.Table | None, str]:
    """Training and held-out rows, and what was done."""
    if valid is None and table.rows >= _FEWEST_TO_SPLIT:
        alike = None if target.classes is None else target.encode(table).flatten().long().numpy()
        kept, held = hold_out(alike, table.rows, seed)
        if len(held):
            share = "20 %" if alike is None else "20 % of each class"
            note = f"{len(held)} of {table.rows} rows ({share}) were held out for validation"
            return table.take(kept), table.take(held), note
    note = f"{table.rows} rows are too few to hold some out: nothing is validated"
    return table, valid, note if valid is None else ""


def _encoded(table: frames.Table, encoder: TableEncoder, target: Target | None) -> tuple[InMemory, tuple[str, ...]]:
    inputs, unseen = encoder.inputs(table)
    return InMemory(inputs if target is None else (inputs, target.encode(table))), unseen


def _open_pair(task: Task) -> Opened:
    """Tensors, datasets and loaders."""
    train_value, target, named = _labelled(task.train, "train", task)
    train, facts = open_source(train_value, task, "train")
    valid = None
    if task.valid is not None:
        valid, held = open_source(_labelled(task.valid, "valid", task, target)[0], task, "valid")
        if len(facts.inputs) == len(held.inputs) == 1 and facts.inputs != held.inputs:
            expected = f"inputs with {facts.inputs[0]} columns as in the training data"
            raise misfit(expected, held.inputs[0], "give both the same columns", "valid")
        outputs = max(facts.outputs, held.outputs) if facts.kind == "classification" else facts.outputs
        facts = replace(facts, outputs=outputs, notes=facts.notes + tuple(f"held-out data: {x}" for x in held.notes))
    if task.target is not None:
        said = f"target={task.target!r} is for frames and files; the targets of tensors and datasets come with them"
        facts = replace(facts, notes=(*facts.notes, said))
    if target is not None:
        facts = replace(facts, classes=target.classes, notes=facts.notes + named)
    if facts.kind == "regression" and isinstance(train, InMemory):
        facts = _with_scale(facts, train, valid)
    if task.model is None and len(facts.inputs) == 1 and isinstance(train, InMemory) and facts.kind != "other":
        mean, scale = statistics(train.tensors[0])
        facts = replace(facts, input_mean=mean, input_scale=scale)
    return Opened(train, valid, facts)


def _labelled(
    value: Any, what: str, task: Task, target: Target | None = None
) -> tuple[Any, Target | None, tuple[str, ...]]:
    """Targets of text beside arrays become labels, as those of a table do."""
    if not (isinstance(value, (tuple, list)) and len(value) == 2 and _is_text(value[1])):
        return value, target, ()
    table, notes = frames.make_table({"targets": np.asarray(value[1])}, what), tuple[str, ...]()
    if what == "train":
        target, notes = read_target(table, "targets", losses.family(task.loss))
    return (value[0], value[1] if target is None else target.encode(table)), target, notes


def _is_text(targets: Any) -> bool:
    sequence = isinstance(targets, (list, np.ndarray)) or frames.is_series(targets)
    return sequence and len(targets) > 0 and all(isinstance(item, str) for item in targets)


def _with_scale(facts: Facts, train: InMemory, valid: Source | None) -> Facts:
    """Statistics of the numbers to predict."""
    mean, scale = statistics(train.tensors[1])
    held = valid if isinstance(valid, InMemory) else train
    variance = tuple(value**2 for value in statistics(held.tensors[1])[1])
    return replace(facts, target_mean=mean, target_scale=scale, held_out_variance=variance)
