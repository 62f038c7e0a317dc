"""Batches that are too small or too large."""

from __future__ import annotations

import torch

from fogline.data.source import cast, float_type
from fogline.descent.copies import copied
from fogline.descent.objective import Objective
from fogline.descent.randomness import private_randomness
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.causes.step.common import BOLD, STRAIGHT, SURELY, began, is_large_batch
from fogline.doctor.examination import Examination
from fogline.doctor.finding import RECIPE, Evidence, Remedy, Suspicion
from fogline.doctor.standing import motion, standing, steps_of
from fogline.recipe import Duration, Recipe

_LARGE, _FEW_STEPS, _MOST_STEPS = 128, 100, 1000
_A_PAIR, _COMPARED = 2, 16


def batch_too_small(exam: Examination) -> Suspicion | None:
    """Steps that follow the chance of which few rows were drawn."""
    size, rows = exam.case.batch_size, exam.program.rows
    if not began(exam) or size > 8 or size * 16 > rows or exam.program.recipe.batch_size == "full":
        return None
    stands, moves, steps = standing(exam), motion(exam), steps_of(exam)
    shaking = moves.refused > 0 or moves.jitter > 0.1 or moves.fallen < 0.05 or steps.each > BOLD
    if not stands.short or not shaking or steps.overshoot < -0.8:
        return None
    larger, planned = min(32, rows // 4), exam.planned
    remedy = Remedy(
        f"take {larger} rows a step instead of {size}, for as many steps",
        f'fogline.Recipe(batch_size={larger}, duration="{planned}st")',
        on_recipe=lambda recipe: recipe.replace(batch_size=larger, accumulate=1, duration=f"{planned}st"),
        place="batch",
        order=RECIPE,
    )
    return Suspicion(
        "batch_too_small",
        0.5,
        (
            Evidence("rows a step", size, "16 or more"),
            Evidence("jitter of the loss, relative to all it fell", moves.jitter, "below 0.1"),
            Evidence("step cosine, median", steps.cosine, "above 0"),
        ),
        f"{size} row{'s' if size > 1 else ''} a step say little of all {rows}: at this learning rate each step undoes "
        "what the last one did.",
        (remedy,),
    )


def nothing_to_compare(exam: Examination) -> Suspicion | None:
    """Batches of a row or two under a loss that compares rows with one another: it has no slope, whatever is answered.

    Such are losses of survival, of ranking and of contrasts; of more rows they have one.
    """
    size, rows, anatomy = exam.case.batch_size, exam.program.rows, exam.anatomy
    if size > _A_PAIR or rows < 2 * _COMPARED or anatomy.stage or not anatomy.gradients:
        return None
    if any(slope is not None and bool(slope.any()) for slope in anatomy.gradients.values()):
        return None
    model = copied(anatomy.model)
    batch = exam.case.rows(torch.arange(_COMPARED) * rows // _COMPARED)
    try:
        with private_randomness(CPU), torch.enable_grad():
            loss = Objective(model, exam.program.loss)(cast(batch, float_type(model)))
            weights = [weight for weight in model.parameters() if weight.requires_grad]
            slopes = torch.autograd.grad(loss, weights, allow_unused=True)
    except FAILURES:
        return None
    if not any(slope is not None and bool(slope.any()) for slope in slopes):
        return None
    return Suspicion(
        "batch_too_small",
        0.9,
        (
            Evidence("rows a step", size, f"{_COMPARED}"),
            Evidence("gradient of a step", 0, "any other, as that of more rows is"),
        ),
        f"The loss compares the rows of a batch with one another, and of {size} there is nothing to compare: whatever "
        "is answered, the loss is the same, and no step leads anywhere.",
        tuple(of_rows(exam.program.recipe, size, more) for more in (_COMPARED, 2 * _COMPARED)),
        proof=True,
        severity="fatal",
    )


def batch_too_large(exam: Examination) -> Suspicion | None:
    """Every row is read many times, but only a few steps are taken, and the loss still falls at the end of them."""
    size, rows = exam.case.batch_size, exam.program.rows
    if not began(exam) or exam.planned > _MOST_STEPS or exam.program.recipe.duration == "auto":
        return None
    stands, moves, steps = standing(exam), motion(exam), steps_of(exam)
    few = is_large_batch(exam) and exam.planned <= _FEW_STEPS
    straight = few and steps.overshoot < STRAIGHT
    falls = size >= _LARGE and moves.significance > SURELY
    wanting = stands.improvable or (not stands.scaled and straight)
    if not wanting or moves.refused or not (straight or falls or (few and stands.short)):
        return None
    still, seen = "", []
    if straight:
        still, usual = ", and the loss still falls in a straight line", "-0.3 to 0.5: -1 is a slope that stays the same"
        seen.append(Evidence("overshoot, median", steps.overshoot, usual))
    elif falls:
        still = ", and the loss still falls"
        seen.append(Evidence("fall of the loss at the end, in standard errors", moves.significance, "below 3"))
    smaller = min(32, max(8, rows // 16))
    smaller_ones = [rows_a_step for rows_a_step in (smaller, 4 * smaller) if 2 * rows_a_step <= size]
    return Suspicion(
        "batch_too_large",
        0.85 if straight else 0.45 if stands.short else 0.6,  # other causes have signs as well
        (
            Evidence("steps in all", exam.planned, "hundreds"),
            Evidence("rows a step", size, f"{smaller}"),
            *seen,
        ),
        f"The rows are read again and again, but {size} of {rows} at a time: that makes {exam.planned} steps in all"
        f"{still}. Smaller batches take more steps for the same work.",
        tuple(of_rows(exam.program.recipe, size, fewer) for fewer in smaller_ones),
        follows=not straight,
        otherwise=("too_few_steps", "More epochs of batches of this size make more steps, too, for more work."),
    )


def of_rows(recipe: Recipe, size: int, rows: int) -> Remedy:
    """Batches of another size for the same passes over the rows: a length that is told in steps changes as well."""
    changes: dict[str, str] = {}
    if recipe.duration != "auto" and (now := Duration.parse(recipe.duration)).unit == "st":
        changes["duration"] = f"{max(1, round(now.value * size / rows))}st"
    return Remedy(
        f"take {rows} rows a step instead of {size}",
        f"fogline.Recipe(batch_size={rows}{''.join(f', {name}={value!r}' for name, value in changes.items())})",
        on_recipe=lambda recipe: recipe.replace(batch_size=rows, accumulate=1, **changes),
        place="batch",
        order=RECIPE,
    )
