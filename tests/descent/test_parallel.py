"""Several processes take the steps of one, stop together, are missed when they are late, and are started again."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fogline.data.source import InMemory
from fogline.descent import checkpoint
from fogline.descent.batches import Batches, split
from fogline.descent.objective import Objective
from fogline.descent.replica import checksum
from fogline.descent.share import Share, Weighing, is_no_average, share_of
from fogline.record.store import read_info, read_table
from programs.group import variants
from programs.problems import counted, final_bits, points

Forked = Callable[..., dict[str, Any]]
Group = Callable[..., None]
NAMES = list(variants())
FOUR = ["plain", "normalised", "weighted", "scarce"]
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def group(forked: Forked) -> Group:
    """``group(folder, 2, "fit_variants", names=...)`` runs a function of ``programs.group`` in two processes."""

    def run(folder: Path, size: int, task: str, code: int = 0, **given: Any) -> None:
        folder.mkdir(exist_ok=True)
        answer = forked("together", folder=folder, size=size, task=task, **given)
        assert answer["code"] == 0, answer["errors"]
        assert json.loads((folder / "codes.json").read_text()) == [code] * size, answer["errors"]

    return run


@pytest.fixture(scope="module")
def one(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of a process on its own."""
    folder = tmp_path_factory.mktemp("one")
    group(folder, 1, "fit_variants", names=NAMES)
    return folder


def assert_same_run(run: Path, one: Path, within: float, *, recorded: bool = True) -> None:
    """Weights, engine and signals within rounding; scores and counts the same."""
    found, wanted = checkpoint.latest(run)[0], checkpoint.latest(one)[0]
    assert found is not None
    assert wanted is not None
    assert found.step == wanted.step
    assert found.model.keys() == wanted.model.keys()
    engine, other_engine = (
        {name: value for name, value in kept.optimizer.items() if not name.startswith("examples/")}
        for kept in (wanted, found)
    )
    assert other_engine.keys() == engine.keys()
    for name, value in wanted.model.items():
        torch.testing.assert_close(found.model[name], value, rtol=0, atol=within, msg=(name + ": {}").format)
    for name, value in engine.items():  # products of L-BFGS are of any size
        torch.testing.assert_close(other_engine[name], value, rtol=1e-9, atol=within)
    steps, expected = read_table(run, "steps"), read_table(one, "steps")
    for column in ("step", "lr", "examples", "epoch"):
        assert steps[column].tolist() == expected[column].tolist(), column
    for column in ("loss", "grad_norm"):
        np.testing.assert_allclose(steps[column], expected[column], rtol=within, atol=within)
    scores, known = list(read_table(run, "scores")), list(read_table(one, "scores"))
    assert [(row["step"], row["name"]) for row in scores] == [(row["step"], row["name"]) for row in known]
    np.testing.assert_allclose([row["value"] for row in scores], [row["value"] for row in known], rtol=within)
    assert (run / "examples").exists() == (recorded and (one / "examples").exists())
    for file in (one / "examples").glob("*.safetensors") if recorded else ():
        each, alone = load_file(run / "examples" / file.name), load_file(file)
        assert each.keys() == alone.keys()
        for name, values in alone.items():
            torch.testing.assert_close(each[name], values, rtol=2e-3, atol=1e-3, equal_nan=True)
    assert list(read_table(run, "confusion", "target, predicted")) == list(
        read_table(one, "confusion", "target, predicted")
    )


