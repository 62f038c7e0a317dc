"""A loop that Accelerate runs, watched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fogline.plugins.accelerate import AcceleratedRun, watch
from fogline.run import Run
from fogline.verdict import Verdict

ROWS, BATCH, EPOCHS = 96, 16, 2


def data() -> TensorDataset:
    x = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, x[:, :3].argmax(dim=1))


def loop(accumulated: int, watching: bool, precision: str = "no", **given: Any) -> tuple[nn.Module, Any, list[float]]:
    """Two epochs; gives the model, the watched run and the loss of every batch."""
    torch.manual_seed(0)
    AcceleratorState._reset_state(reset_partial_state=True)  # which outlives an Accelerator, with its precision
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulated, mixed_precision=precision)
    model, loss_fn = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    loader = DataLoader(data(), batch_size=BATCH, shuffle=True)
    model, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)
    losses = []
    run: Any = None
    if watching:
        run = watch(accelerator, model, optimizer, loss_fn=loss_fn, scheduler=scheduler, loader=loader, **given)
    for _ in range(EPOCHS):
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = loss_fn(model(x), y)
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            if run is not None:
                run.log(loss)
        if run is not None:
            run.log(valid=0.5, accuracy=0.9)
    if run is not None:
        run.close()
    return model, run, losses


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("accumulated", [1, 2, 3])
def test_weights_are_bitwise_what_they_are_without_it(accumulated: int, precision: str) -> None:
    plain, _, _ = loop(accumulated, False, precision)
    watched, _, _ = loop(accumulated, True, precision)
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("accumulated", [1, 2, 3])
def test_a_step_has_the_mean_loss_of_its_batches(accumulated: int) -> None:
    _, found, losses = loop(accumulated, True)
    steps = found.run.steps
    parts = [losses[k : k + accumulated] for k in range(0, len(losses), accumulated)]
    assert steps["loss"].tolist() == pytest.approx([sum(part) / len(part) for part in parts])
    assert steps["examples"][-1] == EPOCHS * ROWS - BATCH * accumulated
    assert steps["lr"].tolist() == pytest.approx([0.1 * 0.9**k for k in range(len(parts))])
    assert len(found.run.findings) == 0


def test_examples_and_scores_are_recorded() -> None:
    _, found, _ = loop(1, True)
    table = found.run.examples
    assert table["epochs"].tolist() == [EPOCHS] * ROWS
    assert table["target"].tolist() == data().tensors[1].tolist()
    assert {row["name"] for row in found.run.scores} == {"loss", "accuracy"}
    assert sorted({row["step"] for row in found.run.scores}) == [5, 11]


def test_an_exception_ends_the_run_as_interrupted() -> None:
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(2, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def fail(run: AcceleratedRun) -> None:
        for _ in range(3):
            loss = model(torch.ones(4, 2)).square().mean()
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            run.log(loss)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"), watch(accelerator, model, optimizer) as run:
        fail(run)
    assert run.run is not None
    assert run.run.verdict is Verdict.INTERRUPTED
    assert not run.stopping


BY_TWO = """
import os
import torch
from accelerate import Accelerator
from test_accelerate import data
from torch import nn
from torch.utils.data import DataLoader
from fogline.plugins.accelerate import watch

torch.manual_seed(0)
accelerator = Accelerator(cpu=True)
model, loss_fn = nn.Linear(6, 3), nn.CrossEntropyLoss()
optimizer, loader = torch.optim.SGD(model.parameters(), lr=0.1), DataLoader(data(), batch_size=8, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
assert accelerator.num_processes == 2
with watch(accelerator, model, optimizer, loss_fn=loss_fn, loader=loader, name="two") as run:
    for inputs, labels in loader:
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), labels)
        accelerator.backward(loss)
        optimizer.step()
        run.log(loss)
os._exit(0)  # or a thread of Gloo may abort what has ended: github.com/pytorch/pytorch/pull/179291
"""


def test_of_two_processes_the_main_one_records_what_it_sees(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(BY_TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "two.py"]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    (run,) = [Run.open(folder) for folder in (tmp_path / "runs").iterdir()]
    assert len(run.steps) == ROWS // 16
    table = run.examples
    seen = table["epochs"] > 0
    assert seen.sum() == ROWS // 2
    assert table["target"][seen].tolist() == data().tensors[1].numpy()[: len(seen)][seen].tolist()


def test_other_processes_log_into_nothing() -> None:
    with AcceleratedRun(None, None) as run:
        run.log(1.0)
        run.log(valid=1.0, accuracy=0.5)
        run.note("nothing")
    assert run.run is None
    assert run.stopping is False
