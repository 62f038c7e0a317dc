"""Losses of the user's own that ask for something else than their targets say, told by what they answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data import losses
from fogline.doctor.causes.output.common import mismatched
from fogline.doctor.causes.output.tables import made_into_tables
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, Evidence, Remedy, Suspicion
from fogline.doctor.gains import rewards_wrong_answers
from fogline.doctor.matching import matching
from fogline.doctor.questions import (
    asked,
    compares_columns,
    hears_nothing,
    is_highest_at_targets,
    is_of_no_row,
    is_over_rows,
)
from fogline.doctor.reading import falls_without_end, is_difference, unheard
from fogline.doctor.standing import LEARNS

_FEW = 8  # rows of a batch, of which those that change places are others


class Negated(nn.Module):
    """A loss with the other sign."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Any, targets: Any) -> Tensor:
        found: Tensor = -self.loss(outputs, targets)
        return found


def _with_other_sign() -> Remedy:
    return Remedy(
        "take the loss with the other sign",
        "loss = lambda outputs, targets: -loss_fn(outputs, targets)",
        on_loss=Negated,
        place="head",
        order=LOSS,
    )


def rewarding_wrong_answers(exam: Examination) -> Suspicion | None:
    """A loss of one's own that is lowest where every answer is wrong: a score that is minimised, a sign left out."""
    said = rewards_wrong_answers(exam)
    if said is None:
        return None
    found = mismatched(
        exam,
        0.85,
        (
            Evidence("loss where every example gets its right answer", said[0]),
            Evidence("loss where every example gets a wrong one", said[1], "more than where they are right"),
        ),
        "The loss is lowest where every answer is wrong, and the descent goes there: what is minimised is a score that "
        "should be made as large as possible, or a sign was left out.",
        (_with_other_sign(),),
    )
    return replace(found, advice="")


def highest_at_targets(exam: Examination) -> Suspicion | None:
    """The other sign of a loss that only knows directions: it is highest where outputs are the targets."""
    outputs, targets = exam.anatomy.outputs, exam.anatomy.batch[1]
    if not isinstance(outputs, Tensor) or outputs.shape != targets.shape or not targets.is_floating_point():
        return None
    if len(targets) < _FEW or exam.anatomy.stage or int(torch.unique(targets).numel()) <= 2:
        return None
    if losses.family(exam.program.loss) != "unknown" or not is_highest_at_targets(targets, exam.program.loss):
        return None
    if targets.ndim == 2 and targets.shape[1] > 1 and not compares_columns(targets, Negated(exam.program.loss)):
        return None
    exact, others = (asked(exam.program.loss, said, targets) for said in (targets, -targets))
    return replace(
        mismatched(
            exam,
            0.9,
            (
                Evidence("loss where outputs are the targets", exact),
                Evidence("loss where they are the opposite", others, "more than at the targets"),
            ),
            "The loss is highest where outputs are what they should be and lowest where they are the opposite, and the "
            "descent goes there: a sign was left out, or one too many was put in.",
            (_with_other_sign(),),
            proof=True,
        ),
        advice="",
    )


def deaf(exam: Examination) -> Suspicion | None:
    """A loss of one's own that is the same number whatever is put out, as a correlation along the wrong axis is."""
    outputs, targets, loss = exam.anatomy.outputs, exam.anatomy.batch[1], exam.program.loss
    if losses.family(loss) != "unknown" or not isinstance(outputs, Tensor) or exam.anatomy.stage:
        return None
    if len(targets) < _FEW or not hears_nothing(outputs.detach(), targets, loss):
        return None
    return mismatched(
        exam,
        0.95,
        (Evidence("change of the loss where other things are put out", 0.0, "some"),),
        "The loss is the same number whatever the model says, so there is nothing to descend: what it compares has "
        "been averaged or subtracted away, as by a mean along an axis of one number.",
        (matching(exam),),
        proof=True,
    )


