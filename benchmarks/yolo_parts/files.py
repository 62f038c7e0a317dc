"""Files of Ultralytics' own export, and what a runtime makes of the integers of any file."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np


def their_files(yolo: Any, model: Any, settings: dict[str, Any], folder: Path) -> dict[str, Path]:
    """A trained model as Ultralytics writes it: float and int8 of the branch without suppression, int8 by default.

    Args:
        yolo: whose model is replaced.
        model: trained, of its class.
        settings: it was trained with.
        folder: for the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger().setLevel(logging.ERROR)
    wanted = {"float": {"nms": False}, "int8": {"nms": False, "quantize": 8}, "int8, default": {"quantize": 8}}
    found = {}
    for name, arguments in wanted.items():
        ours = copy.deepcopy(model).cpu().eval()
        ours.args, ours.task = {**vars(ours.args), "nms": None}, "detect"
        stem = name.replace(", ", "-")
        ours.pt_path = str(folder / f"{stem}.pt")
        yolo.model, yolo.ckpt_path = ours, ours.pt_path
        shared = {"format": "onnx", "imgsz": settings["imgsz"], "data": settings["data"], "device": "cpu"}
        found[name] = Path(yolo.export(**shared, verbose=False, **arguments))
    return found


def head_steps(path: Path, images: Any) -> int:
    """How far apart the integers of the last convolutions are in ONNX Runtime, with its optimisations and without.

    Args:
        path: with a quantize-dequantize pair behind each of them.
        images: (n, 3, h, w).
    """
    import onnx
    import onnxruntime

    model = onnx.load(str(path))
    graph = model.graph
    made = {name: node.op_type for node in graph.node for name in node.output}
    read = {name: node for node in graph.node for name in node.input}
    ends = [
        node.output[0]
        for node in graph.node
        if node.op_type == "QuantizeLinear"
        and made.get(node.input[0]) == "Conv"
        and read[read[node.output[0]].output[0]].op_type == "Reshape"
    ]
    for name in ends:
        graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
    level = onnxruntime.GraphOptimizationLevel
    outputs = []
    for wanted in (level.ORT_DISABLE_ALL, level.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.intra_op_num_threads = wanted, 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        outputs.append(session.run(ends, {"input": images}))
    return max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(*outputs, strict=True))
