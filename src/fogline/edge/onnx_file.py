"""ONNX files: writing one with its metadata, running it, and taking the integers out of it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fogline.edge.capture import Captured, Graph, batch_shapes, in_parts
from fogline.edge.needs import module, quiet

KEY = "fogline"
"""The entry of the file's metadata that holds everything about inputs and outputs, as JSON."""
_SILENT = 3  # ONNX Runtime: errors only
_NUMPY = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64,
          "tensor(int32)": np.int32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}  # fmt: skip

Array = NDArray[Any]


def write(graph: Graph, captured: Captured, path: Path, metadata: Mapping[str, Any]) -> Path:
    """Write a graph as an ONNX file with one input, "input", and "output" or the outputs by their places or keys.

    Args:
        graph: what is written.
        captured: the float graph it came from, for its example and batch.
        path: of the file.
        metadata: what a caller must know about inputs and outputs; JSON-able.
    """
    with torch.no_grad():
        names = output_names(graph(captured.example))
    assert isinstance(graph.graph, nn.Module)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph.graph,
            (captured.example,),
            dynamo=True,
            input_names=["input"],
            output_names=names,
            dynamic_shapes=batch_shapes(captured.most),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    if captured.most is not None and captured.most > 1:
        metadata = {**metadata, "largest_batch": captured.most}
    _slim(model)
    describe(model, metadata)
    path.write_bytes(model.SerializeToString())
    return path


def output_names(outputs: Any) -> list[str]:
    """The names of a model's outputs in a file.

    >>> values = torch.zeros(1)
    >>> output_names(values), output_names((values, values)), output_names({"boxes": values, "classes": values})
    (['output'], ['output_0', 'output_1'], ['boxes', 'classes'])
    """
    paths = [path for path, _ in pytree.tree_flatten_with_path(outputs)[0]]
    if len(paths) == 1:
        return ["output"]
    joined = ["_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path in paths]
    return [f"output_{name}" if name[0].isdigit() or name == "input" else name for name in joined]


def _slim(model: Any) -> None:
    """Leave out what only the exporter needs, and write means over an image as the pooling there is a kernel of."""
    graph = model.graph
    axes = {item.name: module("onnx").numpy_helper.to_array(item).ravel().tolist() for item in graph.initializer
            if item.data_type == module("onnx").TensorProto.INT64}  # fmt: skip
    for item in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    del graph.value_info[:]
    ranks = _ranks(model)
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or ranks.get(node.input[0]) != 4:
            continue
        kept = all(item.i == 1 for item in node.attribute if item.name == "keepdims")
        if kept and axes.get(node.input[1]) in ([2, 3], [-2, -1], [-1, -2]):
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]


def _ranks(model: Any) -> dict[str, int]:
    """The number of dimensions of each value of an ONNX model."""
    inferred = module("onnx").shape_inference.infer_shapes(model)
    return {item.name: len(item.type.tensor_type.shape.dim) for item in inferred.graph.value_info}


def describe(model: Any, metadata: Mapping[str, Any]) -> None:
    """Put metadata into an ONNX model: all of it as JSON, and what other tools look for under names of their own."""
    told = {name: value for name, value in metadata.items() if name != "properties"}
    plain = {KEY: json.dumps(told), **metadata.get("properties", {})}
    for name in ("classes", "units"):
        if metadata.get(name):
            plain[name] = json.dumps(metadata[name])
    del model.metadata_props[:]
    for name, text in plain.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, text


def read_metadata(path: Path) -> dict[str, Any]:
    """What :func:`write` put there; empty for the file of another tool."""
    found = open_session(path).get_modelmeta().custom_metadata_map.get(KEY)
    return {} if found is None else dict(json.loads(found))


def open_session(path: Path | bytes, *, threads: int = 1, optimized: Path | None = None) -> Any:
    """An ONNX Runtime session on the CPU.

    Args:
        path: the file, or its contents.
        threads: of one operator.
        optimized: also write the graph that is really run there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: ONNX Runtime cannot run it.
    """
    runtime = module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        # Beyond this level float convolutions get another layout, and other names.
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if isinstance(path, Path) and not path.is_file():
        raise FileNotFoundError(f"expected an ONNX file at {path}, found none")
    given = path if isinstance(path, bytes) else str(path)
    state = runtime.capi.onnxruntime_pybind11_state
    problems = (state.Fail, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented, state.RuntimeException)
    try:
        return runtime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except problems as error:
        name = "the given bytes" if isinstance(path, bytes) else path
        raise ValueError(f"expected an ONNX file that ONNX Runtime can run, received {name}: {error}") from error


def run_session(session: Any, inputs: Array) -> list[Array]:
    """All outputs for one batch, in parts where the file takes fixed batches only."""
    wanted = session.get_inputs()[0]
    inputs = np.ascontiguousarray(inputs, dtype=_NUMPY.get(wanted.type, inputs.dtype))
    fixed = wanted.shape[0] if wanted.shape and isinstance(wanted.shape[0], int) else None
    if fixed is None or fixed == len(inputs):
        found: list[Array] = session.run(None, {wanted.name: inputs})
        return found
    if len(inputs) % fixed:
        raise ValueError(
            f"expected a multiple of {fixed} rows, which is the batch of this file, received {len(inputs)}"
        )
    parts = [session.run(None, {wanted.name: inputs[k : k + fixed]}) for k in range(0, len(inputs), fixed)]
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


class InRuntime(nn.Module):
    """A file in its runtime as a module, so that it is scored by the very code that scores the model.

    Args:
        run: a batch as an array to all outputs.
        like: outputs of the model, whose structure those of the runtime take on.
        most: the largest batch.
    """

    def __init__(self, run: Any, like: Any, most: int | None) -> None:
        super().__init__()
        self.run, self.most = run, most
        self.structure = pytree.tree_structure(like)

    def forward(self, inputs: Tensor) -> Any:  # (b, ...)
        if self.most is not None and inputs.shape[0] > self.most:
            return in_parts(self.forward, inputs, self.most)
        outputs: Sequence[Array] = self.run(inputs.detach().cpu().numpy())
        return pytree.tree_unflatten([torch.from_numpy(np.array(out)) for out in outputs], self.structure)
