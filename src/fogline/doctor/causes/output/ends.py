"""What the model ends in, against what the loss and the targets ask for."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fogline.data import losses
from fogline.doctor.causes.fit.metric import metrics_want_probabilities
from fogline.doctor.causes.output.common import LOST, MUCH, are_shares, ended_by, takes_logits
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, Evidence, Remedy, Suspicion
from fogline.doctor.gains import profile
from fogline.doctor.heads import FAR, Maker, bend, reach, value
from fogline.doctor.matching import matching, width_of
from fogline.doctor.questions import asked, lowest
from fogline.doctor.reading import reads_probabilities, wants_probabilities, wants_shares

_MOST_NUMBERS = 100_000  # of outputs that go their own way within a fraction of a second
_ROUNDED = 0.01  # shares that were rounded may sum to so much more or less than 1


def output_activation(exam: Examination) -> Suspicion | None:
    """What the model can put out is not what the loss or the targets ask for."""
    if not exam.case.supervised or not isinstance(exam.anatomy.batch[1], Tensor):
        return None
    looks = (
        _over_the_batch,
        _over_places,
        _bounded_logits,
        _no_probabilities,
        _no_shares,
        _one_whole,
        _everything_at_once,
        _out_of_range,
        _wants_beyond,
        _cut_logits,
    )
    for look in looks:
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
    one = ended_by(exam, nn.Sigmoid, "put a sigmoid in the place of the softmax over the batch")
    every = ended_by(exam, _over_classes(exam), "take the softmax over the classes, not over the batch", "dim=1")
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


def _over_places(exam: Examination) -> Suspicion | None:
    """Outputs (b, classes, ...) whose softmax is taken over some other dimension than that of the classes."""
    outputs, name = exam.anatomy.outputs, bend(exam.anatomy)
    if name not in ("softmax", "log_softmax") or not isinstance(outputs, Tensor) or outputs.ndim < 3:
        return None
    if losses.family(exam.program.loss) != "classes" or outputs.shape[1] < 2:
        return None
    shares = outputs.detach() if name == "softmax" else outputs.detach().exp()
    wholes = [torch.allclose(shares.sum(k), torch.ones(()), atol=1e-4) for k in range(outputs.ndim)]
    if wholes[1] or not any(wholes):
        return None
    remedy = ended_by(exam, _over_classes(exam), "take the softmax over the classes, not over places", "dim=1")
    return Suspicion(
        "output_activation",
        0.95,
        (Evidence("dimension of the outputs that a softmax is taken over", wholes.index(True), 1),),
        f"The loss wants the classes in dimension 1 of the outputs {tuple(outputs.shape)}, and the softmax is taken "
        f"over dimension {wholes.index(True)}: the scores of a place are not compared with one another.",
        () if remedy is None else (remedy,),
        proof=True,
        advice="Use dim=1 in the softmax.",
    )


def _over_classes(exam: Examination) -> Maker:
    log = bend(exam.anatomy) == "log_softmax"
    return (lambda: nn.LogSoftmax(dim=1)) if log else (lambda: nn.Softmax(dim=1))


def _bounded_logits(exam: Examination) -> Suspicion | None:
    wanted, name, gains = takes_logits(exam), bend(exam.anatomy), profile(exam)
    if not wanted or not name or name == "log_softmax" or gains is None or gains.out_of_reach < LOST:
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
    left_out = ended_by(exam, nn.Identity, f"leave out the {name} at the end of the model")
    # What is meant are logits, as with a softmax, unless something else counts on probabilities.
    if left_out is not None:
        remedies.insert(len(remedies) if metrics_want_probabilities(exam) else 0, left_out)
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
        0.9 if gains.out_of_reach > MUCH else 0.6,
        tuple(evidence),
        f"The loss wants logits, any numbers from very negative to very positive, because it applies a {own} itself. "
        "The "
        f"model ends in {name}, which cuts them off, so it can never be sure of anything and learns slowly.",
        tuple(remedies),
        proof=gains.out_of_reach > MUCH,
        advice=f"Return the logits from forward: leave out the {name}.",
    )


def _no_probabilities(exam: Examination) -> Suspicion | None:
    if exam.case.yardstick.work not in ("classes", "binary", "one_hot"):
        return None
    if not wants_probabilities(exam) and not reads_probabilities(exam):
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
    ending = ended_by(exam, end, title, f"model[-1] = {module}" if name else f"model.append({module})")
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


def _no_shares(exam: Examination) -> Suspicion | None:
    """A loss that divides outputs by their sum, as Keras's cross-entropies do, on outputs that may be negative."""
    bounds, name = reach(exam.anatomy), bend(exam.anatomy)
    if bounds is None or not (bounds[0] < 0 or name == "relu") or name == "log_softmax" or not wants_shares(exam):
        return None
    title = f"put a softmax in the place of the {name} at the end" if name else "put a softmax at the end"
    code = "model[-1] = nn.Softmax(dim=1)" if name else "model.append(nn.Softmax(dim=1))"
    remedy = ended_by(exam, lambda: nn.Softmax(dim=1), title, code)
    return Suspicion(
        "output_activation",
        0.9 if bounds[0] < 0 else 0.7,
        (
            Evidence("range of the outputs", f"{bounds[0]:.3g} to {bounds[1]:.3g}", "0 to 1"),
            Evidence("last operation of the model", name or "the last layer itself", "softmax"),
        ),
        "The loss divides the outputs by their sum and takes logarithms, so it wants shares that are above zero. The "
        "model can put out numbers below it or at it, of which there are no logarithms, and where it does nothing is "
        "learned.",
        () if remedy is None else (remedy,),
        proof=bounds[0] < 0,
        advice="End the model in a softmax.",
    )


