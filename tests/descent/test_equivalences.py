"""Different ways to the same thing: the same bits where that is promised, rounding apart where it is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import fogline
from fogline import Run, Task, Verdict
from fogline.data.source import InMemory
from fogline.descent.batches import Batches
from fogline.descent.graph import compile_steps, trace
from fogline.descent.objective import Objective
from fogline.descent.optimizers import build
from fogline.descent.step import CompiledStep, EagerStep, Machine
from programs.problems import again, classification, final_bits, losses, model_bits, plain_mlp, points, recipe


def weights(run: Run) -> Tensor:
    return torch.cat([value.flatten().double() for value in run.model.state_dict().values()])


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("size", "parts"), [(4, 2), (3, 4), (5, 3)])
def test_accumulation_is_the_large_batch(
    optimizer: str, reduction: str, size: int, parts: int, quick_path: Path
) -> None:
    """k batches of b are one of kb; 44 is a multiple of none but 4, so the short last batches count too."""
    task = Task(plain_mlp, nn.CrossEntropyLoss(reduction=reduction), points(dtype=torch.float64))
    lr = {"momentum": 0.05, "adamw": 0.01}[optimizer] / (1 if reduction == "mean" else 40)
    # Far above its eps Adam divides rounding by rounding where a gradient is nearly zero: with it, it does not.
    options = {"eps": 1e-3} if optimizer == "adamw" else {}
    chosen = recipe(
        optimizer=optimizer, lr=lr, options=options, precision="float64", duration="15st", checkpoint_every="1h"
    )
    runs = [
        fogline.fit(task, chosen.replace(batch_size=b, accumulate=k), runs=quick_path, name=f"{k}")
        for b, k in ((size * parts, 1), (size, parts))
    ]
    torch.testing.assert_close(weights(runs[0]), weights(runs[1]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(torch.tensor(losses(run)) for run in runs), rtol=1e-12, atol=1e-12)
    assert runs[0].steps["examples"].tolist() == runs[1].steps["examples"].tolist()


class Drawn(Dataset[tuple[Tensor, int]]):
    """Examples with noise of their own, drawn when they are read."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((6,), index / 10.0, dtype=torch.float64) + 0.1 * torch.randn(6), index % 3


def test_workers_change_no_bit(quick_path: Path) -> None:
    found = []
    for workers in (0, 2):
        task = Task(lambda: plain_mlp().double(), nn.CrossEntropyLoss(), Drawn())
        chosen = recipe(precision="float64", duration="7st", workers=workers, checkpoint_every="1h")
        run = fogline.fit(task, chosen, runs=quick_path, name=f"w{workers}")
        found.append((losses(run), model_bits(run)))
    assert found[0] == found[1]


def test_fit_is_descend(quick_path: Path) -> None:
    task, chosen = classification(), recipe(optimizer="adamw", ema=0.9, clip="adaptive")
    run = fogline.fit(task, chosen, runs=quick_path, name="fit")
    taken = list(fogline.descend(task, chosen, runs=quick_path, name="descend"))
    assert final_bits(quick_path / "descend") == final_bits(quick_path / "fit")
    assert [step.loss for step in taken] == losses(run)
    assert [step.number for step in taken] == list(range(40))
    assert [step.lr for step in taken] == run.steps["lr"].tolist()
    assert [step.gradient_norm for step in taken] == run.steps["grad_norm"].tolist()
    assert taken[-1].run.verdict is run.verdict


@pytest.mark.parametrize("size", ["full", 1, 7, 44, 1000])
def test_every_batch_size_is_the_textbook_loop(size: int | str, quick_path: Path) -> None:
    x, y = points(dtype=torch.float64)
    task = Task(lambda: plain_mlp().double(), nn.CrossEntropyLoss(), (x, y))
    chosen = recipe(
        optimizer="sgd", batch_size=size, precision="float64", duration="2ep", schedule="constant", warmup=0
    )
    run = fogline.fit(task, chosen.replace(checkpoint_every="1h"), runs=quick_path, name="run")

    rows = min(44, 44 if size == "full" else int(size))
    batches = Batches(InMemory((x, y)), rows)
    model = fogline.fit(task, chosen.replace(duration="1st", lr=1e-300), runs=quick_path, name="unmoved").model
    expected = []
    for number in range(2 * -(-44 // rows)):
        index = torch.from_numpy(batches.rows(number))
        loss = nn.functional.cross_entropy(model(x[index]), y[index])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.05 * gradient
        expected.append(loss.item())
    torch.testing.assert_close(torch.tensor(losses(run)), torch.tensor(expected), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights(run), torch.cat([p.detach().flatten() for p in model.parameters()]))


# -- the unit of the loss ------------------------------------------------------------------------------------------


def regression(noise: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 4, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]], dtype=torch.float64)
    return x, y + noise * torch.randn(64, 1, generator=generator, dtype=torch.float64)


