"""The outputs of a first layer, computed once for all places of a plane."""

from __future__ import annotations

import math
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
        place: where the model is evaluated now.
    """

    def __init__(self, way: OneAtATime, plane: Plane) -> None:
        name, given = _first_layer(way)
        layer = way.model.get_submodule(name)
        self.place = (0.0, 0.0)
        directions = [
            _of_layer(way, name, plane.origin, moved=False),
            _of_layer(way, name, plane.first, moved=True),
            _of_layer(way, name, plane.second, moved=True),
        ]
        self._outputs = [functional_call(layer, values, (given,)) for values in directions]
        if 3 * self._outputs[0].numel() > _MOST_NUMBERS:
            raise ValueError("the outputs of the first layer are too large to be kept")
        self._row: tuple[float, Tensor] | None = None
        layer.forward = self._combined

    def _combined(self, _: Tensor) -> Tensor:
        a, b = self.place
        origin, first, second = self._outputs
        if self._row is None or self._row[0] != b:  # the same along a row of the grid
            self._row = b, torch.add(origin, second, alpha=b)
        return torch.add(self._row[1], first, alpha=a)


def _first_layer(way: OneAtATime) -> tuple[str, Tensor]:
    """The linear layer that is called first, and its inputs, if these are the same whatever the weights are."""
    seen = [_calls(way, place) for place in ((0.0, 0.0), (0.5, 0.25))]
    if not seen[0]:
        raise ValueError("no layer with weights is called")
    name, given = seen[0][0]
    calls_of_it = [call for call in seen[0] if call[0] == name]
    layer = way.model.get_submodule(name)
    if type(layer) not in LINEAR or layer._forward_hooks or layer._forward_pre_hooks:
        raise ValueError("the first layer with weights is not a plain linear one")
    if len(calls_of_it) != 1 or not torch.equal(given, seen[1][0][1]):
        raise ValueError("the first layer is called several times, or its inputs depend on the weights")
    shared = [n for n, p in way.model.named_parameters(remove_duplicate=False) for q in layer.parameters() if p is q]
    if len(shared) != len(list(layer.parameters())):
        raise ValueError("the weights of the first layer are used elsewhere too")
    return name, given


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
