"""``fit`` leaves alone what is not its own, ends when it should and refuses what does not fit."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline import Task, Verdict
from fogline.descent.prepare import begin
from fogline.rate import measure_rate
from programs.problems import bits, classification, mlp, plain_mlp, points, recipe


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Python's, NumPy's and PyTorch's generators are afterwards as they were before."""
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    yield
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.get_rng_state().tolist() == states[2]


def state(model: nn.Module) -> dict[str, bytes]:
    return {name: bits(value) for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "changes", [{}, {"lr": "auto"}, {"ema": 0.9}, {"optimizer": "lbfgs"}, {"optimizer": "auto", "step": "auto"}]
)
def test_fit_leaves_the_callers_randomness_model_and_data(changes: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, data = mlp(), points()
    before, inputs = state(model), data[0].clone()
    threads, mode = torch.get_num_threads(), model.training
    with untouched_randomness():
        run = fogline.fit(Task(model, nn.CrossEntropyLoss(), data, points(30, 1)), recipe(**changes), runs=tmp_path)
    assert state(model) == before
    assert run.model is not model
    assert state(run.model) != before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(data[0], inputs)
    assert (torch.get_num_threads(), model.training) == (threads, mode)


def test_descend_leaves_the_callers_randomness_between_its_steps(tmp_path: Path) -> None:
    with untouched_randomness():
        drawn = [torch.rand(1).item() for _ in range(5)]
        torch.manual_seed(5)
        steps = fogline.descend(classification(), recipe(duration="5st"), runs=tmp_path)
        between = [torch.rand(1).item() for _ in steps]
        assert between == drawn
        torch.manual_seed(5)


def test_the_callers_randomness_does_not_reach_the_run(tmp_path: Path) -> None:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        run = fogline.fit(classification(), recipe(), runs=tmp_path, name=str(seed))
        found.append((state(run.model), run.steps["loss"].tolist()))
    assert found[0] == found[1]
    other = fogline.fit(classification(), recipe(seed=1), runs=tmp_path, name="other")
    assert state(other.model) != found[0][0]


@pytest.mark.parametrize("optimizer", ["momentum", "adamw", "gd"])
def test_measuring_the_rate_disturbs_nothing(optimizer: str) -> None:
    chosen = recipe(optimizer=optimizer, lr="auto", clip="adaptive")
    start = begin(classification(), chosen)
    model = start.objective.model
    model.train()
    torch.manual_seed(2)
    start.objective(next(start.batches.stream(0))).backward()
    before = state(model)
    gradients = [bits(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) == 6
    with untouched_randomness():
        rate = measure_rate(start)
    assert rate.value > 0
    assert state(model) == before
    assert [bits(parameter.grad) for parameter in model.parameters() if parameter.grad is not None] == gradients
    assert model.training
    assert measure_rate(start).value == rate.value


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_duration_in_time_ends(schedule: str, tmp_path: Path) -> None:
    chosen = recipe(duration="0.3s", schedule=schedule, warmup=0.1, checkpoint_every="1h")
    run = fogline.fit(classification(), chosen, runs=tmp_path)
    assert run.info["seconds"] >= 0.3
    assert len(run.steps) > 1
    assert run.verdict is not None
    if schedule == "linear":
        assert run.steps["lr"][-1] < run.steps["lr"].max()


@pytest.mark.parametrize(("duration", "steps"), [("7st", 7), ("2ep", 12), ("1.5ep", 9), ("20ex", 3)])
def test_a_duration_is_that_many_steps(duration: str, steps: int, tmp_path: Path) -> None:
    run = fogline.fit(classification(), recipe(duration=duration), runs=tmp_path)
    assert run.steps["step"].tolist() == list(range(steps))
    assert run.info["steps"] == steps


def test_the_best_held_out_weights_are_kept(tmp_path: Path) -> None:
    chosen = recipe(optimizer="adamw", lr=0.1, duration="300st", schedule="constant", warmup=0, checkpoint_every="1h")
    task = classification()
    run = fogline.fit(task, chosen, runs=tmp_path)
    held_out = {row["step"]: row["value"] for row in run.scores if row["name"] == "loss"}
    best = min(held_out, key=held_out.__getitem__)
    assert 0 < best < 300
    x, y = points(30, 1)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(run.model(x), y).item()
    assert loss == pytest.approx(held_out[best], rel=1e-5)
    assert run.final_scores()["step"] == best
    opened = fogline.Run.open(run.folder, task=task)
    assert state(opened.model) == state(run.model)


def test_a_run_without_held_out_data_keeps_the_last_weights(tmp_path: Path) -> None:
    task = Task(plain_mlp, nn.CrossEntropyLoss(), points())
    run = fogline.fit(task, recipe(ema=0.9), runs=tmp_path)
    assert state(fogline.Run.open(run.folder, task=task).model) == state(run.model)


def test_a_line_is_found_and_the_run_says_so(tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 64, dtype=torch.float64)[:, None]
    run = fogline.fit(
        nn.Linear(1, 1).double(), (x, 3 * x + 1), loss=nn.MSELoss(), optimizer="gd", lr=0.5, duration="300st",
        schedule="constant", runs=tmp_path,
    )  # fmt: skip
    assert run.verdict is Verdict.CONVERGED
    assert run.model.weight.item() == pytest.approx(3, abs=1e-6)
    assert run.model.bias.item() == pytest.approx(1, abs=1e-6)


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    task = classification()

    def given(**fields: Any) -> None:
        fogline.fit(task, recipe(**fields), runs=tmp_path)

    for expected, call in (
        (r"expected loss in the Task", lambda: fogline.fit(task, loss=nn.MSELoss(), runs=tmp_path)),
        (r"expected a Recipe after the Task", lambda: fogline.fit(task, {"lr": 1}, runs=tmp_path)),
        (r"expected training data after the model", lambda: fogline.fit(mlp(), recipe(), runs=tmp_path)),
        (r"unknown recipe field 'durations': did you mean 'duration'", lambda: fogline.fit(task, durations="1ep")),
        (r"unknown recipe field 'epochs': did you mean duration=\"20ep\"", lambda: fogline.fit(task, epochs=3)),
        (r"received 'beta'; did you mean 'betas'", lambda: given(optimizer="adam", options={"beta": 0.9})),
        (r"options that AdamW takes, received \{'betas': 3", lambda: given(optimizer="adamw", options={"betas": 3})),
        (r"lr_scale 'head': choose one of", lambda: given(lr_scale={"head": 3.0})),
        (r"received the class MSELoss; make one: MSELoss\(\)", lambda: Task(mlp, nn.MSELoss, points())),
        (r"that wants in_features, out_features; write .* Linear\(", lambda: Task(nn.Linear, None, points())),
        (r"expected a folder for the runs, received the file", lambda: fogline.fit(task, runs=Path(__file__))),
        (r"export: expected a run or a task, received 'run'", lambda: fogline.export("run", tmp_path / "a.onnx")),
        (r"expected a plain folder name", lambda: fogline.fit(task, recipe(), runs=tmp_path, name="../x")),
    ):
        with pytest.raises((TypeError, ValueError, NotADirectoryError), match=expected):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    task, chosen = classification(), recipe(duration="2st")
    fogline.fit(task, chosen, runs=tmp_path, name="x")
    with pytest.raises(FileExistsError, match="expected a new run"):
        fogline.fit(task, chosen, runs=tmp_path, name="x")


def test_runs_without_a_name_get_names_of_their_own(tmp_path: Path) -> None:
    task, chosen = classification(), recipe(duration="2st")
    names = {fogline.fit(task, chosen, runs=tmp_path).name for _ in range(3)}
    assert len(names) == 3


def test_a_model_given_twice_starts_twice_from_the_same_weights(tmp_path: Path) -> None:
    model = plain_mlp()
    twin = copy.deepcopy(model)
    runs = [
        fogline.fit(Task(start, nn.CrossEntropyLoss(), points()), recipe(), runs=tmp_path, name=name)
        for start, name in ((model, "a"), (model, "b"), (twin, "c"))
    ]
    assert state(runs[0].model) == state(runs[1].model) == state(runs[2].model)


def test_no_metrics_can_be_said_as_none() -> None:
    assert Task(lambda: nn.Linear(2, 1), nn.MSELoss(), (torch.ones(4, 2), torch.ones(4, 1)), metrics=None).metrics == {}  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a dict of functions by name as `metrics`"):
        Task(lambda: nn.Linear(2, 1), nn.MSELoss(), (torch.ones(4, 2), torch.ones(4, 1)), metrics=[nn.MSELoss()])  # type: ignore[arg-type]


class _Views(nn.Module):
    """Two embeddings of a pair of rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 6)

    def forward(self, both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.body(both[0]), self.body(both[1])


def test_usual_metrics_stand_back_where_only_the_loss_can_read_the_outputs(tmp_path: Path) -> None:
    def alike(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[0] @ outputs[1].T, torch.arange(len(targets)))

    pairs = (torch.randn(64, 4), torch.randn(64, 4)), torch.ones(64)
    run = fogline.fit(_Views(), pairs, loss=alike, valid=pairs, duration="2ep", lr=0.01, runs=tmp_path, progress=False)
    assert set(run.final_scores()) == {"step", "loss"}


class _Decaying(torch.optim.Optimizer):
    """An optimizer that keeps numbers of its own beside its groups."""

    def __init__(self, params: Any, lr: float = 0.1, share: float = 0.5) -> None:
        super().__init__(params, {"lr": lr})
        self.share, self.seen = share, [0]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.seen[0] += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=group["lr"] * self.share)


def test_an_optimizer_keeps_what_is_its_own_where_steps_are_tried(tmp_path: Path) -> None:
    made: list[_Decaying] = []

    class Kept(_Decaying):
        def __init__(self, params: Any, lr: float = 0.1) -> None:
            super().__init__(params, lr)
            made.append(self)

    rows, kept = (torch.randn(64, 4), torch.randn(64, 1)), {"runs": tmp_path, "progress": False}
    run = fogline.fit(nn.Linear(4, 1), rows, loss=nn.MSELoss(), optimizer=Kept, lr=0.01, duration="40st", **kept)
    assert run.info["steps"] == 40
    assert made[-1].seen[0] == 40  # trials count on copies


class Detector(nn.Module):
    """Gives its losses in training mode and a list of boxes else, as torchvision's detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Any:
        found = self.body(x)
        if self.training:
            return {"boxes": F.mse_loss(found, targets), "size": 0.01 * found.square().mean()}
        return [{"boxes": row} for row in found]


def _detected(model: nn.Module, batch: Any) -> Tensor:
    return torch.stack(list(model(*batch).values())).sum()


@pytest.mark.parametrize("held_out", [True, False])
def test_a_model_that_gives_its_loss_in_training_mode_only(held_out: bool, tmp_path: Path) -> None:
    """It is scored so: dropout is off and batch normalisation keeps its statistics all the same."""
    X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    data = X, X[:, :2]
    task = Task(Detector, fogline.on_batch(_detected), data, data if held_out else None)
    run = fogline.fit(task, recipe(duration="5ep"), runs=tmp_path)
    assert any("in training mode only" in event["message"] for event in run.events)
    assert not run.model.training
    if held_out:
        found = run.model.body(X)  # in evaluation mode
        expected = F.mse_loss(found, X[:, :2]) + 0.01 * found.square().mean()
        assert run.info["scores"]["loss"] == pytest.approx(float(expected.detach()), rel=1e-4)


class TwoHeads(nn.Module):
    """Gives what its second head says in training mode as well, as Inception does."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.main, self.other = mlp(), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x)
        return (self.main(hidden), self.other(hidden)) if self.training else self.main(hidden)


def _of_both(outputs: Any, targets: Tensor) -> Tensor:
    main, other = outputs
    return F.cross_entropy(main, targets) + 0.3 * F.cross_entropy(other, targets)


def test_metrics_are_asked_of_what_is_answered_in_evaluation_mode(tmp_path: Path) -> None:
    def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets).float().mean()

    X, y = points(60, 1)
    task = Task(TwoHeads, _of_both, points(), (X, y), metrics={"accuracy": accuracy})
    run = fogline.fit(task, recipe(duration="3ep"), runs=tmp_path)
    assert run.info["scores"]["accuracy"] == pytest.approx(float(accuracy(run.model(X), y)))


def test_a_loss_that_fails_in_evaluation_mode_says_why(tmp_path: Path) -> None:
    def of_all(model: nn.Module, batch: Any) -> Tensor:
        if not all(module.training for module in model.modules()):
            raise KeyError("boxes")
        return F.cross_entropy(model(batch[0]), batch[1])

    with pytest.raises(KeyError, match="boxes"):
        fogline.fit(Task(mlp(), fogline.on_batch(of_all), points()), recipe(), runs=tmp_path)
