"""Remedies that more than one cause has, and those that help many a program that does not do well."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import nn

from fogline.doctor.case import FAILURES
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, RATE, Evidence, Remedy, Suspicion
from fogline.doctor.standing import FALLING, motion
from fogline.doctor.trial import Laboratory

_SMOOTHING = 0.2
_OFF = 3.0  # times the measured rate: within it a rate is as good as measured
_FAR_OFF = 10.0  # and beyond it is likely that the rate is what is wrong


def measured_rate() -> Remedy:
    """The learning rate by measurement."""
    return Remedy(
        "measure the learning rate",
        'fogline.Recipe(lr="auto"), or lr=fogline.find_lr(task, recipe).value',
        on_recipe=lambda recipe: recipe.replace(lr="auto"),
        place="rate",
        order=RATE,
    )


def smoothed_labels(exam: Examination) -> Remedy | None:
    """Targets of cross-entropy that are less than sure (Szegedy et al. 2016); None for other losses.

    A network that knows its rows by heart, wrong labels among them, grows ever surer: the held-out loss turns up while
    its answers still get better, and the weights of the lowest held-out loss are early ones. What is asked to be sure
    only so far does not run away.
    """
    if not _sure(exam.program.loss):
        return None
    return Remedy(
        f"smooth the labels by {_SMOOTHING}",
        f"loss = nn.CrossEntropyLoss(label_smoothing={_SMOOTHING})",
        on_loss=_smoothed,
        place="smoothing",
        order=LOSS,
    )


def _sure(loss: Any) -> bool:
    return loss is F.cross_entropy or (isinstance(loss, nn.CrossEntropyLoss) and not loss.label_smoothing)


def _smoothed(loss: Any) -> Any:
    """Of a copy: what weighs classes or leaves labels out goes on doing so."""
    if not _sure(loss):
        return loss
    changed = nn.CrossEntropyLoss() if loss is F.cross_entropy else copy.deepcopy(loss)
    changed.label_smoothing = _SMOOTHING
    return changed


def usual(exam: Examination, laboratory: Laboratory) -> Iterator[Suspicion]:
    """What is worth a try in a program that does not do well although nothing points anywhere."""
    recipe = exam.program.recipe
    if recipe.lr == "auto" or exam.anatomy.error or not any(g is not None for g in exam.anatomy.gradients.values()):
        return
    try:
        rate = laboratory.rate(exam.program_with(measured_rate()))
    except FAILURES:  # the program's own, on other rows than it was examined on
        return
    given = float(recipe.lr)
    if given > _OFF * rate or given < rate / _OFF:
        high = given > rate
        words = "larger" if high else "smaller"
        yield Suspicion(
            "lr_too_high" if high else "lr_too_low",
            0.5 if max(given / rate, rate / given) > _FAR_OFF else 0.4,
            (Evidence("learning rate", given, f"about {rate:.2g}, as measured"),),
            f"The learning rate is {max(given / rate, rate / given):.0f} times {words} than the one that a short race "
            "of rates found best.",
            (measured_rate(),),
            otherwise=None if high else ends_early(exam),
        )


def ends_early(exam: Examination) -> tuple[str, str] | None:
    """The other reading of steps that are too short, where the loss still falls as the run ends."""
    if exam.observed is None or motion(exam).slope <= FALLING:
        return None
    return (
        "too_few_steps",
        "The loss still falls as the run ends: at this learning rate many more steps would come as far as longer ones.",
    )
