"""Small edits of a model: replace, insert, wrap. Each changes the module it is given and returns it, or a wrapper."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def leaves_in_order(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules without children by name, in the order they were registered."""
    return [(name, module) for name, module in model.named_modules() if not any(module.children())]


def replaced(model: nn.Module, name: str, by: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The model with the module of this name replaced by what ``by`` makes of it."""
    if not name:
        return by(model)
    parent_name, _, child = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    setattr(parent, child, by(parent.get_submodule(child)))
    return model


def without_last(model: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> nn.Module:
    """The model with the last module of a kind replaced by the identity.

    Raises:
        LookupError: there is none.
    """
    names = [name for name, module in leaves_in_order(model) if isinstance(module, kind)]
    if not names:
        raise LookupError(f"no {kind} in the model")
    return replaced(model, names[-1], lambda _: nn.Identity())


class Affine(nn.Module):
    """``inputs * scale + shift`` along one dimension, with fixed numbers that are saved with the weights."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.to(self.scale.dtype) * self.scale + self.shift


def standardising(mean: Tensor, deviation: Tensor) -> Affine:
    """``(inputs - mean) / deviation``."""
    return Affine(1 / deviation, -mean / deviation)


def last_linear(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The last layer with weights, by order of registration."""
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    return found[-1] if found else None


def new_linear(like: nn.Linear, outputs: int) -> nn.Linear:
    """A fresh layer of another width in the place of one."""
    made = nn.Linear(like.in_features, outputs, bias=like.bias is not None)
    return made.to(like.weight.device, like.weight.dtype if like.weight.is_floating_point() else torch.float32)


def hidden_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules that a model keeps where PyTorch does not look: in plain lists, tuples and dicts among its attributes.

    >>> model = nn.Linear(1, 1)
    >>> model.extra = [nn.Linear(1, 2)]
    >>> hidden_modules(model)
    [('extra[0]', Linear(in_features=1, out_features=2, bias=True))]
    """
    registered = set(model.modules())
    found: dict[nn.Module, str] = {}
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if name.startswith("_") and name in vars(nn.Module()):
                continue
            place = f"{prefix}.{name}" if prefix else name
            for where, inner in _modules_in(value, place, 0):
                if inner not in registered:
                    found.setdefault(inner, where)
    return [(name, module) for module, name in found.items()]


def _modules_in(value: object, place: str, depth: int) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module) and depth:
        yield place, value
    elif isinstance(value, (list, tuple)) and depth < 3 and len(value) <= 1000:
        for k, item in enumerate(value):
            yield from _modules_in(item, f"{place}[{k}]", depth + 1)
    elif isinstance(value, dict) and depth < 3 and len(value) <= 1000:
        for key, item in value.items():
            yield from _modules_in(item, f"{place}[{key!r}]", depth + 1)


def frozen_as_drawn(model: nn.Module) -> list[str]:
    """Names of the layers that ask for no gradient and hold the weights they were made with."""
    return [name for name, module in model.named_modules() if _is_frozen(module) and as_drawn(module)]


def _is_frozen(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return bool(own) and all(not p.requires_grad for p in own)


def as_drawn(module: nn.Module) -> bool:
    """Whether the weights are uniform in +-1/sqrt(fan_in), as PyTorch draws those of linear and convolution layers.

    The largest of n such weights lies within a few n-ths of the bound and never above it; their deviation is the bound
    over sqrt(3), with a standard error of 1/sqrt(5 n) of itself. A layer that learned has
    left the bound at some weight.
    """
    if not isinstance(module, (nn.Linear, _ConvNd)):
        return False
    weight = module.weight.detach().double()
    fan_in = weight[0].numel()
    bound, count = 1 / math.sqrt(max(1, fan_in)), weight.numel()
    if count < 8 or not bool(torch.isfinite(weight).all()) or float(weight.abs().max()) > bound * 1.000001:
        return False
    spread = float(weight.square().mean().sqrt()) / (bound / math.sqrt(3))
    return abs(spread - 1) < 4 / math.sqrt(5 * count) and float(weight.abs().max()) > bound * (1 - 12 / count)
