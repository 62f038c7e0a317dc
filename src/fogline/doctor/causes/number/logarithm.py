"""Logarithms of zero, and the loss that has none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.causes.number.guard import finite_with, guards, made_positive
from fogline.doctor.causes.number.hazards import Hazard, Look, batch_is_fine, first_hazard, when
from fogline.doctor.causes.number.softened import softened
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, Evidence, Remedy, Suspicion

_SAFE = 1e-6
"""Probabilities are kept this far from 0 and 1: float32 still tells 1 - 1e-6 from 1."""


def log_of_zero(exam: Examination) -> Suspicion | None:
    """The logarithm of an exact zero: a probability that has become too small for the floating-point type."""
    look, at_once = when(exam)
    hazard = first_hazard(look, logs=True, guarded=False)
    if look is None or hazard is None:
        return None
    return of_log(exam, "log_of_zero", look, hazard, at_once, "and nothing keeps it from reaching 0")


def of_log(exam: Examination, cause: str, look: Look, hazard: Hazard, at_once: bool, why: str) -> Suspicion:
    rows = f"rows {', '.join(map(str, hazard.rows[:8]))} of a batch" if hazard.rows else "a batch"
    return Suspicion(
        cause,
        0.9,
        (
            Evidence("values of exactly 0 given to a logarithm", hazard.bad, 0),
            Evidence("what went in", f"{hazard.low:.3g} to {hazard.high:.3g}", "above 0"),
            Evidence("loss", look.loss, "finite"),
        ),
        f"A logarithm is given exactly 0 ({rows}), {why}: the loss or its gradient is then infinite or not a number, "
        "and one such row spoils the whole step.",
        (
            *(r for r in _safer(exam, look) if not at_once or finite_with(exam, r)),
            *softened(exam, at_once=at_once),
            *(r for r in _kept_away(look) if exam.case.supervised and (not at_once or finite_with(exam, r))),
            *made_positive(exam, at_once=at_once),
            *guards(exam, at_once=at_once),
        ),
        proof=True,
        blocks=at_once and not batch_is_fine(exam),
        severity="fatal" if at_once else "serious",
        advice="compute the loss from logits: nn.CrossEntropyLoss or nn.BCEWithLogitsLoss take the logarithm safely",
    )


class Clamped(nn.Module):
    """A loss on probabilities that are kept away from 0 and 1, where their logarithms are infinite."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = self.loss(outputs.clamp(_SAFE, 1 - _SAFE), targets)
        return found


def nll_of_probabilities(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of probabilities and labels, or rows of probabilities."""
    logarithms = outputs.clamp(_SAFE, 1).log()
    if targets.is_floating_point():
        return -(targets * logarithms).sum(1).mean()
    return F.nll_loss(logarithms, targets)


def _safer(exam: Examination, look: Look) -> Iterator[Remedy]:
    """The same loss in a form that cannot overflow, where one of PyTorch's own gives the same numbers."""
    if not exam.case.supervised or not isinstance(look.outputs, Tensor) or not isinstance(look.targets, Tensor):
        return
    for name, loss in _KNOWN.items():
        if type(exam.program.loss) is not type(loss) and _same(exam.program.loss, loss, look):
            yield Remedy(f"use {name}", f"loss={name}", on_loss=_replacing(loss), place="loss", order=LOSS)
            return


def _kept_away(look: Look) -> Iterator[Remedy]:
    """A clamp of outputs that are all probabilities."""
    outputs = look.outputs[torch.isfinite(look.outputs)] if isinstance(look.outputs, Tensor) else torch.empty(0)
    if outputs.numel() and float(outputs.min()) >= 0 and float(outputs.max()) <= 1:
        yield Remedy(
            "keep the probabilities away from 0 and 1 before the loss",
            "loss=lambda outputs, targets: your_loss(outputs.clamp(1e-6, 1 - 1e-6), targets)",
            on_loss=Clamped,
            place="loss",
            order=LOSS,
        )


def _replacing(loss: Any) -> Callable[[Any], Any]:
    return lambda _: loss


_KNOWN: dict[str, Any] = {
    "nn.CrossEntropyLoss()": nn.CrossEntropyLoss(),
    "nn.BCEWithLogitsLoss()": nn.BCEWithLogitsLoss(),
    "nn.BCELoss()": nn.BCELoss(),
    "a cross-entropy that clamps its probabilities": nll_of_probabilities,
}


def _same(loss: Any, other: Any, look: Look) -> bool:
    """Whether two losses agree on harmless outputs of the same kind, drawn twice."""
    outputs, targets = look.outputs, look.targets
    finite = outputs[torch.isfinite(outputs)]
    probabilities = bool(finite.numel()) and float(finite.min()) >= 0 and float(finite.max()) <= 1
    with private_randomness(CPU), torch.no_grad():
        seed_step(0, 1, PROBE, CPU)
        for _ in range(2):
            drawn = torch.randn(outputs.shape, dtype=torch.float32)
            if probabilities:
                drawn = drawn.softmax(1) if outputs.ndim == 2 and outputs.shape[1] > 1 else drawn.sigmoid()
            try:
                first, second = float(loss(drawn, targets)), float(other(drawn, targets))
            except FAILURES:
                return False
            if not math.isclose(first, second, rel_tol=1e-2):
                return False
    return True
