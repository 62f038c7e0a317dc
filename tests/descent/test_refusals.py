"""A loss or gradient that is not finite reaches nothing, and the step says where it came from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline import Run, Task, Verdict
from fogline.data.source import InMemory
from fogline.descent.batches import Batches
from fogline.descent.clipping import Clipping
from fogline.descent.loop import steps
from fogline.descent.objective import Objective
from fogline.descent.optimizers import build, state_tensors
from fogline.descent.prepare import assemble, begin
from fogline.descent.step import EagerStep, Machine
from fogline.record.store import read_table
from programs.problems import bits, classification, mlp, plain_mlp, points, recipe

OPTIMIZERS = ("momentum", "adamw", "schedule_free", "rmsprop", "sgd")


def refusals(run: Run) -> list[dict[str, Any]]:
    return [json.loads(event["data"]) for event in run.events if event["kind"] == "refused"]


def spoiled(row: int) -> tuple[Tensor, Tensor]:
    x, y = points()
    x[row, 2] = torch.nan
    return x, y


class Pitfall(nn.Module):
    """Gives NaN for examples whose first feature is beyond a limit."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 3, x / 0 - x / 0, x)


def machine_on(optimizer: str, data: tuple[Tensor, Tensor], **settings: Any) -> tuple[Machine, Batches]:
    torch.manual_seed(0)
    model = mlp()
    batches = Batches(InMemory(data), 8)
    clipping = Clipping("adaptive", next(model.parameters()))
    built = build(model, optimizer, 0.05, weight_decay=0.01 if optimizer != "lbfgs" else None)
    objective = Objective(model, nn.CrossEntropyLoss())
    return Machine(objective, built, torch.device("cpu"), clipping=clipping, **settings), batches


def everything(machine: Machine) -> dict[str, bytes]:
    """All that a step may change."""
    state = state_tensors(machine.optimizer)
    if machine.clipping is not None and machine.clipping.memory is not None:
        state["memory"] = machine.clipping.memory
    found = {name: bits(value) for name, value in (machine.objective.model.state_dict() | state).items()}
    return found | {f"buffer {k}": bits(value) for k, value in enumerate(machine.buffers)}


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "lbfgs"])
@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_a_refused_step_changes_nothing(optimizer: str, deferred: bool, poison: float) -> None:
    machine, batches = machine_on(optimizer, points(), needs_closure=optimizer == "lbfgs")
    step = EagerStep(machine, batches, deferred=deferred)
    for number in range(3):
        step.take(number, batches.at(number), 0.05)
    before = everything(machine)
    x, y = batches.at(3)
    x = x.clone()
    x[5, 0] = poison
    step.take(3, (x, y), 0.05)
    assert everything(machine) == before
    step.release()
    step.take(4, batches.at(4), 0.05)
    assert everything(machine) != before
    assert all(bool(torch.isfinite(p).all()) for p in machine.parameters)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bad", [0, 4])
def test_the_deferred_gate_gives_the_bits_of_the_immediate_one(optimizer: str, bad: int) -> None:
    """The step after a refused one is refused with it until the host has looked, then taken again."""
    results = []
    for deferred in (False, True):
        machine, batches = machine_on(optimizer, points())
        machine.clipping = None  # the gradient's norm is rounded otherwise where the host does not see it
        step = EagerStep(machine, batches, deferred=deferred)
        for number in range(8):
            x, y = batches.at(number)
            if number == bad:
                step.take(number, (x * torch.nan, y), 0.05)
                if deferred:
                    held = everything(machine)
                    step.take(number + 1, batches.at(number + 1), 0.05)
                    step.take(number + 2, batches.at(number + 2), 0.05)
                    assert everything(machine) == held or bad == 0
                    step.release()
            else:
                step.take(number, (x, y), 0.05)
        results.append(everything(machine))
    assert results[0] == results[1]


@pytest.mark.parametrize("bad", [0, 13])
def test_the_loop_goes_back_behind_a_refused_step_when_the_gate_is_deferred(bad: int, quick_path: Path) -> None:
    """As on an accelerator: the host looks late, and what it missed is done again."""
    task, found = classification(train=spoiled(bad)), []
    for deferred in (False, True):
        chosen = recipe(optimizer="adamw", ema=0.9, checkpoint_every="7st", duration="20st", watch=0, warmup=0)
        descent = assemble(begin(task, chosen), quick_path / str(deferred)).descent
        descent.stepper = EagerStep(descent.machine, descent.batches, deferred=deferred)
        descent.machine.objective.model.train()
        for _ in steps(descent, lambda _: None):
            pass
        descent.save()
        descent.store.close()
        assert descent.average is not None
        table = read_table(descent.folder, "steps")
        named = [
            (event["step"], json.loads(event["data"])["rows"])
            for event in read_table(descent.folder, "events")
            if event["kind"] == "refused"
        ]
        values = [*descent.machine.parameters, *descent.machine.buffers, *descent.average]
        counters = (descent.step, descent.counters.refused, descent.counters.examples)
        tensors = [bits(value) for value in (*values, *state_tensors(descent.machine.optimizer).values())]
        numbers = torch.tensor(table["loss"]).nan_to_num(-1).tolist()
        found.append((tensors, table["step"].tolist(), numbers, named, counters))
    assert found[0] == found[1]
    assert [rows for _, rows in found[0][3]] == [[bad]] * len(found[0][3])
    assert len(found[0][3]) >= 3  # once an epoch


