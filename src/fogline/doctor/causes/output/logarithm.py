"""Losses that take the logarithms of probabilities, and are given the probabilities."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from fogline.doctor.causes.output.common import ended_by, mismatched, passed_through
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, Evidence, Remedy, Suspicion
from fogline.doctor.heads import bend
from fogline.doctor.uncut import Logarithms, Normalised, within


def without_logarithm(exam: Examination) -> Suspicion | None:
    """``F.nll_loss`` or ``F.kl_div``, wherever it is called, on probabilities instead of their logarithms."""
    given = _given_probabilities(exam)
    if not given:
        return _not_of_all_classes(exam)
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


def _not_of_all_classes(exam: Examination) -> Suspicion | None:
    """``F.nll_loss`` on numbers whose exponentials do not sum to 1 over the classes: scores, or another axis is taken.

    Where the model ends in nothing and the loss is that alone, others say so.
    """
    mode = Normalised()
    if isinstance(exam.program.loss, nn.NLLLoss) or not passed_through(exam, mode) or not mode.sums:
        return None
    remedy = Remedy(
        "give F.nll_loss the log-softmax over the classes",
        "scores = scores.log_softmax(1)  # dim 1 of what F.nll_loss is given is that of the classes\n"
        "loss = F.nll_loss(scores, targets)",
        on_loss=lambda loss: within(loss, Normalised),
        place="head",
        order=LOSS,
    )
    return mismatched(
        exam,
        0.9,
        (Evidence("what the probabilities of all classes that F.nll_loss is told sum to", mode.sums[0], 1.0),),
        "F.nll_loss wants the logarithms of probabilities that sum to 1 over the classes, and is given others: the one "
        "that is asked for can be raised without taking anything from the rest. The log-softmax is missing, or it is "
        "taken over another axis than that of the classes.",
        (remedy,),
        proof=True,
    )


def _given_probabilities(exam: Examination) -> list[str]:
    """The functions that are given probabilities where logarithms are wanted, as the program runs on its batch."""
    notes = exam.anatomy.notes
    if "without_logarithm" not in notes:
        mode = Logarithms()
        notes["without_logarithm"] = list(mode.given) if passed_through(exam, mode) else []
    found: list[str] = notes["without_logarithm"]
    return found
