"""The measured learning rate: sensible everywhere, scale-free, within its budget, and nothing is disturbed."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

import fogline
from fogline import Rate, Task
from fogline.descent.prepare import begin
from fogline.rate.held_out import held_out_batches
from programs.problems import classification, mlp, points, recipe


def mean_squares(factor: float = 1.0, shift: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, targets: (outputs - targets).square().mean() * factor + shift


def seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def factory() -> nn.Module:
        torch.manual_seed(0)
        return build()

    return factory


def regression(rows: int = 512, columns: int = 6, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=generator)
    return x * scale, x @ torch.randn(columns, 1, generator=generator) + 0.1 * torch.randn(rows, 1, generator=generator)


def perceptron(columns: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(columns, 16), nn.ReLU(), nn.Linear(16, 1))


def task(build: Callable[[], nn.Module] = perceptron, loss: Any = None, **data: Any) -> Task:
    x, y = regression(**data)
    cut = len(x) * 3 // 4
    return Task(seeded(build), loss or mean_squares(), (x[:cut], y[:cut]), (x[cut:], y[cut:]))


def found(what: Task, **fields: Any) -> Rate:
    return fogline.find_lr(what, **({"optimizer": "momentum", "batch_size": 32, "duration": "600st"} | fields))


def trained(what: Task, rate: float, path: Path, **fields: Any) -> tuple[float, float]:
    """Held-out loss before and after a run at this rate."""
    chosen = {"optimizer": "momentum", "batch_size": 32, "duration": "600st", "step": "eager", "watch": 0.0} | fields
    run = fogline.fit(what, lr=rate, runs=path, **chosen)
    losses = [row["value"] for row in run.scores if row["name"] == "loss"]
    return losses[0], losses[-1]


# -- what comes of it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "lion", "muon"])
def test_the_rate_descends_and_keeps_to_its_budget(optimizer: str, tmp_path: Path) -> None:
    rate = found(task(), optimizer=optimizer)
    assert rate.interval[0] < rate.value < rate.interval[1]
    assert 0 < rate.cost_steps <= 60
    assert not any(warning.startswith("flat") for warning in rate.warnings)
    before, after = trained(task(), rate.value, tmp_path, optimizer=optimizer)
    assert after < 0.1 * before


def test_every_budget_keeps_a_sixth_to_verify_and_a_longer_run_has_a_larger_one() -> None:
    for duration, budget in (("100st", 60), ("600st", 60), ("3000st", 150)):
        rate = found(task(), duration=duration)
        assert rate.evidence["verify_steps"] >= 3
        assert rate.cost_steps + rate.evidence["verify_cost"] <= budget + 1  # both are rounded up
    assert rate.cost_steps > 60


def test_the_rate_may_not_be_raised_near_what_gained_nothing() -> None:
    rate = found(task())
    race = rate.evidence["race"]
    useless = [
        r for r, score in zip(race["rates"], race["scores"], strict=True) if score is None or score > race["before"]
    ]
    assert rate.value < rate.evidence["highest"] <= min(useless) / 6


def test_a_large_budget_tries_each_rate_on_two_orders_of_the_data() -> None:
    once, twice = found(task(), duration="3000st"), found(task(), duration="9000st")
    assert "12 members" in once.evidence["race"]["why"]
    assert "24 members" in twice.evidence["race"]["why"]
    assert twice.cost_steps <= 450
    assert twice.value == found(task(), duration="9000st").value


def test_the_evidence_is_json_and_holds_every_probe() -> None:
    rate = found(task())
    kept = json.loads(json.dumps(rate.evidence, allow_nan=False))
    race = kept["race"]
    assert len(race["rates"]) == len(race["scores"]) == len(race["losses"])
    assert all(len(losses) == race["steps"] for losses in race["losses"])
    assert race["rates"] == sorted(race["rates"])
    assert "winner" in kept["rule"]
    assert str(rate.cost_steps) in str(rate)


def test_two_runs_with_one_seed_find_the_same_rate() -> None:
    for optimizer in ("momentum", "adamw"):
        assert found(task(), optimizer=optimizer).value == found(task(), optimizer=optimizer).value


def test_it_is_the_rate_of_an_auto_run(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"optimizer": "adamw", "batch_size": 32, "duration": "60st", "step": "eager"}
    run = fogline.fit(task(), runs=tmp_path, **fields)
    assert run.recipe.lr == fogline.find_lr(task(), **fields).value
    assert run.info["resolved"]["lr"]["evidence"]["race"]["rates"]


@pytest.mark.parametrize("optimizer", ["lbfgs", "prodigy"])
def test_a_method_that_finds_its_own_step_costs_nothing(optimizer: str) -> None:
    rate = found(task(), optimizer=optimizer)
    assert (rate.value, rate.cost_steps) == (1.0, 0)


# -- units ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1e6, 1e-6])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_the_unit_of_the_loss_moves_the_rate_of_sgd_by_the_inverse_factor(optimizer: str, factor: float) -> None:
    plain = found(task(), optimizer=optimizer).value
    scaled = found(task(loss=mean_squares(factor)), optimizer=optimizer).value
    assert scaled * factor == pytest.approx(plain, rel=0.05)


@pytest.mark.parametrize("factor", [1e6, 1e-6])
def test_the_unit_of_the_loss_leaves_the_rate_of_adamw_alone(factor: float) -> None:
    options = {"eps": 1e-30}  # Adam's own epsilon has the unit of the gradient
    plain = found(task(), optimizer="adamw", options=options).value
    scaled = found(task(loss=mean_squares(factor)), optimizer="adamw", options=options).value
    assert scaled == pytest.approx(plain, rel=0.05)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_a_loss_below_zero(optimizer: str, tmp_path: Path) -> None:
    plain, below = (found(task(loss=mean_squares(1.0, shift)), optimizer=optimizer) for shift in (0.0, -1000.0))
    assert below.value == pytest.approx(plain.value, rel=0.5)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_inputs_that_nobody_scaled(optimizer: str, tmp_path: Path) -> None:
    what = task(scale=1000.0)
    rate = found(what, optimizer=optimizer)
    before, after = trained(what, rate.value, tmp_path, optimizer=optimizer)
    assert math.isfinite(after)
    assert after < before


# -- unusual tasks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [2, "full"])
def test_batches_small_and_full(batch_size: Any, tmp_path: Path) -> None:
    rate = found(task(), batch_size=batch_size)
    before, after = trained(task(), rate.value, tmp_path, batch_size=batch_size)
    assert after < 0.3 * before


def test_fewer_rows_than_a_batch() -> None:
    rate = found(task(rows=12), batch_size=64)
    assert math.isfinite(rate.value)
    assert rate.value > 0


@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.3), nn.BatchNorm1d(16), nn.LayerNorm(16)], ids=["dropout", "batch norm", "layer norm"]
)
def test_layers_that_draw_or_remember(layer: nn.Module, tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16), copy.deepcopy(layer), nn.ReLU(), nn.Linear(16, 1))

    rate = found(task(build), optimizer="adamw")
    before, after = trained(task(build), rate.value, tmp_path, optimizer="adamw")
    assert after < 0.5 * before


def test_a_recurrent_net_takes_turns() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.head = nn.GRU(1, 8, batch_first=True), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            states, _ = self.cells(x.unsqueeze(-1))
            answer: Tensor = self.head(states[:, -1])
            return answer

    rate = found(task(Recurrent), optimizer="adamw")
    assert not rate.evidence["race"]["together"]
    assert "cannot be mapped" in rate.evidence["race"]["why"]
    assert rate.cost_steps <= 60


def test_few_and_noisy_held_out_rows_do_not_let_it_run_away(tmp_path: Path) -> None:
    """Thirty rows of three overlapping clouds: the gain is uncertain, and so is a loss of twenty thousand."""
    torch.manual_seed(1)
    what = classification(model=mlp(), valid=points(30, 1))
    rate = fogline.find_lr(what, recipe(lr="auto"))
    assert rate.value < rate.evidence["edge"]
    before, after = trained(what, rate.value, tmp_path, batch_size=8, duration="40st")
    assert after < before + 0.1


def test_weights_that_are_trained_already_are_not_thrown_away(tmp_path: Path) -> None:
    run = fogline.fit(task(), optimizer="momentum", lr=0.02, batch_size=32, duration="2000st", runs=tmp_path, name="a")
    warm = Task(run.model, mean_squares(), task().train, task().valid)
    rate = found(warm)
    assert any(warning.startswith(("flat", "noise")) for warning in rate.warnings)
    before, after = trained(warm, rate.value, tmp_path)
    assert after < 1.5 * before


def test_two_groups_with_a_ratio_of_ten_keep_it(tmp_path: Path) -> None:
    scale = {"2": 10.0}
    rate = found(task(), lr_scale=scale)
    before, after = trained(task(), rate.value, tmp_path, lr_scale=scale)
    assert after < 0.3 * before
    assert rate.value < found(task()).value


def test_a_loss_that_sees_the_model() -> None:
    x, _ = regression()
    loss = fogline.on_batch(lambda model, batch: (model(batch) - batch).square().mean())
    rate = found(Task(seeded(lambda: nn.Linear(6, 6)), loss, x[:400], x[400:]))
    assert rate.warnings == ()


def test_a_loss_that_differentiates_its_inputs(tmp_path: Path) -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (slope - x).square().mean()

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    what = Task(seeded(build), fogline.on_batch(loss), torch.rand(64, 1), torch.rand(32, 1))
    rate = found(what)
    assert rate.value > 0
    before, after = trained(what, rate.value, tmp_path)
    assert after < before


class Rows(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self) -> None:
        self.x, self.y = regression(200)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        return self.x[k], self.y[k]


class Flow(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Any:
        return iter(Rows())


@pytest.mark.parametrize("data", [Rows(), Flow()], ids=["map-style", "stream"])
@pytest.mark.parametrize("held_out", [True, False])
def test_data_from_elsewhere(data: Any, held_out: bool) -> None:
    rate = found(Task(seeded(perceptron), mean_squares(), data, data if held_out else None))
    assert rate.interval[0] < rate.value < rate.interval[1]
    assert (rate.evidence["verify_steps"] is None) == isinstance(data, Flow)


def test_held_out_rows_may_be_sorted() -> None:
    x = torch.linspace(-1, 1, 400)[:, None]
    what = Task(seeded(lambda: nn.Linear(1, 1)), mean_squares(), (x, 3 * x + 1), (x, 3 * x + 1))
    start = begin(what, fogline.Recipe(optimizer="momentum", batch_size=32, duration="100st"))
    means = [float(inputs.mean()) for inputs, _ in held_out_batches(start)]
    assert len(means) == 4
    assert max(means) - min(means) < 0.05
    assert found(what).warnings == ()


# -- nothing is disturbed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw", "lion", "rmsprop", "muon", "schedule_free"])
def test_measuring_disturbs_nothing(optimizer: str) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
    model.train()
    model[0].weight.grad = torch.full_like(model[0].weight, 0.5)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    threads = torch.get_num_threads()
    fogline.find_lr(
        model, regression(), loss=nn.MSELoss(), optimizer=optimizer, batch_size=32, duration="10ep", clip="adaptive"
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.full_like(model[0].weight, 0.5))
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    assert model.training


def test_bad_input_is_told_before_anything_is_measured() -> None:
    with pytest.raises(ValueError, match="did you mean 'momentum'"):
        found(task(), optimizer="momentun")
    with pytest.raises(TypeError, match="expected training data"):
        fogline.find_lr(perceptron())
    with pytest.raises(ValueError, match="module or parameter in lr_scale"):
        found(task(), lr_scale={"head": 10.0})
