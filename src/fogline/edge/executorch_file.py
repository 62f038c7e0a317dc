"""ExecuTorch files for XNNPACK, whose integers are signed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fogline.descent.copies import copied
from fogline.edge.capture import Captured, Graph, batch_shapes, capture
from fogline.edge.needs import module, quiet
from fogline.edge.onnx_file import Array
from fogline.errors import misfit

_MOST_ROWS = 128
_GROUP = 32  # weights that share a scale


def write(graph: Graph, captured: Captured, path: Path, metadata: Mapping[str, Any]) -> Path:
    """Lower a graph to XNNPACK and write it; the metadata is JSON beside it, as the format has no place for it."""
    exir = module("executorch.exir")
    partitioner = module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    module("executorch.kernels.quantized")  # it registers the operators that XNNPACK may leave
    most = _MOST_ROWS if captured.most is None else captured.most  # memory is planned for so many
    with quiet(), torch.no_grad():
        exported = torch.export.export(graph.graph, (captured.example,), dynamic_shapes=batch_shapes(most))
        program = exir.to_edge_transform_and_lower(exported, partitioner=[partitioner.XnnpackPartitioner()])
        path.write_bytes(program.to_executorch().buffer)
    if metadata:
        left = Counter(
            str(node.target) for node in program.exported_program().graph.nodes if node.op == "call_function"
        )
        told = {**metadata, "operators": dict(left)}
        path.with_suffix(".json").write_text(json.dumps(told, indent=2), encoding="utf-8")
    return path


def opened(path: Path, threads: int) -> Any:
    """The file as a function of a batch; ExecuTorch decides about its threads itself."""
    del threads
    module("executorch.kernels.quantized")  # it registers what XNNPACK leaves over
    runtime = module("executorch.runtime")
    method = runtime.Runtime.get().load_program(str(path)).load_method("forward")

    most = method.metadata.input_tensor_meta(0).sizes()[0]  # that the lowering found room for

    def call(inputs: Array) -> list[Array]:
        parts = [method.execute((part,)) for part in torch.split(torch.from_numpy(inputs), most)]
        return [torch.cat([item.clone() for item in items]).numpy() for items in zip(*parts, strict=True)]

    return call


def four_bits(model: nn.Module, captured: Captured) -> Captured:
    """A graph of linear layers with 4-bit weights in groups, whose inputs are rounded to 8 bits by their own range.

    Raises:
        ValueError: no linear layer has as many inputs as fill groups.
    """
    quantization = module("torchao.quantization")
    granularity = module("torchao.quantization.granularity")

    def fits(layer: nn.Module, _: str) -> bool:
        return isinstance(layer, nn.Linear) and layer.in_features % _GROUP == 0

    if not any(fits(layer, "") for layer in model.modules()):
        expected = f"a model with linear layers whose inputs are a multiple of {_GROUP}"
        raise misfit(expected, "none", "take bits=8")
    model = copied(model)
    with quiet():
        settings = quantization.Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4,  # type: ignore[attr-defined]
            weight_granularity=granularity.PerGroup(_GROUP),
        )
        quantization.quantize_(model, settings, filter_fn=fits)
        return capture(model, captured.example)
