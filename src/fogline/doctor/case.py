"""The program under examination, opened: its data as rows, its model on one batch, and what is compared on what."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data import losses
from fogline.data.check import refuse_lazy
from fogline.data.defaults import default_loss
from fogline.data.intake import Opened, open_data
from fogline.data.source import (
    Batch,
    Facts,
    InMemory,
    Kind,
    MapStyle,
    Source,
    Stream,
    cast,
    float_type,
    part,
    rows_of,
    taken,
)
from fogline.data.streamed import Streamed
from fogline.descent.copies import copied
from fogline.descent.objective import Objective
from fogline.descent.prepare import operations_of
from fogline.descent.randomness import INITIAL, private_randomness, seed_everything
from fogline.descent.resolve import takes_all_examples, usual_batch_size
from fogline.doctor.anatomy import until_linear
from fogline.doctor.asked import compares_several
from fogline.doctor.finding import Remedy, Rows
from fogline.doctor.questions import counts_thresholds
from fogline.doctor.unfolded import unfolded
from fogline.doctor.yardstick import Yardstick
from fogline.recipe import Recipe
from fogline.task import OnBatch, Task

MOST_ROWS = 20_000
"""Rows read of data that is not in memory."""
_HELD_SHARE, _MOST_HELD, _FEWEST_TO_HOLD = 0.2, 2048, 40
CPU = torch.device("cpu")
FAILURES = (Exception,)
"""What a program may raise when it is given something else than it expects: anything, also errors of its own making."""


@dataclass
class Case:
    """A task and a recipe, and everything the doctor looks at.

    Attributes:
        task, recipe: as they were given.
        loss: of the task, or the one that is taken where it has none.
        train: every training row, or those that were read; for ``on_batch`` work ``inputs`` is the whole batch tree.
        valid: held-out rows of the task, or None.
        facts: what the data is.
        yardstick: what trials are compared by.
        refused: the error with which ``fit`` would refuse the data, or "".
        learned, held: row numbers of ``train`` that trials learn from, and that they are scored on. Where the task has
            held-out data the second is empty and that data is what is scored on.
        reference: what classical learners get from these rows, once it was asked for.
        in_memory: whether the data of the task are tensors, which remedies of rows can change.
        failed: what could not be looked at, by name, and the error that it stopped with.
    """

    task: Task
    recipe: Recipe
    loss: Any
    train: Rows
    valid: Rows | None
    facts: Facts
    yardstick: Yardstick
    refused: str = ""
    learned: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    held: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    in_memory: bool = True
    reference: Any = None
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def supervised(self) -> bool:
        return not isinstance(self.loss, OnBatch)

    @property
    def family(self) -> losses.Family:
        return losses.family(self.loss)

    @property
    def batch_size(self) -> int:
        """Examples a step, as far as the recipe says it; the rule of ``fit`` where it is "auto"."""
        asked = self.recipe.batch_size
        rows = rows_of(self.train.inputs)
        optimizer = "adamw" if self.recipe.optimizer == "auto" else self.recipe.optimizer
        if asked == "full" or (asked == "auto" and takes_all_examples(optimizer)):
            return rows
        if asked == "auto":
            return min(rows, self.facts.batch_size or usual_batch_size(rows))
        return min(int(asked) * self.recipe.accumulate, rows)

    def new_model(self, seed: int | None = None) -> nn.Module:
        """A model with the first weights of a seed, in training mode; the task's own is left alone."""
        return made(self.task, self.facts, self.recipe.seed if seed is None else seed)

    @cached_property
    def batch(self) -> Batch:
        """A batch of the training rows: see :func:`some_batch`."""
        return self.rows(some_batch(self.train.inputs, self.train.targets, self.batch_size, self.yardstick))

    @cached_property
    def operations(self) -> float:
        """Floating-point operations of a forward pass of a batch, at least those of a dense network of its size."""
        model = self.new_model()
        operations = 2.0 * self.batch_size * sum(p.numel() for p in model.parameters())
        with suppress(*FAILURES):  # what fails here is told later
            operations = max(operations, operations_of(Objective(model, self.loss), self.batch))
        return operations

    def rows(self, index: Tensor) -> Batch:
        """Training rows as a batch: a pair, or the tree of ``on_batch`` work."""
        inputs = taken(self.train.inputs, index)
        return (inputs, taken(self.train.targets, index)) if self.supervised else inputs


def some_batch(inputs: Any, targets: Any, size: int, yardstick: Yardstick) -> Tensor:
    """Positions of the first rows in the order of a shuffled epoch, as many as a batch has (at most 512).

    Where their labels are all the same and others are not, the last row is the first of those: by one class alone
    nobody can tell what a loss wants.
    """
    order = torch.randperm(rows_of(inputs), generator=torch.Generator().manual_seed(0))
    index = order[: min(size, 512)].clone()
    labels = yardstick.labels(targets)
    if labels is not None and len(index) > 1:
        others = order[labels[order] != labels[index[0]]]
        if len(others) and bool((labels[index] == labels[index[0]]).all()):
            index[-1] = others[0]
    return index


