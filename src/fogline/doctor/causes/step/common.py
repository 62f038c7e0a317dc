"""What the causes of the step share."""

from __future__ import annotations

import math

from fogline.doctor.examination import Examination
from fogline.doctor.standing import Motion, Steps, motion

STRAIGHT = -0.3
"""Overshoot below which most of a slope is left after a step (-1: all of it; noise moves it towards 0)."""
HARDLY_MOVED = 0.5
"""The way of the weights, in their own norms: less than this and they are still about where they began."""
TIMID, BOLD = 1e-3, 0.03
"""Update ratios: a thousandth a step is what descents that work are seen to take; at 3 % a step, 30 of them replace all
that the weights were."""
_MANY = 256  # rows a step, of which batches of 32 would make eight steps
SURELY = 3.0
FEWEST_STEPS = 16
_EARLY = 0.4  # of the run


def began(exam: Examination) -> bool:
    """Whether a descent was observed at all, and the loss was a number before it."""
    seen = exam.observed
    return seen is not None and not seen.error and seen.start is not None and math.isfinite(motion(exam).start)


def too_long(moves: Motion, steps: Steps) -> float:
    """How likely the steps are too long."""
    rose = moves.highest - moves.start > 0.5 * abs(moves.start)
    if moves.refused > 0 and (rose or steps.each > BOLD):
        return 0.85
    if rose:
        return 0.7
    bold, beyond = steps.each > BOLD, steps.beyond >= 0.25
    nothing = moves.fallen < 0.02 and steps.path > 1
    if nothing:
        return 0.65 if bold or beyond else 0.4
    if bold:
        return 0.55 if beyond or moves.jitter > 0.1 else 0.45
    if moves.slope < 0 and moves.significance < -SURELY:
        return 0.5  # it goes up again
    return 0.4 if beyond and moves.jitter > 0.1 else 0.0


def cut_early(exam: Examination) -> bool:
    """Whether the plateau schedule cut the rate when most of the run was still to come."""
    seen = exam.observed
    return seen is not None and bool(seen.cuts) and seen.cuts[0] < _EARLY * exam.planned


def is_large_batch(exam: Examination) -> bool:
    """Whether an epoch is a handful of steps, although there are rows for many."""
    size, rows = exam.case.batch_size, exam.program.rows
    large = size > 64 and (size * 4 >= rows or size >= _MANY)
    return rows >= 4 * FEWEST_STEPS and large and exam.planned * size >= 3 * rows
