"""A program taken apart on one batch: what flows through its layers, what flows back, and what stands between them.

The operations are read from autograd's own graph, so a softmax is found whether it is a module, a function or hidden in
somebody's loss.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fogline.data.source import Batch, cast, float_type, leaves
from fogline.descent.copies import copied
from fogline.descent.objective import Objective
from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.doctor.surgery import bare, core

CPU = torch.device("cpu")
LINEAR = ("Addmm", "Mm", "Convolution", "Baddbmm", "Bmm", "Linear", "MkldnnConvolution", "Addmv", "Mv")
"""Operations that are linear in their input where only one of their inputs is data."""
SHAPING = (
    "View", "Reshape", "ReshapeAlias", "T", "Transpose", "Permute", "Unsqueeze", "Squeeze", "Expand", "Slice", "Select",
    "Clone", "Cat", "Stack", "AsStrided", "UnsafeView", "Alias", "NativeDropout", "NativeBatchNorm", "CudnnBatchNorm",
    "ToCopy", "Neg", "Add", "Sub", "Mul", "Div", "Sum", "Mean", "AdaptiveAvgPool2D", "AvgPool2D", "Constant", "Flip",
    "Index", "Unbind", "Split", "Copy", "Feature", "MulScalar", "AddScalar",
)  # fmt: skip
"""Operations without a bend: with one data input, an affine function of it."""
BENDS = {
    "Relu": "relu", "LeakyRelu": "leaky_relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Softmax": "softmax",
    "LogSoftmax": "log_softmax", "Elu": "elu", "Selu": "elu", "Gelu": "gelu", "Silu": "silu", "Softplus": "softplus",
    "Hardtanh": "hardtanh", "Hardsigmoid": "hardsigmoid", "Clamp": "clamp", "ClampMin": "relu", "LogSigmoid":
    "log_sigmoid", "Exp": "exp", "Log": "log", "Threshold": "relu", "Sqrt": "sqrt", "Pow": "pow", "Abs": "abs",
    "HardtanhBackward": "hardtanh", "PreluKernel": "prelu", "Hardswish": "hardswish", "Mish": "mish",
}  # fmt: skip
"""Operations that bend, by the field's names."""
NO_TENSOR, NO_NUMBER = "no tensor: it has no graph", "is no single number"
"""What is said of losses that cannot be descended."""
_MOST_NODES = 2000


@dataclass(frozen=True)
class Layer:
    """One call of a module without children, in the order of the forward pass.

    Attributes:
        name, module: in the model examined, a copy; inside the wrappers that remedies put around it.
        received, output: what it was given and gave, detached; None where that was no single tensor.
        node: autograd's node of the output.
        gradient: of the loss with respect to the output; None where none reached it.
    """

    name: str
    module: nn.Module
    received: Tensor | None
    output: Tensor | None
    node: Any
    gradient: Tensor | None

    @property
    def rms(self) -> float:
        """Root mean square of the output."""
        return rms(self.output)


class Inside(dict[str, "Tensor | None"]):
    """Gradients by the names of parameters, with or without the part of a name that a wrapper around the model adds."""

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(bare(key), default)

    def __getitem__(self, key: str) -> Tensor | None:
        return super().__getitem__(bare(key))

    def __contains__(self, key: object) -> bool:
        return super().__contains__(bare(key) if isinstance(key, str) else key)


