"""What a run records of its examples is what its steps saw, under the right numbers, and costs the run nothing."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import fogline
from fogline.descent.loop import steps
from fogline.descent.prepare import assemble, begin
from fogline.descent.step import EagerStep
from fogline.record import examples as recording
from fogline.record.example_files import files, read
from programs.problems import EXAMPLES, again, classification, plain_mlp, points, recipe

FROZEN: dict[str, Any] = {"lr": 1e-12, "optimizer": "sgd", "schedule": "constant", "warmup": 0, "duration": "3ep"}
"""Weights that stay where they are: what is recorded can be computed afterwards."""


def columns_at(run: fogline.Run, epoch: int) -> dict[str, Any]:
    columns = read(run.folder / "examples" / f"epoch-{epoch:04d}.safetensors")
    assert columns is not None
    return columns


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "examples").iterdir())}


def losses_of(model: nn.Module, X: Tensor, y: Tensor) -> Any:
    with torch.no_grad():
        return nn.functional.cross_entropy(model(X), y, reduction="none").numpy()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 3, "batch_size": 2},
        {"optimizer": "adamw", "clip": 1.0, "ema": 0.9},
        {"batch_size": "full"},
        {"shuffle": False},
    ],
    ids=str,
)
def test_every_example_under_its_number(changes: dict[str, Any], tmp_path: Path) -> None:
    task = classification(model=plain_mlp, valid=None)
    run = fogline.fit(task, recipe(**(FROZEN | changes)), runs=tmp_path)
    X, y = points()
    expected = losses_of(run.model, X, y)
    assert [path.name for path in files(run.folder)] == [f"epoch-000{k}.safetensors" for k in range(3)]
    for epoch in range(3):
        columns = columns_at(run, epoch)
        assert columns["loss"].dtype == np.float16
        np.testing.assert_allclose(columns["loss"], expected, rtol=2e-3)
        assert columns["predicted"].dtype == np.int16
        np.testing.assert_array_equal(columns["predicted"], run.model(X).argmax(1).numpy())
    assert run.info["examples"] == {"kind": "classification", "count": EXAMPLES, "classes": None}
    targets = read(run.folder / "examples" / "targets.safetensors")
    assert targets is not None
    np.testing.assert_array_equal(targets["target"], y.numpy())


def test_each_epoch_at_its_time(tmp_path: Path) -> None:
    """Batch gradient descent on a line through the origin: the residuals shrink by the same factor every epoch."""
    X = torch.linspace(-1, 1, 10)[:, None]
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(3.0)
    chosen = recipe(**(FROZEN | {"lr": 0.25, "batch_size": "full", "duration": "4ep"}))
    run = fogline.fit(model, (X, 2 * X), loss=nn.MSELoss(), runs=tmp_path, **vars(chosen))
    factor = 1 - 0.25 * 2 * float(X.square().mean())
    for epoch in range(4):
        expected = X[:, 0].numpy() * factor**epoch
        columns = columns_at(run, epoch)
        assert columns["residual"].dtype == np.float32
        np.testing.assert_allclose(columns["residual"], expected, rtol=1e-5, atol=1e-7)
        size = np.abs(expected) * np.sqrt(X[:, 0].numpy() ** 2 + 1)
        np.testing.assert_allclose(columns["gradient_norm"], size, rtol=2e-3, atol=1e-4)
    assert run.info["examples"]["kind"] == "regression"


def test_closures_show_the_batch_they_begin_with(tmp_path: Path) -> None:
    task = classification(model=plain_mlp, valid=None)
    run = fogline.fit(task, recipe(optimizer="lbfgs", lr=0.5, batch_size="full", duration="3ep"), runs=tmp_path)
    losses = [columns_at(run, epoch)["loss"].astype(np.float64).mean() for epoch in range(3)]
    np.testing.assert_allclose(losses, run.steps["loss"], rtol=2e-3)


@pytest.mark.parametrize("step", ["eager", "chunked"])
def test_the_mean_over_a_batch_is_the_loss_of_the_step(step: str, tmp_path: Path) -> None:
    task = classification(model=lambda: nn.Linear(6, 3), valid=None, train=points(43))
    chosen = recipe(step=step, duration="6ep", shuffle=False, optimizer="sgd", batch_size=16)
    run = fogline.fit(task, chosen, runs=tmp_path)
    losses = [columns_at(run, k)["loss"].astype(np.float64) for k in range(6)]
    seen = [part.mean() for epoch in losses for part in np.split(epoch, [16, 32])]
    np.testing.assert_allclose(seen, run.steps["loss"], rtol=1e-3)
    assert run.info["mechanics"]["mode"] == step


def test_weights_are_those_of_a_run_that_records_nothing(tmp_path: Path) -> None:
    with_it, without = (
        fogline.fit(classification(), recipe(examples=wanted, optimizer="lion"), runs=tmp_path, name=str(wanted))
        for wanted in (True, False)
    )
    for name, value in with_it.model.state_dict().items():
        assert torch.equal(value, without.model.state_dict()[name]), name
    assert list(with_it.steps["loss"]) == list(without.steps["loss"])
    assert not (without.folder / "examples").exists()
    assert without.info["examples"] is None
    assert len(without.examples) == 0
    assert not any(module._forward_pre_hooks for module in with_it.model.modules())


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"optimizer": "lbfgs", "batch_size": "full"}], ids=str)
def test_a_resumed_run_writes_the_same_bytes(changes: dict[str, Any], quick_path: Path) -> None:
    """Resumed at any step, in the folder as a killed process leaves it: with files of epochs it has to do again."""
    task, chosen = classification(), recipe(keep=1000, duration="15st", **changes)
    whole = fogline.fit(task, chosen, runs=quick_path, name="whole")
    wanted = bytes_of(whole.folder)
    epochs = {"full": 15}.get(changes.get("batch_size"), 5 if "accumulate" in changes else 3)
    assert len(wanted) == epochs + 2  # and targets and previews
    for step in range(15):
        cut = again(whole.folder, quick_path / str(step), step)
        shutil.copytree(whole.folder / "examples", cut / "examples")
        (cut / "examples" / ".epoch-0001.9.tmp").write_bytes(b"half a file")
        (cut / "examples" / f"epoch-{epochs - 1:04d}.safetensors").write_bytes(b"of another time")
        assert bytes_of(fogline.resume(cut, task).folder) == wanted, step


def test_a_run_killed_once_all_its_steps_are_kept(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not over before everything of it is written: resumed, it writes what is missing."""
    task, chosen = classification(), recipe(keep=1000, duration="15st")
    wanted = bytes_of(fogline.fit(task, chosen, runs=quick_path, name="whole").folder)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("fogline._examples.looks.keep_looks", die)
        with pytest.raises(Killed):
            fogline.fit(task, chosen, runs=quick_path, name="cut")
    cut = fogline.Run(quick_path / "cut")
    assert cut.info["verdict"] is None
    assert bytes_of(cut.folder) != wanted
    assert bytes_of(fogline.resume(cut.folder, task).folder) == wanted