def spaced(size: int, most: int) -> Tensor:
    """Positions of at most so many rows, from all over the data.

    >>> spaced(8, 3)
    tensor([0, 2, 5])
    """
    count = min(size, most)
    return torch.arange(count) * size // count


def made(task: Task, facts: Facts, seed: int) -> nn.Module:
    """The module of a task with the first weights of a seed, in training mode; the task's own is left alone."""
    from fogline.data.defaults import default_model

    with private_randomness(CPU):
        seed_everything(seed, 0, INITIAL, CPU)
        maker = task.model if task.model is not None else default_model(facts)
        module = copied(maker if isinstance(maker, nn.Module) else maker())
    assert isinstance(module, nn.Module)
    return module.train()


def open_case(task: Task, recipe: Recipe) -> Case:
    """Open a program, also one that ``fit`` would refuse; as one of pairs, where it is one.

    Raises:
        ValueError, TypeError: data of which not even rows can be read.
    """
    refused, task = "", unfolded(task)
    try:
        opened = open_data(task, seed=recipe.seed)
    except (ValueError, TypeError) as error:
        refused = str(error)
        opened = _leniently(task, error)
    loss = task.loss if task.loss is not None else default_loss(opened.facts)
    train = _rows(opened.train, loss)
    valid = None if opened.valid is None else _rows(opened.valid, loss)
    yardstick = Yardstick("other") if isinstance(loss, OnBatch) else Yardstick.of(train.targets, loss)
    if valid is not None and yardstick.work == "classes":  # held-out rows may have classes that the others lack
        yardstick = replace(yardstick, classes=max(yardstick.classes, Yardstick.of(valid.targets, loss).classes))
    in_memory = isinstance(opened.train, InMemory)
    case = Case(task, recipe, loss, train, valid, opened.facts, yardstick, refused, in_memory=in_memory)
    case.learned, case.held = _split(case)
    refuse_lazy(case.new_model())
    return readable(case)


def readable(case: Case) -> Case:
    """The case, judged by its loss where nobody can tell from the outputs how good they are.

    Where that is a sum of several, each is judged by itself.
    """
    if case.supervised and case.family == "unknown":
        inputs, targets = case.batch
        with private_randomness(CPU), suppress(*FAILURES):  # what fails here is told later
            outputs = case.new_model()(inputs)
            case.yardstick = case.yardstick.for_outputs(outputs, targets, case.train.targets, case.loss)
            if not case.yardstick.reads(outputs, targets, case.loss):
                graded = case.yardstick.work == "classes" and counts_thresholds(outputs, targets, case.loss)
                case.yardstick = Yardstick("other", counts=graded)
            elif case.yardstick.work == "binary" and isinstance(outputs, Tensor):
                case.yardstick = replace(case.yardstick, logs="log_sigmoid" in until_linear(outputs)[:1])
    if case.yardstick == Yardstick("other"):
        with private_randomness(CPU), suppress(*FAILURES):
            model = case.new_model()
            batch = cast(case.batch, float_type(model))
            case.yardstick = Yardstick("other", several=compares_several(Objective(model, case.loss), batch))
    return case


def _leniently(task: Task, error: Exception) -> Opened:
    """Rows of a pair of arrays whatever they hold; everything else is refused as ``fit`` refuses it."""
    pairs: list[InMemory | None] = []
    for value in (task.train, task.valid):
        if value is None:
            pairs.append(None)
            continue
        if not (isinstance(value, (tuple, list)) and len(value) == 2):
            raise error
        inputs, targets = (torch.as_tensor(item) for item in value)
        if not inputs.ndim or not targets.ndim or not len(inputs):
            raise error
        rows = min(len(inputs), len(targets))
        pairs.append(InMemory((inputs[:rows], targets[:rows])))
    train, valid = pairs
    assert train is not None
    whole = not train.tensors[1].is_floating_point()
    kind: Kind = "classification" if losses.family(task.loss) in ("classes", "binary") or whole else "regression"
    outputs = int(train.tensors[1].max()) + 1 if whole else int(train.tensors[1].shape[1:].numel())
    facts = Facts(kind, tuple(train.tensors[0].shape[1:]), outputs=outputs)
    return Opened(train, valid, facts)


def _rows(source: Source, loss: Any) -> Rows:
    """The rows of a source, the first :data:`MOST_ROWS` spaced ones of one that is not in memory."""
    if isinstance(source, InMemory):
        tensors = source.tensors
    elif isinstance(source, MapStyle):
        tensors = source.take(spaced(source.size, MOST_ROWS))
    else:
        tensors = source.spread(MOST_ROWS) if isinstance(source, Streamed) else next(iter(source.batches(MOST_ROWS)))
    ids = torch.arange(rows_of(tensors))
    if isinstance(loss, OnBatch):
        return Rows(tensors, torch.empty(0), ids)
    inputs, targets = losses.pair(tensors)
    return Rows(inputs, targets, ids)


