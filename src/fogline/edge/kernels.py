"""Which operators of an ONNX file really become integer kernels in ONNX Runtime, and why the others do not."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fogline.edge.needs import module
from fogline.edge.onnx_file import open_session

_INTEGER = (
    "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
    "QAttention", "QEmbedLayerNormalization", "DynamicQuantizeLSTM",
)  # fmt: skip
_SIDES = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_MOVES = (
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Gather", "Slice", "Concat", "Split", "Shape", "Cast",
    "Identity", "Constant", "Expand", "Pad", "MaxPool", "NhwcMaxPool", "Resize", "ReorderInput", "ReorderOutput",
    "ConstantOfShape", "Range", "Tile",
)  # fmt: skip
_WITH_KERNEL = (
    "Conv", "Gemm", "MatMul", "Add", "Mul", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu", "Softmax",
    "Where",
)  # fmt: skip
"""Operators ONNX Runtime has an integer kernel of on the CPU."""
_WEIGHTS_ALONE = "MatMulNBits"
_FUSED = {"FusedConv": "Conv", "FusedMatMul": "MatMul", "FusedGemm": "Gemm"}


@dataclass(frozen=True)
class FloatOperator:
    """An operator that computes in floats though the file was to be integers.

    Attributes:
        name: in the file.
        kind: ONNX's name of the operator.
        why: it has no integer kernel.
    """

    name: str
    kind: str
    why: str


@dataclass(frozen=True)
class Kernels:
    """What an ONNX file becomes in ONNX Runtime.

    Attributes:
        integer: integer kernels by name, with their number.
        floating: the operators that compute in floats.
        moves: operators that only move values.
        conversions: quantize and dequantize steps left between integers and floats.
    """

    integer: dict[str, int]
    floating: tuple[FloatOperator, ...]
    moves: int
    conversions: int

    @property
    def share(self) -> float:
        """Integer kernels among the operators that compute something."""
        count = sum(self.integer.values())
        return count / max(1, count + len(self.floating))


def kernels_of(path: Path) -> Kernels:
    """Look at the graph ONNX Runtime makes of a file."""
    onnx = module("onnx")
    before = onnx.load(str(path))
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(path, optimized=optimized)
        after = onnx.load(str(optimized))
    links = _Links(before.graph)
    integer: Counter[str] = Counter()
    floating, moves, conversions = [], 0, 0
    for node in after.graph.node:
        if node.op_type.startswith("QLinear") or node.op_type in _INTEGER:
            integer[node.op_type] += 1
        elif node.op_type in _SIDES:
            conversions += 1
        elif node.op_type in _MOVES:
            moves += 1
        else:
            floating.append(FloatOperator(node.name or node.output[0], node.op_type, links.reason(node)))
    return Kernels(dict(integer.most_common()), tuple(floating), moves, conversions)


class _Links:
    """Who makes and who reads each value of a graph."""

    def __init__(self, graph: Any) -> None:
        self.made = {name: node for node in graph.node for name in node.output}
        self.read: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.read.setdefault(name, []).append(node)
        self.constants = {item.name for item in graph.initializer}
        self.named = {node.name: node for node in graph.node}

    def reason(self, node: Any) -> str:
        """Why an operator of the optimized graph is no integer kernel, from where it stood in the file."""
        kind = _FUSED.get(node.op_type, node.op_type)
        if kind == _WEIGHTS_ALONE:
            return "its weights alone are integers, and are restored to floats on the way"
        if kind not in _WITH_KERNEL:
            return f"ONNX Runtime has no integer kernel of {kind}"
        if not any(made.op_type in _SIDES for made in self.made.values()):
            return "the file is not quantized"
        origin = self.named.get(node.name) or self.made.get(node.output[0])
        if origin is None:
            return "it was made from several operators of the file, not all of them between integers"
        values = [name for name in origin.input[:2] if name]
        rough = [name for name in values if not self._is_restored(name)]
        if len(rough) == len(values):
            return "none of its inputs is quantized"
        if rough:
            constant = rough[0] in self.constants or self._is_constant(rough[0])
            return "its weights are not quantized" if constant else "one of its inputs is not quantized"
        if not any(reader.op_type == "QuantizeLinear" for reader in self._readers(origin)):
            return "its output is not quantized"
        return "its numbers do not fit the kernel (types, zero points or shapes)"

    def _is_restored(self, name: str) -> bool:
        made = self.made.get(name)
        return made is not None and made.op_type == "DequantizeLinear"

    def _is_constant(self, name: str) -> bool:
        made = self.made.get(name)
        return made is not None and all(item in self.constants for item in made.input)

    def _readers(self, node: Any) -> Iterator[Any]:
        for name in node.output:
            for reader in self.read.get(name, []):
                yield from self._readers(reader) if reader.op_type in ("Relu", "Clip") else (reader,)


def float_weights(path: Path) -> list[tuple[str, int]]:
    """Constants of a file that are stored as floats, with their number of values, the largest first.

    Scales are not counted: they belong to the integers.
    """
    onnx = module("onnx")
    graph = onnx.load(str(path)).graph
    scales = {name for node in graph.node if node.op_type in _SIDES for name in node.input[1:]}
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    found = [(item, onnx.numpy_helper.to_array(item).size) for item in graph.initializer if item.data_type in kinds]
    named = [(item.name, int(size)) for item, size in found if item.name not in scales]
    return sorted(named, key=lambda pair: -pair[1])


def is_rounded(path: Path) -> bool:
    """Whether a file holds quantized operators of any form."""
    nodes = module("onnx").load(str(path)).graph.node
    return any(
        node.op_type in (*_SIDES, *_INTEGER, _WEIGHTS_ALONE) or node.op_type.startswith("QLinear") for node in nodes
    )


def signed_activations(path: Path) -> int:
    """How many values of a file are quantized to signed integers on the way."""
    onnx = module("onnx")
    graph = onnx.load(str(path)).graph
    kinds = {item.name: item.data_type for item in graph.initializer}
    quantized = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in kinds]
    return sum(len(node.input) > 2 and kinds.get(node.input[2]) == onnx.TensorProto.INT8 for node in quantized)


def float_twin(path: Path) -> bytes | None:
    """The same network without its integers: every quantize-dequantize pair left out, weights restored to floats.

    Returns:
        The ONNX model as bytes; None where the file has no such pairs, or holds integer operators of its own.
    """
    onnx = module("onnx")
    model = onnx.load(str(path))
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output}
    if not any(node.op_type == "DequantizeLinear" for node in graph.node):
        return None
    if any(node.op_type.startswith("QLinear") or node.op_type in (*_INTEGER, _WEIGHTS_ALONE) for node in graph.node):
        return None
    constants = {item.name: item for item in graph.initializer}
    renamed: dict[str, str] = {}
    dropped = []
    for node in graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        source = made.get(node.input[0])
        if source is not None and source.op_type == "QuantizeLinear":
            renamed[node.output[0]] = source.input[0]
            dropped.append(node)
        elif node.input[0] in constants and all(name in constants for name in node.input if name):
            graph.initializer.append(_restored(onnx, node, constants))
            dropped.append(node)
    for node in dropped:
        graph.node.remove(node)
    _rename(graph, renamed)
    used = {name for node in graph.node for name in node.input} | {item.name for item in graph.output}
    for node in [node for node in graph.node if node.op_type == "QuantizeLinear" and node.output[0] not in used]:
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for item in [item for item in graph.initializer if item.name not in used]:
        graph.initializer.remove(item)
    contents: bytes = model.SerializeToString()
    return contents


def _rename(graph: Any, renamed: dict[str, str]) -> None:
    def first(name: str) -> str:
        while name in renamed:
            name = renamed[name]
        return name

    for node in graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = first(name)
    wanted = {item.name for item in graph.output} & set(renamed)
    for name in wanted:
        node = graph.node.add()
        node.op_type, node.name = "Identity", f"{name}_float"
        node.input.append(first(name))
        node.output.append(name)


def _restored(onnx: Any, node: Any, constants: dict[str, Any]) -> Any:
    """The float weight behind a dequantize step of constants."""
    arrays = [onnx.numpy_helper.to_array(constants[name]) for name in node.input if name]
    axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
    whole, scale = arrays[0].astype("float32"), arrays[1].astype("float32")
    zero = arrays[2].astype("float32") if len(arrays) > 2 else scale * 0
    if scale.ndim == 1 and scale.size > 1:
        shape = [1] * whole.ndim
        shape[axis] = scale.size
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return onnx.numpy_helper.from_array(((whole - zero) * scale).astype("float32"), node.output[0])
