"""Small edits of a model: replace, insert, wrap. Each changes the module it is given and returns it, or a wrapper."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

_FEWEST_NORMAL = 32
NONE: Mapping[str, int] = MappingProxyType({})
"""Of no parameter."""


def leaves_in_order(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules without children by name, in the order they were registered."""
    return [(name, module) for name, module in model.named_modules() if not any(module.children())]


class Wrapped(nn.Module):
    """A model with something before it or behind it.

    Names of modules are looked up inside, so that an edit by name is the same with and without the wrapper. A model
    that takes several things is given them as it always was, or as a tuple.
    """

    def __init__(self, model: nn.Module, before: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.before, self.wrapped_model, self.after = before, model, after

    def forward(self, *given: Any, **named: Any) -> Any:
        if self.before is not None:
            several = tuple(item for item in (*given, *named.values()) if isinstance(item, Tensor))
            given, named = (self.before(given[0] if len(given) == 1 and not named else several),), {}
        found = self.wrapped_model(*given, **named)
        return found if self.after is None else self.after(found)

    def get_submodule(self, target: str) -> nn.Module:
        """A module by its name, with or without the wrapper's part of it."""
        own = target.partition(".")[0] in ("", "before", "after", "wrapped_model")
        return super().get_submodule(target) if own else self.wrapped_model.get_submodule(target)


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


def new_linear(like: nn.Linear, outputs: int) -> nn.Linear:
    """A fresh layer of another width in the place of one."""
    made = nn.Linear(like.in_features, outputs, bias=like.bias is not None)
    return made.to(like.weight.device, like.weight.dtype if like.weight.is_floating_point() else torch.float32)


def has(model: nn.Module, name: str) -> bool:
    """Whether there is a module of this name: an earlier remedy may have replaced what it was in."""
    return any(bare(name) == known for known, _ in core(model).named_modules())


def followed_by(model: nn.Module, names: Sequence[str], activation: Callable[[], nn.Module]) -> nn.Module:
    """The model with an activation behind each of these modules."""
    for name in names:
        if has(model, name):
            model = replaced(model, name, lambda module: nn.Sequential(module, activation()))
    return model


def swapped(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], by: Callable[[], nn.Module], keep: Sequence[str] = ()
) -> nn.Module:
    """The model with every module of these kinds replaced by a new one, but those named in ``keep``."""
    kept = {bare(name) for name in keep}
    found = leaves_in_order(core(model))
    for name in [name for name, module in found if isinstance(module, kinds) and name not in kept]:
        model = replaced(model, name, lambda _: by())
    return model


@contextmanager
def _undrawn() -> Iterator[None]:
    """What is drawn inside follows from the random state, which is put back: nobody else's numbers change."""
    with torch.random.fork_rng(devices=[]):
        yield


def _drawn_again(module: nn.Module) -> None:
    """PyTorch's own first weights, where a module has such."""
    if isinstance(module, nn.MultiheadAttention):
        module.out_proj.reset_parameters()
    again = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(again):
        again()


def reset(model: nn.Module, names: Sequence[str], loose: Mapping[str, int] = NONE) -> nn.Module:
    """The model with PyTorch's own first weights in these modules, and ones of that size in parameters of no module.

    Args:
        loose: of such parameters the dimension that is summed over, by which their size goes; 0 where none is given.
    """
    with _undrawn():
        for name, module in core(model).named_modules():
            if name in names:
                _drawn_again(module)
        for name, parameter in core(model).named_parameters():
            if name in names:
                nn.init.normal_(parameter, 0.0, (1 / 3 / parameter.shape[loose.get(name, 0)]) ** 0.5)
    return model


@torch.no_grad()
def he(model: nn.Module, names: Sequence[str], loose: Mapping[str, int] = NONE) -> nn.Module:
    """The model with He's first weights and zero biases in these layers, and such parameters of no module.

    Deviation sqrt(2 / fan_in) keeps the size of a signal through ReLU (He et al., 2015, arXiv:1502.01852). Rows of a
    table of embeddings get the length one.
    """
    with _undrawn():
        for name, module in core(model).named_modules():
            if name in names and isinstance(module, nn.MultiheadAttention):
                _drawn_again(module)
            elif name in names and isinstance(module, (nn.Linear, _ConvNd)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif name in names and isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, 0.0, module.embedding_dim**-0.5)
        for name, parameter in core(model).named_parameters():
            if name in names:
                nn.init.normal_(parameter, 0.0, (2 / parameter.shape[loose.get(name, 0)]) ** 0.5)
    return model


@torch.no_grad()
def orthogonal(model: nn.Module) -> nn.Module:
    """The model with PyTorch's own first weights in its recurrent layers, and orthogonal ones from step to step.

    An orthogonal matrix keeps the length of what it multiplies, however often (Saxe et al., 2014, arXiv:1312.6120).
    ReLU throws away what it turns below zero: there it is the identity (Le et al., 2015, arXiv:1504.00941).
    """
    with _undrawn():
        for module in model.modules():
            if isinstance(module, nn.RNNBase):
                module.reset_parameters()
                gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
                draw = nn.init.eye_ if module.mode == "RNN_RELU" else nn.init.orthogonal_
                for name, parameter in module.named_parameters():
                    if name.startswith("weight_hh"):
                        parameter.copy_(torch.cat([draw(block.clone()) for block in parameter.chunk(gates)]))
    return model


