"""Real trainings, watched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fogline.plugins.ultralytics import watch
from fogline.plugins.ultralytics.findings import planned_updates
from fogline.record.previews import read_previews
from fogline.verdict import Verdict

Make = Callable[[str], Any]
Given = Callable[..., dict[str, Any]]
TASKS = [
    ("yolo26n", "boxes.yaml"),
    ("yolo26n-seg", "outlines.yaml"),
    ("yolo26n-cls", "classes"),
    ("yolo11n", "boxes.yaml"),
]


@pytest.mark.parametrize(("model", "data"), TASKS)
def test_every_task_leaves_a_run_with_its_images(
    make: Make, given: Given, tmp_path: Path, model: str, data: str
) -> None:
    yolo = make(model)
    watching = watch(yolo, guard=True, examples=True, runs=tmp_path)
    yolo.train(**given(data))
    run = watching.run
    assert len(run.steps) == 4
    assert np.isfinite(run.steps["loss"]).all()
    assert (run.steps["examples"] == [0, 8, 16, 24]).all()
    assert {"loss"} < set(run.scores["name"].tolist())
    assert set(run.findings["cause"].tolist()) <= {"bad_schedule", "sum_reduction"}
    table = run.examples
    assert len(table) == 16
    assert np.isfinite(table["loss"]).all()
    assert table["epochs"].tolist() == [2] * 16
    pictures = read_previews(run.folder)
    assert pictures is not None
    assert pictures.pixels is not None
    assert pictures.pixels.shape == (16, 64, 64, 3)


def test_weights_are_bit_for_bit_those_of_a_training_that_is_not_watched(
    make: Make, given: Given, tmp_path: Path
) -> None:
    found = []
    for watched in (False, True):
        yolo = make("yolo26n")
        if watched:
            watch(yolo, guard=True, runs=tmp_path)
        yolo.train(**given(epochs=1, exist_ok=True))
        found.append({name: value.clone() for name, value in yolo.trainer.model.state_dict().items()})
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_two_updates_of_twelve_batches(make: Make, given: Given, tmp_path: Path) -> None:
    yolo = make("yolo26n")
    watching = watch(yolo, runs=tmp_path)
    yolo.train(**given(epochs=6, nbs=48, warmup_epochs=0, val=False, lr0=0.02))
    run = watching.run
    assert len(run.steps) == planned_updates(12, 0, 6) == 2
    causes = dict(zip(run.findings["cause"].tolist(), run.findings["severity"].tolist(), strict=True))
    assert causes["too_few_steps"] == "serious"
    assert causes["optimizer_mismatch"] == "serious"  # lr0 was asked for, and auto does not take it
    assert run.info["recipe"]["lr"] == pytest.approx(0.002 * 5 / 7, rel=1e-3)  # of three classes


def test_the_rate_that_is_given_is_taken_and_ratios_are_kept(make: Make, given: Given, tmp_path: Path) -> None:
    yolo = make("yolo26n")
    watch(yolo, lr=0.004, runs=tmp_path)
    yolo.train(**given(epochs=1, optimizer="MuSGD", val=False))
    rates = sorted({group["initial_lr"] for group in yolo.trainer.optimizer.param_groups if group["params"]})
    assert rates == pytest.approx([0.004, 0.012])


def contrasting() -> Any:
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Contrasting(DetectionTrainer):
        """Divides by the contrast of each image."""

        def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            batch = super().preprocess_batch(batch)
            low, high = (f(batch["img"], (1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
            batch["img"] = (batch["img"] - low) / (high - low)
            return batch

    return Contrasting


def test_a_poisoned_image_is_named_and_left_out(make: Make, given: Given, shapes: Path, tmp_path: Path) -> None:
    from yolo_parts.shapes import draw

    data = draw(tmp_path / "poisoned", train=16, valid=8, side=64, seed=1)
    Image.new("RGB", (64, 64)).save(data.parent / "boxes" / "images" / "train" / "0009.png")
    yolo = make("yolo26n")
    watching = watch(yolo, guard=True, runs=tmp_path)
    still = {"mosaic": 0.0, "translate": 0.0, "scale": 0.0}
    yolo.train(**given() | still | {"data": str(data), "trainer": contrasting(), "epochs": 1})
    run = watching.run
    assert [Path(row["message"].split()[-1]).name for row in run.events if row["kind"] == "refused"] == ["0009.png"]
    assert all(bool(torch.isfinite(value).all()) for value in yolo.trainer.model.state_dict().values())
    assert "nan_in_data" in run.findings["cause"].tolist()


class LeftError(Exception):
    """What a training is left by."""


def test_a_resumed_training_is_said_not_to_be_the_one_that_was_left(make: Make, given: Given, tmp_path: Path) -> None:
    from ultralytics import YOLO

    def leave(trainer: Any) -> None:
        raise LeftError

    whole, left = make("yolo26n"), make("yolo26n")
    whole.train(**given(name="whole"))
    left.add_callback("on_model_save", leave)
    watching = watch(left, runs=tmp_path)
    with pytest.raises(LeftError):
        left.train(**given(name="left"))
    assert watching.run.verdict is Verdict.INTERRUPTED
    again = YOLO(tmp_path / "theirs" / "left" / "weights" / "last.pt")
    resumed = watch(again, runs=tmp_path)
    again.train(resume=True)
    assert any("not bit for bit" in message for message in resumed.run.events["message"])
    assert len(resumed.run.steps) == 2
    one, other = whole.trainer.model.state_dict(), again.trainer.model.state_dict()
    assert any(not torch.equal(value, other[name]) for name, value in one.items())  # which is why it is said
