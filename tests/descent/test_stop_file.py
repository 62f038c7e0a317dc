"""A file ``stop`` in a run folder: saved and left, as by a signal, without one."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fogline
from fogline.descent.interrupts import STOP, StopRequested, poll, watched_signals, watched_stop
from fogline.record.store import read_info
from programs.problems import classification, final_bits, recipe

Forked = Callable[..., dict[str, Any]]
ENDLESS = {"duration": "60000st", "schedule": "constant", "checkpoint_every": "60000st"}


def ask(run: Path) -> None:
    """Put the file into the folder as soon as the loop has begun."""
    while not ((run / "run.json").exists() and "mechanics" in read_info(run)):
        time.sleep(0.05)
    (run / STOP).touch()


@pytest.fixture
def asking(tmp_path: Path) -> Callable[[], Path]:
    def start() -> Path:
        run = tmp_path / "run"
        threading.Thread(target=ask, args=(run,), daemon=True).start()
        return run

    return start


def test_a_process_that_trains_saves_and_leaves(asking: Callable[[], Path], forked: Forked) -> None:
    run = asking()
    answer = forked("train", folder=run, **ENDLESS)
    assert answer["code"] == 143, answer["errors"]
    info = read_info(run)
    assert info["verdict"]["name"] == "INTERRUPTED"
    assert info["steps"] < 60_000
    assert not (run / STOP).exists()
    resumed = fogline.resume(run, classification(), duration=f"{info['steps'] + 5}st")
    whole = fogline.fit(
        classification(), recipe(duration=f"{info['steps'] + 5}st", schedule="constant"), runs=run.parent, name="whole"
    )
    assert final_bits(resumed.folder) == final_bits(whole.folder)


def test_descend_stops_at_the_step_that_follows(tmp_path: Path) -> None:
    steps = fogline.descend(classification(), recipe(**ENDLESS), runs=tmp_path, name="run")
    assert [next(steps).number for _ in range(3)] == [0, 1, 2]
    (tmp_path / "run" / STOP).touch()
    time.sleep(0.3)  # the file is looked for four times a second
    with pytest.raises(fogline.Interrupted) as stopped:
        next(steps)
    assert stopped.value.code == 143
    assert stopped.value.run.info["steps"] == 3


def test_a_file_that_was_left_behind_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / STOP).touch()
    assert fogline.fit(classification(), recipe(), runs=tmp_path, name="run").info["steps"] == 40
    assert not (tmp_path / "run" / STOP).exists()


def test_a_run_looks_for_its_own_file_only(tmp_path: Path) -> None:
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
    with watched_stop(tmp_path / "outer"):
        (tmp_path / "outer" / STOP).touch()
        with watched_stop(tmp_path / "inner"):
            poll()
    (tmp_path / "outer" / STOP).touch()
    poll()


def test_a_watched_loop_is_told_and_decides_itself(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    taken = 0
    with fogline.watch(model, optimizer, runs=tmp_path, name="run") as run:
        assert not run.stopping
        for _ in range(100_000):
            if run.stopping:
                break
            optimizer.zero_grad()
            loss = model(torch.eye(2)).square().mean()
            loss.backward()
            optimizer.step()
            run.log(loss)
            taken += 1
            (run.folder / STOP).touch()
        assert run.stopping
    assert run.info["steps"] == taken < 100_000
    assert not (run.folder / STOP).exists()


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C as Python handles it by itself: a shell that puts tests in the background has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_a_signal_that_comes_too_late_for_the_loop_is_not_lost() -> None:
    with watched_signals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(StopRequested):
            poll()
    with pytest.raises(KeyboardInterrupt), watched_signals():
        signal.raise_signal(signal.SIGINT)
