"""Outputs and targets whose shapes do not fit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data import losses
from fogline.doctor.case import spaced
from fogline.doctor.causes.output.common import codes_of
from fogline.doctor.examination import Examination
from fogline.doctor.finding import HEAD, ROWS, Evidence, Remedy, Rows, Suspicion
from fogline.doctor.heads import Maker, bend, value, widened
from fogline.doctor.matching import matching, width_of
from fogline.doctor.reading import around
from fogline.doctor.reference import MOST_CLASSES

_ONE_THING = 0.9  # correlation of columns that say the same
_SEVERAL = 8  # rows that a loss is asked about


def output_width(exam: Examination) -> Suspicion | None:
    """The number of outputs is not what the targets need."""
    if not exam.case.supervised or not isinstance(exam.anatomy.batch[1], Tensor):
        return None
    return too_narrow(exam) or _one_for_labels(exam) or _other_columns(exam)


def _width(
    exam: Examination,
    wanted: int,
    evidence: tuple[Evidence, ...],
    explanation: str,
    remedy: Remedy | None,
    *,
    blocks: bool,
) -> Suspicion:
    return Suspicion(
        "output_width",
        0.95,
        evidence,
        explanation,
        () if remedy is None else (remedy,),
        proof=True,
        blocks=blocks,
        severity="fatal",
        advice=f"Give the last layer {wanted} outputs.",
    )


def too_narrow(exam: Examination) -> Suspicion | None:
    width, classes = width_of(exam), exam.case.yardstick.classes
    loss, ends = exam.program.loss, bend(exam.anatomy)
    if exam.case.yardstick.work != "classes" or width is None or width >= classes:
        return None
    targets = exam.program.train[1]
    if losses.family(loss) != "classes" and not (exam.anatomy.stage == "loss" and width > 1):
        return None
    if targets.is_floating_point() or targets.numel() != len(targets):
        return None
    if classes == 2 and width == 1:
        remedy = matching_single(exam)
    else:
        put: Maker | None = {"log_softmax": lambda: nn.LogSoftmax(dim=1), "softmax": lambda: nn.Softmax(dim=1)}.get(
            ends
        )
        edit = widened(exam.anatomy, classes, put) if classes <= MOST_CLASSES else None
        code = f"last = nn.Linear(last.in_features, {classes})"
        title = f"give the last layer {classes} outputs, one a class"
        remedy = None if edit is None else Remedy(title, code, on_model=edit, place="head", order=HEAD)
    return _width(
        exam,
        classes,
        (
            Evidence("outputs of the model", width, classes),
            Evidence("largest label", classes - 1, f"at most {width - 1}"),
        ),
        f"There are labels from 0 to {classes - 1}, and the model has {width} output{'s' if width > 1 else ''}: a "
        "label "
        "without an output of its own cannot be predicted.",
        remedy,
        blocks=True,
    )


def matching_single(exam: Examination) -> Remedy | None:
    """For two labels and one output under a loss over classes: two outputs, the loss stays."""
    edit = widened(exam.anatomy, 2)
    if edit is None:
        return None
    code = (
        "last = nn.Linear(last.in_features, 2)\n# or keep one output with nn.BCEWithLogitsLoss() and y.float()[:, None]"
    )
    return Remedy("give the last layer 2 outputs, one a class", code, on_model=edit, place="head", order=HEAD)


def _one_for_labels(exam: Examination) -> Suspicion | None:
    """Labels of many classes, one output and a loss for yes or no."""
    width, classes = width_of(exam), exam.case.yardstick.classes
    if exam.case.yardstick.work != "one_hot" or width is None or width >= classes or exam.anatomy.stage == "forward":
        return None
    return _width(
        exam,
        classes,
        (Evidence("outputs of the model", width, classes),),
        f"The targets have {classes} columns, one a class, and the model has {width} "
        f"output{'s' if width > 1 else ''}: it "
        "is compared with every column at once, and cannot tell the classes apart.",
        matching(exam),
        blocks=exam.anatomy.stage == "loss" or losses.family(exam.program.loss) != "unknown",
    )


def _other_columns(exam: Examination) -> Suspicion | None:
    """Numbers in other columns than the outputs have, and a loss that broadcasts them."""
    outputs, targets = exam.anatomy.outputs, exam.anatomy.batch[1]
    if exam.case.yardstick.work not in ("regression", "binary") or not isinstance(outputs, Tensor):
        return None
    if outputs.ndim != 2 or targets.ndim > 2 or len(outputs) != len(targets):
        return None
    columns = 1 if targets.ndim == 1 else int(targets.shape[1])
    width = int(outputs.shape[1])
    if columns == width or exam.anatomy.stage == "forward":
        return None
    if exam.anatomy.stage == "loss" and width > 2 and codes_of(exam) == width:
        return None  # an output a class: it is the loss that does not fit
    known = losses.family(exam.program.loss) in ("elementwise", "binary")
    asked, told = outputs.detach(), targets
    if len(told) < _SEVERAL:  # among a few rows targets may be alike, and so are then all answers near them
        told = exam.program.train[1][spaced(len(exam.program.train[1]), _SEVERAL)]
        asked = torch.linspace(-1, 1, len(told)).to(asked)[:, None].expand(-1, width)
    if width == 1:
        if not _all_from_one(exam.program.loss, asked, told):
            return None
        known = False  # a loss that broadcasts goes through, with a warning at most
    elif not known and not (columns == 1 and _each_alike(exam.program.loss, asked, told)):
        return None
    keeps = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "softplus": nn.Softplus}
    edit = widened(exam.anatomy, columns, keeps.get(bend(exam.anatomy)))
    remedy = None
    if edit is not None:
        title = f"give the last layer {columns} output{'s' if columns > 1 else ''}"
        code = f"last = nn.Linear(last.in_features, {columns})\ny = y.reshape(len(y), {columns})"
        shape = None if targets.ndim == 2 else _as_columns
        remedy = Remedy(title, code, on_model=edit, on_rows=shape, also_valid=True, place="head", order=HEAD)
    return _width(
        exam,
        columns,
        (Evidence("outputs of the model", width, columns), Evidence("columns of the targets", columns)),
        f"The model puts out {width} number{'s' if width > 1 else ''} for an example and there "
        f"{'is' if columns == 1 else 'are'} {columns} to predict: the loss compares each output with each target.",
        remedy,
        blocks=known,
    )


def _each_alike(loss: Any, outputs: Tensor, targets: Tensor) -> bool:
    """Whether the loss treats every column of the outputs as a prediction of the same target.

    A loss over quantiles, or over a mean and a variance, gives columns different parts; here the value stays when
    columns change places, and is the mean or the sum of what each column alone gives.
    """
    outputs = around(targets, outputs)
    whole, turned = value(loss, outputs, targets), value(loss, outputs.flip(1), targets)
    alone = [value(loss, outputs[:, k : k + 1], targets) for k in range(outputs.shape[1])]
    return _made_of(whole, turned, alone)


def _all_from_one(loss: Any, outputs: Tensor, targets: Tensor) -> bool:
    """Whether the loss compares the one output with every column of the targets alike, and these are not the same.

    Columns with parts of their own, such as a time and whether it was reached, change the loss when they change places;
    several opinions of one thing go together.
    """
    outputs = targets.mean(1, keepdim=True).to(outputs.dtype) + outputs.std().nan_to_num(0)
    whole, turned = value(loss, outputs, targets), value(loss, outputs, targets.roll(1, 1))
    alone = [value(loss, outputs, targets[:, k : k + 1]) for k in range(targets.shape[1])]
    apart = float(torch.corrcoef(targets.double().T).nan_to_num(0).triu(1).amax()) < _ONE_THING
    return apart and _made_of(whole, turned, alone)


def _made_of(whole: float | None, turned: float | None, alone: Sequence[float | None]) -> bool:
    """Whether a loss is the mean or the sum of what each column alone gives, in whatever order they stand."""
    each = [one for one in alone if one is not None]
    if whole is None or turned is None or len(each) < len(alone):
        return False
    near = 1e-4 * max(abs(whole), 1e-30)
    return abs(whole - turned) <= near and min(abs(whole - sum(each)), abs(whole - sum(each) / len(each))) <= near


def _as_columns(rows: Rows) -> Rows:
    return replace(rows, targets=rows.targets.reshape(len(rows.targets), -1))


def shape_broadcast(exam: Examination) -> Suspicion | None:
    """Outputs of shape (b, 1) and targets of shape (b,) make a (b, b) table of differences.

    Every prediction is then compared with every target, so all are drawn to the mean. It is shown by the loss: it stays
    the same when the targets change places, and changes when they are given the shape of the outputs.
    """
    if not exam.case.supervised:
        return None
    outputs, targets, loss = exam.anatomy.outputs, exam.anatomy.batch[1], exam.program.loss
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or exam.anatomy.stage == "forward":
        return None
    rows = len(outputs)
    meets = {outputs.ndim, targets.ndim} == {1, 2} and outputs.numel() == targets.numel() == rows and rows > 1
    if not meets or not _blind_to_order(loss, outputs.detach(), targets):
        return None
    shape = (rows, 1) if outputs.ndim == 2 else (rows,)
    code = (
        "y = y[:, None]  # (n, 1), as the outputs are"
        if outputs.ndim == 2
        else "y = y[:, 0]  # (n,), as the outputs are"
    )
    flat = outputs.ndim == 1
    remedy = Remedy(
        f"reshape the targets to {'(n,)' if flat else '(n, 1)'}",
        code,
        on_rows=lambda given: replace(
            given, targets=given.targets.reshape(-1) if flat else given.targets.reshape(len(given.targets), -1)
        ),
        also_valid=True,
        place="target shape",
        order=ROWS,
    )
    return Suspicion(
        "shape_broadcast",
        0.97,
        (
            Evidence("shape of the outputs", str(tuple(outputs.shape)), str(tuple(shape))),
            Evidence("shape of the targets", str(tuple(targets.shape)), str(tuple(shape))),
            Evidence("change of the loss when the targets change places", 0.0, "some"),
        ),
        f"Outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} are broadcast to a {rows} x {rows} table: "
        "every prediction is compared with every target of the batch, so all predictions are drawn to the mean.",
        (remedy,),
        proof=True,
        blocks=losses.family(loss) in ("elementwise", "binary"),
        severity="fatal",
    )


def _blind_to_order(loss: Any, outputs: Tensor, targets: Tensor) -> bool:
    # Outputs that differ: those of first weights may be alike, and order means nothing among them. They are as far
    # apart as the targets, beside which small differences would be lost.
    low, high = float(targets.min()), float(targets.max())
    places = torch.linspace(0.1, 0.9, len(outputs), dtype=outputs.dtype).reshape(outputs.shape)
    spread = low + (high - low) * places if low < high else outputs + places
    turned = targets.roll(1, 0)
    fitted = targets.reshape(outputs.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        as_it_is, moved, right = (value(loss, spread, t) for t in (targets, turned, fitted))
        right_moved = value(loss, spread, turned.reshape(outputs.shape))
    if right is None or right_moved is None:
        return False
    if as_it_is is None:  # the loss refuses the shapes
        return losses.family(loss) in ("elementwise", "binary")
    near = 1e-5 * max(abs(as_it_is), 1e-30)
    return moved is not None and abs(moved - as_it_is) <= near < abs(right - right_moved)
