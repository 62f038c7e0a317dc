"""A constant that is lost beside the numbers it is added to."""

from __future__ import annotations

from fogline.descent.optimizers import spec_of
from fogline.doctor.anatomy import rms
from fogline.doctor.causes.number.hazards import first_hazard, when
from fogline.doctor.causes.number.logarithm import of_log
from fogline.doctor.examination import Examination
from fogline.doctor.finding import RECIPE, Evidence, Remedy, Suspicion
from fogline.doctor.standing import resolved, standing, steps_of


def epsilon_underflow(exam: Examination) -> Suspicion | None:
    """A constant that should keep a number from 0, or steps from infinity, and is out of proportion to it."""
    look, at_once = when(exam)
    hazard = first_hazard(look, logs=True, guarded=True)
    if look is not None and hazard is not None:
        why = "although a small constant was put there to prevent it: it is too small for the floating-point type"
        return of_log(exam, "epsilon_underflow", look, hazard, at_once, why)
    return None if exam.observed is None else _of_optimizer(exam)


def _of_optimizer(exam: Examination) -> Suspicion | None:
    """Adam divides by sqrt(v) + eps: where gradients are below eps, eps decides, and the steps are almost nothing."""
    recipe = resolved(exam)
    name = spec_of(recipe.optimizer).name
    if name not in ("adam", "adamw", "nadam", "radam", "adamax", "rmsprop", "adagrad") or exam.anatomy.stage:
        return None
    epsilon = float(recipe.options.get("eps", 1e-10 if name == "adagrad" else 1e-8))
    matrices = {n: p.numel() for n, p in exam.anatomy.named_parameters() if p.ndim >= 2}
    slopes = sorted(rms(exam.anatomy.gradients.get(n)) for n in matrices)
    if not slopes or not 0 < slopes[-1] < epsilon or not standing(exam).short or steps_of(exam).path > 0.5:
        return None
    smaller = float(f"{max(slopes[len(slopes) // 2], 1e-18) * 1e-3:.0e}")
    return Suspicion(
        "epsilon_underflow",
        0.75,
        (
            Evidence("largest gradient of a layer, root mean square", slopes[-1], f"well above eps = {epsilon:g}"),
            Evidence("way that the weights went, relative to them", steps_of(exam).path, "1 or more"),
        ),
        f"{name} divides each gradient by its usual size plus eps = {epsilon:g}. Here gradients are smaller than eps, "
        "so that they are divided by eps, and the steps are almost nothing.",
        (
            Remedy(
                f"eps {smaller:g} instead of {epsilon:g}",
                f'fogline.Recipe(options={{"eps": {smaller:g}}})',
                on_recipe=lambda recipe: recipe.replace(options={**recipe.options, "eps": smaller}),
                place="epsilon",
                order=RECIPE,
            ),
        ),
    )
