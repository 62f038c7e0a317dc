"""A column (n, 1) and a row of numbers (n,) that meet inside a loss, or inside a model, and make a table of n x n."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fogline.descent.batches import rows_of
from fogline.descent.objective import Objective
from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.examination import Examination
from fogline.doctor.finding import WRAP, Evidence, Remedy, Suspicion
from fogline.doctor.uncut import Within, within
from fogline.task import OnBatch

_CLOSE = 1e-5
Pair = tuple[Tensor, Tensor]


class Meetings(TorchFunctionMode):
    """Sees columns (n, 1) that meet numbers (n,).

    Of two that both come from the model, or both from the data, it may be meant that they are compared each with each,
    as in ``scores[:, None] - scores``.

    Attributes:
        rows: n, by the number of the meeting, where one of the two comes from the model and the other does not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, int] = {}
        self._count = 0

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        pair = args[:2]
        if len(pair) == 2 and all(isinstance(one, Tensor) for one in pair) and pair[0].ndim + pair[1].ndim == 3:
            column, numbers = pair if pair[0].ndim == 2 else pair[::-1]
            if column.shape == (*numbers.shape, 1) and len(column) > 1:
                column, numbers = self.met(column, numbers)
                self._count += 1
                args = (column, numbers, *args[2:]) if pair[0].ndim == 2 else (numbers, column, *args[2:])
        return func(*args, **(kwargs or {}))

    def met(self, column: Tensor, numbers: Tensor) -> Pair:
        """What meets in their place."""
        if column.requires_grad != numbers.requires_grad:
            self.rows[self._count] = len(column)
        return column, numbers


class Arranged(Meetings):
    """Arranges those that are to be: by default as columns, side by side.

    Args:
        which: numbers of meetings.
        arrange: what is done with both.
    """

    def __init__(self, which: Collection[int], arrange: Callable[[Tensor, Tensor], Pair] | None = None) -> None:
        super().__init__()
        self._which, self._arrange = which, arrange or _side_by_side

    def met(self, column: Tensor, numbers: Tensor) -> Pair:
        return self._arrange(column, numbers) if self._count in self._which else super().met(column, numbers)


def _side_by_side(column: Tensor, numbers: Tensor) -> Pair:
    return column, numbers[:, None]


def _side_by_side_turned(column: Tensor, numbers: Tensor) -> Pair:
    return column, numbers.roll(1, 0)[:, None]


def _column_turned(column: Tensor, numbers: Tensor) -> Pair:
    return column.roll(1, 0), numbers


def _numbers_turned(column: Tensor, numbers: Tensor) -> Pair:
    return column, numbers.roll(1, 0)


def made_into_tables(exam: Examination) -> Suspicion | None:
    """Numbers of the model and of the data that are compared each with each, of all rows of a batch.

    It is shown by the loss, which stays the same where the rows of one of them change places, as it does not once they
    are lined up.
    """
    if exam.anatomy.stage:
        return None
    rows, seen = rows_of(exam.anatomy.batch), Meetings()
    as_it_is = _loss(exam, seen)
    which = frozenset(number for number, n in seen.rows.items() if n == rows > 1)
    if not which:
        return None
    lined_up, turned = (_loss(exam, Arranged(which, arrange)) for arrange in (_side_by_side, _side_by_side_turned))
    blind = any(_alike(as_it_is, _loss(exam, Arranged(which, turn))) for turn in (_column_turned, _numbers_turned))
    if not blind or not math.isfinite(lined_up) or _alike(lined_up, turned):
        return None
    in_loss = not exam.case.supervised or bool(_meetings(exam, rows, frozenset(), in_loss=True))
    where, which = "loss" if in_loss else "model", frozenset()
    while more := _meetings(exam, rows, which, in_loss=in_loss) - which:
        which |= more  # what is a column now may meet others
    side_by_side = partial(Arranged, which)
    remedy = Remedy(
        f"make columns of the numbers that meet a column in the {where}",
        "numbers = numbers[:, None]  # (n, 1), as the outputs are; or outputs.squeeze(1)",
        on_model=None if where == "loss" else lambda module: Within(module, side_by_side),
        on_loss=(lambda loss: within(loss, side_by_side)) if where == "loss" else None,
        place="target shape",
        order=WRAP,
    )
    return Suspicion(
        "shape_broadcast",
        0.97,
        (
            Evidence("shapes that meet", f"({rows}, 1) and ({rows},)", f"({rows}, 1) and ({rows}, 1)"),
            Evidence("change of the loss when the numbers of rows change places", 0.0, "some"),
        ),
        f"In the {where} ({rows}, 1) and ({rows},) are broadcast to a {rows} x {rows} table: what the model says of a "
        "row meets the numbers of every row of the batch, so all that it says is drawn to the mean.",
        (remedy,),
        proof=True,
        severity="fatal",
    )


def _alike(first: float, second: float) -> bool:
    return math.isfinite(first) and abs(first - second) <= _CLOSE * max(abs(first), 1e-30)


def _loss(exam: Examination, mode: Meetings) -> float:
    """The loss on the batch within the mode; NaN where it fails."""
    model = exam.anatomy.model
    with private_randomness(CPU), torch.enable_grad(), warnings.catch_warnings(), mode:
        warnings.simplefilter("ignore")
        seed_step(0, 0, PROBE, CPU)
        try:
            return float(Objective(model, exam.program.loss)(exam.anatomy.batch).detach())
        except FAILURES:
            return math.nan


def _meetings(exam: Examination, rows: int, which: frozenset[int], *, in_loss: bool) -> frozenset[int]:
    """The numbers of those that are left where some are arranged: in the loss alone, or in all."""
    mode, loss, outputs = Arranged(which), exam.program.loss, exam.anatomy.outputs
    if in_loss and callable(loss) and not isinstance(loss, OnBatch):
        with mode, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                loss(outputs, exam.anatomy.batch[1])
            except FAILURES:
                return frozenset()
    else:
        _loss(exam, mode)
    return frozenset(number for number, n in mode.rows.items() if n == rows)
