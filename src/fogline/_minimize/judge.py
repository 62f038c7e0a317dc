"""When to stop and what to call it. Every test is a ratio: multiplying function or x by a number changes nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from fogline._minimize.curvature import Survey, survey
from fogline._minimize.problem import Point, Problem, norm
from fogline.verdict import Verdict

QUIET = 100  # steps of a careful method without a lower value, after which no more is expected


@dataclass(frozen=True)
class Ending:
    """The verdict, the sentence for the caller, and the evidence."""

    verdict: Verdict
    message: str
    evidence: dict[str, Any]


class Judge:
    """Follows a descent and decides.

    The quantity judged is ``left``, what the method's own model of the function says is still to be gained (for a
    quasi-Newton method ``-g.d / 2``), against ``gain``, what was gained in the last quarter of the steps. ``CONVERGED``
    asks for ``left <= tol * gain``, or for less than the value's rounding, in ``patience`` steps running. Then the
    Hessian is asked: if it bends down this is a saddle, and if its own estimate of what is left is larger the descent
    goes on.
    """

    def __init__(self, problem: Problem, start: Point, tol: float, patience: int, careful: bool):
        self.problem, self.tol, self.patience, self.careful = problem, tol, patience, careful
        self.eps = torch.finfo(start.x.dtype).eps
        self.start = self.best = start
        self.held = self.quiet = 0
        self.lowest = [start.fun]  # lowest value up to each step
        self.left = math.inf

    def look(self, point: Point, left: float) -> bool:
        """Whether there is nothing more to gain."""
        self.left = left
        self.held = self.held + 1 if self._little(point, left) else 0
        return left == 0 or self.held >= self.patience

    def _little(self, point: Point, left: float) -> bool:
        earlier = self.lowest[3 * (len(self.lowest) - 1) // 4]  # from a very high start every place looks low
        return left <= max(self.tol * (earlier - point.fun), self.eps * abs(point.fun))

    def moved(self, point: Point) -> Ending | None:
        """Take in a step; an ending where the descent has left the ground or does not get lower any more."""
        lower = point.fun < self.best.fun - self.eps * abs(self.best.fun)
        self.quiet = 0 if lower else self.quiet + 1
        if point.fun < self.best.fun:
            self.best = point
        self.lowest.append(self.best.fun)
        if self.careful:
            return self.blocked(point) if self.quiet >= QUIET else None
        if point.fun > self.start.fun and point.steepness > 1e8 * self.start.steepness:
            return self.diverged(point)
        return None

    def doubts(self, point: Point, seen: Survey) -> bool:
        """Whether the Hessian says that more is left than the method's own model; the next look is then later."""
        if seen.bends_down or self._little(point, seen.left):
            return False
        self.patience, self.held, self.left = 2 * self.patience, 0, seen.left
        return True

    def settled(self, point: Point, seen: Survey) -> Ending:
        """Nothing left to gain: at a minimum, unless the Hessian bends down or there is nothing to tell from."""
        gain, flat = self.start.fun - point.fun, seen.largest == 0 and norm(self.problem.free_gradient(point)) == 0
        curvatures = {"smallest_curvature": seen.smallest, "largest_curvature": seen.largest}
        if seen.bends_down:
            message = (
                f"Stalled at a saddle: the slope is gone but the function bends down (curvature {seen.smallest:.3g} "
                f"against {seen.largest:.3g}); start elsewhere or use method='lbfgs', which leaves saddles."
            )
            return self._ending(Verdict.STALLED, message, point, **curvatures)
        if flat and gain <= 0 and norm(seen.downward) > 0:  # without a direction, bounds hold every parameter
            message = (
                "Stalled on a plain: the function is flat at the start, slope and curvature are exactly zero; "
                "start elsewhere, or check that the function depends on its argument there."
            )
            return self._ending(Verdict.STALLED, message, point, **curvatures)
        message = f"Converged: at a minimum; about {self.left:.1e} is left to gain after {gain:.3g} gained."
        return self._ending(Verdict.CONVERGED, message, point, **curvatures)

    def blocked(self, point: Point) -> Ending:
        """No step goes down: at a minimum as far as rounding shows, or stuck."""
        seen = survey(self.problem, point)
        of_x = seen.largest * (10 * self.eps * norm(point.x)) ** 2  # what the rounding of x alone changes
        halfway = self.lowest[(len(self.lowest) - 1 - self.quiet) // 2]
        of_value = max(math.sqrt(self.eps) * (halfway - point.fun), 1e3 * self.eps * abs(point.fun))
        if not seen.bends_down and not seen.blind and seen.left <= max(of_x, of_value):
            self.left = seen.left
            return self.settled(point, seen)
        message = (
            "Stalled: no step along the gradient goes down, and this is not a minimum by its slope; the function may "
            "have a kink or a jump here, or a gradient that is not its own (torch.autograd.gradcheck tells)."
        )
        if not self.careful:
            message = "Stalled: the steps are too short to change the parameters; raise lr or leave it at 'auto'."
        return self._ending(Verdict.STALLED, message, point)

    def spent(self, point: Point) -> Ending:
        """The steps ended first."""
        if point.fun > self.start.fun + 10 * self.eps * abs(self.start.fun):
            return self.diverged(point)
        steps, lowest = len(self.lowest) - 1, self.lowest[-1]
        late = self.lowest[steps // 2] - lowest
        if steps and late <= max(self.tol * (self.start.fun - lowest), self.eps * abs(lowest)):
            message = (
                f"Stalled: the last {steps - steps // 2} steps only jump about without getting lower; "
                "lower lr (a tenth is a good first try) or leave it at 'auto'."
            )
            return self._ending(Verdict.STALLED, message, point, gain_of_second_half=late)
        left = f"about {self.left:.1e} is left to gain; " if math.isfinite(self.left) else ""
        message = f"Still improving: {steps} steps ended first; {left}raise max_steps."
        return self._ending(Verdict.IMPROVING, message, point, gain_of_second_half=late)

    def diverged(self, point: Point) -> Ending:
        """The value went up instead of down."""
        message = (
            f"Diverged: the value went from {self.start.fun:.6g} up to {point.fun:.6g}; "
            "lower lr (a tenth is a good first try) or leave it at 'auto'."
        )
        return self._ending(Verdict.DIVERGED, message, point)

    def not_finite(self, point: Point, refused: Point) -> Ending:
        """A step led to NaN or infinity; the place before it is kept."""
        if refused.fun == -math.inf:
            message = (
                "Diverged: the function falls without bound (minus infinity was reached); "
                "check its sign, add a penalty or give bounds."
            )
            return self._ending(Verdict.DIVERGED, message, point, refused_fun=str(refused.fun))
        if point.fun > self.start.fun:
            return self.diverged(point)
        message = (
            f"Non-finite: the next step led to a value of {refused.fun} or an infinite gradient and was refused; "
            "the last finite place is returned. Lower lr, or give bounds that keep to where the function is defined."
        )
        return self._ending(Verdict.NONFINITE, message, point, refused_fun=str(refused.fun))

    def interrupted(self, point: Point, steps: int) -> Ending:
        """The callback asked to stop."""
        return self._ending(Verdict.INTERRUPTED, f"Interrupted: the callback returned True after {steps} steps.", point)

    def _ending(self, verdict: Verdict, message: str, point: Point, **evidence: Any) -> Ending:
        common = {
            "left_to_gain": self.left,
            "gain": self.start.fun - point.fun,
            "tol": self.tol,
            "slope_share": point.steepness / self.start.steepness if self.start.steepness else 0.0,
        }
        return Ending(verdict, message, common | evidence)
