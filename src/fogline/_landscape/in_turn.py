"""One place after another, in a private copy of the model, or in several copies side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from fogline._landscape.directions import Plane
from fogline._landscape.first_layer import Known
from fogline._landscape.images import channels_last, rearrange
from fogline._landscape.probe import Probe
from fogline.data.source import map_tree

Place = tuple[float, float]


class OneAtATime:
    """The weights of one place after another in a private copy of the model.

    Args:
        probe, plane: what is evaluated and where.
        last: whether images lie with their channels last.
        known: compute the first layer once.

    Raises:
        ValueError: the first layer is no linear one, or too large to be kept.
    """

    def __init__(self, probe: Probe, plane: Plane, *, last: bool = False, known: bool = False) -> None:
        self.name, self.width = described(last=last, known=known), 1
        self.again = partial(OneAtATime, probe, plane, last=last, known=known)
        self._last = last
        self.probe = replace(probe, objective=probe.objective.copied())
        self._batch = map_tree(channels_last, probe.batch) if last else probe.batch
        self._origin, self._first, self._second = (
            self._laid(flat) for flat in (plane.origin, plane.first, plane.second)
        )
        self._weights = self._origin.clone()
        self._point_parameters_at(self._weights)
        if last:
            rearrange(self.model)
        self._known: Known | None = None
        if known:
            self._known = Known(self, plane)

    @property
    def model(self) -> nn.Module:
        return self.probe.objective.model

    def losses(self, places: Sequence[Place]) -> list[float]:
        found = []
        for a, b in places:
            torch.add(self._origin, self._first, alpha=a, out=self._weights)
            self._weights.add_(self._second, alpha=b)
            if self._known is not None:
                self._known.place = (a, b)
            found.append(self._loss())
        return _numbers(found)

    def losses_of(self, weights: Sequence[Tensor]) -> list[float]:
        """The loss of flat weights anywhere, each of shape (n,)."""
        assert self._known is None
        found = []
        for flat in weights:
            self._weights.copy_(self._laid(flat.to(self._weights)))
            found.append(self._loss())
        return _numbers(found)

    def _loss(self) -> Tensor:
        """The loss of the probe with the weights as they are."""
        self.probe.seed_place()
        return self.probe.objective(self._batch).detach()

    def _laid(self, flat: Tensor) -> Tensor:
        """Flat weights in the order in which they lie in memory here."""
        if not self._last:
            return flat.clone()
        parts = torch.split(flat, [math.prod(shape) for shape in self.probe.shapes])
        turned = [
            part.view(shape).permute(0, 2, 3, 1).reshape(-1) if len(shape) == 4 else part
            for part, shape in zip(parts, self.probe.shapes, strict=True)
        ]
        return torch.cat(turned)

    def _point_parameters_at(self, flat: Tensor) -> None:
        """The parameters become views of one flat tensor: a place is written in two operations."""
        at = 0
        for parameter, shape in zip(self.probe.parameters, self.probe.shapes, strict=True):
            part, at = flat[at : at + parameter.numel()], at + parameter.numel()
            if self._last and len(shape) == 4:
                filters, channels, height, width = shape
                parameter.data = part.view(filters, height, width, channels).permute(0, 3, 1, 2)
            else:
                parameter.data = part.view(shape)


class SideBySide:
    """Copies of one way that share the places, each in a thread of its own with one processor.

    On small work two processors on one place mostly wait for each other; on two places they need not.
    """

    def __init__(self, ways: Sequence[OneAtATime]) -> None:
        self._ways, self.width = list(ways), 4 * len(ways)
        self.name = f"{ways[0].name}, {len(ways)} side by side"

    def losses(self, places: Sequence[Place]) -> list[float]:
        size = -(-len(places) // len(self._ways))
        shares = [places[start : start + size] for start in range(0, len(places), size)]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # threads that begin now have one each
        try:
            with ThreadPoolExecutor(len(shares), initializer=_as_here(torch.is_grad_enabled())) as pool:
                found = list(pool.map(lambda way, share: way.losses(share), self._ways, shares))
        finally:
            torch.set_num_threads(threads)
        return [loss for share in found for loss in share]


def _as_here(gradients: bool) -> Callable[[], None]:
    """Settings that belong to a thread."""

    def arrange() -> None:
        torch.set_grad_enabled(gradients)
        torch.set_flush_denormal(True)

    return arrange


def described(*, last: bool, known: bool) -> str:
    """The name of a way that takes one place at a time.

    >>> described(last=True, known=False)
    'one at a time, channels last'
    """
    words = ["one at a time"]
    words += ["channels last"] if last else []
    words += ["first layer computed once"] if known else []
    return ", ".join(words)


def _numbers(losses: Sequence[Tensor]) -> list[float]:
    """Plain numbers, in one transfer."""
    values: list[float] = torch.stack([loss.double() for loss in losses]).tolist()
    return values
