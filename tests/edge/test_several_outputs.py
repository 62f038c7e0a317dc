"""Networks with several outputs, and those whose outputs are not yet the answer, as a detector's."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fogline
from edge.networks import Gated
from fogline.edge.compare import difference
from fogline.edge.deployment import Deployment
from fogline.edge.subject import Subject
from fogline.edge.training import fine_tuning
from fogline.task import OnBatch

ort = pytest.importorskip("onnxruntime", reason="the extra 'edge' is not installed: pip install 'fogline[edge]'")

FIELDS: dict[str, Any] = {
    "optimizer": "adamw", "lr": 1e-2, "batch_size": 32, "duration": "4ep", "step": "eager", "progress": False,
}  # fmt: skip


def columns(count: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A bright column in noise: its place is the class, its brightness the number."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    bright = 1 + torch.rand(count, 1, generator=generator)
    inputs = 0.3 * torch.randn(count, 1, 8, 8, generator=generator)
    for place in range(3):
        rows = labels == place
        inputs[rows, 0, :, 3 * place : 3 * place + 2] += bright[rows, :, None]
    return inputs, {"classes": labels, "numbers": bright}


def both(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    loss = F.cross_entropy(outputs["classes"], targets["classes"])
    return loss + F.mse_loss(outputs["numbers"], targets["numbers"])


def right(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    return (outputs["classes"].argmax(1) == targets["classes"]).float().mean()


def predicting(report: fogline.ExportReport) -> Any:
    """The program beside the file, run as a module."""
    return runpy.run_path(str(report.path.with_name("predict.py")))["Model"](report.path)


def test_a_dictionary_of_outputs_goes_through_every_stage(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = fogline.Task(Gated(), both, columns(240, 0), columns(90, 1), {"right": right})
    run = fogline.fit(task, runs=tmp_path, **FIELDS)
    report = fogline.export(run, tmp_path / "both.onnx", qat=None)
    assert report.scores["fake"] == report.scores["converted"]
    assert report.differences["fake - converted"].largest == 0
    assert report.scores["runtime"]["right"] == pytest.approx(report.scores["float"]["right"], abs=0.05)
    assert report.lost is not None
    assert report.lost[0] == "right"  # it is known what shuffled targets give
    assert report.kernels is not None
    assert {"QLinearConv", "QLinearSigmoid", "QLinearMul", "QLinearConcat"} <= set(report.kernels.integer)
    session = ort.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_outputs()] == ["classes", "numbers"]
    inputs, _ = columns(5, 2)
    answers = predicting(report).answers(inputs.numpy())
    assert [answer["numbers"] for answer in answers] == session.run(["numbers"], {"input": inputs.numpy()})[0].tolist()


class Finder(nn.Module):
    """Class logits at every fourth place of a map, and a distance; a detector in small."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
        self.kinds, self.sides = nn.Conv2d(8, 2, 3, stride=2, padding=1), nn.Conv2d(8, 1, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> dict[str, Any]:  # (b, 3, 8, 8)
        found = self.stem(images)
        return {"found": {"kinds": self.kinds(found).flatten(2), "sides": self.sides(found).flatten(2)}, "map": found}


class Boxes(nn.Module):
    """The two most confident places as rows of corners, confidence, class."""

    def forward(self, kinds: Tensor, sides: Tensor) -> Tensor:  # (b, 2, 4), (b, 1, 4)
        sure, kind = kinds.sigmoid().max(1)
        corners = torch.tensor([[0.0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 4, 8], [4, 4, 8, 8]])
        best, places = sure.topk(2, 1)
        chosen = corners[places] + 0 * sides.mean()
        return torch.cat((chosen, best[..., None], kind.gather(1, places)[..., None].float()), 2)


def scenes(count: int, seed: int) -> dict[str, Tensor]:
    """A square of one colour in a corner of each image, red or blue."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.1 * torch.rand(count, 3, 8, 8, generator=generator)
    places, kinds = torch.arange(count) % 4, torch.arange(count) // 4 % 2
    for k in range(count):
        y, x = 4 * (int(places[k]) // 2), 4 * (int(places[k]) % 2)
        images[k, 2 * int(kinds[k]), y : y + 4, x : x + 4] += 0.8
    return {"images": images, "places": places, "kinds": kinds}


HELD_OUT = scenes(32, 1)


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    kinds = model(batch["images"])["found"]["kinds"]
    wanted = torch.zeros_like(kinds)
    wanted[torch.arange(len(wanted)), batch["kinds"], batch["places"]] = 1
    return F.binary_cross_entropy_with_logits(kinds, wanted)


def found_share(whole: nn.Module) -> dict[str, float]:
    """The share of squares whose box and colour come first."""
    with torch.no_grad():
        first = whole(HELD_OUT["images"])[:, 0]
    places = (first[:, 0] // 4 + 2 * (first[:, 1] // 4)).long()
    return {"found": float(((places == HELD_OUT["places"]) & (first[:, 5] == HELD_OUT["kinds"])).double().mean())}


def finder() -> fogline.Task:
    deployment = Deployment(
        network=lambda model: model,
        outputs=lambda given: (given["found"]["kinds"], given["found"]["sides"]),
        ending=lambda model, example: Boxes(),
        scores=found_share,
        metrics=("found",),
        train=lambda: scenes(64, 0),
        threshold=0.0,
        metadata={
            "kind": "detection",
            "classes": ["red", "blue"],
            "confidence": 0.5,
            "encoder": {"kind": "letterbox", "height": 8, "width": 8, "fill": 114},
            "properties": {"task": "detect"},
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fogline.Task(Finder(), OnBatch(loss, deployment), scenes(64, 0), HELD_OUT)


@pytest.fixture(scope="module")
def detected(tmp_path_factory: pytest.TempPathFactory) -> tuple[fogline.Run, fogline.ExportReport]:
    place = tmp_path_factory.mktemp("finder")
    run = fogline.fit(finder(), runs=place, **{**FIELDS, "duration": "40ep", "batch_size": 16})
    return run, fogline.export(run, place / "finder.onnx", qat=None)


def test_a_detector_is_judged_by_what_the_file_gives(
    detected: tuple[fogline.Run, fogline.ExportReport],
) -> None:
    _, report = detected
    assert {name for scores in report.scores.values() for name in scores} == {"found"}
    assert report.scores["runtime"]["found"] > 0.9
    assert report.lost is not None
    assert report.lost[0] == "found"
    assert report.differences["fake - converted"].largest == 0
    runtime = report.differences["converted - runtime"]
    assert runtime.steps <= 2
    assert runtime.close == 1
    assert runtime.decisions == 1
    session = ort.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_outputs()] == ["output"]
    assert session.get_modelmeta().custom_metadata_map["task"] == "detect"
    assert report.kernels is not None
    assert report.kernels.integer["QLinearConv"] == 3


def test_boxes_are_told_in_pixels_of_the_images_as_they_came(
    detected: tuple[fogline.Run, fogline.ExportReport],
) -> None:
    _, report = detected
    model = predicting(report)
    small = (HELD_OUT["images"].permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    expected = [["red", "blue"][kind] for kind in HELD_OUT["kinds"]]
    told = [answer["boxes"][0] for answer in model.answers(small)]
    assert [box["class"] for box in told] == expected
    assert all(box["confidence"] > 0.5 for box in told)
    # Three times as large, and wider than high: lines of the fill above and below.
    large = small.repeat(3, 1).repeat(3, 2)
    again = [answer["boxes"][0]["corners"] for answer in model.answers(large)]
    assert again == [[3 * value for value in box["corners"]] for box in told]
    wide = np.full((1, 8, 16, 3), 20, np.uint8)
    frame = model.scale(wide)
    assert frame.shape == (1, 3, 8, 8)
    assert np.allclose(frame[:, :, 2:6], 20 / 255)
    assert np.allclose(frame[:, :, [0, 1, 6, 7]], 114 / 255)


def test_the_boxes_are_printed_one_image_a_line(
    detected: tuple[fogline.Run, fogline.ExportReport],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, report = detected
    np.save(tmp_path / "images.npy", np.zeros((2, 20, 30, 3), np.uint8))
    monkeypatch.setattr("sys.argv", ["predict.py", str(tmp_path / "images.npy")])
    runpy.run_path(str(report.path.with_name("predict.py")), run_name="__main__")
    assert [list(json.loads(line)) for line in capsys.readouterr().out.splitlines()] == [["boxes"], ["boxes"]]


def test_a_task_is_exported_with_its_model_as_it_is_and_inspected(
    detected: tuple[fogline.Run, fogline.ExportReport], tmp_path: Path
) -> None:
    run, report = detected
    task = finder()
    trained = fogline.Task(run.model, task.loss, task.train, task.valid)
    again = fogline.export(trained, tmp_path / "again.onnx")
    assert again.tuned is None
    assert again.scores == report.scores
    found = fogline.inspect_export(report.path, trained)
    assert found.scores["runtime"] == report.scores["runtime"]
    assert set(found.scores) == {"float", "runtime"}
    with pytest.raises(TypeError, match="expected inputs"):
        fogline.inspect_export(report.path, fogline.Task(Finder(), loss, task.train))


def test_a_detector_is_fine_tuned_by_the_loss_of_its_task(
    detected: tuple[fogline.Run, fogline.ExportReport], tmp_path: Path
) -> None:
    run, _ = detected
    recipe = fine_tuning(Subject.of(run)).replace(duration="6st", lr_scale={"stem": 0.5})
    report = fogline.export(run, tmp_path / "tuned.onnx", qat=recipe)
    assert report.tuned is not None
    assert len(report.tuned.steps["loss"]) == 6
    assert report.tuned.recipe.lr_scale  # by the names that the graph has
    assert report.differences["fake - converted"].largest == 0


def test_decisions_at_many_places_are_counted_where_there_is_something() -> None:
    first = torch.full((1, 2, 8), -1.0)
    first[0, 0, :4] = 1
    second = first.clone()
    second[0, :, 3] = torch.tensor([-1.0, 1.0])  # another class
    second[0, 1, 7] = 1  # something where there was nothing
    assert difference([first], [second], [first], 0.0, places=True).decisions == pytest.approx(3 / 5)
    assert difference([first], [second], [first], None).close == pytest.approx(13 / 16)
    nothing = torch.full((1, 2, 8), -1.0)
    assert difference([nothing], [nothing], [first], 0.0, places=True).decisions == 1
