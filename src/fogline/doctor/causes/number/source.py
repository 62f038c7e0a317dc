"""Where the first number that is not finite comes from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data.source import cast, float_type
from fogline.descent.objective import Objective
from fogline.descent.randomness import private_randomness
from fogline.descent.replay import explain_refusal
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.causes.data.units import target_scaled
from fogline.doctor.causes.number.guard import finite_with, guards, made_positive
from fogline.doctor.causes.number.hazards import Hazard, Look, batch_is_fine, first_hazard, when
from fogline.doctor.closeup import some_rows, wide
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, Evidence, Remedy, Suspicion
from fogline.doctor.matching import matching

_LOUD, _SMALL = 1e4, 10.0
"""For an output, or a score: far beyond what is needed, and what no exponent need be afraid of."""


def nan_source(exam: Examination) -> Suspicion | None:
    """NaN or infinity that the program makes of finite rows: the first module and operation, and the rows."""
    look, at_once = when(exam)
    if look is None or first_hazard(look, logs=True) is not None:
        return None
    hazard = first_hazard(look, logs=False)
    module, rows, taken_in = _first_module(exam) if at_once else ("", (), "")
    if hazard is None and not module:
        if not (at_once and not math.isfinite(look.loss) and _moderate(look.outputs)):
            return None  # what only grew beyond all numbers is told by the causes of that
        rows, taken_in = _rows_of_loss(exam), _ranges(look)
    grown = not _moderate(look.outputs, _SMALL)
    if not at_once and hazard is not None and ((hazard.name in ("exp", "division") and grown) or _flew_off(hazard)):
        return None
    where = f"module {module!r}" if module else "the loss"
    what = f"a {hazard.name} of numbers from {hazard.low:.3g} to {hazard.high:.3g}" if hazard else "an operation"
    if hazard is None and not module:
        what = "an operation on outputs or targets that is not defined for all numbers"
    found = list((hazard.rows if hazard and hazard.rows else rows)[:8])
    evidence = [Evidence("first that is not finite", where, "nothing", layer=module or None)]
    if hazard is not None:
        evidence.append(Evidence(f"values that the {hazard.name} has no answer or no slope for", hazard.bad, 0))
    if taken_in:
        evidence.append(Evidence("what went into it", taken_in))
    if found:
        evidence.append(Evidence("rows of the batch looked at", ", ".join(map(str, found))))
    return Suspicion(
        "nan_source",
        0.9,
        tuple(evidence),
        f"The rows are finite, but {where} makes something of them that is not: {what}. Every step with such a row is "
        "lost, or takes the weights with it.",
        (
            *made_positive(exam, at_once=at_once),
            *_within_domain(exam, look, module),
            *_nearer(exam, look, module),
            *guards(exam, at_once=at_once),
            *_without_exponent(exam, hazard, module),
        ),
        proof=True,
        blocks=at_once and not batch_is_fine(exam),
        severity="fatal" if at_once else "serious",
        advice=f"keep what goes into {what.split(' of ')[0]} inside its domain, or add a small constant to it",
    )


def _flew_off(hazard: Hazard) -> bool:
    """Whether scores grew until some of them were infinite, which is not of a softmax's making."""
    return hazard.name == "softmax" and max(abs(hazard.low), abs(hazard.high)) > _LOUD


def _moderate(outputs: Any, limit: float = _LOUD) -> bool:
    return isinstance(outputs, Tensor) and bool(torch.isfinite(outputs).all()) and float(outputs.abs().max()) < limit


def _ranges(look: Look) -> str:
    parts = [
        f"{what} from {float(value.min()):.3g} to {float(value.max()):.3g}"
        for what, value in (("outputs", look.outputs), ("targets", look.targets))
        if isinstance(value, Tensor) and value.numel()
    ]
    return ", ".join(parts)


def _rows_of_loss(exam: Examination) -> tuple[int, ...]:
    """Rows whose loss is not finite on its own, by replaying them one by one."""
    model = exam.program.new_model(exam.case.recipe.seed)
    floats = float_type(model)
    batch = cast(some_rows(exam, 64), floats)
    with private_randomness(CPU):
        try:
            told = explain_refusal(Objective(model, exam.program.loss), batch, 0, 0, CPU, None)
        except FAILURES:  # the program's own, told by other causes
            return ()
    return tuple(told["rows"])


def _within_domain(exam: Examination, look: Look, module: str) -> Iterator[Remedy]:
    """For numbers whose loss has a narrower domain than they have: the squared error has none."""
    if module or exam.case.yardstick.work != "regression" or look.outputs is None:
        return
    if isinstance(exam.program.loss, nn.MSELoss) or not bool(torch.isfinite(look.outputs).all()):
        return
    if getattr(look.targets, "shape", None) != look.outputs.shape:
        return
    yield Remedy("use nn.MSELoss()", "loss=nn.MSELoss()", on_loss=lambda _: nn.MSELoss(), place="loss", order=LOSS)


def _without_exponent(exam: Examination, hazard: Hazard | None, module: str) -> Iterator[Remedy]:
    """The usual loss for one that takes an exponent of something large: cut off, it would have no slope."""
    if hazard is not None and hazard.name == "exp" and not module and (usual := matching(exam)) is not None:
        yield usual


def _nearer(exam: Examination, look: Look, module: str) -> Iterator[Remedy]:
    """For targets so far off that the loss grows beyond all numbers on the way there."""
    if module or not isinstance(look.targets, Tensor) or getattr(look.outputs, "shape", None) != look.targets.shape:
        return
    remedy = target_scaled(exam) if look.targets.is_floating_point() else None
    if remedy is not None and finite_with(exam, remedy):
        yield remedy


def _first_module(exam: Examination) -> tuple[str, tuple[int, ...], str]:
    """The first module that gives something not finite, its rows, and the range of what it was given.

    Where all modules give finite numbers, the last one whose gradient is not finite: back-propagation reaches it first.
    """
    anatomy = wide(exam)
    for layer in anatomy.layers:
        if layer.output is None or not layer.output.is_floating_point() or bool(torch.isfinite(layer.output).all()):
            continue
        given = layer.received
        ranged = "" if given is None or not given.numel() else f"{float(given.min()):.3g} to {float(given.max()):.3g}"
        bad = ~torch.isfinite(layer.output.reshape(len(layer.output), -1)).all(1)
        return layer.name, tuple(bad.nonzero().flatten().tolist()), ranged
    return "", (), ""
