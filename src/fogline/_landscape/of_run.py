"""The landscape of a run: its plane, how far it is looked at, and what is evaluated there."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fogline import __version__
from fogline._landscape.directions import Plane, hessian_plane, path_plane, random_plane
from fogline._landscape.evaluate import Choice, choose
from fogline._landscape.in_turn import OneAtATime
from fogline._landscape.path import PlanePath, fog
from fogline._landscape.probe import Probe, curvature, open_probe
from fogline._landscape.result import Landscape
from fogline._landscape.surface import survey
from fogline.descent import checkpoint
from fogline.descent.checkpoint import BEST
from fogline.record.info import now
from fogline.record.snapshots import read_path
from fogline.run import Run
from fogline.task import Task

_MARGIN = 0.25
_NARROWEST = 0.4  # the shorter side of the plane of a path, as a share of the longer one

Range = tuple[float, float]


def run_landscape(
    run: Run, span: str, *, task: Task | None, points: int, examples: int, seed: int, refine: bool
) -> Landscape:
    """The arguments are those of :func:`fogline.landscape`; the landscape is saved in the run's folder."""
    started = time.perf_counter()
    task = run.task or task
    if task is None:
        raise ValueError(
            "expected a run with its task, received one that was only opened; "
            "give it as fogline.landscape(run, task=task)"
        )
    probe = open_probe(task, Run(run.folder, task=task, model=run._model).model, examples, seed)
    steps, rows = _visited(run, probe)
    if span == "path" and len(rows) < 3:
        raise ValueError(
            f"expected a run that kept its path, found {max(0, len(rows) - 1)} snapshots of the weights in "
            f"{run.folder}; a run with watch=0 keeps none, nor does one of more than 2,097,152 weights, or one that "
            "was watched in a loop of its own: take span='filter' or span='hessian'"
        )
    with probe.surroundings():
        plane = _plane(probe, span, rows, seed)
        true = OneAtATime(probe, plane).losses_of(rows)
        places, distances = plane.project(rows)
        x_range, y_range = _ranges(plane, span, places, true)
        x, y = np.linspace(*x_range, points), np.linspace(*y_range, points)
        chosen = choose(probe, plane, [(float(a), float(b)) for b in y for a in x])
        surface = survey(chosen.way.losses, x, y, refine=refine)
        on_plane = OneAtATime(probe, plane).losses(places)
    along, across = zip(*places, strict=True)
    columns = {"step": steps, "x": along, "y": across, "distance": distances, "loss": true, "plane_loss": on_plane}
    path = PlanePath.of(run.name, columns, kept=True)
    lengths = float(plane.first.double().norm()), float(plane.second.double().norm())
    mist = fog(surface.x, surface.y, surface.evaluated, [path], lengths)
    facts = _facts(run, probe, plane, chosen, seed) | {
        "lengths": list(lengths),
        "evaluations": surface.evaluations,
        "seconds": round(time.perf_counter() - started, 3),
    }
    made = Landscape(span, surface, (path,), plane.explained, mist, plane.labels, facts)
    made.save(run.folder)
    return made


def _visited(run: Run, probe: Probe) -> tuple[list[int], list[Tensor]]:
    """The snapshots of the run, its last weights and the kept ones, which come last; each of shape (n,)."""
    kept = probe.weights
    found = read_path(run.folder)
    if found is None or found.names != probe.names or found.shapes != probe.shapes:
        return [_last_step(run)], [kept]
    steps, rows = list(found.steps), [row.to(kept) for row in found.weights]
    last, _ = checkpoint.latest(run.folder)
    if last is not None and last.step > steps[-1]:
        tensors = {name: value for name, value in last.model.items() if not name.startswith(BEST)}
        steps.append(last.step)
        rows.append(torch.cat([tensors[name].reshape(-1) for name in probe.names]).to(kept))
    return [*steps, _last_step(run)], [*rows, kept]


def _last_step(run: Run) -> int:
    scores = run.info.get("scores") or {}
    return int(scores.get("step") or run.info.get("steps") or 0)


def _plane(probe: Probe, span: str, rows: Sequence[Tensor], seed: int) -> Plane:
    if span == "path":
        return path_plane(rows[-1], rows)
    if span == "filter":
        return random_plane(rows[-1], probe.shapes, seed)
    return hessian_plane(rows[-1], curvature(probe), seed)


def _ranges(plane: Plane, span: str, places: Sequence[tuple[float, float]], losses: Sequence[float]) -> list[Range]:
    """What is looked at: the path and a margin; one length of the weights; or as far as curvature gives the rise."""
    if span == "filter":
        return [(-1.0, 1.0), (-1.0, 1.0)]
    if span == "path":
        return around(places)
    assert plane.eigenvalues is not None
    finite = [loss for loss in losses if math.isfinite(loss)]
    rise = (max(finite) - finite[-1] if finite else 0.0) or abs(losses[-1]) or 1.0
    largest = abs(plane.eigenvalues[0])
    size = float(plane.origin.double().norm()) or 1.0
    # Where the second direction is nearly flat, no further than three times as far as the first.
    halves = [math.sqrt(2 * rise / max(abs(value), largest / 9)) for value in plane.eigenvalues]
    return [(-half, half) for half in (min(half, size) for half in halves)]


def around(places: Sequence[tuple[float, float]]) -> list[Range]:
    """A box around some places and a margin; neither side is much shorter than the other.

    >>> around([(0.0, 0.0), (10.0, 0.0)])
    [(-2.5, 12.5), (-3.0, 3.0)]
    """
    found = []
    for values in zip(*places, strict=True):
        low, high = min(values), max(values)
        found.append((low - _MARGIN * (high - low), high + _MARGIN * (high - low)))
    least = _NARROWEST * max(high - low for low, high in found) or 2.0
    return [
        (low, high) if high - low >= least else ((low + high - least) / 2, (low + high + least) / 2)
        for low, high in found
    ]


def _facts(run: Run, probe: Probe, plane: Plane, chosen: Choice, seed: int) -> dict[str, Any]:
    return {
        "run": run.name,
        "made": now(),
        "seed": seed,
        "examples": probe.rows,
        "weights": plane.origin.numel(),
        "eigenvalues": None if plane.eigenvalues is None else list(plane.eigenvalues),
        "normalisation": "statistics of the probe, at every place" if probe.normalised else "none",
        "evaluated_by": chosen.way.name,
        "seconds_a_place": {name: float(f"{seconds:.3g}") for name, seconds in chosen.seconds.items()},
        "not_used": chosen.refused,
        "versions": {"fogline": __version__, "torch": torch.__version__, "numpy": np.__version__},
    }
