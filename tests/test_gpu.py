"""What only an accelerator can show; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline import Recipe, Task
from fogline.descent.prepare import assemble, begin

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here"),
]


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(512, 16, generator=generator)
    return X, (X.sum(dim=1) > 0).long()


def _task(data: tuple[Tensor, Tensor] | None = None) -> Task:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))

    return Task(model, nn.CrossEntropyLoss(), _data() if data is None else data)


def _recipe(**changes: object) -> Recipe:
    return Recipe(
        optimizer="adamw", lr=1e-2, batch_size=32, duration="60st", device="cuda", precision="float32"
    ).replace(**changes)


def test_steps_do_not_wait_for_the_device(tmp_path: Path) -> None:
    descent = assemble(begin(_task(), _recipe(watch=0.0)), tmp_path / "run").descent
    descent.stepper.advance(0, 60, descent.rate)  # the first step allocates
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 30):
            descent.stepper.advance(step, 60, descent.rate)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_refused_step_changes_nothing_and_is_named(tmp_path: Path) -> None:
    X, y = _data()
    X[7] = torch.nan
    run = fogline.fit(_task((X, y)), _recipe(), runs=tmp_path)
    assert all(bool(torch.isfinite(value).all()) for value in run.model.state_dict().values())
    named = [event["message"] for event in run.events if event["kind"] == "refused"]
    assert named
    assert all("rows 7" in message for message in named)


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    whole = fogline.fit(_task(), _recipe(), runs=tmp_path, name="whole")
    loop = fogline.descend(_task(), _recipe(), runs=tmp_path, name="cut")
    for step in loop:
        if step.number == 20:
            loop.close()  # type: ignore[attr-defined]  # a generator
            break
    resumed = fogline.resume(tmp_path / "cut", _task())
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_mixed_precision_checks_itself(tmp_path: Path) -> None:
    run = fogline.fit(_task(), _recipe(precision="bf16"), runs=tmp_path)
    assert run.recipe.precision == "bf16"
    assert run.verdict is not fogline.Verdict.NONFINITE
