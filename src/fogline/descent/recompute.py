"""Activations that are computed again on the way back instead of being kept: memory for a second forward pass.

Gradient checkpointing (Chen et al., 2016, arXiv:1604.06174) by ``torch.utils.checkpoint``. Random numbers are those of
the first pass and buffers move once, so gradients, weights and running statistics have the bits they have without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

_FEWEST_LAYERS = 4  # of a plain sequence that is worth cutting

Forward = Callable[..., Any]


class Recomputing(AbstractContextManager[None]):
    """A model whose blocks keep their inputs only, while this is entered.

    Blocks are the members of a list or sequence of composite modules (the layers of a transformer, the blocks of a
    residual net), the innermost such list where they are nested; a plain sequence of ``n`` layers is cut into stretches
    of ``sqrt(n)``. The module itself is changed only while this is entered.

    >>> import torch
    >>> model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(9)))
    >>> recomputing = Recomputing(model)
    >>> recomputing.blocks
    2
    >>> with recomputing:
    ...     loss = model(torch.ones(1, 2)).sum()
    >>> loss.backward()
    """

    def __init__(self, model: nn.Module) -> None:
        self._forwards: list[tuple[nn.Module, Forward]] = []
        self.blocks = 0
        for module in _blocks(model):
            self._forwards.append((module, _kept_inputs(module, module.forward)))
            self.blocks += 1
        for sequence in [] if self._forwards else _sequences(model):
            stretches = _stretches(sequence)
            self._forwards.append((sequence, _in_stretches(stretches)))
            self.blocks += len(stretches) - 1  # the last one is turned back from at once

    def __enter__(self) -> None:
        for module, forward in self._forwards:
            module.__dict__["forward"] = forward

    def __exit__(self, *_: object) -> None:
        for module, _forward in self._forwards:
            del module.__dict__["forward"]


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the innermost lists of composite modules."""
    members = _composite(module)
    for child in module.children():
        if _has_list(child):
            yield from _blocks(child)
        elif child in members and "forward" not in vars(child):
            yield child


def _has_list(module: nn.Module) -> bool:
    return any(_composite(inner) for inner in module.modules())


def _composite(module: nn.Module) -> list[nn.Module]:
    """The members of a list or sequence that have parts with weights, where there are two or more."""
    if not isinstance(module, nn.ModuleList | nn.Sequential):
        return []
    found = [child for child in module if any(True for _ in child.children()) and any(True for _ in child.parameters())]
    return found if len(found) > 1 else []


def _sequences(model: nn.Module) -> list[nn.Sequential]:
    """Plain sequences of layers that are long enough."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and "forward" not in vars(module)
        and len(module) >= _FEWEST_LAYERS
    ]


def _stretches(sequence: nn.Sequential) -> list[list[nn.Module]]:
    layers = list(sequence)
    size = math.isqrt(len(layers) - 1) + 1
    return [layers[start : start + size] for start in range(0, len(layers), size)]


def _in_stretches(stretches: list[list[nn.Module]]) -> Forward:
    *first, last = [(_run(stretch), stretch) for stretch in stretches]

    def forward(value: Any) -> Any:
        for run, stretch in first:
            value = _checkpointed(run, stretch, value)
        return last[0](value)

    return forward


def _run(stretch: list[nn.Module]) -> Forward:
    def run(value: Any) -> Any:
        for layer in stretch:
            value = layer(value)
        return value

    return run


def _kept_inputs(module: nn.Module, forward: Forward) -> Forward:
    return lambda *inputs, **named: _checkpointed(forward, [module], *inputs, **named)


def _checkpointed(forward: Forward, modules: list[nn.Module], *inputs: Any, **named: Any) -> Any:
    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _buffers_left_alone(modules)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **named)


@contextmanager
def _buffers_left_alone(modules: list[nn.Module]) -> Iterator[None]:
    """Running statistics have moved in the first pass already: the second moves copies."""
    inner = [part for module in modules for part in module.modules() if part._buffers]
    kept = [(part, dict(part._buffers)) for part in inner]
    for part, buffers in kept:
        part._buffers.update({name: None if held is None else held.clone() for name, held in buffers.items()})
    try:
        yield
    finally:
        for part, buffers in kept:
            part._buffers.update(buffers)
