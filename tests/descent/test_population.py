"""Members in one program are, step for step, members in turn."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fogline import Recipe, on_batch
from fogline.data.source import InMemory
from fogline.descent.batches import Batches
from fogline.descent.objective import Objective
from fogline.descent.optimizers import OPTIMIZERS
from fogline.descent.population import Each, InTurn, Population, Together, populate

RATES = [1e-4, 1e-3, 1e-2]
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="there is no C++ compiler to compile steps with"
)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


def labels(count: int) -> Tensor:
    return torch.arange(count) % 3


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        attended, _ = self.attention(x, x, x, need_weights=False)
        pooled: Tensor = self.head(self.norm(x + attended).mean(1))
        return pooled


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (lambda: nn.Linear(6, 3), normal(48, 6)),
    "mlp": (mlp, normal(48, 6)),
    "batch normalisation": (
        lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
        normal(48, 6),
    ),
    "dropout": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 3)), normal(48, 6)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
        normal(48, 1, 4, 4),
    ),
    "attention": (Attention, normal(48, 5, 6)),
}


def made(name: str, **fields: object) -> tuple[Objective, Recipe, Batches]:
    factory, inputs = MODELS[name]
    torch.manual_seed(0)
    model = factory().double()
    batches = Batches(InMemory((inputs, labels(48))), 16)
    return Objective(model, nn.CrossEntropyLoss()), Recipe(batch_size=16, seed=3, **fields), batches  # type: ignore[arg-type]


def assert_same_weights(found: nn.Module, expected: nn.Module, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=tolerance, atol=tolerance)


def walked(population: Population, batches: Batches, steps: int = 12) -> list[list[float]]:
    stream = batches.stream(0)
    return [population.step(k, next(stream), [rate / (1 + k) for rate in RATES]) for k in range(steps)]


def assert_alike(name: str, **fields: object) -> None:
    objective, recipe, batches = made(name, **fields)
    before = copy.deepcopy(objective.model.state_dict())
    together, in_turn = Together(objective, recipe, 3), InTurn(objective, recipe, 3, batches)
    found, expected = walked(together, batches), walked(in_turn, batches)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-9, atol=1e-12)
    batch = batches.at(1)
    torch.testing.assert_close(
        torch.tensor(together.losses(batch)), torch.tensor(in_turn.losses(batch)), rtol=1e-9, atol=1e-12
    )
    for k in range(3):
        assert_same_weights(together.member(k), in_turn.member(k))
    assert all(torch.equal(value, before[key]) for key, value in objective.model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_steps_together_as_in_turn(name: str) -> None:
    assert_alike(name, optimizer="momentum")


@pytest.mark.parametrize("optimizer", [name for name, spec in OPTIMIZERS.items() if spec.proportional])
def test_every_proportional_optimizer_steps_together_as_in_turn(optimizer: str) -> None:
    assert_alike("mlp", optimizer=optimizer)


@pytest.mark.parametrize("clip", [0.05, "adaptive"])
def test_each_member_is_clipped_by_its_own_norm(clip: object) -> None:
    assert_alike("mlp", optimizer="adamw", clip=clip, weight_decay=0.1)


def test_ratios_between_groups_hold_for_each_member() -> None:
    assert_alike("mlp", optimizer="adamw", lr_scale={"4": 10.0, "0.bias": 0.1})


@pytest.mark.parametrize("optimizer", [name for name, spec in OPTIMIZERS.items() if not spec.proportional])
def test_other_optimizers_take_turns_and_say_so(optimizer: str) -> None:
    objective, recipe, batches = made("mlp", optimizer=optimizer)
    choice = populate(objective, recipe, 3, batches)
    assert not choice.together
    assert "proportional" in choice.why
    assert all(map(math.isfinite, choice.population.step(0, batches.at(0), [0.01] * 3)))


def test_a_model_that_cannot_be_mapped_takes_turns_and_says_why() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            return y if y.sum() > 0 else 2 * y

    _, recipe, batches = made("mlp", optimizer="sgd")
    choice = populate(Objective(Branching(), nn.CrossEntropyLoss()), recipe, 4, batches)
    assert not choice.together
    assert "cannot be mapped" in choice.why


@pytest.mark.parametrize("form", [True, False])
def test_a_member_that_is_lost_stays_lost_and_alone(form: bool) -> None:
    objective, recipe, batches = made("mlp", optimizer="sgd")
    population = populate(objective, recipe, 2, batches, together=form).population
    stream = batches.stream(0)
    rows = [population.step(k, next(stream), [math.inf, 1e-3]) for k in range(6)]
    assert not math.isfinite(rows[-1][0])
    assert all(math.isfinite(good) for _, good in rows)
    lost, good = population.losses(batches.at(0))
    assert not math.isfinite(lost)
    assert math.isfinite(good)


def test_a_loss_that_sees_the_model_and_frozen_parameters() -> None:
    torch.manual_seed(0)
    model = mlp().double()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    batches = Batches(InMemory(normal(48, 6)), 16)
    objective = Objective(model, on_batch(lambda net, x: (net(x) - 1).square().mean()))
    recipe = Recipe(optimizer="nesterov", batch_size=16)
    found = walked(Together(objective, recipe, 3), batches)
    expected = walked(InTurn(objective, recipe, 3, batches), batches)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-9, atol=1e-12)


def test_each_member_may_have_a_batch_of_its_own() -> None:
    objective, recipe, batches = made("mlp", optimizer="adamw")
    together, in_turn = Together(objective, recipe, 4), InTurn(objective, recipe, 4, batches)
    found, expected = [], []
    for k in range(6):
        batch = Each.of([batches.at(k), batches.at(k + 1)], copies=2)
        assert torch.equal(batch.of_member(3)[0], batches.at(k + 1)[0])
        found.append(together.step(k, batch, [1e-3, 1e-2] * 2))
        expected.append(in_turn.step(k, batch, [1e-3, 1e-2] * 2))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-9, atol=1e-12)
    assert found[-1][0] != found[-1][2]


@pytest.mark.parametrize("form", [True, False])
def test_a_member_is_a_copy_that_can_be_scored(form: bool) -> None:
    objective, recipe, batches = made("dropout", optimizer="sgd")
    population = populate(objective, recipe, 2, batches, together=form).population
    population.step(0, batches.at(0), [0.1, 0.2])
    losses = population.losses(batches.at(1))
    members = [population.member(k) for k in range(2)]
    inputs, targets = batches.at(1)
    scored = [nn.functional.cross_entropy(member(inputs), targets).item() for member in members]
    assert scored == pytest.approx(losses, rel=1e-9)
    assert not any(module.training for member in members for module in member.modules())
    members[0].zero_grad()
    with torch.no_grad():
        members[0][0].weight.zero_()
    assert population.losses(batches.at(1)) == losses


@needs_compiler
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("mlp", {"optimizer": "adamw", "clip": "adaptive", "weight_decay": 0.1, "lr_scale": {"4": 3.0}}),
        ("batch normalisation", {"optimizer": "nesterov"}),
        ("dropout", {"optimizer": "sgd", "clip": 0.05}),
    ],
)
def test_the_compiled_step_is_the_step(name: str, fields: dict[str, object]) -> None:
    objective, recipe, _ = made(name, **fields)
    _, inputs = MODELS[name]
    batches = Batches(InMemory((inputs[:40], labels(40))), 16)  # the last of an epoch is smaller
    choices = [populate(objective, recipe, 3, batches, together=True, compiled=c) for c in (True, False)]
    assert [choice.compiled for choice in choices] == [True, False]
    compiled, plain = (choice.population for choice in choices)
    found, expected = walked(compiled, batches), walked(plain, batches)
    # A compiled AdamW counts its steps on tensors, whose powers have single precision.
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-7)
    each = Each.of([batches.at(0), batches.at(1), batches.at(3)], copies=1)
    assert compiled.step(12, each, RATES) == pytest.approx(plain.step(12, each, RATES), rel=1e-5)
    for k in range(3):
        assert_same_weights(compiled.member(k), plain.member(k), tolerance=1e-5)


@needs_compiler
def test_a_lost_member_of_a_compiled_step_is_lost_alone() -> None:
    objective, recipe, batches = made("linear", optimizer="sgd")
    population = populate(objective, recipe, 2, batches, together=True, compiled=True).population
    rows = [population.step(k, batches.at(k), [math.inf, 1e-3]) for k in range(3)]
    assert not math.isfinite(rows[-1][0])
    assert all(math.isfinite(good) for _, good in rows)


@needs_compiler
def test_a_choice_by_measurement_leaves_no_trace() -> None:
    objective, recipe, batches = made("linear", optimizer="adamw", clip="adaptive")
    fresh = Together(objective, recipe, 16)
    for compiled in (False, True):
        choice = populate(objective, recipe, 16, batches, compiled=compiled)
        assert choice.together
        assert choice.compiled == compiled
        assert ("compiled program takes" in choice.why) == compiled
        if not compiled:
            found, expected = (
                [p.step(k, batches.at(k), [0.01] * 16) for k in range(3)] for p in (choice.population, fresh)
            )
            assert found == expected


def test_what_cannot_be_compiled_steps_without_and_says_why() -> None:
    objective, recipe, batches = made("linear", optimizer="sgd")
    looks = on_batch(lambda net, batch: (net(batch[0]) / float(batch[0].abs().max())).square().mean())
    choice = populate(Objective(objective.model, looks), recipe, 3, batches, together=True, compiled=True)
    assert choice.together
    assert not choice.compiled
    assert "not compiled: cannot be traced" in choice.why
    assert all(map(math.isfinite, choice.population.step(0, batches.at(0), RATES)))


@pytest.mark.parametrize("first", ["outputs", "targets"])
def test_a_member_whose_probabilities_are_gone_leaves_the_others_be(first: str) -> None:
    """A loss that refuses numbers that are not finite refuses them of one member, and not of all."""
    inputs = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    targets = 0.1 + 0.8 * (inputs[:, :1] > 0).float()

    def entropy(outputs: Tensor, wanted: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy(*((outputs, wanted) if first == "outputs" else (wanted, outputs)))

    objective = Objective(nn.Sequential(nn.Linear(3, 1), nn.Sigmoid()), entropy)
    members = Together(objective, Recipe(optimizer="sgd", lr=0.1), 2)
    first_losses = members.step(0, (inputs, targets), [0.01, math.nan])
    later = members.step(1, (inputs, targets), [0.01, 0.01])
    assert all(map(math.isfinite, first_losses))
    assert math.isfinite(later[0])
    assert math.isnan(later[1])