@dataclass
class Anatomy:
    """What was seen.

    Attributes:
        model: the copy that was examined, its weights untouched.
        outputs: of the model, with their graph; None for ``on_batch`` work or after a failure.
        loss: its value; None after a failure.
        stage: "" or where it failed: "forward", "loss", "backward"; ``error`` is the exception's text.
        layers: calls of modules without children, in order.
        gradients: of each trainable parameter by name; None where the loss does not depend on it.
        frozen: parameters that ask for no gradient.
        head: operations from the output back to the last layer with weights, by the field's names ("softmax", ...).
        in_loss: operations between the loss and the output, the last first.
        pairs: neighbouring layers with weights, by name, between which nothing bends.
        notes: what was found out on the way and need not be found out again.
    """

    model: nn.Module
    batch: Batch
    outputs: Any = None
    loss: float | None = None
    stage: str = ""
    error: str = ""
    layers: list[Layer] = field(default_factory=list)
    gradients: dict[str, Tensor | None] = field(default_factory=Inside)
    frozen: list[str] = field(default_factory=list)
    head: tuple[str, ...] = ()
    in_loss: tuple[str, ...] = ()
    pairs: list[tuple[str, str]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters by their names inside the model's wrappers, as :attr:`gradients` has them."""
        return [(bare(name), parameter) for name, parameter in self.model.named_parameters()]

    def named_modules(self) -> list[tuple[str, nn.Module]]:
        """Modules of the model inside its wrappers, by name."""
        return list(core(self.model).named_modules())

    @property
    def weighted(self) -> list[Layer]:
        """The linear and convolution layers, in order."""
        return [layer for layer in self.layers if isinstance(layer.module, (nn.Linear, _ConvNd))]


def rms(value: Tensor | None) -> float:
    """Root mean square; 0 where there is nothing."""
    return 0.0 if value is None or not value.numel() else float(value.detach().double().square().mean().sqrt())


def same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers in the same order, whatever their shapes."""
    return one.numel() == other.numel() and torch.equal(one.detach().flatten(), other.detach().flatten())


def dissect(model: nn.Module, loss: Any, batch: Batch, seed: int = 0) -> Anatomy:
    """Run model, loss and gradient once on a batch, in training mode, on a copy.

    Exceptions of the program become ``stage`` and ``error``.
    """
    model = copied(getattr(model, "_orig_mod", model)).train()
    floats = float_type(model)
    found = Anatomy(model, cast(batch, floats))
    found.frozen = [bare(name) for name, p in model.named_parameters() if not p.requires_grad]
    calls: list[tuple[str, nn.Module, Any, Any]] = []
    handles = [
        module.register_forward_hook(lambda m, a, o, name=name: calls.append((name, m, a, o)))
        for name, module in core(model).named_modules()
        if not any(module.children())
    ]
    with private_randomness(CPU), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PyTorch warns of is examined here
        seed_step(seed, 0, PROBE, CPU)
        try:
            _run(found, Objective(model, loss), calls)
        finally:
            for handle in handles:
                handle.remove()
    return found


def _run(found: Anatomy, objective: Objective, calls: list[tuple[str, nn.Module, Any, Any]]) -> None:
    found.stage = "forward"
    try:
        if objective.supervised:
            inputs, targets = found.batch
            found.outputs = objective.model(inputs)
            found.stage = "loss"
            loss = objective.loss(found.outputs, targets)  # type: ignore[operator]
        else:
            found.stage = "loss"
            loss = objective(found.batch)
    except Exception as error:  # noqa: BLE001 - the program's own, whatever it is
        found.error = str(error)
        found.layers = [_layer(call, None) for call in calls]
        _read_head(found)
        return
    named = [(bare(name), p) for name, p in found.model.named_parameters() if p.requires_grad]
    outputs = [call[3] for call in calls if isinstance(call[3], Tensor) and call[3].requires_grad]
    found.stage = "backward"
    try:
        if not isinstance(loss, Tensor):
            raise TypeError(f"the loss is a {type(loss).__name__} and {NO_TENSOR}")
        if loss.ndim:
            raise ValueError(f"the loss has shape {tuple(loss.shape)} and {NO_NUMBER}")
        gradients = torch.autograd.grad(loss, [*(p for _, p in named), *outputs], allow_unused=True, retain_graph=True)
    except Exception as error:  # noqa: BLE001 - the program's own, whatever it is
        found.error = str(error)
        found.loss = float(loss.detach().double().mean()) if isinstance(loss, Tensor) else None
        found.layers = [_layer(call, None) for call in calls]
        _read_head(found)
        return
    found.stage, found.loss = "", float(loss.detach())
    found.gradients = Inside(zip((name for name, _ in named), gradients, strict=False))
    back = {id(output): g for output, g in zip(outputs, gradients[len(named) :], strict=True)}
    found.layers = [_layer(call, back.get(id(call[3]))) for call in calls]
    _read_graph(found, loss)


def _layer(call: tuple[str, nn.Module, Any, Any], gradient: Tensor | None) -> Layer:
    name, module, args, output = call
    given = next((a.detach() for a in args if isinstance(a, Tensor)), None)
    single = output if isinstance(output, Tensor) else next(iter(leaves(output)), None)
    node = None if single is None else single.grad_fn
    return Layer(name, module, given, None if single is None else single.detach(), node, gradient)


def _read_head(found: Anatomy) -> None:
    output = found.outputs if isinstance(found.outputs, Tensor) else None
    if output is not None and output.grad_fn is not None:
        found.head = tuple(_names_until_linear(output.grad_fn))


def _read_graph(found: Anatomy, loss: Tensor) -> None:
    output = found.outputs if isinstance(found.outputs, Tensor) else None
    _read_head(found)
    if output is not None and output.grad_fn is not None:
        found.in_loss = tuple(_names_between(loss.grad_fn, output.grad_fn))
    elif output is None:
        found.in_loss = tuple(_names_until_linear(loss.grad_fn))
    owners = {layer.node: layer.name for layer in found.weighted if layer.node is not None}
    for layer in found.weighted:
        linear = None if layer.node is None else own_product(layer.node)
        before = None if linear is None else _linear_before(linear, owners)
        if before is not None:
            found.pairs.append((before, layer.name))


def until_linear(outputs: Tensor) -> tuple[str, ...]:
    """``Anatomy.head`` of outputs that are there already."""
    return tuple(_names_until_linear(outputs.grad_fn))


def operation(node: Any) -> str:
    """Name of an operation as autograd has it, without "Backward0"."""
    return str(node.name()).split("Backward")[0].split("::")[-1]


def inputs_of(node: Any) -> list[Any]:
    """The nodes of an operation's inputs that are data: not a parameter, nor a view of one."""
    return [before for before, _ in node.next_functions if before is not None and not _is_weight(before)]


def _is_weight(node: Any) -> bool:
    for _ in range(4):
        if operation(node) == "struct torch::autograd::AccumulateGrad" or "AccumulateGrad" in node.name():
            return True
        following = [n for n, _ in node.next_functions if n is not None]
        if len(following) != 1 or operation(node) not in ("T", "Transpose", "View", "Expand", "Permute", "ToCopy"):
            return False
        node = following[0]
    return False


def factors(outputs: Any) -> dict[int, tuple[int, int]]:
    """Of each matrix that something is multiplied with, by its ``id``: the dimension summed over, and how often.

    Matrices are parameters of two dimensions, as they are or turned.
    """
    queue, seen, found = (
        [outputs.grad_fn] if isinstance(outputs, Tensor) else [],
        set[Any](),
        dict[int, tuple[int, int]](),
    )
    while queue and len(seen) < _MOST_NODES:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        queue += [before for before, _ in node.next_functions]
        if operation(node) in ("Mm", "Addmm", "Bmm", "Baddbmm", "Mv", "Addmv"):
            for second, (before, _) in enumerate(node.next_functions[-2:]):
                matrix, turned = _matrix(before)
                if matrix is not None:
                    times = found.get(id(matrix), (0, 0))[1] + 1
                    found[id(matrix)] = (0 if bool(second) != turned else 1), times
    return found


def _matrix(node: Any) -> tuple[Tensor | None, bool]:
    """The parameter behind an operand, and whether it is turned on the way."""
    turned = False
    for _ in range(5):
        if node is None:
            break
        if "AccumulateGrad" in node.name():
            return (node.variable, turned) if node.variable.ndim == 2 else (None, False)
        if operation(node) not in ("T", "Transpose", "View", "UnsafeView", "Expand", "Permute", "Unsqueeze", "ToCopy"):
            break
        turned ^= operation(node) in ("T", "Transpose", "Permute")
        node = node.next_functions[0][0]
    return None, False


def has_weight(node: Any) -> bool:
    return any(before is not None and _is_weight(before) for before, _ in node.next_functions)


def _names_until_linear(node: Any) -> Iterator[str]:
    """Bends from the output back to the last operation with weights, along the first data input."""
    for _ in range(40):
        if node is None or (operation(node) in LINEAR and has_weight(node)):
            return
        if operation(node) in BENDS:
            yield BENDS[operation(node)]
        elif operation(node) not in SHAPING:
            yield operation(node)
        before = inputs_of(node)
        node = before[0] if before else None


def nodes_between(node: Any, end: Any) -> Iterator[Any]:
    """The operations from the loss back to the output, breadth first."""
    queue: list[Any] = [node]
    seen: set[Any] = set()
    while queue and len(seen) < 200:
        node = queue.pop(0)
        if node is None or node is end or node in seen:
            continue
        seen.add(node)
        yield node
        queue += [before for before, _ in node.next_functions]


def _names_between(node: Any, end: Any) -> Iterator[str]:
    return (BENDS.get(operation(found), operation(found)) for found in nodes_between(node, end))


def own_product(node: Any) -> Any:
    """The product inside a layer, behind its bias and reshaping."""
    for _ in range(6):
        if operation(node) in LINEAR:
            return node
        before = inputs_of(node)
        if len(before) != 1:
            return None
        node = before[0]
    return None


def _linear_before(product: Any, owners: dict[Any, str]) -> str | None:
    """The layer with weights whose output reaches this product through nothing that bends."""
    before = inputs_of(product)
    if len(before) != 1:
        return None
    node = before[0]
    for _ in range(30):
        if node in owners:
            own = own_product(node)
            if own is not None and len(inputs_of(own)) <= 1:
                return owners[node]
            if operation(node) not in SHAPING:
                return None
        elif operation(node) not in SHAPING:
            return None
        following = inputs_of(node)
        if len(following) != 1:
            return None
        node = following[0]
    return None
