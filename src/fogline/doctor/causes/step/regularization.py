"""Decay and dropout that outweigh the loss."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial

import torch
from torch import nn

from fogline.data.source import cast, float_type
from fogline.descent.copies import copied
from fogline.descent.optimizers import spec_of
from fogline.descent.randomness import private_randomness
from fogline.doctor.anatomy import Anatomy, dissect, rms
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.causes.step.common import began
from fogline.doctor.causes.step.term import loud_term
from fogline.doctor.closeup import wide_trained
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, LOSS, RECIPE, Evidence, Remedy, Suspicion
from fogline.doctor.pulls import told_apart
from fogline.doctor.standing import motion, resolved, standing
from fogline.doctor.surgery import with_dropout
from fogline.doctor.uncut import DropsLess, Within, unpenalised
from fogline.task import OnBatch

_HEAVY = 0.3
"""Share of the first loss, and pull in slopes of the rest, of a penalty of which a trial is asked what it costs."""
_ADAPTIVE = ("adam", "adamw", "nadam", "radam", "rmsprop", "adamax", "lion", "muon", "schedule_free", "prodigy")
_DECOUPLED = ("adamw", "nadam", "radam", "lion", "muon", "schedule_free")


def regularization_too_strong(exam: Examination) -> Suspicion | None:
    """Weight decay or dropout that takes away more than the data can put in."""
    if not began(exam):
        return None
    stands = standing(exam)
    if not (stands.improvable or stands.train_short):
        return None if stands.known else _penalty(exam)
    return _dropout(exam) or _decay(exam) or _penalty(exam) or loud_term(exam)


def _dropout(exam: Examination) -> Suspicion | None:
    seen, moves = exam.observed, motion(exam)
    highest = dropped(exam)
    if highest < 0.5 or seen is None or not math.isfinite(seen.train_loss):
        return None
    gap, learned = moves.last - seen.train_loss, abs(moves.start - seen.train_loss)
    outweighs = highest >= 0.8 or gap >= 0.25 * learned
    if not outweighs and not standing(exam).short:
        return None
    return Suspicion(
        "regularization_too_strong",
        0.7 if outweighs else 0.5,
        (
            Evidence("largest dropout", highest, "0.1 to 0.5"),
            Evidence("loss in training, of the same rows without dropout", f"{moves.last:.3g}, {seen.train_loss:.3g}"),
        ),
        f"Dropout takes {highest:.0%} of a layer's units away at every step: what is left can hardly tell the examples "
        "apart.",
        less_dropout(exam),
    )


def less_dropout(exam: Examination) -> tuple[Remedy, Remedy]:
    """A quarter of the dropout that there is, of modules or of functions, and none."""
    modules, highest = any(_dropout_of_modules(exam)), dropped(exam)
    left = f"{highest / 4:.2g}"
    return (
        Remedy(
            f"drop a quarter as much: {left} instead of {highest:.2g}",
            f"nn.Dropout({left})" if modules else f"F.dropout(x, {left}, self.training)",
            on_model=lambda model: _with_less(model, 0.25, modules),
            place="dropout",
            order=BODY,
        ),
        Remedy(
            f"no dropout instead of {highest:.2g}",
            "leave out nn.Dropout" if modules else "leave out F.dropout",
            on_model=lambda model: _with_less(model, 0.0, modules),
            place="dropout",
            order=BODY,
        ),
    )


def _with_less(model: nn.Module, times: float, modules: bool) -> nn.Module:
    return with_dropout(model, times) if modules else Within(model, partial(DropsLess, times))


def _dropout_of_modules(exam: Examination) -> list[float]:
    return [float(m.p) for m in exam.anatomy.model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]


def dropped(exam: Examination) -> float:
    """The largest share of units that dropout takes away; 0 without any."""
    modules = _dropout_of_modules(exam)
    return max(modules) if any(modules) else _dropped_by_functions(exam)


def _dropped_by_functions(exam: Examination) -> float:
    """The largest share that ``F.dropout`` is called with in training mode."""
    model, mode = copied(exam.anatomy.model).train(), DropsLess()
    floats = float_type(model)
    if exam.case.supervised:
        with private_randomness(CPU), torch.no_grad(), suppress(*FAILURES), mode:
            model(cast(exam.anatomy.batch[0], floats))
    return mode.highest


def _decay(exam: Examination) -> Suspicion | None:
    recipe, seen = resolved(exam), exam.observed
    spec = spec_of(recipe.optimizer)
    decay = spec.weight_decay if recipe.weight_decay is None else recipe.weight_decay
    anatomy = wide_trained(exam)
    if not decay or seen is None or anatomy is None:
        return None
    inertia = 1 / (1 - spec.momentum) if spec.edge in ("heavy_ball", "nesterov") else 1.0
    folds = seen.lr * decay * seen.steps * inertia
    pull, slope = max((_pull(looked, decay) for looked in (exam.anatomy, anatomy)), key=lambda both: both[0] - both[1])
    decoupled = spec.name in _DECOUPLED
    adaptive = spec.name in _ADAPTIVE and not decoupled
    if not (pull > slope if adaptive else folds > 1):
        return None
    return Suspicion(
        "regularization_too_strong",
        0.7 if adaptive or folds > 3 else 0.5,
        (
            Evidence("weight decay", float(decay), "1e-4 to 1e-2"),
            Evidence("times the weights are drawn to 1/e of themselves in this run", folds, "below 1"),
            Evidence("pull of the decay, slope of the loss", f"{pull:.2g}, {slope:.2g}", "a small share"),
        ),
        "Weight decay draws the weights to zero faster than the loss can build them up: what is learned is forgotten.",
        (no_decay(),),
    )


def _penalty(exam: Examination) -> Suspicion | None:
    """A loss that sees the model and adds the size of its weights, and pulls at them harder than the rest of it."""
    loss = exam.program.loss
    if not isinstance(loss, OnBatch):
        return None
    found = told_apart(exam.anatomy, dissect(exam.anatomy.model, unpenalised(loss), exam.anatomy.batch))
    if found is None or found.part <= 0:
        return None
    part, pull, slope = found.part, found.pull, found.slope
    if not (pull > slope or (part > _HEAVY and pull > _HEAVY * slope)):
        return None
    return Suspicion(
        "regularization_too_strong",
        0.7 if pull > slope else 0.5,
        (
            Evidence("part of the loss that is the size of the weights", part, "a small share"),
            Evidence("its pull, slope of the rest", f"{pull:.2g}, {slope:.2g}", "a small share"),
        ),
        "What the loss adds for the size of the weights draws them to zero faster than the rest of it can build them "
        "up: what is learned is forgotten.",
        (
            Remedy(
                "leave the size of the weights out of the loss",
                "# without + c * sum(p.abs().sum() for p in model.parameters()), or with a much smaller c",
                on_loss=unpenalised,
                place="decay",
                order=LOSS,
            ),
        ),
    )


def no_decay() -> Remedy:
    return Remedy(
        "no weight decay",
        "fogline.Recipe(weight_decay=0.0)",
        on_recipe=lambda recipe: recipe.replace(weight_decay=0.0),
        place="decay",
        order=RECIPE,
    )


def _pull(anatomy: Anatomy, decay: float) -> tuple[float, float]:
    """Root mean square of the decay's and of the loss's gradient over the matrices of a model.

    Asked of the first weights and of the last: where the decay has won there is nothing left that it could pull at.
    """
    matrices = {name: p for name, p in anatomy.named_parameters() if p.ndim >= 2}
    pulls = [decay * rms(p) for p in matrices.values()]
    slopes = [rms(anatomy.gradients.get(name)) for name in matrices]
    mean = len(matrices) or 1
    return math.sqrt(sum(x * x for x in pulls) / mean), math.sqrt(sum(x * x for x in slopes) / mean)
