"""The end of a model: what its last layer can make it say, and edits of what comes behind that layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fogline.descent.objective import mode
from fogline.descent.randomness import private_randomness
from fogline.doctor.anatomy import Anatomy, Layer, inputs_of, own_product
from fogline.doctor.case import FAILURES
from fogline.doctor.ending import RANGES, end_of, without_end
from fogline.doctor.surgery import LayerOutput, Wrapped, new_linear, replaced

Edit = Callable[[nn.Module], nn.Module]
Maker = Callable[[], nn.Module]

MODULES: dict[str, tuple[type[nn.Module], ...]] = {
    "softmax": (nn.Softmax, nn.Softmax2d), "log_softmax": (nn.LogSoftmax,), "sigmoid": (nn.Sigmoid,),
    "tanh": (nn.Tanh,), "relu": (nn.ReLU, nn.Threshold), "leaky_relu": (nn.LeakyReLU,),
    "elu": (nn.ELU, nn.SELU, nn.CELU),
    "gelu": (nn.GELU,), "silu": (nn.SiLU,), "softplus": (nn.Softplus,), "hardtanh": (nn.Hardtanh, nn.ReLU6),
    "hardsigmoid": (nn.Hardsigmoid,), "log_sigmoid": (nn.LogSigmoid,), "hardswish": (nn.Hardswish,),
}  # fmt: skip
"""Modules that do what autograd's graph was seen to do at the end."""
FAR = 1e4
"""An answer of the last layer that no bend tells from infinity: exp(-1e4) is 0 in double precision."""
SCALES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0, FAR)
_MOST_UNITS = 32
_WHOLE = 1e-4  # that shares may miss


def bend(anatomy: Anatomy) -> str:
    """The operation the model ends in, by the field's name; "" where that is a layer with weights."""
    return anatomy.head[0] if anatomy.head else ""


def last_layer(anatomy: Anatomy) -> Layer | None:
    """The layer with weights that the output is made of; None where it is made of more than what one layer says.

    It is called once, stands where autograd's graph has the last operation with weights, and if it says the same of
    every example so does the model.
    """
    if "last layer" not in anatomy.notes:
        anatomy.notes["last layer"] = _last_layer(anatomy)
    found: Layer | None = anatomy.notes["last layer"]
    return found


def _last_layer(anatomy: Anatomy) -> Layer | None:
    layer = anatomy.weighted[-1] if anatomy.weighted else None
    outputs = anatomy.outputs
    if layer is None or layer.output is None or not isinstance(outputs, Tensor) or not isinstance(anatomy.batch, tuple):
        return None
    once = sum(other.name == layer.name for other in anatomy.layers) == 1
    if not once or outputs.numel() != layer.output.numel() or not _is_last(layer, outputs):
        return None
    said = _said(anatomy, layer, torch.full_like(layer.output, 0.5))
    return layer if said is not None and bool((said == said[:1]).all()) else None


def _is_last(layer: Layer, outputs: Tensor) -> bool:
    own = None if layer.node is None else own_product(layer.node)
    node = outputs.grad_fn
    for _ in range(40):
        if node is None or node is own:
            return own is not None and node is own
        before = inputs_of(node)
        node = before[0] if before else None
    return False


def said_last(anatomy: Anatomy) -> Tensor | None:
    """What the last layer says of a batch; None where that is unknown.

    Where a model's answers are made of more, but the function is known that they end in, they stand for what that was
    given: numbers of the same shape.
    """
    layer = last_layer(anatomy)
    if layer is not None:
        return layer.output
    return anatomy.outputs.detach() if _ends_alone(anatomy) else None


def _ends_alone(anatomy: Anatomy) -> bool:
    """Whether one function that is known is all that bends behind whatever the answers are made of."""
    name, outputs = end_of(anatomy), anatomy.outputs
    if len(anatomy.head) != 1 or name not in _FUNCTIONS or not isinstance(outputs, Tensor):
        return False
    shared = {"softmax": outputs.detach(), "log_softmax": outputs.detach().exp()}.get(name)
    return shared is None or bool(((shared.sum(-1 if outputs.ndim < 3 else 1) - 1).abs() < _WHOLE).all())


