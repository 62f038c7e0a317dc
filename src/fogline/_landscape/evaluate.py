"""The loss at many places of a plane, in whichever of several ways is fastest here: that is measured.

Every way gives the loss of every place that it is asked for; the plain one, which any model can be evaluated by, is
the reference of the others, and one that disagrees with it is not used.

- *One at a time*: weights are written into the model's own parameters, the probe goes through whole or in parts that
  stay in the cache, images with their channels last and pooled by maxima. The first layer is the same linear function
  of its weights at every place, so its outputs at ``origin + a d1 + b d2`` are a combination of three that are
  computed once.
- *Side by side*: several copies of that, each with one processor.
- *Mapped*: ``vmap`` over places, for models so small that calling costs more than computing.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.stateless import _reparametrize_module  # functional_call without its signature

from fogline._landscape.directions import Plane
from fogline._landscape.probe import Probe
from fogline.data.losses import evaluated
from fogline.data.source import Batch, map_tree
from fogline.descent.batches import split

Place = tuple[float, float]

TOLERANCE = 1e-5
"""Two ways agree where their losses differ by less than this share of them."""
_ROUNDS = 2
_FEW = 64  # places that are not worth measuring
_SLOW = 5e-3  # seconds a place: calling is a small part of it
_WIDTHS = (8, 32)
_PARTS = (128, 256)
_KNOWN_NUMBERS = 2**25  # in the three outputs of a first layer that are kept: 128 MB in float32
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
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


class OneAtATime:
    """The weights of one place after another in a private copy of the model.

    Args:
        probe, plane: what is evaluated and where.
        size: of the parts in which the probe goes through; None for whole.
        channels_last: the layout of images.
        known: compute the first layer once.

    Raises:
        ValueError: the first layer is no linear one, or too large to be kept.
    """

    def __init__(
        self, probe: Probe, plane: Plane, *, size: int | None = None, channels_last: bool = False, known: bool = False
    ) -> None:
        self.name, self.width = described(size, channels_last=channels_last, known=known), 1
        self.again = partial(OneAtATime, probe, plane, size=size, channels_last=channels_last, known=known)
        self._last = channels_last
        self.probe = replace(probe, objective=replace(probe.objective, model=copy.deepcopy(probe.objective.model)))
        batch = map_tree(_channels_last, probe.batch) if channels_last else probe.batch
        self.parts: list[Batch] = [batch] if size is None else list(split(batch, size))
        self._origin, self._first, self._second = (
            self._laid(flat) for flat in (plane.origin, plane.first, plane.second)
        )
        self._weights = self._origin.clone()
        self._point_parameters_at(self._weights)
        if channels_last:
            _rearrange(self.model)
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
        """The loss with the weights as they are: of the whole probe, or of the outputs of its parts put together."""
        objective = self.probe.objective
        self.probe.seed_place()
        if len(self.parts) == 1:
            return objective(self.parts[0]).detach()
        outputs = []
        for number, (inputs, _) in enumerate(self.parts):
            if self._known is not None:
                self._known.part = number
            outputs.append(objective.model(inputs))
        loss: Tensor = evaluated(objective.loss, torch.cat(outputs), self.probe.batch[1])
        return loss.detach()

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
            if 3 * len(way.parts) * outputs[0].numel() > _KNOWN_NUMBERS:
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
    if type(layer) not in _LINEAR or layer._forward_hooks or layer._forward_pre_hooks:
        raise ValueError("the first layer with weights is not a plain linear one")
    if len(calls_of_it) != len(way.parts) or not torch.equal(given, seen[1][0][1]):
        raise ValueError("the first layer is called several times, or its inputs depend on the weights")
    shared = [n for n, p in way.model.named_parameters(remove_duplicate=False) for q in layer.parameters() if p is q]
    if len(shared) != len(list(layer.parameters())):
        raise ValueError("the weights of the first layer are used elsewhere too")
    return name, lambda number: seen[0][number * each][1]


def _calls(way: OneAtATime, place: Place) -> list[tuple[str, Tensor]]:
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


class Mapped:
    """Several places in one call, by ``vmap``."""

    def __init__(self, probe: Probe, plane: Plane, width: int) -> None:
        self.name, self.width = f"mapped, {width} at a time", width
        self.probe = replace(probe, objective=replace(probe.objective, model=copy.deepcopy(probe.objective.model)))
        sizes = [math.prod(shape) for shape in probe.shapes]
        split = [torch.split(flat, sizes) for flat in (plane.origin, plane.first, plane.second)]
        self._values = {
            name: tuple(part[k].reshape(shape) for part in split)
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
    whole = probe.normalised or not probe.objective.supervised  # the examples are looked at together
    found: dict[str, Callable[[], Way]] = {}
    for size in (None, *(() if whole else _PARTS)):
        for last in (False, True) if images else (False,):
            for known in (True, False):
                if size is None and not last and not known:
                    continue  # that is the plain way
                if images and not last and (size or not known):
                    continue  # never the fastest
                make = partial(OneAtATime, probe, plane, size=size, channels_last=last, known=known)
                found[described(size, channels_last=last, known=known)] = make
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


def described(size: int | None, *, channels_last: bool, known: bool) -> str:
    """The name of a way that takes one place at a time.

    >>> described(128, channels_last=True, known=False)
    'one at a time, in parts of 128, channels last'
    """
    words = ["one at a time"]
    words += [f"in parts of {size}"] if size else []
    words += ["channels last"] if channels_last else []
    words += ["first layer computed once"] if known else []
    return ", ".join(words)


def _channels_last(leaf: Tensor) -> Tensor:
    return leaf.contiguous(memory_format=torch.channels_last) if leaf.ndim == 4 else leaf


def _rearrange(model: nn.Module) -> None:
    """The same values for less: pooling by maxima of slices, half of the time of PyTorch's own; rectifiers in place
    after a linear layer, whose outputs nobody else sees; and after a pooling instead of before it.
    """
    for module in model.modules():
        if type(module) is nn.MaxPool2d and _numbers_of(module) == ((2, 2), (2, 2), (0, 0), (1, 1)):
            module.forward = partial(_maxima, module.forward)  # type: ignore[method-assign]
    counts = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for chain in model.modules():
        if type(chain) is not nn.Sequential:
            continue
        layers = list(chain)
        for k, layer in enumerate(layers):
            if k == 0 or type(layer) is not nn.ReLU or type(layers[k - 1]) not in _LINEAR or counts[id(layer)] > 1:
                continue
            layer.inplace = True
            if k + 1 < len(layers) and type(layers[k + 1]) is nn.MaxPool2d:
                chain[k], chain[k + 1] = layers[k + 1], layer


def _numbers_of(pool: nn.MaxPool2d) -> tuple[Any, ...]:
    asked = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    return tuple((value, value) if isinstance(value, int) else value for value in asked)


def _maxima(otherwise: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[2] % 2 or images.shape[3] % 2:
        return otherwise(images)
    wide = torch.maximum(images[..., ::2], images[..., 1::2])
    return torch.maximum(wide[:, :, ::2], wide[:, :, 1::2])


def _numbers(losses: Sequence[Tensor]) -> list[float]:
    """Plain numbers, in one transfer."""
    values: list[float] = torch.stack([loss.double() for loss in losses]).tolist()
    return values
