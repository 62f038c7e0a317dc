"""Causes between the last layer and the loss."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data import losses
from fogline.data.source import leaves
from fogline.doctor.examination import Examination
from fogline.doctor.finding import HEAD, LOSS, ROWS, Evidence, Remedy, Rows, Suspicion
from fogline.doctor.gains import profile, wants_probabilities
from fogline.doctor.heads import FAILURES, Maker, behind, bend, reach, value, widened
from fogline.doctor.matching import labelled, matching, width_of
from fogline.doctor.standing import standing
from fogline.doctor.surgery import bare
from fogline.recipe import Recipe

_LOST = 0.1
"""Share of what the loss could give that must be out of reach to be worth a word: less than the noise of most data."""
_MUCH = 0.25
"""Above this share there is no doubt that training is hurt."""
_SCALE_FREE = (
    "adam",
    "adamw",
    "nadam",
    "radam",
    "adamax",
    "rmsprop",
    "adagrad",
    "adadelta",
    "rprop",
    "lion",
    "muon",
    "prodigy",
)
"""Optimizers that do the same whatever the loss is multiplied by."""


def double_softmax(exam: Examination) -> Suspicion | None:
    """A softmax in the model and another in the loss.

    The second sees numbers between 0 and 1 only: with C classes the right one gets at most e / (e + C - 1), and the
    gradient is that of the first softmax times that of the second.
    """
    anatomy = exam.anatomy
    again = "log_softmax" in anatomy.in_loss or "softmax" in anatomy.in_loss
    if not again or bend(anatomy) != "softmax" or (width_of(exam) or 2) < 2:
        return None  # a log-softmax of a log-softmax is the same again
    gains = profile(exam)
    if gains is not None and gains.out_of_reach < _LOST:
        return None  # multiplied by a number large enough, as cosine classifiers do
    edit = behind(anatomy)
    remedies = () if edit is None else (
        Remedy(
            "leave out the softmax at the end of the model",
            "# remove nn.Softmax / torch.softmax behind the last layer: the loss takes logits and applies its own;\n"
            "# where probabilities are wanted, take torch.softmax(model(x), dim=1) after training",
            on_model=edit,
            place="head",
            order=HEAD,
        ),
    )  # fmt: skip
    evidence = [Evidence("last operation of the model", "softmax", "logits, because the loss applies its own softmax")]
    if gains is not None:
        evidence.append(Evidence("share of the loss that no weights can get rid of", gains.out_of_reach, 0.0))
    return Suspicion(
        "double_softmax",
        0.95,
        tuple(evidence),
        "The model ends in a softmax and the loss applies another one. The second sees numbers between 0 and 1 only, "
        "so "
        "no output can become confident and the gradient is many times too small.",
        remedies,
        proof=True,
        advice="" if remedies else "Return the logits from forward: leave out the softmax.",
    )


def softmax_single_unit(exam: Examination) -> Suspicion | None:
    """A softmax over one number, which is 1 whatever the number is: the output is constant, its gradient zero."""
    outputs = exam.anatomy.outputs
    name = bend(exam.anatomy)
    if name not in ("softmax", "log_softmax") or not isinstance(outputs, Tensor) or not outputs.numel():
        return None
    always = 1.0 if name == "softmax" else 0.0
    if not bool((outputs.detach() == always).all()):
        return None
    return Suspicion(
        "softmax_single_unit",
        0.98,
        (
            Evidence("outputs of the model on a batch", f"all exactly {always:g}", "numbers that depend on the inputs"),
            Evidence("units that the softmax is taken over", 1, "one a class"),
        ),
        "The model ends in a softmax over a single unit. A softmax makes its inputs sum to 1, so one unit alone is "
        "always "
        "1, whatever the weights are: the gradient is zero and nothing can be learned. One unit needs a sigmoid.",
        _for_single_unit(exam),
        proof=True,
        severity="fatal",
        advice="Replace the softmax by torch.sigmoid, or give the last layer one output per class.",
    )


def _for_single_unit(exam: Examination) -> tuple[Remedy, ...]:
    found = []
    work, classes = exam.case.yardstick.work, exam.case.yardstick.classes
    codes = _codes(exam)
    if work == "regression" and codes:
        found.append(labelled(exam, codes))
    if work in ("binary", "regression") or (work == "classes" and classes == 2) or work in ("classes", "one_hot"):
        found.append(matching(exam))
    if work == "binary":
        found.append(_head(exam, nn.Sigmoid, "put a sigmoid in the place of the softmax over one unit"))
    return tuple(remedy for remedy in found if remedy is not None)


def _head(exam: Examination, put: Maker, title: str, patch: str = "") -> Remedy | None:
    edit = behind(exam.anatomy, put)
    if edit is None:
        return None
    name = put.__name__
    code = patch or ("# nothing behind the last layer" if name == "Identity" else f"model[-1] = nn.{name}()")
    return Remedy(title, code, on_model=edit, place="head", order=HEAD)


def _codes(exam: Examination) -> int | None:
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


def output_activation(exam: Examination) -> Suspicion | None:
    """What the model can put out is not what the loss or the targets ask for."""
    if not exam.case.supervised or not isinstance(exam.anatomy.batch[1], Tensor):
        return None
    for look in (_over_the_batch, _bounded_logits, _no_probabilities, _everything_at_once, _out_of_range, _cut_logits):
        found = look(exam)
        if found is not None:
            return found
    return None


def _over_the_batch(exam: Examination) -> Suspicion | None:
    outputs = exam.anatomy.outputs
    if bend(exam.anatomy) not in ("softmax", "log_softmax") or not isinstance(outputs, Tensor) or len(outputs) < 3:
        return None
    shares = outputs.detach() if bend(exam.anatomy) == "softmax" else outputs.detach().exp()
    columns, rows = shares.sum(0), shares.reshape(len(shares), -1).sum(1)
    if outputs.ndim > 2 or not torch.allclose(columns, torch.ones_like(columns), atol=1e-4):
        return None
    if torch.allclose(rows, torch.ones_like(rows), atol=1e-4):
        return None
    width = width_of(exam) or 1
    one = _head(exam, nn.Sigmoid, "put a sigmoid in the place of the softmax over the batch")
    every = _head(exam, _over_classes(exam), "take the softmax over the classes, not over the batch", "dim=1")
    remedy = one if width == 1 else every
    return Suspicion(
        "output_activation",
        0.95,
        (Evidence("sum of each output over the examples of a batch", 1.0, "each example sums to 1, not each batch"),),
        "The softmax at the end runs over the examples of the batch instead of over the classes: what an example gets "
        "depends on which others are in its batch.",
        () if remedy is None else (remedy,),
        proof=True,
        advice="Use dim=1 in the softmax.",
    )


def _over_classes(exam: Examination) -> Maker:
    log = bend(exam.anatomy) == "log_softmax"
    return (lambda: nn.LogSoftmax(dim=1)) if log else (lambda: nn.Softmax(dim=1))


def _takes_logits(exam: Examination) -> str:
    """ "classes" or "binary" where the loss applies its own softmax or sigmoid; "" elsewhere."""
    loss, seen = exam.program.loss, exam.anatomy.in_loss
    if isinstance(loss, nn.CrossEntropyLoss) or loss is nn.functional.cross_entropy or "log_softmax" in seen:
        return "classes"
    if losses.family(loss) == "binary" and not losses.on_probabilities(loss):
        return "binary"
    return "binary" if {"BinaryCrossEntropyWithLogits", "log_sigmoid"} & set(seen) else ""


def _bounded_logits(exam: Examination) -> Suspicion | None:
    wanted, name, gains = _takes_logits(exam), bend(exam.anatomy), profile(exam)
    if not wanted or not name or name == "log_softmax" or gains is None or gains.out_of_reach < _LOST:
        return None
    if wanted == "classes" and name == "softmax":
        return None  # that is double_softmax
    remedies = []
    if wanted == "binary" and name == "sigmoid" and type(exam.program.loss) is nn.BCEWithLogitsLoss:
        given = exam.program.loss
        if given.pos_weight is None:
            remedies.append(
                Remedy(
                    "use nn.BCELoss() on the sigmoid",
                    "loss = nn.BCELoss()  # nn.BCEWithLogitsLoss would apply a second sigmoid",
                    on_loss=lambda _: nn.BCELoss(given.weight, reduction=given.reduction),
                    place="head",
                    order=LOSS,
                )
            )
    remedies += [r for r in (_head(exam, nn.Identity, f"leave out the {name} at the end of the model"),) if r]
    own = "softmax" if wanted == "classes" else "sigmoid"
    bounds = reach(exam.anatomy)
    evidence = [
        Evidence("last operation of the model", name, f"logits, because the loss applies its own {own}"),
        Evidence("share of the loss that no weights can get rid of", gains.out_of_reach, 0.0),
    ]
    if bounds is not None:
        evidence.append(Evidence("range of the outputs", f"{bounds[0]:.3g} to {bounds[1]:.3g}", "any number"))
    return Suspicion(
        "output_activation",
        0.9 if gains.out_of_reach > _MUCH else 0.6,
        tuple(evidence),
        f"The loss wants logits, any numbers from very negative to very positive, because it applies a {own} itself. "
        "The "
        f"model ends in {name}, which cuts them off, so it can never be sure of anything and learns slowly.",
        tuple(remedies),
        proof=gains.out_of_reach > _MUCH,
        advice=f"Return the logits from forward: leave out the {name}.",
    )


def _no_probabilities(exam: Examination) -> Suspicion | None:
    if exam.case.yardstick.work not in ("classes", "binary", "one_hot") or not wants_probabilities(exam):
        return None
    bounds, name = reach(exam.anatomy), bend(exam.anatomy)
    if bounds is None or (bounds[0] >= -1e-6 and bounds[1] <= 1 + 1e-6):
        return None
    width = width_of(exam) or 1
    several = width > 1 and exam.case.yardstick.work != "binary"
    end: Maker = (lambda: nn.Softmax(dim=1)) if several else nn.Sigmoid
    called = "softmax" if several else "sigmoid"
    remedies = []
    if not name and type(exam.program.loss) is nn.BCELoss:
        weight, reduction = exam.program.loss.weight, exam.program.loss.reduction
        remedies.append(
            Remedy(
                "use nn.BCEWithLogitsLoss() on the logits",
                "loss = nn.BCEWithLogitsLoss()  # or put nn.Sigmoid() at the end of the model",
                on_loss=lambda _: nn.BCEWithLogitsLoss(weight, reduction=reduction),
                place="head",
                order=LOSS,
            )
        )
    title = f"put a {called} in the place of the {name} at the end" if name else f"put a {called} at the end"
    module = "nn.Softmax(dim=1)" if several else "nn.Sigmoid()"
    ending = _head(exam, end, title, f"model[-1] = {module}" if name else f"model.append({module})")
    remedies += [] if ending is None else [ending]
    return Suspicion(
        "output_activation",
        0.9,
        (
            Evidence("range of the outputs", f"{bounds[0]:.3g} to {bounds[1]:.3g}", "0 to 1"),
            Evidence("last operation of the model", name or "the last layer itself", called),
        ),
        "The loss takes probabilities, numbers from 0 to 1, and outside it is not defined or has no slope. The model "
        "can "
        "put out other numbers, and where it does nothing is learned.",
        tuple(remedies),
        proof=True,
        advice=f"End the model in a {called}.",
    )


def _everything_at_once(exam: Examination) -> Suspicion | None:
    """Independent sigmoids under a loss that looks at the right class only: to say yes to all is a perfect answer."""
    gains, name = profile(exam), bend(exam.anatomy)
    width = width_of(exam) or 1
    if gains is None or width < 2 or name in ("", "softmax", "log_softmax") or exam.case.yardstick.work == "binary":
        return None
    bounds = reach(exam.anatomy)
    if bounds is None or not (bounds[0] > -1e4 and bounds[1] < 1e4):
        return None
    room = abs(gains.wrong - gains.right)
    if room <= 0 or gains.constant > gains.right + 1e-3 * room:
        return None
    log = isinstance(exam.program.loss, nn.NLLLoss)
    end: Maker = (lambda: nn.LogSoftmax(dim=1)) if log else (lambda: nn.Softmax(dim=1))
    called = "nn.LogSoftmax(dim=1)" if log else "nn.Softmax(dim=1)"
    remedy = _head(exam, end, f"put {called} in the place of the {name} at the end", f"model[-1] = {called}")
    return Suspicion(
        "output_activation",
        0.85,
        (
            Evidence("loss where the right class is said of every example", gains.right),
            Evidence("loss where the same is said of every example", gains.constant, "more than where it is right"),
        ),
        f"The loss looks at the output of the right class only, and the {name} lets all outputs be high at the same "
        "time: "
        "saying yes to every class is a perfect answer, so the classes are never told apart. A softmax makes them "
        "compete.",
        () if remedy is None else (remedy,),
        proof=True,
        advice="End the model in a softmax over the classes.",
    )


def _out_of_range(exam: Examination) -> Suspicion | None:
    """Targets that the last operation cannot reach."""
    work, name = exam.case.yardstick.work, bend(exam.anatomy)
    targets, outputs = exam.program.train[1], exam.anatomy.outputs
    if work not in ("regression", "binary", "one_hot") or not name or name == "log_softmax":
        return None
    if _takes_logits(exam) or wants_probabilities(exam) or not targets.is_floating_point():
        return None
    if name == "softmax" and isinstance(outputs, Tensor) and bool((outputs == 1).all()):
        return None  # that is softmax_single_unit
    bounds = reach(exam.anatomy)
    if bounds is None:
        return None
    found = targets[torch.isfinite(targets)].double()
    within = found.clamp(*bounds)
    whole = float((found - found.mean()).square().sum())
    lost = float((found - within).square().sum()) / whole if whole > 0 else 0.0
    share = float(((found - within).abs() > 1e-6 * found.abs().max()).double().mean())
    if lost < 0.01 or not _prefers(exam, bounds):
        return None
    title = f"leave out the {name} at the end of the model"
    remedies = [r for r in (_head(exam, nn.Identity, title), _other_range(exam, name)) if r is not None]
    mostly = lost > 0.5 or share > 0.5
    return Suspicion(
        "output_activation",
        0.95 if mostly else min(0.9, 0.4 + 5 * lost),
        (
            Evidence("range of the outputs", f"{bounds[0]:.3g} to {bounds[1]:.3g}", f"{_range(found)}, the targets"),
            Evidence("share of the targets that are out of reach", share, 0.0),
            Evidence("share of their variance that cannot be explained", min(1.0, lost), 0.0),
        ),
        f"The model ends in {name}, so its outputs lie between {bounds[0]:.3g} and {bounds[1]:.3g}, and the targets "
        "lie "
        "outside: the best the model can do is to sit at the edge, where the slope of the activation vanishes. To "
        "predict "
        "numbers, end in the last linear layer.",
        tuple(remedies),
        proof=mostly,
        severity="fatal" if mostly else "serious",
        advice=f"Remove the {name} behind the last layer.",
    )


def _range(values: Tensor) -> str:
    return f"{float(values.min()):.3g} to {float(values.max()):.3g}"


def _other_range(exam: Examination, name: str) -> Remedy | None:
    """Tanh for targets of -1 and 1: the same kind of bound, in the right place."""
    if exam.case.yardstick.work != "binary" or exam.case.yardstick.values != (-1.0, 1.0) or name == "tanh":
        return None
    return _head(exam, nn.Tanh, f"put a tanh in the place of the {name} at the end")


def _prefers(exam: Examination, bounds: tuple[float, float]) -> bool:
    """Whether the loss is lower at the targets themselves than at the nearest numbers within reach."""
    outputs, targets = exam.anatomy.outputs, exam.anatomy.batch[1]
    if not isinstance(outputs, Tensor) or outputs.shape != targets.shape:
        return losses.family(exam.program.loss) == "elementwise"
    at, near = value(exam.program.loss, targets, targets), value(exam.program.loss, targets.clamp(*bounds), targets)
    return at is not None and (near is None or at < near)


def _cut_logits(exam: Examination) -> Suspicion | None:
    """A ReLU on logits: what is below zero has no gradient, and no class can be ruled out."""
    wanted, name = _takes_logits(exam), bend(exam.anatomy)
    outputs = exam.anatomy.outputs
    if not wanted or name != "relu" or not isinstance(outputs, Tensor) or not outputs.numel():
        return None
    silent = float((outputs.detach() == 0).double().mean())
    remedy = _head(exam, nn.Identity, "leave out the relu at the end of the model")
    return Suspicion(
        "output_activation",
        min(0.9, 0.4 + 0.5 * silent),
        (Evidence("share of the outputs at exactly 0", silent, "none: logits may be negative"),),
        "The model ends in a ReLU, but the loss wants logits: every output below zero is cut to zero and gets no "
        "gradient, so an output that starts below zero for all examples never learns.",
        () if remedy is None else (remedy,),
        advice="Return the logits from forward: leave out the ReLU.",
    )


def silent_output(exam: Examination) -> Suspicion | None:
    """``output_activation`` in motion: the outputs of a ReLU at the end are zero for every example."""
    trained = exam.trained_anatomy
    if trained is None or bend(trained) not in ("relu", "clamp", "hardtanh") or not isinstance(trained.outputs, Tensor):
        return None
    outputs = trained.outputs.detach().reshape(len(trained.outputs), -1)
    stuck = (outputs == outputs[:1]).all(0)
    if len(outputs) < 4 or not bool(stuck.any()):
        return None
    name = bend(trained)
    dead = float(stuck.double().mean())
    remedy = _head(exam, nn.Identity, f"leave out the {name} at the end of the model")
    return Suspicion(
        "output_activation",
        min(0.9, 0.3 + 0.6 * dead),
        (Evidence("share of the outputs that are the same for every example, after training", dead, 0.0),),
        f"The model ends in {name}, and some of its outputs are at its edge for every example. There the gradient is "
        "zero: they cannot come back.",
        () if remedy is None else (remedy,),
        advice=f"Remove the {name} behind the last layer.",
    )


def loss_mismatch(exam: Examination) -> Suspicion | None:
    """A loss that is not about these targets."""
    if not exam.case.supervised or not isinstance(exam.anatomy.batch[1], Tensor):
        return None
    if exam.anatomy.stage == "forward" or exam.case.yardstick.work == "other" or softmax_single_unit(exam) is not None:
        return None
    for look in (_refused, _one_score, _beyond_unit, _unrewarded, _not_followed, _codes_as_numbers):
        found = look(exam)
        if found is not None:
            return found
    return None


def _mismatch(
    exam: Examination,
    strength: float,
    evidence: tuple[Evidence, ...],
    explanation: str,
    remedies: tuple[Remedy | None, ...] = (),
    *,
    proof: bool = False,
    blocks: bool = False,
) -> Suspicion:
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
        advice=f"For these targets use {fitting.get(exam.case.yardstick.work, 'a loss made for them')}.",
    )


def _refused(exam: Examination) -> Suspicion | None:
    """The loss stops with an error: labels of another kind or shape than it takes."""
    outputs, targets = exam.anatomy.outputs, exam.anatomy.batch[1]
    if exam.anatomy.stage != "loss" or not isinstance(outputs, Tensor) or _too_narrow(exam) is not None:
        return None
    if wants_probabilities(exam):
        return None  # output_activation says what to do
    said = exam.anatomy.error.strip().splitlines()
    return _mismatch(
        exam,
        0.9,
        (
            Evidence("the loss stops with", said[0][:120] if said else "an error", "a number"),
            Evidence("outputs", _described(outputs)),
            Evidence("targets", _described(targets)),
        ),
        f"{losses.name(exam.program.loss)} cannot compare outputs {_described(outputs)} with targets "
        f"{_described(targets)}: it stops with an error.",
        (matching(exam),),
        proof=True,
        blocks=True,
    )


def _described(value: Tensor) -> str:
    return f"of shape {tuple(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"


def _one_score(exam: Examination) -> Suspicion | None:
    """Cross-entropy over one unit is 0 whatever the unit says."""
    outputs, targets = exam.anatomy.outputs, exam.anatomy.batch[1]
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] != 1 or exam.anatomy.stage:
        return None
    if _takes_logits(exam) != "classes" or bend(exam.anatomy) == "softmax" or not targets.is_floating_point():
        return None
    seen = [value(exam.program.loss, torch.full_like(outputs.detach(), size), targets) for size in (-10.0, 0.0, 10.0)]
    if len(set(seen)) > 1 or seen[0] is None:
        return None
    codes = _codes(exam) if exam.case.yardstick.work == "regression" else None
    return _mismatch(
        exam,
        0.95,
        (Evidence("loss for outputs of -10, 0 and 10", f"always {seen[0]:.3g}", "other values"),),
        "The loss is a cross-entropy over classes, and the model has one output. A softmax over one number is always "
        "1, "
        "so the loss is the same whatever the model says, and its gradient is zero.",
        (labelled(exam, codes) if codes else None, matching(exam)),
        proof=True,
    )


def _beyond_unit(exam: Examination) -> Suspicion | None:
    """Binary cross-entropy with targets outside 0 to 1 falls without end."""
    targets = exam.program.train[1]
    entropy = (
        losses.family(exam.program.loss) == "binary"
        or {"BinaryCrossEntropy", "BinaryCrossEntropyWithLogits"} & set(exam.anatomy.in_loss)
        or (exam.case.yardstick.work == "regression" and wants_probabilities(exam))
    )
    if not entropy or not targets.numel():
        return None
    low, high = float(targets.min()), float(targets.max())
    if not (low < 0 or high > 1):
        return None
    codes = _codes(exam)
    return _mismatch(
        exam,
        0.97,
        (Evidence("targets", f"{low:.3g} to {high:.3g}", "0 to 1"),),
        "Binary cross-entropy compares probabilities with targets between 0 and 1. For targets outside it has no least "
        "value: it can be made as low as one likes by pushing the output to an end, whatever the input is.",
        (labelled(exam, codes) if codes and codes > 2 else None, matching(exam)),
        proof=True,
        blocks=losses.family(exam.program.loss) == "binary",
    )


def _unrewarded(exam: Examination) -> Suspicion | None:
    """A loss over classes that gives nothing for being right, or no least value, or does not hear a class."""
    gains = profile(exam)
    if gains is None:
        return None
    known = losses.family(exam.program.loss) in ("classes", "binary", "elementwise")
    room = max(abs(gains.constant - gains.wrong), abs(gains.constant - gains.right), abs(gains.wrong - gains.right))
    best = min(gains.right, gains.wrong)
    if len(gains.blind) == 1:
        stick = exam.case.yardstick
        names = ", ".join(f"{stick.values[k] if stick.work == 'binary' else k:g}" for k in gains.blind)
        return _mismatch(
            exam,
            0.95,
            (Evidence("gradient from the examples with target", names, "some", layer=None),),
            f"Examples whose target is {names} give no gradient, whatever the model says of them: the loss is made for "
            "other targets (a hinge loss wants -1 and 1). Half of what could be learned is not heard.",
            (matching(exam),),
            proof=True,
        )
    if gains.constant <= best + 1e-6 * room:
        return _mismatch(
            exam,
            0.9,
            (
                Evidence("loss where every example gets its right class", gains.right),
                Evidence("loss where all get the same answer", gains.constant, "more than where they are right"),
            ),
            "The loss is as low for one and the same answer to everything as for the right answers: there is nothing "
            "to "
            "be gained by learning.",
            (matching(exam),),
            proof=True,
        )
    if gains.unbounded:
        return _mismatch(
            exam,
            0.9 if known else 0.7,
            (Evidence("loss as the right answer is said ever louder", "falls without end", "a floor"),),
            "The loss has no least value: it falls for ever as outputs grow, so weights grow instead of learning. "
            "Such a "
            "loss is meant for outputs that are bounded, such as the logarithms of probabilities.",
            (_log_softmax(exam), matching(exam)),
            proof=known,
        )
    if isinstance(exam.program.loss, nn.NLLLoss) and bend(exam.anatomy) == "softmax":
        ending = _head(
            exam, lambda: nn.LogSoftmax(dim=1), "put nn.LogSoftmax(dim=1) in the place of the softmax at the end",
            "model[-1] = nn.LogSoftmax(dim=1)",
        )  # fmt: skip
        return _mismatch(
            exam,
            0.6,
            (Evidence("last operation of the model", "softmax", "log_softmax, because nn.NLLLoss takes logarithms"),),
            "nn.NLLLoss takes the logarithms of probabilities, and the model gives the probabilities themselves: an "
            "example that is thought wrong has next to no gradient.",
            (ending,),
        )
    return None


def _log_softmax(exam: Examination) -> Remedy | None:
    """The smallest edit for logits under a negative log-likelihood: the loss that takes logits."""
    if not isinstance(exam.program.loss, nn.NLLLoss) or bend(exam.anatomy):
        return None
    given = exam.program.loss
    return Remedy(
        "use nn.CrossEntropyLoss() on the logits",
        "loss = nn.CrossEntropyLoss()  # or put nn.LogSoftmax(dim=1) at the end of the model",
        on_loss=lambda _: nn.CrossEntropyLoss(given.weight, ignore_index=given.ignore_index, reduction=given.reduction),
        place="head",
        order=LOSS,
    )


def _not_followed(exam: Examination) -> Suspicion | None:
    """For numbers: the output that the loss likes best must grow with the target."""
    outputs, targets = exam.anatomy.outputs, exam.anatomy.batch[1]
    if exam.case.yardstick.work != "regression" or not isinstance(outputs, Tensor) or exam.anatomy.stage:
        return None
    if not targets.is_floating_point() or losses.family(exam.program.loss) in ("elementwise", "binary"):
        return None
    every = exam.program.train[1].double()
    levels = torch.quantile(every.reshape(-1)[:100_000], torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    spread = float(every.std(correction=0))
    if not spread > 0 or float(levels[2] - levels[0]) <= 0:
        return None
    grid = torch.cat(
        [levels.mean() + spread * torch.linspace(-5, 5, 41, dtype=torch.float64), torch.linspace(-5, 5, 41)]
    )
    grid = grid.sort().values
    best = []
    for level in levels.tolist():
        wanted = torch.full_like(targets, level)
        found = [value(exam.program.loss, torch.full_like(outputs.detach(), float(z)), wanted) for z in grid]
        told = [(number, float(z)) for number, z in zip(found, grid, strict=True) if number is not None]
        if len(told) < 20 or max(told)[0] == min(told)[0]:
            return None
        best.append(min(told)[1])
    if best[2] > best[0]:
        return None
    return _mismatch(
        exam,
        0.8,
        (
            Evidence("output the loss likes best for a low target", best[0]),
            Evidence("and for a high one", best[2], "more"),
        ),
        "The output that makes the loss least does not grow with the target: the loss does not ask for the targets to "
        "be "
        "predicted.",
        (matching(exam),),
    )


def _codes_as_numbers(exam: Examination) -> Suspicion | None:
    """Labels of three or more classes predicted as one number: class 1 is taken to lie between 0 and 2."""
    codes = _codes(exam)
    if not codes or codes < 3 or width_of(exam) != 1 or exam.case.yardstick.work not in ("classes", "regression"):
        return None
    if _takes_logits(exam) or not _is_difference(exam):
        return None
    named = exam.case.yardstick.work == "classes"
    return _mismatch(
        exam,
        0.6 if named else 0.35,
        (Evidence("targets", f"the whole numbers 0 to {codes - 1}", "one output a class, if they are labels"),),
        f"The targets are {codes} whole numbers, which look like labels of classes, and the model predicts them as one "
        "number: a loss on the difference takes class 1 to lie between 0 and 2, which labels do not.",
        (labelled(exam, codes),),
    )


def numbers_for_labels(exam: Examination) -> Suspicion | None:
    """``loss_mismatch`` in motion: a loss on differences for classes, where the run falls short.

    The squared error of probabilities has next to no gradient where the model is confidently wrong; often it trains
    well all the same.
    """
    loss, work, observed = exam.program.loss, exam.case.yardstick.work, exam.observed
    if work not in ("classes", "one_hot", "binary") or observed is None or exam.anatomy.stage:
        return None
    each_alone = losses.on_probabilities(loss) and work == "one_hot" and bend(exam.anatomy) == "softmax"
    best = exam.reference.score
    if not (each_alone or _is_difference(exam)) or not standing(exam).short:
        return None
    return _mismatch(
        exam,
        0.5,
        (
            Evidence("loss", losses.name(loss), "cross-entropy, for classes"),
            Evidence("score of the run", observed.score, "more" if best is None else best),
        ),
        "The loss measures differences of numbers, but the targets are classes. Where the model is confidently wrong "
        "such "
        "a loss has next to no gradient, and it can stop far from what is possible; cross-entropy pulls hardest there.",
        (matching(exam),),
    )


def _is_difference(exam: Examination) -> bool:
    """Whether the loss is one of differences: of outputs and targets both doubled it is twice or four times as much."""
    loss, outputs, targets = exam.program.loss, exam.anatomy.outputs, exam.anatomy.batch[1]
    if losses.family(loss) != "unknown":
        return losses.family(loss) == "elementwise"
    if not isinstance(outputs, Tensor) or not targets.is_floating_point() or outputs.shape != targets.shape:
        return False
    once, twice = value(loss, outputs.detach(), targets), value(loss, 2 * outputs.detach(), 2 * targets)
    return bool(once) and twice is not None and min(abs(twice / (once or 1) - power) for power in (2, 4)) < 0.01


def output_width(exam: Examination) -> Suspicion | None:
    """The number of outputs is not what the targets need."""
    if not exam.case.supervised or not isinstance(exam.anatomy.batch[1], Tensor):
        return None
    return _too_narrow(exam) or _one_for_labels(exam) or _other_columns(exam)


def _width(
    exam: Examination,
    wanted: int,
    evidence: tuple[Evidence, ...],
    explanation: str,
    remedy: Remedy | None,
    *,
    blocks: bool,
) -> Suspicion:
    return Suspicion(
        "output_width",
        0.95,
        evidence,
        explanation,
        () if remedy is None else (remedy,),
        proof=True,
        blocks=blocks,
        severity="fatal",
        advice=f"Give the last layer {wanted} outputs.",
    )


def _too_narrow(exam: Examination) -> Suspicion | None:
    width, classes = width_of(exam), exam.case.yardstick.classes
    loss, ends = exam.program.loss, bend(exam.anatomy)
    if exam.case.yardstick.work != "classes" or width is None or width >= classes:
        return None
    targets = exam.program.train[1]
    if losses.family(loss) != "classes" and not (exam.anatomy.stage == "loss" and width > 1):
        return None
    if targets.is_floating_point() or targets.numel() != len(targets):
        return None
    if classes == 2 and width == 1:
        remedy = matching_single(exam)
    else:
        put: Maker | None = {"log_softmax": lambda: nn.LogSoftmax(dim=1), "softmax": lambda: nn.Softmax(dim=1)}.get(
            ends
        )
        edit = widened(exam.anatomy, classes, put)
        code = f"last = nn.Linear(last.in_features, {classes})"
        title = f"give the last layer {classes} outputs, one a class"
        remedy = None if edit is None else Remedy(title, code, on_model=edit, place="head", order=HEAD)
    return _width(
        exam,
        classes,
        (
            Evidence("outputs of the model", width, classes),
            Evidence("largest label", classes - 1, f"at most {width - 1}"),
        ),
        f"There are labels from 0 to {classes - 1}, and the model has {width} output{'s' if width > 1 else ''}: a "
        "label "
        "without an output of its own cannot be predicted.",
        remedy,
        blocks=True,
    )


def matching_single(exam: Examination) -> Remedy | None:
    """For two labels and one output under a loss over classes: two outputs, the loss stays."""
    edit = widened(exam.anatomy, 2)
    if edit is None:
        return None
    code = (
        "last = nn.Linear(last.in_features, 2)\n# or keep one output with nn.BCEWithLogitsLoss() and y.float()[:, None]"
    )
    return Remedy("give the last layer 2 outputs, one a class", code, on_model=edit, place="head", order=HEAD)


def _one_for_labels(exam: Examination) -> Suspicion | None:
    """Labels of many classes, one output and a loss for yes or no."""
    width, classes = width_of(exam), exam.case.yardstick.classes
    if exam.case.yardstick.work != "one_hot" or width is None or width >= classes or exam.anatomy.stage == "forward":
        return None
    return _width(
        exam,
        classes,
        (Evidence("outputs of the model", width, classes),),
        f"The targets have {classes} columns, one a class, and the model has {width} "
        f"output{'s' if width > 1 else ''}: it "
        "is compared with every column at once, and cannot tell the classes apart.",
        matching(exam),
        blocks=exam.anatomy.stage == "loss" or losses.family(exam.program.loss) != "unknown",
    )


def _other_columns(exam: Examination) -> Suspicion | None:
    """Numbers in other columns than the outputs have, and a loss that broadcasts them."""
    outputs, targets = exam.anatomy.outputs, exam.anatomy.batch[1]
    if exam.case.yardstick.work not in ("regression", "binary") or not isinstance(outputs, Tensor):
        return None
    if outputs.ndim != 2 or targets.ndim > 2 or len(outputs) != len(targets) or outputs.shape[1] < 2:
        return None
    columns = 1 if targets.ndim == 1 else int(targets.shape[1])
    width = int(outputs.shape[1])
    if columns == width or exam.anatomy.stage == "forward":
        return None
    known = losses.family(exam.program.loss) in ("elementwise", "binary")
    if not known and not (columns == 1 and _each_alike(exam.program.loss, outputs.detach(), targets)):
        return None
    keeps = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "softplus": nn.Softplus}
    edit = widened(exam.anatomy, columns, keeps.get(bend(exam.anatomy)))
    remedy = None
    if edit is not None:
        title = f"give the last layer {columns} output{'s' if columns > 1 else ''}"
        code = f"last = nn.Linear(last.in_features, {columns})\ny = y.reshape(len(y), {columns})"
        shape = None if targets.ndim == 2 else _as_columns
        remedy = Remedy(title, code, on_model=edit, on_rows=shape, also_valid=True, place="head", order=HEAD)
    return _width(
        exam,
        columns,
        (Evidence("outputs of the model", width, columns), Evidence("columns of the targets", columns)),
        f"The model puts out {width} numbers for an example and there {'is' if columns == 1 else 'are'} {columns} to "
        "predict: the loss compares each output with each target.",
        remedy,
        blocks=known,
    )


def _each_alike(loss: Any, outputs: Tensor, targets: Tensor) -> bool:
    """Whether the loss treats every column of the outputs as a prediction of the same target.

    A loss over quantiles, or over a mean and a variance, gives columns different parts; here the value stays when
    columns change places, and is the mean or the sum of what each column alone gives.
    """
    whole, turned = value(loss, outputs, targets), value(loss, outputs.flip(1), targets)
    alone = [value(loss, outputs[:, k : k + 1], targets) for k in range(outputs.shape[1])]
    if whole is None or turned is None or any(one is None for one in alone):
        return False
    total = sum(one for one in alone if one is not None)
    near = 1e-4 * max(abs(whole), 1e-30)
    return abs(whole - turned) <= near and min(abs(whole - total), abs(whole - total / len(alone))) <= near


def _as_columns(rows: Rows) -> Rows:
    return replace(rows, targets=rows.targets.reshape(len(rows.targets), -1))


def shape_broadcast(exam: Examination) -> Suspicion | None:
    """Outputs of shape (b, 1) and targets of shape (b,) make a (b, b) table of differences.

    Every prediction is then compared with every target, so all are drawn to the mean. It is shown by the loss: it stays
    the same when the targets change places, and changes when they are given the shape of the outputs.
    """
    if not exam.case.supervised:
        return None
    outputs, targets, loss = exam.anatomy.outputs, exam.anatomy.batch[1], exam.program.loss
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or exam.anatomy.stage == "forward":
        return None
    rows = len(outputs)
    meets = {outputs.ndim, targets.ndim} == {1, 2} and outputs.numel() == targets.numel() == rows and rows > 1
    if not meets or not targets.is_floating_point() or not _blind_to_order(loss, outputs.detach(), targets):
        return None
    shape = (rows, 1) if outputs.ndim == 2 else (rows,)
    code = (
        "y = y[:, None]  # (n, 1), as the outputs are"
        if outputs.ndim == 2
        else "y = y[:, 0]  # (n,), as the outputs are"
    )
    flat = outputs.ndim == 1
    remedy = Remedy(
        f"reshape the targets to {'(n,)' if flat else '(n, 1)'}",
        code,
        on_rows=lambda given: replace(
            given, targets=given.targets.reshape(-1) if flat else given.targets.reshape(len(given.targets), -1)
        ),
        also_valid=True,
        place="target shape",
        order=ROWS,
    )
    return Suspicion(
        "shape_broadcast",
        0.97,
        (
            Evidence("shape of the outputs", str(tuple(outputs.shape)), str(tuple(shape))),
            Evidence("shape of the targets", str(tuple(targets.shape)), str(tuple(shape))),
            Evidence("change of the loss when the targets change places", 0.0, "some"),
        ),
        f"Outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} are broadcast to a {rows} x {rows} table: "
        "every prediction is compared with every target of the batch, so all predictions are drawn to the mean.",
        (remedy,),
        proof=True,
        blocks=losses.family(loss) in ("elementwise", "binary"),
        severity="fatal",
    )


def _blind_to_order(loss: Any, outputs: Tensor, targets: Tensor) -> bool:
    # Outputs that differ: those of first weights may be alike, and order means nothing among them.
    spread = outputs + torch.linspace(0.1, 0.9, len(outputs), dtype=outputs.dtype).reshape(outputs.shape)
    if losses.on_probabilities(loss):
        spread = torch.linspace(0.1, 0.9, len(outputs), dtype=outputs.dtype).reshape(outputs.shape)
    turned = targets.roll(1, 0)
    fitted = targets.reshape(outputs.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        as_it_is, moved, right = (value(loss, spread, t) for t in (targets, turned, fitted))
        right_moved = value(loss, spread, turned.reshape(outputs.shape))
    if right is None or right_moved is None:
        return False
    if as_it_is is None:  # the loss refuses the shapes
        return losses.family(loss) in ("elementwise", "binary")
    near = 1e-5 * max(abs(as_it_is), 1e-30)
    return moved is not None and abs(moved - as_it_is) <= near < abs(right - right_moved)


def sum_reduction(exam: Examination) -> Suspicion | None:
    """A loss that adds over the examples: the learning rate is multiplied by the size of the batch.

    Twice the same batch gives a sum twice the loss, and a mean the same. It is a fault only where it makes the step too
    long: an optimizer that divides by the size of the gradient does not mind, and a small rate makes up for it.
    """
    rows = min(exam.case.batch_size, exam.program.rows)
    adds = _adds(exam)
    if rows < 2 or exam.anatomy.stage or adds is None or not adds or _scale_free(exam.program.recipe):
        return None
    fall = _fall(exam, rows)
    if fall is None or fall[0] >= 0:
        return None
    return _summed(
        exam,
        0.85 if fall[1] > 0 else 0.5,
        Evidence("share of the loss that a step of this learning rate removes", fall[0], "above 0"),
        Evidence("the same where the loss is averaged", fall[1], "above 0"),
    )


def summed_and_short(exam: Examination) -> Suspicion | None:
    """``sum_reduction`` in motion: where the run falls short of what is possible."""
    rows = min(exam.case.batch_size, exam.program.rows)
    if exam.observed is None or rows < 2 or exam.anatomy.stage or _scale_free(exam.program.recipe) or not _adds(exam):
        return None
    now = standing(exam)
    if not now.short:
        return None
    return _summed(exam, 0.7, Evidence("score of the run", now.score, now.goal))


def _summed(exam: Examination, strength: float, *evidence: Evidence) -> Suspicion:
    rows = min(exam.case.batch_size, exam.program.rows)
    edit = _averaged(exam)
    return Suspicion(
        "sum_reduction",
        strength,
        (Evidence("loss of twice the same batch against once", 2.0, 1.0), *evidence),
        f"The loss adds over the {rows} examples of a batch instead of averaging, so the gradient is {rows} times as "
        "long "
        "and the learning rate in effect too.",
        () if edit is None else (edit,),
        advice='Use reduction="mean", or divide the loss by the number of examples.',
    )


def _scale_free(recipe: Recipe) -> bool:
    name = recipe.optimizer if isinstance(recipe.optimizer, str) else recipe.optimizer.__name__
    return name == "auto" or recipe.lr == "auto" or name.lower() in _SCALE_FREE


def _adds(exam: Examination) -> bool | None:
    """Whether the loss of a batch twice over is twice its loss; asked of outputs, where there are such."""
    loss, outputs = exam.program.loss, exam.anatomy.outputs
    if not exam.case.supervised or not isinstance(outputs, Tensor) or not isinstance(exam.anatomy.batch[1], Tensor):
        return None
    targets = exam.anatomy.batch[1]
    once = value(loss, outputs, targets)
    twice = value(loss, torch.cat([outputs, outputs]), torch.cat([targets, targets]))
    if once is None or twice is None or once == 0:
        return None
    return abs(twice / once - 2) < 1e-3


def _fall(exam: Examination, rows: int) -> tuple[float, float] | None:
    """Share of the batch's loss that one step of plain descent removes: as it is, and with the gradient averaged."""
    anatomy, rate = exam.anatomy, exam.program.recipe.lr
    before = anatomy.loss
    if rate == "auto" or before is None or before == 0 or not isinstance(anatomy.batch, tuple):
        return None
    seen = len(leaves(anatomy.batch)[0])
    found = []
    for length in (float(rate) * rows / seen, float(rate) / seen):
        model = copy.deepcopy(anatomy.model).eval()
        start = _loss_of(model, exam)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                gradient = anatomy.gradients.get(bare(name))
                if gradient is not None:
                    parameter.sub_(length * gradient)
        after = _loss_of(model, exam)
        if start is None:
            return None
        found.append(-1.0 if after is None else (start - after) / abs(start) if start else 0.0)
    return found[0], found[1]


