"""What only an accelerator can show; skipped where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline import Recipe, Task
from fogline.descent.optimizers import OPTIMIZERS
from fogline.descent.prepare import assemble, begin

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here"),
]


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(512, 16, generator=generator)
    return X, (X.sum(dim=1) > 0).long()


def _task(data: tuple[Tensor, Tensor] | None = None) -> Task:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))

    return Task(model, nn.CrossEntropyLoss(), _data() if data is None else data)


def _recipe(**changes: object) -> Recipe:
    return Recipe(
        optimizer="adamw", lr=1e-2, batch_size=32, duration="60st", device="cuda", precision="float32"
    ).replace(**changes)


def test_steps_do_not_wait_for_the_device(tmp_path: Path) -> None:
    descent = assemble(begin(_task(), _recipe(watch=0.0)), tmp_path / "run").descent
    descent.stepper.advance(0, 60, descent.rate)  # the first step allocates
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 30):
            descent.stepper.advance(step, 60, descent.rate)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_refused_step_changes_nothing_and_is_named(tmp_path: Path) -> None:
    X, y = _data()
    X[7] = torch.nan
    run = fogline.fit(_task((X, y)), _recipe(), runs=tmp_path)
    assert all(bool(torch.isfinite(value).all()) for value in run.model.state_dict().values())
    named = [event["message"] for event in run.events if event["kind"] == "refused"]
    assert named
    assert all("rows 7" in message for message in named)


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    whole = fogline.fit(_task(), _recipe(), runs=tmp_path, name="whole")
    loop = fogline.descend(_task(), _recipe(), runs=tmp_path, name="cut")
    for step in loop:
        if step.number == 20:
            loop.close()  # type: ignore[attr-defined]  # a generator
            break
    resumed = fogline.resume(tmp_path / "cut", _task())
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_mixed_precision_checks_itself(tmp_path: Path) -> None:
    run = fogline.fit(_task(), _recipe(precision="bf16"), runs=tmp_path)
    assert run.recipe.precision == "bf16"
    assert run.verdict is not fogline.Verdict.NONFINITE


def _weights(run: fogline.Run) -> dict[str, Tensor]:
    return dict(run.model.state_dict())


@pytest.mark.parametrize("examples", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_a_captured_step_has_the_bits_of_the_eager_one(optimizer: str, examples: bool, tmp_path: Path) -> None:
    # A power of two is the same in float32; the last batch of an epoch is a short one.
    recipe = _recipe(optimizer=optimizer, lr=2.0**-7, schedule="constant", warmup=0, batch_size=48, examples=examples)
    eager = fogline.fit(_task(), recipe.replace(step="eager"), runs=tmp_path, name="eager")
    captured = fogline.fit(_task(), recipe, runs=tmp_path, name="captured")
    assert captured.info["mechanics"]["mode"] == "captured", captured.info["mechanics"]
    for name, value in _weights(eager).items():
        assert torch.equal(value, _weights(captured)[name]), name
    assert list(eager.steps["loss"]) == list(captured.steps["loss"])
    if examples:
        # Computed batch by batch instead of many together: last digits may differ.
        for name in ("loss", "margin", "confidence", "correct"):
            assert eager.examples[name] == pytest.approx(captured.examples[name], rel=2e-3, abs=2e-3), name


def test_a_captured_run_that_was_cut_has_the_same_bits(tmp_path: Path) -> None:
    recipe = _recipe(duration="120st", batch_size=48)  # eleven steps an epoch, the last one short
    whole = fogline.fit(_task(), recipe, runs=tmp_path, name="whole")
    loop = fogline.descend(_task(), recipe, runs=tmp_path, name="cut")
    for step in loop:
        if step.number == 97:
            loop.close()  # type: ignore[attr-defined]  # a generator
            break
    resumed = fogline.resume(tmp_path / "cut", _task())
    assert resumed.info["mechanics"]["mode"] == whole.info["mechanics"]["mode"] == "captured"
    for name, value in _weights(whole).items():
        assert torch.equal(value, _weights(resumed)[name]), name


def test_a_model_that_waits_for_the_device_is_trained_eagerly(tmp_path: Path) -> None:
    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if float(x.sum()) > -1e9 else x[:, :2]

    run = fogline.fit(Task(Waits, nn.CrossEntropyLoss(), _data()), _recipe(), runs=tmp_path)
    assert run.info["mechanics"]["mode"] == "eager"
    assert "cannot be a CUDA graph" in run.info["mechanics"]["why"]
    assert run.steps["loss"][-1] < run.steps["loss"][0]


def test_memory_that_does_not_suffice_changes_no_result(tmp_path: Path) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 4096), nn.Tanh(), nn.Linear(4096, 4096), nn.Tanh(), nn.Linear(4096, 2))

    generator = torch.Generator().manual_seed(0)
    X = torch.randn(1 << 16, 16, generator=generator)
    task = Task(model, nn.CrossEntropyLoss(), (X, (X.sum(dim=1) > 0).long()))
    recipe = _recipe(batch_size="full", duration="3st", optimizer="sgd", examples=False)
    plenty = fogline.fit(task, recipe, runs=tmp_path, name="plenty")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (3 << 30)) / total)
    try:
        little = fogline.fit(task, recipe, runs=tmp_path, name="little")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any(event["kind"] == "out_of_memory" for event in little.events)
    for name, value in _weights(plenty).items():
        torch.testing.assert_close(value, _weights(little)[name], rtol=1e-4, atol=1e-6)


def test_the_doctor_says_on_the_device_what_it_says_on_the_cpu() -> None:
    X, y = _data()
    task = Task(lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2), nn.Softmax(1)),
                nn.CrossEntropyLoss(), (X, y), valid=(X[:128], y[:128]))  # fmt: skip
    found = {}
    for device in ("cpu", "cuda"):
        recipe = _recipe(device=device, duration="200st")
        found[device] = [finding.cause for finding in fogline.diagnose(task, recipe).findings]
    assert found["cuda"] == found["cpu"]
    assert found["cuda"][0] == "double_softmax"


class _Two(nn.Module):
    """Takes numbers and a code; gives scores and a length."""

    def __init__(self, *last: nn.Module) -> None:
        super().__init__()
        self.codes = nn.Embedding(4, 8)
        self.body = nn.Sequential(nn.Linear(24, 32), nn.ReLU())
        self.scores, self.length = nn.Sequential(nn.Linear(32, 2), *last), nn.Linear(32, 1)

    def forward(self, numbers: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(torch.cat([numbers, self.codes(code)], 1))
        return self.scores(hidden), self.length(hidden)[:, 0]


@pytest.mark.parametrize(
    ("fault", "unit", "cause"),
    [("softmax", 1.0, "double_softmax"), ("unit", 3e3, "unscaled_target"), ("", 1.0, None)],
)
def test_a_loss_of_a_batch_is_examined_there_as_on_the_cpu(
    fault: str, unit: float, cause: str | None, tmp_path: Path
) -> None:
    X, y = _data()
    rows = [{"numbers": x, "code": torch.tensor(k % 4), "label": label, "length": unit * x[:3].sum()}
            for k, (x, label) in enumerate(zip(X, y, strict=True))]  # fmt: skip

    @fogline.on_batch
    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        scores, length = model(batch["numbers"], code=batch["code"])
        return nn.functional.cross_entropy(scores, batch["label"]) + nn.functional.mse_loss(length, batch["length"])

    def model() -> nn.Module:
        return _Two(*[nn.Softmax(1)] * (fault == "softmax"))

    task, recipe = Task(model, loss, rows[128:], valid=rows[:128]), _recipe(duration="200st")
    reports = [fogline.diagnose(task, recipe.replace(device=device)) for device in ("cpu", "cuda")]
    found = [[finding.cause for finding in report.findings] for report in reports]
    assert found[0] == found[1]
    assert found[1][:1] == ([] if cause is None else [cause])
    run = fogline.fit(*reports[1].apply(task, recipe), runs=tmp_path)
    assert run.steps["loss"][-1] < run.steps["loss"][0]


def test_batches_whose_tensors_are_no_rows_are_trained_there(tmp_path: Path) -> None:
    """Sets of many sizes, laid end to end, of which each row says how long it is."""

    def joined(examples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        sets, labels = zip(*examples, strict=True)
        return {
            "members": torch.cat(sets),
            "sizes": torch.tensor([len(s) for s in sets]),
            "labels": torch.stack(labels),
        }

    X, y = _data()
    examples = [(x.repeat(1 + k % 3, 1), label) for k, (x, label) in enumerate(zip(X, y, strict=True))]

    @fogline.on_batch
    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        sums = torch.stack([part.mean(0) for part in model(batch["members"]).split(batch["sizes"].tolist())])
        return nn.functional.cross_entropy(sums, batch["labels"])

    losses = {}
    for device in ("cpu", "cuda"):
        loader = torch.utils.data.DataLoader(examples, batch_size=32, shuffle=True, collate_fn=joined,  # type: ignore[arg-type, var-annotated]
                                             pin_memory=device == "cuda")  # fmt: skip
        task = Task(lambda: nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 2)), loss, loader)
        run = fogline.fit(task, _recipe(device=device), runs=tmp_path, name=device)
        losses[device] = list(run.steps["loss"])
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=2e-2, abs=1e-3)


def test_what_lies_ahead_is_seen_there_as_on_the_cpu(tmp_path: Path) -> None:
    ahead = []
    for device in ("cpu", "cuda"):
        judged = fogline.fit(_task(), _recipe(device=device, lr=1e-5), runs=tmp_path, name=device).judgement
        assert judged is not None
        ahead.append((judged.verdict, judged.evidence["gain_ahead_share"]))
    assert ahead[0][0] is ahead[1][0]
    assert ahead[1][1] == pytest.approx(ahead[0][1], rel=0.3)


def test_the_measured_rate_is_near_that_of_the_cpu() -> None:
    rates = [fogline.find_lr(_task(), _recipe(device=d, lr="auto", duration="600st")).value for d in ("cpu", "cuda")]
    assert 0.2 < rates[0] / rates[1] < 5


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_every_optimizer_steps_there_as_on_the_cpu(optimizer: str, tmp_path: Path) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 2))

    task = Task(model, nn.CrossEntropyLoss(), _data())
    recipe = Recipe(optimizer=optimizer, lr=OPTIMIZERS[optimizer].lr, batch_size="full", duration="60st",
                    schedule="constant", precision="float32")  # fmt: skip
    losses = {}
    for device in ("cpu", "cuda"):
        run = fogline.fit(task, recipe.replace(device=device), runs=tmp_path, name=device)
        print(optimizer, device, run.info["mechanics"])
        losses[device] = list(run.steps["loss"])
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("step", ["eager", "auto"])
def test_gradients_are_clipped_there(step: str, tmp_path: Path) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 2))

    task, recipe = Task(model, nn.CrossEntropyLoss(), _data()), _recipe(clip="adaptive", step=step)
    losses = {
        device: list(fogline.fit(task, recipe.replace(device=device), runs=tmp_path, name=device).steps["loss"])
        for device in ("cpu", "cuda")
    }
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=2e-2, abs=1e-3)
    assert fogline.find_lr(_task(), _recipe(clip="adaptive", lr="auto")).value > 0


def test_small_steps_stay_in_full_precision_and_large_ones_do_not(tmp_path: Path) -> None:
    def wide() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 2))

    small = fogline.fit(_task(), _recipe(precision="auto"), runs=tmp_path, name="small")
    task = Task(wide, nn.CrossEntropyLoss(), _data())
    large = fogline.fit(task, _recipe(precision="auto", batch_size=512, duration="5st"), runs=tmp_path, name="large")
    assert (small.recipe.precision, large.recipe.precision) == ("float32", "bf16")


def test_probabilities_are_trained_in_mixed_precision(tmp_path: Path) -> None:
    """``nn.BCELoss`` refuses half precision, and gets full."""
    X, y = _data()
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())
    run = fogline.fit(
        Task(model, nn.BCELoss(), (X, y.float()[:, None])), _recipe(precision="bf16"), runs=tmp_path, name="bce"
    )
    assert run.recipe.precision == "bf16"
    assert run.steps["loss"][-1] < run.steps["loss"][0]


def test_what_is_no_probability_is_refused_and_ends_nothing(tmp_path: Path) -> None:
    """PyTorch ends the process where ``nn.BCELoss`` gets something else on a device."""
    X, y = _data()
    X[7] = torch.nan
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())
    run = fogline.fit(Task(model, nn.BCELoss(), (X, y.float()[:, None])), _recipe(), runs=tmp_path)
    assert "rows 7" in next(event["message"] for event in run.events if event["kind"] == "refused")
    assert all(bool(torch.isfinite(value).all()) for value in run.model.state_dict().values())


def test_what_was_trained_there_is_exported(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("torchao")
    run = fogline.fit(_task(), _recipe(), runs=tmp_path, name="net")
    report = fogline.export(run, tmp_path / "net.onnx", qat=Recipe(lr=1e-4, duration="20st"))
    assert report.scores["runtime"]["accuracy"] >= report.scores["float"]["accuracy"] - 0.03
    assert report.differences["fake - converted"].largest == 0


_MEMBER = """
import os, sys, torch, fogline
from datetime import timedelta
from fogline import _fit
from fogline.descent import group
folder, name, parallel, network = sys.argv[1:]
if network == "gloo":  # NCCL wants a device for each process
    os.environ["LOCAL_RANK"] = "0"
    torch.distributed.init_process_group("cpu:gloo,cuda:gloo")
elif network == "nccl":  # a group of one, which fogline would not make
    group._make_group("cpu:gloo,cuda:nccl", timedelta(seconds=60))
    world = group.World(None, torch.distributed.distributed_c10d._get_default_store(), 60.0)
    _fit.joined = lambda device: world
X = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
model = lambda: torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
task = fogline.Task(model, torch.nn.CrossEntropyLoss(), (X, (X.sum(dim=1) > 0).long()))
recipe = fogline.Recipe(lr=0.0078125, batch_size=48, duration="60st", device="cuda", precision="float32")
fogline.fit(task, recipe.replace(parallel=parallel), runs=folder, name=name, progress=False)
"""


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(("processes", "network"), [(1, "nccl"), (2, "gloo")])
def test_a_group_on_one_device_trains_as_one_process(
    processes: int, network: str, parallel: str, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(_MEMBER)
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    for start, name, over in (([sys.executable], "one", "none"), (several, "group", network)):
        command = [*start, str(script), str(tmp_path), name, parallel, over]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    one, group = (fogline.Run(tmp_path / name).steps["loss"] for name in ("one", "group"))
    assert list(group) == pytest.approx(list(one), rel=1e-4)
