"""A frame, or a CSV or Parquet file, with a target column becomes tensors in memory."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fogline.data import losses
from fogline.data.arrays import statistics
from fogline.data.facts import Facts, Opened
from fogline.data.frames import Table
from fogline.data.labels import Target, hold_out, read_target
from fogline.data.source import InMemory
from fogline.data.tables import TableEncoder
from fogline.task import Task

_FEWEST_TO_SPLIT = 5


def open_table(table: Table, valid: Table | None, target_name: str | None, task: Task, seed: int) -> Opened:
    """Encode the training rows, and the held-out rows by the same encoder; without those, hold out 20 percent.

    Raises:
        TypeError: if no target column was named.
        ValueError: for an empty table, an unknown target column, missing values or labels that do not fit.
    """
    if table.rows == 0:
        raise ValueError(f"{table.origin}: expected at least one row, received none")
    family = losses.family(task.loss)
    if target_name is None:
        if family != "on_batch":
            raise TypeError(
                f"expected target= with the column to predict, received None; {table.origin} has "
                f"{', '.join(map(repr, table.columns))}"
            )
        return _without_target(table, valid)
    table.require(target_name, "target column")
    table.refuse_missing(list(table.columns), target_name)
    target, notes = read_target(table, target_name, family)
    labels = target.encode(table)
    if valid is None and table.rows >= _FEWEST_TO_SPLIT:
        stratify = labels.flatten().long().numpy() if target.classes is not None else None
        kept, held = hold_out(stratify, table.rows, seed)
        if len(held):
            whole = table
            table, valid = whole.take(kept), whole.take(held)
            alike = " of each class" if target.classes is not None else ""
            notes += (f"{len(held)} of {whole.rows} rows (20 %{alike}) were held out for validation",)
    if valid is None:
        notes += (f"{table.rows} rows are too few to hold some out: nothing is validated",)
    return _encoded(table, valid, target, notes)


def _encoded(table: Table, valid: Table | None, target: Target, notes: tuple[str, ...]) -> Opened:
    encoder, said = TableEncoder.fit(table, target.name)
    encoder = replace(encoder, classes=target.classes)
    inputs, _ = encoder.inputs(table)
    targets = target.encode(table)
    train = InMemory((inputs, targets))
    held_out, held_targets = None, targets
    if valid is not None:
        held_inputs, unseen = encoder.inputs(valid)
        held_targets = target.encode(valid)
        held_out, said = InMemory((held_inputs, held_targets)), said + unseen
    outputs = 1 if target.classes is None or target.as_float else len(target.classes)
    facts = Facts(
        kind=target.kind,
        inputs=(len(encoder.names),),
        classes=target.classes,
        outputs=outputs,
        columns=encoder.names,
        notes=(*notes, *said),
    )
    if target.kind == "regression":
        facts = _with_scale(facts, targets, held_targets)
    return Opened(train, held_out, facts, encoder)


def _with_scale(facts: Facts, targets: Tensor, held_targets: Tensor) -> Facts:
    mean, scale = statistics(targets)
    _, held_scale = statistics(held_targets)
    return replace(
        facts, target_mean=mean, target_scale=scale, held_out_variance=tuple(value**2 for value in held_scale)
    )


def _without_target(table: Table, valid: Table | None) -> Opened:
    """All columns as inputs, for a loss that sees the whole batch."""
    encoder, notes = TableEncoder.fit(table, None)
    inputs, _ = encoder.inputs(table)
    held = None
    if valid is not None:
        held_inputs, unseen = encoder.inputs(valid)
        held, notes = InMemory(held_inputs), notes + unseen
    facts = Facts("other", (len(encoder.names),), outputs=0, columns=encoder.names, notes=notes)
    return Opened(InMemory(inputs), held, facts, encoder)