def answers(anatomy: Anatomy, said: Tensor) -> Tensor | None:
    """What the model puts out if its last layer says this, row by row; None where that cannot be asked."""
    layer = last_layer(anatomy)
    if layer is None:
        return _FUNCTIONS[end_of(anatomy)](said) if _ends_alone(anatomy) else None
    tail = _tail(anatomy, layer)
    return _said(anatomy, layer, said) if tail is None else tail(said)


def _tail(anatomy: Anatomy, layer: Layer) -> Callable[[Tensor], Tensor] | None:
    """What comes behind the last layer, where it is but a bend that is known: it saves running the model."""
    if "tail" not in anatomy.notes:
        assert layer.output is not None
        end, shape = anatomy.outputs.detach(), anatomy.outputs.shape[1:]
        bent: Callable[[Tensor], Tensor] | None = None
        if end.numel() == layer.output.numel() and len(end) == len(layer.output):
            fitted = layer.output.reshape(end.shape)
            if not anatomy.head and torch.equal(fitted, end):
                bent = torch.clone
            elif len(anatomy.head) == 1 and _is_bent(anatomy.head[0], layer.output, end):
                bent = _FUNCTIONS[anatomy.head[0]]
        anatomy.notes["tail"] = None if bent is None else lambda said: bent(said).reshape(len(said), *shape)
    tail: Callable[[Tensor], Tensor] | None = anatomy.notes["tail"]
    return tail


def _said(anatomy: Anatomy, layer: Layer, said: Tensor) -> Tensor | None:
    handle = layer.module.register_forward_hook(lambda module, given, found: said.to(found.dtype))
    try:
        with torch.no_grad(), mode(anatomy.model, training=False), private_randomness(torch.device("cpu")):
            found = anatomy.model(anatomy.batch[0])
    except FAILURES:
        return None
    finally:
        handle.remove()
    return found if isinstance(found, Tensor) else None


def reach(anatomy: Anatomy) -> tuple[float, float] | None:
    """The least and the greatest number the model can put out, by what its last layer is made to say.

    Where it hangs on more than a layer, by the function that it ends in. None where that is unknown, or the answers are
    not finite.
    """
    layer = last_layer(anatomy)
    if layer is None or layer.output is None:
        low, high = RANGES.get(end_of(anatomy), (None, None))
        return None if low is None else (low, FAR if high is None else high)
    low, high = float("inf"), -float("inf")
    for said in _sweeps(layer.output):
        found = answers(anatomy, said)
        if found is None or not bool(torch.isfinite(found).all()) or not found.numel():
            return None
        low, high = min(low, float(found.min())), max(high, float(found.max()))
    return low, high


def _sweeps(like: Tensor) -> Iterator[Tensor]:
    for size in (0.0, 1.0, 10.0, FAR):
        yield torch.full_like(like, size)
        yield torch.full_like(like, -size)
    if like.ndim > 1:
        for unit in range(min(_MOST_UNITS, like.shape[1])):
            one = torch.zeros_like(like)
            one[:, unit] = FAR
            yield one


def behind(anatomy: Anatomy, put: Maker = nn.Identity) -> Edit | None:
    """An edit that puts another module in the place of what bends behind the last layer; None where none can.

    A module is replaced by name. Where functions were called, the answer of the last layer is taken instead of the
    model's, if the model does nothing else to it than to bend each number by itself, or shares over a row.
    """
    named = _bending_module(anatomy)
    if named is not None:
        return lambda model: replaced(model, named, lambda _: put())
    layer = last_layer(anatomy)
    outputs = anatomy.outputs
    if layer is None and isinstance(outputs, Tensor):
        return without_end(anatomy, put)
    if layer is None or layer.output is None or not isinstance(outputs, Tensor) or outputs.shape != layer.output.shape:
        return None
    if not anatomy.head:
        if not torch.equal(outputs.detach(), layer.output):
            return None
        return lambda model: Wrapped(model, after=put())
    name, end = anatomy.head[0], outputs.detach()
    known = len(anatomy.head) == 1 and (
        _is_bent(name, layer.output, end) or _is_bent_over_another(name, layer.output, end)
    )
    if not known and not _each_alike(anatomy, layer, layer.output):
        return None
    return lambda model: LayerOutput(model, layer.name, put())