def bottomless(exam: Examination) -> Suspicion | None:
    """A loss of numbers that falls for ever as all outputs grow, or shrink: a sign left out, or a share in percent."""
    found = falls_without_end(exam, exam.program.loss)
    if found is None:
        return None
    cured = falls_without_end(exam, Negated(exam.program.loss)) is None and is_difference(exam)
    remedy = _with_other_sign()
    suspicion = mismatched(
        exam,
        0.95,
        (
            Evidence(
                f"loss where all outputs are {found[0]:+.3g} from the targets", found[1], "more than at the targets"
            ),
        ),
        "The loss has no least value: the further all outputs go, whatever the inputs are, the lower it is. A sign was "
        "left out, or a number has another unit than the loss takes, such as a share in percent.",
        (remedy,) if cured else (),
        proof=True,
    )
    return replace(suspicion, advice="" if cured else "Make the loss lowest where outputs are what they should be.")


class PlusMinus(nn.Module):
    """A loss on targets of 0 and 1 as -1 and 1."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Any, targets: Tensor) -> Tensor:
        found: Tensor = self.loss(outputs, 2 * targets - 1)
        return found


def unheard_targets(exam: Examination) -> Suspicion | None:
    """A loss of pairs, or of other outputs that only it can read, that does not hear the rows of some targets."""
    targets = unheard(exam, exam.program.loss)
    if not targets:
        return None
    names = ", ".join(f"{target:g}" for target in targets)
    signed = targets == (0.0,) and exam.anatomy.batch[1].max() == 1
    remedy = Remedy(
        "tell the loss 1 and -1 in place of 1 and 0",
        "loss = lambda outputs, targets: loss_fn(outputs, 2 * targets - 1)",
        on_loss=PlusMinus,
        place="head",
        order=LOSS,
    )
    cured = signed and not unheard(exam, PlusMinus(exam.program.loss))
    found = mismatched(
        exam,
        0.95,
        (Evidence(f"rows with target {names} that change the loss, whatever is put out for them", 0, "all"),),
        f"{losses.name(exam.program.loss)} is the same whatever the model says of rows with target {names}: nothing is "
        "learned from them" + (", since it knows 1 and -1, and no 0." if cured else "."),
        (remedy,) if cured else (),
        proof=True,
        blocks=cured,
    )
    return replace(found, advice="" if cured else "Give the targets as the loss expects them.")


def over_rows(exam: Examination) -> Suspicion | None:
    """A loss of one's own whose softmax runs over the rows of the batch."""
    outputs, targets, loss = exam.anatomy.outputs, exam.anatomy.batch[1], exam.program.loss
    if exam.case.yardstick.work not in ("classes", "one_hot") or losses.family(loss) != "unknown":
        return None
    several = isinstance(outputs, Tensor) and outputs.ndim == 2 and min(outputs.shape) > 1 and not exam.anatomy.stage
    if not several or len(targets) != len(outputs) or not is_over_rows(outputs.detach(), targets, loss):
        return None
    return mismatched(
        exam,
        0.95,
        (Evidence("change of the loss where a class gets more in every row", 0.0, "some"),),
        "The softmax in the loss runs over the rows of the batch instead of over the classes: the scores of a row are "
        "never compared with one another, and what a row costs depends on which others are in its batch.",
        (matching(exam),),
        proof=True,
    )


def of_no_row(exam: Examination) -> Suspicion | None:
    """A loss of one's own that compares batches, not rows, where rows say what their targets are."""
    outputs, targets, loss = exam.anatomy.outputs, exam.anatomy.batch[1], exam.program.loss
    if losses.family(loss) != "unknown" or not isinstance(outputs, Tensor) or outputs.shape != targets.shape:
        return None
    if exam.anatomy.stage or len(targets) < _FEW or not is_of_no_row(outputs.detach(), targets, loss):
        return None
    possible = exam.reference.possible
    if possible is None or possible < LEARNS:
        return None  # distributions may be all there is to compare
    if made_into_tables(exam) is not None:
        return None  # which says why
    return mismatched(
        exam,
        0.95,
        (
            Evidence("change of the loss where targets change places", 0.0, "some"),
            Evidence("skill of a classical learner that is told whose they are", possible),
        ),
        "The loss is the same whichever row a target belongs to, as one of means or of other sums over the batch: no "
        "row learns what is true of it.",
        (matching(exam),),
        proof=True,
    )
