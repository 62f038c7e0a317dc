"""Faults that one batch shows, told before any training time is spent; and those that show themselves on the way."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data.source import Batch, InMemory, leaves, map_tree, part, rows_of
from fogline.descent.copies import copied
from fogline.descent.objective import Objective
from fogline.descent.prepare import Start, operations_of
from fogline.descent.randomness import private_randomness
from fogline.doctor.case import CPU, FAILURES, Case, open_case, readable, spaced
from fogline.doctor.causes import Cause, loop, number, output
from fogline.doctor.causes.data.images import dealt_out
from fogline.doctor.causes.flow.activations import saturated_units
from fogline.doctor.causes.flow.masks import mask_turned
from fogline.doctor.causes.flow.reshaped import reshaped
from fogline.doctor.causes.flow.rows import rows_mixed
from fogline.doctor.causes.flow.unseen import unseen_inputs
from fogline.doctor.causes.flow.weights import bad_init, symmetric_init
from fogline.doctor.causes.flow.width import narrow_middle
from fogline.doctor.causes.loop.normalisation import tiny_batch_norm
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Evidence, Finding, Remedy, Rows, Suspicion
from fogline.doctor.loss_look import Compared
from fogline.doctor.refusals import refusal_finding
from fogline.doctor.yardstick import Yardstick
from fogline.recipe import Recipe
from fogline.record.store import Store, read_table
from fogline.task import Task

_LOOKS: tuple[Cause, ...] = tuple(
    cause
    for cause in (*output.ON_ONE_BATCH, *loop.ON_ONE_BATCH, *number.ON_ONE_BATCH, rows_mixed, dealt_out)
    if cause is not tiny_batch_norm  # which wants to know how many rows there are in all
)
_ROWS = 64
_EXPLAIN: tuple[Cause, ...] = (saturated_units, bad_init, narrow_middle, reshaped, mask_turned, unseen_inputs)
_LIKELY = 0.5
_SPACED, _FEWEST = 256, 16
_MOST_OPERATIONS = 5e8  # of a forward pass of those rows: a look takes about ten of them, within the second
_MOST_WEIGHTS = 20_000_000


def first_look(start: Start) -> list[Finding]:
    """Faults of outputs, loss and loop that leave no doubt, on the first batch, within a second.

    Works on copies: weights, gradients, buffers and random states stay as they are. Data that cannot be read twice, and
    models so large that the look would take longer, are left alone: by their size, not by the clock, so that two runs
    say the same.
    """
    case = _case_of(start)
    if case is None:
        return []
    return _certain(Examination(case), _LOOKS)


def look_at_batch(model: nn.Module, batch: Compared) -> tuple[list[Finding], list[Finding]]:
    """The same for a loop that is not ours, on copies; where the model was called with one tensor, (b, ...).

    Returns:
        What leaves no doubt; and what would explain it if the loop were to learn little.
    """
    targets, given = batch.targets, batch.given
    rows = min(_ROWS, len(targets)) if targets.ndim else 0
    if len(given) != 1 or not isinstance(given[0], Tensor) or rows < _FEWEST or len(given[0]) != len(targets):
        return [], []
    if sum(p.numel() for p in model.parameters()) > _MOST_WEIGHTS:
        return [], []
    data = given[0].detach()[:rows].cpu(), targets.detach()[:rows].cpu()
    with suppress(*FAILURES):
        twin, loss = copied(model).to(CPU), copy.deepcopy(batch.loss).to(CPU)
        twin.register_forward_hook(lambda _, __, outputs: outputs.reshape(-1, *batch.shape))
        with private_randomness(CPU):
            two = Objective(copied(twin), loss), (data[0][:2], data[1][:2])
            operations = operations_of(*two) * rows / 2
        if operations <= _MOST_OPERATIONS:
            case = open_case(Task(twin, loss, data), Recipe(batch_size=rows))
            exam = Examination(case)
            sure = _certain(exam, (*_LOOKS, symmetric_init))
            return sure, _likely(exam)
    return [], []


def _likely(exam: Examination) -> list[Finding]:
    with suppress(*FAILURES):  # what is certain is told all the same
        found = [s for cause in _EXPLAIN if (s := cause(exam)) is not None and s.strength >= _LIKELY]
        return [replace(_finding(s), confidence=s.strength) for s in found]
    return []


def _certain(exam: Examination, looks: Sequence[Cause]) -> list[Finding]:
    with warnings.catch_warnings(action="ignore"):  # of a program that is asked odd questions
        suspicions = [cause(exam) for cause in looks]
    return [_finding(suspicion) for suspicion in suspicions if suspicion is not None and suspicion.proof]


def _case_of(start: Start) -> Case | None:
    model, rows = start.objective.model, start.batches.rows(0)
    if rows is None or not len(rows):
        return None
    share = min(1.0, _ROWS / len(rows))
    if start.operations * share > _MOST_OPERATIONS or sum(p.numel() for p in model.parameters()) > _MOST_WEIGHTS:
        return None
    data = _some_rows(start)
    if data is None:
        return None
    try:
        twin = copied(model).to(CPU)
    except (RuntimeError, TypeError):  # a model that cannot be copied
        return None
    count, loss, on_batch = rows_of(data), start.objective.loss, not start.objective.supervised
    ids = torch.arange(count)
    train = Rows(data, torch.empty(0), ids) if on_batch else Rows(data[0], data[1], ids)
    task = replace(start.task, model=twin, train=data, valid=None)
    recipe = start.resolved.recipe.replace(batch_size=min(count, _ROWS), accumulate=1)
    yardstick = Yardstick("other") if on_batch else Yardstick.of(train.targets, loss)
    return readable(Case(task, recipe, loss, train, None, start.opened.facts, yardstick, learned=ids, held=ids))


def _some_rows(start: Start) -> Batch | None:
    """Rows from all over the data, by which a loss can be told to suit the targets; None where one batch is too few."""
    source = start.opened.train
    if isinstance(source, InMemory):
        data = source.take(spaced(source.size, _SPACED).to(leaves(source.tensors)[0].device))
        return map_tree(lambda leaf: leaf.detach().cpu(), data)
    data = map_tree(lambda leaf: leaf.detach().cpu(), part(start.batches.at(0), 0, _ROWS))
    return data if rows_of(data) >= min(_FEWEST, source.size or 0) else None


def _finding(suspicion: Suspicion) -> Finding:
    remedy = next(iter(suspicion.remedies), None)
    return Finding(
        suspicion.cause,
        suspicion.severity,
        0.9,
        suspicion.evidence,
        suspicion.explanation,
        remedy=remedy,
        advice=suspicion.advice,
    )


class Narrator:
    """Listens to the events of a run and tells the faults behind them, each once.

    Args:
        store: of the run; what it holds already is not told again.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._told: set[str] | None = None  # read when it is needed: a resumed run forgets what lies ahead of it first

    def __call__(self, step: int, kind: str, data: dict[str, Any]) -> None:
        """Called with every event."""
        if kind == "refused":
            self.tell(step, refusal_finding(data, "serious", 1))
        if kind == "rollback":
            self.tell(step, _ran_away(step))

    def tell(self, step: int, finding: Finding) -> None:
        """Write a finding down, unless its cause was told before."""
        if self._told is None:
            self._told = set(read_table(self._store.folder, "findings", "id")["cause"].tolist())
        follows = finding.cause == "nan_source" and "lr_too_high" in self._told
        if finding.cause not in self._told and not follows:
            self._told.add(finding.cause)
            self._store.finding(step, finding.to_dict(), finding.sentence)


def _ran_away(step: int) -> Finding:
    return Finding(
        "lr_too_high",
        "serious",
        0.7,
        (Evidence("losses that ran away, and a return to earlier weights", 1, 0, step),),
        "The loss ran away and the run went back to weights that were good, at a third of the learning rate.",
        remedy=Remedy("a lower learning rate from the start", "lr a tenth of what it was"),
    )
