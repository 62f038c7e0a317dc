"""What a loss of one's own compares, read from its graph where it is no loss of outputs and targets."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fogline.data.source import leaves
from fogline.descent.copies import copied
from fogline.descent.objective import Objective
from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.doctor.asked import Comparing
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Suspicion
from fogline.doctor.graphs import Pairing, read_pairing


def wrongly_paired(exam: Examination) -> Suspicion | None:
    """Outputs that do not fit what they are compared with: at one of PyTorch's losses, or in the whole loss."""
    known = exam.anatomy.notes
    if "pairings" not in known:
        known["pairings"] = list(_pairings(exam))
    found: Pairing | None = next(iter(known["pairings"]), None)
    if found is None:
        return None
    return Suspicion(
        found.cause,
        found.confidence,
        (found.evidence,),
        found.explanation,
        proof=True,
        severity=found.severity,
        advice=f"{found.title[:1].upper()}{found.title[1:]}: {found.patch}.",
    )


def _pairings(exam: Examination) -> Iterator[Pairing]:
    if exam.anatomy.stage or (exam.case.supervised and not exam.case.yardstick.several):
        return  # others look at outputs and targets
    objective, answers = Objective(copied(exam.anatomy.model), exam.program.loss), list[list[Tensor]]()
    objective.model.register_forward_hook(lambda module, given, found: answers.append(leaves(found)))
    try:
        with private_randomness(CPU), torch.enable_grad(), Comparing() as seen:
            seed_step(0, 0, PROBE, CPU)
            loss = objective(exam.anatomy.batch)
            compared = [(call.loss, call.said, call.told) for call in seen.found]
            whole = [(loss, answers[0][0], None)] if len(answers) == len(answers[0]) == 1 else []
            for value, said, told in (*compared, *whole):
                if all(isinstance(part, Tensor) and part.grad_fn is not None for part in (value, said)):
                    yield from read_pairing(value, said, told)
    except FAILURES:
        return
