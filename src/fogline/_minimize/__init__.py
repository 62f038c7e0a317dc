"""Descend a plain function from a start: the example every course begins with, and what the rest is tested against."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from fogline._minimize.first_order import (
    FixedRate,
    Rule,
    SafeguardedRate,
    SpectralGradient,
    adam_rule,
    gradient_rule,
    momentum_rule,
)
from fogline._minimize.judge import Judge
from fogline._minimize.line_methods import Dense, LimitedMemory, LineSearch, NewtonCG
from fogline._minimize.loop import Method, Progress, descend
from fogline._minimize.problem import Point, Problem
from fogline._minimize.result import Path, Recorder, Result
from fogline._minimize.structure import flatten, read_bounds

__all__ = ["METHODS", "Path", "Progress", "Result", "minimize"]

FIRST_ORDER = ("gd", "momentum", "nesterov", "adam")
METHODS = (*FIRST_ORDER, "lbfgs", "bfgs", "newton-cg")
HISTORY_NUMBERS = 2**25  # in each of the two matrices that lbfgs keeps by default: 256 MB in float64
LARGEST_DENSE = 20_000  # parameters: a matrix of 3.2 GB in float64


def minimize(
    function: Callable[..., Tensor],
    start: Any,
    *,
    method: str = "lbfgs",
    lr: float | Literal["auto"] = "auto",
    bounds: Any = None,
    max_steps: int = 10_000,
    tol: float | None = None,
    callback: Callable[[Progress], object] | None = None,
    path: Literal["full", "none"] | int = "full",
    momentum: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    history: int | None = None,
) -> Result:
    """Minimise a scalar function of tensors by gradient descent or one of its faster relatives.

    Args:
        function: takes the start's structure, returns a tensor with one element; gradients are torch's own.
        start: a tensor, a number, an array, or dicts, tuples and lists of these. Computed in its own dtype, numbers
            and integers in float64. It is copied and never changed, nor is anybody's ``.grad``.
        method: ``"lbfgs"`` (the default: robust, any size), ``"bfgs"`` (a full matrix: up to some thousand parameters),
            ``"newton-cg"`` (Hessian-vector products), and the first-order ``"gd"``, ``"momentum"``, ``"nesterov"``,
            ``"adam"``. See Nocedal & Wright, Numerical Optimization (2006).
        lr: step size of a first-order method. With a number every step is the textbook step, whatever comes of it;
            ``"auto"`` measures it along the way. The other methods search the length along each direction.
        bounds: None; a list of (low, high), one pair a parameter; or a tuple (lower, upper), each a number, None or
            the structure of the start. A start outside is moved to the nearest place inside.
        max_steps: most steps to take.
        tol: what may be left to gain, as a share of what the last quarter of the steps gained; by default the dtype's
            epsilon (2e-16 in float64), for a first-order method its power 3/4 (2e-12). There is no absolute
            tolerance: the function's scale does not matter.
        callback: called after every step with a :class:`Progress`; return True to stop.
        path: ``"full"`` keeps every step in ``result.path`` (steps x parameters x 2 numbers), an integer k every k-th,
            ``"none"`` the start and the end.
        momentum: of ``"momentum"`` and ``"nesterov"``; by default 0.9 with a given lr, and growing with restarts with
            ``lr="auto"``.
        betas: averaging factors of ``"adam"``.
        history: pairs kept by ``"lbfgs"``; by default 100, and fewer from some 300,000 parameters on (at least 10).

    Returns:
        A :class:`Result`. ``verdict`` is CONVERGED (at a minimum: a saddle is told apart by the Hessian), IMPROVING
        (``max_steps`` ended first), STALLED, DIVERGED, NONFINITE or INTERRUPTED (by the callback).

    Raises:
        TypeError: the function does not return a tensor, or the start holds something that is not a real number.
        ValueError: an argument out of range, an unknown method, a function that returns several numbers, that cannot
            be differentiated, or that is not finite at the start.

    Example:
        >>> result = minimize(lambda w: (w - 2) ** 2, torch.tensor([5.0]), method="gd", lr=0.1, max_steps=1)
        >>> result.x, result.grad, result.verdict.name
        (tensor([4.4000]), tensor([6.]), 'IMPROVING')
        >>> def rosenbrock(w):
        ...     return 100 * (w["b"] - w["a"] ** 2) ** 2 + (1 - w["a"]) ** 2
        >>> result = minimize(rosenbrock, {"a": -1.2, "b": 1.0})
        >>> result.verdict.name, round(result.x["a"].item(), 6), len(result.path) == result.nit + 1
        ('CONVERGED', 1.0, True)
    """
    method = _checked_method(method)
    _check_numbers(lr, method, max_steps, tol, momentum, betas, history)
    every = _checked_path(path)
    with torch.inference_mode(False), torch.enable_grad():
        flat, structure = flatten(start)
        problem = Problem(function, structure, read_bounds(bounds, structure, flat))
        first = problem.evaluate(problem.project(flat))
        if not first.finite:
            raise ValueError(
                f"expected a finite value and gradient at the start, received the value {first.fun} there; "
                "start where the function is defined"
            )
        plugged = _method(method, problem, first, lr, momentum, betas, history)
        eps = torch.finfo(flat.dtype).eps
        default = eps**0.75 if method in FIRST_ORDER else eps
        tolerance = default if tol is None else float(tol)
        judge = Judge(problem, first, tolerance, plugged.patience, plugged.careful)
        recorder = Recorder(first, every)
        end = descend(problem, plugged, first, recorder, judge, max_steps, callback)
        return Result(
            x=structure.restore(end.point.x),
            fun=end.point.fun,
            grad=structure.restore(end.used.grad),
            jac=structure.restore(end.point.grad),
            verdict=end.ending.verdict,
            message=end.ending.message,
            evidence=end.ending.evidence,
            path=recorder.path(),
            method=method,
            nit=end.steps,
            nfev=problem.evaluations,
            njev=problem.evaluations,
            nhev=problem.curvature_products,
            value=problem.value,
        )


def _method(
    name: str,
    problem: Problem,
    start: Point,
    lr: float | Literal["auto"],
    momentum: float | None,
    betas: tuple[float, float],
    history: int | None,
) -> Method:
    if name == "lbfgs":
        size = start.x.numel()
        return LineSearch(problem, LimitedMemory(history or min(100, max(10, HISTORY_NUMBERS // size))))
    if name == "bfgs":
        if start.x.numel() > LARGEST_DENSE:
            raise ValueError(
                f"expected at most {LARGEST_DENSE} parameters for method 'bfgs', which keeps a full matrix, "
                f"received {start.x.numel()}; use method='lbfgs'"
            )
        return LineSearch(problem, Dense())
    if name == "newton-cg":
        return LineSearch(problem, NewtonCG(problem))
    if lr == "auto" and name == "gd":
        return SpectralGradient(problem, start)
    if momentum is None and lr != "auto":
        momentum = 0.9
    rules: dict[str, Rule] = {
        "gd": gradient_rule,
        "momentum": momentum_rule(momentum, nesterov=False),
        "nesterov": momentum_rule(momentum, nesterov=True),
        "adam": adam_rule(betas),
    }
    if lr == "auto":
        return SafeguardedRate(problem, rules[name], start, by_curvature=name != "adam")
    return FixedRate(problem, rules[name], start, float(lr))


def _checked_method(name: str) -> str:
    known = str(name).lower().replace("_", "-")
    if known in METHODS:
        return known
    close = difflib.get_close_matches(known, METHODS, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"expected a method out of {', '.join(METHODS)}, received {name!r}{hint}")


def _checked_path(path: Literal["full", "none"] | int) -> int:
    if path == "full":
        return 1
    if path == "none":
        return 0
    if isinstance(path, int) and not isinstance(path, bool) and path >= 1:
        return path
    raise ValueError(f"expected path='full', 'none' or an integer k >= 1 (every k-th step), received {path!r}")


def _check_numbers(
    lr: float | Literal["auto"],
    method: str,
    max_steps: int,
    tol: float | None,
    momentum: float | None,
    betas: tuple[float, float],
    history: int | None,
) -> None:
    if lr != "auto":
        if not isinstance(lr, int | float) or not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"expected lr as a number above 0 or 'auto', received {lr!r}; leave it out to measure it")
        if method not in FIRST_ORDER:
            raise ValueError(
                f"expected no lr for method {method!r}, which searches the length of every step, received lr={lr!r}; "
                f"leave it out, or use one of {', '.join(FIRST_ORDER)}"
            )
    if not isinstance(max_steps, int) or isinstance(max_steps, bool) or max_steps < 0:
        raise ValueError(f"expected max_steps as an integer >= 0, received {max_steps!r}")
    if tol is not None and not (0 <= tol < 1):
        raise ValueError(f"expected tol in [0, 1), a share of the gain, received {tol!r}")
    if momentum is not None and not (0 <= momentum < 1):
        raise ValueError(f"expected momentum in [0, 1), received {momentum!r}; 0.9 is a good first try")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"expected betas as two numbers in [0, 1), received {betas!r}; (0.9, 0.999) is usual")
    if history is not None and (not isinstance(history, int) or history < 1):
        raise ValueError(f"expected history as an integer >= 1, received {history!r}")
