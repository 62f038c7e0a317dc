"""Answers that a loss compares with the targets of other rows: an axis of theirs is taken for another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fogline.data import losses
from fogline.data.source import rows_of, taken
from fogline.descent.copies import copied
from fogline.descent.randomness import private_randomness
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, Evidence, Remedy, Suspicion

_ROWS, _SAME = 6, 1e-5
_FEW = 0.5
"""Of what is said of a row, less is pulled at by its target; and of its pull, less is on what is said of the row."""


class Turned:
    """A loss that is given the outputs with their first two axes exchanged."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss

    def __call__(self, outputs: Any, targets: Any) -> Any:
        return self.loss(outputs.transpose(0, 1), targets)


def compared_with_other_rows(exam: Examination) -> Suspicion | None:
    """A target that pulls at what is said of other rows, and not at what is said of its own.

    Which answers belong to a row shows where its inputs change, and which its target pulls at where that does. A loss
    that compares all rows with one another pulls at all answers, and so at those of the row.
    """
    if not exam.case.supervised or losses.family(exam.program.loss) != "unknown" or exam.anatomy.stage:
        return None
    seen = _looked_at(exam)
    if seen is None:
        return None
    own, pulled = _shares(seen, exam.program.loss)
    if own >= _FEW or pulled >= _FEW:
        return None
    remedies = []
    if seen.outputs.ndim > 2 and seen.outputs.shape[1] == _ROWS:
        turned, pulled_then = _shares(seen, Turned(exam.program.loss))
        if turned >= _FEW or pulled_then >= _FEW:
            remedies.append(_remedy())
    return Suspicion(
        "shuffled_labels",
        0.9,
        (
            Evidence("share of what is said of a row that its own target pulls at", own, 1.0),
            Evidence("share of the pull of a target that is on what is said of its own row", pulled, 1.0),
        ),
        "The loss compares what is said of one row with the targets of others: outputs and targets do not have their "
        "rows in the same place, and a view or a reshape that lays both out flat hides it, as their sizes fit.",
        tuple(remedies),
        proof=True,
        severity="fatal",
        advice="Move the axes of one of them before both are laid out flat: outputs.transpose(0, 1), not outputs.view.",
    )


@dataclass(frozen=True)
class _Seen:
    """What a model says of some rows, and where that changes with each row: outputs, targets, and a mask by row."""

    outputs: Tensor
    targets: Tensor
    said: dict[int, Tensor]


def _looked_at(exam: Examination) -> _Seen | None:
    inputs, targets = exam.anatomy.batch
    if not isinstance(targets, Tensor) or rows_of(inputs) < _ROWS or len(targets) < _ROWS:
        return None
    first = torch.arange(_ROWS)
    inputs, targets, model = taken(inputs, first), targets[:_ROWS], copied(exam.anatomy.model).eval()
    try:
        with torch.no_grad(), private_randomness(CPU):
            outputs = model(inputs)
            if not isinstance(outputs, Tensor) or outputs.ndim < 2:
                return None
            said = {}
            for row in (0, _ROWS - 1):
                others = first.clone()
                others[row] = _ROWS // 2
                said[row] = (model(taken(inputs, others)) - outputs).abs() > 1e-6 * outputs.abs().mean()
    except FAILURES:
        return None
    return _Seen(outputs, targets, {row: mask for row, mask in said.items() if bool(mask.any())})


def _shares(seen: _Seen, loss: Any) -> tuple[float, float]:
    """Of what is said of a row, the share that its target pulls at; and the share of the pull that is on the row.

    The most of the rows that were looked at; 1 where it is not to be seen. A pull counts by its square: a ratio of sums
    over the batch, such as of overlaps, pulls a little at every place.
    """
    found = []
    for row, said in seen.said.items():
        differs = (seen.targets != seen.targets[row]).reshape(_ROWS, -1).double().mean(1)
        targets = seen.targets.clone()
        targets[row] = seen.targets[int(differs.argmax())]
        before, after = (_slope(loss, seen.outputs, wanted) for wanted in (seen.targets, targets))
        if before is None or after is None:
            return 1.0, 1.0
        pulled = _pulled(before, after)
        there = pulled != 0
        if bool(there.any()):
            own = float((said & there).sum()) / float(said.sum())
            found.append((own, float(pulled[said].square().sum() / pulled.square().sum())))
    if not found:
        return 1.0, 1.0
    return max(own for own, _ in found), max(pulled for _, pulled in found)


def _pulled(before: Tensor, after: Tensor) -> Tensor:
    """How a slope has changed, but for a factor that all have in common, as that of how many places count."""
    there = before != 0
    factor = (after[there] / before[there]).median() if bool(there.any()) else before.new_ones(())
    change, least = after - factor * before, _SAME * torch.maximum(before.abs().max(), after.abs().max())
    return torch.where(change.abs() > least, change, 0.0)


def _slope(loss: Any, outputs: Tensor, targets: Tensor) -> Tensor | None:
    given = outputs.clone().requires_grad_()
    try:
        with torch.enable_grad(), private_randomness(CPU):
            (slope,) = torch.autograd.grad(loss(given, targets).mean(), given)
    except FAILURES:
        return None
    return slope if bool(torch.isfinite(slope).all()) else None


def _remedy() -> Remedy:
    return Remedy(
        "exchange the first two axes of the outputs before the loss lays them out",
        "outputs = outputs.transpose(0, 1)  # rows first, as those of the targets",
        on_loss=Turned,
        place="axes",
        order=LOSS,
    )
