"""The error landscape: a plane through the space of weights, the losses over it, and the path that was taken.

The package has this name, and not that of its verb, because a module ``fogline.landscape`` and the function
``fogline.landscape`` would hide each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from fogline._landscape.directions import SPANS, Plane
from fogline._landscape.of_function import function_landscape
from fogline._landscape.of_run import run_landscape
from fogline._landscape.path import PlanePath
from fogline._landscape.result import Landscape
from fogline._landscape.surface import Surface
from fogline._minimize.result import Result
from fogline.errors import unknown
from fogline.run import Run
from fogline.task import Task

__all__ = ["SPANS", "Landscape", "Plane", "PlanePath", "Surface", "landscape"]


def landscape(
    what: Run | Result | Sequence[Result] | str | Path,
    span: str = "path",
    *,
    task: Task | None = None,
    function: Callable[..., Tensor] | None = None,
    points: int = 49,
    examples: int = 1024,
    seed: int = 0,
    refine: bool = True,
) -> Landscape:
    """The loss over a plane through the weights, and the path the descent took, as far as the plane shows it.

    Of a run, the plane goes through the weights that were kept. The loss is the mean over a fixed probe of training
    examples, in evaluation mode; normalisation layers take the statistics of the probe, at every place, since running
    statistics belong to the weights they were gathered with. The run's model, its gradients and all random states are
    left bitwise as they were, and the landscape is saved in its folder as ``landscape.json``.

    Of functions of two variables it is the exact surface with the paths of all results on it; of more variables the
    plane is that of the path.

    Args:
        what: a run or its folder; or what :func:`fogline.minimize` returned, one result or several of one function.
        span: the plane of a run. ``"path"``: the first two principal components of the weights along the run.
            ``"filter"``: two random directions, each filter as long as that of the weights (Li et al., 2018,
            arXiv:1712.09913). ``"hessian"``: the eigenvectors of the Hessian with the largest eigenvalues.
        task: of a run that was opened without one.
        function: of results that do not know theirs (those that were pickled).
        points: grid lines a side; with ``refine`` one more than a multiple of four, else it is rounded up.
        examples: of the probe, at most.
        seed: decides the probe and the random directions.
        refine: evaluate every fourth line and more where the surface bends; False evaluates every place.

    Returns:
        A :class:`Landscape`: ``surface``, ``path``, ``explained``, ``plot()``, ``to_json()``.

    Raises:
        ValueError: the run has no task, or kept no path and ``span="path"`` is asked; a function of one variable;
            a loss without a second derivative for ``span="hessian"``; an unknown span.
        TypeError: something else than a run or results.

    >>> import fogline, torch
    >>> valley = lambda w: w[0] ** 2 + 10 * w[1] ** 2
    >>> slow, fast = (fogline.minimize(valley, [4.0, 1.0], method="gd", lr=r, max_steps=20) for r in (0.01, 0.09))
    >>> seen = fogline.landscape([slow, fast])
    >>> len(seen.paths), seen.surface.loss.shape
    (2, (49, 49))
    """
    if span not in SPANS:
        raise unknown("span", span, SPANS)
    if not isinstance(points, int) or points < 5:
        raise ValueError(f"expected points as a whole number of at least 5, received {points!r}")
    if not isinstance(examples, int) or examples < 1:
        raise ValueError(f"expected examples as a whole number of at least 1, received {examples!r}")
    lines = -(-(points - 1) // 4) * 4 + 1 if refine else points
    results = [what] if isinstance(what, Result) else what
    if isinstance(results, list | tuple) and results and all(isinstance(each, Result) for each in results):
        return function_landscape(list(results), function, points=lines, seed=seed)
    run = Run.open(what, task=task) if isinstance(what, str | Path) else what
    if not isinstance(run, Run):
        raise TypeError(f"expected a run, its folder, or results of fogline.minimize, received {type(what).__name__}")
    return run_landscape(run, span, task=task, points=lines, examples=examples, seed=seed, refine=refine)
