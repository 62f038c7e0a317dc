"""Data of every kind is opened here, once, before training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate

from fogline.data import frames, losses
from fogline.data.chunks import Chunks, is_streamed, open_chunks
from fogline.data.datasets import open_source, statistics
from fogline.data.images import HELD_OUT, ImageEncoder, open_folder
from fogline.data.source import Facts, InMemory, Source
from fogline.data.streamed import Streamed
from fogline.data.table_folder import open_streamed
from fogline.data.tables import TableEncoder, hold_out, read_target
from fogline.errors import did_you_mean, misfit, unknown
from fogline.task import Task

_FEWEST_TO_SPLIT = 5


@dataclass(frozen=True)
class Opened:
    """Data ready to train on."""

    train: Source
    valid: Source | None
    facts: Facts
    encoder: TableEncoder | ImageEncoder | None = None
    """How new rows or image files become inputs; ``to_dict()`` is plain JSON."""


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
    train = _table_or_folder(task.train, "train", task.target)
    columns = isinstance(train, (frames.Table, Chunks))
    valid = _table_or_folder(task.valid, "valid", task.target if columns else None)
    if isinstance(train, Chunks):
        return _open_chunks(train, valid, task, seed)
    if task.valid is not None and type(valid) is not type(train):
        form = "a folder of images" if isinstance(train, Path) else "data of the same form"
        form = "a frame or table file" if isinstance(train, frames.Table) else form
        expected = f"{form} like the training data ({type(task.train).__name__})"
        raise misfit(expected, type(task.valid).__name__, "give both in one form", "valid", TypeError)
    if isinstance(train, Path):
        if losses.family(task.loss) in ("binary", "elementwise"):
            expected = "a loss over classes for a folder of images by class"
            raise misfit(expected, losses.name(task.loss), "use nn.CrossEntropyLoss()")
        held_folder = valid if isinstance(valid, Path) else None
        return Opened(*open_folder(train, held_folder, seed, task.model is None))
    notes: list[str] = []
    if isinstance(train, frames.Table):
        held = valid if isinstance(valid, frames.Table) else None
        return _open_pairs(*_encoded(train, held, task, seed, notes), task, notes)
    return _open_pairs(*_labelled(task, notes), task, notes)


def load_encoder(values: dict[str, Any]) -> TableEncoder | ImageEncoder:
    """An encoder from its ``to_dict()``; its ``encode`` turns new rows or image files into inputs.

    Raises:
        ValueError: for values of another kind.

    >>> load_encoder(TableEncoder(()).to_dict())
    TableEncoder(columns=(), target=None, classes=None, as_float=False)
    """
    encoders: dict[Any, type[TableEncoder | ImageEncoder]] = {"image": ImageEncoder, "table": TableEncoder}
    if values.get("kind") not in encoders:
        raise unknown("kind of encoder", values.get("kind"), encoders)
    return encoders[values["kind"]].from_dict(values)


def _table_or_folder(value: Any, what: str, target: str | None) -> frames.Table | Chunks | Path | None:
    """A table, one in chunks, a folder, or None for data of another kind."""
    if frames.is_frame(value):
        return replace(frames.from_frame(value, what), target=target)
    if isinstance(value, tuple) and len(value) == 2 and frames.is_frame(value[0]):
        return frames.with_target(value[0], value[1], what, target if what == "valid" else None)
    if not isinstance(value, (str, Path)):
        return None
    path = Path(value).expanduser()
    if not path.exists():
        near = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, near)
        hint = hint if hint.startswith("did") else "check the path"
        raise ValueError(f"{what}: expected the path of a file or folder, but {path} does not exist; {hint}")
    if is_streamed(path):
        return open_chunks(path, what, target)
    if path.is_dir():
        return path
    if path.suffix.lower() not in frames.FILES:
        expected = f"a folder of images or a file ending in {', '.join(frames.FILES)}"
        raise misfit(expected, path.name, "convert the file, or pass a frame", what)
    return replace(frames.read(path, what), target=target)


def _open_chunks(train: Chunks, valid: Any, task: Task, seed: int) -> Opened:
    """A table larger than memory; what is known of it is what its sample shows."""
    family, notes = losses.family(task.loss), list[str]()
    if not (task.valid is None or isinstance(valid, (frames.Table, Chunks))):
        expected = f"a table like the training data ({train.root.name})"
        raise misfit(expected, type(task.valid).__name__, "give both in one form", "valid", TypeError)
    if train.target is None and family != "on_batch":
        has = f"None; {train.root.name} has {', '.join(map(repr, train.columns))}"
        raise TypeError(f"expected target= with the column to predict, received {has}")
    train, valid = _parted(train, valid, notes)
    source, sample, held_out = open_streamed(train, valid is not None, family, seed, notes)
    held: Any = held_out if valid is None else valid
    if isinstance(valid, Chunks):
        held = valid.read(0)
    encoder = source.encoder
    pairs = encoder.tensors(sample, []), None if held is None else encoder.tensors(held, notes)
    opened = _open_pairs(*pairs, encoder, task, notes)
    facts = opened.facts
    if encoder.classes is not None and not encoder.as_float:
        facts = replace(facts, outputs=max(facts.outputs, len(encoder.classes)))
    scored = Streamed(valid, encoder) if isinstance(valid, Chunks) else opened.valid
    return replace(opened, train=source, valid=scored, facts=facts)


def _parted(train: Chunks, valid: Any, notes: list[str]) -> tuple[Chunks, Any]:
    """The files below ``train/``, with those below ``valid/`` (``val/``, ``test/``) as held-out data."""
    if not (train.root / "train").is_dir():
        return train, valid
    parts = {name: train.below(name) for name in HELD_OUT if (train.root / name).is_dir()}
    found = [name for name, part in parts.items() if part.chunks]
    if valid is None and found:
        valid = parts[found[0]]
        notes.append(f"the files in {found[0]}/ are the held-out data")
    return train.below("train"), valid


def _encoded(
    table: frames.Table, valid: frames.Table | None, task: Task, seed: int, notes: list[str]
) -> tuple[Any, Any, TableEncoder]:
    """Training and held-out rows as tensors, by one encoder that is fitted to the training rows."""
    encoder, family = TableEncoder(), losses.family(task.loss)
    if table.rows == 0:
        raise ValueError(f"{table.origin}: expected at least one row, received none")
    if table.target is not None:
        table.refuse_missing(table.columns if table.target in table.columns else ())
        encoder = read_target(table, family, notes)
        if valid is None:
            table, valid = _split(table, encoder, seed, notes)
    elif family != "on_batch":
        has = f"None; {table.origin} has {', '.join(map(repr, table.columns))}"
        raise TypeError(f"expected target= with the column to predict, received {has}")
    encoder = encoder.fit(table, notes)
    return encoder.tensors(table, []), None if valid is None else encoder.tensors(valid, notes), encoder


def _split(
    table: frames.Table, target: TableEncoder, seed: int, notes: list[str]
) -> tuple[frames.Table, frames.Table | None]:
    """Rows to train on, and a fifth to hold out."""
    classes = None if target.classes is None else target.targets(table).flatten().long().numpy()
    kept, held = hold_out(classes, table.rows, seed)
    if table.rows < _FEWEST_TO_SPLIT or not len(held):
        notes.append(f"{table.rows} rows are too few to hold some out: nothing is validated")
        return table, None
    share = "20 %" if classes is None else "20 % of each class"
    notes.append(f"{len(held)} of {table.rows} rows ({share}) were held out for validation")
    return table.take(kept), table.take(held)


def _labelled(task: Task, notes: list[str]) -> tuple[Any, Any, TableEncoder]:
    """Targets of text beside arrays become labels, as those of a table do."""
    pairs, encoder = [], TableEncoder()
    for value, what in ((task.train, "train"), (task.valid, "valid")):
        pair = isinstance(value, (tuple, list)) and len(value) == 2
        if pair and _is_text(value[1]) and (what == "train" or encoder.target):
            table = frames.make_table({"targets": np.asarray(value[1])}, what, "targets")
            if what == "train":
                encoder = read_target(table, losses.family(task.loss), notes)
            value = value[0], encoder.targets(table)
        pairs.append(value)
    if task.target is not None:
        said = "is for frames and files; the targets of tensors and datasets come with them"
        notes.append(f"target={task.target!r} {said}")
    return pairs[0], pairs[1], encoder


def _is_text(targets: Any) -> bool:
    sequence = isinstance(targets, (list, np.ndarray)) or frames.is_series(targets)
    return sequence and len(targets) > 0 and all(isinstance(item, str) for item in targets)


def _in_columns(train: Source, task: Task) -> bool:
    """Whether rows have columns, and are no series or texts of any length, padded for each batch as they come."""
    if losses.family(task.loss) == "on_batch":
        return False
    if isinstance(train, InMemory):
        inputs = train.tensors[0]
        return isinstance(inputs, Tensor) and inputs.is_floating_point()
    return getattr(train, "collate", default_collate) is default_collate


def _open_pairs(train_value: Any, valid_value: Any, encoder: TableEncoder, task: Task, notes: list[str]) -> Opened:
    """Tensors, datasets and loaders, with what is known of them."""
    train, facts = open_source(train_value, task, "train")
    valid, held = None, facts
    if valid_value is not None:
        valid, held = open_source(valid_value, task, "valid")
        if len(facts.inputs) == len(held.inputs) == 1 and facts.inputs != held.inputs and _in_columns(train, task):
            expected = f"inputs with {facts.inputs[0]} columns as in the training data"
            raise misfit(expected, held.inputs[0], "give both the same columns", "valid")
        notes += [f"held-out data: {note}" for note in held.notes]
    facts = replace(facts, columns=encoder.names or None, notes=(*facts.notes, *notes))
    if facts.kind == "classification":
        outputs = max(facts.outputs, held.outputs)
        facts = replace(facts, classes=encoder.classes or facts.classes, outputs=outputs)
    if facts.kind == "regression" and isinstance(train, InMemory):
        mean, scale = statistics(train.tensors[1])
        scored: InMemory = valid if isinstance(valid, InMemory) else train
        variance = tuple(value**2 for value in statistics(scored.tensors[1])[1])
        facts = replace(facts, target_mean=mean, target_scale=scale, held_out_variance=variance)
    scaled = task.model is not None or encoder.columns or len(facts.inputs) != 1 or facts.kind == "other"
    if isinstance(train, InMemory) and not scaled:
        mean, scale = statistics(train.tensors[0])
        facts = replace(facts, input_mean=mean, input_scale=scale)
    return Opened(train, valid, facts, encoder if encoder.columns else None)
