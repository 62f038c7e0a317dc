"""Sequence models that are asked to say what they are being told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fogline.descent.randomness import private_randomness
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.causes.output.common import mismatched
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, Evidence, Remedy, Suspicion
from fogline.doctor.questions import asks_for_the_next

_IGNORED = -100
_ROWS, _CLOSE = 8, 1e-5


class Shifted(nn.Module):
    """A loss that is told of each place what comes next, and nothing of the last one."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss

    def turned(self, targets: Tensor) -> Tensor:
        """The targets that the loss is told."""
        return torch.cat([targets[:, 1:], torch.full_like(targets[:, :1], _IGNORED)], 1)

    def forward(self, outputs: Any, targets: Tensor) -> Tensor:
        found: Tensor = self.loss(outputs, self.turned(targets))
        return found


def told_already(exam: Examination) -> Suspicion | None:
    """Tokens as targets of themselves, in a model that sees each of them, and none that comes after it.

    A model that sees them all may be meant to give them back through a narrow place; one that reads from left to right
    is meant to say what comes next.
    """
    if exam.anatomy.stage or not exam.case.supervised or hasattr(exam.program.loss, "turned"):
        return None
    inputs, targets = exam.anatomy.batch
    tokens = isinstance(inputs, Tensor) and isinstance(targets, Tensor) and inputs.ndim == targets.ndim == 2
    if not tokens or inputs.is_floating_point() or targets.is_floating_point() or inputs.shape != targets.shape:
        return None
    if inputs.shape[1] < 3 or not bool((inputs == targets).all()) or not _reads_from_left_to_right(exam, inputs):
        return None
    outputs, classes = exam.anatomy.outputs.detach(), exam.case.yardstick.classes
    if exam.case.yardstick.work == "other" or asks_for_the_next(outputs, classes, targets, exam.program.loss):
        return None  # the loss itself sees to what comes next
    return replace(
        mismatched(
            exam,
            0.95,
            (Evidence("share of targets that are the token at the same place", 1.0, "that of the next place"),),
            "The model reads from left to right and is asked, of every place, for the token that stands there: it has "
            "just been told. What comes next, it does not learn.",
            (
                Remedy(
                    "ask for the next token",
                    "inputs, targets = tokens[:, :-1], tokens[:, 1:]",
                    on_loss=Shifted,
                    place="head",
                    order=LOSS,
                ),
            ),
            proof=True,
            blocks=True,
        ),
        advice="",
    )


def _reads_from_left_to_right(exam: Examination, inputs: Tensor) -> bool:
    """Whether another token at a place changes what is said there, and nothing of what is said before."""
    rows, place = inputs[:_ROWS], inputs.shape[1] // 2
    other = rows.clone()
    other[:, place] = rows[:, place].roll(1, 0)
    changed = other[:, place] != rows[:, place]
    try:
        with private_randomness(CPU), torch.no_grad():
            model = exam.program.new_model(0).eval()
            outputs, others = model(rows), model(other)
    except FAILURES:
        return False
    if not isinstance(outputs, Tensor) or outputs.ndim != 3 or not bool(changed.any()):
        return False
    if outputs.shape[1] != rows.shape[1] or outputs.shape[2] == rows.shape[1]:
        outputs, others = outputs.movedim(1, 2), others.movedim(1, 2)
    if outputs.shape[1] != rows.shape[1]:
        return False
    moved = (outputs - others).abs().amax(2)[changed]
    near = _CLOSE * float(outputs.abs().max())
    return float(moved[:, :place].max()) <= near < float(moved[:, place].min())
