"""Losses of a whole batch that are losses of pairs: read as what they are, so that everything can be asked of them."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from fogline.data.source import MapStyle, are_rows, leaves, map_tree, part, rows_of
from fogline.descent.copies import copied
from fogline.descent.randomness import INITIAL, private_randomness, seed_everything
from fogline.doctor.asked import (
    PLAIN,
    Call,
    Comparing,
    Loss,
    Noting,
    Spread,
    by_row,
    inputs_of,
    itself,
    of_all,
    targets_of,
)
from fogline.doctor.composed import (
    Composed,
    compared,
    depends_on,
    inputs_among,
    is_its_own,
    is_told_by,
    said_of,
    told_of,
)
from fogline.task import OnBatch, Task

_ROWS = 64
"""That are asked about: what of a batch is read shows where its rows differ, as masks of a few rows need not."""
_MOST_PARTS = 8
_CPU = torch.device("cpu")


def unfolded(task: Task) -> Task:
    """The task with a loss of (outputs, targets), where its loss of a batch is one; the task itself where it is not.

    It is one where the model is called once, with what is made of each row of the batch by itself, and nothing else is
    asked of it; and where all that is read of the batch beside it is what one of PyTorch's losses is told, or one
    tensor of it: the inputs themselves, as auto-encoders are told, or another. It also is one where all of it is one of
    PyTorch's losses, whatever the parts of the model are asked before.
    """
    loss = task.loss
    if not isinstance(loss, OnBatch) or loss.deployment is not None or task.model is None:
        return task
    batch, held_out = _first_rows(task.train), _first_rows(task.valid)
    if batch is None or len(leaves(batch)) > _MOST_PARTS:
        return task
    if task.valid is not None and (held_out is None or _form(held_out) != _form(batch)):
        return task
    with private_randomness(_CPU), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training says them
        for reading in (_asked_once, _composed):
            with suppress(Exception):  # the program's own: then it stays as it is
                read = reading(task, loss.function, batch)
                if read is None or (read.others_compared and task.metrics):
                    continue
                train = read.paired(task.train)
                valid = None if task.valid is None else read.paired(task.valid)
                return replace(task, model=read.model(task.model), loss=read.loss, train=train, valid=valid)
    return task


@dataclass(frozen=True)
class _Read(ABC):
    """What a function of (model, batch) was found to be.

    Attributes:
        function: of the user's.
        like: the model.
        loss: of (outputs, targets).
        others_compared: whether metrics of the task are about other outputs or targets.
    """

    function: Callable[[Any, Any], Tensor]
    like: nn.Module
    loss: Any
    others_compared: bool

    @abstractmethod
    def of_batch(self, batch: Any) -> tuple[Any, Tensor]:
        """Inputs and targets of all rows of a batch."""

    @abstractmethod
    def wrapped(self, model: nn.Module) -> nn.Module:
        """A model, as it is called with one thing."""

    def paired(self, data: Any) -> Any:
        """Data of a task, read as pairs."""
        if isinstance(data, DataLoader):
            return DataLoader(
                data.dataset,
                batch_sampler=data.batch_sampler,
                num_workers=data.num_workers,
                pin_memory=data.pin_memory,
                collate_fn=lambda examples: self.of_batch(data.collate_fn(examples)),
            )
        return _Paired(data, self.of_batch) if isinstance(data, Dataset) else self.of_batch(data)

    def model(self, given: Any) -> Any:
        """The model of a task, or what makes it, as it is called with one thing."""
        if not isinstance(given, nn.Module):
            return lambda: self.wrapped(given())
        return self.wrapped(given)

    def halves_agree(self, rows: Any, inputs: Any, targets: Tensor) -> bool:
        """Whether what is made of rows is made of each by itself, and nothing drawn."""
        half = rows_of(rows) // 2
        same = zip(leaves(self.of_batch(part(rows, 0, half))), leaves(part((inputs, targets), 0, half)), strict=True)
        return all(torch.equal(one, other) for one, other in same)


@dataclass(frozen=True)
class _AskedOnce(_Read):
    """A function that calls its model once.

    Attributes:
        call: how it is called.
        outputs: of a few rows.
        told: which tensor of the batch are the targets; None where they are what a loss of PyTorch is told.
    """

    call: Call
    outputs: Any
    told: int | None

    def of_batch(self, batch: Any) -> tuple[Any, Tensor]:
        inputs = inputs_of(self.function, batch, self.call, self.like)
        if self.told is not None:
            return inputs, leaves(batch)[self.told]
        return inputs, targets_of(self.function, batch, self.outputs, self.like)

    def model(self, given: Any) -> Any:
        return given if self.call.single else super().model(given)

    def wrapped(self, model: nn.Module) -> nn.Module:
        return Spread(model, self.call)


@dataclass(frozen=True)
class _ReadAsOne(_Read):
    """A function whose whole way to a loss of PyTorch is taken for the model.

    Attributes:
        rows: a batch on a few rows.
        places: which tensors of a batch are the inputs.
        single: whether they are one, which is not in a tuple.
    """

    rows: Any
    places: tuple[int, ...]
    single: bool

    def of_batch(self, batch: Any) -> tuple[Any, Tensor]:
        whole = leaves(batch)
        inputs = whole[self.places[0]] if self.single else tuple(whole[place] for place in self.places)
        return inputs, of_all(batch, lambda rows: told_of(self.function, self.like, rows))

    def wrapped(self, model: nn.Module) -> nn.Module:
        return Composed(model, self.function, self.rows, self.places, self.single)


class _Paired(Dataset[Any]):
    """The examples of a data set as pairs.

    Args:
        data: of the user's.
        of_batch: inputs and targets of a batch.
    """

    def __init__(self, data: Any, of_batch: Callable[[Any], tuple[Any, Tensor]]) -> None:
        self._data, self._of_batch = data, of_batch
        if callable(getattr(data, "set_epoch", None)):
            self.set_epoch = data.set_epoch

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Any:
        with torch.no_grad():
            return map_tree(lambda leaf: leaf[0], self._of_batch(default_collate([self._data[index]])))


def _first_rows(data: Any) -> Any:
    """A batch of the first examples; None where there is none, or it is of something else than rows."""
    try:
        if isinstance(data, (DataLoader, Dataset)):
            loader: Any = data if isinstance(data, DataLoader) else DataLoader(data)
            if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
                return None
            count = min(_ROWS, len(loader.dataset))
            batch = MapStyle(loader.dataset, loader.collate_fn).take(torch.arange(count))
        elif type(data) in (tuple, list, dict) or isinstance(data, Tensor):
            batch, count = map_tree(lambda leaf: leaf[:_ROWS], data), min(_ROWS, rows_of(data))
        else:
            return None
    except Exception:  # noqa: BLE001 - the program's own: it is told when the data is opened
        return None
    return batch if count > 1 and are_rows(batch, count) else None


def _form(batch: Any) -> Any:
    """How tensors lie in a batch, and under which names."""
    if isinstance(batch, dict):
        return {name: _form(item) for name, item in batch.items()}
    return None if isinstance(batch, Tensor) else (type(batch), *map(_form, batch))


def _without_gaps(batch: Any) -> Any:
    """A copy of the rows of which all is finite, where there are some: a loss of others is equal to nothing."""
    finite = torch.stack([torch.isfinite(leaf).reshape(len(leaf), -1).all(1) for leaf in leaves(batch)]).all(0)
    few = int(finite.sum()) < 2
    return map_tree(lambda leaf: leaf.clone() if few else leaf[finite], batch)


def _start(task: Task) -> nn.Module:
    """A copy of the model as it is at the start, in evaluation mode."""
    seed_everything(0, 0, INITIAL, _CPU)
    given: Any = task.model
    return copied(given if isinstance(given, nn.Module) else given()).eval()


@torch.no_grad()
def _asked_once(task: Task, function: Callable[[Any, Any], Tensor], batch: Any) -> _Read | None:
    """The loss of pairs that a function of (model, batch) is, if it calls its model once."""
    model, few = Noting(_start(task)), _without_gaps(batch)
    count, parts = rows_of(few), leaves(few)
    with Comparing() as seen:
        value = function(model, few)
    written_to = any(leaf._version for leaf in parts)
    if len(model.calls) != 1 or not isinstance(value, Tensor) or written_to:
        return None
    call, inputs, outputs = Call(*model.calls[0]), Call(*model.calls[0]).inputs(*model.calls[0]), model.outputs
    if not leaves(inputs) or not are_rows(inputs, count) or not all(o is None or type(o) in PLAIN for o in call.others):
        return None
    if not _answers_each(model.noted, call, inputs, outputs, count):
        return None
    asked = {place for place, leaf in enumerate(parts) if any(leaf is item for item in leaves(inputs))}

    def reads(loss: Any, told: int | None, targets: Tensor) -> _Read | None:
        again = loss(outputs, targets)
        if not torch.equal(again, value.mean()) or not bool(torch.isfinite(again)):
            return None
        rebuilds = any(targets is leaf for leaf in leaves(inputs))
        found = _AskedOnce(function, model.noted, loss, rebuilds, call, outputs, told)
        return found if found.halves_agree(few, inputs, targets) else None

    if len(seen.found) == 1:
        func, said, told, rest, out = seen.found[0]
        targets = by_row(told, count)
        plainly = said is outputs and out is value and targets is told
        for loss in (itself(func, rest) if plainly else None, Loss(function, few, model.noted, None, asked)):
            if loss is not None and (found := reads(loss, None, targets)) is not None:
                return found
    for place in sorted(range(len(parts)), key=lambda place: place in asked):
        if (found := reads(Loss(function, few, model.noted, place, asked), place, parts[place])) is not None:
            return found
    return None


def _answers_each(model: nn.Module, call: Call, inputs: Any, outputs: Any, count: int) -> bool:
    """Whether a model answers each of so many rows by itself, and not with how it compares with all others."""
    half, given = count // 2, part(inputs, 0, count // 2)
    if call.single:
        found = model(given)
    else:
        given, named = call.filled(given)
        found = model(*given, **named)
    both = zip(leaves(found), leaves(outputs), strict=True)
    of_rows = (
        (by_row(few, half), by_row(all_, count)[:half]) for few, all_ in both if all_.ndim and not len(all_) % count
    )
    return all(few.shape == some.shape for few, some in of_rows)


def _composed(task: Task, function: Callable[[Any, Any], Tensor], batch: Any) -> _Read | None:
    """The loss of pairs that a function of (model, batch) is, if all of it is one of PyTorch's losses."""
    model, few = _start(task), _without_gaps(batch)
    count = rows_of(few)
    for training in (True, False):
        model.train(training)
        with Comparing() as seen:
            value = function(model, few)
        if len(seen.found) != 1 or any(leaf._version for leaf in leaves(few)):
            return None
        call = seen.found[0]
        loss, said = itself(call.function, call.rest), said_of(call, count)
        if loss is None or not torch.isclose(loss(said, by_row(call.told, count)), value.mean()):
            return None
    if not depends_on(call.said, model) or is_told_by(function, model, few):
        return None
    with torch.no_grad():
        targets, places = told_of(function, model, few), inputs_among(function, model, few)
        inputs = tuple(leaves(few)[place] for place in places)
        if not inputs:
            return None
        single = len(inputs) == 1 and not is_its_own(model, inputs[0], said)
        found = _ReadAsOne(function, model, loss, True, few, places, single)
        half = part(few, 0, count // 2)
        agree = torch.allclose(said_of(compared(function, model, half), count // 2), said[: count // 2], 1e-3, 1e-5)
        return found if agree and found.halves_agree(few, inputs, targets) else None
