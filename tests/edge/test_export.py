"""Exports to ONNX: what the report says is what the file does, and the run is left as it was."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fogline
from edge.networks import Residual
from fogline.edge.predicting import write_predict

ort = pytest.importorskip("onnxruntime", reason="the extra 'edge' is not installed: pip install 'fogline[edge]'")
onnx = pytest.importorskip("onnx", reason="the extra 'edge' is not installed: pip install 'fogline[edge]'")

CLASSES = ("left", "middle", "right")
Exported = tuple[fogline.Run, fogline.ExportReport, dict[str, str]]


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A bright column in noise, whose place is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    inputs = 0.3 * torch.randn(count, 1, 8, 8, generator=generator)
    for place in range(3):
        inputs[labels == place, 0, :, 3 * place : 3 * place + 2] += 1
    return inputs, labels


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-wal", "-shm"))]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A residual CNN, exported after training; with digests of the run's folder as it was before."""
    place = tmp_path_factory.mktemp("export")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = fogline.Task(
            Residual(), nn.CrossEntropyLoss(), images(240, 0), images(90, 1), {"accuracy": accuracy}, name="columns"
        )
    recipe = fogline.Recipe(optimizer="adamw", lr=1e-2, batch_size=32, duration="6ep", step="eager")
    run = fogline.fit(task, recipe, runs=place, name="columns", progress=False)
    before = digests(run.folder)
    report = fogline.export(run, place / "out" / "model.onnx", qat=None, classes=CLASSES)
    return run, report, before


def test_every_stage_is_scored_and_the_integers_are_exact(exported: Exported) -> None:
    run, report, _ = exported
    assert list(report.scores) == ["float", "fake", "converted", "runtime"]
    assert report.scores["float"] == pytest.approx({k: v for k, v in run.final_scores().items() if k != "step"})
    assert report.scores["fake"] == report.scores["converted"]
    assert report.differences["fake - converted"].largest == 0.0
    assert report.differences["converted - runtime"].steps <= 2
    assert report.differences["converted - runtime"].decisions == 1.0
    assert report.scores["runtime"]["accuracy"] > 0.9
    assert report.method == "post-training"
    assert report.lost is not None
    assert report.lost[0] == "accuracy"


def test_the_scores_in_the_runtime_are_those_of_the_file(exported: Exported) -> None:
    _, report, _ = exported
    session = ort.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    inputs, labels = images(90, 1)
    (outputs,) = session.run(None, {"input": inputs.numpy()})
    assert float((outputs.argmax(1) == labels.numpy()).mean()) == pytest.approx(report.scores["runtime"]["accuracy"])
    assert report.bytes == report.path.stat().st_size


def test_every_operator_became_an_integer_kernel(exported: Exported) -> None:
    _, report, _ = exported
    assert report.kernels is not None
    assert report.kernels.integer["QLinearConv"] == 3
    assert report.kernels.integer["QLinearAdd"] == 1
    assert report.kernels.integer["QGemm"] == 1
    assert report.kernels.floating == ()
    assert report.float_weights == ()
    assert {layer.name for layer in report.layers} == {"stem.0", "depthwise", "pointwise", "head.3"}


def test_the_report_speaks(exported: Exported) -> None:
    _, report, _ = exported
    text = str(report)
    assert "fake - converted: largest difference 0 " in text
    assert report.latency is not None
    assert report.latency.verdict in text
    values = json.loads(report.to_json())
    assert values["kernels"]["integer"]["QLinearConv"] == 3
    assert values["latency"]["verdict"] == report.latency.verdict


def test_the_run_is_left_as_it_was(exported: Exported) -> None:
    run, _, before = exported
    assert digests(run.folder) == before
    assert all(parameter.grad is None or parameter.requires_grad for parameter in run.model.parameters())
    assert not run.model.training


