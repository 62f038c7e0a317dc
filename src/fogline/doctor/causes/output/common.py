"""What several causes between the last layer and the loss ask."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fogline.data import losses
from fogline.descent.copies import copied
from fogline.descent.objective import Objective
from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.examination import Examination
from fogline.doctor.finding import HEAD, Evidence, Remedy, Suspicion
from fogline.doctor.heads import Maker, behind
from fogline.doctor.uncut import within

LOST = 0.1
"""Share of what the loss could give that must be out of reach to be worth a word: less than the noise of most data."""
MUCH = 0.25
"""Above this share there is no doubt that training is hurt."""


def ended_by(exam: Examination, put: Maker, title: str, patch: str = "") -> Remedy | None:
    edit = behind(exam.anatomy, put)
    if edit is None:
        return None
    name = put.__name__
    code = patch or ("# nothing behind the last layer" if name == "Identity" else f"model[-1] = nn.{name}()")
    return Remedy(title, code, on_model=edit, place="head", order=HEAD)


def mismatched(
    exam: Examination,
    strength: float,
    evidence: tuple[Evidence, ...],
    explanation: str,
    remedies: tuple[Remedy | None, ...] = (),
    *,
    proof: bool = False,
    blocks: bool = False,
    advice: str = "",
) -> Suspicion:
    """``loss_mismatch``, with what would fit the targets: by their kind, if ``advice`` does not say."""
    found = tuple(remedy for remedy in remedies if remedy is not None)
    fitting = {
        "classes": "nn.CrossEntropyLoss() on logits, one a class",
        "one_hot": "nn.CrossEntropyLoss() on logits, one a class",
        "binary": "nn.BCEWithLogitsLoss() on one logit",
        "regression": "nn.MSELoss() on the output of the last layer",
    }
    return Suspicion(
        "loss_mismatch",
        strength,
        evidence,
        explanation,
        found,
        proof=proof,
        blocks=blocks,
        severity="fatal" if proof else "serious",
        advice=advice or f"For these targets use {fitting.get(exam.case.yardstick.work, 'a loss made for them')}.",
    )


def codes_of(exam: Examination) -> int | None:
    """How many classes there are where numbers may be their codes: 0, 1, ..., C-1, each many times."""
    targets = exam.program.train[1] if exam.case.supervised else None
    if not isinstance(targets, Tensor) or targets.numel() != len(targets) or len(targets) < 20:
        return None
    flat = targets.reshape(-1).double()
    if not bool(torch.isfinite(flat).all()) or not bool((flat == flat.round()).all()):
        return None
    values, counts = torch.unique(flat, return_counts=True)
    count = len(values)
    few = 2 <= count <= max(3, len(flat) // 10) and float(values[0]) == 0 and float(values[-1]) == count - 1
    return count if few and float(counts.double().mean()) >= 5 else None


def takes_logits(exam: Examination) -> str:
    """ "classes" or "binary" where the loss applies its own softmax or sigmoid; "" elsewhere."""
    loss, seen = exam.program.loss, exam.anatomy.in_loss
    if isinstance(loss, nn.CrossEntropyLoss) or loss is nn.functional.cross_entropy or "log_softmax" in seen:
        return "classes"
    if losses.family(loss) == "binary" and not losses.on_probabilities(loss):
        return "binary"
    return "binary" if {"BinaryCrossEntropyWithLogits", "log_sigmoid"} & set(seen) else ""


def are_shares(outputs: object) -> bool:
    """Whether the numbers of each example are shares of one whole: what is behind a gate or attention is not."""
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        return False
    found = outputs.detach()
    whole = (found.sum(1), found.sum(-1), found.sum(0))
    return bool((found >= 0).all()) and any(torch.allclose(s, torch.ones_like(s), atol=1e-3) for s in whole)


def passed_through(exam: Examination, mode: TorchFunctionMode) -> bool:
    """Run the program on its batch, its loss within a mode; whether that went well."""
    if exam.anatomy.stage:
        return False
    model = copied(exam.anatomy.model)
    with private_randomness(CPU), torch.enable_grad():
        seed_step(0, 0, PROBE, CPU)
        try:
            Objective(model, within(exam.program.loss, lambda: mode))(exam.anatomy.batch)
        except FAILURES:
            return False
    return True
