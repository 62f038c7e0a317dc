"""A softmax too many, and a softmax over a single unit."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from fogline.data.source import leaves
from fogline.doctor.anatomy import BENDS
from fogline.doctor.causes.output.common import LOST, are_shares, codes_of, ended_by, passed_through
from fogline.doctor.examination import Examination
from fogline.doctor.finding import HEAD, LOSS, Evidence, Remedy, Severity, Suspicion
from fogline.doctor.gains import profile
from fogline.doctor.graphs import joined, over_one
from fogline.doctor.heads import behind, bend
from fogline.doctor.matching import labelled, matching, width_of
from fogline.doctor.surgery import replaced
from fogline.doctor.uncut import Logarithms, SigmoidOfOne, Within, within

_OF_SCORES = ("cross_entropy", "log_softmax")


def double_softmax(exam: Examination) -> Suspicion | None:
    """A softmax in the model and another in the loss.

    The second sees numbers between 0 and 1 only: with C classes the right one gets at most e / (e + C - 1), and the
    gradient is that of the first softmax times that of the second.
    """
    anatomy = exam.anatomy
    if not exam.case.supervised:
        return _twice_on_a_batch(exam) or _before_the_loss(exam)
    if "log_softmax" not in anatomy.in_loss and "softmax" not in anatomy.in_loss:
        return None
    if bend(anatomy) != "softmax" or (width_of(exam) or 2) < 2 or not are_shares(anatomy.outputs):
        return _before_the_loss(exam)  # a log-softmax of a log-softmax is the same again
    gains = profile(exam)
    if gains is not None and gains.out_of_reach < LOST:
        return None  # multiplied by a number large enough, as cosine classifiers do
    edit = behind(anatomy)
    if edit is None:
        return _before_the_loss(exam)
    remedy = Remedy(
        "leave out the softmax at the end of the model",
        "# remove nn.Softmax / torch.softmax behind the last layer: the loss takes logits and applies its own;\n"
        "# where probabilities are wanted, take torch.softmax(model(x), dim=1) after training",
        on_model=edit,
        place="head",
        order=HEAD,
    )
    more = () if gains is None else (Evidence("share of the loss no weights can get rid of", gains.out_of_reach, 0.0),)
    return _double((remedy,), *more)


def _twice_on_a_batch(exam: Examination) -> Suspicion | None:
    """The same where the loss calls the model: a softmax right behind a softmax, on the way back from the loss."""
    seen = [name for name in exam.anatomy.in_loss if name in BENDS.values()]
    last = next((layer for layer in reversed(exam.anatomy.layers) if not isinstance(layer.module, nn.Identity)), None)
    if seen[:2] not in (["log_softmax", "softmax"], ["softmax", "softmax"]):
        return None
    if last is None or not isinstance(last.module, nn.Softmax) or last.output is None or last.output.shape[-1] < 2:
        return None
    name, calls = last.name, sum(layer.name == last.name for layer in exam.anatomy.layers)
    remedies = () if calls > 1 or not name else (
        Remedy(
            "leave out the softmax at the end of the model",
            "# remove nn.Softmax behind the last layer: the loss takes logits",
            on_model=lambda model: replaced(model, name, lambda _: nn.Identity()),
            place="head",
            order=HEAD,
        ),
    )  # fmt: skip
    return _double(remedies)


def _before_the_loss(exam: Examination) -> Suspicion | None:
    """The same wherever a function of PyTorch's that takes scores is called, and whatever made the probabilities."""
    mode = Logarithms(_OF_SCORES)
    if not passed_through(exam, mode) or not mode.given:
        return None
    name = f"F.{next(iter(mode.given))}"
    remedy = Remedy(
        f"give {name} the scores from before the softmax",
        f"# leave out the softmax before {name}; where probabilities were averaged:\n"
        f"{name}(probabilities.clamp_min(1e-38).log(), ...)",
        on_loss=lambda loss: within(loss, partial(Logarithms, _OF_SCORES)),
        place="head",
        order=LOSS,
    )
    given = Evidence(f"what {name} is given", "numbers from 0 to 1 that sum to 1", "scores")
    return _double((remedy,), given)


def _double(remedies: tuple[Remedy, ...], *evidence: Evidence) -> Suspicion:
    wanted = "logits, because the loss applies its own softmax"
    return Suspicion(
        "double_softmax",
        0.95,
        (Evidence("last operation before the loss", "softmax", wanted), *evidence),
        "What the model says goes through a softmax, and the loss applies another one. The second sees numbers between "
        "0 and 1 only, so no output can become confident and the gradient is many times too small.",
        remedies,
        proof=True,
        advice="" if remedies else "Return the logits from forward: leave out the softmax.",
    )


def softmax_single_unit(exam: Examination) -> Suspicion | None:
    """A softmax over one number, which is 1 whatever the number is: the output is constant, its gradient zero."""
    outputs = exam.anatomy.outputs
    name = bend(exam.anatomy)
    always = 1.0 if name == "softmax" else 0.0
    if not isinstance(outputs, Tensor) or not outputs.numel():
        return _in_a_part(exam)
    if name not in ("softmax", "log_softmax") or not bool((outputs.detach() == always).all()):
        return _in_a_part(exam)
    return _single(
        Evidence("outputs of the model on a batch", f"all exactly {always:g}", "numbers that depend on the inputs"),
        _for_single_unit(exam),
        "fatal",
    )


def _in_a_part(exam: Examination) -> Suspicion | None:
    """The same in one of several heads whose answers are put side by side."""
    parts = [node for output in leaves(exam.anatomy.outputs) for node in joined(output)]
    single = sum(over_one(node) for node in parts)
    if not single:
        return None
    remedy = Remedy(
        "take a sigmoid for the softmax over one unit",
        "torch.sigmoid(scores)  # in the place of the softmax over a single score",
        on_model=lambda model: Within(model, SigmoidOfOne),
        place="head",
        order=HEAD,
    )
    seen = Evidence(f"parts of the output, of {len(parts)}, that are a softmax over one unit", single, 0)
    return _single(seen, (remedy,), "fatal" if single == len(parts) else "serious")


def _single(seen: Evidence, remedies: tuple[Remedy, ...], severity: Severity) -> Suspicion:
    return Suspicion(
        "softmax_single_unit",
        0.98,
        (seen, Evidence("units that the softmax is taken over", 1, "one a class")),
        "The model ends in a softmax over a single unit. A softmax makes its inputs sum to 1, so one unit alone is "
        "always 1, whatever the weights are: the gradient is zero and nothing can be learned. One unit needs a "
        "sigmoid.",
        remedies,
        proof=True,
        severity=severity,
        advice="Replace the softmax by torch.sigmoid, or give the last layer one output per class.",
    )


def _for_single_unit(exam: Examination) -> tuple[Remedy, ...]:
    found = []
    work, classes = exam.case.yardstick.work, exam.case.yardstick.classes
    codes = codes_of(exam)
    if work == "regression" and codes:
        found.append(labelled(exam, codes))
    if work in ("binary", "regression") or (work == "classes" and classes == 2) or work in ("classes", "one_hot"):
        found.append(matching(exam))
    if work == "binary":
        found.append(ended_by(exam, nn.Sigmoid, "put a sigmoid in the place of the softmax over one unit"))
    return tuple(remedy for remedy in found if remedy is not None)