def test_predict_runs_with_onnx_runtime_and_numpy_alone(exported: Exported, tmp_path: Path) -> None:
    _, report, _ = exported
    inputs, _ = images(12, 2)
    np.save(tmp_path / "inputs.npy", inputs.numpy())
    code = (
        "import runpy, sys\n"
        "sys.modules['torch'] = sys.modules['fogline'] = None\n"  # an import of either fails
        f"sys.argv = ['predict.py', {str(tmp_path / 'inputs.npy')!r}]\n"
        f"runpy.run_path({str(report.path.with_name('predict.py'))!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    session = ort.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"input": inputs.numpy()})[0].argmax(1)
    assert [answer["class"] for answer in answers] == [CLASSES[place] for place in expected]
    assert all(0 < answer["probability"] <= 1 for answer in answers)


def test_a_program_of_yours_beside_the_file_is_left_alone(tmp_path: Path) -> None:
    own = tmp_path / "predict.py"
    own.write_text("print('mine')\n")
    assert write_predict(tmp_path / "net.onnx") == tmp_path / "predict_net.py"
    assert own.read_text() == "print('mine')\n"
    own.unlink()
    assert write_predict(tmp_path / "net.onnx") == own
    assert write_predict(tmp_path / "other.onnx") == own  # of an export before
    assert 'MODEL = "other.onnx"' in own.read_text()


def test_the_file_of_ours_is_inspected_like_any_other(exported: Exported) -> None:
    _, report, _ = exported
    found = fogline.inspect_export(report.path, images(90, 1))
    assert found.scores["runtime"]["accuracy"] == pytest.approx(report.scores["runtime"]["accuracy"])
    assert found.kernels == report.kernels
    assert found.float_bytes == report.float_bytes
    assert found.differences["float - runtime"].largest > 0  # its float twin is not the same network
    assert found.metadata["classes"] == list(CLASSES)
    assert not any("signed" in note for note in found.notes)


def signed_file(path: Path, *, output: bool) -> Path:
    """A linear layer as other tools write it: signed activations, its output quantized or not."""
    helper, kinds = onnx.helper, onnx.TensorProto
    arrays = {
        "weight": np.arange(-6, 6, dtype=np.int8).reshape(4, 3),
        "scale": np.float32(0.1),
        "zero": np.int8(0),
        "offset": np.ones(3, np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"], "dq"),
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["w"], "dqw"),
        helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
        helper.make_node("Add", ["y", "offset"], ["sum"], "sum"),
        helper.make_node("Softmax", ["sum"], ["output"], "softmax"),
    ]
    if not output:
        nodes = [node for node in nodes if node.name not in ("q", "dq")]
        nodes[1].input[0] = "input"
    graph = helper.make_graph(
        nodes,
        "theirs",
        [helper.make_tensor_value_info("input", kinds.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("output", kinds.FLOAT, ["n", 3])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return path


def test_what_speaks_against_the_file_of_another_tool_is_said(tmp_path: Path) -> None:
    inputs, targets = torch.rand(30, 4) * 4 - 2, torch.arange(30) % 3
    found = fogline.inspect_export(signed_file(tmp_path / "theirs.onnx", output=True), (inputs, targets))
    assert any("1 activations are signed" in note for note in found.notes)
    assert found.kernels is not None
    reasons = {item.kind: item.why for item in found.kernels.floating}
    assert reasons["Softmax"] == "none of its inputs is quantized"
    assert found.differences["float - runtime"].largest < 0.2
    assert found.float_bytes is not None
    assert ("offset", 3) in found.float_weights


def test_weights_alone_do_not_make_integer_kernels(tmp_path: Path) -> None:
    found = fogline.inspect_export(signed_file(tmp_path / "theirs.onnx", output=False), torch.rand(5, 4))
    assert found.kernels is not None
    assert found.kernels.integer == {}
    reasons = {item.kind: item.why for item in found.kernels.floating}
    assert "weights alone" in reasons.get("MatMulNBits", "") or "input" in reasons["MatMul"]
    assert found.scores == {}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"bits": 5}, ValueError, "expected bits of 32"),
        ({"bits": 4}, ValueError, "take target='executorch'"),
        ({"target": "onx"}, ValueError, "did you mean 'onnx'"),
        ({"path": "model.pt"}, ValueError, "ends in .onnx"),
        ({"qat": "always"}, TypeError, "expected qat of None, 'auto' or a Recipe"),
        ({"margin": -1}, ValueError, "margin of 0 or more"),
        ({"calibration": 0}, ValueError, "at least 1 example"),
        ({"classes": ["a", "b"]}, ValueError, "expected 3 names of classes, received 2"),
        ({"scaler": ([0.0], [1.0, 2.0])}, ValueError, "as many scales as means"),
        ({"skip": ["stem"]}, ValueError, "unknown layer 'stem'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    exported: Exported, tmp_path: Path, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    path = tmp_path / change.pop("path", "model.onnx")
    with pytest.raises(error, match=words):
        fogline.export(exported[0], path, **change)
    assert not path.exists()


def test_a_run_without_its_task_is_refused(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a run with its task"):
        fogline.export(fogline.Run.open(exported[0].folder), tmp_path / "model.onnx")


def test_fine_tuning_is_a_run_beside_the_first_and_float_is_a_file_too(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 6, generator=generator)
    targets = (inputs[:, :1] * 2 - inputs[:, 1:2]).abs()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 1))
    recipe = fogline.Recipe(optimizer="adamw", lr=1e-2, batch_size=32, duration="10ep", step="eager")
    task = fogline.Task(model, nn.MSELoss(), (inputs[:200], targets[:200]), (inputs[200:], targets[200:]))
    run = fogline.fit(task, recipe, runs=tmp_path, name="numbers", progress=False)
    # The ranges of a single example cut off most of the others.
    report = fogline.export(run, tmp_path / "model.onnx", units="mm", calibration=1)
    assert report.tuned is not None
    assert report.tuned.folder == tmp_path / "numbers-qat"
    assert report.tuned.verdict is not None
    assert len(report.tuned.steps["loss"]) == 70  # a hundred, but no more than the run itself had
    assert isinstance(report.tuned.recipe.lr, float)  # it was measured
    assert report.method == "quantization-aware"
    assert report.lost is not None
    assert any("post-training quantization lost" in note for note in report.notes)
    assert report.differences["fake - converted"].largest == 0.0
    assert report.differences["converted - runtime"].steps <= 2
    assert report.differences["converted - runtime"].decisions is None
    assert report.scores["runtime"]["loss"] == pytest.approx(report.scores["fake"]["loss"], rel=0.02)
    stored = ort.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    assert json.loads(stored.get_modelmeta().custom_metadata_map["units"]) == ["mm"]
    plain = fogline.export(run, tmp_path / "float.onnx", bits=32)
    assert plain.method == "float"
    assert plain.differences["float - runtime"].steps < 0.01
    assert plain.kernels is not None
    assert plain.kernels.integer == {}