def test_outputs_set_aside_are_the_same_bytes(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a step takes large blocks of memory."""
    task, chosen = classification(), recipe(keep=1000, duration="15st")
    wanted = bytes_of(fogline.fit(task, chosen, runs=quick_path, name="kept").folder)
    monkeypatch.setattr(recording, "_HEAVY", 1)
    whole = fogline.fit(task, chosen, runs=quick_path, name="copied")
    assert bytes_of(whole.folder) == wanted
    cut = again(whole.folder, quick_path / "8", 8)
    shutil.copytree(whole.folder / "examples", cut / "examples")
    assert bytes_of(fogline.resume(cut, task).folder) == wanted


def test_a_killed_run_writes_the_same_bytes(forked: Callable[..., dict[str, Any]], quick_path: Path) -> None:
    chosen = {"duration": "100ep", "checkpoint_every": "50st"}
    cut = quick_path / "cut"
    for wait in (0.25, 0.35, 0.45):
        forked("train", folder=cut, kill_after=wait, **chosen)
    assert forked("train", folder=cut, **chosen)["code"] == 0
    whole = again(cut, quick_path / "whole")  # from its first step on, by the same implementation of the optimizer
    assert forked("train", folder=whole)["code"] == 0
    assert bytes_of(cut) == bytes_of(whole)


def test_long_runs_keep_some_of_their_epochs(tmp_path: Path) -> None:
    run = fogline.fit(classification(), recipe(batch_size="full", duration="70ep", keep=1), runs=tmp_path)
    assert [int(path.stem[-4:]) for path in files(run.folder)] == [*range(64), 64, 66, 68]


def test_a_run_that_ends_within_an_epoch(tmp_path: Path) -> None:
    run = fogline.fit(classification(valid=None), recipe(duration="8st"), runs=tmp_path)
    columns = columns_at(run, 1)
    seen = np.isfinite(columns["loss"])
    assert seen.sum() == 16
    assert (columns["predicted"][~seen] == -1).all()
    with safe_open(files(run.folder)[1], framework="numpy") as opened:
        assert json.loads(opened.metadata()["fogline"]) == {"epoch": 1, "step": 8}
    table = run.examples
    assert sorted(table["epochs"]) == [1] * (EXAMPLES - 16) + [2] * 16


def test_a_refused_step_breaks_nothing(tmp_path: Path) -> None:
    X, y = points()
    X[7] = torch.nan
    run = fogline.fit(classification(train=(X, y), valid=None), recipe(duration="2ep"), runs=tmp_path)
    refused = {row for event in run.events if event["kind"] == "refused" for row in json.loads(event["data"])["rows"]}
    assert refused == {7}
    for epoch in range(2):
        loss = columns_at(run, epoch)["loss"]
        assert np.isnan(loss[7])
        assert np.isfinite(loss).sum() >= EXAMPLES - 8  # batch normalisation spreads it over its batch


def test_outputs_beyond_half_precision_are_clamped(tmp_path: Path) -> None:
    X, model = torch.full((8, 1), 1e30), nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    run = fogline.fit(model, (X, X), loss=nn.L1Loss(), runs=tmp_path, lr=1e-30, batch_size=8, duration="1ep")
    columns = columns_at(run, 0)
    assert (columns["loss"] == 65504).all()
    assert (columns["residual"] < -1e29).all()


def test_steps_gated_on_the_device(tmp_path: Path) -> None:
    """As on an accelerator: the host looks late, goes back behind a refused step, and the files are the same."""
    X, y = points()
    X[7] = torch.nan
    task, chosen = classification(model=plain_mlp, train=(X, y), valid=None), recipe(duration="3ep", watch=0.0)
    descents = [assemble(begin(task, chosen.replace(examples=True)), tmp_path / name).descent for name in "ab"]
    for deferred, descent in zip((False, True), descents, strict=True):
        stepper = EagerStep(descent.machine, descent.batches, deferred=deferred)
        stepper.examples, descent.stepper = descent.examples, stepper
        for _ in steps(descent, lambda _: None):
            pass
        assert descent.examples is not None
        descent.examples.finish(descent.step)
        descent.examples.close()
        descent.store.close()
    for path in files(descents[0].folder):
        first, second = read(path), read(descents[1].folder / "examples" / path.name)
        assert first is not None
        assert second is not None
        for name, column in first.items():
            np.testing.assert_allclose(second[name], column, rtol=2e-3, atol=1e-3, err_msg=name)


class Noisy(Dataset[tuple[Tensor, int]]):
    """Every visit to an example is another view of it."""

    classes = ("one", "two", "three")

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        X, y = points()
        return X[index] + 0.01 * torch.randn(6), int(y[index])


def test_datasets_by_the_number_of_the_example(tmp_path: Path) -> None:
    task = classification(model=plain_mlp, train=DataLoader(Noisy(), batch_size=8, shuffle=True), valid=None)
    run = fogline.fit(task, recipe(**FROZEN), runs=tmp_path)
    X, y = points()
    np.testing.assert_allclose(columns_at(run, 2)["loss"], losses_of(run.model, X, y), atol=0.1)
    targets = read(run.folder / "examples" / "targets.safetensors")
    assert targets is not None
    np.testing.assert_array_equal(targets["target"], y.numpy())
    assert run.info["examples"]["classes"] == list(Noisy.classes)


def test_a_loader_taken_apart_keeps_the_numbers_of_its_dataset(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(*points()), batch_size=8, shuffle=True, drop_last=True)
    run = fogline.fit(classification(model=plain_mlp, train=loader, valid=None), recipe(**FROZEN), runs=tmp_path)
    np.testing.assert_allclose(columns_at(run, 0)["loss"], losses_of(run.model, *points()), rtol=2e-3)


def own(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets).mul(2)


def of_batch(model: nn.Module, batch: Any) -> Tensor:
    return 2 * nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize(
    ("loss", "step", "kind"),
    [
        (own, "eager", "classification"),
        (own, "compiled", "classification"),
        (fogline.on_batch(of_batch), "eager", "loss"),
    ],
    ids=["eager", "compiled", "of a batch"],
)
def test_losses_of_ones_own(loss: Any, step: str, kind: str, tmp_path: Path) -> None:
    X, y = points()
    task = fogline.Task(nn.Linear(6, 3), loss, (X, y))
    run = fogline.fit(task, recipe(**FROZEN, step=step), runs=tmp_path)
    columns = columns_at(run, 1)
    np.testing.assert_allclose(columns["loss"], 2 * losses_of(run.model, X, y), rtol=2e-3)
    if kind == "classification":
        np.testing.assert_array_equal(columns["predicted"], run.model(X).argmax(1).numpy())
    assert run.info["examples"]["kind"] == kind
    assert run.info["mechanics"]["mode"] == step
    targets = read(run.folder / "examples" / "targets.safetensors")
    assert targets is not None
    np.testing.assert_array_equal(targets["target"], y.numpy())
    whole = columns_at(run, 0)["loss"].astype(np.float64).mean()
    np.testing.assert_allclose(np.average(run.steps["loss"][:6], weights=[8] * 5 + [4]), whole, rtol=1e-3)


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Any:
        yield from zip(*points(), strict=True)


def test_what_cannot_be_recorded_is_said(tmp_path: Path) -> None:
    stream = fogline.fit(classification(train=Endless(), valid=None), recipe(duration="3st"), runs=tmp_path, name="a")
    one = fogline.on_batch(lambda module, batch: module(batch[0]).square().mean())
    scalar = fogline.fit(classification(loss=one, valid=None), recipe(duration="3st"), runs=tmp_path, name="b")
    for run, words in ((stream, "stream"), (scalar, "one loss per example")):
        assert run.info["examples"] is None
        assert run.info["resolved"]["examples"]["value"] is False
        assert words in run.info["resolved"]["examples"]["why"]
        assert next(event["message"] for event in run.events if event["kind"] == "examples").count(words)
        assert not (run.folder / "examples").exists()


def test_what_does_not_fit_in_memory_is_recorded_on_demand_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fogline.descent.examples.LARGEST", 1000)
    task = classification(valid=None)
    left = fogline.fit(task, recipe(duration="1ep"), runs=tmp_path, name="left")
    asked = fogline.fit(task, recipe(duration="1ep", examples=True), runs=tmp_path, name="asked")
    assert left.info["examples"] is None
    assert "examples=True" in left.info["resolved"]["examples"]["why"]
    assert len(asked.examples) == EXAMPLES


def test_trials_record_nothing(tmp_path: Path) -> None:
    task = classification(valid=None)
    fogline.find_lr(task, recipe(lr="auto", duration="4ep"))
    run = fogline.fit(task, recipe(lr="auto", duration="2ep"), runs=tmp_path, name="run")
    assert len(files(run.folder)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_table_sums_up_the_epochs(tmp_path: Path) -> None:
    run = fogline.fit(classification(valid=None), recipe(duration="5ep"), runs=tmp_path)
    table, per_epoch = run.examples, [columns_at(run, k) for k in range(5)]
    confidence = np.stack([columns["confidence"] for columns in per_epoch]).astype(np.float64)
    correct = np.stack([columns["correct"] for columns in per_epoch])
    np.testing.assert_allclose(table["confidence"], confidence.mean(0))
    np.testing.assert_allclose(table["variability"], confidence.std(0), atol=1e-9)
    np.testing.assert_array_equal(table["forgetting"], (np.diff(correct, axis=0) < 0).sum(0))
    np.testing.assert_array_equal(table["predicted"], per_epoch[-1]["predicted"])
    np.testing.assert_array_equal(table["target"], points()[1].numpy())
    assert list(table["epochs"]) == [5] * EXAMPLES
    assert "confidence" in run.plot("data_map").to_json()


def test_the_files_can_be_read_while_it_trains(tmp_path: Path) -> None:
    seen = []
    chosen = recipe(duration="10ep", checkpoint_every="1000st")
    for step in fogline.descend(classification(valid=None), chosen, runs=tmp_path):
        if step.number % 20 == 0:
            time.sleep(0.55)  # files are written twice a second
            seen.append(int(np.max(step.run.examples["epochs"])) if len(step.run.examples) else 0)
    assert seen == sorted(seen)
    assert 0 < seen[-1] <= 8


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    loop = fogline.descend(classification(valid=None), recipe(duration="40ep"), runs=tmp_path, name="run")
    next(loop)
    (tmp_path / "run" / "examples" / ".epoch-0000.tmp").mkdir()
    shutil.rmtree(tmp_path / "run" / "examples")
    (tmp_path / "run" / "examples").write_text("no folder")
    with pytest.raises(OSError, match="what the examples did cannot be written"):
        for _ in loop:
            pass


def test_how_many_epochs_have_a_file() -> None:
    kept = [epoch for epoch in range(1000) if recording.has_file(epoch)]
    assert kept[:64] == list(range(64))
    for octave in (64, 128, 256):
        assert sum(octave <= epoch < 2 * octave for epoch in kept) == 32


def test_outputs_as_wide_as_the_batch_is_long(tmp_path: Path) -> None:
    """Where each row is compared with all others, labels are no places in an output."""
    draws = torch.Generator().manual_seed(0)
    X, y = torch.randn(132, 6, generator=draws), torch.randint(60, (132,), generator=draws)

    class Alike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            codes = nn.functional.normalize(self.layer(x), dim=1)
            return codes @ codes.T / 0.1

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        same = (targets[:, None] == targets) & ~torch.eye(len(targets), dtype=torch.bool)
        return nn.functional.cross_entropy(outputs.masked_fill(same, -1e4), torch.arange(len(outputs)))

    run = fogline.fit(fogline.Task(Alike, loss, (X, y)), recipe(batch_size=64, duration="4ep"), runs=tmp_path)
    assert np.isfinite(run.steps["loss"]).all()
    assert len(run.steps["loss"]) == 12
