"""Losses of the user's own that hear a part of the rows only: those of one target, or a handful near zero."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from fogline.data import losses
from fogline.doctor.causes.output.common import mismatched
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, Evidence, Remedy, Suspicion
from fogline.doctor.heads import bend
from fogline.doctor.hearing import share_in_relative_errors, the_only_heard

_A_HANDFUL = 0.1  # of the rows, that stand for all


class AllBut(nn.Module):
    """The cross-entropy of all places but those of one label.

    Args:
        label: of the places that are left out.
        dim: of the outputs that has the classes.
    """

    def __init__(self, label: int, dim: int) -> None:
        super().__init__()
        self.label, self.dim = label, dim

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        scores = outputs.movedim(self.dim, -1).reshape(targets.numel(), -1)
        return F.cross_entropy(scores, targets.reshape(-1), ignore_index=self.label)


def one_value_heard(exam: Examination) -> Suspicion | None:
    """A loss that hears only places of one and the same target, as with a mask that is the wrong way round."""
    outputs, loss = exam.anatomy.outputs, exam.program.loss
    some_ignored = losses.family(loss) == "unknown" or getattr(loss, "ignore_index", -1) >= 0
    targets = exam.program.train[1]
    if exam.anatomy.stage or not some_ignored or not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return None
    known = the_only_heard(loss, outputs.detach(), targets)
    if known is None:
        return None
    only, dim = known
    scores = dim > 0 and bend(exam.anatomy) in ("", "log_softmax")
    remedy = Remedy(
        f"hear all places but those whose target is {only:g}",
        f"scores = outputs.movedim({dim}, -1).flatten(0, -2)\n"
        f"loss = F.cross_entropy(scores, targets.flatten(), ignore_index={only:g})",
        on_loss=lambda _: AllBut(int(only), dim),
        place="head",
        order=LOSS,
    )
    share = float((targets == only).double().mean())
    found = mismatched(
        exam,
        0.95,
        (
            Evidence("target at every place that changes the loss, whatever is put out there", only, "several"),
            Evidence("share of the places whose target is another", 1 - share, "heard"),
        ),
        f"The loss hears only the places whose target is {only:g}: always to say {only:g} is a perfect answer, and "
        "nothing is learned of the others. A mask is the wrong way round, or leaves out all but padding.",
        (remedy,) if scores else (),
        proof=True,
    )
    return replace(found, advice=f"Let the loss hear the places whose target is another than {only:g}.")


def percent_of_zero(exam: Examination) -> Suspicion | None:
    """Relative errors of targets on both sides of zero: the few that are next to it outweigh all others."""
    outputs, targets, loss = exam.anatomy.outputs, exam.program.train[1], exam.program.loss
    if exam.case.yardstick.work != "regression" or losses.family(loss) != "unknown" or exam.anatomy.stage:
        return None
    if not isinstance(outputs, Tensor) or outputs.shape[1:] != targets.shape[1:]:
        return None
    share = share_in_relative_errors(loss, targets.to(outputs.dtype))
    if share > _A_HANDFUL:
        return None
    remedy = Remedy("use nn.L1Loss()", "loss = nn.L1Loss()", on_loss=lambda _: nn.L1Loss(), place="head", order=LOSS)
    found = mismatched(
        exam,
        0.7,
        (Evidence("share of the rows that count, of answers that are all as far off", share, 1.0),),
        "The loss measures errors against the targets, as in percent, and targets lie on both sides of zero: the few "
        "that are next to it outweigh all other rows, so that the answers are of those alone.",
        (remedy,),
    )
    return replace(found, advice="Use nn.L1Loss() or nn.MSELoss(), or targets that are far from zero.")
