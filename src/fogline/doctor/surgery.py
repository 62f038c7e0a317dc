"""Small edits of a model: replace, insert, wrap. Each changes the module it is given and returns it, or a wrapper."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fogline.doctor.inventory import leaves_in_order, tensors_in

NONE: Mapping[str, int] = MappingProxyType({})
"""Of no parameter."""


class Wrapped(nn.Module):
    """A model with something before it or behind it.

    Names of modules are looked up inside, so that an edit by name is the same with and without the wrapper. A model
    that takes several things is given them as it always was, or as a tuple. What it holds beside layers is read, and
    its own methods are called, as before: with this model in its place. Layers would be called without what stands
    before and behind.
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

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "wrapped_model" or name.startswith("__"):
                raise
            found = getattr(self.wrapped_model, name)
            if isinstance(found, MethodType) and found.__self__ is self.wrapped_model:
                return MethodType(found.__func__, self)
            if callable(found):
                raise
            return found

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
            setattr(owner, attribute, nn.ParameterList(nn.Parameter(t.detach().clone()) for t in tensors_in(value)))
        elif isinstance(value, dict):
            held = {key: nn.Parameter(t.detach().clone()) for key, t in value.items() if isinstance(t, Tensor)}
            setattr(owner, attribute, nn.ParameterDict(held))
    return model
