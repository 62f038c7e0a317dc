"""Causes between the last layer and the loss."""

from __future__ import annotations

from torch import nn

from fogline.doctor.examination import Examination
from fogline.doctor.finding import HEAD, Evidence, Remedy, Suspicion
from fogline.doctor.surgery import without_last


def double_softmax(exam: Examination) -> Suspicion | None:
    """A softmax in the model and another in the loss: the gradient shrinks and confident outputs cannot be reached."""
    anatomy = exam.anatomy
    if "log_softmax" not in anatomy.in_loss or not anatomy.head or anatomy.head[0] not in ("softmax", "log_softmax"):
        return None
    if anatomy.head[0] == "log_softmax":
        return None  # a log-softmax of a log-softmax is the same again
    remedy = Remedy(
        "replace nn.Softmax at the end by nothing",
        "remove the softmax at the end of the model: nn.CrossEntropyLoss takes logits",
        on_model=lambda module: without_last(module, nn.Softmax),
        place="head",
        order=HEAD,
    )
    return Suspicion(
        "double_softmax",
        0.95,
        (Evidence("last operation of the model", "softmax", "logits, because the loss applies its own softmax"),),
        "The model ends in a softmax and the loss applies another one. The second sees numbers between 0 and 1 only, so "
        "no output can become confident and the gradient is many times too small.",
        (remedy,),
        proof=True,
    )


ON_ONE_BATCH = (double_softmax,)
IN_MOTION = ()
