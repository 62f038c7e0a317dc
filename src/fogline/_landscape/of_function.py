"""The landscape of a plain function: its exact surface, and the paths of one or several descents on it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fogline import __version__
from fogline._landscape.directions import Plane, path_plane
from fogline._landscape.of_run import Range, around
from fogline._landscape.path import PlanePath, fog
from fogline._landscape.result import Landscape
from fogline._landscape.surface import survey
from fogline._minimize.result import Result
from fogline._minimize.structure import flatten
from fogline.record.info import now

_MOST_PLACES = 500  # of a path that are shown
_MOST_ROWS = 100  # of a path that the plane is fitted to
_WORTH_SEEING = 4.0  # times the first height above the best: places higher than that do not widen the view

Value = Callable[[Tensor], Tensor]


def function_landscape(
    results: list[Result], function: Callable[..., Tensor] | None, *, points: int, seed: int
) -> Landscape:
    """The arguments are those of :func:`fogline.landscape`."""
    started = time.perf_counter()
    value = _value(results[0], function)
    size = results[0].path.x.shape[1]
    if size < 2:
        raise ValueError(
            "expected results of a function of two variables or more, received one of a single variable; "
            "plot result.path.fun over result.path.x"
        )
    if any(result.path.x.shape[1] != size for result in results):
        received = [result.path.x.shape[1] for result in results]
        raise ValueError(f"expected results of one function, received paths of {received} variables")
    kept = [_shown(result) for result in results]
    plane = _plane(results, kept)
    with torch.no_grad():
        paths = [
            _path(name, result, rows, plane, value)
            for name, result, rows in zip(names(results), results, kept, strict=True)
        ]
        x_range, y_range = _view(paths)
        surface = survey(
            lambda places: [float(value(plane.at(a, b))) for a, b in places],
            np.linspace(*x_range, points),
            np.linspace(*y_range, points),
            refine=False,
        )
    exact = size == 2
    mist = fog(surface.x, surface.y, surface.evaluated, [] if exact else paths, (1.0, 1.0))
    facts = {
        "run": None,
        "made": now(),
        "seed": seed,
        "weights": size,
        "lengths": [1.0, 1.0],
        "evaluations": surface.evaluations,
        "seconds": round(time.perf_counter() - started, 3),
        "versions": {"fogline": __version__, "torch": torch.__version__, "numpy": np.__version__},
    }
    labels = variable_names(results[0].x) if exact else plane.labels
    return Landscape("function", surface, tuple(paths), plane.explained, mist, labels, facts)


def _value(result: Result, function: Callable[..., Tensor] | None) -> Value:
    if function is not None:
        _, structure = flatten(result.x)
        given = function
        return lambda flat: given(structure.restore(flat))
    if result.value is None:
        raise ValueError(
            "expected a result that knows its function, received one that was copied or read from a file; "
            "give it as fogline.landscape(result, function=...)"
        )
    return result.value


def _shown(result: Result) -> list[int]:
    """Which places of a path are shown: finite ones, thinned evenly where they are many."""
    finite = torch.isfinite(result.path.x).all(1).nonzero().flatten().tolist()
    if len(finite) <= _MOST_PLACES:
        return [int(k) for k in finite]
    chosen = np.linspace(0, len(finite) - 1, _MOST_PLACES).round().astype(int)
    return [int(finite[k]) for k in chosen]


def _plane(results: Sequence[Result], kept: Sequence[Sequence[int]]) -> Plane:
    """The function's own two axes, or the plane of the paths through the lowest end."""
    lowest = min(results, key=lambda result: result.fun if math.isfinite(result.fun) else math.inf)
    end = lowest.path.x[-1]
    if end.numel() == 2:
        axes = torch.eye(2, dtype=end.dtype, device=end.device)
        return Plane(torch.zeros_like(end), axes[0], axes[1])
    rows = [
        result.path.x[k]
        for result, places in zip(results, kept, strict=True)
        for k in places[:: max(1, len(places) // _MOST_ROWS)]
    ]
    return path_plane(end, [*rows, end])


def _path(name: str, result: Result, rows: Sequence[int], plane: Plane, value: Value) -> PlanePath:
    path = result.path
    places, distances = plane.project([path.x[k] for k in rows])
    losses = path.fun[list(rows)].numpy()
    exact = plane.origin.numel() == 2
    on_plane = losses if exact else np.array([float(value(plane.at(a, b))) for a, b in places])
    x, y = (np.array([place[axis] for place in places], dtype=np.float64) for axis in (0, 1))
    off = np.zeros(len(rows)) if exact else np.array(distances)
    return PlanePath(name, path.step[list(rows)].numpy().astype(np.float64), x, y, off, losses, on_plane)


def _view(paths: Sequence[PlanePath]) -> list[Range]:
    """Around what is worth seeing of all paths: one that overshoots leaves the picture."""
    every = np.concatenate([path.loss for path in paths])
    best, first = float(np.nanmin(every)), max(float(path.loss[0]) for path in paths)
    highest = best + _WORTH_SEEING * (first - best)
    return around(
        [
            (float(a), float(b))
            for path in paths
            for a, b, loss in zip(path.x, path.y, path.loss, strict=True)
            if loss <= highest
        ]
    )


def names(results: Sequence[Result]) -> list[str]:
    """What to call each descent: its method, and its learning rate where that is one number."""
    found: list[str] = []
    for result in results:
        rates = result.path.lr
        fixed = len(rates) > 0 and bool((rates == rates[0]).all())
        name = f"{result.method}, lr {float(rates[0]):.3g}" if fixed and len(rates) > 1 else result.method
        same = sum(other == name or other.startswith(f"{name} (") for other in found)
        found.append(f"{name} ({same + 1})" if same else name)
    return found


def variable_names(x: Any) -> tuple[str, str]:
    """What the two variables are called.

    >>> variable_names({"b": torch.tensor(1.0), "a": torch.tensor(2.0)}), variable_names(torch.zeros(2))
    (('b', 'a'), ('x[0]', 'x[1]'))
    """
    leaves, _ = pytree.tree_flatten_with_path(x)
    if len(leaves) != 2:
        return "x[0]", "x[1]"
    first, second = ("".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in at) for at, _ in leaves)
    return (first, second) if not first.isdigit() else (f"x[{first}]", f"x[{second}]")