def _bending_module(anatomy: Anatomy) -> str | None:
    """The name of the module that bends last, if it is called there only."""
    if len(anatomy.head) != 1:
        return None
    for layer in reversed(anatomy.layers):
        if isinstance(layer.module, (nn.Linear, _ConvNd)):
            return None
        if isinstance(layer.module, MODULES.get(anatomy.head[0], ())):
            calls = sum(other.name == layer.name for other in anatomy.layers)
            return layer.name if calls == 1 and layer.name else None
    return None


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softplus": nn.functional.softplus,
    "softmax": lambda x: torch.softmax(x, -1 if x.ndim < 3 else 1),
    "log_softmax": lambda x: torch.log_softmax(x, -1 if x.ndim < 3 else 1),
    "exp": torch.exp,
    "abs": torch.abs,
}


def _is_bent(name: str, before: Tensor, after: Tensor) -> bool:
    if name not in _FUNCTIONS or before.shape != after.shape:
        return False
    return torch.allclose(_FUNCTIONS[name](before), after, rtol=1e-4, atol=1e-6)


def _each_alike(anatomy: Anatomy, layer: Layer, given: Tensor) -> bool:
    """Whether the model does the same to each number of its last layer by itself, whatever that is.

    Then numbers that change places are answered in their new places as they were in the old ones.
    """
    order = torch.randperm(given.numel(), generator=torch.Generator().manual_seed(0))
    mixed = given.reshape(-1)[order].reshape(given.shape)
    before, after = _said(anatomy, layer, given), _said(anatomy, layer, mixed)
    if before is None or after is None or before.shape != given.shape or after.shape != given.shape:
        return False
    return torch.allclose(before.reshape(-1)[order], after.reshape(-1), rtol=1e-4, atol=1e-6)


def _is_bent_over_another(name: str, before: Tensor, after: Tensor) -> bool:
    """Whether it is a softmax over rows or places."""
    over = {"softmax": torch.softmax, "log_softmax": torch.log_softmax}.get(name)
    dims = [dim for dim in range(before.ndim) if dim != 1] if over is not None else []
    return any(torch.allclose(over(before, dim), after, rtol=1e-4, atol=1e-6) for dim in dims if over is not None)


def widened(anatomy: Anatomy, outputs: int, put: Maker | None = None) -> Edit | None:
    """An edit that gives the last layer another number of outputs, and puts something behind it.

    What bent there before goes. None where it can neither be named nor passed by.
    """
    layer = last_layer(anatomy)
    if layer is None or not isinstance(layer.module, nn.Linear) or layer.output is None or layer.output.ndim != 2:
        return None
    name, bending = layer.name, _bending_module(anatomy) if anatomy.head else None
    if anatomy.head and bending is None and behind(anatomy) is None:
        return None

    def edit(model: nn.Module) -> nn.Module:
        model = replaced(model, name, lambda old: new_linear(_linear(old), outputs))
        if bending is not None:
            return replaced(model, bending, lambda _: nn.Identity() if put is None else put())
        if anatomy.head or put is not None:
            return LayerOutput(model, name, None if put is None else put())
        return model

    return edit


def _linear(module: nn.Module) -> nn.Linear:
    assert isinstance(module, nn.Linear)
    return module


def value(loss: Any, outputs: Any, targets: Any) -> float | None:
    """The loss as one number; None where it refuses, or is not finite."""
    try:
        with torch.no_grad():
            found = loss(outputs, targets)
            number = float(found.double().mean()) if isinstance(found, Tensor) else float(found)
    except FAILURES:
        return None
    return number if abs(number) < float("inf") else None
