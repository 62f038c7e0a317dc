"""What the forked processes do. Every job trains the same small task in a folder and may be ended on the way."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fogline
from fogline import descend, fit, resume  # the page is lazy: imported here, once, and not in every job
from programs import problems
from programs.group import together as together  # a job, too

HELD_OUT = problems.points(600, 1)  # three batches: a signal comes between two


def train(folder: str, width: int = 8, **changes: Any) -> None:
    """Start the run, or go on with it where there is one."""
    go(Path(folder), problems.classification(model=lambda: problems.mlp(width)), changes)


def go(folder: Path, task: fogline.Task, changes: dict[str, Any]) -> None:
    if (folder / "run.json").exists():
        resume(folder, task)
    else:
        fit(task, problems.recipe(**changes), runs=folder.parent, name=folder.name)


def train_until_file_operation(folder: str, count: int, **changes: Any) -> None:
    """Kill itself just before its operation number ``count`` on the names of files below ``checkpoints``."""
    place = str(Path(folder) / "checkpoints")
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and str(arguments[0]).startswith(place):
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    go(Path(folder), problems.classification(), changes)


def train_until_file_size(folder: str, width: int, steps: int, most_bytes: int, **changes: Any) -> None:
    """After some steps no file may grow beyond a limit, as on a full disk."""
    path = Path(folder)
    task = problems.classification(model=lambda: problems.mlp(width))
    for step in descend(task, problems.recipe(**changes), runs=path.parent, name=path.name):
        if step.number + 1 == steps:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))


class Signalling(nn.Module):
    """A model that is signalled at one of its calls: a moment of the program, the same in every run."""

    def __init__(self, when: Callable[[nn.Module], bool], numbers: list[int]) -> None:
        super().__init__()
        self.layers = problems.mlp()
        self.when, self.numbers = when, numbers

    def forward(self, x: Tensor) -> Tensor:
        if self.when(self.layers):
            for number in self.numbers:
                os.kill(os.getpid(), number)
        outputs: Tensor = self.layers(x)
        return outputs


def train_until_signal(folder: str, place: str, numbers: list[int], unseeded: bool = False, **changes: Any) -> None:
    """Send oneself signals within training, validation, the measurement of the learning rate or the judging."""
    path = Path(folder)
    calls = {"training": 0, "validation": 0}

    def when(model: nn.Module) -> bool:
        learning = torch.is_grad_enabled()
        if not (path / "run.sqlite").exists():
            return place == "rate" and learning and (path / "run.json").exists()
        if place == "judging":
            return learning and not model.training
        if place == "scoring":
            return (path / "checkpoints" / "step-00000040").exists()
        calls["training"] += model.training and learning
        calls["validation"] += not model.training and not learning
        return calls.get(place) == {"training": 9, "validation": 5}.get(place) and model.training == learning

    go(path, _signalled(when, numbers, unseeded), changes)


def train_whole(folder: str, unseeded: bool = False, **changes: Any) -> None:
    """The task of ``train_until_signal`` without a signal."""
    go(Path(folder), _signalled(lambda _: False, [], unseeded), changes)


def _signalled(when: Callable[[nn.Module], bool], numbers: list[int], unseeded: bool) -> fogline.Task:
    """A module where its weights shall be the process's own; a function draws them from the run's seed."""
    if unseeded:
        torch.seed()
        return problems.classification(model=Signalling(when, numbers), valid=HELD_OUT)
    return problems.classification(model=lambda: Signalling(when, numbers), valid=HELD_OUT)
