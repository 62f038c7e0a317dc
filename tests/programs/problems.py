"""Small problems that the tests of the engine, and the processes they start, train on."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fogline import Recipe, Run, Task
from fogline.descent import checkpoint
from fogline.record.store import read_info, write_json

EXAMPLES, FEATURES, CLASSES = 44, 6, 3


def points(count: int = EXAMPLES, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Points of three overlapping clouds and which cloud each is of."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centres = 1.5 * torch.eye(CLASSES, FEATURES)
    return (centres[labels] + torch.randn(count, FEATURES, generator=generator)).to(dtype), labels


def mlp(width: int = 8) -> nn.Module:
    """Dropout draws, batch normalisation remembers: both must come back after a resume."""
    return nn.Sequential(
        nn.Linear(FEATURES, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, CLASSES)
    )


def plain_mlp() -> nn.Module:
    """Without randomness and without buffers."""
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def classification(**changes: Any) -> Task:
    return Task(**{"model": mlp, "loss": nn.CrossEntropyLoss(), "train": points(), "valid": points(30, 1)} | changes)


def recipe(**changes: Any) -> Recipe:
    """Every choice made, nothing measured: two runs differ in nothing that the clock decides."""
    chosen: dict[str, Any] = {
        "optimizer": "momentum", "lr": 0.05, "batch_size": 8, "duration": "40st", "schedule": "linear", "warmup": 2,
        "precision": "float32", "step": "eager", "device": "cpu", "checkpoint_every": "1st", "keep": 2,
    }  # fmt: skip
    return Recipe(**(chosen | changes))


def again(run: Path, folder: Path, upto: int = 0, **changes: Any) -> Path:
    """The folder of a run as it was when its checkpoint of step ``upto`` was the last thing written (0: none was).

    Args:
        run: a finished run; its checkpoints up to ``upto`` are copied into the new folder.
        folder: the new folder, ready to be resumed.
        upto: the step.
        **changes: to the recipe as resolved; ``step`` modes and durations excepted, which are decided elsewhere.
    """
    info = read_info(run)
    folder.mkdir(parents=True)
    write_json(folder / "run.json", info | {"verdict": None, "recipe": info["recipe"] | changes})
    shutil.copy(run / "run.sqlite", folder)  # with rows of later steps, as where a process was killed
    (folder / "checkpoints").mkdir()
    for place in (run / "checkpoints").iterdir():
        if int(place.name.removeprefix("step-")) <= upto:
            shutil.copytree(place, folder / "checkpoints" / place.name)
    return folder


def final_bits(run: Path) -> dict[str, bytes]:
    """Every tensor of the last checkpoint: weights, buffers, best weights, optimizer state, averages, clip memory."""
    found, skipped = checkpoint.latest(run)
    assert found is not None
    assert skipped == []
    return {f"{found.step}/{name}": bits(value) for name, value in (found.model | found.optimizer).items()}


def counted(run: Path) -> dict[str, Any]:
    """What the last checkpoint counted, the time excepted."""
    found, _ = checkpoint.latest(run)
    assert found is not None
    return {name: value for name, value in found.state["counters"].items() if name != "seconds"}


def model_bits(run: Run) -> dict[str, bytes]:
    """The weights that were kept."""
    return {name: bits(value) for name, value in run.model.state_dict().items()}


def losses(run: Run) -> list[float]:
    """One a step; NaN becomes None, so that lists compare."""
    return [None if math.isnan(value) else value for value in run.steps["loss"].tolist()]  # type: ignore[misc]


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
