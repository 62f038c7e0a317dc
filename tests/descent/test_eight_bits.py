"""Optimizer state in 8 bits, where torchao is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline.data.source import InMemory
from fogline.descent.batches import Batches
from fogline.descent.objective import Objective
from fogline.descent.optimizers import build, load_state_tensors, state_scalars, state_tensors
from fogline.descent.step import EagerStep, Machine


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """Its step compiles itself, which takes longer than all these tests."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    with torch.compiler.set_stance("force_eager"):
        yield


def _task() -> fogline.Task:
    x = torch.sin(torch.arange(64 * 64.0)).reshape(64, 64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    return fogline.Task(model, nn.MSELoss(), (x, x.sum(1, keepdim=True)))


def _recipe() -> fogline.Recipe:
    return fogline.Recipe(optimizer="adamw8bit", lr=0.01, batch_size=16, duration="16st", watch=0.0)


def _weights(run: fogline.Run) -> list[Tensor]:
    return list(run.model.parameters())


def test_without_torchao_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(ImportError, match=r"pip install 'fogline\[memory\]', or take 'adamw'"):
        fogline.fit(_task(), _recipe(), runs=tmp_path)


@pytest.mark.usefixtures("uncompiled")
def test_it_learns_as_adamw_and_resumes_with_the_same_bits(tmp_path: Path) -> None:
    whole = fogline.fit(_task(), _recipe(), runs=tmp_path, name="whole")
    for step in fogline.descend(_task(), _recipe(), runs=tmp_path, name="cut"):
        if step.number == 6:
            break
    cut = fogline.resume(tmp_path / "cut", _task())
    assert all(torch.equal(a, b) for a, b in zip(_weights(whole), _weights(cut), strict=True))
    full = fogline.fit(_task(), _recipe().replace(optimizer="adamw"), runs=tmp_path, name="full")
    assert whole.steps["loss"][-1] == pytest.approx(full.steps["loss"][-1], rel=0.05)


@pytest.mark.usefixtures("uncompiled")
def test_the_state_of_large_tensors_takes_a_quarter() -> None:
    sizes = {}
    for name in ("adamw", "adamw8bit"):
        model = nn.Linear(128, 128)
        optimizer = build(model, name, 0.01)
        model(torch.ones(2, 128)).sum().backward()
        optimizer.step()
        tensors = state_tensors(optimizer)
        sizes[name] = sum(value.nbytes for key, value in tensors.items() if key.startswith("weight"))
    assert sizes["adamw8bit"] < 0.3 * sizes["adamw"]


@pytest.mark.usefixtures("uncompiled")
def test_the_state_comes_back_bit_by_bit() -> None:
    model, other = nn.Linear(128, 128), nn.Linear(128, 128)
    optimizer = build(model, "adamw8bit", 0.01)
    model(torch.ones(2, 128)).square().sum().backward()
    optimizer.step()
    kept = {name: value.clone() for name, value in state_tensors(optimizer).items()}
    assert all(type(value) is Tensor for value in kept.values())
    twin = build(other, "adamw8bit", 0.01)
    load_state_tensors(twin, kept, state_scalars(optimizer))
    assert {name: value.tolist() for name, value in state_tensors(twin).items()} == {
        name: value.tolist() for name, value in kept.items()
    }


@pytest.mark.usefixtures("uncompiled")
def test_a_refused_step_leaves_its_codes_alone() -> None:
    """As on an accelerator, where a flag on the device decides."""
    x = torch.ones(4, 128)
    model = nn.Linear(128, 128)
    optimizer = build(model, "adamw8bit", 0.01)
    machine = Machine(Objective(model, nn.MSELoss()), optimizer, torch.device("cpu"))
    step = EagerStep(machine, Batches(InMemory((x, x)), 4), deferred=True)
    step.take(0, (x, x), 0.01)
    before = [value.clone() for value in (*machine.parameters, *state_tensors(optimizer).values())]
    step.take(1, (x * torch.nan, x), 0.01)
    after = [*machine.parameters, *state_tensors(optimizer).values()]
    assert any(value.dtype == torch.uint8 and bool(value.any()) for value in after)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
