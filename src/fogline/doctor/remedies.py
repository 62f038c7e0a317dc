"""Remedies that more than one cause has, and those that help many a program that does not do well."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fogline.doctor.examination import Examination
from fogline.doctor.finding import RATE, WRAP, Evidence, Remedy, Suspicion
from fogline.doctor.surgery import Wrapped, standardising
from fogline.doctor.trial import Laboratory

_OFF = 3.0  # times the measured rate: within it a rate is as good as measured


def measured_rate() -> Remedy:
    """The learning rate by measurement."""
    return Remedy(
        "measure the learning rate",
        'lr="auto"',
        on_recipe=lambda recipe: recipe.replace(lr="auto"),
        place="rate",
        order=RATE,
    )


def scaled_inputs(inputs: Tensor) -> Remedy:
    """Standardise the inputs inside the model: by column, by channel of images, by feature of sequences."""
    dimensions = [0] if inputs.ndim == 2 else [0, *range(2, inputs.ndim)] if inputs.ndim >= 4 else [0, 1]
    values = inputs.detach().double()
    values = torch.where(torch.isfinite(values), values, torch.zeros_like(values))
    mean, deviation = values.mean(dimensions), values.std(dimensions, correction=0)
    floor = 1e-6 * float(values.abs().amax().clamp_min(1e-30))
    deviation = torch.where(deviation > floor, deviation, torch.ones_like(deviation))
    if inputs.ndim >= 4:
        shape = (-1, *[1] * (inputs.ndim - 2))
        mean, deviation = mean.reshape(shape), deviation.reshape(shape)
    real = inputs.dtype if inputs.is_floating_point() else torch.float32
    mean, deviation = mean.to(real), deviation.to(real)
    return Remedy(
        "standardise the inputs",
        "mean, std = X_train.mean(0), X_train.std(0)\n"
        "X_train, X_valid = (X_train - mean) / std, (X_valid - mean) / std",
        on_model=lambda module: Wrapped(module, before=standardising(mean, deviation)),
        place="inputs",
        order=WRAP,
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
