"""A loop whose objects are wrapped as Accelerate wraps them; the plug-in itself asks for no package."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fogline.plugins.accelerate import AcceleratedRun, watch

ROWS, BATCH = 32, 8


class Wrapped:
    """As a prepared optimizer: it steps only where gradients are complete."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.complete = optimizer, True

    def step(self) -> None:
        if self.complete:
            self.optimizer.step()

    def zero_grad(self) -> None:
        if self.complete:
            self.optimizer.zero_grad()


def accelerator(main: bool = True) -> Any:
    unwrap = lambda model, keep_torch_compile: model.module if hasattr(model, "module") else model  # noqa: E731
    return SimpleNamespace(is_main_process=main, unwrap_model=unwrap)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_step_has_the_mean_loss_of_its_batches(tmp_path: Path, accumulated: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(ROWS, 4)
    data = TensorDataset(x, x[:, :2].argmax(dim=1))
    loader, loss_fn = DataLoader(data, batch_size=BATCH, shuffle=True), nn.CrossEntropyLoss()
    model = nn.Linear(4, 2)
    outer = SimpleNamespace(module=model)
    optimizer = Wrapped(torch.optim.SGD(model.parameters(), lr=0.1))
    seen = []
    with watch(accelerator(), outer, optimizer, loss_fn=loss_fn, loader=loader, runs=tmp_path) as run:  # type: ignore[arg-type]
        for epoch in range(2):
            for index, (inputs, labels) in enumerate(loader):
                optimizer.complete = (index + 1) % accumulated == 0
                loss = loss_fn(model(inputs), labels)
                (loss / accumulated).backward()
                optimizer.step()
                optimizer.zero_grad()
                run.log(loss)
                seen.append(loss.item())
            run.log(valid={"loss": 1.0}, accuracy=epoch)
    parts = [seen[k : k + accumulated] for k in range(0, len(seen), accumulated)]
    assert run.run is not None
    assert run.run.steps["loss"].tolist() == pytest.approx([sum(part) / len(part) for part in parts])
    assert run.run.examples["target"].tolist() == data.tensors[1].tolist()
    assert {row["name"] for row in run.run.scores} == {"loss", "accuracy"}
    assert len(run.run.findings) == 0


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(accelerator(main=False), model, optimizer, runs=tmp_path) as run:
        run.log(1.0)
        run.log(valid=1.0)
        run.note("nothing")
        assert run.stopping is False
    assert isinstance(run, AcceleratedRun)
    assert run.run is None
    assert list(tmp_path.iterdir()) == []
