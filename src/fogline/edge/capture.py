"""From a module to a graph of ATen operators that computes what the module does in evaluation."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.utils import _pytree as pytree

from fogline.data.source import Batch
from fogline.descent import copies
from fogline.descent.objective import Objective
from fogline.edge.needs import quiet

ATEN = torch.ops.aten
CONVOLUTIONS = (ATEN.conv1d.default, ATEN.conv2d.default, ATEN.conv3d.default)
_MOST_BATCHES = (None, 16, 1)  # largest batch: any, few, one; detectors know fixed numbers of boxes


class _SeenError(Exception):
    """Ends a forward pass whose input has been seen."""


@dataclass(frozen=True)
class Captured:
    """A model as a graph.

    Attributes:
        graph: ATen operators in evaluation mode, batch normalisation folded into the layers before it.
        example: inputs it was captured with, (b, ...).
        most: the largest batch it takes; None for any.
    """

    graph: fx.GraphModule
    example: Tensor
    most: int | None


class Graph(nn.Module):
    """A graph as a module like any other: it can be put in training and evaluation mode, which only sets the flag.

    A batch that is larger than the graph takes is computed in parts.
    """

    def __init__(self, graph: nn.Module, most: int | None) -> None:
        super().__init__()
        self.graph, self.most = graph, most

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        with quiet():  # copying a captured graph warns of something that is for PyTorch to change
            twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def train(self, mode: bool = True) -> Graph:
        """Set the flag everywhere; a captured graph has no other difference between the two."""
        for module in self.modules():
            module.training = mode
        return self

    def forward(self, inputs: Tensor) -> Any:  # (b, ...)
        if self.most is None or inputs.shape[0] <= self.most:
            return self.graph(inputs)
        return in_parts(self.graph, inputs, self.most)


def in_parts(function: Any, inputs: Tensor, most: int) -> Any:
    """The outputs of a function for more rows than it takes at once."""
    return joined([function(part) for part in torch.split(inputs, most)])


def joined(trees: Sequence[Any]) -> Any:
    """Trees of tensors of some rows each as a tree of all rows."""
    leaves = [pytree.tree_leaves(tree) for tree in trees]
    rows = [torch.cat(parts) for parts in zip(*leaves, strict=True)]
    return pytree.tree_unflatten(rows, pytree.tree_structure(trees[0]))


def first_input(objective: Objective, batch: Batch) -> Tensor:
    """What the model itself is given when its loss is taken of a batch.

    Raises:
        TypeError: it is not one tensor.
    """
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def look(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append((inputs, named))
        raise _SeenError

    handle = objective.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with objective.without_learning(), suppress(_SeenError):
            objective(batch)
    finally:
        handle.remove()
    inputs, named = seen[0] if seen else ((), {})
    if len(inputs) != 1 or named or not isinstance(inputs[0], Tensor):
        received = ", ".join([*(type(item).__name__ for item in inputs), *named]) or "nothing"
        raise TypeError(
            f"expected a model of one tensor, received one that is called with {received}; "
            "export a module that takes one tensor and calls yours"
        )
    return inputs[0].detach()


def capture(model: nn.Module, example: Tensor) -> Captured:
    """Export a copy of a model, in evaluation, for batches of any size if it can be.

    Args:
        model: left as it is.
        example: inputs, (b, ...).

    Raises:
        ValueError: PyTorch cannot capture the model as a graph.

    >>> captured = capture(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()), torch.ones(4, 1, 5, 5))
    >>> [str(node.target) for node in captured.graph.graph.nodes if node.op == "call_function"]
    ['aten.conv2d.default', 'aten.relu.default']
    """
    model = copies.copied(model).cpu().float().eval()
    example = example.cpu()
    example = example.float() if example.is_floating_point() else example
    problem: Exception | None = None
    for most in _MOST_BATCHES:
        rows = 1 if most == 1 else min(max(2, example.shape[0]), 8)
        sample = example[:rows] if example.shape[0] >= rows else example[:1].expand(rows, *example.shape[1:])
        try:
            with quiet():
                exported = torch.export.export(model, (sample.clone(),), dynamic_shapes=batch_shapes(most))
                graph = exported.module(check_guards=False)
        except (RuntimeError, ValueError, AssertionError) as error:
            problem = error
            continue
        assert isinstance(graph, fx.GraphModule)
        _simplify(graph)
        return Captured(graph, sample, most)
    raise ValueError(
        "expected a model that torch.export can capture (no data-dependent control flow), received "
        f"{type(model).__name__}: {str(problem).strip().splitlines()[0]}"
    ) from problem


def copied(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph with weights of its own."""
    with quiet():
        return copy.deepcopy(graph)