def _one_whole(exam: Examination) -> Suspicion | None:
    """A softmax over labels of which several can be true, or none, or over numbers: its outputs share one whole."""
    outputs, targets, name = exam.anatomy.outputs, exam.program.train[1], bend(exam.anatomy)
    work = exam.case.yardstick.work
    if name != "softmax" or work not in ("binary", "regression") or not isinstance(outputs, Tensor):
        return None
    if targets.ndim != 2 or outputs.shape[1:] != targets.shape[1:] or targets.shape[1] < 2 or not are_shares(outputs):
        return None
    labels = work == "binary"
    wholes = ((targets > sum(exam.case.yardstick.values) / 2) if labels else targets).double().sum(1)
    share = float(((wholes - 1).abs() > _ROUNDED).double().mean())
    if share < LOST:
        return None
    between = labels or (float(targets.min()) >= 0 and float(targets.max()) <= 1)
    bounded = between and takes_logits(exam) != "binary"
    end: Maker = nn.Sigmoid if bounded else nn.Identity
    called = "a sigmoid" if bounded else "nothing"
    remedy = ended_by(exam, end, f"put {called} in the place of the softmax at the end")
    other = matching(exam) if labels else None
    if other is not None and _hears_yes_only(exam):
        remedy, other = other, None
    return Suspicion(
        "output_activation",
        0.95,
        (
            Evidence("share of the rows whose targets do not sum to 1, as a softmax does", share, 0.0),
            Evidence("greatest sum of the targets of one row", float(wholes.max()), 1),
        ),
        "Several labels can be true of a row, or none, and the softmax at the end makes them share one whole: none can "
        "be said surely beside another."
        if labels
        else "The outputs of a softmax always sum to 1, and the targets of a row do not: they are numbers of their own "
        "that no weights can make the model say.",
        tuple(found for found in (remedy, other) if found is not None),
        proof=True,
        advice=f"End the model in {'a sigmoid' if bounded else 'its last linear layer'}, a number for each target.",
    )


def _hears_yes_only(exam: Examination) -> bool:
    """Whether yes to every label is as good an answer as the right ones, where each is said by itself."""
    outputs, targets = exam.anatomy.outputs.detach(), exam.anatomy.batch[1]
    every, right = (
        value(exam.program.loss, said.clamp(_ROUNDED, 1 - _ROUNDED), targets)
        for said in (torch.ones_like(outputs), targets.to(outputs.dtype))
    )
    return every is not None and right is not None and every <= right


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
    remedy = ended_by(exam, end, f"put {called} in the place of the {name} at the end", f"model[-1] = {called}")
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
    if takes_logits(exam) or wants_probabilities(exam) or exam.case.yardstick.logs:
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
    remedies = [r for r in (ended_by(exam, nn.Identity, title), _other_range(exam, name)) if r is not None]
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


