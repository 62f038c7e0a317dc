"""Rows that were scaled each by itself, in one of two sets of rows only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fogline.doctor.case import spaced
from fogline.doctor.finding import WRAP, Evidence, Remedy, Suspicion
from fogline.doctor.surgery import Wrapped

_FEWEST_ROWS, _FEWEST_NUMBERS = 8, 8
_MEAN, _DEVIATION = 1e-4, 1e-3
"""How near to what it is scaled to a row is: a small number is often added to what it is divided by."""
_NEARLY_NONE, _MOST = 0.05, 0.5
"""Shares of rows."""
_NEARLY = 0.1
_MOST_ROWS = 1024
_AXES = {2: ((1,),), 3: ((1,), (2,), (1, 2)), 4: ((1,), (3,), (2, 3), (1, 2), (1, 2, 3))}
"""Over which axes of rows of so many axes in all: single ones first, since what holds of each channel holds of all."""

Kind = Literal["standard", "range", "length"]


@dataclass(frozen=True)
class Scaling:
    """What was done to each row by itself.

    Attributes:
        kind: to mean 0 and deviation 1, to a range, or to length 1.
        axes: over which axes; the first one counts rows.
        correction: of the deviation.
        low: of the range; it ends at 1.
    """

    kind: Kind
    axes: tuple[int, ...]
    correction: int = 0
    low: float = 0.0

    def __call__(self, rows: Tensor) -> Tensor:
        """The rows, each scaled by itself; those that are all one number become zero."""
        rows = rows if rows.is_floating_point() else rows.float()
        tiny = torch.finfo(rows.dtype).tiny
        if self.kind == "length":
            return rows / rows.square().sum(self.axes, keepdim=True).sqrt().clamp_min(tiny)
        if self.kind == "range":
            least = rows.amin(self.axes, keepdim=True)
            wide = (rows.amax(self.axes, keepdim=True) - least).clamp_min(tiny)
            return self.low + (rows - least) / wide * (1 - self.low)
        deviation = rows.std(self.axes, correction=self.correction, keepdim=True)
        return (rows - rows.mean(self.axes, keepdim=True)) / deviation.clamp_min(tiny)

    def __str__(self) -> str:
        to = {"standard": "mean 0 and deviation 1", "range": f"[{self.low:g}, 1]", "length": "length 1"}[self.kind]
        return to if len(self.axes) > 1 or self.axes == (1,) else f"{to} over axis {self.axes[0]}"

    @property
    def code(self) -> str:
        """The same as code."""
        over = f"{self.axes if len(self.axes) > 1 else self.axes[0]}, keepdim=True"
        correction = "" if self.correction else ", correction=0"
        if self.kind == "length":
            return f"X / X.square().sum({over}).sqrt()"
        if self.kind == "standard":
            return f"(X - X.mean({over})) / X.std({over.replace(', keepdim', correction + ', keepdim')})"
        least, most = f"X.amin({over})", f"X.amax({over})"
        unit = f"(X - {least}) / ({most} - {least})"
        return unit if not self.low else f"2 * {unit} - 1"


def scaled_one_by_one(train: Tensor, held: Tensor) -> Suspicion | None:
    """Every row of one set was scaled by itself, and next to none of the other.

    No row has such a mean and such a deviation by chance; where all of a set have, it was done to them. What it takes
    away, the level and the size of each row, the other rows still have: they differ in it among themselves, which rows
    in other units, such as pictures up to 255 and not up to 1, do not.
    """
    if train.shape[1:] != held.shape[1:]:
        return None
    train, held = (rows[spaced(len(rows), _MOST_ROWS)] for rows in (train, held))
    for first, other, names in ((train, held, ("training", "held-out")), (held, train, ("held-out", "training"))):
        done = _done_to(first)
        also = None if done is None else _share_alike(other, done)
        if done is None or also is None or also[0] > _NEARLY_NONE or also[1] > _MOST:
            continue
        return Suspicion(
            "train_valid_mismatch",
            0.9,
            (
                Evidence(f"share of the {names[0]} rows that have {done} each by itself", 1.0),
                Evidence(f"share of the {names[1]} rows that have it", also[0], 1.0),
            ),
            f"Each of the {names[0]} rows was scaled to {done} by itself, and the {names[1]} rows were not: they have "
            "a level and a size that the others lack. What is learned does not hold for them.",
            (_scaled(done),),
            proof=True,
            advice=f"Do the same to the {names[1]} rows and to whatever the model is used on. Or to none, where the "
            "answers depend on the level or the size of a row: scaled rows do not have them any more.",
        )
    return None


def _scaled(done: Scaling) -> Remedy:
    """As a part of the model, so that it is done to all rows; to those that it was done to it does nothing."""
    return Remedy(
        f"scale every row to {done} by itself, also whatever the model is used on",
        f"X = {done.code}  # of training rows, held-out rows, and whatever the model is used on",
        on_model=lambda model: Wrapped(model, before=_Rows(done)),
        place="split",
        order=WRAP + 1,  # before what else the model does to its inputs
    )


class _Rows(nn.Module):
    """Scales rows each by itself."""

    def __init__(self, scaling: Scaling) -> None:
        super().__init__()
        self.scaling = scaling

    def forward(self, rows: Tensor) -> Tensor:
        return self.scaling(rows)


def _done_to(rows: Tensor) -> Scaling | None:
    """What was done to every row; None where nothing was."""
    for scaling in _ways(rows) if rows.is_floating_point() else ():
        sizes = _sizes(rows, scaling)
        if sizes is not None and _share(sizes, *_unit(scaling)) == 1:
            return scaling
    return None


def _ways(rows: Tensor) -> Iterator[Scaling]:
    for axes in _AXES.get(rows.ndim, ()):
        if math.prod(rows.shape[axis] for axis in axes) < _FEWEST_NUMBERS:
            continue
        yield Scaling("standard", axes, correction=1)
        yield Scaling("standard", axes)
        yield Scaling("range", axes)
        yield Scaling("range", axes, low=-1.0)
        yield Scaling("length", axes)


def _share_alike(rows: Tensor, scaling: Scaling) -> tuple[float, float] | None:
    """Shares of the rows that are in one scale, that one or another, and that are nearly; None where rows have none.

    Rows that are nearly in one scale lose next to nothing by being brought to it, or were, with another small number
    added to what they were divided by.
    """
    sizes = _sizes(rows, scaling)
    if sizes is None:
        return None
    wanted, found = _unit(scaling), (float(sizes[0].nanmedian()), float(sizes[1].nanmedian()))
    return (
        max(_share(sizes, *wanted), _share(sizes, *found)),
        max(_share(sizes, *wanted, nearly=_NEARLY), _share(sizes, *found, nearly=_NEARLY)),
    )


def _unit(scaling: Scaling) -> tuple[float, float]:
    """Where rows begin and how far they go once they are scaled."""
    return (scaling.low, 1 - scaling.low) if scaling.kind == "range" else (0.0, 1.0)


def _sizes(rows: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor] | None:
    """Where the numbers of each row begin and how far they go, both (rows, groups); NaN where they are all the same.

    None where rows are too few, or most of them hold no more than two different numbers: those of what is counted or
    marked are alike by themselves.
    """
    if len(rows) < _FEWEST_ROWS or not bool(torch.isfinite(rows).all()):
        return None
    values, axes = rows.double(), scaling.axes
    least, most = values.amin(axes, keepdim=True), values.amax(axes, keepdim=True)
    telling = ((values != least) & (values != most)).flatten(1).any(1)
    if not bool(telling.double().mean() > _MOST):
        return None
    if scaling.kind == "standard":
        start, size = values.mean(axes, keepdim=True), values.std(axes, correction=scaling.correction, keepdim=True)
    elif scaling.kind == "range":
        start, size = least, most - least
    else:
        start, size = torch.zeros_like(least), values.square().sum(axes, keepdim=True).sqrt()
    same = least == most
    return start.masked_fill(same, math.nan).flatten(1), size.masked_fill(same, math.nan).flatten(1)


def _share(sizes: tuple[Tensor, Tensor], start: float, size: float, *, nearly: float = 0.0) -> float:
    """Share of the rows, of those that are not all one number, that begin and go as far as told."""
    begins = (sizes[0] - start).abs() <= max(_MEAN, nearly) * size
    reaches = (sizes[1] - size).abs() <= max(_DEVIATION, nearly) * size
    same = sizes[0].isnan()
    counted = ~same.all(1)
    return float(((begins & reaches) | same).all(1)[counted].double().mean())