def batch_shapes(most: int | None) -> Any:
    """The dynamic shapes of a graph of one input, as ``torch.export`` and ``torch.onnx.export`` take them."""
    if most == 1:
        return None
    name = torch.export.Dim("batch") if most is None else torch.export.Dim("batch", max=most)
    return ({0: name},)


def nodes_of(graph: fx.GraphModule, *targets: Any) -> Iterator[fx.Node]:
    """The calls of some functions, in order."""
    return (node for node in list(graph.graph.nodes) if node.op == "call_function" and node.target in targets)


def node_at(node: fx.Node, place: int) -> fx.Node:
    """An argument that is computed, or read, by a node."""
    found = node.args[place]
    assert isinstance(found, fx.Node)
    return found


def tensor_at(graph: fx.GraphModule, node: Any) -> Tensor | None:
    """The weight or constant a node reads; None where it is computed."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    place, _, name = str(node.target).rpartition(".")
    value = getattr(graph.get_submodule(place), name)
    return value if isinstance(value, Tensor) else None


def _simplify(graph: fx.GraphModule) -> None:
    """Leave out dropout, which does nothing in evaluation, and fold batch normalisation."""
    for node in nodes_of(graph, ATEN.dropout.default, ATEN.dropout_.default, ATEN.feature_dropout.default):
        node.replace_all_uses_with(node_at(node, 0))
        graph.graph.erase_node(node)
    for node in nodes_of(graph, ATEN.batch_norm.default):
        _fold(graph, node)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()


def _fold(graph: fx.GraphModule, norm: fx.Node) -> None:
    """Fold ``batch_norm(x, weight, bias, mean, variance, training, momentum, eps, ...)`` into the layer that made x."""
    layer = node_at(norm, 0)
    known = layer.target in CONVOLUTIONS or layer.target == ATEN.linear.default
    if not known or len(layer.users) > 1 or norm.args[5]:
        return
    inputs = list(layer.args) + [None] * (3 - len(layer.args))
    source = node_at(layer, 1)
    weight, bias = tensor_at(graph, source), tensor_at(graph, inputs[2])
    scale, shift, mean, variance = (tensor_at(graph, item) for item in norm.args[1:5])
    eps = norm.args[7]
    odd = len(source.users) > 1 or (inputs[2] is not None and bias is None)
    if odd or weight is None or mean is None or variance is None:
        return
    assert isinstance(eps, float)
    scale = torch.ones_like(mean) if scale is None else scale
    shift = torch.zeros_like(mean) if shift is None else shift
    fuse = fuse_linear_bn_weights if layer.target == ATEN.linear.default else fuse_conv_bn_weights
    new = fuse(weight, bias, mean, variance, eps, scale, shift)
    place = str(source.target).rpartition(".")[0]
    names = [f"{place}.{name}".lstrip(".") for name in ("weight", "bias")]
    owner = graph.get_submodule(place)
    with graph.graph.inserting_before(layer):
        for at, (name, value) in enumerate(zip(names, new, strict=True), start=1):
            setattr(owner, name.rpartition(".")[2], nn.Parameter(value.detach().clone()))
            inputs[at] = graph.graph.get_attr(name)
    layer.args = tuple(inputs)
    norm.replace_all_uses_with(layer)
    graph.graph.erase_node(norm)
