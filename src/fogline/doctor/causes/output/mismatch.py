"""Losses that are not about the targets they are given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fogline.data import losses
from fogline.doctor.anatomy import NO_NUMBER
from fogline.doctor.causes.output.common import LOST, codes_of, mismatched, takes_logits
from fogline.doctor.causes.output.exchanged import exchanged
from fogline.doctor.causes.output.hearing import one_value_heard, percent_of_zero
from fogline.doctor.causes.output.logarithm import without_logarithm
from fogline.doctor.causes.output.own_loss import (
    bottomless,
    deaf,
    highest_at_targets,
    of_no_row,
    over_rows,
    rewarding_wrong_answers,
    unheard_targets,
)
from fogline.doctor.causes.output.shape import too_narrow
from fogline.doctor.causes.output.signs import zeros_for_signs
from fogline.doctor.causes.output.softmax import softmax_single_unit
from fogline.doctor.causes.output.twins import alike_taken_for_apart, positives_taken_for_negatives
from fogline.doctor.causes.output.unshifted import told_already
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, Evidence, Remedy, Suspicion
from fogline.doctor.gains import profile
from fogline.doctor.heads import bend, value
from fogline.doctor.matching import UnitTargets, labelled, matching, width_of
from fogline.doctor.reading import is_difference, wants_probabilities
from fogline.doctor.standing import standing


def loss_mismatch(exam: Examination) -> Suspicion | None:
    """A loss that is not about these targets."""
    if not exam.case.supervised or not isinstance(exam.anatomy.batch[1], Tensor):
        found = without_logarithm(exam) or zeros_for_signs(exam) or exchanged(exam)
        return found or (None if exam.case.supervised else alike_taken_for_apart(exam))
    if exam.case.yardstick.work == "other":
        looks = (
            _no_single_number,
            deaf,
            unheard_targets,
            one_value_heard,
            bottomless,
            highest_at_targets,
            without_logarithm,
            zeros_for_signs,
            exchanged,
            alike_taken_for_apart,
            positives_taken_for_negatives,
        )
        return next((found for look in looks if (found := look(exam)) is not None), None)
    if exam.anatomy.stage == "forward" or softmax_single_unit(exam) is not None:
        return None
    for look in (
        _refused,
        _no_single_number,
        told_already,
        _one_score,
        deaf,
        over_rows,
        of_no_row,
        _beyond_unit,
        rewarding_wrong_answers,
        exchanged,
        bottomless,
        zeros_for_signs,
        _unrewarded,
        without_logarithm,
        one_value_heard,
        _not_followed,
        percent_of_zero,
        alike_taken_for_apart,
        positives_taken_for_negatives,
        _competing_labels,
        _codes_as_numbers,
    ):
        found = look(exam)
        if found is not None:
            return found
    return None


_MOST_LABELS = 0.5
"""Share of the labels that must be questions of their own, which both answers are common to."""
_ABOUT_TENSORS = ("size", "shape", "dtype", "scalar type", "dimension", "out of bounds", "out of range", "must match")
"""Words of the errors with which PyTorch refuses tensors that do not fit each other."""


def _refused(exam: Examination) -> Suspicion | None:
    """The loss stops with an error: labels of another kind or shape than it takes."""
    outputs, targets = exam.anatomy.outputs, exam.anatomy.batch[1]
    if exam.anatomy.stage != "loss" or not isinstance(outputs, Tensor) or too_narrow(exam) is not None:
        return None
    if wants_probabilities(exam):
        return None  # output_activation says what to do
    said = exam.anatomy.error.strip().splitlines()
    own = losses.family(exam.program.loss) == "unknown"
    if own and not any(word in exam.anatomy.error.lower() for word in _ABOUT_TENSORS):
        return None  # an error of the user's own code
    codes = codes_of(exam)
    scores = labelled(exam, codes) if codes and codes == width_of(exam) else None  # an output a class is there
    return mismatched(
        exam,
        0.9,
        (
            Evidence("the loss stops with", said[0][:120] if said else "an error", "a number"),
            Evidence("outputs", _described(outputs)),
            Evidence("targets", _described(targets)),
        ),
        f"{losses.name(exam.program.loss)} cannot compare outputs {_described(outputs)} with targets "
        f"{_described(targets)}: it stops with an error.",
        (scores or matching(exam),),
        proof=True,
        blocks=True,
    )


def _no_single_number(exam: Examination) -> Suspicion | None:
    """A loss that gives a number for each row, or more: nobody said what of them is to be made small."""
    if exam.anatomy.stage != "backward" or NO_NUMBER not in exam.anatomy.error:
        return None
    remedy = Remedy(
        "take the mean of the losses",
        'loss = loss_fn(outputs, targets).mean()  # or reduction="mean"',
        on_loss=lambda loss: lambda outputs, targets: loss(outputs, targets).mean(),
        place="loss",
        order=LOSS,
    )
    return mismatched(
        exam,
        0.95,
        (Evidence("the loss", exam.anatomy.error, "a single number"),),
        "The loss gives a number for each row and not one for all, and backward() does not know what to descend.",
        (remedy,),
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
    if takes_logits(exam) != "classes" or bend(exam.anatomy) == "softmax" or not targets.is_floating_point():
        return None
    seen = [value(exam.program.loss, torch.full_like(outputs.detach(), size), targets) for size in (-10.0, 0.0, 10.0)]
    if len(set(seen)) > 1 or seen[0] is None:
        return None
    codes = codes_of(exam) if exam.case.yardstick.work == "regression" else None
    return mismatched(
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
    targets, outputs = exam.program.train[1], exam.anatomy.outputs
    if isinstance(exam.program.loss, UnitTargets):
        return None  # maps them itself
    entropy = losses.family(exam.program.loss) == "binary" or "target should be between 0 and 1" in exam.anatomy.error
    if isinstance(outputs, Tensor) and targets.is_floating_point() and outputs.shape[1:] == targets.shape[1:]:
        inside = {"BinaryCrossEntropy", "BinaryCrossEntropyWithLogits"} & set(exam.anatomy.in_loss)
        entropy |= bool(inside) or (exam.case.yardstick.work in ("regression", "binary") and wants_probabilities(exam))
    if not entropy or not targets.numel() or _several_tasks(exam):
        return None
    low, high = float(targets.min()), float(targets.max())
    if not (low < 0 or high > 1):
        return None
    codes = codes_of(exam)
    return mismatched(
        exam,
        0.97,
        (Evidence("targets", f"{low:.3g} to {high:.3g}", "0 to 1"),),
        "Binary cross-entropy compares probabilities with targets between 0 and 1. For targets outside it has no least "
        "value: it can be made as low as one likes by pushing the output to an end, whatever the input is.",
        (labelled(exam, codes) if codes and codes > 2 else None, matching(exam)),
        proof=True,
        blocks=losses.family(exam.program.loss) == "binary" or exam.anatomy.stage == "loss",
    )


def _several_tasks(exam: Examination) -> bool:
    """Whether a loss of one's own is given columns within 0 and 1 and others: each may have a loss to itself."""
    targets = exam.program.train[1]
    if losses.family(exam.program.loss) != "unknown" or targets.ndim < 2:
        return False
    wide = targets.reshape(len(targets), -1)
    within = ((wide >= 0) & (wide <= 1)).all(0)
    return bool(within.any()) and not bool(within.all())


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
        return mismatched(
            exam,
            0.95,
            (Evidence("gradient from the examples with target", names, "some", layer=None),),
            f"Examples whose target is {names} give no gradient, whatever the model says of them: the loss is made for "
            "other targets (a hinge loss wants -1 and 1). Half of what could be learned is not heard.",
            (matching(exam),),
            proof=True,
        )
    if gains.constant <= best + 1e-6 * room:
        return mismatched(
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
        return mismatched(
            exam,
            0.9 if known else 0.7,
            (Evidence("loss as the right answer is said ever louder", "falls without end", "a floor"),),
            "The loss has no least value: it falls for ever as outputs grow, so weights grow instead of learning. "
            "Such a "
            "loss is meant for outputs that are bounded, such as the logarithms of probabilities.",
            (_log_softmax(exam), matching(exam)),
            proof=known,
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
    """For numbers: the output that the loss likes best must grow with the target, if only with the highest ones.

    Of a map that is zero but for a few peaks a loss may ask for these alone.
    """
    outputs, targets = exam.anatomy.outputs, exam.anatomy.batch[1]
    if exam.case.yardstick.work != "regression" or not isinstance(outputs, Tensor) or exam.anatomy.stage:
        return None
    if not targets.is_floating_point() or losses.family(exam.program.loss) in ("elementwise", "binary"):
        return None
    if outputs.shape != targets.shape:
        return None  # targets that hold more than what is predicted, such as weights
    every = exam.program.train[1].double()
    levels = torch.quantile(every.reshape(-1)[:100_000], torch.tensor([0.1, 0.9, 1.0], dtype=torch.float64))
    spread = float(every.std(correction=0))
    if not spread > 0 or float(levels[1] - levels[0]) <= 0:
        return None
    grid = torch.cat(
        [every.mean() + spread * torch.linspace(-5, 5, 41, dtype=torch.float64), torch.linspace(-5, 5, 41)]
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
    if max(best[1:]) > best[0]:
        return None
    return mismatched(
        exam,
        0.8,
        (
            Evidence("output the loss likes best for a low target", best[0]),
            Evidence("and for a high one", max(best[1:]), "more"),
        ),
        "The output that makes the loss least does not grow with the target: the loss does not ask for the targets to "
        "be "
        "predicted.",
        (matching(exam),),
    )


def _competing_labels(exam: Examination) -> Suspicion | None:
    """A softmax in the loss over labels of which several can be true, or none.

    What it learns is how likely labels are beside one another, and never how many are true. That is what is wanted
    where the few that a row has are sought among many, as items that are recommended; not where each label is a
    question of its own, that some rows answer by yes and others by no.
    """
    targets, outputs, inputs = exam.program.train[1], exam.anatomy.outputs, exam.program.train[0]
    if exam.case.yardstick.work != "binary" or exam.case.yardstick.values != (0.0, 1.0) or exam.anatomy.stage:
        return None
    if not isinstance(outputs, Tensor) or targets.ndim != 2 or outputs.shape[1:] != targets.shape[1:]:
        return None
    if targets.shape[1] < 2 or takes_logits(exam) != "classes" or bend(exam.anatomy):
        return None
    said = isinstance(inputs, Tensor) and inputs.shape == targets.shape  # an auto-encoder of counts, it may be
    counts, common = targets.sum(1), targets.mean(0)
    share = float((counts != 1).double().mean())
    questions = float(((common > LOST) & (common < 1 - LOST)).double().mean())
    if said or share < LOST or questions < _MOST_LABELS or len(torch.unique(counts)) < 2:
        return None
    return mismatched(
        exam,
        0.8,
        (
            Evidence("share of the rows that have several labels, or none", share, 0.0),
            Evidence("labels of a row", f"{float(counts.min()):g} to {float(counts.max()):g}", 1),
        ),
        "Several labels can be true of a row, or none, and the softmax in the loss makes them compete for one whole: "
        "whether a label is true is never asked, only whether it is likelier than the others.",
        (matching(exam),),
        proof=True,
        advice="For these targets use nn.BCEWithLogitsLoss(), a logit for each label.",
    )


def _codes_as_numbers(exam: Examination) -> Suspicion | None:
    """Labels of three or more classes predicted as one number: class 1 is taken to lie between 0 and 2."""
    codes = codes_of(exam)
    if not codes or codes < 3 or width_of(exam) != 1 or exam.case.yardstick.work not in ("classes", "regression"):
        return None
    if takes_logits(exam) or not is_difference(exam):
        return None
    named = exam.case.yardstick.work == "classes"
    return mismatched(
        exam,
        0.6 if named else 0.35,
        (Evidence("targets", f"the whole numbers 0 to {codes - 1}", "one output a class, if they are labels"),),
        f"The targets are {codes} whole numbers, which look like labels of classes, and the model predicts them as one "
        "number: a loss on the difference takes class 1 to lie between 0 and 2, which labels do not.",
        (labelled(exam, codes),),
        advice="Where they are amounts or grades, and 1 does lie between 0 and 2, leave the loss as it is.",
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
    if not (each_alone or is_difference(exam)) or not standing(exam).short:
        return None
    return mismatched(
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
