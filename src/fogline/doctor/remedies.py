"""Remedies that more than one cause has, and those that help many a program that does not do well."""

from __future__ import annotations

from collections.abc import Iterator

from fogline.doctor.examination import Examination
from fogline.doctor.finding import RATE, Evidence, Remedy, Suspicion
from fogline.doctor.trial import Laboratory

_OFF = 3.0  # times the measured rate: within it a rate is as good as measured


def measured_rate() -> Remedy:
    """The learning rate by measurement."""
    return Remedy(
        "measure the learning rate",
        'fogline.Recipe(lr="auto"), or lr=fogline.find_lr(task, recipe).value',
        on_recipe=lambda recipe: recipe.replace(lr="auto"),
        place="rate",
        order=RATE,
    )


def usual(exam: Examination, laboratory: Laboratory) -> Iterator[Suspicion]:
    """What is worth a try in a program that does not do well although nothing points anywhere."""
    recipe = exam.program.recipe
    if recipe.lr == "auto" or exam.anatomy.error or not any(g is not None for g in exam.anatomy.gradients.values()):
        return
    rate = laboratory.rate(exam.program_with(measured_rate()))
    given = float(recipe.lr)
    if given > _OFF * rate or given < rate / _OFF:
        high = given > rate
        words = "larger" if high else "smaller"
        yield Suspicion(
            "lr_too_high" if high else "lr_too_low",
            0.4,
            (Evidence("learning rate", given, f"about {rate:.2g}, as measured"),),
            f"The learning rate is {max(given / rate, rate / given):.0f} times {words} than the one that a short race "
            "of rates found best.",
            (measured_rate(),),
        )
