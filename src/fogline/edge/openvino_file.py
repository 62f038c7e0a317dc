"""OpenVINO files: the ONNX file of the same graph, converted by OpenVINO itself."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fogline.edge import onnx_file
from fogline.edge.capture import Captured, Graph
from fogline.edge.kernels import float_twin
from fogline.edge.needs import module, quiet
from fogline.edge.onnx_file import Array

_ONNX = ".onnx"  # of the file the model was converted from, which is kept beside it


def write(graph: Graph, captured: Captured, path: Path, metadata: Mapping[str, Any]) -> Path:
    """Write ``model.xml`` and ``model.bin``; the metadata is in the model's runtime information under "fogline"."""
    source = onnx_file.write(graph, captured, path.with_suffix(_ONNX), metadata)
    openvino = module("openvino")
    with quiet():
        model = openvino.convert_model(str(source))
        model.set_rt_info(json.dumps(dict(metadata)), onnx_file.KEY)
        # Scales are kept as they are: halved to float16 they would be others than those of the training.
        openvino.save_model(model, str(path), compress_to_fp16=False)
    return path


def opened(path: Path, threads: int) -> Any:
    """The file as a function of a batch."""
    return _compiled(str(path), threads)


def twin(path: Path, threads: int) -> tuple[Any, int] | None:
    """The same network in floats, from the ONNX file beside it, and its size."""
    contents = float_twin(path.with_suffix(_ONNX))
    if contents is None:
        return None
    openvino = module("openvino")
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, place = Path(folder) / "float.onnx", Path(folder) / "float.xml"
        source.write_bytes(contents)
        openvino.save_model(openvino.convert_model(str(source)), str(place), compress_to_fp16=False)
        return _compiled(str(place), threads), sum(item.stat().st_size for item in place.parent.glob("float.[xb]*"))


def _compiled(path: str, threads: int) -> Any:
    openvino = module("openvino")
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    with quiet():
        compiled = openvino.Core().compile_model(path, "CPU", settings)
    request = compiled.create_infer_request()

    def call(inputs: Array) -> list[Array]:
        found = request.infer({0: inputs})
        return [found[port].copy() for port in compiled.outputs]

    return call