def _wants_beyond(exam: Examination) -> Suspicion | None:
    """The same under a loss of one's own that alone knows what outputs mean: it is asked where it would have them."""
    name, outputs, targets = bend(exam.anatomy), exam.anatomy.outputs, exam.anatomy.batch[1]
    loss, own = exam.program.loss, exam.case.yardstick.work in ("other", "regression")
    if not own or losses.family(loss) != "unknown" or not name or not isinstance(outputs, Tensor):
        return None
    bounds = reach(exam.anatomy)
    if bounds is None or not -FAR / 2 < bounds[0] < bounds[1] or outputs.numel() > _MOST_NUMBERS:
        return None
    within = bounds[0], bounds[1] if bounds[1] < FAR / 2 else math.inf
    now, inside, free = (
        asked(loss, outputs.detach(), targets),
        lowest(loss, outputs, targets, within),
        lowest(loss, outputs, targets),
    )
    # Below zero is only what was never meant to be given such outputs, as a logarithm or an overlap.
    if not (math.isfinite(now) and math.isfinite(inside) and 0 <= free < inside < now):
        return None
    lost = (inside - free) / (now - free)
    if lost < LOST:
        return None
    remedy = ended_by(exam, nn.Identity, f"leave out the {name} at the end of the model")
    return Suspicion(
        "output_activation",
        0.9 if lost > MUCH else 0.6,
        (
            Evidence("range of the outputs", f"{bounds[0]:.3g} to {bounds[1]:.3g}", "any number"),
            Evidence(
                "lowest loss of any outputs on a batch, of those within it", f"{free:.3g}, {inside:.3g}", "the same"
            ),
            Evidence("share of the loss that no weights can get rid of", lost, 0.0),
        ),
        f"The model ends in {name}, so its outputs lie between {bounds[0]:.3g} and {bounds[1]:.3g}, and the loss is "
        "lowest for outputs outside: the best the model can do is to sit at the edge, where the slope of the "
        "activation vanishes.",
        () if remedy is None else (remedy,),
        proof=lost > MUCH and remedy is not None,
        advice=f"Remove the {name} behind the last layer.",
    )


def _range(values: Tensor) -> str:
    return f"{float(values.min()):.3g} to {float(values.max()):.3g}"


def _other_range(exam: Examination, name: str) -> Remedy | None:
    """Tanh for targets of -1 and 1: the same kind of bound, in the right place."""
    if exam.case.yardstick.work != "binary" or exam.case.yardstick.values != (-1.0, 1.0) or name == "tanh":
        return None
    return ended_by(exam, nn.Tanh, f"put a tanh in the place of the {name} at the end")


def _prefers(exam: Examination, bounds: tuple[float, float]) -> bool:
    """Whether the loss is lower at the targets themselves than at the nearest numbers within reach."""
    outputs, targets = exam.anatomy.outputs, exam.anatomy.batch[1]
    if not isinstance(outputs, Tensor) or outputs.shape != targets.shape:
        return losses.family(exam.program.loss) == "elementwise"
    exact = targets.to(outputs.dtype)
    at, near = value(exam.program.loss, exact, targets), value(exam.program.loss, exact.clamp(*bounds), targets)
    return at is not None and (near is None or at < near)


def _cut_logits(exam: Examination) -> Suspicion | None:
    """A ReLU on logits: what is below zero has no gradient, and no class can be ruled out."""
    wanted, name = takes_logits(exam), bend(exam.anatomy)
    outputs = exam.anatomy.outputs
    if not wanted or name != "relu" or not isinstance(outputs, Tensor) or not outputs.numel():
        return None
    if float(outputs.detach().min()) < 0:
        return None  # the ReLU is not the end of all of it
    silent = float((outputs.detach() == 0).double().mean())
    remedy = ended_by(exam, nn.Identity, "leave out the relu at the end of the model")
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
    targets = trained.batch[1] if exam.case.supervised else None
    if isinstance(targets, Tensor) and targets.shape == trained.outputs.shape:
        wanted = targets.reshape(len(targets), -1)
        stuck &= (wanted != wanted[:1]).any(0)  # what is always the same may be said always
    if len(outputs) < 4 or not bool(stuck.any()):
        return None
    name = bend(trained)
    dead = float(stuck.double().mean())
    remedy = ended_by(exam, nn.Identity, f"leave out the {name} at the end of the model")
    return Suspicion(
        "output_activation",
        min(0.9, 0.3 + 0.6 * dead),
        (Evidence("share of the outputs that are the same for every example, after training", dead, 0.0),),
        f"The model ends in {name}, and some of its outputs are at its edge for every example. There the gradient is "
        "zero: they cannot come back.",
        () if remedy is None else (remedy,),
        advice=f"Remove the {name} behind the last layer.",
    )
