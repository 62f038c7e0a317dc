"""Small edits of a model: replace, insert, wrap. Each changes the module it is given and returns it, or a wrapper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def leaves_in_order(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules without children by name, in the order they were registered."""
    return [(name, module) for name, module in model.named_modules() if not any(module.children())]


class Wrapped(nn.Module):
    """A model with something before it or behind it.

    Names of modules are looked up inside, so that an edit by name is the same with and without the wrapper.
    """

    def __init__(self, model: nn.Module, before: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.before, self.wrapped_model, self.after = before, model, after

    def forward(self, inputs: Any) -> Any:
        given = inputs if self.before is None else self.before(inputs)
        found = self.wrapped_model(given)
        return found if self.after is None else self.after(found)


class LayerOutput(Wrapped):
    """What a layer inside a model gives, in place of what the model makes of it, and something behind that."""

    def __init__(self, model: nn.Module, layer: str, after: nn.Module | None = None) -> None:
        super().__init__(model, after=after)
        self.layer = bare(layer)

    def forward(self, inputs: Any) -> Any:
        caught: list[Any] = []
        layer = core(self.wrapped_model).get_submodule(self.layer)
        handle = layer.register_forward_hook(lambda module, given, found: caught.append(found))
        try:
            self.wrapped_model(inputs)
        finally:
            handle.remove()
        return caught[-1] if self.after is None else self.after(caught[-1])


def core(model: nn.Module) -> nn.Module:
    """The model inside its wrappers."""
    while isinstance(model, Wrapped):
        model = model.wrapped_model
    return model


def bare(name: str) -> str:
    """The name of a module inside the wrappers."""
    while name.startswith("wrapped_model."):
        name = name.removeprefix("wrapped_model.")
    return name


def replaced(model: nn.Module, name: str, by: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The model with the module of this name replaced by what ``by`` makes of it."""
    inside, name = core(model), bare(name)
    if not name or name == "wrapped_model":
        return by(model)
    parent_name, _, child = name.rpartition(".")
    parent = inside.get_submodule(parent_name)
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
