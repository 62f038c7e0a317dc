"""THE loop: every method is a small object plugged into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fogline._minimize.curvature import Survey, survey
from fogline._minimize.first_order import FirstOrder
from fogline._minimize.judge import Ending, Judge
from fogline._minimize.line_methods import LineSearch, Move
from fogline._minimize.problem import Point, Problem
from fogline._minimize.result import Recorder


@dataclass(frozen=True)
class Progress:
    """What a callback is shown after every step.

    Attributes:
        step: steps taken so far.
        x: the parameters, in the structure of the start; views, not to be changed.
        fun: the value there.
        grad: the gradient there, in the same structure.
        lr: the step size that led there.
    """

    step: int
    x: Any
    fun: float
    grad: Any
    lr: float


# What is plugged in: prepare gets ready for the next step and says how much is left to gain, 0 where the slope is
# exactly zero; step takes it, or gives None where there is none; detour is the step where the Hessian says that more
# is left than the method thought, escape one away from a saddle. Nothing may be left in patience steps running before
# the loop believes it; a careful method refuses steps that do not go down.
Method = FirstOrder | LineSearch


@dataclass(frozen=True)
class Descent:
    """Where the loop ended: the place, the gradient of its last step, the steps it took, and why."""

    point: Point
    used: Point
    steps: int
    ending: Ending


def descend(
    problem: Problem,
    method: Method,
    start: Point,
    recorder: Recorder,
    judge: Judge,
    max_steps: int,
    callback: Callable[[Progress], object] | None,
) -> Descent:
    """Run a method to its end::

    until the judge sees an ending:
        prepare: choose the next step and estimate what is left to gain
        nothing left?  ask the Hessian -> CONVERGED, or go on, or leave the saddle
        no steps left? -> IMPROVING, STALLED or DIVERGED
        step: none possible -> at rounding CONVERGED, else STALLED; not finite -> NONFINITE
        record, show to the callback
    """
    point = used = start
    steps = 0
    while True:
        ahead = _advance(problem, method, judge, point, steps_left=max_steps - steps)
        if isinstance(ahead, Move) and not ahead.point.finite:
            ahead = judge.not_finite(point, ahead.point)
        if isinstance(ahead, Move):
            used, point, steps = point, ahead.point, steps + 1
            recorder.add(steps, point, ahead.lr)
            ending = judge.moved(point)
            if callback is not None and _asks_to_stop(callback, problem, point, steps, ahead.lr):
                ending = ending or judge.interrupted(point, steps)
        else:
            ending = ahead
        if ending is not None:
            if method.careful and judge.best.fun < point.fun - 10 * judge.eps * abs(point.fun):
                point = judge.best
            return Descent(point, used, steps, ending)


def _advance(problem: Problem, method: Method, judge: Judge, point: Point, steps_left: int) -> Move | Ending:
    """The next step, or why there is none."""
    seen: Survey | None = None
    if judge.look(point, method.prepare(point)):
        seen = survey(problem, point)
        if not judge.doubts(point, seen):
            away = method.escape(point, seen) if seen.bends_down and steps_left else None
            return away or judge.settled(point, seen)
    if not steps_left:
        return judge.spent(point)
    move = method.step(point) if seen is None else method.detour(point, seen)
    if move is None and method.careful:  # at a saddle that rounding keeps from being seen as flat
        seen = seen or survey(problem, point)
        move = method.escape(point, seen) if seen.bends_down else None
    return move or judge.blocked(point)


def _asks_to_stop(
    callback: Callable[[Progress], object], problem: Problem, point: Point, steps: int, lr: float
) -> bool:
    restore = problem.structure.restore
    return callback(Progress(steps, restore(point.x), point.fun, restore(point.grad), lr)) is True