@pytest.fixture(scope="module")
def several(group: Group, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The runs of two processes, and of four."""
    folders = {size: tmp_path_factory.mktemp(f"of-{size}") for size in (2, 4)}
    for size, names in ((2, NAMES), (4, FOUR)):
        group(folders[size], size, "fit_variants", names=names)
    return folders


@pytest.mark.parametrize(("size", "name"), [*((2, name) for name in NAMES), *((4, name) for name in FOUR)])
def test_several_processes_take_the_steps_of_one(size: int, name: str, several: dict[int, Path], one: Path) -> None:
    run = several[size] / name
    assert_same_run(run, one / name, 1e-12)
    info = read_info(run)
    assert info["verdict"]["name"] == read_info(one / name)["verdict"]["name"]
    assert info["processes"] == size
    assert f"{size} processes" in info["mechanics"]["why"]


def test_a_model_in_parts_takes_the_same_steps_and_goes_on_in_any_number_of_processes(
    group: Group, one: Path, tmp_path: Path
) -> None:
    group(tmp_path, 2, "fit_variants", names=["plain", "normalised", "scarce"], parallel="fsdp")
    for name in ("plain", "normalised", "scarce"):
        assert_same_run(tmp_path / name, one / name, 1e-10, recorded=False)
    files = sorted(path.name for path in (tmp_path / "plain" / "checkpoints" / "step-00000050").iterdir())
    assert files == [
        "manifest.json",
        "shard-00001-model-00001-of-00001.safetensors",
        "shard-00002-model-00001-of-00001.safetensors",
        "state.json",
    ]
    group(tmp_path / "single", 2, "fit_variants", names=["plain"], parallel="fsdp", precision="float32")
    single, double = (checkpoint.latest(folder / "plain")[0] for folder in (tmp_path / "single", one))
    assert single is not None
    assert double is not None
    for name, value in double.model.items():
        assert single.model[name].dtype == torch.float32
        torch.testing.assert_close(single.model[name].double(), value, rtol=1e-4, atol=1e-5)
    for size in (4, 1):
        folder = tmp_path / f"cut-{size}"
        group(folder, 2, "leave_after", name="normalised", steps=20, parallel="fsdp")
        assert checkpoint.latest(folder / "normalised")[0].step == 20  # type: ignore[union-attr]
        group(folder, size, "go_on", name="normalised")
        assert_same_run(folder / "normalised", one / "normalised", 1e-10, recorded=False)


def test_a_run_of_one_process_goes_on_in_two(group: Group, one: Path, tmp_path: Path) -> None:
    group(tmp_path, 1, "leave_after", name="weighted", steps=20)
    group(tmp_path, 2, "go_on", name="weighted")
    assert_same_run(tmp_path / "weighted", one / "weighted", 1e-12)


def test_a_signal_to_one_stops_all_behind_the_same_step(group: Group, tmp_path: Path) -> None:
    group(tmp_path, 2, "fit_until_signal", code=128 + signal.SIGTERM)
    found, _ = checkpoint.latest(tmp_path / "stopped")
    assert found is not None
    assert found.step == 8  # the model was tried once before the first step
    assert read_info(tmp_path / "stopped")["verdict"]["name"] == "INTERRUPTED"
    group(tmp_path, 2, "go_on_and_fit")
    assert final_bits(tmp_path / "stopped") == final_bits(tmp_path / "quiet")
    assert counted(tmp_path / "stopped") == counted(tmp_path / "quiet")


def test_what_is_not_finite_in_one_is_refused_by_all_and_named(group: Group, tmp_path: Path) -> None:
    for size in (1, 2):
        group(tmp_path / str(size), size, "fit_spoiled")
    alone, both = (
        [(row["step"], row["message"]) for row in read_table(tmp_path / size / "spoiled", "events", "id")
         if row["kind"] == "refused"]
        for size in ("1", "2")
    )  # fmt: skip
    assert alone == both
    assert "rows 17" in both[0][1]
    assert counted(tmp_path / "1" / "spoiled") == counted(tmp_path / "2" / "spoiled")


def test_a_late_process_is_named_with_the_line_it_is_in(group: Group, tmp_path: Path) -> None:
    group(tmp_path, 2, "fit_late", patience=1.5)
    lost = (tmp_path / "lost.txt").read_text()
    assert "process 1 has not come to step " in lost
    assert "group.py, line " in lost.splitlines()[0]
    assert "in loss: " in lost.splitlines()[0]


def test_what_the_processes_cannot_share_is_refused_by_all(group: Group, tmp_path: Path) -> None:
    group(tmp_path, 4, "fit_refused")
    for rank in range(4):
        unlike, scarce = json.loads((tmp_path / f"refused-{rank}.json").read_text())
        assert unlike.startswith("expected the same training data in all processes")
        assert "in process 1, 2, 3 than in process 0" in unlike
        assert "as many rows in every batch as there are processes (4)" in scarce
        assert "received a last batch of 1" in scarce


# -- real launchers, real machines ---------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import torch
from torch import nn
import fogline
from programs import problems


class Killed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.calls = problems.plain_mlp(), 0

    def forward(self, x):
        self.calls += self.training and torch.is_grad_enabled()
        if self.calls == 17 and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0" and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layers(x)


task = fogline.Task(Killed, nn.CrossEntropyLoss(), problems.points(45), problems.points(600, 1))
recipe = problems.recipe(duration="40st", checkpoint_every="5st", optimizer="adamw", ema=0.9)
"""


def program(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    places = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places, **environment},
        capture_output=True,
        text=True,
    )


