"""Ablations: changes that are worth a try in any program that falls short although nothing points anywhere.

Each takes out, or puts right, one thing that the program does and that may be what keeps it from learning. None of them
is supposed before a trial has shown it, so the one that gains most is said, and only if it gains plainly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from fogline.descent.optimizers import spec_of
from fogline.doctor.anatomy import Anatomy
from fogline.doctor.causes.fit.capacity import more_units
from fogline.doctor.causes.flow.activations import relu_instead
from fogline.doctor.causes.flow.anew import also_done
from fogline.doctor.causes.flow.weights import drawn_again, drawn_orthogonal
from fogline.doctor.causes.flow.width import THROUGH, width_of
from fogline.doctor.causes.step.batch import of_rows
from fogline.doctor.causes.step.length import lowered
from fogline.doctor.causes.step.method import PLAIN, of_one_rate
from fogline.doctor.causes.step.regularization import dropped, less_dropout, no_decay
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Evidence, Remedy, Suspicion
from fogline.doctor.standing import resolved

_STRENGTH = 0.4  # what the measured rate has, which nothing need point to either
_LARGE, _FEW_STEPS, _USUAL = 64, 1000, 32  # rows a step, steps in all, rows a step instead


def ablations(exam: Examination) -> Iterator[Suspicion]:
    """Of a program that was watched."""
    if exam.observed is None or exam.observed.start is None or exam.anatomy.error or not exam.case.supervised:
        return
    for make in _ALL:
        yield from make(exam)


def _of_regularization(exam: Examination) -> Iterator[Suspicion]:
    recipe, dropout = resolved(exam), dropped(exam)
    decay = spec_of(recipe.optimizer).weight_decay if recipe.weight_decay is None else recipe.weight_decay
    if dropout > 0:
        yield _tried(
            "regularization_too_strong",
            Evidence("largest dropout", dropout),
            f"Dropout takes {dropout:.0%} of a layer's units away at every step; with less it does better.",
            *less_dropout(exam),
        )
    if decay:
        yield _tried(
            "regularization_too_strong",
            Evidence("weight decay", float(decay)),
            "Weight decay draws the weights to zero, and the program does better without.",
            no_decay(),
        )


def _of_batches(exam: Examination) -> Iterator[Suspicion]:
    size = exam.case.batch_size
    if size >= _LARGE and exam.planned <= _FEW_STEPS and exam.program.recipe.duration != "auto":
        yield _tried(
            "batch_too_large",
            Evidence("rows a step, steps in all", f"{size}, {exam.planned}"),
            f"{size} rows a step make {exam.planned} steps in all; smaller batches take more for the same work.",
            of_rows(exam.program.recipe, size, min(_USUAL, max(8, exam.program.rows // 16))),
        )


def _of_the_schedule(exam: Examination) -> Iterator[Suspicion]:
    recipe = resolved(exam)
    if recipe.schedule in ("plateau", "wsd") and spec_of(recipe.optimizer).schedulable:
        yield _tried(
            "bad_schedule",
            Evidence("schedule", recipe.schedule),
            "The learning rate is not what it should be for most of the run: lowered in a straight line it gets "
            "further.",
            lowered(),
        )


def _of_the_method(exam: Examination) -> Iterator[Suspicion]:
    if resolved(exam).optimizer in (*PLAIN, "adagrad", "adadelta", "rprop"):
        yield of_one_rate(exam, _STRENGTH)


def _of_the_network(exam: Examination) -> Iterator[Suspicion]:
    anatomy = exam.anatomy
    layers = [layer for layer in anatomy.layers if isinstance(layer.module, THROUGH)]
    remedy = more_units(layers) if layers else None
    if remedy is not None:
        widths = ", ".join(str(width_of(layer)) for layer in layers[:-1])
        yield _tried(
            "underfitting",
            Evidence("units of the hidden layers", widths or "no hidden layer"),
            "The network is too small for what there is to learn: a wider one gets further.",
            remedy,
            simpler=also_done(layers),
        )
    yield from _of_first_weights(anatomy)
    bent = relu_instead(anatomy) if len(anatomy.weighted) > 2 else None
    if bent is not None:
        yield _tried(
            "vanishing_gradient",
            Evidence("layers with weights", len(anatomy.weighted)),
            "Sigmoids and tangents flatten what passes through them, and their gradients: with ReLU the program gets "
            "further.",
            bent,
        )


def _of_first_weights(anatomy: Anatomy) -> Iterator[Suspicion]:
    names = [layer.name for layer in anatomy.weighted]
    recurrent = any(isinstance(module, nn.RNNBase) for module in anatomy.model.modules())
    if names:
        yield _tried(
            "bad_init",
            Evidence("layers with weights", len(names)),
            "The program gets further from other first weights.",
            *((drawn_orthogonal(),) if recurrent else drawn_again(anatomy, names)[:1]),
        )


def _tried(
    cause: str, evidence: Evidence, explanation: str, *remedies: Remedy, simpler: tuple[Suspicion, ...] = ()
) -> Suspicion:
    return Suspicion(cause, _STRENGTH, (evidence,), explanation, remedies, simpler=simpler)


_ALL: tuple[Callable[[Examination], Iterator[Suspicion]], ...] = (
    _of_regularization,
    _of_batches,
    _of_the_network,
    _of_the_schedule,
    _of_the_method,
)
