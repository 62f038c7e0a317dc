"""Mixed precision whose loss scale collapses."""

from __future__ import annotations

import math

import torch

from fogline.descent.copies import copied
from fogline.descent.objective import Objective
from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.doctor.anatomy import CPU
from fogline.doctor.case import FAILURES
from fogline.doctor.examination import Examination
from fogline.doctor.finding import RECIPE, Evidence, Remedy, Suspicion


def amp_scale_collapse(exam: Examination) -> Suspicion | None:
    """A forward pass that overflows in float16, whose largest number is 65,504: no scale of the loss can mend that."""
    anatomy = exam.anatomy
    if (
        exam.program.recipe.precision != "fp16"
        or anatomy.stage
        or anatomy.loss is None
        or not math.isfinite(anatomy.loss)
    ):
        return None
    half = Objective(copied(anatomy.model), exam.program.loss, torch.float16)
    try:
        with private_randomness(CPU):
            seed_step(exam.case.recipe.seed, 0, PROBE, CPU)
            value = float(half.value(anatomy.batch))
    except FAILURES:
        return None  # an operation without a float16 form
    if math.isfinite(value):
        return None
    remedy = Remedy(
        "compute in float32",
        'fogline.Recipe(precision="float32"), or "bf16", whose range is that of float32',
        on_recipe=lambda recipe: recipe.replace(precision="float32"),
        place="precision",
        order=RECIPE,
    )
    return Suspicion(
        "amp_scale_collapse",
        1.0,
        (Evidence("loss of the first batch in float16", value, anatomy.loss),),
        "In float16 the forward pass overflows on the first batch. The gradient scaler takes that for a scale that is "
        "too high, halves it again and again, and leaves every step out.",
        (remedy,),
        proof=True,
        severity="fatal",
    )
