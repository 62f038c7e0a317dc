"""How far to go along a direction: the strong Wolfe conditions, and their weak form along a path bent by bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fogline._minimize.problem import Point

SUFFICIENT = 1e-4  # share of the promised decrease that has to arrive (Nocedal & Wright 2006, section 3.1)
FLATTER = 0.9  # the slope must have fallen to this share
TRIALS = 40


@dataclass(slots=True)
class Trial:
    """One try along the direction: the step length, the point there, and the slope along the direction there."""

    length: float
    point: Point
    slope: float


Try = Callable[[float], Trial]


def strong_wolfe(attempt: Try, origin: Trial, resolution: float) -> Trial | None:
    """A step length that satisfies the strong Wolfe conditions (Nocedal & Wright 2006, algorithms 3.5 and 3.6).

    Where the function's values no longer resolve the decrease, the approximate conditions of Hager & Zhang (2005),
    which look at slopes only, are accepted instead: this is worth several digits of the minimum's place.

    Args:
        attempt: evaluates a step length; 1 is the first that is tried.
        origin: length 0, with a negative slope.
        resolution: smallest difference that two values near the origin can show.

    Returns:
        The accepted trial; failing that the best one that still gives a sufficient decrease; None where nothing does.
    """
    low, high = origin, None
    length, width = 1.0, math.inf
    for _ in range(TRIALS):
        trial = attempt(length)
        if trial.point.fun == -math.inf:
            return trial
        if trial.point.finite and _accepted(trial, origin, resolution):
            return trial
        promised = origin.point.fun + SUFFICIENT * length * origin.slope
        ceiling = min(promised, low.point.fun) + resolution
        if not trial.point.finite or trial.point.fun > ceiling:
            high = trial
        else:
            toward = math.inf if high is None else high.length - low.length
            if trial.slope * toward >= 0:
                high = low
            low = trial
        if high is None:
            length = _extend(low, origin)
            continue
        previous, width = width, abs(high.length - low.length)
        length = _between(low, high, bisect=width > 0.66 * previous)
        if width * -origin.slope <= 1e-2 * resolution or width <= 1e-16 * max(low.length, high.length):
            break
    return low if low.length > 0 and low.point.fun < origin.point.fun else None


def projected_wolfe(attempt: Try, origin: Trial, resolution: float) -> Trial | None:
    """A step along a path bent by bounds: sufficient decrease, and a slope that has flattened, found by bisection.

    ``attempt`` gives as slope that of the bent path, and ``origin.slope`` times the length is replaced by the decrease
    the gradient promises for the displacement that the bounds leave (Bertsekas 1982; Lewis & Overton 2013).
    """
    low, high, length = origin, math.inf, 1.0
    for _ in range(TRIALS):
        trial = attempt(length)
        if trial.point.fun == -math.inf:
            return trial
        promised = float(origin.point.grad.dot(trial.point.x - origin.point.x).item())
        gained = origin.point.fun - trial.point.fun
        if not trial.point.finite or promised >= 0 or gained < -SUFFICIENT * promised - resolution:
            high = length
        elif trial.slope < FLATTER * origin.slope:
            low = trial
        else:
            return trial
        length = 2 * length if high == math.inf else low.length + (high - low.length) * (0.5 if low.length else 0.25)
        width = high - low.length
        if width * -origin.slope <= 1e-2 * resolution or width <= 1e-16 * high:
            break
    return low if low.length > 0 and low.point.fun < origin.point.fun else None


def _accepted(trial: Trial, origin: Trial, resolution: float) -> bool:
    flat = abs(trial.slope) <= FLATTER * -origin.slope
    if flat and trial.point.fun <= origin.point.fun + SUFFICIENT * trial.length * origin.slope:
        return True
    within_rounding = trial.point.fun <= origin.point.fun + resolution
    return within_rounding and FLATTER * origin.slope <= trial.slope <= (2 * SUFFICIENT - 1) * origin.slope and flat


def _extend(low: Trial, origin: Trial) -> float:
    """Farther along: where the slope's own trend says it is zero, at least twice and at most ten times as far."""
    bend = low.slope - origin.slope
    guess = low.length * origin.slope / (origin.slope - low.slope) if bend > 0 else math.inf
    return min(max(guess, 2 * low.length), 10 * low.length)


def _between(low: Trial, high: Trial, bisect: bool) -> float:
    """The minimum of the cubic through both ends, kept a tenth of the interval away from them."""
    span = high.length - low.length
    if not high.point.finite:
        return low.length + 0.1 * span
    share = 0.5
    if not bisect:
        mean = low.slope + high.slope - 3 * (high.point.fun - low.point.fun) / span
        square = mean * mean - low.slope * high.slope
        if square >= 0 and math.isfinite(square):
            root = math.copysign(math.sqrt(square), span)
            bottom = high.slope - low.slope + 2 * root
            if bottom != 0:
                share = 1 - (high.slope + root - mean) / bottom
    return low.length + min(max(share, 0.1), 0.9) * span