def _loss_of(model: nn.Module, exam: Examination) -> float | None:
    inputs, targets = exam.anatomy.batch
    try:
        with torch.no_grad():
            outputs = model(inputs)
    except FAILURES:
        return None
    return value(exam.program.loss, outputs, targets)


def _averaged(exam: Examination) -> Remedy | None:
    if not exam.case.supervised:
        return None

    def edit(loss: Any) -> Any:
        if isinstance(loss, nn.Module) and getattr(loss, "reduction", "") == "sum":
            changed = copy.deepcopy(loss)
            changed.reduction = "mean"  # type: ignore[assignment]
            return changed
        return Averaged(loss)

    named = getattr(exam.program.loss, "reduction", "") == "sum"
    code = f'loss = nn.{losses.name(exam.program.loss)}(reduction="mean")' if named else "return total / len(outputs)"
    return Remedy("average the loss over the examples", code, on_loss=edit, place="reduction", order=LOSS)


class Averaged(nn.Module):
    """A loss that adds over examples, divided by their number."""

    def __init__(self, loss: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Any, targets: Any) -> Tensor:
        return self.loss(outputs, targets) / len(leaves(outputs)[0])


ON_ONE_BATCH = (
    double_softmax, softmax_single_unit, output_activation, loss_mismatch, output_width, shape_broadcast, sum_reduction,
)  # fmt: skip
IN_MOTION = (silent_output, numbers_for_labels, summed_and_short)
