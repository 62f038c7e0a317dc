"""Copies of models, whatever their authors keep in them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn


def copied(model: nn.Module) -> nn.Module:
    """A copy of a model: what is done to it leaves the model alone.

    A module may keep tensors of its last forward pass (the divergence of a variational layer, the weights of an
    attention), which hang on a graph and which PyTorch therefore does not copy: the copy gets their values.

    >>> layer = nn.Linear(2, 1)
    >>> layer.penalty = layer.weight.square().sum()
    >>> twin = copied(layer)
    >>> twin.weight is layer.weight, bool(twin.penalty == layer.penalty), twin.penalty.requires_grad
    (False, True, False)
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in _kept(vars(module).values()):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # cuDNN wants the weights in one piece, and a copy has them in many
    return twin


def _kept(values: Iterable[Any]) -> Iterable[Tensor]:
    """The tensors among attributes, also those in lists, tuples and dictionaries of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _kept(value)
        elif isinstance(value, Mapping):
            yield from _kept(value.values())