def test_a_killed_process_restarts_the_group_and_the_bits_are_those_of_a_quiet_run(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(KILLED)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    ended = program([*launcher, "-m", "fogline", "train", "task.py", "--runs", "killed"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "exitcode: -9" in ended.stderr
    assert ended.stdout.count("run: ") == 1  # one speaks for both
    (tmp_path / "quiet.py").write_text(KILLED.replace("== 17", "== -1"))
    quiet = program(["fogline", "train", "quiet.py", "--processes", "2", "--runs", "quiet"], tmp_path)
    assert quiet.returncode == 0, quiet.stderr
    (killed,), (whole,) = ([*(tmp_path / name).iterdir()] for name in ("killed", "quiet"))  # no second run was begun
    assert final_bits(killed) == final_bits(whole)
    for column in ("step", "loss", "lr", "grad_norm"):
        assert read_table(killed, "steps")[column].tolist() == read_table(whole, "steps")[column].tolist()


@pytest.fixture
def spaces() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them."""
    names = [f"fog-{os.getpid()}-{k}" for k in (1, 2)]
    commands = [
        *(f"ip netns add {name}" for name in names),
        f"ip link add fog netns {names[0]} type veth peer name fog netns {names[1]}",
        *(f"ip -n {name} addr add 10.77.0.{k}/24 dev fog" for k, name in enumerate(names, 1)),
        *(f"ip -n {name} link set {device} up" for name in names for device in ("lo", "fog")),
    ]
    try:
        for command in commands:
            try:
                done = subprocess.run(command.split(), capture_output=True, text=True)
            except FileNotFoundError:
                pytest.skip("there is no program `ip` here")
            if done.returncode:
                pytest.skip(f"no network namespaces can be made here: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_two_machines(spaces: list[str], group: Group, one: Path, tmp_path: Path) -> None:
    group(tmp_path, 2, "fit_variants", names=["plain"], spaces=spaces)
    assert_same_run(tmp_path / "plain", one / "plain", 1e-12)


# -- the parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "size"), list(itertools.product((1, 5, 8, 64), (1, 2, 3, 7))))
def test_shares_are_contiguous_complete_and_even(rows: int, size: int) -> None:
    bounds = [share_of(rows, rank, size) for rank in range(size)]
    assert [k for start, stop in bounds for k in range(start, stop)] == list(range(rows))
    lengths = [stop - start for start, stop in bounds]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("step", [0, 4, 7])
def test_the_shares_of_a_step_are_its_batch(step: int, shuffle: bool) -> None:
    batches = Batches(InMemory(points()), 8, seed=3, shuffle=shuffle)
    streams = [Share(batches, rank, 3).stream(step) for rank in range(3)]
    whole = batches.stream(step)
    for k in range(15):
        inputs, targets = next(whole)
        portions = [next(stream) for stream in streams]
        found = [portion.batch for portion in portions if portion.batch is not None]
        assert torch.equal(torch.cat([x for x, _ in found]), inputs)
        assert torch.equal(torch.cat([y for _, y in found]), targets)
        assert {portion.rows for portion in portions} == {len(inputs)}
        alone = [Share(batches, rank, 3).at(step + k)[1] for rank in range(3)]
        assert np.concatenate(alone).tolist() == batches.rows(step + k).tolist()  # type: ignore[union-attr]


LOSSES = {
    "mean": nn.CrossEntropyLoss(),
    "weights of classes": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]), ignore_index=1),
    "smoothed": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]), label_smoothing=0.2),
    "function": nn.functional.cross_entropy,
    "squares": lambda outputs, targets: (outputs - targets[:, None]).square().mean(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_weighed_losses_of_shares_make_that_of_the_batch(name: str) -> None:
    X, y = points(13)
    objective = Objective(nn.Linear(6, 3), LOSSES[name])
    weighing = Weighing.of(objective, summed=False)
    shares = [weighing.share(piece, 13) for piece in split((X, y), 5)]
    total = sum(float(weight) for _, weight in shares)
    assert sum(loss.item() for loss, _ in shares) * 13 / total == pytest.approx(
        objective.value((X, y)).item(), rel=1e-6
    )
    assert not is_no_average(objective, (X, y))


def test_a_loss_that_is_no_average_over_rows_is_found() -> None:
    objective = Objective(nn.Linear(6, 3), lambda outputs, targets: outputs.sum(dim=1).logsumexp(dim=0))
    assert is_no_average(objective, points(13))
    assert not is_no_average(Objective(nn.Linear(6, 3), lambda outputs, _: outputs.sum()), points(13))


def test_a_checksum_knows_one_bit_in_its_place() -> None:
    weights = [torch.randn(5, 3), torch.randn(4).double(), torch.randn(3).bfloat16()]
    same = [weight.clone() for weight in weights]
    assert checksum(weights) == checksum(same)
    same[0][2, 1] = torch.nextafter(same[0][2, 1], torch.tensor(9.0))
    assert checksum(weights) != checksum(same)
    assert checksum([weights[0], weights[0].flip(0)]) != checksum([weights[0].flip(0), weights[0]])
