"""Losses that take the logarithms of probabilities, and are given the probabilities."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from fogline.doctor.causes.output.common import ended_by, mismatched, passed_through
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, Evidence, Remedy, Suspicion
from fogline.doctor.heads import bend
from fogline.doctor.uncut import Logarithms, within


def without_logarithm(exam: Examination) -> Suspicion | None:
    """``F.nll_loss`` or ``F.kl_div``, wherever it is called, on probabilities instead of their logarithms."""
    given = _given_probabilities(exam)
    if not given:
        return None
    name = f"F.{given[0]}"
    ending = None
    if exam.case.supervised and bend(exam.anatomy) == "softmax":
        ending = ended_by(
            exam, lambda: nn.LogSoftmax(dim=1), "put nn.LogSoftmax(dim=1) in the place of the softmax at the end",
            "model[-1] = nn.LogSoftmax(dim=1)",
        )  # fmt: skip
    logarithm = Remedy(
        f"give {name} the logarithms of what it is given",
        f"{name}(probabilities.clamp_min(1e-38).log(), targets)  # or log_softmax in the place of softmax",
        on_loss=lambda loss: within(loss, Logarithms),
        place="head",
        order=LOSS,
    )
    found = mismatched(
        exam,
        0.95,
        (Evidence(f"what {name} is given", "numbers from 0 to 1 that sum to 1", "their logarithms, all below 0"),),
        f"{name} takes the logarithms of probabilities, and is given the probabilities themselves: what is thought "
        "wrong has next to no gradient, and the least loss is not where the probabilities are right.",
        (ending, logarithm),
        proof=True,
    )
    return replace(found, advice="Use log_softmax in the place of softmax, or take the logarithm.")


def _given_probabilities(exam: Examination) -> list[str]:
    """The functions that are given probabilities where logarithms are wanted, as the program runs on its batch."""
    notes = exam.anatomy.notes
    if "without_logarithm" not in notes:
        mode = Logarithms()
        notes["without_logarithm"] = list(mode.given) if passed_through(exam, mode) else []
    found: list[str] = notes["without_logarithm"]
    return found
