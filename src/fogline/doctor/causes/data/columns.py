"""Targets of several kinds in one tensor, of which one is in units that drown the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data import losses
from fogline.doctor.case import FAILURES
from fogline.doctor.causes.data.common import kept_at
from fogline.doctor.examination import Examination
from fogline.doctor.finding import WRAP, Evidence, Remedy, Suspicion
from fogline.doctor.surgery import Wrapped

_LOUDER = 30
"""Times as hard a pull as that of any other column: hardly a step goes where the others point."""
_MOST_COLUMNS = 32
_LABELS = 2  # different numbers: a column of no more is yes and no
_ONE, _NONE = 0.99, 1e-3


@dataclass(frozen=True)
class Column:
    """A column of targets, the column of outputs that is compared with it, and its mean and deviation."""

    target: int
    output: int
    mean: float
    deviation: float


def loud_column(exam: Examination) -> Suspicion | None:
    """A column of targets, under a loss of one's own, whose units make its errors larger than all others together.

    Such as a year beside a class: until the year is about right, nothing else is learned. The column is found by what
    the loss does with it: its gradient is that of the difference from one column of the outputs.
    """
    outputs, targets = exam.anatomy.outputs, exam.anatomy.batch[1] if exam.case.supervised else None
    if losses.family(exam.program.loss) != "unknown" or exam.anatomy.stage or kept_at(exam, "column"):
        return None
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or outputs.ndim != 2 or targets.ndim != 2:
        return None
    if not targets.is_floating_point() or not 2 <= targets.shape[1] <= _MOST_COLUMNS or outputs.shape[1] < 2:
        return None
    pulls = _slope(exam.program.loss, outputs, targets)
    if pulls is None:
        return None
    loudness = pulls.norm(dim=0)
    loudest = int(loudness.argmax())
    rest = torch.cat([loudness[:loudest], loudness[loudest + 1 :]])
    if not float(loudness[loudest]) > _LOUDER * float(rest.max()) > 0:
        return None
    column = _compared(exam, outputs.detach(), targets, pulls, loudest)
    if column is None:
        return None
    times = float(loudness[loudest] / rest.max())
    only_the_loss_tells = exam.case.yardstick.work == "other"
    return Suspicion(
        "unscaled_target",
        0.95,
        (
            Evidence(f"mean and deviation of column {column.target} of the targets",
                     f"{column.mean:.3g}, {column.deviation:.3g}", "0, 1"),
            Evidence("its pull at the outputs, as a multiple of that of any other column", times, "a few at most"),
        ),
        f"Column {column.target} of the targets is in units that make its errors {times:.0f} times as loud as all else "
        "the loss adds up: the steps go there, and the rest is not heard.",
        (_scaled(column),),
        proof=True,
        blocks=only_the_loss_tells,  # and it is another one afterwards
        advice="Train on (y - mean) / std of that column, and turn predictions back with * std + mean.",
    )  # fmt: skip


def _slope(loss: Any, outputs: Tensor, targets: Tensor) -> Tensor | None:
    """Gradient of the loss at the outputs, float64 (b, columns)."""
    given = outputs.detach().requires_grad_()
    try:
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(loss(given, targets).mean(), given)
    except FAILURES:
        return None
    return slope.double() if bool(torch.isfinite(slope).all()) else None


def _compared(exam: Examination, outputs: Tensor, targets: Tensor, pulls: Tensor, output: int) -> Column | None:
    """The column of targets whose difference from this column of outputs the loss hears; None where it is no such."""
    loss, every = exam.program.loss, exam.program.train[1].double()
    for target in range(targets.shape[1]):
        column = every[:, target]
        deviation = float(column.std(correction=0))
        if len(torch.unique(column)) <= _LABELS or not deviation > 0:
            continue
        others = targets.clone()
        others[:, target] += deviation
        moved = _slope(loss, outputs, others)
        if moved is None:
            continue
        change = (moved - pulls).norm(dim=0)
        if float(change[output]) < _ONE * float(change.norm()) or not float(change.norm()) > 0:
            continue
        along = outputs.clone()
        along[:, output] += deviation
        both = _slope(loss, along, others)
        if both is not None and float((both - pulls).norm()) < _NONE * float(change.norm()):
            return Column(target, output, float(column.mean()), deviation)
    return None


def _scaled(column: Column) -> Remedy:
    at = f"y[:, {column.target}]"
    return Remedy(
        f"scale column {column.target} of the targets",
        f"mean, std = {at}.mean(), {at}.std()  # of the training data\n{at} = ({at} - mean) / std\n"
        f"prediction = model(x)[:, {column.output}] * std + mean",
        on_model=lambda model: Wrapped(model, after=ColumnSpread(column)),
        on_loss=lambda loss: ColumnScaled(loss, column),
        place="column",
        order=WRAP,
    )


class ColumnSpread(nn.Module):
    """Turns a column of outputs from numbers near one into the units of its targets."""

    factor: Tensor
    shift: Tensor

    def __init__(self, column: Column) -> None:
        super().__init__()
        self.at = column.output
        self.register_buffer("factor", torch.tensor(column.deviation))
        self.register_buffer("shift", torch.tensor(column.mean))

    def forward(self, outputs: Tensor) -> Tensor:
        """Of (b, columns)."""
        here = torch.arange(outputs.shape[1], device=outputs.device) == self.at
        return torch.where(here, outputs * self.factor.to(outputs) + self.shift.to(outputs), outputs)


class ColumnScaled:
    """A loss of outputs and targets whose column is brought to numbers near one in both."""

    def __init__(self, loss: Any, column: Column) -> None:
        self.loss, self.column = loss, column

    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        column = self.column
        return self.loss(self._near_one(outputs, column.output), self._near_one(targets, column.target))

    def _near_one(self, values: Tensor, at: int) -> Tensor:
        here = torch.arange(values.shape[1], device=values.device) == at
        return torch.where(here, (values - self.column.mean) / self.column.deviation, values)
