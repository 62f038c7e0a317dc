"""What several causes in the data ask."""

from __future__ import annotations

from torch import Tensor

from fogline.data.source import taken
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Rows


def kept_at(exam: Examination, place: str) -> bool:
    return any(remedy.place == place for remedy in exam.kept)


def pair_of(exam: Examination) -> tuple[Tensor, Tensor] | None:
    """Training inputs and targets where both are tensors."""
    if not exam.case.supervised:
        return None
    inputs, targets = exam.program.train
    return (inputs, targets) if isinstance(inputs, Tensor) and isinstance(targets, Tensor) else None


def only(rows: Rows, index: Tensor) -> Rows:
    ids = None if rows.ids is None else rows.ids[index]
    return Rows(taken(rows.inputs, index), taken(rows.targets, index), ids)
