"""A batch that does not fit in memory is taken in parts, and the result is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fogline


class Narrow(nn.Module):
    """A linear model on a machine whose memory holds only so many rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.linear = rows, nn.Linear(4, 1, dtype=torch.float64)
        nn.init.ones_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > self.rows and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        out: Tensor = self.linear(x)
        return out


def _data() -> tuple[Tensor, Tensor]:
    X = torch.linspace(-1, 1, 4 * 48, dtype=torch.float64).reshape(48, 4)
    return X, X.sum(dim=1, keepdim=True) ** 2


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_micro_batches_are_halved_without_changing_the_maths(reduction: str, tmp_path: Path) -> None:
    recipe = fogline.Recipe(optimizer="sgd", lr=0.01, batch_size=48, duration="20st", watch=0.0)
    loss = nn.MSELoss(reduction=reduction)
    whole = fogline.fit(fogline.Task(Narrow(48), loss, _data()), recipe, runs=tmp_path, name="whole")
    # The first batch is tried before the run: it must fit there as well.
    model = Narrow(48)
    task = fogline.Task(lambda: _shrinking(model), loss, _data())
    parts = fogline.fit(task, recipe, runs=tmp_path, name="parts")
    assert "out_of_memory" in list(parts.events["kind"])
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def _shrinking(model: Narrow) -> Narrow:
    """The memory is taken by somebody else after the first forward passes."""
    calls = 0

    def shrink(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            model.rows = 10

    model.register_forward_pre_hook(shrink)
    return model


def test_one_row_too_many_is_an_error(tmp_path: Path) -> None:
    model = Narrow(48)
    task = fogline.Task(lambda: _shrinking(model), nn.MSELoss(), _data())
    model.register_forward_pre_hook(lambda *_: setattr(model, "rows", 0 if model.rows == 10 else model.rows))
    with pytest.raises(torch.OutOfMemoryError):
        fogline.fit(task, fogline.Recipe(optimizer="sgd", lr=0.01, batch_size=48, duration="20st"), runs=tmp_path)


def test_a_batch_that_never_fitted_is_taken_in_parts(tmp_path: Path) -> None:
    recipe = fogline.Recipe(optimizer="sgd", lr=0.01, batch_size=48, duration="20st", watch=0.0, step="eager")
    whole = fogline.fit(fogline.Task(Narrow(48), nn.MSELoss(), _data()), recipe, runs=tmp_path)
    parts = fogline.fit(fogline.Task(Narrow(10), nn.MSELoss(), _data()), recipe, runs=tmp_path)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