def deaf() -> nn.Module:
    """A net whose hidden units never answer: no gradient, and no minimum either."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1, bias=False)).double()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    return model


def line() -> nn.Module:
    return nn.Linear(4, 1).double()


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1)).double()


CASES: dict[str, tuple[Callable[[], nn.Module], float, bool, dict[str, Any]]] = {
    "converging": (line, 0.0, False, {"lr": 0.1, "duration": "300st", "batch_size": "full"}),
    "diverging": (line, 0.0, False, {"lr": 3.0, "duration": "60st", "batch_size": "full"}),
    "improving": (line, 0.0, False, {"lr": 1e-3, "duration": "100st", "batch_size": "full"}),
    "jittering": (line, 1.0, False, {"lr": 0.2, "duration": "600st", "batch_size": 4}),
    "overfit": (wide, 2.0, True, {"lr": 0.1, "duration": "3000st", "batch_size": "full", "validate_every": "50st"}),
    "stalled": (deaf, 0.0, False, {"lr": 0.1, "duration": "100st", "batch_size": "full"}),
}


def verdict(name: str, optimizer: str, scale: float, folder: Path) -> Verdict | None:
    model, noise, held_out, fields = CASES[name]
    x, y = regression(noise)
    train, valid = ((x[:12], y[:12]), (x[12:], y[12:])) if held_out else ((x, y), None)
    lr = fields["lr"] / scale if optimizer != "adamw" else {"diverging": 100.0}.get(name, 0.1 * fields["lr"])
    options = {"eps": 1e-300} if optimizer == "adamw" else {}
    task = Task(model, lambda outputs, targets: scale * nn.functional.mse_loss(outputs, targets), train, valid)
    chosen = recipe(**(fields | {"lr": lr, "optimizer": optimizer, "options": options, "schedule": "constant"}))
    chosen = chosen.replace(warmup=0, precision="float64", checkpoint_every="1h", weight_decay=0.0)
    return fogline.fit(task, chosen, runs=folder, name=f"{name}-{scale}").verdict


SCALED = [(name, optimizer) for name in CASES for optimizer in ("gd", "momentum", "adamw")]


@pytest.mark.parametrize(("name", "optimizer"), SCALED)
def test_the_unit_of_the_loss_does_not_move_the_verdict(name: str, optimizer: str, quick_path: Path) -> None:
    found = [verdict(name, optimizer, scale, quick_path) for scale in (1.0, 1e6, 1e-6)]
    assert found == [found[0]] * 3
    known = {
        "converging": Verdict.CONVERGED,
        "diverging": Verdict.DIVERGED,
        "improving": Verdict.IMPROVING,
        "overfit": Verdict.OVERFIT,
        "stalled": Verdict.STALLED,
    }
    if optimizer == "gd" and name in known:
        assert found[0] is known[name]


# -- compiled steps ------------------------------------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="there is no C++ compiler to compile steps with"
)


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )


COMPILED = [(plain_mlp, "momentum", 1), (plain_mlp, "adamw", 2), (cnn, "adamw", 1)]


@needs_compiler
@pytest.mark.parametrize(("make", "optimizer", "chunk"), COMPILED)
def test_compiled_steps_are_the_eager_ones(make: Callable[[], nn.Module], optimizer: str, chunk: int) -> None:
    """100 steps in float64, an epoch of 6 with a short last batch, one example with NaN in every epoch."""
    x, y = points(dtype=torch.float64)
    x[11, 3] = torch.nan
    steppers = []
    for _ in range(2):
        torch.manual_seed(0)
        model = make().double()
        batches = Batches(InMemory((x, y)), 8)
        built = build(model, optimizer, 0.01, options={"eps": 1e-4} if optimizer == "adamw" else {})
        machine = Machine(Objective(model, nn.CrossEntropyLoss()), built, torch.device("cpu"))
        steppers.append(EagerStep(machine, batches))
    eager, twin = steppers
    batch = next(twin.batches.stream(0))
    traced = trace(twin.machine.objective, twin.machine.optimizer, None, batch)
    compiled = CompiledStep(twin, compile_steps(traced, batch, chunk))
    found: list[list[Any]] = [[], []]
    for stepper, into in zip((eager, compiled), found, strict=True):
        number = 0
        while number < 100:
            losses, norms, _, _ = stepper.advance(number, 100, lambda step: 0.02 / (1 + 0.01 * step))
            into += zip(losses, norms, strict=True)
            number += len(losses)
    expected, received = (torch.tensor(values, dtype=torch.float64) for values in found)
    assert 15 <= int(expected[:, 0].isnan().sum()) <= 17
    # The corrections of Adam's moments are computed from counters in float32.
    near = {"rtol": 1e-9 if optimizer == "momentum" else 1e-4, "atol": 1e-9 if optimizer == "momentum" else 1e-5}
    torch.testing.assert_close(received, expected, equal_nan=True, **near)
    wanted = eager.machine.objective.model.state_dict()
    for name, value in twin.machine.objective.model.state_dict().items():
        assert bool(torch.isfinite(value).all()), name
        torch.testing.assert_close(value, wanted[name], **near)


@needs_compiler
def test_a_compiled_run_is_the_eager_run_and_resumes_bit_for_bit(quick_path: Path) -> None:
    task = Task(plain_mlp, nn.CrossEntropyLoss(), points(68), points(30, 1))
    chosen = recipe(batch_size=4, duration="51st", keep=100, validate_every="17st")
    eager = fogline.fit(task, chosen, runs=quick_path, name="eager")
    run = fogline.fit(task, chosen.replace(step="compiled"), runs=quick_path, name="compiled")
    assert run.info["mechanics"]["mode"] == "compiled"
    torch.testing.assert_close(weights(run), weights(eager), rtol=1e-4, atol=1e-5)
    resumed = fogline.resume(again(run.folder, quick_path / "cut", 17), task)
    assert final_bits(resumed.folder) == final_bits(run.folder)


@needs_compiler
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_chunked_run_is_the_eager_run_and_resumes_bit_for_bit(shuffle: bool, quick_path: Path) -> None:
    """Epochs of 8 full batches and a short one: six steps in calls of three, three by themselves."""
    task = Task(plain_mlp, nn.CrossEntropyLoss(), points(34), points(30, 1))
    chosen = recipe(batch_size=4, duration="45st", keep=100, validate_every="3st", checkpoint_every="2st")
    chosen = chosen.replace(shuffle=shuffle)
    eager = fogline.fit(task, chosen, runs=quick_path, name="eager")
    run = fogline.fit(task, chosen.replace(step="chunked"), runs=quick_path, name="chunked")
    assert (run.info["mechanics"]["mode"], run.info["mechanics"]["chunk"]) == ("chunked", 3)
    torch.testing.assert_close(weights(run), weights(eager), rtol=1e-4, atol=1e-5)
    assert run.steps["step"].tolist() == list(range(45))
    for column in ("loss", "grad_norm", "lr"):
        np.testing.assert_allclose(run.steps[column], eager.steps[column], rtol=1e-3, atol=1e-5)
    scored = [[(row["step"], row["name"]) for row in one.scores] for one in (run, eager)]
    assert scored[0] == scored[1]
    saved = sorted(int(place.name.removeprefix("step-")) for place in (run.folder / "checkpoints").iterdir())
    assert saved[:10] == [0, 3, 6, 8, 12, 15, 16, 18, 21, 24]  # where a multiple of two was passed
    for step in (12, 16):
        resumed = fogline.resume(again(run.folder, quick_path / str(step), step), task)
        assert final_bits(resumed.folder) == final_bits(run.folder)
        assert losses(resumed) == losses(run)
