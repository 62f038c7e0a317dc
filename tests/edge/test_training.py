"""Fine-tuning: how long, at which rate, and what comes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fogline
from edge.networks import Reader
from fogline.edge.capture import capture
from fogline.edge.quantize import Quantized, calibrate, quantized
from fogline.edge.subject import Subject
from fogline.edge.training import fine_tuning, trained


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A network whose batch normalisation undoes the scale of its inputs, which is in the hundreds."""
    inputs = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] * inputs[:, 2] > 0).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(6, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24, bias=False)]
        model = nn.Sequential(*layers, nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3))
    pairs = (300 * inputs[:300], targets[:300]), (300 * inputs[300:], targets[300:])
    recipe = fogline.Recipe(optimizer="adamw", lr=3e-2, batch_size=32, duration="80st", step="eager")
    task = fogline.Task(model, nn.CrossEntropyLoss(), *pairs)
    run = fogline.fit(task, recipe, runs=tmp_path_factory.mktemp("runs"), name="first", progress=False)
    return Subject.of(run, None)


def rounded(subject: Subject) -> Quantized:
    model = quantized(capture(subject.model, subject.sample(64)))
    calibrate(model, subject.calibration(300))
    return model


def test_a_short_run_is_fine_tuned_as_long_as_it_was(subject: Subject) -> None:
    recipe = fine_tuning(subject)
    assert (recipe.duration, recipe.schedule, recipe.validate_every) == ("80st", "linear", "16st")


def test_what_the_curvature_says_nothing_of_gives_way(subject: Subject) -> None:
    other = subject.recipe.replace(optimizer="nadam", options={"momentum_decay": 0.01})
    recipe = fine_tuning(replace(subject, recipe=other))
    assert (recipe.optimizer, recipe.options) == ("adamw", {})
    assert fine_tuning(subject).optimizer == "adamw"
    momentum = fine_tuning(replace(subject, recipe=subject.recipe.replace(optimizer="momentum")))
    assert momentum.optimizer == "momentum"


def test_the_curvature_of_attention_is_known(tmp_path: Path) -> None:
    inputs, targets = torch.randn(64, 4, 6, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = fogline.Task(Reader(), nn.CrossEntropyLoss(), (inputs, targets), (inputs, targets))
    recipe = fogline.Recipe(optimizer="adamw", lr=1e-3, batch_size=32, duration="4st", step="eager")
    subject = Subject.of(fogline.fit(task, recipe, runs=tmp_path, progress=False), None)
    run, _ = trained(subject, rounded(subject), fine_tuning(subject))
    assert run.info["resolved"]["lr"]["evidence"]["edge"] > 0


def test_the_rate_is_measured_again_since_folding_takes_the_normalisation_away(subject: Subject) -> None:
    recipe = fine_tuning(subject)
    measured, _ = trained(subject, rounded(subject), recipe)
    carried, _ = trained(subject, rounded(subject), recipe.replace(lr=subject.recipe.lr / 3, guard=False))
    first = measured.steps["loss"][0]
    assert carried.steps["loss"].max() > 5 * first  # the control: a third of the rate that served the run
    assert measured.steps["loss"].max() < 2 * first
    assert measured.steps["loss"][-10:].mean() < first


def test_the_best_and_the_last_weights_come_of_it_with_their_ranges(subject: Subject) -> None:
    run, models = trained(subject, rounded(subject), fine_tuning(subject))
    losses = np.array(run.scores["value"])[np.array(run.scores["name"]) == "loss"]
    assert [subject.score(model)["loss"] for model in models] == pytest.approx([losses.min(), losses[-1]])
    assert int(models[1].seen) == 80
