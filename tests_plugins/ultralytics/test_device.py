"""YOLO26 as a file for a device: its own outputs, its convolutions as integers, its boxes in pixels."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fogline
from fogline.edge.subject import Subject, deployment_of
from fogline.edge.training import fine_tuning
from fogline.plugins.ultralytics import recipe, task
from fogline.plugins.ultralytics.device import Branches, Detections
from fogline.plugins.ultralytics.task import ONLY_LAST, collate

ort = pytest.importorskip("onnxruntime", reason="the extra 'edge' is not installed")
Make = Callable[[str], Any]
Given = Callable[..., dict[str, Any]]


def settings(given: Given, data: str = "boxes.yaml", **more: Any) -> dict[str, Any]:
    """Of a task: without what only a training of theirs has."""
    found = given(data, **more)
    return {name: value for name, value in found.items() if name not in ("project", "name", "verbose")}


def test_the_parts_give_what_the_whole_gives(make: Make, given: Given) -> None:
    found = task(make("yolo26n"), **settings(given))
    network: Any = found.model().eval()
    batch = collate([found.valid.dataset[k] for k in range(3)])
    images = batch["img"].float() / 255
    branches = Branches(network).eval()
    with torch.no_grad():
        outputs = branches(images)["one2one"]
        own = Detections(network, images)(outputs["scores"], outputs["boxes"])
        network.model[-1].end2end = True
        torch.testing.assert_close(own, network(images)[0])
        torch.testing.assert_close(found.loss.function(branches, batch), found.loss.function(network, batch))


def test_calibration_and_fine_tuning_read_as_the_last_epoch_does(make: Make, given: Given) -> None:
    found = task(make("yolo26n"), **settings(given, epochs=20))
    late = deployment_of(found).train()
    late.dataset.set_epoch(0)
    assert int(late.dataset[0]["epoch"]) == ONLY_LAST
    found.train.dataset.set_epoch(19)
    assert late.dataset.theirs.transforms is not found.train.dataset.theirs.transforms
    assert [type(t) for t in late.dataset.theirs.transforms.transforms] == [
        type(t) for t in found.train.dataset.theirs.transforms.transforms
    ]


def test_heads_whose_boxes_await_suppression_have_no_other_form(make: Make, given: Given) -> None:
    assert deployment_of(task(make("yolo11n"), **settings(given))) is None


def test_a_run_becomes_a_file_of_integers_that_others_read(make: Make, given: Given, tmp_path: Path) -> None:
    told = settings(given, epochs=1)
    learned = task(make("yolo26n"), **told)
    run = fogline.fit(learned, recipe(make("yolo26n"), **told).replace(lr=0.002), runs=tmp_path, progress=False)
    tuning = fine_tuning(Subject.of(run)).replace(duration="1st", lr=1e-4)
    report = fogline.export(run, tmp_path / "shapes.onnx", qat=tuning)
    assert report.tuned is not None
    assert len(report.tuned.steps["loss"]) == 1
    assert set(report.scores["runtime"]) == {"mAP50-95(B)", "mAP50(B)"}
    assert report.differences["fake - converted"].largest == 0
    assert report.kernels is not None
    assert report.kernels.integer["QLinearConv"] == 102
    assert not any(item.kind == "Conv" for item in report.kernels.floating)
    inside = ort.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    facts = inside.get_modelmeta().custom_metadata_map
    assert facts["names"] == "{0: 'circle', 1: 'square', 2: 'triangle'}"
    assert json.loads(facts["classes"]) == ["circle", "square", "triangle"]
    images = torch.stack([learned.valid.dataset[k]["img"] for k in range(3)])
    model = runpy.run_path(str(tmp_path / "predict.py"))["Model"](report.path)
    model.about["confidence"] = 0.0  # it has learned nothing yet
    answers = model.answers(images.permute(0, 2, 3, 1).numpy())
    (rows,) = inside.run(None, {"input": (images.float() / 255).numpy()})
    for answer, own in zip(answers, rows, strict=True):
        assert len(answer["boxes"]) == len(own)
        for box, row in zip(answer["boxes"], own, strict=True):
            assert box["confidence"] == pytest.approx(float(row[4]), abs=1e-4)
            assert box["corners"] == pytest.approx(row[:4].clip(0, 64).tolist(), abs=0.01)