@torch.no_grad()
def keeping(model: nn.Module) -> nn.Module:
    """The model with PyTorch's own first weights in its gated layers, and gates that keep the past half as wide again.

    A forget gate with a bias of 1 is open by .73 (Jozefowicz et al., 2015); the same of the gate z of a GRU.
    """
    with _undrawn():
        for module in model.modules():
            if isinstance(module, nn.RNNBase) and module.mode in ("LSTM", "GRU"):
                module.reset_parameters()
                for name, parameter in module.named_parameters():
                    if name.startswith("bias_ih"):
                        parameter[module.hidden_size : 2 * module.hidden_size] = 1.0
    return model


def widened(model: nn.Module, name: str, following: str, width: int) -> nn.Module:
    """The model with more units in a layer; the layer that reads it, and a normalisation in between, grow with it."""
    if not has(model, name) or not has(model, following):
        return model
    first, second = model.get_submodule(name), model.get_submodule(following)
    with _undrawn():
        if isinstance(first, nn.Linear) and isinstance(second, nn.Linear) and second.in_features == first.out_features:
            old = first.out_features
            model = replaced(model, name, lambda _: new_linear(first, width))
            wider = nn.Linear(width, second.out_features, bias=second.bias is not None)
            model = replaced(model, following, lambda _: wider.to(second.weight.device, second.weight.dtype))
        elif isinstance(first, _ConvNd) and isinstance(second, _ConvNd) and first.groups == second.groups == 1:
            old = first.out_channels
            model = replaced(model, name, lambda _: _new_convolution(first, first.in_channels, width))
            model = replaced(model, following, lambda _: _new_convolution(second, width, second.out_channels))
        elif isinstance(first, _ConvNd) and isinstance(second, nn.Linear) and first.groups == 1:
            old = first.out_channels
            positions = second.in_features // old
            model = replaced(model, name, lambda _: _new_convolution(first, first.in_channels, width))
            wider = nn.Linear(positions * width, second.out_features, bias=second.bias is not None)
            model = replaced(model, following, lambda _: wider.to(second.weight.device, second.weight.dtype))
        elif isinstance(first, (nn.RNNBase, nn.Embedding)) and isinstance(second, nn.Linear):
            old, count = second.in_features, directions(first)
            model = replaced(model, name, lambda _: _wider(first, width))
            wider = nn.Linear(count * width, second.out_features, bias=second.bias is not None)
            model = replaced(model, following, lambda _: wider.to(second.weight.device, second.weight.dtype))
        else:
            return model
        return _grown_between(model, name, following, old, width)


def directions(module: nn.Module) -> int:
    """How often a layer gives what its width says: twice where it reads a sequence from both ends."""
    return 2 if getattr(module, "bidirectional", False) else 1


def _wider(like: nn.RNNBase | nn.Embedding, width: int) -> nn.Module:
    """A fresh recurrent layer or table of embeddings of another width."""
    if isinstance(like, nn.Embedding):
        made: nn.Module = nn.Embedding(like.num_embeddings, width, like.padding_idx)
        return made.to(like.weight.device, like.weight.dtype)
    names = ("num_layers", "bias", "batch_first", "dropout", "bidirectional", "nonlinearity")
    kind: Any = type(like)
    made = kind(like.input_size, width, **{name: getattr(like, name) for name in names if hasattr(like, name)})
    return made.to(next(like.parameters()).device, next(like.parameters()).dtype)


def _new_convolution(like: _ConvNd, inputs: int, outputs: int) -> nn.Module:
    make: Any = type(like)
    made: nn.Module = make(
        inputs,
        outputs,
        like.kernel_size,
        stride=like.stride,
        padding=like.padding,
        dilation=like.dilation,
        bias=like.bias is not None,
        padding_mode=like.padding_mode,
    )
    return made.to(like.weight.device, like.weight.dtype)


def _grown_between(model: nn.Module, name: str, following: str, old: int, width: int) -> nn.Module:
    order = [known for known, _ in leaves_in_order(core(model))]
    for between in order[order.index(bare(name)) + 1 : order.index(bare(following))]:
        module = model.get_submodule(between)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.num_features == old:
            grown = type(module)(width, module.eps, module.momentum, module.affine, module.track_running_stats)
            model = replaced(model, between, lambda _, grown=grown: grown)  # type: ignore[misc]
        elif isinstance(module, nn.LayerNorm) and module.normalized_shape == (old,):
            layer_norm = nn.LayerNorm(width, module.eps, module.elementwise_affine)
            model = replaced(model, between, lambda _, grown=layer_norm: grown)  # type: ignore[misc]
    return model


def with_dropout(model: nn.Module, scale: float) -> nn.Module:
    """The model with every dropout's probability multiplied."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p *= scale
        elif isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
            module.dropout *= scale
    return model


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
            for one in _tensors_in(value):
                found.setdefault(id(one), (f"{prefix}.{name}" if prefix else name, one))
    registered = {id(t) for t in (*model.parameters(), *model.buffers())}
    return [place for known, place in found.items() if known not in registered]


def _tensors_in(value: Any) -> Iterator[Tensor]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    yield from (one for one in (value, *islice(inner, 1000)) if isinstance(one, Tensor))


def with_parameters(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """The model with the tensors of these attributes, alone or in plain lists and dicts, as parameters."""
    inside = core(model)
    for name in names:
        prefix, _, attribute = name.rpartition(".")
        owner = inside.get_submodule(prefix)
        value = vars(owner).get(attribute)
        if isinstance(value, Tensor):
            setattr(owner, attribute, nn.Parameter(value.detach().clone()))
        elif isinstance(value, (list, tuple)):
            setattr(owner, attribute, nn.ParameterList(nn.Parameter(t.detach().clone()) for t in _tensors_in(value)))
        elif isinstance(value, dict):
            held = {key: nn.Parameter(t.detach().clone()) for key, t in value.items() if isinstance(t, Tensor)}
            setattr(owner, attribute, nn.ParameterDict(held))
    return model


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
