"""A reshape where axes were to be moved: the shape is right, and the numbers are not where they belong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from fogline.data.source import rows_of, taken
from fogline.descent.copies import copied
from fogline.doctor.axes import AxesMoved, ChannelsLast, Meant, Reshape, ReshapesSeen, RowsMoved, Transposed
from fogline.doctor.causes.flow.rows import MANY, mixes_rows
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, Evidence, Remedy, Suspicion
from fogline.doctor.uncut import Within, answers

_FEW = 3
"""Rows of another look, beside one at ``MANY``: what is the same for both is so by meaning, and not by chance."""

Calls = Mapping[int, tuple[Meant, Reshape]]


def reshaped(exam: Examination) -> Suspicion | None:
    """``x.view(T, B, F)`` of a tensor of shape (B, T, F), and its like inside the model.

    A reshape keeps the numbers in the order of memory and only cuts them elsewhere, so that what had been one row's, or
    one channel's, is dealt out to all: so it is with ``h.view(B, -1)`` of last states of shape (2, B, H), too. Where a
    tensor was transposed right before, that may be meant, unless it deals out rows, or cuts channels elsewhere.
    """
    if not exam.case.supervised or exam.anatomy.stage == "forward" or rows_of(exam.anatomy.batch[0]) < MANY:
        return None
    model, inputs = copied(exam.anatomy.model).eval(), taken(exam.anatomy.batch[0], torch.arange(MANY))
    plain, every = (dict(_turning(model, inputs, turned=turned)) for turned in (False, True))
    if every and mixes_rows(model, inputs):
        for calls in (plain, every):
            if calls and not mixes_rows(_instead(calls)(model), inputs):
                return _of_rows(calls)
    calls = {k: call for k, call in plain.items() if isinstance(call[0], AxesMoved) and call[0].axes[0] == 0}
    calls |= {k: call for k, call in every.items() if isinstance(call[0], ChannelsLast)}
    return _of_places(calls) if calls else None


def _turning(model: nn.Module, inputs: Any, *, turned: bool) -> Iterator[tuple[int, tuple[Meant, Reshape]]]:
    """Reshapes that give the axes in another order, or the rows elsewhere, however many rows there are: by number."""
    many, few = (_reshapes(model, taken(inputs, torch.arange(count)), turned=turned) for count in (MANY, _FEW))
    for number in sorted(many.keys() & few.keys()):
        pair = many[number], few[number]
        meant: list[Meant] = [AxesMoved(call.axes) for call in pair if call.axes is not None]
        meant += [*_rows_moved(*pair), ChannelsLast()]
        fitting = [moved for moved in meant if all(moved.fits(call) for call in pair)]
        if fitting:
            yield number, (fitting[0], many[number])


def _rows_moved(many: Reshape, few: Reshape) -> Iterator[RowsMoved]:
    """Where the rows were and where they are, if they have an axis and it does not stand where it stood in memory."""
    start, end = (_axis_of_rows(*shapes) for shapes in ((many.given, few.given), (many.made, few.made)))
    if start is not None and end is not None and math.prod(many.given[:start]) != math.prod(many.made[:end]):
        yield RowsMoved(start, end)


def _axis_of_rows(many: tuple[int, ...], few: tuple[int, ...]) -> int | None:
    if len(many) != len(few):
        return None
    axes = [k for k, sizes in enumerate(zip(many, few, strict=True)) if sizes == (MANY, _FEW)]
    return axes[0] if len(axes) == 1 else None


def _instead(calls: Calls) -> Callable[[nn.Module], nn.Module]:
    meant = {number: moved for number, (moved, _) in calls.items()}
    return lambda model: Within(model, partial(Transposed, meant))


def _reshapes(model: nn.Module, inputs: Any, *, turned: bool) -> dict[int, Reshape]:
    seen = ReshapesSeen(turned=turned)
    return {} if answers(model, inputs, seen) is None else seen.calls


def _of_rows(calls: Calls) -> Suspicion:
    return Suspicion(
        "shuffled_labels",
        0.85,
        (
            *_seen(calls),
            Evidence("the answer to a row, when the inputs of other rows change places", "changes", "does not change"),
        ),
        f"Inside the model {_said(calls)} stands where axes are to be moved. It leaves the numbers in their order, so "
        "that they are dealt out to other rows: what is said of a row is made of the inputs of others.",
        (_moved(calls),),
        severity="fatal",
    )


def _of_places(calls: Calls) -> Suspicion:
    return Suspicion(
        "shape_broadcast",
        0.8,
        _seen(calls),
        f"Inside the model {_said(calls)} stands where axes are to be moved. The shape is right, but the numbers are "
        "left in their order: those of one place, channel or head are dealt out to all.",
        (_moved(calls),),
    )


def _seen(calls: Calls) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(f"what {call.name} makes of a tensor of shape {call.given}", str(call.made), "the axes as they were")
        for _, call in list(calls.values())[:2]
    )


def _said(calls: Calls) -> str:
    return f"a {next(iter(calls.values()))[1].name}"


def _moved(calls: Calls) -> Remedy:
    lines = {
        f"{meant.code(call.made)}  # in place of x.{call.name}{call.made}, with {MANY} rows": None
        for meant, call in calls.values()
    }
    return Remedy(
        "transpose where the model reshapes",
        "\n".join(lines),
        on_model=_instead(calls),
        place="axes",
        order=BODY,
    )
