"""What a logger is told of a run, and what it is told where the logger is not installed."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fogline
from fogline.plugins import loggers
from fogline.plugins.news import news, settings, verdict_of
from fogline.record.store import Store

STEPS = 30


def loop(run: Any, model: nn.Module, optimizer: torch.optim.Optimizer, clears: bool = True) -> None:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    for step in range(STEPS):
        if clears:
            optimizer.zero_grad()
        loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        run.log(loss)
        if step % 10 == 9:
            run.log(valid=loss.item(), accuracy=0.5)


def begun(folder: Path) -> Any:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return fogline.watch(model, optimizer, runs=folder, name="told"), model, optimizer


def test_a_finished_run_is_told_at_once(tmp_path: Path) -> None:
    run, model, optimizer = begun(tmp_path)
    loop(run, model, optimizer, clears=False)
    run.close()
    (told,) = news(run)
    by_name = {name: [n for n in told.numbers if n.name == name] for name in {n.name for n in told.numbers}}
    assert [n.step for n in by_name["train/loss"]] == list(range(STEPS))
    assert [n.value for n in by_name["train/loss"]] == run.steps["loss"].tolist()
    assert [n.step for n in by_name["valid/accuracy"]] == [9, 19, 29]
    assert [n.time for n in by_name["train/loss"]] == sorted(n.time for n in by_name["train/loss"])
    assert all(n.value == n.value for n in told.numbers)
    assert [one["cause"] for one in told.findings] == ["missing_zero_grad"]
    assert "Remedy: clear the gradients" in told.findings[0]["text"]
    assert told.last
    assert verdict_of(told.info) == (run.verdict.name, run.info["verdict"]["message"])


def test_a_live_run_is_told_in_parts_and_nothing_twice(tmp_path: Path) -> None:
    run, model, optimizer = begun(tmp_path)
    found: list[Any] = []
    following = threading.Thread(target=lambda: found.extend(news(run.folder, live=True, every=0.01)))
    following.start()
    loop(run, model, optimizer)
    run.close()
    following.join(timeout=60)
    assert not following.is_alive()
    steps = [n.step for told in found for n in told.numbers if n.name == "train/loss"]
    assert steps == list(range(STEPS))
    assert [told.last for told in found] == [False] * (len(found) - 1) + [True]


def test_values_that_come_later_for_an_earlier_step_are_told(tmp_path: Path) -> None:
    """A probe fills in more of a step that was written before."""
    store = Store(tmp_path)
    row = (0, 0.0, 16, 0.1, 1.0, 0.1, 2.0)
    store.steps([row, (1, *row[1:])])
    store.flush()
    store.write_info({"verdict": None})
    telling = news(tmp_path, live=True, every=0.0)
    first = next(telling)
    store.steps([(*row, 0.25)])
    store.flush()
    second = next(telling)
    store.write_info({"verdict": {"name": "IMPROVING", "message": "Still improving."}})
    store.close()
    assert {n.name for n in first.numbers} == {"train/loss", "train/lr", "train/grad_norm"}
    assert [(n.name, n.step, n.value) for n in second.numbers] == [("train/update_norm", 0, 0.25)]
    assert next(telling).last


def test_a_run_that_gives_no_sign_is_given_up(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_info({"verdict": None})
    store.close()
    told = list(news(tmp_path, live=True, every=0.01, patience=0.05))
    assert told[-1].last
    assert verdict_of(told[-1].info) is None


def test_settings_are_flat_and_plain() -> None:
    info = {"recipe": {"lr": 0.1, "options": {"betas": [0.9, 0.99]}, "lr_scale": {}}, "versions": {"torch": "2.13"}}
    found = settings(info)
    assert found == {"lr": 0.1, "options.betas": "[0.9, 0.99]", "versions.torch": "2.13"}
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("function", "package"),
    [("to_tensorboard", "tensorboard"), ("to_mlflow", "mlflow"), ("to_wandb", "wandb"), ("to_trackio", "trackio")],
)
def test_a_missing_logger_names_the_command_that_brings_it(
    function: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{package}.*pip install 'fogline\[loggers\]'"):
        getattr(loggers, function)(tmp_path)
