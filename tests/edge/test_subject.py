"""What is exported of a run: its best weights, its data, its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline.edge.capture import capture
from fogline.edge.quantize import calibrate, convert, quantized
from fogline.edge.subject import Subject, losses_of

X = torch.linspace(-1, 1, 48).reshape(-1, 2)
FIELDS: dict[str, Any] = {
    "optimizer": "sgd", "lr": 0.1, "batch_size": 8, "duration": "30st", "step": "eager", "progress": False,
}  # fmt: skip


def autoencoder() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))


def test_work_on_whole_batches_is_scored_by_its_loss_and_rounded_like_any_other(tmp_path: Path) -> None:
    loss = fogline.on_batch(lambda model, batch: (model(batch) - batch).square().mean())
    task = fogline.Task(autoencoder(), loss, X, X)
    run = fogline.fit(task, runs=tmp_path, **FIELDS)
    subject = Subject.of(run, None)
    assert subject.score(subject.model)["loss"] == pytest.approx(run.final_scores()["loss"])
    assert subject.chance() == {}
    model = quantized(capture(subject.model, subject.sample(16)))
    calibrate(model, subject.calibration(24))
    scored = subject.score(model)
    assert scored == subject.score(convert(model))
    name, lost = losses_of(subject.score(subject.model), scored, {})
    assert name == "loss"
    assert abs(lost) < 0.2


def test_a_run_opened_again_gives_the_same_weights_and_data(tmp_path: Path) -> None:
    task = fogline.Task(autoencoder(), nn.MSELoss(), (X, X), (X, X))
    run = fogline.fit(task, runs=tmp_path, name="kept", **FIELDS)
    subject = Subject.of(fogline.Run.open(tmp_path / "kept"), task)
    assert all(torch.equal(a, b) for a, b in zip(subject.model.parameters(), run.model.parameters(), strict=True))
    assert torch.equal(subject.sample(10), X[:10])
    assert torch.cat(list(subject.calibration(1000))).shape == X.shape
    assert subject.model is not run.model
    assert subject.notes == ()


def test_what_a_reader_of_the_report_should_know_is_noted(tmp_path: Path) -> None:
    task = fogline.Task(autoencoder().double(), nn.MSELoss(), (X.double(), X.double()))
    for _ in fogline.descend(task, runs=tmp_path, name="left", **FIELDS):
        break
    subject = Subject.of(fogline.Run.open(tmp_path / "left"), task)
    text = " ".join(subject.notes)
    assert "not finished" in text
    assert "float64" in text
    assert "no held-out data" in text
    assert {parameter.dtype for parameter in subject.model.parameters()} == {torch.float32}
    assert subject.sample(3).dtype == torch.float32


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = autoencoder()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    for _ in fogline.descend(fogline.Task(model, nn.MSELoss(), (X, X)), runs=tmp_path, name="nan", **FIELDS):
        break
    with pytest.raises(ValueError, match=r"expected finite weights, received NaN or infinite ones in '0\.weight'"):
        Subject.of(fogline.Run.open(tmp_path / "nan"), fogline.Task(model, nn.MSELoss(), (X, X)))


@pytest.mark.parametrize(("better", "worse", "chance"), [(0.9, 0.8, 0.1), (2.0, 3.0, 10.0)])
def test_a_loss_is_a_share_of_what_was_learned_in_either_direction(better: float, worse: float, chance: float) -> None:
    def scores(value: float) -> dict[str, float]:
        return {"loss": 1.0, "metric": value}

    assert losses_of(scores(better), scores(worse), scores(chance)) == ("metric", 0.125)


def test_the_worth_of_nothing_is_that_of_shuffled_targets(tmp_path: Path) -> None:
    def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets).float().mean()

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(600, 2, generator=generator)
    labels = (inputs[:, 0] > 0).long()
    task = fogline.Task(autoencoder(), nn.CrossEntropyLoss(), (inputs, labels), (inputs, labels), {"right": accuracy})
    run = fogline.fit(task, runs=tmp_path, **{**FIELDS, "duration": "300st"})
    chance = Subject.of(run, None).chance()
    assert chance["right"] == pytest.approx(0.5, abs=0.08)
    assert chance["loss"] > run.final_scores()["loss"]
