"""A task whose training data follows decisions about its examples: rows left out, and others with another label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from fogline.data.defaults import default_loss, default_metrics, default_model
from fogline.data.intake import Opened, open_data
from fogline.data.source import Facts, InMemory, MapStyle, Source, Stream, fingerprint, map_tree
from fogline.data.streamed import Streamed
from fogline.errors import misfit
from fogline.task import OnBatch, Task

_ROWS = 64  # of a batch, where a loader has to be made and nobody said; the recipe of a run says
_FLOATS = (torch.float32, torch.float64)  # what a run casts its data to


def edited(task: Task, dropped: Sequence[int], labels: Mapping[int, float], info: Mapping[str, Any]) -> Task:
    """The task without the dropped examples and with the new labels; the one that was given is left as it is.

    What the task left open (model, loss, metrics) is decided from the data as it was, so that a task without any
    edits and one with some differ in their training data alone.

    Args:
        task: of the run.
        dropped: positions of examples to leave out.
        labels: new labels by position.
        info: the ``run.json`` of the run: the seed of its split, and what its data was.

    Raises:
        ValueError: the data is not that of the run, or its labels cannot be replaced by one number.
        TypeError: the data is a stream, or a folder of tables larger than memory.
    """
    opened = open_data(task, seed=int((info.get("recipe") or {}).get("seed") or 0))
    _same_data(opened.train, info)
    train, facts = opened.train, opened.facts
    if isinstance(train, (Stream, Streamed)):
        received = "a stream" if isinstance(train, Stream) else "a folder of tables larger than memory"
        raise misfit("data whose examples can be chosen", received, "edit the data itself", "edits", TypeError)
    count = train.size
    outside = [at for at in (*dropped, *labels) if not 0 <= at < count]
    if outside:
        raise misfit(f"examples 0 to {count - 1}", outside[0], "give the task of this run", "edits")
    left_out = set(dropped)
    kept = torch.tensor([at for at in range(count) if at not in left_out], dtype=torch.int64)
    new = {at: label for at, label in labels.items() if at not in left_out}
    changed = _in_memory(train, kept, new, facts) if isinstance(train, InMemory) else _map_style(train, kept, new)
    return replace(
        task,
        model=task.model if task.model is not None else default_model(facts),
        loss=task.loss if task.loss is not None else default_loss(facts),
        train=_given(changed, facts),
        valid=None if opened.valid is None else _given(opened.valid, Facts("other")),
        metrics=_metrics(task, opened),
        target=None,
    )


def _metrics(task: Task, opened: Opened) -> Mapping[str, Any]:
    if task.metrics or isinstance(task.loss, OnBatch):
        return task.metrics
    return default_metrics(opened.facts)


def _same_data(train: Source, info: Mapping[str, Any]) -> None:
    """Raise where the data has another size or other values than that of the run."""
    about = info.get("task") or {}
    recorded = (info.get("examples") or {}).get("count")
    count, known = about.get("train_examples", recorded), about.get("fingerprint")
    remedy = "give the task of this run, with its data in the same order"
    if count is not None and train.size != count:
        raise misfit(f"the {count} training examples of the run", train.size, remedy, "edits")
    casts = (train, *(train.astype(dtype) for dtype in _FLOATS))
    if known is not None and all(fingerprint(each) != known for each in casts):
        raise misfit("the training data of the run", "other values (their fingerprint differs)", remedy, "edits")


def _in_memory(source: InMemory, kept: Tensor, labels: Mapping[int, float], facts: Facts) -> InMemory:
    tensors = source.tensors
    if labels:
        if not (type(tensors) is tuple and len(tensors) == 2 and isinstance(tensors[1], Tensor)):
            received = "a batch of another structure"
            raise misfit("data as (inputs, targets) to relabel", received, "drop these examples instead", "edits")
        tensors = tensors[0], _relabelled(tensors[1], labels, facts)
    return InMemory(map_tree(lambda leaf: leaf.index_select(0, kept.to(leaf.device)), tensors))


def _relabelled(targets: Tensor, labels: Mapping[int, float], facts: Facts) -> Tensor:
    """A copy of the targets with other values at some rows: class numbers, one-hot rows, or numbers to predict."""
    found = targets.clone()
    at = torch.tensor(list(labels), dtype=torch.int64, device=found.device)
    values = torch.tensor(list(labels.values()), dtype=torch.float64, device=found.device)
    width = int(targets.shape[1:].numel())
    whole = not targets.is_floating_point()
    if facts.kind == "classification":
        classes = max(facts.outputs if width == 1 else width, 2)
        whole_values = values.long()
        if bool(((whole_values != values) | (values < 0) | (values >= classes)).any()):
            raise misfit(f"labels 0 to {classes - 1}", values.tolist(), "give classes of the training data", "edits")
    if width == 1:
        found[at] = values.to(found.dtype).reshape(-1, *targets.shape[1:])
    elif facts.kind == "classification" and not whole and targets.ndim == 2:
        found[at] = F.one_hot(values.long(), width).to(found.dtype)
    else:
        shape = tuple(targets.shape[1:])
        raise misfit("targets of one number or class each", f"shape {shape} each", "drop these examples", "edits")
    return found


class EditedDataset(Dataset[Any]):
    """Some examples of a dataset, some of them with another label.

    Args:
        dataset: with ``__getitem__``, whose examples are pairs (input, target) where any is relabelled.
        index: the positions of those that are left.
        labels: new labels by position in ``dataset``.
    """

    def __init__(self, dataset: Any, index: Sequence[int], labels: Mapping[int, float]) -> None:
        self.dataset, self.index, self.labels = dataset, list(index), dict(labels)
        if hasattr(dataset, "classes"):
            self.classes = dataset.classes

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, place: int) -> Any:
        at = self.index[place]
        example = self.dataset[at]
        return _with_label(example, self.labels[at]) if at in self.labels else example


def _with_label(example: Any, label: float) -> Any:
    """The example with another target, of the kind that its target has."""
    if not isinstance(example, tuple | list) or len(example) != 2:
        received = f"a {type(example).__name__}"
        raise misfit("examples that are pairs (input, target)", received, "drop these examples instead", "edits")
    inputs, target = example
    new: Any = label
    if isinstance(target, Tensor):
        if target.numel() != 1:
            raise misfit("a target of one number", f"shape {tuple(target.shape)}", "drop these examples", "edits")
        new = torch.full_like(target, label)
    elif hasattr(target, "dtype"):
        new = target.dtype.type(label)
    elif isinstance(target, int):
        new = int(label)
    return (inputs, new) if isinstance(example, tuple) else [inputs, new]


def _map_style(source: MapStyle, kept: Tensor, labels: Mapping[int, float]) -> MapStyle:
    return replace(source, dataset=EditedDataset(source.dataset, kept.tolist(), labels))


def _given(source: Source, asked: Facts) -> Any:
    """A source in a form that a task takes, with the batch size and the order that a loader asked for."""
    if isinstance(source, InMemory):
        tensors = source.tensors
        plain = type(tensors) is tuple and all(isinstance(leaf, Tensor) for leaf in tensors)
        if asked.batch_size is None or not plain:
            return tensors
        return DataLoader(TensorDataset(*tensors), asked.batch_size, shuffle=asked.shuffle is not False)
    if isinstance(source, Streamed):
        raise misfit("held-out data in memory", "a folder of tables larger than memory", "give a part of it", "valid")
    plain = source.collate is default_collate
    if isinstance(source, Stream):
        return source.dataset if plain else DataLoader(source.dataset, _ROWS, collate_fn=source.collate)
    if plain and asked.batch_size is None and not source.num_workers:
        return source.dataset
    return DataLoader(
        source.dataset,
        asked.batch_size or _ROWS,
        shuffle=asked.shuffle is not False,
        collate_fn=source.collate,
        num_workers=source.num_workers,
        pin_memory=source.pin,
    )
