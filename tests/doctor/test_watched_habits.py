"""Habits of loops that look alike and are not: of optimizers, modes, frozen parts, schedules and transforms."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fogline
from fogline.run import Run

lr_scheduler = torch.optim.lr_scheduler


def net(*, noisy: bool = False, outputs: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), *([nn.Dropout(0.1)] if noisy else []), nn.ReLU(), nn.Linear(8, outputs))


def batch(step: int, rows: int = 16) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(step))
    return x, x.sum(1, keepdim=True)


def told(run: Run) -> list[str]:
    return run.findings["cause"].tolist()


# -- optimizers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["another model's", "before it was copied"])
def test_an_optimizer_of_no_parameter_of_the_model(fault: str, tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model = net() if fault == "another model's" else copy.deepcopy(model)
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.5) as run:
        for step in range(8):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            run.log(loss)
    assert told(run) == ["parameters_not_optimized"]
    assert run.diagnose().findings[0].severity == "fatal"


@pytest.mark.parametrize("second", ["takes turns", "never steps"])
def test_an_optimizer_that_has_the_rest(second: str, tmp_path: Path) -> None:
    model = net()
    one, two = (torch.optim.SGD(model[k].parameters(), lr=0.01) for k in (0, 2))
    with fogline.watch(model, one, runs=tmp_path, share=0.5) as run:
        for step in range(40):
            x, y = batch(step)
            model.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            (two if second == "takes turns" and step // 10 % 2 else one).step()
            run.log(loss)
    assert told(run) == ([] if second == "takes turns" else ["parameters_not_optimized"])


@pytest.mark.parametrize(
    ("steps", "count", "expected"),
    [
        ("none", 30, ["parameters_not_optimized"]),
        ("none", 6, []),  # broken off
        ("of one made anew", 30, ["optimizer_mismatch"]),
        ("of its own", 30, []),
    ],
)
@pytest.mark.filterwarnings("ignore:no step was seen")
def test_an_optimizer_that_takes_no_step(steps: str, count: int, expected: list[str], tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.5) as run:
        for step in range(count):
            x, y = batch(step)
            model.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            if steps == "of one made anew":
                torch.optim.Adam(model.parameters(), lr=0.01).step()
            elif steps == "of its own":
                optimizer.step()
            run.log(loss)
    assert told(run) == expected


class Sequence(nn.Module):
    """A recurrent layer that takes the rows first, or second."""

    def __init__(self, *, rows_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.head = nn.GRU(2, 8, batch_first=rows_first), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.gru(x)[0][:, -1])
        return found


@pytest.mark.parametrize("rows_first", [True, False])
def test_a_recurrent_layer_that_goes_from_row_to_row(rows_first: bool, tmp_path: Path) -> None:
    model = Sequence(rows_first=rows_first)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loss_fn = nn.MSELoss()
    with fogline.watch(model, optimizer, loss_fn=loss_fn, runs=tmp_path, share=0.5) as run:
        for step in range(20):
            x = torch.randn(32, 6, 2, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            loss = loss_fn(model(x), x[..., :1].sum(1))
            loss.backward()
            optimizer.step()
            run.log(loss)
    assert told(run) == ([] if rows_first else ["shape_broadcast"])


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_that_are_cleared_before_the_step(to_none: bool, tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.5) as run:
        for step in range(8):
            x, y = batch(step)
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.zero_grad(set_to_none=to_none)
            optimizer.step()
            run.log(loss)
    assert told(run) == ["detached_graph"]
    assert "cleared before the optimizer stepped" in run.diagnose().findings[0].explanation


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = torch.randn(4, 8, requires_grad=True), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head((x @ self.weight).relu())
        return found


class Learner(nn.Module):
    """A student beside a frozen copy of it that follows, or beside a frozen network whose answers it gives too."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.student = kind, net(outputs=4)
        self.teacher = copy.deepcopy(self.student) if kind == "copy" else nn.Linear(4, 4)
        self.teacher.requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        taught = self.teacher(x)
        return (self.student(x), taught) if self.kind == "answers" else self.student(x) - taught