def _split(case: Case) -> tuple[Tensor, Tensor]:
    """Rows to learn from and rows to score on; the same ones where there are too few to hold some out."""
    size = rows_of(case.train.inputs)
    every = torch.arange(size)
    if case.valid is not None:
        return every, every[:0]
    if size < _FEWEST_TO_HOLD:
        return every, every
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    held = order[: min(_MOST_HELD, int(size * _HELD_SHARE))]
    return order[len(held) :].sort().values, held.sort().values


@dataclass(frozen=True)
class Program:
    """A case with some remedies applied: what a trial trains."""

    case: Case
    remedies: tuple[Remedy, ...]
    task: Task
    recipe: Recipe
    train: Batch
    held: Batch
    loss: Any

    def new_model(self, seed: int) -> nn.Module:
        return made(self.task, self.case.facts, seed)

    @property
    def rows(self) -> int:
        return rows_of(self.train)


def program(case: Case, remedies: Sequence[Remedy] = ()) -> Program:
    """The case with remedies applied, on rows that it learns from and rows that it is scored on."""
    ordered = tuple(sorted(remedies, key=lambda remedy: remedy.order))
    task, recipe, loss = apply_to(case.task, case.recipe, ordered, loss=case.loss, data=False)
    if not case.supervised:
        mine = case.held if len(case.held) else case.learned[:_MOST_HELD]
        scored = case.rows(mine) if case.valid is None else _head(case.valid.inputs)
        return Program(case, ordered, task, recipe, case.rows(case.learned), scored, loss)
    train = _those(changed_rows(case.train, ordered), case.learned)
    also = [remedy for remedy in ordered if remedy.also_valid]
    if case.valid is None:
        held = _those(changed_rows(case.train, also), case.held)
    else:
        held = changed_rows(_spaced_rows(case.valid), also)
    return Program(case, ordered, task, recipe, (train.inputs, train.targets), (held.inputs, held.targets), loss)


def changed_rows(rows: Rows, remedies: Sequence[Remedy]) -> Rows:
    """The rows after the remedies that change rows."""
    for remedy in remedies:
        if remedy.on_rows is not None:
            rows = remedy.on_rows(rows)
    return rows


def apply_to(
    task: Task, recipe: Recipe, remedies: Sequence[Remedy], *, loss: Any, data: bool = True
) -> tuple[Task, Recipe, Any]:
    """Task, recipe and loss with remedies applied, in their order.

    Args:
        loss: of the task, the one that is taken where it has none.
        data: whether to change the rows of the task too.

    Raises:
        TypeError: a remedy changes rows and the data of the task are neither arrays nor a data set that can be read.
    """
    ordered = sorted(remedies, key=lambda remedy: remedy.order)
    editing = [remedy.on_model for remedy in ordered if remedy.on_model is not None]
    changes: dict[str, Any] = {}
    for remedy in ordered:
        loss = loss if remedy.on_loss is None else remedy.on_loss(loss)
        recipe = recipe if remedy.on_recipe is None else remedy.on_recipe(recipe)
    if loss is not task.loss and any(remedy.on_loss is not None for remedy in ordered):
        changes["loss"] = loss
    if editing:
        changes["model"] = _edited(task.model, editing)
    if data and any(remedy.on_rows is not None for remedy in ordered):
        changes |= _edited_data(task, ordered, recipe.seed)
    return replace(task, **changes) if changes else task, recipe, loss


def _edited(model: Any, editing: Sequence[Any]) -> Any:
    def edited(module: nn.Module) -> nn.Module:
        for edit in editing:
            module = edit(module)
        return module

    if isinstance(model, nn.Module):
        with private_randomness(CPU):  # what an edit draws is the same at each call, and nobody else's
            seed_everything(0, 0, INITIAL, CPU)
            return edited(copied(model))

    def make() -> nn.Module:
        return edited(copied(model()))

    return make


def _edited_data(task: Task, ordered: Sequence[Remedy], seed: int) -> dict[str, Any]:
    try:
        opened = open_data(task, seed=seed)
    except (ValueError, TypeError) as error:
        opened = _leniently(task, error)
    if isinstance(opened.train, Stream | Streamed):
        raise TypeError("expected data in memory or a data set with a length to change rows of, received a stream")
    changes: dict[str, Any] = {}
    rows = changed_rows(_rows(opened.train, task.loss), ordered)
    changes["train"] = rows.inputs, rows.targets
    if opened.valid is not None:
        held = _rows(opened.valid, task.loss)
        held = changed_rows(replace(held, ids=None), [remedy for remedy in ordered if remedy.also_valid])
        changes["valid"] = held.inputs, held.targets
    return changes


def _those(rows: Rows, ids: Tensor) -> Rows:
    """The training rows of these numbers that are left, after what changes rows together."""
    assert rows.ids is not None
    mine = torch.isin(rows.ids, ids)
    return Rows(taken(rows.inputs, mine), taken(rows.targets, mine))


def _spaced_rows(rows: Rows) -> Rows:
    index = spaced(rows_of(rows.inputs), _MOST_HELD)
    return Rows(taken(rows.inputs, index), taken(rows.targets, index))


def _head(tree: Batch) -> Batch:
    return part(tree, 0, _MOST_HELD)
