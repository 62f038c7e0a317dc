"""Loops as trainers write them: models that return their loss, closures, parts of a module, layers thawed later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fogline
from fogline.doctor.inventory import alike
from fogline.run import Run


def told(run: Run) -> list[str]:
    return run.findings["cause"].tolist()


def batch(step: int, rows: int = 16) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(step))
    return x, x.sum(1, keepdim=True)


def net(outputs: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs))


class WithLoss(nn.Module):
    """Computes its own loss, and gives it alone, or beside its outputs."""

    def __init__(self, gives: str, loss: Any, outputs: int = 1) -> None:
        super().__init__()
        self.net, self.gives, self.loss = net(outputs), gives, loss

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        logits = self.net(x)
        loss = self.loss(logits, labels)
        return loss if self.gives == "alone" else {"loss": loss, "logits": logits}


def trained(model: nn.Module, tmp_path: Path, labels: Any, *, batches: int = 1, lr: float = 0.01) -> Run:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.5) as run:
        for step in range(16):
            optimizer.zero_grad()
            for k in range(batches):
                x, y = batch(step * batches + k)
                found = model(x, labels=labels(y))
                loss = found if isinstance(found, Tensor) else found["loss"]
                loss.backward()
                run.log(loss)
            optimizer.step()
    return run


@pytest.mark.parametrize("gives", ["alone", "beside"])
@pytest.mark.parametrize("fault", ["columns", "softmax", "one label", None])
def test_a_model_that_returns_its_loss(gives: str, fault: str | None, tmp_path: Path) -> None:
    losses = {
        "columns": lambda logits, y: ((logits - y) ** 2).mean(),
        "softmax": lambda logits, y: F.cross_entropy(logits.softmax(1), y),
    }
    model = WithLoss(gives, losses.get(fault or "", F.cross_entropy), 1 if fault == "columns" else 3)
    labels = {
        "columns": lambda y: y[:, 0],
        "one label": lambda y: torch.zeros(len(y), dtype=torch.long),
    }.get(fault or "", lambda y: (y[:, 0] > 0).long() + (y[:, 0] > 1).long())
    expected = {"columns": "shape_broadcast", "softmax": "double_softmax", "one label": "constant_target", None: None}
    assert told(trained(model, tmp_path, labels)) == [cause for cause in (expected[fault],) if cause]


@pytest.mark.parametrize(("reduction", "cause"), [("mean", ["accumulation_scale"]), ("sum", [])])
def test_losses_of_several_batches_within_a_model(reduction: str, cause: list[str], tmp_path: Path) -> None:
    model = WithLoss("alone", lambda logits, y: F.cross_entropy(logits, y, reduction=reduction), 2)
    run = trained(model, tmp_path, lambda y: (y[:, 0] > 0).long(), batches=4, lr=1e-3)
    assert told(run) == cause


@pytest.mark.parametrize("clears", [True, False])
def test_a_closure_that_is_asked_again(clears: bool, tmp_path: Path) -> None:
    model, (x, y) = net(), batch(0, 64)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.5) as run:
        for _ in range(8):

            def closure() -> Tensor:
                if clears:
                    optimizer.zero_grad()
                loss = F.mse_loss(model(x), y)
                loss.backward()
                return loss

            optimizer.zero_grad()
            run.log(optimizer.step(closure))
    assert told(run) == ([] if clears else ["missing_zero_grad"])
    if not clears:
        assert any("loss.backward()" in str(e.value) for e in run.diagnose().findings[0].evidence)


@pytest.mark.parametrize("cut", [True, False])
def test_a_part_of_a_module_that_no_gradient_reaches(cut: bool, tmp_path: Path) -> None:
    pair = nn.ModuleDict({"maker": net(4), "judge": net()})
    optimizer = torch.optim.Adam(pair["maker"].parameters(), lr=1e-3)
    with fogline.watch(pair, optimizer, runs=tmp_path, share=0.5) as run:
        for step in range(12):
            made = pair["maker"](batch(step)[0])
            optimizer.zero_grad()
            loss = F.softplus(-pair["judge"](made.detach() if cut else made)).mean()
            loss.backward()
            optimizer.step()
            run.log(loss)
    causes = [f.cause for f in run.diagnose().findings]
    assert (causes[:1] == ["detached_graph"]) is cut


def test_only_a_parameter_behind_the_layers_learns(tmp_path: Path) -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.scale = net(3), nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.net(x)
            return scores

    model = Rounded()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.5) as run:
        for step in range(8):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x).argmax(1).float() * model.scale, y[:, 0])
            loss.backward()
            optimizer.step()
            run.log(loss)
    assert told(run) == ["detached_graph"]


@pytest.mark.parametrize("thaws", [True, False])
def test_layers_that_the_loop_freezes_at_first(thaws: bool, tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.5) as run:
        for step in range(12):
            model[0].requires_grad_(thaws and step > 5)
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            run.log(loss)
    causes = [f.cause for f in run.diagnose().findings]
    assert "detached_graph" not in causes
    assert ("frozen_parameters" in causes) is not thaws


def test_gradients_that_an_earlier_training_left(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher, self.student = net(), net()

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.student(x)
            return found

    model, (x, y) = Pair(), batch(0)
    F.mse_loss(model.teacher(x), y).backward()
    optimizer = torch.optim.SGD(model.student.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.5) as run:
        for step in range(12):
            x, y = batch(step)
            with torch.no_grad():
                wanted = model.teacher(x)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), wanted)
            loss.backward()
            optimizer.step()
            run.log(loss)
    assert told(run) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_overflowed_are_not_alike(value: float) -> None:
    layer = nn.Linear(4, 8)
    nn.init.constant_(layer.weight, value)
    assert not alike(layer)


def test_a_logarithm_that_the_loop_takes(tmp_path: Path) -> None:
    model = nn.Sequential(net(3), nn.Softmax(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.5) as run:
        for step in range(12):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.nll_loss(torch.log(model(x) + 1e-7), (y[:, 0] > 0).long())
            loss.backward()
            optimizer.step()
            run.log(loss)
    assert "loss_mismatch" not in told(run)