@pytest.mark.parametrize("kind", ["copy", "answers"])
def test_a_frozen_part_that_is_a_target(kind: str, tmp_path: Path) -> None:
    model = Learner(kind)
    optimizer = torch.optim.SGD(model.student.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.5) as run:
        for step in range(8):
            optimizer.zero_grad()
            found = model(batch(step)[0])
            loss = F.mse_loss(*found) if kind == "answers" else (found - 1).square().mean()
            loss.backward()
            optimizer.step()
            run.log(loss)
    assert told(run) == []


def test_a_plain_tensor_that_asks_for_a_gradient(tmp_path: Path) -> None:
    model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.5) as run:
        for step in range(8):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            run.log(loss)
    assert told(run) == ["parameters_not_optimized"]


# -- modes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("habit", ["graph", "not logged", "of the batch", "sound"])
def test_passes_in_training_mode(habit: str, tmp_path: Path) -> None:
    model = net(noisy=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.5) as run:
        for step in range(36):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            if habit == "of the batch":
                run.log(loss, error=loss.detach().sqrt())
            loss.backward()
            optimizer.step()
            run.log(loss)
            if step % 6 == 5:
                model.train(habit != "sound")
                with torch.set_grad_enabled(habit == "graph"):
                    error = F.mse_loss(model(x), y).detach() if habit != "of the batch" else loss.detach()
                if habit in ("graph", "sound"):
                    run.log(valid=error)
                model.train()
    assert told(run) == (["train_mode_eval"] if habit in ("graph", "not logged") else [])


# -- losses and schedules ------------------------------------------------------------------------------------------


def test_several_losses_of_one_pass_are_no_accumulation(tmp_path: Path) -> None:
    model, loss_fn = net(outputs=3), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, loss_fn=loss_fn, runs=tmp_path, share=0.5) as run:
        for step in range(8):
            x, y = batch(step)
            optimizer.zero_grad()
            found = model(x)
            for k in range(3):
                loss_fn(found[:, k : k + 1], y).backward(retain_graph=True)
            optimizer.step()
    assert told(run) == []


def test_one_number_a_row_against_a_flat_target(tmp_path: Path) -> None:
    model = net(outputs=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.5) as run:
        for step in range(4):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = (model(x).gather(1, (y > 0).long()) - y.flatten()).square().mean()
            loss.backward()
            optimizer.step()
            run.log(loss.item())
    assert told(run) == ["shape_broadcast"]


SCHEDULES: dict[str, tuple[Any, bool]] = {
    "cosine for steps, once an epoch": (lambda o: lr_scheduler.CosineAnnealingLR(o, 100), True),
    "cosine for epochs": (lambda o: lr_scheduler.CosineAnnealingLR(o, 5), False),
    "a warm-up for steps, once an epoch": (lambda o: lr_scheduler.LinearLR(o, 0.01, total_iters=60), True),
    "restarts by a fraction": (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2), False),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_of_steps_and_epochs(name: str, tmp_path: Path) -> None:
    make, faulty = SCHEDULES[name]
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = make(optimizer)
    with fogline.watch(model, optimizer, scheduler=scheduler, runs=tmp_path, share=0.5) as run:
        for step in range(100):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            run.log(loss)
            if name.startswith("restarts"):
                scheduler.step(step / 20)
            elif step % 20 == 19:
                scheduler.step()
    assert told(run) == (["schedule_step_unit"] if faulty else [])


def test_gradients_of_single_rows_by_a_transform(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def loss_of(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(torch.func.functional_call(model, parameters, (x[None],)), y[None])

    with fogline.watch(model, optimizer, runs=tmp_path, share=0.5) as run:
        for step in range(8):
            x, y = batch(step)
            now = {name: p.detach() for name, p in model.named_parameters()}
            each = torch.func.vmap(torch.func.grad(loss_of), (None, 0, 0))(now, x, y)
            for name, parameter in model.named_parameters():
                parameter.grad = each[name].mean(0)
            optimizer.step()
            run.log(float(step))
    assert told(run) == []
