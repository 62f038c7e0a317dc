"""Searches: what they find, what they cost, how they end and how they go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fogline
from fogline._tune.rates import ENDS, Rates
from fogline._tune.search import _plan
from programs.searches import RECIPE, SPACE, line_task

FAST = {"recipe": RECIPE, "progress": False}


def told(tuned: fogline.Tuned) -> list[tuple[Any, ...]]:
    return [(row["state"], row["loss"], row["lr"], row["params"]) for row in tuned.trials]


def test_the_first_trial_is_the_recipe_at_the_measured_rate(tmp_path: Path) -> None:
    measured = fogline.find_lr(line_task(), RECIPE.replace(batch_size=16)).value  # the usual one
    tuned = fogline.tune(line_task(), SPACE, trials=1, runs=tmp_path, together=False, **FAST)
    first = tuned.trials[0]
    assert first["lr"] == pytest.approx(measured)
    assert (first["values"]["batch_size"], first["values"]["weight_decay"]) == (16, 0.01)
    assert first["state"] == "complete"
    assert tuned.best.lr == first["lr"]
    assert fogline.Run.open(tuned.folder / first["run"]).final_scores()["loss"] == pytest.approx(first["loss"])


def test_together_and_apart_train_the_same_trial(tmp_path: Path) -> None:
    """Without pruning the opening is the same, and so is what comes of it, up to rounding."""
    searches = [
        fogline.tune(
            line_task(), SPACE, trials=4, runs=tmp_path, name=f"t{together}", together=together, pruning="none", **FAST
        )
        for together in (True, False)
    ]
    shared, alone = (search.trials[0] for search in searches)
    assert (shared["together"], alone["together"]) == (4, 1)
    assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert [step for step, _ in shared["curve"]] == [step for step, _ in alone["curve"]]


@pytest.mark.parametrize("method", ["tpe", "cmaes", "random"])
def test_every_method_searches_within_the_space(method: str, tmp_path: Path) -> None:
    tuned = fogline.tune(line_task(), SPACE, trials=8, runs=tmp_path, method=method, **FAST)
    assert len(tuned.trials) == 8
    for row in tuned.trials:
        assert 1e-4 <= row["lr"] <= 1.0
        assert row["values"]["batch_size"] in (16, 32)
        assert 1e-5 <= row["values"]["weight_decay"] <= 1e-1


def test_brackets_of_different_haste_prune(tmp_path: Path) -> None:
    tuned = fogline.tune(line_task(), SPACE, trials=12, runs=tmp_path, pruning="hyperband", together=False, **FAST)
    assert {row["state"] for row in tuned.trials} == {"complete", "pruned"}


def test_apart_a_search_that_goes_on_is_the_same_to_the_bit(tmp_path: Path) -> None:
    for trials in (2, 9, 11):  # in the opening, and after it
        halves = fogline.tune(line_task(), SPACE, trials=trials, runs=tmp_path, name="two", together=False, **FAST)
    whole = fogline.tune(line_task(), SPACE, trials=11, runs=tmp_path, name="one", together=False, **FAST)
    assert told(halves) == told(whole)


def test_a_killed_search_goes_on_with_the_trial_it_was_in(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    job = subprocess.Popen([sys.executable, "-m", "programs.searches", str(tmp_path)], env=environment)
    deadline = time.monotonic() + 120
    while not (tmp_path / "tune-line" / "trial-0001" / "run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    ended = fogline.tune(line_task(), SPACE, trials=5, runs=tmp_path, together=False, **FAST)
    whole = fogline.tune(line_task(), SPACE, trials=5, runs=tmp_path, name="whole", together=False, **FAST)
    assert told(ended) == told(whole)


@pytest.mark.parametrize("together", [True, False])
def test_a_trial_that_diverges_ends_at_once_and_says_why(together: bool, tmp_path: Path) -> None:
    space = {"lr": fogline.log(2e3, 1e5)}
    recipe = RECIPE.replace(optimizer="momentum", duration="900st")
    with pytest.raises(ValueError, match="trained to its end") as error:
        _ = fogline.tune(
            line_task(), space, recipe=recipe, trials=2, runs=tmp_path, together=together, progress=False
        ).best
    tuned = fogline.Tuned.open(tmp_path / "tune-line")
    for row in tuned.trials:
        assert row["state"] == "diverged"
        assert row["steps"] <= 100
        assert "diverged at step" in row["why"]
    assert "diverged at step" in str(error.value)


def test_arguments_of_the_task_are_chosen_with_the_recipe(tmp_path: Path) -> None:
    tuned = fogline.tune(line_task, {"lr": "auto", "columns": fogline.between(1, 3)}, trials=9, runs=tmp_path, **FAST)
    assert tuned.arguments == {"columns": 3}  # with fewer the sum cannot be told
    assert tuned.task.train[0].shape == (160, 3)
    run = tuned.fit(runs=tmp_path, duration="200st", progress=False)
    assert run.final_scores()["loss"] < 0.05


def test_every_optimizer_reaches_the_whole_range(tmp_path: Path) -> None:
    """What is measured for one optimizer says nothing of how far another may go."""
    space = {"lr": fogline.log(1e-2, 1e-1), "optimizer": ["adamw", "gd"]}
    tuned = fogline.tune(line_task(), space, trials=1, runs=tmp_path, **FAST)
    rates = Rates(_plan(line_task(), RECIPE, space, tmp_path, None), tuned.study, {"optimizer": "adamw"})
    for optimizer in ("adamw", "gd"):
        low, high = (rates.lr({"optimizer": optimizer}, factor) for factor in ENDS)
        assert (low, high) == (1e-2, 1e-1)


def test_a_budget_is_kept(tmp_path: Path) -> None:
    tuned = fogline.tune(line_task(), SPACE, budget="200st", runs=tmp_path, together=False, **FAST)
    steps = [row["steps"] for row in tuned.trials]
    rates = sum(each["steps"] for name, each in tuned.study.user_attrs.items() if name.startswith("rate/"))
    assert sum(steps[:-1]) + rates < 200 <= sum(steps) + rates


def test_several_workers_share_one_search(tmp_path: Path) -> None:
    tuned = fogline.tune(line_task(), SPACE, trials=6, workers=2, runs=tmp_path, together=False, **FAST)
    assert len(tuned.trials) == 6
    assert all(row["state"] in ("complete", "pruned") for row in tuned.trials)
    workers = {trial.user_attrs["worker"]["pid"] for trial in tuned.study.trials}
    assert os.getpid() not in workers


def test_the_usual_space_is_what_the_recipe_leaves_open(tmp_path: Path) -> None:
    recipe = RECIPE.replace(optimizer="auto", batch_size=16)
    tuned = fogline.tune(line_task(), trials=2, runs=tmp_path, recipe=recipe, progress=False)
    assert set(tuned.trials[0]["values"]) == {"lr", "optimizer", "weight_decay"}


def test_another_search_of_the_same_name_is_refused(tmp_path: Path) -> None:
    fogline.tune(line_task(), SPACE, trials=1, runs=tmp_path, **FAST)
    with pytest.raises(ValueError, match="received another space"):
        fogline.tune(line_task(), {"lr": "auto"}, trials=1, runs=tmp_path, **FAST)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "tpee"}, "did you mean 'tpe'"),
        ({"pruning": "asher"}, "did you mean 'asha'"),
        ({"workers": 0}, "workers: expected a whole number"),
        ({"budget": "3ep"}, "budget: expected"),
        ({"space": "all"}, 'a mapping or "auto"'),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_trained(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        fogline.tune(line_task(), runs=tmp_path, **{**FAST, **options})
    assert not list(tmp_path.iterdir())


def test_held_out_data_is_needed(tmp_path: Path) -> None:
    task = fogline.Task(nn.Linear(3, 1), nn.MSELoss(), (torch.randn(8, 3), torch.randn(8, 1)))
    with pytest.raises(ValueError, match="held-out data to compare trials by"):
        fogline.tune(task, trials=1, runs=tmp_path, progress=False)


def test_a_task_that_cannot_be_sent_says_so(tmp_path: Path) -> None:
    task = line_task()
    made = fogline.Task(lambda: nn.Linear(3, 1), nn.MSELoss(), task.train, task.valid)
    with pytest.raises(TypeError, match="workers=2: expected a task that can be sent"):
        fogline.tune(made, SPACE, trials=2, workers=2, runs=tmp_path, **FAST)


def test_without_optuna_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'fogline\[tune\]'"):
        fogline.tune(line_task())
