"""Resumed at any step, a run has the bits of one that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

import fogline
from fogline import Verdict
from programs.problems import again, classification, counted, final_bits, losses, model_bits, points, recipe

CASES: dict[str, dict[str, Any]] = {
    "momentum, adaptive clipping, one-cycle": {"clip": "adaptive", "schedule": "one_cycle"},
    "adamw, averaged weights, cosine": {"optimizer": "adamw", "ema": 0.9, "schedule": "cosine"},
    "schedule-free, accumulation": {"optimizer": "schedule_free", "accumulate": 2, "batch_size": 4},
    "plateau": {"schedule": "plateau", "lr": 1.5, "validate_every": "2st", "warmup": 0, "ema": 0.5},
    "patience": {"optimizer": "adamw", "lr": 0.2, "patience": 5, "validate_every": "2st", "duration": "200st"},
}


@pytest.mark.parametrize("name", CASES)
def test_resume_at_every_step(name: str, quick_path: Path) -> None:
    task, chosen = classification(), recipe(keep=1000, **CASES[name])
    whole = fogline.fit(task, chosen, runs=quick_path, name="whole")
    wanted, counts, weights = final_bits(whole.folder), counted(whole.folder), model_bits(whole)
    steps = len(whole.steps)
    for step in range(steps + 1):
        run = fogline.resume(again(whole.folder, quick_path / str(step), step, checkpoint_every="1000st"), task)
        assert final_bits(run.folder) == wanted, step
        assert counted(run.folder) == counts, step
        assert model_bits(run) == weights, step
        assert losses(run) == losses(whole), step
        assert list(run.scores) == list(whole.scores), step
        assert run.final_scores() == whole.final_scores(), step
    if name == "patience":
        assert steps < 100  # it did stop early
    else:
        assert steps == 40
    if name == "plateau":
        assert counts["plateau"]["factor"] < 1  # it did lower the rate


@pytest.mark.parametrize("optimizer", ["lbfgs", "prodigy", "muon", "lion", "asgd", "rprop"])
def test_resume_of_the_other_kinds_of_state(optimizer: str, quick_path: Path) -> None:
    task, chosen = classification(), recipe(optimizer=optimizer, keep=1000, duration="12st", batch_size="full")
    whole = fogline.fit(task, chosen, runs=quick_path, name="whole")
    run = fogline.resume(again(whole.folder, quick_path / "cut", 7), task)
    assert final_bits(run.folder) == final_bits(whole.folder)
    assert losses(run) == losses(whole)


def test_saving_changes_nothing(quick_path: Path) -> None:
    task = classification()
    whole = fogline.fit(task, recipe(optimizer="schedule_free", ema=0.9), runs=quick_path, name="whole")
    quiet = fogline.resume(again(whole.folder, quick_path / "quiet", checkpoint_every="1000st"), task)
    assert final_bits(quiet.folder) == final_bits(whole.folder)


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Every example gets noise when it is read."""

    def __init__(self) -> None:
        self.x, self.y = points()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index] + 0.1 * torch.randn(self.x.shape[1]), self.y[index]


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Any:
        for x, y in zip(*points(), strict=True):
            yield x + 0.1 * torch.randn(x.shape), y


@pytest.mark.parametrize("data", [Augmented, Endless])
def test_resume_within_an_epoch_of_a_dataset(data: type[Dataset[Any]], quick_path: Path) -> None:
    task = classification(train=data())
    whole = fogline.fit(task, recipe(keep=1000, duration="16st", validate_every="4st"), runs=quick_path, name="whole")
    for step in (0, 3, 6, 11):
        run = fogline.resume(again(whole.folder, quick_path / str(step), step), task)
        assert final_bits(run.folder) == final_bits(whole.folder)
        assert losses(run) == losses(whole)


def test_leaving_descend_saves_and_resume_goes_on(quick_path: Path) -> None:
    task, chosen = classification(), recipe(keep=1000)
    whole = fogline.fit(task, chosen, runs=quick_path, name="whole")
    for step in fogline.descend(task, chosen.replace(checkpoint_every="1000st"), runs=quick_path, name="left"):
        if step.number == 16:
            run = step.run
            break
    assert run.verdict is Verdict.INTERRUPTED
    assert losses(run) == losses(whole)[:17]
    run = fogline.resume(run.folder, task)
    assert final_bits(run.folder) == final_bits(whole.folder)


def test_a_finished_run_is_returned_as_it_is_and_goes_on_with_a_longer_duration(quick_path: Path) -> None:
    task = classification()
    short = recipe(schedule="constant", warmup=0, duration="10st")
    run = fogline.fit(task, short, runs=quick_path, name="run")
    before = final_bits(run.folder)
    assert len(fogline.resume(run.folder, task).steps) == 10
    assert final_bits(run.folder) == before
    with pytest.raises(ValueError, match="more than the 10 steps that are done, received '9st', which is 9"):
        fogline.resume(run.folder, task, duration="9st")
    assert run.recipe.duration == "10st"
    whole = fogline.resume(again(run.folder, quick_path / "whole"), task, duration="25st")
    longer = fogline.resume(run.folder, task, duration="25st")
    assert len(longer.steps) == 25
    assert losses(longer) == losses(whole)


def test_without_held_out_data_a_longer_run_keeps_its_own_last_weights(quick_path: Path) -> None:
    task = classification(valid=None)
    run = fogline.fit(task, recipe(schedule="constant", warmup=0, duration="10st"), runs=quick_path, name="run")
    short = model_bits(run)
    whole = fogline.resume(again(run.folder, quick_path / "whole"), task, duration="25st")
    longer = fogline.resume(run.folder, task, duration="25st")
    assert model_bits(longer) == model_bits(whole) != short


def test_other_data_is_refused(quick_path: Path) -> None:
    task = classification()
    run = fogline.fit(task, recipe(duration="4st", keep=9), runs=quick_path, name="run")
    cut = again(run.folder, quick_path / "cut", 2)
    with pytest.raises(ValueError, match="received other data"):
        fogline.resume(cut, classification(train=points(seed=5)))


def test_resume_wants_a_run_and_its_task(quick_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a run folder with a run\.json"):
        fogline.resume(quick_path / "nothing", classification())
    run = fogline.fit(classification(), recipe(duration="2st"), runs=quick_path, name="run")
    with pytest.raises(TypeError, match="expected the task of the run"):
        fogline.resume(run.folder)


def test_tied_weights_come_back_tied(quick_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3))
        model[2].weight = model[0].weight
        return model

    task = classification(model=tied)
    whole = fogline.fit(task, recipe(keep=100, duration="10st"), runs=quick_path, name="whole")
    run = fogline.resume(again(whole.folder, quick_path / "cut", 5), task)
    assert final_bits(run.folder) == final_bits(whole.folder)
    assert run.model[2].weight is run.model[0].weight  # type: ignore[index]