def test_rows_with_nan_are_named_and_the_weights_are_those_of_a_run_that_leaves_those_steps_out(
    quick_path: Path,
) -> None:
    chosen = recipe(optimizer="momentum", duration="17st", schedule="constant", warmup=0, validate_every="100st")
    run = fogline.fit(classification(train=spoiled(17), valid=None), chosen, runs=quick_path, name="nan")
    found = refusals(run)
    assert len(found) == run.info["refused"] >= 2
    for refusal in found:
        assert refusal["where"] == "data"
        assert refusal["rows"] == [17]
        assert refusal["message"] == f"step {refusal['step']} refused: the data hold NaN or infinity; rows 17"
    refused = {refusal["step"] for refusal in found}
    assert refused == {
        int(step) for step, loss in zip(run.steps["step"], run.steps["loss"], strict=True) if loss != loss
    }

    torch.manual_seed(0)
    start = begin(classification(train=spoiled(17), valid=None), chosen)  # the first weights are those of the seed
    machine = assemble(start, quick_path / "by-hand", run.info["mechanics"]).descent.machine
    machine.objective.model.train()
    step = EagerStep(machine, start.batches)
    for number in range(17):
        if number not in refused:
            step.take(number, start.batches.at(number), 0.05)
    for name, value in machine.objective.model.state_dict().items():
        assert bits(value) == bits(run.model.state_dict()[name]), name


def test_a_module_is_named(quick_path: Path) -> None:
    x, y = points()
    x[9, 0] = 4.0
    model = nn.Sequential(plain_mlp()[0], Pitfall(), nn.Linear(8, 3))
    model = nn.Sequential(Pitfall(), nn.Linear(6, 3))
    limit = x[:, 0] > 3
    run = fogline.fit(Task(model, nn.CrossEntropyLoss(), (x, y)), recipe(duration="12st"), runs=quick_path, name="x")
    found = refusals(run)
    assert found
    assert {(refusal["where"], refusal["module"]) for refusal in found} == {("module", "0")}
    assert {row for refusal in found for row in refusal["rows"]} <= set(limit.nonzero().flatten().tolist())
    assert 9 in {row for refusal in found for row in refusal["rows"]}


def nan_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """NaN wherever class 2 is among the targets, although outputs are finite."""
    each = nn.functional.cross_entropy(outputs, targets, reduction="none")
    return torch.where(targets == 2, each * torch.inf - each * torch.inf, each).mean()


def rooted(outputs: Tensor, targets: Tensor) -> Tensor:
    """A finite loss with an infinite gradient at zero."""
    return (outputs * 0).abs().sqrt().mean() + 0 * targets.sum()


@pytest.mark.parametrize(("loss", "where", "module"), [(nan_loss, "loss", None), (rooted, "gradient", "2")])
def test_a_loss_or_gradient_that_is_not_finite_leaves_the_first_weights(
    loss: Callable[[Tensor, Tensor], Tensor], where: str, module: str | None, quick_path: Path
) -> None:
    torch.manual_seed(3)
    model = plain_mlp()
    run = fogline.fit(Task(model, loss, points()), recipe(batch_size=40, duration="30st"), runs=quick_path, name="run")
    assert run.verdict is Verdict.NONFINITE
    for refusal in refusals(run):
        assert (refusal["where"], refusal["module"]) == (where, module)
        if where == "loss":
            assert refusal["rows"]
            assert all(row % 3 == 2 for row in refusal["rows"])
    assert refusals(run)[0]["step"] == 0
    assert len(run.steps) < 30  # given up: nothing but refusals
    for name, value in model.state_dict().items():
        assert bits(value) == bits(run.model.state_dict()[name])


def test_a_healthy_run_refuses_nothing(quick_path: Path) -> None:
    run = fogline.fit(classification(), recipe(duration="20st"), runs=quick_path, name="run")
    assert refusals(run) == []
    assert run.info["refused"] == 0


def test_a_loss_that_raises_for_nan_is_refused_like_others(tmp_path: Path) -> None:
    """``nn.BCELoss`` raises where other losses give NaN; the rows are named all the same."""
    X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    y = (X[:, :1] > 0).float()
    X[45] = torch.nan
    run = fogline.fit(
        nn.Sequential(nn.Linear(3, 1), nn.Sigmoid()),
        (X, y),
        loss=nn.BCELoss(),
        optimizer="adam",
        lr=0.01,
        duration="2ep",
        batch_size=20,
        shuffle=False,
        runs=tmp_path,
        progress=False,
    )
    refused = [json.loads(row["data"]) for row in run.events if row["kind"] == "refused"]
    assert [found["rows"] for found in refused] == [[45], [45]]
