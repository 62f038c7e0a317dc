"""What depends on the mode, in a watched loop: PyTorch's own modules, and what people write themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fogline


class Dropping(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.share, training=self.training)


class OwnNormalisation(nn.BatchNorm1d):
    """A kind of PyTorch's own."""


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x) if self.training else x


class TwoAnswers(nn.Module):
    """What gives something else in each mode, and draws nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x.clamp(-10, 10)


MODULES: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "own dropout": (lambda: Dropping(0.3), True),
    "own dropout of nothing": (lambda: Dropping(0.0), False),
    "own noise": (Noisy, True),
    "own normalisation": (lambda: OwnNormalisation(8), True),
    "two answers": (TwoAnswers, False),
    "random leaks": (lambda: nn.RReLU(0.1, 0.6), True),
    "one leak": (lambda: nn.RReLU(0.2, 0.2), False),
    "instances with statistics": (
        lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()),
        True,
    ),
    "instances": (lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2), nn.Flatten()), False),
}


def causes(
    tmp_path: Path,
    inner: nn.Module,
    *,
    epoch: Callable[[nn.Module], object] = lambda model: None,
    evaluates: bool = True,
    first: nn.Module | None = None,
) -> list[str]:
    """What is said of a loop of four epochs that scores held-out rows after each."""
    torch.manual_seed(0)
    model = nn.Sequential(first or nn.Linear(4, 8), inner, nn.Tanh(), nn.Linear(8, 1))
    loss_fn, optimizer = nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, loss_fn=loss_fn, runs=tmp_path, share=0.5) as run:
        for _ in range(4):
            epoch(model)
            for _ in range(6):
                x = torch.randn(16, 4)
                optimizer.zero_grad()
                loss = loss_fn(model(x), x.sum(1, keepdim=True))
                loss.backward()
                optimizer.step()
                run.log(loss)
            model.train(not evaluates and model.training)
            with torch.no_grad():
                x = torch.ones(8, 4)
                run.log(valid=loss_fn(model(x), x.sum(1, keepdim=True)))
    found: Any = run.findings["cause"]
    return list(found)


@pytest.mark.parametrize("name", MODULES)
def test_modules_that_depend_on_the_mode(name: str, tmp_path: Path) -> None:
    make, depends = MODULES[name]
    assert causes(tmp_path / "a", make()) == (["eval_mode_training"] if depends else [])
    assert causes(tmp_path / "b", make(), evaluates=False) == (["train_mode_eval"] if depends else [])
    assert causes(tmp_path / "c", make(), epoch=lambda model: model.train()) == []


@pytest.mark.parametrize("kept", ["stays as made", "was trained", "frozen"])
def test_normalisation_alone_in_evaluation_mode(kept: str, tmp_path: Path) -> None:
    """A part that is put into evaluation mode on purpose has statistics, or is not trained."""
    part = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    if kept == "was trained":
        part(torch.randn(64, 4))
    part.requires_grad_(kept != "frozen")

    def epoch(model: nn.Module) -> None:
        model.train()
        part.eval()

    found = causes(tmp_path, nn.ReLU(), epoch=epoch, first=part)
    assert ("eval_mode_training" in found) == (kept == "stays as made")


def test_spectral_normalisation_is_watched(tmp_path: Path) -> None:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
    assert causes(tmp_path, layer, epoch=lambda model: model.train()) == []
