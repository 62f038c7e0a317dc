"""What a plug-in may tell a watched run that hooks cannot see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline._watched_run import WatchedRun
from fogline.doctor import loop_findings

ROWS, STEPS = 16, 12


class Parts(nn.Module):
    """A model whose own forward is never called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return (self.second(self.first(batch[0]).relu()) - batch[1]).square().mean()


def batch(seed: int) -> list[Tensor]:
    x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(seed))
    return [x, x.sum(dim=1, keepdim=True)]


def watched(tmp_path: Path, *, says: bool, poisoned: int = -1) -> WatchedRun:
    """A loop that logs after its step, with or without saying what goes forward."""
    model = Parts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        for step in range(STEPS):
            given = batch(step)
            if step == poisoned:
                given[0][3, 1] = torch.nan
            if says:
                run.forward(given)
            optimizer.zero_grad()
            loss = model.training_step(given)
            loss.backward()
            optimizer.step()
            run.log(loss)
    return run


def test_the_rows_are_those_that_were_said(tmp_path: Path) -> None:
    assert watched(tmp_path, says=True).steps["examples"].tolist() == [ROWS * k for k in range(STEPS)]
    assert watched(tmp_path, says=False).steps["examples"].tolist() == [0] * STEPS


def test_rows_are_not_counted_twice_where_the_model_is_called_too(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        for step in range(STEPS):
            x, y = batch(step)
            run.forward([x, y])
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            run.log(loss)
    assert run.steps["examples"].tolist() == [ROWS * k for k in range(STEPS)]
    assert len(run.findings) == 0


def test_a_batch_that_was_said_is_looked_through_for_nan(tmp_path: Path) -> None:
    run = watched(tmp_path, says=True, poisoned=5)
    (found,) = [row for row in run.findings if row["cause"] == "nan_in_data"]
    assert found["step"] == 5
    assert '"3"' in found["data"]


def test_a_finding_of_somebody_else_is_kept_once(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    run = fogline.watch(model, torch.optim.SGD(model.parameters(), lr=0.05), runs=tmp_path)
    for _ in range(2):
        run.found(loop_findings.undivided(0, 4, ""))
    with pytest.warns(UserWarning, match="no step was seen"):
        run.close()
    assert list(run.findings["cause"]) == ["accumulation_scale"]


@pytest.mark.parametrize("clears", [True, False])
def test_a_step_accumulated_before_its_closure_is_no_fault(tmp_path: Path, clears: bool) -> None:
    """Lightning accumulates so: all batches but the last go backward before the step, the last one within it."""
    model, loss_fn = nn.Linear(4, 1), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with fogline.watch(model, optimizer, loss_fn=loss_fn, runs=tmp_path) as run:
        for step in range(STEPS):
            first, second = batch(2 * step), batch(2 * step + 1)

            def backward(given: list[Tensor]) -> Tensor:
                loss = loss_fn(model(given[0]), given[1]) / 2
                loss.backward()
                return loss

            if clears:
                optimizer.zero_grad()
            backward(first)
            optimizer.step(lambda given=second: backward(given))
    assert ("missing_zero_grad" in list(run.findings["cause"])) is not clears
