"""``inspect_export``: the report of an export for an ONNX file that another tool wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fogline.data.defaults import accuracy
from fogline.edge.compare import difference
from fogline.edge.kernels import float_twin, float_weights, is_rounded, kernels_of, signed_activations
from fogline.edge.latency import Latency, compare
from fogline.edge.needs import require
from fogline.edge.onnx_file import InRuntime, read_metadata
from fogline.edge.report import Difference, ExportReport
from fogline.edge.subject import Subject, deployment_of
from fogline.edge.targets import Array, Call, onnx_call
from fogline.errors import misfit
from fogline.task import Metric, Task

_COMPARED = 512


def inspect_export(
    path: str | Path,
    data: Any,
    *,
    reference: str | Path | None = None,
    metrics: Mapping[str, Metric] | None = None,
    threads: int = 1,
) -> ExportReport:
    """Say what an ONNX file really does in ONNX Runtime, whichever tool wrote it.

    Args:
        path: of the file; one input.
        data: inputs, (n, ...), or (inputs, targets) as tensors or arrays, as the network takes them. Or the task of a
            detector, as a plug-in makes it, whose held-out images and scores are then taken.
        reference: the same network in floats, another ONNX file. Without one the file itself is taken with its
            quantize-dequantize pairs left out, where it has such.
        metrics: functions of (outputs, targets) by name; the accuracy for labels, the mean absolute error for numbers
            if not given.
        threads: of the runtime.

    Returns:
        The report: scores and outputs against float, kernels, latency, bytes, what speaks against the file in notes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError, TypeError: ONNX Runtime cannot run it, or the data does not fit it.
        ModuleNotFoundError: the packages of the extra ``edge`` are not installed.

    Example::

        print(fogline.inspect_export("theirs.onnx", (X, y), reference="theirs-float.onnx"))
    """
    require("onnx")
    path = Path(path)
    if path.suffix != ".onnx":
        raise misfit("an ONNX file", path.name, "give the path of a file that ends in .onnx")
    subject = _detector(data) if isinstance(data, Task) else None
    inputs, targets = _pair(data) if subject is None else (subject.sample(_COMPARED), None)
    call = onnx_call(path, threads)
    metadata = read_metadata(path)
    rounded = is_rounded(path)
    twin, float_bytes = _floating(path, reference, threads, rounded)
    notes = _notes(path, twin is not None, rounded)
    chosen = dict(metrics or {})
    differences: dict[str, Difference] = {}
    latency: Latency | None = None
    stages = {"runtime": call} if twin is None else {"float": twin, "runtime": call}
    outputs = {name: _outputs(run, inputs, path) for name, run in stages.items()}
    if subject is not None:
        scores = {name: subject.scored(InRuntime(run, outputs[name][0], None)) for name, run in stages.items()}
    else:
        scores = {name: _scores(found[0], targets, chosen) for name, found in outputs.items()}
    if twin is not None:
        if subject is None:  # detections are sorted: rows of two stages need not be of the same object
            exact, classes = outputs["float"], targets is not None and not targets.is_floating_point()
            differences["float - runtime"] = difference(exact, outputs["runtime"], exact, 0.0 if classes else None)
        row = inputs[:1].numpy()
        what = "int8" if rounded else "this file"
        latency = compare(lambda: twin(row), lambda: call(row), batch=1, threads=threads, what=what)
    return ExportReport(
        path=path,
        target="onnx",
        bits=8 if rounded else 32,
        method="as found",
        scores={name: values for name, values in scores.items() if values},
        differences=differences,
        bytes=path.stat().st_size,
        float_bytes=float_bytes,
        kernels=kernels_of(path),
        latency=latency,
        float_weights=tuple(float_weights(path)),
        notes=tuple(notes),
        metadata=metadata,
    )


def _detector(task: Task) -> Subject:
    if deployment_of(task) is None:
        expected = "inputs, (inputs, targets), or the task of a plug-in that knows how its model goes to a device"
        raise misfit(expected, "another task", "give its held-out data", error=TypeError)
    return Subject.of(task)


def _pair(data: Any) -> tuple[Tensor, Tensor | None]:
    pair = isinstance(data, tuple | list) and len(data) == 2
    inputs, targets = data if pair else (data, None)
    if not isinstance(inputs, Tensor | np.ndarray):
        raise misfit("inputs as a tensor or an array", type(inputs).__name__, "convert them", error=TypeError)
    if len(inputs) == 0 or (targets is not None and len(targets) != len(inputs)):
        received = f"{len(inputs)} inputs" + ("" if targets is None else f" and {len(targets)} targets")
        raise misfit("as many targets as inputs, at least one", received, "give both for the same examples")
    return torch.as_tensor(inputs), None if targets is None else torch.as_tensor(targets)


def _floating(path: Path, reference: str | Path | None, threads: int, rounded: bool) -> tuple[Call | None, int | None]:
    if reference is not None:
        return onnx_call(Path(reference), threads), Path(reference).stat().st_size
    contents = float_twin(path) if rounded else None
    return (None, None) if contents is None else (onnx_call(contents, threads), len(contents))


def _notes(path: Path, compared: bool, rounded: bool) -> list[str]:
    notes = []
    if not rounded:
        notes.append("the file holds no integers: it is a float network")
    elif not compared:
        notes.append("float is not told apart from the integers of this file; give reference= for a comparison")
    signed = signed_activations(path)
    if signed:
        notes.append(
            f"{signed} activations are signed 8-bit integers, whose kernels in ONNX Runtime on x86 are slower than "
            "float's in many cases; unsigned ones (uint8) are not"
        )
    return notes


def _outputs(call: Call, inputs: Tensor, path: Path) -> list[Tensor]:
    """Outputs of the first examples, one row at a time where the file takes no more."""
    rows: Array = inputs[:_COMPARED].numpy()
    runtime_errors = (RuntimeError, ValueError)
    try:
        found = call(rows)
    except runtime_errors as error:
        raise misfit(f"inputs that {path.name} takes", f"inputs of shape {tuple(rows.shape)}", str(error)) from error
    return [torch.from_numpy(np.array(item)) for item in found]


def _scores(outputs: Tensor, targets: Tensor | None, metrics: Mapping[str, Callable[..., Any]]) -> dict[str, float]:
    if targets is None:
        return {}
    wanted = targets[: len(outputs)]
    if not metrics:
        labels = not wanted.is_floating_point() and outputs.ndim > wanted.ndim
        metrics = {"accuracy": accuracy} if labels else {"mean_absolute_error": F.l1_loss}
    return {name: float(metric(outputs, wanted)) for name, metric in metrics.items()}
