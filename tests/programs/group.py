"""Groups of processes that train together, as ``torchrun`` would start them, forked to save the imports."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

import fogline
from fogline import Recipe, Task
from fogline.descent import parallel
from fogline.errors import LostError
from programs import problems

ROWS = 45  # at 8 a batch the last has 5
_CLONE_NEWNET = 0x40000000


def together(
    folder: str, size: int, task: str, patience: float = 120.0, spaces: list[str] | None = None, **given: Any
) -> None:
    """Run one of the functions below in ``size`` processes; their exit codes go to ``codes.json``.

    Args:
        folder: where they work; the first argument of the function.
        size: how many; 1 is a process on its own.
        task: the name of the function.
        patience: ``FOGLINE_PATIENCE``.
        spaces: the network namespaces of the processes, each with an interface ``fog`` and an address 10.77.0.k
        **given: to the function.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_PORT": str(port)}
            os.environ |= {"MASTER_ADDR": "10.77.0.1" if spaces else "127.0.0.1", "FOGLINE_PATIENCE": str(patience)}
            if spaces:
                os.environ["GLOO_SOCKET_IFNAME"] = "fog"
                enter(spaces[rank])
            globals()[task](Path(folder), **given)
            sys.exit()
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    (Path(folder) / "codes.json").write_text(json.dumps(codes))


def enter(space: str) -> None:
    """Go into a network namespace that ``ip netns add`` has made."""
    with open(f"/run/netns/{space}") as place:
        if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {space}")


def rank() -> int:
    return int(os.environ["RANK"])


# -- the same task for any number of processes ---------------------------------------------------------------------


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        X, y = data()
        return X[index], y[index]


class Flow(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(list(zip(*data(), strict=True)))


class Unused(nn.Module):
    """With weights that no batch needs, and weights that only some batches need."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.sometimes, self.never = problems.plain_mlp(), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layers(x)
        large = x[:, :1] > 2.2
        return torch.where(large, outputs + self.sometimes(x), outputs) if bool(large.any()) else outputs


def data() -> tuple[Tensor, Tensor]:
    return problems.points(ROWS, dtype=torch.float64)


def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 2, bias=False), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(),
        nn.Linear(8, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3),
    )  # fmt: skip


def half_ignored() -> tuple[Tensor, Tensor]:
    X, y = data()
    return X, torch.where(torch.arange(ROWS) % 4 < 2, y, -100)


def numbers() -> tuple[Tensor, Tensor]:
    X, _ = data()
    return X, X.sum(dim=1, keepdim=True)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(dim=1) == targets).double().mean()


def variants() -> dict[str, tuple[Task, Recipe]]:
    """Tasks whose steps must not depend on the number of processes."""

    def task(**changes: Any) -> Task:
        held_out = problems.points(600, 1, torch.float64)
        usual = {"model": problems.plain_mlp, "train": data(), "valid": held_out, "metrics": {"accuracy": accuracy}}
        return problems.classification(**(usual | changes))

    def recipe(**changes: Any) -> Recipe:
        usual = {"precision": "float64", "duration": "50st", "checkpoint_every": "1000000st", "watch": 0.5}
        return problems.recipe(**(usual | changes))

    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), label_smoothing=0.1)
    summed = nn.MSELoss(reduction="sum")
    return {
        "plain": (task(), recipe(clip=0.5, ema=0.9)),
        "normalised": (task(model=normalised), recipe(optimizer="nesterov", ema=0.9)),
        "weighted": (task(loss=weighted, train=half_ignored()), recipe()),
        "scarce": (task(), recipe(batch_size=3, optimizer="adamw")),
        "summed": (task(model=lambda: nn.Linear(6, 1), loss=summed, train=numbers(), valid=None, metrics={}),
                   recipe(lr=1e-3)),
        "dataset": (task(train=Pairs()), recipe()),
        "stream": (task(train=Flow()), recipe()),
        "pieces": (task(), recipe(batch_size=4, accumulate=3)),
        "unused": (task(model=Unused), recipe(optimizer="adamw", weight_decay=0.1, batch_size=4)),
        "lbfgs": (task(valid=None), recipe(optimizer="lbfgs", batch_size="full", duration="2st", schedule="constant")),
    }  # fmt: skip


def fit_variants(folder: Path, names: list[str], **changes: Any) -> None:
    parallel.BUCKET_BYTES = 200  # several buckets of every model
    for name in names:
        task, recipe = variants()[name]
        run = fogline.fit(task, recipe.replace(**changes), runs=folder, name=name)
        assert run.verdict is not None
        assert run.final_scores() == run.info.get("scores", {})


def go_on(folder: Path, name: str) -> None:
    fogline.resume(folder / name, variants()[name][0])


def leave_after(folder: Path, name: str, steps: int, **changes: Any) -> None:
    task, recipe = variants()[name]
    for step in fogline.descend(task, recipe.replace(**changes), runs=folder, name=name):
        if step.number + 1 == steps:
            break


# -- what goes wrong -----------------------------------------------------------------------------------------------


class Stopped(nn.Module):
    """Process 1 is signalled at one of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.calls = problems.plain_mlp(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training and torch.is_grad_enabled()
        if self.calls == 9 and rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            self.calls += 1
        outputs: Tensor = self.layers(x)
        return outputs


def fit_until_signal(folder: Path) -> None:
    fogline.fit(problems.classification(model=Stopped), problems.recipe(watch=0), runs=folder, name="stopped")


def go_on_and_fit(folder: Path) -> None:
    task = problems.classification(model=Named)
    fogline.resume(folder / "stopped", task)
    fogline.fit(task, problems.recipe(watch=0), runs=folder, name="quiet")


class Named(nn.Module):
    """The weights of ``Stopped`` under their names."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = problems.plain_mlp()

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layers(x)
        return outputs


def fit_spoiled(folder: Path) -> None:
    X, y = data()
    X[17] = torch.nan
    task = problems.classification(model=problems.plain_mlp, train=(X, y), valid=None)
    fogline.fit(task, problems.recipe(precision="float64", duration="12st"), runs=folder, name="spoiled")


def fit_late(folder: Path) -> None:
    """Process 1 does not come back from the loss of its fourth step."""
    calls = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == 8 and rank() == 1:
            while not (folder / "lost.txt").exists():
                time.sleep(0.1)
            os._exit(0)
        return nn.functional.cross_entropy(outputs, targets)

    try:
        task = problems.classification(model=problems.plain_mlp, loss=loss, valid=None)
        fogline.fit(task, problems.recipe(watch=0), runs=folder, name="late")
    except LostError as error:
        (folder / "lost.txt").write_text(str(error))
        os._exit(0)


def fit_refused(folder: Path) -> None:
    """Data of its own in each process; then batch normalisation without a row for each."""
    found = []
    X, y = data()
    unlike = problems.classification(train=(X + rank(), y))
    scarce = problems.classification(train=(X[:33], y[:33]))
    for task in (unlike, scarce):
        try:
            fogline.fit(task, problems.recipe(), runs=folder)
        except ValueError as error:
            found.append(str(error))
    (folder / f"refused-{rank()}.json").write_text(json.dumps(found))
