"""A schedule that ends too early, and a run that does."""

from __future__ import annotations

from fogline.descent.optimizers import spec_of
from fogline.descent.schedules import warmup_steps
from fogline.doctor.causes.step.common import (
    FEWEST_STEPS,
    HARDLY_MOVED,
    STRAIGHT,
    SURELY,
    TIMID,
    began,
    cut_early,
    is_large_batch,
)
from fogline.doctor.examination import Examination
from fogline.doctor.finding import RECIPE, Evidence, Remedy, Suspicion
from fogline.doctor.standing import BEHIND, FALLING, motion, resolved, risen, standing, steps_of
from fogline.recipe import Duration, Recipe

_ACCEPTABLE_WARMUP = 0.3  # of the run
_TURNED = 0.5  # of all that the held-out loss moved


def bad_schedule(exam: Examination) -> Suspicion | None:
    """A rate that is low for most of the run, or one that is never lowered where the steps only jitter."""
    if not began(exam) or exam.observed is None:
        return None
    recipe, stands, moves = resolved(exam), standing(exam), motion(exam)
    if recipe.schedule == "one_cycle" or isinstance(recipe.warmup, str):
        return None
    planned = exam.planned
    share = warmup_steps(planned, recipe.warmup) / planned
    if share > _ACCEPTABLE_WARMUP and stands.improvable:
        remedy = Remedy(
            "warm up over 5 % of the run",
            "fogline.Recipe(warmup=0.05)",
            on_recipe=lambda recipe: recipe.replace(warmup=0.05),
            place="schedule",
            order=RECIPE,
        )
        return Suspicion(
            "bad_schedule",
            0.6,
            (Evidence("share of the run that is warm-up", share, "0.02 to 0.1"),),
            "The learning rate is still rising when the run is almost over: most steps are taken at a fraction of it.",
            (remedy,),
        )
    if cut_early(exam) and stands.improvable:
        return _cut_early(exam.observed.cuts, planned)
    fell_back = stands.score - exam.observed.score > 2 * stands.error
    settled = moves.significance < 2 and moves.jitter > 0.03
    if recipe.schedule != "constant" or not spec_of(recipe.optimizer).schedulable or not (fell_back and settled):
        return None
    return Suspicion(
        "bad_schedule",
        0.45,
        (
            Evidence("score at the end, best on the way", f"{exam.observed.score:.3g}, {stands.score:.3g}", "the same"),
            Evidence("jitter of the loss, relative to all it fell", moves.jitter, "below 0.03"),
        ),
        "The loss no longer falls, it jitters: steps of this length cannot settle, and the rate is never lowered. "
        "Where the run ends is chance.",
        (lowered(),),
        severity="minor",
    )


def _cut_early(cuts: list[int], planned: int) -> Suspicion:
    return Suspicion(
        "bad_schedule",
        0.7,
        (
            Evidence("cuts of the learning rate to a tenth, after", ", ".join(map(str, cuts[:4])), step=cuts[0]),
            Evidence("steps in all", planned),
        ),
        f"The plateau schedule cuts the learning rate to a tenth after step {cuts[0]} of {planned}: held-out rows are "
        "scored so often that noise passes for a plateau, and most steps are taken at a fraction of the rate.",
        (lowered(),),
    )


def lowered() -> Remedy:
    return Remedy(
        "lower the learning rate to zero over the run",
        'fogline.Recipe(schedule="linear")',
        on_recipe=lambda recipe: recipe.replace(schedule="linear"),
        place="schedule",
        order=RECIPE,
    )


def too_few_steps(exam: Examination) -> Suspicion | None:
    """A run that ends while the loss still falls at a pace that would take it much further."""
    seen = exam.observed
    if seen is None or not began(exam) or seen.steps < exam.planned or exam.program.recipe.duration == "auto":
        return None
    stands, moves, steps = standing(exam), motion(exam), steps_of(exam)
    if (
        not (stands.short or stands.poor)
        or moves.refused
        or is_large_batch(exam)
        or moves.highest > 1.25 * abs(moves.start)
        or (risen(seen.looks) > _TURNED and stands.train_score - stands.score > BEHIND)  # what follows is by heart
    ):
        return None
    few = seen.steps < FEWEST_STEPS and not steps.path > 1
    falling = moves.slope > FALLING and moves.significance > SURELY
    going_on = moves.slope > FALLING and moves.late > 0.1  # noise of small batches hides a fall
    # Noise of small batches hides the slope from the overshoot, but not how far the weights have come.
    young = steps.each > TIMID and (steps.path < HARDLY_MOVED or (steps.path < 1 and steps.overshoot < STRAIGHT))
    if not (few or falling or young or going_on):
        return None
    factor = 10 if few or moves.fallen < 0.1 else 4
    evidence = (
        Evidence("fall of the loss over as many steps again, relative to all it fell", moves.slope, "near 0"),
        Evidence("in standard errors", moves.significance, "below 3"),
        Evidence("steps in all", seen.steps),
        Evidence("way that the weights went, relative to them", steps.path, "1 or more"),
    )
    return Suspicion(
        "too_few_steps",
        0.45 if not stands.short or not (few or falling or young) else 0.75 if steps.each > TIMID or few else 0.3,
        evidence,
        f"The run ends after {seen.steps} steps, while the loss is still on its way down: it was stopped, it has not "
        "arrived.",
        tuple(_longer(exam.program.recipe, factor * more) for more in (1, 4, 16)),
        otherwise=(
            "lr_too_low",
            "The slope is the same after a step as before: fewer and longer steps would come as far.",
        )
        if steps.overshoot < STRAIGHT
        else None,
    )


def _longer(recipe: Recipe, factor: int) -> Remedy:
    now = Duration.parse(recipe.duration)
    longer = str(Duration(now.value * factor, now.unit))
    return Remedy(
        f"train {factor} times as long ({longer} instead of {now})",
        f'fogline.Recipe(duration="{longer}")',
        on_recipe=lambda recipe: recipe.replace(duration=longer),
        place="duration",
        order=RECIPE,
    )
