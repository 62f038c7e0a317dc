"""Data of every kind is opened here, once, before training."""

from __future__ import annotations

from typing import Any

from fogline.data.arrays import array_facts, in_memory, wrapped_tensors
from fogline.data.facts import Facts, Opened
from fogline.data.source import Source
from fogline.task import Task


def open_data(task: Task, *, seed: int = 0) -> Opened:
    """Turn the training and held-out data of a task into sources of batches."""
    train, facts = _open(task.train, task, "train")
    valid = None if task.valid is None else _open(task.valid, task, "valid")[0]
    return Opened(train, valid, facts)


def _open(value: Any, task: Task, what: str) -> tuple[Source, Facts]:
    inner = wrapped_tensors(value)
    source = in_memory(value if inner is None else inner, task, what)
    return source, array_facts(source, task)
