"""What several causes in the data ask."""

from __future__ import annotations

from torch import Tensor

from fogline.doctor.case import taken
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


def classes_of(exam: Examination, targets: Tensor) -> Tensor | None:
    stick = exam.case.yardstick
    if stick.work == "classes" and targets.numel() == len(targets):
        flat = targets.reshape(-1)
        return flat.long() if bool((flat >= 0).all()) else None
    if stick.work == "one_hot":
        return targets.argmax(1)
    if stick.work == "binary" and targets.numel() == len(targets):
        return (targets.reshape(-1) > sum(stick.values) / 2).long()
    return None
