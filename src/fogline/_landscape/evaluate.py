"""The loss at many places of a plane, in whichever of several ways is fastest here: that is measured.

Every way gives the loss of every place that it is asked for; the plain one, which any model can be evaluated by, is
the reference of the others, and one that disagrees with it is not used.

- *One at a time*: weights are written into the model's own parameters, the probe goes through, images with their
  channels last and pooled by maxima. The first layer is the same linear function of its weights at every place, so its
  outputs at ``origin + a d1 + b d2`` are a combination of three that are computed once.
- *Side by side*: several copies of that, each with one processor.
- *Mapped*: ``vmap`` over places, for models so small that calling costs more than computing.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module  # functional_call without its signature

from fogline._landscape.directions import Plane
from fogline._landscape.in_turn import OneAtATime, Place, SideBySide, described
from fogline._landscape.probe import Probe

TOLERANCE = 1e-5
"""Two ways agree where their losses differ by less than this share of them."""
_ROUNDS = 2
_FEW = 64  # places that are not worth measuring
_SLOW = 5e-3  # seconds a place: calling is a small part of it
_WIDTHS = (8, 32)
_IMAGE_MODULES = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)

# What ``vmap`` raises for a model it cannot map, and a model for data or a layout it cannot take.
_CANNOT = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError)


class Way(Protocol):
    """One way to evaluate places, of which it takes ``width`` at a time."""

    name: str
    width: int

    def losses(self, places: Sequence[Place]) -> list[float]:
        """The loss at each place."""


@dataclass(frozen=True)
class Choice:
    """The way that was taken.

    Attributes:
        way: it.
        seconds: a place took, by name of the way, measured on a few.
        refused: why others were not, by name.
    """

    way: Way
    seconds: dict[str, float]
    refused: dict[str, str]


class Mapped:
    """Several places in one call, by ``vmap``."""

    def __init__(self, probe: Probe, plane: Plane, width: int) -> None:
        self.name, self.width = f"mapped, {width} at a time", width
        self.probe = replace(probe, objective=probe.objective.copied())
        sizes = [math.prod(shape) for shape in probe.shapes]
        parts = [torch.split(flat, sizes) for flat in (plane.origin, plane.first, plane.second)]
        self._values = {
            name: tuple(part[k].reshape(shape) for part in parts)
            for k, (name, shape) in enumerate(zip(probe.names, probe.shapes, strict=True))
        }
        like = plane.origin
        self._mapped = torch.func.vmap(self._one, randomness="same")
        self._dtype, self._device = like.dtype, like.device

    def _one(self, a: Tensor, b: Tensor) -> Tensor:
        values = {name: origin + a * first + b * second for name, (origin, first, second) in self._values.items()}
        with _reparametrize_module(self.probe.objective.model, values, tie_weights=True):
            return self.probe.objective(self.probe.batch)

    def losses(self, places: Sequence[Place]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(places), self.width):
            given = torch.tensor(places[start : start + self.width], dtype=self._dtype, device=self._device)
            self.probe.seed_place()
            with warnings.catch_warnings():  # that an operation is mapped slowly: that is measured
                warnings.simplefilter("ignore")
                found += self._mapped(given[:, 0], given[:, 1]).detach().double().tolist()
        return found


def choose(probe: Probe, plane: Plane, places: Sequence[Place]) -> Choice:
    """The fastest way that gives the losses of the plain one, measured on some of the places.

    Args:
        probe, plane: what is evaluated and where.
        places: all that are to be evaluated; where they are few, the plain way is taken.
    """
    plain = OneAtATime(probe, plane)
    if len(places) < _FEW:
        return Choice(plain, {}, {})
    tried = [places[k * (len(places) - 1) // 2] for k in range(3)]
    wanted = plain.losses(tried)
    slow = _seconds(probe, plain, places) > _SLOW
    ways: dict[str, Way] = {plain.name: plain}
    refused: dict[str, str] = {}
    for name, make in _others(probe, plane, slow=slow).items():
        try:
            way = make()
            found = way.losses(tried)
        except _CANNOT as error:
            refused[name] = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            continue
        if all(agree(x, y) for x, y in zip(found, wanted, strict=True)):
            ways[name] = way
        else:
            refused[name] = f"gives the losses {found}, the plain way {wanted}"
    times = {name: min(_seconds(probe, way, places) for _ in range(_ROUNDS)) for name, way in ways.items()}
    best = ways[min(times, key=times.__getitem__)]
    if isinstance(best, OneAtATime) and probe.device.type == "cpu" and probe.threads > 1 and probe.objective.supervised:
        beside = SideBySide([best, *(best.again() for _ in range(probe.threads - 1))])
        if all(agree(x, y) for x, y in zip(beside.losses(tried), wanted, strict=True)):
            times[beside.name] = min(_seconds(probe, beside, places) for _ in range(_ROUNDS))
            best = beside if times[beside.name] < times[best.name] else best
    return Choice(best, times, refused)


def agree(found: float, wanted: float) -> bool:
    """Whether two ways give the same loss.

    >>> agree(1.000001, 1.0), agree(1.1, 1.0), agree(math.nan, math.nan)
    (True, False, True)
    """
    if not (math.isfinite(found) and math.isfinite(wanted)):
        return repr(found) == repr(wanted)
    return abs(found - wanted) <= TOLERANCE * abs(wanted)


def _others(probe: Probe, plane: Plane, *, slow: bool) -> dict[str, Callable[[], Way]]:
    images = any(isinstance(module, _IMAGE_MODULES) for module in probe.objective.model.modules())
    found: dict[str, Callable[[], Way]] = {}
    for last, known in ((False, True), *(((True, True), (True, False)) if images else ())):
        found[described(last=last, known=known)] = partial(OneAtATime, probe, plane, last=last, known=known)
    for width in _WIDTHS[: 1 if slow else None]:
        found[f"mapped, {width} at a time"] = partial(Mapped, probe, plane, width)
    return found


def _seconds(probe: Probe, way: Way, places: Sequence[Place]) -> float:
    """What a place takes: of a call of as many as the way takes at a time, and at least two."""
    count = 2 if isinstance(way, OneAtATime) else way.width
    clock = time.process_time if probe.device.type == "cpu" and probe.threads == 1 else time.perf_counter
    started = clock()
    way.losses(places[:count])
    return (clock() - started) / min(count, len(places))
