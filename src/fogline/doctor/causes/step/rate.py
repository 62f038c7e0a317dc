"""Steps that are too long or too short."""

from __future__ import annotations

from fogline.doctor.causes.step.common import BOLD, HARDLY_MOVED, STRAIGHT, TIMID, began, cut_early, too_long
from fogline.doctor.examination import Examination
from fogline.doctor.finding import RATE, Evidence, Remedy, Suspicion
from fogline.doctor.remedies import ends_early, measured_rate
from fogline.doctor.standing import FALLING, motion, standing, steps_of

_LIKELY = 0.5
_MOVED = 0.02  # share of the loss, beyond which weights that nobody saw move must have moved


def _multiplied(lr: float, factor: float) -> Remedy:
    return Remedy(
        f"learning rate {lr * factor:.3g} instead of {lr:.3g}",
        f"lr={lr * factor:.3g}",
        on_recipe=lambda recipe: recipe.replace(lr=lr * factor),
        place="rate",
        order=RATE,
    )


def _rate_is_given(exam: Examination) -> bool:
    return exam.program.recipe.lr != "auto"


def lr_too_high(exam: Examination) -> Suspicion | None:
    """Steps that land on the far wall of the valley, higher than they began."""
    if not began(exam) or not _rate_is_given(exam) or exam.observed is None:
        return None
    moves, steps, lr = motion(exam), steps_of(exam), exam.observed.lr
    stands, strength = standing(exam), too_long(moves, steps)
    # What a classical learner gets is no limit: a trial has to show whether shorter steps get further.
    far = stands.short or moves.refused >= 0.5 or strength >= _LIKELY
    if not far or strength == 0:
        return None
    evidence = [Evidence("length of a step, relative to the weights", steps.each, f"{TIMID:g} to {BOLD:g}")]
    evidence.append(
        Evidence("highest loss on the way, loss before", f"{moves.highest:.3g}, {moves.start:.3g}", "lower")
    )
    if moves.refused:
        evidence.append(Evidence("share of steps that gave no finite loss or gradient", moves.refused, 0))
    if steps.beyond:
        evidence.append(Evidence("share of steps after which the far wall was steeper", steps.beyond, "near 0"))
    return Suspicion(
        "lr_too_high",
        strength,
        tuple(evidence),
        f"With a learning rate of {lr:.3g} each step goes across the valley and up the other side: the loss jumps "
        "about, or runs away, instead of coming down.",
        (measured_rate(), _multiplied(lr, 0.1)),
        severity="fatal" if strength > 0.8 else "serious",
    )


def lr_too_low(exam: Examination) -> Suspicion | None:
    """Steps so short that the slope is the same after as before, and the weights are still about where they began."""
    if not began(exam) or not _rate_is_given(exam) or exam.observed is None:
        return None
    if cut_early(exam):
        return None  # that is what made the steps short
    stands, moves, steps, lr = standing(exam), motion(exam), steps_of(exam), exam.observed.lr
    if steps.each == 0 and abs(moves.fallen) > _MOVED:
        return None  # an optimizer that does not move at every call: the steps that it takes were not seen
    crawls = steps.path < 0.2 and steps.each < TIMID  # whatever the next batch says of the slope
    if moves.refused or not steps.count or not (steps.overshoot < STRAIGHT or crawls):
        return None
    still = steps.path < HARDLY_MOVED and steps.each < 3 * TIMID
    aligned = steps.overshoot < -0.8 and steps.cosine > 0.95 and (moves.slope > FALLING or moves.fallen < 0.1)
    wanting = stands.short or stands.poor or (steps.path < 0.2 and stands.far)
    if not wanting or not (still or aligned):
        return None
    return Suspicion(
        "lr_too_low",
        0.8 if still and steps.each < TIMID else 0.6 if still else 0.5,
        (
            Evidence("way that the weights went, relative to them", steps.path, "1 or more"),
            Evidence("length of a step, relative to the weights", steps.each, f"{TIMID:g} to {BOLD:g}"),
            Evidence("overshoot, median", steps.overshoot, "-0.3 to 0.5: -1 is a slope that a step has not changed"),
        ),
        f"With a learning rate of {lr:.3g} the steps are so short that the slope under them does not change: the "
        "descent is a straight crawl, and it ends long before it is down.",
        (measured_rate(), _multiplied(lr, 10)),
        otherwise=ends_early(exam),
    )
