"""A graph with tensors rounded to integers, their ranges from data, and the graph that a runtime is given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fogline.edge.capture import Captured, Graph, copied, node_at, tensor_at
from fogline.edge.places import LINEAR, layers_of, take_apart, values_to_round
from fogline.edge.rounding import BiasRounding, Rounding
from fogline.errors import unknown


@dataclass(frozen=True)
class Grid:
    """The integers of a target.

    Attributes:
        least, most, dtype: of activations.
        weight_bits: bits of a weight; fewer than eight are kept in eight.
        bias: whether biases are 32-bit integers; else the runtime makes them so itself.
        closed: whether an integer kernel of a linear layer must give integers too, the last one as well.
    """

    least: int = 0
    most: int = 255
    dtype: torch.dtype = torch.uint8
    weight_bits: int = 8
    bias: bool = True
    closed: bool = False

    def activation(self) -> Rounding:
        return Rounding(self.least, self.most, self.dtype)

    def weight(self, values: Tensor) -> Rounding:
        """One scale for each output channel."""
        most = 2 ** (self.weight_bits - 1) - 1
        least = -most if self.weight_bits == 8 else -most - 1
        return Rounding(least, most, torch.int8, 0, values.shape[0])


UNSIGNED = Grid()
"""Activations of ONNX Runtime and OpenVINO: signed ones make their kernels on x86 slower than float."""
SIGNED = Grid(-128, 127, torch.int8, bias=False, closed=True)
"""Activations of ExecuTorch."""


@dataclass(frozen=True)
class Layer:
    """A layer that was quantized.

    Attributes:
        name: of the module that holds its weight.
        kind: convolution or linear.
        weight, inputs: what rounds them.
    """

    name: str
    kind: str
    weight: Rounding
    inputs: Rounding


class Quantized(Graph):
    """A graph with roundings in it, ready to be calibrated, trained and converted.

    While it is trained, ranges follow the data for the first ``settle_after`` passes and stay as they are after that,
    so that the last steps are taken on the grid that is shipped. The passes are counted in a buffer: a checkpoint keeps
    them with the ranges, and a resumed run goes on with the same bits.
    """

    seen: Tensor

    def __init__(self, graph: fx.GraphModule, most: int | None, layers: Sequence[Layer]) -> None:
        super().__init__(graph, most)
        self.settle_after = 0
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self._names = [(layer.name, layer.kind) for layer in layers]
        self._places = [(_place(self, layer.weight), _place(self, layer.inputs)) for layer in layers]

    @property
    def roundings(self) -> list[Rounding]:
        return [module for module in self.modules() if isinstance(module, Rounding)]

    @property
    def layers(self) -> list[Layer]:
        found = []
        for (name, kind), places in zip(self._names, self._places, strict=True):
            weight, inputs = (self.get_submodule(place) for place in places)
            assert isinstance(weight, Rounding)
            assert isinstance(inputs, Rounding)
            found.append(Layer(name, kind, weight, inputs))
        return found

    def forward(self, inputs: Tensor) -> object:  # (b, ...)
        if not self.training:
            return super().forward(inputs)
        self.observe(int(self.seen) < self.settle_after)
        self.seen += 1
        try:
            return super().forward(inputs)
        finally:
            self.observe(False)

    def observe(self, wanted: bool) -> None:
        """Let the ranges follow what passes through, or hold them."""
        for rounding in self.roundings:
            rounding.observing = wanted

    def round(self, wanted: Iterable[Rounding]) -> None:
        """Round in these places and in no other."""
        chosen = set(wanted)
        for rounding in self.roundings:
            rounding.active = rounding in chosen


def _place(model: nn.Module, wanted: nn.Module) -> str:
    return str(next(name for name, module in model.named_modules() if module is wanted))


def quantized(captured: Captured, grid: Grid = UNSIGNED, skip: Sequence[str] = ()) -> Quantized:
    """A copy of a graph with a rounding at every tensor that an integer kernel reads or writes.

    Rounded are the inputs and weights of linear and convolution layers, what convolutions give (after the ReLU where
    there is one), and on the way to the next of them sums, products, sigmoids, concatenations and pools of such, and
    what only moves their values. Everything else stays float: attention's products, softmax, layer normalisation, the
    last outputs of a linear layer, and what is made of the last convolutions.

    Args:
        captured: left as it is.
        grid: the integers of the target.
        skip: names of layers to leave in float.

    Raises:
        ValueError: there is no such layer, or nothing to quantize.
    """
    graph = copied(captured.graph)
    take_apart(graph)
    found = layers_of(graph)
    for name in skip:
        if name not in found.values():
            raise unknown("layer", name, found.values())
    chosen = {node: name for node, name in found.items() if name not in skip}
    if not chosen:
        raise ValueError("expected a model with linear or convolution layers to quantize, found none; take bits=32")
    at: dict[fx.Node, str] = {}
    weights: dict[fx.Node, str] = {}
    for node, shared in values_to_round(graph, chosen, closed=grid.closed).items():
        at[node] = at[shared] if shared is not None else _add(graph, grid.activation(), len(graph._modules))
        _insert(graph, node, at[node])
    layers = []
    for node, name in chosen.items():
        source, weight = _original(node_at(node, 0)), _original(node_at(node, 1))
        if weight not in weights:
            tensor = tensor_at(graph, weight)
            assert tensor is not None
            weights[weight] = _add(graph, grid.weight(tensor), len(graph._modules))
            _insert(graph, weight, weights[weight])
        kind = "linear" if node.target == LINEAR else "convolution"
        rounding, inputs = graph.get_submodule(weights[weight]), graph.get_submodule(at[source])
        assert isinstance(rounding, Rounding)
        assert isinstance(inputs, Rounding)
        layers.append(Layer(name, kind, rounding, inputs))
        if grid.bias:
            _round_bias(graph, node, BiasRounding(inputs, rounding))
    graph.recompile()
    return Quantized(graph, captured.most, layers)


def _round_bias(graph: fx.GraphModule, node: fx.Node, rounding: BiasRounding) -> None:
    """Give a layer its bias rounded; a bias that several layers share is rounded for each."""
    bias = node.args[2] if len(node.args) > 2 else None
    if not isinstance(bias, fx.Node) or tensor_at(graph, bias) is None:
        return
    name = _add(graph, rounding, len(graph._modules))
    with graph.graph.inserting_after(bias):
        rounded = graph.graph.call_module(name, (bias,))
    rounded.meta = dict(bias.meta)
    node.update_arg(2, rounded)


def _original(node: fx.Node) -> fx.Node:
    """The value that a rounding, inserted meanwhile, rounds."""
    return node_at(node, 0) if node.op == "call_module" else node


def _add(graph: fx.GraphModule, rounding: Rounding | BiasRounding, number: int) -> str:
    name = f"rounding_{number}"
    graph.add_submodule(name, rounding)
    return name


def _insert(graph: fx.GraphModule, node: fx.Node, name: str) -> None:
    """Let everything that reads a value read it rounded."""
    with graph.graph.inserting_after(node):
        rounded = graph.graph.call_module(name, (node,))
    rounded.meta = dict(node.meta)
    node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)


@torch.no_grad()
def calibrate(model: Quantized, batches: Iterable[Tensor]) -> None:
    """Take the ranges of activations as averages over some batches of inputs, and those of weights."""
    for rounding in model.roundings:
        rounding.calibrated = 0
    model.eval()
    model.round(())
    model.observe(True)
    for inputs in batches:
        model(inputs)
    model.observe(False)
    model.round(model.roundings)


@torch.no_grad()
def convert(model: Quantized) -> Graph:
    """The graph a runtime is given: integer weights, and a quantize-dequantize pair at every rounding.

    It computes the same bits as the model it was made from.
    """
    assert isinstance(model.graph, fx.GraphModule)
    graph = copied(model.graph)
    for node in list(graph.graph.nodes):
        if node.op != "call_module":
            continue
        rounding = graph.get_submodule(str(node.target))
        if isinstance(rounding, Rounding | BiasRounding):
            _replace(graph, node, rounding)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return Graph(graph, model.most)


def _replace(graph: fx.GraphModule, node: fx.Node, rounding: Rounding | BiasRounding) -> None:
    source = node.args[0]
    quantize, restore, parameters = rounding.operators()
    with graph.graph.inserting_before(node):
        if isinstance(rounding, Rounding) and rounding.axis is None:
            whole = graph.graph.call_function(quantize, (source, *parameters))
        else:
            tensor = tensor_at(graph, source)
            assert tensor is not None
            names = [f"{node.target}_{name}" for name in ("integers", "scale", "zero_point")]
            for name, value in zip(names, (quantize(tensor, *parameters), *parameters[:2]), strict=True):
                graph.register_buffer(name, value.clone())
            whole, *scales = (graph.graph.get_attr(name) for name in names)
            parameters = *scales, *parameters[2:]
        pair = graph.graph.call_function(restore, (whole, *parameters))
    node.replace_all_uses_with(pair)
    graph.graph.erase_node(node)


def signal_to_noise(exact: Tensor, noisy: Tensor) -> float:
    """Decibels: ten for every factor of ten between the mean squares of the signal and of the difference.

    >>> round(signal_to_noise(torch.ones(4), torch.full((4,), 1.1)), 3)
    20.0
    """
    noise = float((exact - noisy).double().square().mean())
    signal = float(exact.double().square().mean())
    return math.inf if noise == 0 else -math.inf if signal == 0 else 10 * math.log10(signal / noise)
