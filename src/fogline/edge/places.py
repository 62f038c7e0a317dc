"""Which tensors of a graph become integers."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from torch import Tensor, fx

from fogline.edge.capture import ATEN, CONVOLUTIONS, node_at, nodes_of, tensor_at

LINEAR = ATEN.linear.default
_CLIPS = (ATEN.relu.default, ATEN.relu_.default, ATEN.hardtanh.default, ATEN.hardtanh_.default, ATEN.relu6.default)
_SUMS = (ATEN.add.Tensor, ATEN.add_.Tensor, ATEN.mul.Tensor, ATEN.mul_.Tensor, ATEN.cat.default)
_MEANS = (ATEN.adaptive_avg_pool2d.default, ATEN.avg_pool2d.default)
_CURVES = (ATEN.sigmoid.default,)
_SPLITS = (ATEN.chunk.default, ATEN.split_with_sizes.default, ATEN.split.Tensor)
_MOVES = (
    ATEN.max_pool2d.default, ATEN.flatten.using_ints, ATEN.view.default, ATEN.reshape.default, ATEN.permute.default,
    ATEN.transpose.int, ATEN.unsqueeze.default, ATEN.squeeze.dim, ATEN.slice.Tensor, ATEN.contiguous.default,
    ATEN.upsample_nearest2d.vec, operator.getitem,
)  # fmt: skip
"""Operators whose outputs are some of their inputs: the same scale holds."""


def take_apart(graph: fx.GraphModule) -> None:
    """Write ``silu(x)`` as ``x * sigmoid(x)``: there are integer kernels of both, and none of it."""
    for node in nodes_of(graph, ATEN.silu.default, ATEN.silu_.default):
        values = node_at(node, 0)
        with graph.graph.inserting_before(node):
            gate = graph.graph.call_function(ATEN.sigmoid.default, (values,))
            product = graph.graph.call_function(ATEN.mul.Tensor, (values, gate))
        gate.meta, product.meta = dict(node.meta), dict(node.meta)
        node.replace_all_uses_with(product)
        graph.graph.erase_node(node)


def layers_of(graph: fx.GraphModule) -> dict[fx.Node, str]:
    """The layers that have integer kernels, with the name of the module their weight belongs to."""
    found = {}
    for node in nodes_of(graph, LINEAR, *CONVOLUTIONS):
        weight = node.args[1]
        if isinstance(weight, fx.Node) and tensor_at(graph, weight) is not None:
            found[node] = str(weight.target).rpartition(".")[0] or str(weight.target)
    return found


def values_to_round(
    graph: fx.GraphModule, layers: dict[fx.Node, str], *, closed: bool
) -> dict[fx.Node, fx.Node | None]:
    """The values to round, in order, each with the earlier value whose scale it shares."""
    marked: dict[fx.Node, fx.Node | None] = {}
    for node in layers:
        marked[node_at(node, 0)] = None
        if closed or node.target != LINEAR:
            marked[_end(node)] = None
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not _is_float(node):
            continue
        inputs = [item for item in _whole(node).all_input_nodes if _is_float(item)]
        known = bool(inputs) and all(item in marked for item in inputs)
        if known and node.target in (*_SUMS, *_MEANS, *_CURVES) and not _has_numbers(node):
            marked.setdefault(_end(node), None)
        elif known and node.target in _MOVES:
            marked[node] = inputs[0]
    if not closed:
        wanted = _reached(graph, marked, layers)
        marked = {node: shared for node, shared in marked.items() if node in wanted}
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    return {node: marked[node] for node in sorted(marked, key=order.__getitem__)}


def _reached(graph: fx.GraphModule, marked: Iterable[fx.Node], layers: Iterable[fx.Node]) -> set[fx.Node]:
    """The values from which integers get to a layer, and what layers give: to round others would only cost accuracy."""
    known = set(marked)
    wanted = {node_at(node, 0) for node in layers}
    for node in reversed(graph.graph.nodes):
        if node in wanted and (node in known or node.target in _CLIPS):
            wanted.update(_whole(node).all_input_nodes)
    return wanted | {_end(node) for node in layers}


def _whole(node: fx.Node) -> fx.Node:
    """What a value was made by: for a part, the operator that split the whole."""
    if node.target != operator.getitem:
        return node
    made = node_at(node, 0)
    return made if made.target in _SPLITS else node


def _has_numbers(node: fx.Node) -> bool:
    """Whether a sum or product is with a number, which has no scale of its own."""
    return node.target in _SUMS and node.target != ATEN.cat.default and len(node.all_input_nodes) < 2


def _end(node: fx.Node) -> fx.Node:
    """The value an integer kernel writes: behind the activation that is part of it."""
    following = list(node.users)
    return following[0] if len(following) == 1 and following[0].target in _CLIPS else node


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
