"""Watched loops whose work is an unusual one, or that log more than their loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fogline
from fogline.doctor.recovered import recover
from fogline.run import Run


def drawn(seed: int = 0) -> torch.Generator:
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def causes(run: Run) -> list[str]:
    return [finding.cause for finding in run.diagnose().findings]


@pytest.mark.parametrize("shape", [(8, 5, 7), (8, 7, 5), (8, 7, 4, 4)])
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_cross_entropy_at_every_place_is_read_back(shape: tuple[int, ...], factor: float) -> None:
    source = drawn()
    outputs = torch.randn(*shape, generator=source, requires_grad=True)
    last = shape[1] != 7
    places = shape[:-1] if last else (shape[0], *shape[2:])
    labels = torch.randint(0, 7, places, generator=source)
    value = F.cross_entropy(outputs.reshape(-1, 7) if last else outputs, labels.reshape(-1) if last else labels)
    (factor * value).backward()
    assert outputs.grad is not None
    found = recover(outputs, outputs.grad, factor * float(value.detach()))
    assert found is not None
    assert torch.equal(found.targets, labels.reshape(-1))
    assert found.factor == pytest.approx(factor)
    assert found.plain == pytest.approx(float(value.detach()))


def test_an_opponent_always_wants_to_be_taken_for_real(tmp_path: Path) -> None:
    source = drawn()
    maker, judge = nn.Linear(4, 2), nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
    methods = [torch.optim.Adam(model.parameters(), lr=1e-3) for model in (maker, judge)]
    criterion = nn.BCEWithLogitsLoss()
    with fogline.watch(maker, methods[0], loss_fn=criterion, runs=tmp_path) as run:
        for _ in range(120):
            made = maker(torch.randn(32, 4, generator=source))
            real = judge(torch.randn(32, 2, generator=source))
            methods[1].zero_grad()
            lost = criterion(real, torch.ones(32, 1)) + criterion(judge(made.detach()), torch.zeros(32, 1))
            lost.backward()
            methods[1].step()
            methods[0].zero_grad()
            value = criterion(judge(made), torch.ones(32, 1))
            value.backward()
            methods[0].step()
            run.log(value)
    assert "constant_target" not in causes(run)


def test_the_first_of_several_candidates_is_always_the_right_one(tmp_path: Path) -> None:
    """As of two views of a row among those of others: whoever answers is given both."""
    source = drawn()

    class Contrast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 8)
            self.register_buffer("others", F.normalize(torch.randn(8, 40, generator=source), dim=0))

        def forward(self, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
            one, two = (F.normalize(self.body(view), dim=1) for view in (one, two))
            scores = torch.cat([(one * two).sum(1, keepdim=True), one @ self.others], 1)
            return scores / 0.2, torch.zeros(len(scores), dtype=torch.long)

    model, criterion = Contrast(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with fogline.watch(model, optimizer, loss_fn=criterion, runs=tmp_path) as run:
        for _ in range(120):
            X = torch.randn(32, 6, generator=source)
            outputs, targets = model(X, X + 0.1 * torch.randn(32, 6, generator=source))
            optimizer.zero_grad()
            loss = criterion(outputs, targets)
            loss.backward()
            optimizer.step()
            run.log(loss)
    assert "constant_target" not in causes(run)


@pytest.mark.parametrize("carried", [True, False])
def test_pieces_of_a_series_follow_one_another_where_a_state_is_carried(carried: bool, tmp_path: Path) -> None:
    drawn()

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reads, self.says = nn.LSTM(1, 16, batch_first=True), nn.Linear(16, 1)

        def forward(self, x: Tensor, state: Any = None) -> Any:
            hidden, state = self.reads(x[..., None], state)
            said = self.says(hidden)[..., 0]
            return (said, state) if carried else said

    model, criterion = Reader(), nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    series = torch.sin(torch.linspace(0, 20, 401)) + torch.linspace(0, 6, 401) + torch.linspace(0, 1, 8)[:, None]
    with fogline.watch(model, optimizer, loss_fn=criterion, runs=tmp_path) as run:
        for _ in range(6):
            state = None
            for at in range(0, 400, 25):
                given, wanted = series[:, at : at + 25], series[:, at + 1 : at + 26]
                if carried:
                    said, state = model(given, state)
                    state = tuple(part.detach() for part in state)
                else:
                    said = model(given)
                optimizer.zero_grad()
                loss = criterion(said, wanted)
                loss.backward()
                optimizer.step()
                run.log(loss)
    assert ("unshuffled_data" in causes(run)) is not carried


def test_numbers_far_off_that_a_robust_loss_hardly_hears(tmp_path: Path) -> None:
    source = drawn()
    X = torch.randn(1000, 6, generator=source)
    y = torch.sin(2 * X[:, 0]) + X[:, 1] + 0.3 * torch.randn(1000, generator=source)
    off = torch.rand(1000, generator=source) < 0.05
    y = torch.where(off, 200 * torch.randn(1000, generator=source), y)
    model, criterion = nn.Sequential(nn.Linear(6, 32), nn.SiLU(), nn.Linear(32, 1)), nn.HuberLoss(delta=0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with fogline.watch(model, optimizer, loss_fn=criterion, runs=tmp_path) as run:
        for _ in range(10):
            for at in torch.randperm(1000, generator=source).split(50):
                optimizer.zero_grad()
                loss = criterion(model(X[at])[:, 0], y[at])
                loss.backward()
                optimizer.step()
                run.log(loss)
    assert causes(run) == []


def labelled(count: int, share: float) -> tuple[Tensor, Tensor]:
    source = drawn()
    X = torch.randn(count, 5, generator=source)
    seen = X[:, 0] + 0.8 * torch.randn(count, generator=source)
    return X, (seen > seen.quantile(1 - share)).float()


def trained(
    tmp_path: Path,
    share: float,
    log: Callable[[Tensor, Tensor], dict[str, Any]],
    *,
    steps: int = 300,
    penalty: float = 0.0,
) -> Run:
    """A loop on yes and no that logs what it is told of held-out rows."""
    X, y = labelled(1200, share)
    model, criterion = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1)), nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    source = drawn(1)
    with fogline.watch(model, optimizer, loss_fn=criterion, runs=tmp_path) as run:
        for k in range(steps):
            at = torch.randint(0, 1000, (50,), generator=source)
            optimizer.zero_grad()
            loss = criterion(model(X[at])[:, 0], y[at])
            loss = loss + penalty * sum(p.abs().sum() for p in model.parameters()) if penalty else loss
            loss.backward()
            optimizer.step()
            run.log(loss)
            if k % 50 == 49:
                with torch.no_grad():
                    said = model(X[1000:])[:, 0]
                    run.log(valid=criterion(said, y[1000:]), **log(said > 0, y[1000:] > 0))
    return run


@pytest.mark.parametrize("share", [0.03, 0.5])
def test_a_recall_of_zero(share: float, tmp_path: Path) -> None:
    found = causes(trained(tmp_path, share, lambda said, y: {"recall": said[y].float().mean()}))
    assert ("class_imbalance" in found) is (share == 0.03)


@pytest.mark.parametrize("wrong", [True, False])
@pytest.mark.parametrize("percent", [True, False])
def test_an_accuracy_that_the_loss_rules_out(wrong: bool, percent: bool, tmp_path: Path) -> None:
    def log(said: Tensor, y: Tensor) -> dict[str, Any]:
        right = (said == y).float().mean() * (100 if percent else 1)
        return {"val_acc": right / 4 if wrong else right}

    found = causes(trained(tmp_path, 0.1, log, steps=400))
    assert ("metric_mismatch" in found) is wrong


@pytest.mark.parametrize("name", ["train_acc", "balanced_accuracy", "vaccinated"])
def test_what_is_no_accuracy_of_held_out_rows_is_not_held_to_their_loss(name: str, tmp_path: Path) -> None:
    found = causes(trained(tmp_path, 0.1, lambda *_: {name: 0.2}, steps=400))
    assert "metric_mismatch" not in found


@pytest.mark.parametrize("penalty", [0.0, 1e-4, 0.2])
def test_a_penalty_beside_a_loss_that_is_a_module(penalty: float, tmp_path: Path) -> None:
    found = causes(trained(tmp_path, 0.5, lambda *_: {}, penalty=penalty))
    assert ("regularization_too_strong" in found) is (penalty == 0.2)


def test_a_rate_that_is_gone_before_anything_was_learned(tmp_path: Path) -> None:
    source = drawn()
    X = torch.randn(1000, 8, generator=source)
    y = (X[:, 0] > 0).long() * 2 + (X[:, 1] > 0).long()
    model, criterion = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=3e-3)
    lowers = torch.optim.lr_scheduler.StepLR(optimizer, 32, 0.05)
    with fogline.watch(model, optimizer, loss_fn=criterion, scheduler=lowers, runs=tmp_path) as run:
        for _ in range(6):
            for at in torch.randperm(1000, generator=source).split(50):
                optimizer.zero_grad()
                loss = criterion(model(X[at]), y[at])
                loss.backward()
                optimizer.step()
                lowers.step()
                run.log(loss)
    assert "bad_schedule" in causes(run)
