"""What several causes in the data ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fogline.data.source import leaves, map_tree, taken
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Rows


def kept_at(exam: Examination, place: str) -> bool:
    return any(remedy.place == place for remedy in exam.kept)


def pair_of(exam: Examination) -> tuple[Any, Tensor] | None:
    """Training inputs, of which there may be several, and targets, where these are one tensor."""
    if not exam.case.supervised:
        return None
    inputs, targets = exam.program.train
    return (inputs, targets) if leaves(inputs) and isinstance(targets, Tensor) else None


def alike(inputs: Any, others: Any) -> bool:
    """Whether inputs are as many, and of the same shape, as others."""
    return [leaf.shape[1:] for leaf in leaves(inputs)] == [leaf.shape[1:] for leaf in leaves(others)]


def map_both(function: Callable[[Tensor, Tensor], Tensor], inputs: Any, others: Any) -> Any:
    """A function of each tensor of inputs and the one in its place in others, in the form of the inputs."""
    rest = iter(leaves(others))
    return map_tree(lambda leaf: function(leaf, next(rest)), inputs)


def only(rows: Rows, index: Tensor) -> Rows:
    ids = None if rows.ids is None else rows.ids[index]
    return Rows(taken(rows.inputs, index), taken(rows.targets, index), ids)
