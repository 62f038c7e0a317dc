"""The verb, on runs and on functions."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from typer.testing import CliRunner

import fogline
import fogline.cli as cli
from fogline.descent.checkpoint import model_tensors
from programs.problems import classification, points, recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fogline.Run:
    return fogline.fit(classification(), recipe(duration="60st"), runs=tmp_path_factory.mktemp("runs"), name="run")


def plain_losses(run: fogline.Run, weights: list[Tensor], batch: tuple[Tensor, Tensor]) -> list[float]:
    """Weights are loaded into the model; its normalisation takes the statistics of the batch."""
    model, found = run.task.model().eval(), []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean = module.running_var = None
            module.track_running_stats = False
    for flat in weights:
        nn.utils.vector_to_parameters(flat, model.parameters())
        with torch.no_grad():
            found.append(float(run.task.loss(model(batch[0]), batch[1])))
    return found


@pytest.mark.parametrize("span", ["path", "filter", "hessian"])
def test_a_run_gets_its_plane_surface_and_path(run: fogline.Run, span: Any) -> None:
    seen = fogline.landscape(run, span, points=13)
    assert seen.surface.loss.shape == (13, 13)
    assert np.isfinite(seen.surface.loss).all()
    assert seen.path is not None
    assert seen.path.step[-2] == 60  # the last weights; after them stands what was kept
    assert (seen.path.x[-1], seen.path.y[-1]) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert seen.path.loss[-1] == pytest.approx(seen.path.plane_loss[-1], rel=1e-5)
    kept = torch.cat([p.detach().reshape(-1) for p in run.model.parameters()])
    everything = tuple(torch.as_tensor(part) for part in run.task.train)
    assert seen.path.loss[-1] == pytest.approx(plain_losses(run, [kept], everything)[0], rel=1e-5)
    assert (seen.explained is not None) == (span == "path")
    assert "plane holds" in str(seen) or span != "path"
    assert json.loads((run.folder / "landscape.json").read_text())["span"] == span


def test_every_point_of_the_path_has_its_true_loss(run: fogline.Run) -> None:
    from fogline.record.snapshots import read_path

    seen, found = fogline.landscape(run, points=5), read_path(run.folder)
    assert seen.path is not None
    assert found is not None
    everything = tuple(torch.as_tensor(part) for part in run.task.train)
    wanted = plain_losses(run, list(found.weights), everything)
    assert list(seen.path.loss[: len(wanted)]) == pytest.approx(wanted, rel=1e-5)
    assert (seen.path.distance[:-1] > 0).any()


def test_the_span_of_curvature_curves_as_its_eigenvalues_say(tmp_path: Path) -> None:
    X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    task = fogline.Task(nn.Linear(3, 1, bias=False).double(), nn.MSELoss(), (X, X @ torch.ones(3, 1).double()))
    chosen = fogline.Recipe(optimizer="sgd", lr=0.1, duration="30st", batch_size="full", precision="float64")
    run = fogline.fit(task, chosen, runs=tmp_path)
    seen = fogline.landscape(run, "hessian", points=9, refine=False)
    values = torch.linalg.eigvalsh(2 * X.T @ X / 64)
    assert seen.facts["eigenvalues"] == pytest.approx([float(values[-1]), float(values[-2])])
    x, y, loss = seen.surface.x, seen.surface.y, seen.surface.loss
    # Around the kept weights, a quadratic: its second differences are exact.
    for line, at, value in ((loss[4], x, values[-1]), (loss[:, 4], y, values[-2])):
        second = (line[:-2] - 2 * line[1:-1] + line[2:]) / (at[1] - at[0]) ** 2
        assert second == pytest.approx(np.full(7, float(value)), rel=1e-6)


def test_nothing_is_disturbed(run: fogline.Run) -> None:
    model = run.model
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in model_tensors(model).items()}
    modes = [module.training for module in model.modules()]
    states, threads = (torch.get_rng_state(), np.random.get_state()[1].copy()), torch.get_num_threads()
    for span in ("path", "filter", "hessian"):
        fogline.landscape(run, span, points=9)
    after = model_tensors(model)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [module.training for module in model.modules()] == modes
    assert all(bool((p.grad == 1).all()) for p in model.parameters())
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_the_same_seed_gives_the_same_landscape(run: fogline.Run) -> None:
    first, again, other = (fogline.landscape(run, "filter", points=5, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.surface.loss, again.surface.loss)
    assert not np.array_equal(first.surface.loss, other.surface.loss)


def test_json_comes_back_as_it_was(run: fogline.Run) -> None:
    seen = fogline.landscape(run, points=9)
    back = fogline.Landscape.from_json((run.folder / "landscape.json").read_text())
    assert back.to_dict() == seen.to_dict()
    assert np.array_equal(back.surface.evaluated, seen.surface.evaluated)
    with pytest.raises(ValueError, match="JSON of a landscape"):
        fogline.Landscape.from_json("[]")


def test_a_run_that_was_only_opened_needs_its_task(run: fogline.Run) -> None:
    with pytest.raises(ValueError, match="a run with its task"):
        fogline.landscape(run.folder)
    assert fogline.landscape(run.folder, task=run.task, points=5).surface.loss.shape == (5, 5)


def test_a_run_that_was_not_watched_has_no_path_of_its_own(tmp_path: Path) -> None:
    run = fogline.fit(classification(), recipe(duration="5st", watch=0.0), runs=tmp_path)
    with pytest.raises(ValueError, match="that kept its path"):
        fogline.landscape(run)
    assert fogline.landscape(run, "filter", points=5).path is not None


def test_a_watched_loop_with_a_task(tmp_path: Path) -> None:
    X, y = points()
    model = nn.Linear(X.shape[1], 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        for _ in range(20):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(X), y)
            loss.backward()
            optimizer.step()
            run.log(loss)
    task = classification(model=model)
    seen = fogline.landscape(run, "hessian", task=task, points=9)
    assert seen.path is not None
    wanted = nn.functional.cross_entropy(model(X), y).item()
    assert seen.path.loss[-1] == pytest.approx(wanted, rel=1e-5)


def test_a_run_that_was_left_early_shows_how_far_it_came(tmp_path: Path) -> None:
    task = classification()
    for step in fogline.descend(task, recipe(duration="100st", checkpoint_every="1000st"), runs=tmp_path, name="left"):
        if step.number == 20:
            break
    seen = fogline.landscape(tmp_path / "left", task=task, points=5)
    assert seen.path is not None
    assert seen.path.step[:-1].tolist() == [0, 4, 8, 12, 16, 20, 21]
    assert np.isfinite(seen.path.loss).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"span": "paths"}, "did you mean 'path'"), ({"points": 3}, "at least 5"), ({"examples": 0}, "at least 1")],
)
def test_bad_arguments_are_named(run: fogline.Run, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fogline.landscape(run, **arguments)
    with pytest.raises(TypeError, match="a run, its folder, or results"):
        fogline.landscape(3)  # type: ignore[arg-type]


def test_a_loss_of_its_own_goes_through_whole(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        outputs = model(batch[0])
        return nn.functional.cross_entropy(outputs, batch[1]) + outputs.var(dim=0).mean()

    task = classification(loss=fogline.on_batch(loss), valid=None)
    run = fogline.fit(task, recipe(duration="12st"), runs=tmp_path)
    seen = fogline.landscape(run, "filter", points=9, refine=False)
    assert np.isfinite(seen.surface.loss).all()


class ByPosition(Dataset[tuple[Tensor, Tensor]]):
    def __len__(self) -> int:
        return 44

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = points()
        return x[index], y[index]


class Streamed(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Any:
        yield from zip(*points(), strict=True)


@pytest.mark.parametrize("data", [ByPosition(), Streamed()], ids=["by position", "stream"])
def test_other_data_than_tensors(tmp_path: Path, data: Any) -> None:
    run = fogline.fit(classification(train=data, valid=None), recipe(duration="8st"), runs=tmp_path)
    assert fogline.landscape(run, points=5, examples=20).facts["examples"] == 20


# -- functions ----------------------------------------------------------------------------------------------------


def ravine(w: Tensor) -> Tensor:
    return w[0] ** 2 + 10 * w[1] ** 2


def descents() -> list[Any]:
    rates = (0.005, 0.05, 0.102)  # too small crawls, too large (over 2/20) overshoots
    return [fogline.minimize(ravine, [4.0, 1.0], method="gd", lr=rate, max_steps=30) for rate in rates]


def test_a_function_of_two_variables_is_exact() -> None:
    seen = fogline.landscape(descents(), points=9)
    x, y = np.meshgrid(seen.surface.x, seen.surface.y)
    assert np.allclose(seen.surface.loss, x**2 + 10 * y**2, rtol=1e-12)
    assert seen.surface.evaluated.all()
    assert not np.any(seen.fog)
    assert [path.name for path in seen.paths] == ["gd, lr 0.005", "gd, lr 0.05", "gd, lr 0.102"]
    crawls, walks, overshoots = seen.paths
    assert crawls.loss[-1] > walks.loss[-1]
    assert (np.sign(overshoots.y[1:]) == -np.sign(overshoots.y[:-1])).all()
    assert (seen.surface.x[0] <= 0, seen.surface.x[-1] >= 4) == (True, True)
    assert seen.labels == ("x[0]", "x[1]")


def test_a_path_that_runs_away_does_not_widen_the_view() -> None:
    near = fogline.minimize(ravine, [4.0, 1.0], method="gd", lr=0.05, max_steps=30)
    far = fogline.minimize(ravine, [4.0, 1.0], method="gd", lr=0.5, max_steps=30)
    seen = fogline.landscape([near, far])
    assert np.abs(seen.paths[1].y).max() > 1e6
    assert np.abs(seen.surface.y).max() < 10


def test_names_of_variables_and_of_equal_methods() -> None:
    first = fogline.minimize(lambda w: w["b"] ** 2 + w["a"] ** 2, {"a": 1.0, "b": 2.0}, method="bfgs")
    seen = fogline.landscape([first, first], points=5)
    assert seen.labels == ("a", "b")
    assert [path.name for path in seen.paths] == ["bfgs", "bfgs (2)"]


def test_more_variables_are_seen_on_the_plane_of_the_path() -> None:
    scales = torch.arange(1.0, 6.0, dtype=torch.float64)
    result = fogline.minimize(lambda w: (scales * w * w).sum(), torch.ones(5).double(), method="gd", lr=0.02)
    seen = fogline.landscape(result, points=9)
    assert seen.explained is not None
    assert sum(seen.explained) > 0.95
    assert seen.path is not None
    assert seen.path.loss[0] == pytest.approx(15.0)
    assert (seen.path.plane_loss <= seen.path.loss + 1e-9).mean() > 0.5
    assert np.isfinite(seen.surface.loss).all()


def test_a_copied_result_asks_for_its_function() -> None:
    result = pickle.loads(pickle.dumps(fogline.minimize(ravine, [4.0, 1.0])))
    with pytest.raises(ValueError, match="knows its function"):
        fogline.landscape(result)
    assert fogline.landscape(result, function=ravine, points=5).surface.loss.shape == (5, 5)


def test_one_variable_has_no_plane() -> None:
    with pytest.raises(ValueError, match="two variables"):
        fogline.landscape(fogline.minimize(lambda w: (w**2).sum(), [1.0]))


def test_a_function_that_is_not_finite_everywhere() -> None:
    result = fogline.minimize(lambda w: w[0] - torch.log(w[0]) + w[1] ** 2, [0.2, 1.0])
    seen = fogline.landscape(result, points=9)
    assert not np.isfinite(seen.surface.loss).all()
    assert None in [loss for row in json.loads(seen.to_json())["loss"] for loss in row]
    assert math.isfinite(float(seen.plot().data[0].zmin))


# -- the command line ---------------------------------------------------------------------------------------------

TASK = """
import torch
from fogline import Recipe, Task

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
task = Task(torch.nn.Linear(4, 1), torch.nn.MSELoss(), (X, X.sum(1, keepdim=True)))
recipe = Recipe(optimizer="sgd", lr=0.05, batch_size=16, duration="40st", device="cpu")
"""


def test_the_command_computes_prints_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("task.py").write_text(TASK)

    def call(*arguments: str) -> Any:
        return CliRunner().invoke(cli.app, ["landscape", *arguments], prog_name="fogline")

    trained = call("task.py", "--points", "9", "--json")
    assert trained.exit_code == 0, trained.output
    name = next(Path("runs").iterdir()).name
    drawn = call(name, "--points", "9", "--span", "hessian", "--plot", "seen.html", "--3d")
    assert drawn.exit_code == 0, drawn.output
    assert "of them evaluated" in drawn.stdout
    assert "landscape.json" in drawn.stdout
    assert "mesh3d" in Path("seen.html").read_text(encoding="utf-8")
    found = json.loads(call(name, "--points", "9", "--json").stdout)
    assert found["explained"][0] > 0.5
    assert call(name, "--span", "plane").exit_code == 2


def test_a_run_from_python_needs_a_task_file(run: fogline.Run) -> None:
    arguments = ["landscape", run.name, "--runs", str(run.folder.parent)]
    ended = CliRunner().invoke(cli.app, arguments, prog_name="fogline")
    assert ended.exit_code == 2
    assert "--task" in ended.output


def test_the_figures_need_no_torch(run: fogline.Run) -> None:
    fogline.landscape(run, points=5)
    code = (
        "import json, pathlib, sys; from fogline.plots.landscape import draw, draw_3d\n"
        f"values = json.loads(pathlib.Path({str(run.folder / 'landscape.json')!r}).read_text())\n"
        "assert draw(values).data and draw_3d(values, dark=True).data\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
