"""A reshape where axes were to be moved: the shape is right, and the numbers are not where they belong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data.source import leaves
from fogline.descent.copies import copied
from fogline.doctor.case import taken
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, Evidence, Remedy, Suspicion
from fogline.doctor.uncut import DropsLess, Reshape, ReshapesSeen, Transposed, Within, answers

_MANY, _FEW = 5, 3
"""Rows of two looks: what is the same axes in another order for both is so by meaning, and not by chance."""

Axes = tuple[int, ...]


def reshaped(exam: Examination) -> Suspicion | None:
    """``x.view(T, B, F)`` of a tensor of shape (B, T, F), and its like inside the model.

    A reshape keeps the numbers in the order of memory and only cuts them elsewhere, so that what had been one row's, or
    one channel's, is dealt out to all. Where a tensor was transposed right before, that may be meant.
    """
    if not exam.case.supervised or exam.anatomy.stage == "forward" or len(leaves(exam.anatomy.batch[0])[0]) < _MANY:
        return None
    model, inputs = copied(exam.anatomy.model).eval(), taken(exam.anatomy.batch[0], torch.arange(_MANY))
    calls = dict(_turning(model, inputs))
    if not calls:
        return None
    axes = {number: order for number, (order, _) in calls.items()}
    if _mixes_rows(model, inputs) and not _mixes_rows(Within(model, partial(Transposed, axes)), inputs):
        return _of_rows(axes, calls)
    calls = {number: call for number, call in calls.items() if call[0][0] == 0}
    return _of_places({number: axes[number] for number in calls}, calls) if calls else None


def _turning(model: nn.Module, inputs: Any) -> Iterator[tuple[int, tuple[Axes, Reshape]]]:
    """Reshapes that give the axes in another order, however many rows there are: by number, with that order."""
    many, few = _reshapes(model, inputs), _reshapes(model, taken(inputs, torch.arange(_FEW)))
    for number in many.keys() & few.keys():
        pair = many[number], few[number]
        for axes in (call.axes for call in pair):
            if axes is not None and all(call.fits(axes) for call in pair):
                yield number, (axes, many[number])
                break


def _reshapes(model: nn.Module, inputs: Any) -> dict[int, Reshape]:
    seen = ReshapesSeen()
    return {} if answers(model, inputs, seen) is None else seen.calls


def _mixes_rows(model: nn.Module, inputs: Any) -> bool:
    """Whether what is said of the first row, in evaluation mode, changes with the inputs of the others."""
    others = torch.tensor([0, *range(2, _MANY), 1])
    once, again = (answers(model, given, DropsLess()) for given in (inputs, taken(inputs, others)))
    return any(
        isinstance(a, Tensor) and a.ndim > 0 and len(a) == _MANY and not torch.allclose(a[0], b[0], 1e-3, 1e-6)
        for a, b in zip(once or (), again or (), strict=False)
    )


def _of_rows(axes: Mapping[int, Axes], calls: Mapping[int, tuple[Axes, Reshape]]) -> Suspicion:
    return Suspicion(
        "shuffled_labels",
        0.85,
        (
            *_seen(calls),
            Evidence("the answer to a row, when the inputs of other rows change places", "changes", "does not change"),
        ),
        f"Inside the model {_said(calls)} stands where axes are to be moved. It leaves the numbers in their order, so "
        "that they are dealt out to other rows: what is said of a row is made of the inputs of others.",
        (_moved(axes, calls),),
        severity="fatal",
    )


def _of_places(axes: Mapping[int, Axes], calls: Mapping[int, tuple[Axes, Reshape]]) -> Suspicion:
    return Suspicion(
        "shape_broadcast",
        0.8,
        _seen(calls),
        f"Inside the model {_said(calls)} stands where axes are to be moved. The shape is right, but the numbers are "
        "left in their order: those of one place, channel or head are dealt out to all.",
        (_moved(axes, calls),),
    )


def _seen(calls: Mapping[int, tuple[Axes, Reshape]]) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(f"what {call.name} makes of a tensor of shape {call.given}", str(call.made), "the axes as they were")
        for _, call in list(calls.values())[:2]
    )


def _said(calls: Mapping[int, tuple[Axes, Reshape]]) -> str:
    return f"a {next(iter(calls.values()))[1].name}"


def _moved(axes: Mapping[int, Axes], calls: Mapping[int, tuple[Axes, Reshape]]) -> Remedy:
    lines = {
        f"x.permute{order}  # in place of x.{call.name}{call.made}, with {_MANY} rows": None
        for order, call in calls.values()
    }
    return Remedy(
        "transpose where the model reshapes",
        "\n".join(lines),
        on_model=lambda model: Within(model, partial(Transposed, axes)),
        place="axes",
        order=BODY,
    )
