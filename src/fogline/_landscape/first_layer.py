"""The outputs of a first layer, computed once for all places of a plane."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fogline._landscape.directions import Plane

if TYPE_CHECKING:
    from fogline._landscape.in_turn import OneAtATime

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_MOST_NUMBERS = 2**25  # in the three outputs that are kept: 128 MB in float32


class Known:
    """The outputs of the first layer, which are ``o0 + a o1 + b o2`` at every place.

    Attributes:
        place, part: where the model is evaluated now, and on which part of the probe.
    """

    def __init__(self, way: OneAtATime, plane: Plane) -> None:
        name, inputs = _first_layer(way)
        layer = way.model.get_submodule(name)
        self.place, self.part = (0.0, 0.0), 0
        self._outputs = []
        directions = [
            _of_layer(way, name, plane.origin, moved=False),
            _of_layer(way, name, plane.first, moved=True),
            _of_layer(way, name, plane.second, moved=True),
        ]
        for number in range(len(way.parts)):
            given = inputs(number)
            outputs = [functional_call(layer, values, (given,)) for values in directions]
            self._outputs.append(outputs)
            if 3 * len(way.parts) * outputs[0].numel() > _MOST_NUMBERS:
                raise ValueError("the outputs of the first layer are too large to be kept")
        self._row: dict[int, tuple[float, Tensor]] = {}
        layer.forward = self._combined

    def _combined(self, _: Tensor) -> Tensor:
        a, b = self.place
        origin, first, second = self._outputs[self.part]
        kept = self._row.get(self.part)
        if kept is None or kept[0] != b:  # the same along a row of the grid
            kept = self._row[self.part] = (b, torch.add(origin, second, alpha=b))
        return torch.add(kept[1], first, alpha=a)


def _first_layer(way: OneAtATime) -> tuple[str, Callable[[int], Tensor]]:
    """The linear layer that is called first, if its inputs are the same whatever the weights are."""
    seen = [_calls(way, place) for place in ((0.0, 0.0), (0.5, 0.25))]
    if not seen[0] or len(seen[0]) % len(way.parts):
        raise ValueError("no layer with weights is called")
    name, given = seen[0][0]
    each = len(seen[0]) // len(way.parts)
    calls_of_it = [call for call in seen[0] if call[0] == name]
    layer = way.model.get_submodule(name)
    if type(layer) not in LINEAR or layer._forward_hooks or layer._forward_pre_hooks:
        raise ValueError("the first layer with weights is not a plain linear one")
    if len(calls_of_it) != len(way.parts) or not torch.equal(given, seen[1][0][1]):
        raise ValueError("the first layer is called several times, or its inputs depend on the weights")
    shared = [n for n, p in way.model.named_parameters(remove_duplicate=False) for q in layer.parameters() if p is q]
    if len(shared) != len(list(layer.parameters())):
        raise ValueError("the weights of the first layer are used elsewhere too")
    return name, lambda number: seen[0][number * each][1]


def _calls(way: OneAtATime, place: tuple[float, float]) -> list[tuple[str, Tensor]]:
    """Modules with weights of their own in the order in which they are called at a place, and what they are given."""
    calls: list[tuple[str, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(partial(_note, calls, name))
        for name, module in way.model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    try:
        way.losses([place])
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _note(calls: list[tuple[str, Tensor]], name: str, _: nn.Module, given: tuple[Any, ...]) -> None:
    calls.append((name, given[0]))


def _of_layer(way: OneAtATime, name: str, flat: Tensor, *, moved: bool) -> dict[str, Tensor]:
    """What flat weights, or with ``moved`` a direction, hold of a layer; weights that are not trained do not move."""
    probe = way.probe
    parts = torch.split(flat, [math.prod(shape) for shape in probe.shapes])
    trained = {n: part.reshape(shape) for n, part, shape in zip(probe.names, parts, probe.shapes, strict=True)}
    values = {}
    for own, parameter in way.model.get_submodule(name).named_parameters():
        still = torch.zeros_like(parameter) if moved else parameter.detach()
        values[own] = trained.get(f"{name}.{own}" if name else own, still)
    return values
