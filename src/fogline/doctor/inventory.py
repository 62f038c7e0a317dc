"""What a model is made of: parts that it does not register, and weights as they were drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

_FEWEST_NORMAL = 32


def leaves_in_order(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules without children by name, in the order they were registered."""
    return [(name, module) for name, module in model.named_modules() if not any(module.children())]


def hidden_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules that a model keeps where PyTorch does not look: in plain lists, tuples and dicts among its attributes.

    >>> model = nn.Linear(1, 1)
    >>> model.extra = [nn.Linear(1, 2)]
    >>> hidden_modules(model)
    [('extra[0]', Linear(in_features=1, out_features=2, bias=True))]
    """
    registered, of_every_module = set(model.modules()), set(vars(nn.Module()))
    found: dict[nn.Module, str] = {}
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if name in of_every_module:
                continue
            place = f"{prefix}.{name}" if prefix else name
            for where, inner in _modules_in(value, place, 0):
                if inner not in registered:
                    found.setdefault(inner, where)
    return [(name, module) for module, name in found.items()]


def hidden_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Tensors that ask for a gradient and are no parameters: attributes, alone or in plain lists and dicts.

    >>> model = nn.Linear(1, 1)
    >>> model.scale = torch.ones(2, requires_grad=True)
    >>> hidden_tensors(model)
    [('scale', tensor([1., 1.], requires_grad=True))]
    """
    return [(name, tensor) for name, tensor in loose_tensors(model) if tensor.is_leaf and tensor.requires_grad]


def loose_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Tensors that are neither parameters nor buffers: attributes, alone or in plain lists and dicts, once each."""
    of_every_module = set(vars(nn.Module()))
    found: dict[int, tuple[str, Tensor]] = {}
    for prefix, module in model.named_modules():
        own = [(name, value) for name, value in vars(module).items() if name not in of_every_module]
        for name, value in own:
            for one in tensors_in(value):
                found.setdefault(id(one), (f"{prefix}.{name}" if prefix else name, one))
    registered = {id(t) for t in (*model.parameters(), *model.buffers())}
    return [place for known, place in found.items() if known not in registered]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The value, if it is a tensor, and those in a plain list or dict."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    yield from (one for one in (value, *islice(inner, 1000)) if isinstance(one, Tensor))


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


def frozen_noise(model: nn.Module) -> list[str]:
    """Names of the embeddings that ask for no gradient and hold normal noise of any size."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _is_frozen(module):
            weight = module.weight.detach().double()
            rows = weight[(weight != 0).any(1)]
            if len(rows) and _standard_normal(rows / rows.square().mean().sqrt()):
                found.append(name)
    return found


def alike(module: nn.Module) -> bool:
    """Whether all units of a layer have the same weights, but for the rounding of a few steps."""
    if not isinstance(module, (nn.Linear, _ConvNd, nn.RNNBase)):
        return False
    gates = {"LSTM": 4, "GRU": 3}.get(getattr(module, "mode", ""), 1)
    weight = next((p for name, p in module.named_parameters(recurse=False) if name.startswith("weight")), None)
    if weight is None:  # it is made of others at every use, as under spectral normalisation
        return False
    blocks = weight.detach().flatten(1).chunk(gates)
    slack = 1e-5 * float(weight.detach().abs().max())
    if len(blocks[0]) < 2 or not math.isfinite(slack):  # what overflowed says nothing
        return False
    return all(float((block - block[0]).abs().max()) <= slack for block in blocks)


def alike_matrix(weight: Tensor) -> bool:
    """Whether all rows of a matrix are the same, or all columns, but for the rounding of a few steps, and none is 0."""
    values = weight.detach()
    if values.ndim != 2 or min(values.shape) < 2 or not bool(values.any()) or not bool(torch.isfinite(values).all()):
        return False
    slack = 1e-5 * float(values.abs().max())
    return any(float((side - side[:1]).abs().max()) <= slack for side in (values, values.T))


def _standard_normal(weight: Tensor) -> bool:
    """Whether numbers have the first moments of a standard normal law, within four standard errors; not rows of 0."""
    values = weight[(weight != 0).any(1)].double().flatten() if weight.ndim == 2 else weight.double().flatten()
    count = values.numel()
    if count < _FEWEST_NORMAL:
        return False
    moments = ((values.mean(), 0.0, 1.0), (values.square().mean(), 1.0, 2.0), (values.pow(4).mean(), 3.0, 96.0))
    return all(abs(float(found) - usual) < 4 * math.sqrt(variance / count) for found, usual, variance in moments)


def as_drawn(module: nn.Module) -> bool:
    """Whether the weights are uniform within PyTorch's bound, as it draws those of linear, convolution and RNN layers,
    or normal with deviation 1, as those of embeddings.

    The bound is 1/sqrt(fan_in), and 1/sqrt(hidden_size) in an RNN. The largest of n such weights lies within a few
    n-ths of the bound and never above it; their deviation is the bound over sqrt(3), with a standard error of
    1/sqrt(5 n) of itself. A layer that learned has left the bound at some weight.
    """
    if isinstance(module, nn.Embedding):
        return _standard_normal(module.weight.detach())
    if isinstance(module, nn.RNNBase):
        bound, weights = 1 / math.sqrt(module.hidden_size), [p.detach() for p in module.parameters(recurse=False)]
    elif isinstance(module, (nn.Linear, _ConvNd)) and not is_parametrized(module):
        bound, weights = 1 / math.sqrt(max(1, module.weight[0].numel())), [module.weight.detach()]
    else:
        return False
    weight = torch.cat([w.double().flatten() for w in weights])
    count, largest = weight.numel(), float(weight.abs().max()) if weight.numel() else 0.0
    if count < 8 or not largest <= bound * 1.000001:
        return False
    spread = float(weight.square().mean().sqrt()) / (bound / math.sqrt(3))
    return abs(spread - 1) < 4 / math.sqrt(5 * count) and largest > bound * (1 - 12 / count)
