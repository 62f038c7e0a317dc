"""Losses of a whole batch that are losses of pairs: read as what they are, so that everything can be asked of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, IterableDataset

from fogline.data import losses
from fogline.data.source import MapStyle, are_rows
from fogline.descent.copies import copied
from fogline.descent.randomness import INITIAL, private_randomness, seed_everything
from fogline.task import OnBatch, Task

_ROWS = 64
"""That are asked about: what of a batch is read shows where its rows differ, as masks of a few rows need not."""
_MOST_PARTS = 4
_CPU = torch.device("cpu")


class Answer:
    """Stands for a model whose outputs are known: it can be called, once, and has nothing else."""

    def __init__(self, outputs: Any) -> None:
        self.outputs = outputs

    def __call__(self, *_: Any) -> Any:
        return self.outputs


class OfPairs:
    """A function of (model, batch) as a loss of (outputs, targets).

    Args:
        function: is given the outputs as a model's, and a batch with the targets in their places.
        places: of the tensors of the batch, whether it holds the targets; a single tensor is a batch of one.
        like: the batch on a few rows, for what is not read.
    """

    def __init__(self, function: Callable[[Any, Any], Tensor], places: tuple[bool, ...], like: Any) -> None:
        self._function, self._places, self._like = function, places, like

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        if isinstance(self._like, Tensor):
            return self._function(Answer(outputs), targets).mean()
        parts = [
            targets if told else part[:1].expand(len(targets), *part.shape[1:]).to(targets.device)
            for told, part in zip(self._places, _parts_of(self._like), strict=True)
        ]
        return self._function(Answer(outputs), _made_of(parts, self._like)).mean()


def _parts_of(batch: Any) -> list[Any]:
    if isinstance(batch, Tensor):
        return [batch]
    return list(batch.values() if isinstance(batch, dict) else batch)


def _keys(batch: Any) -> list[Any]:
    return list(batch) if isinstance(batch, dict) else []


def _made_of(parts: list[Tensor], like: Any) -> Any:
    """A batch of the form of another one."""
    if isinstance(like, Tensor):
        return parts[0]
    return dict(zip(like, parts, strict=True)) if isinstance(like, dict) else type(like)(parts)


class _Seen(nn.Module):
    """A model that notes what it is called with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.noted = model
        self.calls: list[tuple[tuple[Any, ...], Any]] = []

    def forward(self, *given: Any) -> Any:
        found = self.noted(*given)
        self.calls.append((given, found))
        return found


class _Named(TorchFunctionMode):
    """Sees which of PyTorch's losses compares two tensors, and with nothing else said."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Any, tuple[Any, ...], Tensor]] = []

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if len(args) == 2 and losses.family(func) != "unknown" and isinstance(found, Tensor):
            usual = signature(func).parameters
            if all(usual[name].default is value or usual[name].default == value for name, value in kwargs.items()):
                self.found.append((func, args, found))
        return found


def unfolded(task: Task) -> Task:
    """The task with a loss of (outputs, targets), where its loss of a batch is one; the task itself where it is not.

    It is one where the model is called once, with a tensor of the batch as it is, and nothing else is asked of it;
    and where of the rest of the batch one tensor is read, or the inputs themselves, as auto-encoders are told.
    """
    loss, held_out = task.loss, task.valid
    if not isinstance(loss, OnBatch) or loss.deployment is not None or task.model is None:
        return task
    batch: Any = task.train
    if isinstance(batch, DataLoader):
        batch = _first_rows(batch)
        held_out = _first_rows(held_out) if isinstance(held_out, DataLoader) else held_out
    if type(batch) not in (tuple, list, dict) and not isinstance(batch, Tensor):
        return task
    parts = _parts_of(batch)
    if len(parts) > _MOST_PARTS or not all(isinstance(part, Tensor) and part.ndim and len(part) >= 2 for part in parts):
        return task
    if held_out is not None and (type(held_out) is not type(batch) or _keys(held_out) != _keys(batch)):
        return task
    try:
        with private_randomness(_CPU), torch.no_grad():
            found = _read(task, loss, parts, batch)
    except Exception:  # noqa: BLE001 - the program's own: then it stays as it is
        return task
    if found is None:
        return task
    of_pairs, asked, told = found

    def paired(data: Any) -> Any:
        if isinstance(data, DataLoader):
            return _loader_of(data, lambda examples: paired(data.collate_fn(examples)))
        held = _parts_of(data)
        return held[asked], held[told]

    if asked == told and task.metrics:
        return task  # which are about something else than what the loss compares
    valid = None if task.valid is None else paired(task.valid)
    return replace(task, loss=of_pairs, train=paired(task.train), valid=valid)


def _first_rows(loader: DataLoader[Any]) -> Any:
    """A batch of the first examples of a loader; None where it is read in another way, or gives no rows."""
    data: Any = loader.dataset
    if isinstance(data, IterableDataset) or loader.batch_sampler is None:
        return None
    try:
        count = min(_ROWS, len(data))
        batch = MapStyle(data, loader.collate_fn).take(torch.arange(count))
    except Exception:  # noqa: BLE001 - the program's own: it is told when the data is opened
        return None
    return batch if count > 1 and are_rows(batch, count) else None


def _loader_of(loader: DataLoader[Any], collate: Callable[[list[Any]], Any]) -> DataLoader[Any]:
    """The same loader with another function that makes batches of examples."""
    return DataLoader(
        loader.dataset,
        batch_sampler=loader.batch_sampler,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        collate_fn=collate,
    )


def _without_gaps(parts: list[Tensor]) -> list[Tensor]:
    """The rows of which all is finite, where there are some: a loss of others is equal to nothing."""
    finite = torch.stack([torch.isfinite(part).reshape(len(part), -1).all(1) for part in parts]).all(0)
    return [part[finite] for part in parts] if int(finite.sum()) > 1 else parts


def _read(task: Task, loss: OnBatch, parts: list[Tensor], form: Any) -> tuple[Any, int, int] | None:
    """The loss of pairs, and the places of inputs and targets in a batch of this form."""
    seed_everything(0, 0, INITIAL, _CPU)
    given: Any = task.model
    model = _Seen(copied(given if isinstance(given, nn.Module) else given()).eval())
    few = _without_gaps([part[:_ROWS] for part in parts])
    like: Any = _made_of(few, form)
    named = _Named()
    with named:
        value = loss.function(model, like)
    if len(model.calls) != 1 or len(model.calls[0][0]) != 1 or not isinstance(value, Tensor):
        return None
    (received,), outputs = model.calls[0]
    asked = next((place for place, part in enumerate(few) if part is received), None)
    if asked is None:
        return None
    for told in sorted(range(len(few)), key=lambda place: place == asked):
        of_pairs = OfPairs(loss.function, tuple(place == told for place in range(len(few))), like)
        again = of_pairs(outputs, few[told])
        if torch.equal(again, value.mean()) and bool(torch.isfinite(again)):
            known = (f for f, args, out in named.found if out is value and args[0] is outputs and args[1] is few[told])
            return next(known, of_pairs), asked, told
    return None
