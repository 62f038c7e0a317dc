"""Losses that add over examples."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data import losses
from fogline.data.source import rows_of
from fogline.descent.copies import copied
from fogline.doctor.case import FAILURES
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, Evidence, Remedy, Suspicion
from fogline.doctor.heads import value
from fogline.doctor.standing import standing
from fogline.doctor.surgery import bare
from fogline.recipe import Recipe

_SCALE_FREE = (
    "adam",
    "adamw",
    "nadam",
    "radam",
    "adamax",
    "rmsprop",
    "adagrad",
    "adadelta",
    "rprop",
    "lion",
    "muon",
    "prodigy",
)
"""Optimizers that do the same whatever the loss is multiplied by."""


def sum_reduction(exam: Examination) -> Suspicion | None:
    """A loss that adds over the examples: the learning rate is multiplied by the size of the batch.

    Twice the same batch gives a sum twice the loss, and a mean the same. It is a fault only where it makes the step too
    long: an optimizer that divides by the size of the gradient does not mind, and a small rate makes up for it.
    """
    rows = min(exam.case.batch_size, exam.program.rows)
    adds = _adds(exam)
    if rows < 2 or exam.anatomy.stage or adds is None or not adds or _scale_free(exam.program.recipe):
        return None
    fall = _fall(exam, rows)
    if fall is None or fall[0] >= 0:
        return None
    return _summed(
        exam,
        0.95 if fall[1] > 0 else 0.5,
        Evidence("share of the loss that a step of this learning rate removes", fall[0], "above 0"),
        Evidence("the same where the loss is averaged", fall[1], "above 0"),
    )


def summed_and_short(exam: Examination) -> Suspicion | None:
    """``sum_reduction`` in motion: where the run falls short of what is possible."""
    rows = min(exam.case.batch_size, exam.program.rows)
    if exam.observed is None or rows < 2 or exam.anatomy.stage or _scale_free(exam.program.recipe) or not _adds(exam):
        return None
    now = standing(exam)
    if not now.short:
        return None
    return _summed(exam, 0.9, Evidence("score of the run", now.score, now.goal))


def _summed(exam: Examination, strength: float, *evidence: Evidence) -> Suspicion:
    rows = min(exam.case.batch_size, exam.program.rows)
    edit = _averaged(exam)
    return Suspicion(
        "sum_reduction",
        strength,
        (Evidence("loss of twice the same batch against once", 2.0, 1.0), *evidence),
        f"The loss adds over the {rows} examples of a batch instead of averaging, so the gradient is {rows} times as "
        "long "
        "and the learning rate in effect too.",
        () if edit is None else (edit,),
        advice='Use reduction="mean", or divide the loss by the number of examples.',
    )


def _scale_free(recipe: Recipe) -> bool:
    name = recipe.optimizer if isinstance(recipe.optimizer, str) else recipe.optimizer.__name__
    return name == "auto" or recipe.lr == "auto" or name.lower() in _SCALE_FREE


def _adds(exam: Examination) -> bool | None:
    """Whether the loss of a batch twice over is twice its loss; asked of outputs, where there are such."""
    loss, outputs = exam.program.loss, exam.anatomy.outputs
    if not exam.case.supervised or not isinstance(outputs, Tensor) or not isinstance(exam.anatomy.batch[1], Tensor):
        return None
    targets = exam.anatomy.batch[1]
    once = value(loss, outputs, targets)
    twice = value(loss, torch.cat([outputs, outputs]), torch.cat([targets, targets]))
    if once is None or twice is None or once == 0:
        return None
    return abs(twice / once - 2) < 1e-3


def _fall(exam: Examination, rows: int) -> tuple[float, float] | None:
    """Share of the batch's loss that one step of plain descent removes: as it is, and with the gradient averaged."""
    anatomy, rate = exam.anatomy, exam.program.recipe.lr
    before = anatomy.loss
    if rate == "auto" or before is None or before == 0 or not isinstance(anatomy.batch, tuple):
        return None
    seen = rows_of(anatomy.batch)
    found = []
    for length in (float(rate) * rows / seen, float(rate) / seen):
        model = copied(anatomy.model).eval()
        start = _loss_of(model, exam)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                gradient = anatomy.gradients.get(bare(name))
                if gradient is not None:
                    parameter.sub_(length * gradient)
        after = _loss_of(model, exam)
        if start is None:
            return None
        found.append(-1.0 if after is None else (start - after) / abs(start) if start else 0.0)
    return found[0], found[1]


def _loss_of(model: nn.Module, exam: Examination) -> float | None:
    inputs, targets = exam.anatomy.batch
    try:
        with torch.no_grad():
            outputs = model(inputs)
    except FAILURES:
        return None
    return value(exam.program.loss, outputs, targets)


def _averaged(exam: Examination) -> Remedy | None:
    if not exam.case.supervised:
        return None

    def edit(loss: Any) -> Any:
        if isinstance(loss, nn.Module) and getattr(loss, "reduction", "") == "sum":
            changed = copy.deepcopy(loss)
            changed.reduction = "mean"  # type: ignore[assignment]
            return changed
        return Averaged(loss)

    named = getattr(exam.program.loss, "reduction", "") == "sum"
    code = f'loss = nn.{losses.name(exam.program.loss)}(reduction="mean")' if named else "return total / len(outputs)"
    return Remedy("average the loss over the examples", code, on_loss=edit, place="rate", order=LOSS)


class Averaged(nn.Module):
    """A loss that adds over examples, divided by their number."""

    def __init__(self, loss: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Any, targets: Any) -> Tensor:
        return self.loss(outputs, targets) / rows_of(outputs)
