"""Causes in what flows through the layers: each found where it is planted, and silent on its healthy twin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import fogline
from fogline.doctor.case import Program, open_case
from fogline.doctor.causes import flow
from fogline.doctor.causes.flow.anew import also_done
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Suspicion
from fogline.doctor.surgery import Wrapped, orthogonal, widened
from fogline.doctor.trial import Laboratory

RECIPE = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="30ep")
Pair = tuple[Tensor, Tensor]


def ring(count: int = 240) -> Pair:
    """Classes by the distance from the origin: no straight line tells them apart."""
    X = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    return X, (X[:, :2].square().sum(1) > 1.4).long()


def wave(count: int = 240) -> Pair:
    X = torch.linspace(-3, 3, count)[:, None]
    return X, torch.sin(2 * X)


def mlp(sizes: Sequence[int], activation: Callable[[], nn.Module] | None = nn.ReLU, last: Any = None) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes[:-1]):
        layers += [nn.Linear(a, b), *([activation()] if activation else [])]
    layers += [nn.Linear(sizes[-2], sizes[-1]), *([last] if last is not None else [])]
    return nn.Sequential(*layers)


class Own(nn.Module):
    """A module of somebody's own, with functions in its forward."""

    def __init__(self, columns: int = 4, outputs: int = 2, bend: Any = F.relu, hidden: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(columns, hidden), nn.Linear(hidden, hidden)
        self.head, self.bend = nn.Linear(hidden, outputs), bend

    def forward(self, x: Tensor) -> Tensor:
        bend = self.bend or (lambda value: value)
        return self.head(bend(self.second(bend(self.first(x)))))


class Pictures(nn.Module):
    """A small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(4 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.conv(x)).flatten(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.RNN(2, 12, batch_first=True), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def pictures(count: int = 120) -> Pair:
    X = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return X, (X.mean((1, 2, 3)) > 0).long()


def sequences(count: int = 120) -> Pair:
    X = torch.randn(count, 10, 2, generator=torch.Generator().manual_seed(0))
    return X, (X[:, 0, 0] > 0).long()


def exam_of(model: nn.Module, data: Pair, loss: Any = None, recipe: fogline.Recipe = RECIPE) -> Examination:
    if loss is None:
        loss = nn.MSELoss() if data[1].is_floating_point() else nn.CrossEntropyLoss()
    return Examination(open_case(fogline.Task(model, loss, data), recipe))


def in_motion(exam: Examination, steps: int = 60) -> Examination:
    exam.observed = Laboratory(exam.case, 1e6).observe(exam.program, steps)
    return exam


def mended(exam: Examination, found: Suspicion | None, which: int = 0) -> Program:
    assert found is not None
    return Examination(exam.case, (found.remedies[which],)).program


@torch.no_grad()
def filled(model: nn.Module, value: float) -> nn.Module:
    for parameter in model.parameters():
        parameter.fill_(value)
    return model


@torch.no_grad()
def scaled(model: nn.Module, factor: float) -> nn.Module:
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.mul_(factor)
    return model


@torch.no_grad()
def sunk(model: nn.Module, name: str, value: float = -30.0) -> nn.Module:
    model.get_parameter(name).fill_(value)
    return model


class Residual(nn.Module):
    """Small weights beside skip connections, as large transformers begin."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(4, 32), nn.Linear(32, 2)
        self.inner, self.outer = (nn.ModuleList(nn.Linear(32, 32) for _ in range(4)) for _ in range(2))
        for layer in (*self.inner, *self.outer):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = x + outer(F.gelu(inner(x)))
        return self.head(x)


def separable() -> nn.Module:
    torch.manual_seed(0)
    depthwise = [nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 8, 1), nn.ReLU()]
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), *depthwise, nn.Flatten(), nn.Linear(128, 2))


HEALTHY = {
    "skip connections": lambda: exam_of(Residual(), ring()),
    "separable convolutions": lambda: exam_of(separable(), pictures()),
    "relu": lambda: exam_of(mlp((4, 32, 16, 2)), ring()),
    "tanh": lambda: exam_of(mlp((4, 32, 16, 2), nn.Tanh), ring()),
    "sigmoid": lambda: exam_of(mlp((4, 32, 2), nn.Sigmoid), ring()),
    "own": lambda: exam_of(Own(), ring()),
    "numbers": lambda: exam_of(mlp((1, 32, 32, 1)), wave()),
    "pictures": lambda: exam_of(Pictures(), pictures()),
    "sequences": lambda: exam_of(Recurrent(), sequences()),
    "linear": lambda: exam_of(mlp((4, 2)), ring()),
    "zeros in one layer": lambda: exam_of(filled(mlp((4, 2)), 0.0), ring()),
    "norm": lambda: exam_of(nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)), ring()),
    "large weights behind a norm": lambda: exam_of(
        nn.Sequential(scaled(nn.Linear(4, 16), 50.0), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)), ring()
    ),
    "four rows": lambda: exam_of(
        mlp((2, 8, 1)), (torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]), torch.tensor([[0.0], [1], [1], [0]]))
    ),
    "tokens": lambda: exam_of(
        nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 2)),
        (torch.randint(9, (80, 5)), torch.randint(2, (80,))),
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on_one_batch(name: str) -> None:
    exam = HEALTHY[name]()
    assert [found.cause for cause in flow.ON_ONE_BATCH if (found := cause(exam))] == []


@pytest.mark.parametrize("name", ["relu", "tanh", "own", "numbers", "norm"])
def test_silent_in_motion(name: str) -> None:
    exam = in_motion(HEALTHY[name](), 150)
    assert [found.cause for cause in flow.IN_MOTION if (found := cause(exam))] == []


def test_missing_activation_in_a_stack() -> None:
    exam = exam_of(mlp((4, 32, 16, 2), None), ring())
    found = flow.missing_activation(exam)
    assert found is not None
    assert found.strength > 0.7
    model = mended(exam, found).new_model(0)
    assert sum(isinstance(module, nn.ReLU) for module in model.modules()) == 2
    assert flow.missing_activation(Examination(exam.case, (found.remedies[0],))) is None


def test_missing_activation_in_a_module_of_ones_own() -> None:
    exam = exam_of(Own(bend=None), ring())
    model = mended(exam, flow.missing_activation(exam)).new_model(0)
    assert isinstance(model.first, nn.Sequential)
    assert isinstance(model.second, nn.Sequential)


def test_a_narrow_middle_may_be_linear() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3), nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
    assert flow.missing_activation(exam_of(model, ring())) is None


@pytest.mark.parametrize("value", [0.0, 0.05])
@pytest.mark.parametrize("data", [ring, wave])
def test_symmetric_init(value: float, data: Callable[[], Pair]) -> None:
    X, y = data()
    exam = exam_of(filled(mlp((X.shape[1], 16, 8, 2 if y.ndim == 1 else 1)), value), (X, y))
    found = flow.symmetric_init(exam)
    assert found is not None
    assert found.proof
    assert flow.bad_init(exam) is None
    assert flow.symmetric_init(Examination(exam.case, (found.remedies[0],))) is None


class Products(nn.Module):
    """A product of two tables, as a matrix is factored."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows, self.columns = nn.Embedding(6, 4), nn.Embedding(5, 4)
        for table in (self.rows, self.columns):
            nn.init.normal_(table.weight, 0.0, scale)

    def forward(self, x: Tensor) -> Tensor:
        return (self.rows(x[:, 0]) * self.columns(x[:, 1])).sum(1, keepdim=True)


class ByHand(nn.Module):
    def __init__(self, first: float, last: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Parameter(first * torch.randn(4, 8)), nn.Parameter(last * torch.randn(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first) @ self.last


def test_symmetric_init_of_tables_and_matrices() -> None:
    pairs = torch.cartesian_prod(torch.arange(6), torch.arange(5))
    by_rows = torch.randn(240, 4, generator=torch.Generator().manual_seed(0))
    tables = exam_of(Products(0.0), (pairs, pairs.sum(1, keepdim=True).float()))
    matrices = exam_of(ByHand(0.0, 0.0), (by_rows, by_rows[:, :1]))
    for exam in (tables, matrices):
        found = flow.symmetric_init(exam)
        assert found is not None
        for remedy in found.remedies:
            assert flow.symmetric_init(Examination(exam.case, (remedy,))) is None
    assert flow.symmetric_init(exam_of(Products(0.3), (pairs, pairs.sum(1, keepdim=True).float()))) is None
    assert flow.symmetric_init(exam_of(ByHand(0.5, 0.0), (by_rows, by_rows[:, :1]))) is None  # a head may begin at zero


class OwnLayers(nn.Module):
    """Matrices of no layer of PyTorch's, multiplied from the right (``turned``: as ``nn.Linear`` has them)."""

    def __init__(self, draw: Callable[[int, int], Tensor], turned: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = ((4, 32), (32, 32), (32, 2))
        self.turned = turned
        self.matrices = nn.ParameterList(draw(n, m) if turned else draw(n, m).mT.contiguous() for m, n in sizes)

    def forward(self, x: Tensor) -> Tensor:
        for matrix in self.matrices[:-1]:
            x = torch.relu(F.linear(x, matrix) if self.turned else x @ matrix)
        return F.linear(x, self.matrices[-1]) if self.turned else x @ self.matrices[-1]


@pytest.mark.parametrize("turned", [False, True])
def test_first_weights_of_an_authors_own_layers(turned: bool) -> None:
    X = torch.randn(240, 4, generator=torch.Generator().manual_seed(0))
    data = X, (X[:, 0] > 0).long()
    alike = flow.symmetric_init(exam_of(OwnLayers(lambda n, m: torch.full((n, m), 0.1), turned), data))
    assert alike is not None
    assert alike.proof
    large = exam_of(OwnLayers(torch.randn, turned), data)
    found = flow.bad_init(large)
    assert found is not None
    assert flow.bad_init(Examination(large.case, (found.remedies[0],))) is None
    for wanted in (lambda n, m: torch.randn(n, m) / m**0.5, lambda n, m: torch.randn(n, m) / m):
        sound = exam_of(OwnLayers(wanted, turned), data)
        assert flow.symmetric_init(sound) is None
        assert flow.bad_init(sound) is None


@pytest.mark.parametrize(("size", "explodes"), [(1.8, True), (0.8, False)])
def test_first_weights_of_an_authors_own_recurrence(size: float, explodes: bool) -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.given, self.last = nn.Linear(1, 16), nn.Linear(16, 1)
            self.again = nn.Parameter(size * torch.eye(16))

        def forward(self, x: Tensor) -> Tensor:
            state = x.new_zeros(len(x), 16)
            for k in range(x.shape[1]):
                state = torch.relu(self.given(x[:, k : k + 1]) + state @ self.again)
            outputs: Tensor = self.last(state)
            return outputs

    X = torch.randn(120, 20, generator=torch.Generator().manual_seed(0))
    found = flow.bad_init(exam_of(Cell(), (X, X[:, -1:])))
    assert (found is not None) == explodes
    assert found is None or "again" in found.remedies[0].title


def test_a_table_of_places_may_begin_at_zero() -> None:
    """It is added to the rows of tokens, all of which are averaged: its rows are alike and have the same gradient."""

    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.words, self.places = nn.Embedding(10, 8), nn.Parameter(torch.zeros(6, 8))
            self.last = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.last((self.words(x) + self.places).mean(1))
            return outputs

    tokens = torch.randint(0, 10, (120, 6), generator=torch.Generator().manual_seed(0))
    assert flow.symmetric_init(exam_of(Places(), (tokens, (tokens[:, 0] > 4).long()))) is None


class ZeroBranch(nn.Module):
    """What is added begins at zero."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 16), nn.Linear(16, 16)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.outer(self.dropout(self.inner(x).relu()))
        return x + added


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_branches_that_begin_at_zero_before_a_head_that_does(dropout: float) -> None:
    """No gradient comes to them at first, so that all units look alike; it does after the first step."""
    torch.manual_seed(0)
    head = nn.Linear(16, 3)
    nn.init.zeros_(head.weight)
    rows = torch.randn(200, 16)
    labels = rows[:, :3].argmax(1)
    model = nn.Sequential(*(ZeroBranch(dropout) for _ in range(3)), head)
    assert flow.symmetric_init(exam_of(model, (rows, labels))) is None
    for parameter in model[0].inner.parameters():  # behind which a rectifier lets nothing through
        nn.init.zeros_(parameter)
    found = flow.symmetric_init(exam_of(model, (rows, labels)))
    assert found is not None
    assert "0.inner" in {item.layer for item in found.evidence}


def test_symmetric_init_of_recurrent_and_convolution_layers() -> None:
    assert flow.symmetric_init(exam_of(filled(Recurrent(), 0.1), sequences())) is not None
    assert flow.symmetric_init(exam_of(filled(Pictures(), 0.1), pictures())) is not None


@pytest.mark.parametrize("factor", [0.01, 30.0])
@pytest.mark.parametrize("model", [lambda: mlp((4, 32, 16, 2)), Own])
def test_bad_init(factor: float, model: Callable[[], nn.Module]) -> None:
    exam = exam_of(scaled(model(), factor), ring())
    found = flow.bad_init(exam)
    assert found is not None
    for remedy in found.remedies:
        assert flow.bad_init(Examination(exam.case, (remedy,))) is None


def test_weights_of_one_sign_are_too_large_together() -> None:
    model = mlp((16, 64, 64, 2))
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0, 1)
    X = torch.randn(100, 16)
    assert flow.bad_init(exam_of(model, (X, (X[:, 0] > 0).long()))) is not None


def test_dead_units_before_training() -> None:
    exam = exam_of(sunk(mlp((4, 32, 16, 2)), "0.bias"), ring())
    found = flow.dead_units(exam)
    assert found is not None
    assert found.proof
    assert found.severity == "fatal"
    assert flow.dead_units(Examination(exam.case, (found.remedies[0],))) is None


def test_dead_units_of_functions_and_of_channels() -> None:
    assert flow.dead_units(exam_of(sunk(Own(), "second.bias"), ring())) is not None
    assert flow.dead_units(exam_of(sunk(Pictures(), "conv.bias"), pictures())) is not None


def test_dead_units_after_steps_that_were_too_long() -> None:
    exam = in_motion(exam_of(mlp((1, 32, 32, 1)), wave(), recipe=RECIPE.replace(lr=3.0)), 40)
    found = flow.dead_units(exam)
    assert found is not None
    assert not found.proof


@pytest.mark.parametrize(("activation", "function"), [(nn.Tanh, torch.tanh), (nn.Sigmoid, torch.sigmoid)])
def test_saturated_units(activation: Callable[[], nn.Module], function: Any) -> None:
    for model in (scaled(mlp((4, 32, 16, 2), activation), 60.0), scaled(Own(bend=function), 60.0)):
        exam = exam_of(model, ring())
        found = flow.saturated_units(exam)
        assert found is not None
        assert flow.saturated_units(Examination(exam.case, (found.remedies[0],))) is None


def test_saturated_by_inputs_keeps_the_sigmoid_of_the_end() -> None:
    X, y = ring()
    model = mlp((4, 32, 16, 1), nn.Sigmoid, last=nn.Sigmoid())
    exam = exam_of(model, (1000 * X, y.float()[:, None]), nn.BCELoss())
    changed = mended(exam, flow.saturated_units(exam)).new_model(0)
    assert isinstance(changed, nn.Sequential)
    assert [type(layer) for layer in changed][1::2] == [nn.ReLU, nn.ReLU, nn.Sigmoid]


def test_vanishing_gradient() -> None:
    exam = in_motion(exam_of(mlp((1, *[16] * 8, 1), nn.Sigmoid), wave()), 80)
    found = flow.vanishing_gradient(exam)
    assert found is not None
    model = mended(exam, found).new_model(0)
    assert not any(isinstance(module, nn.Sigmoid) for module in model.modules())


def test_a_mean_over_many_places_is_no_gradient_that_vanishes() -> None:
    """What each place gets of it is small, and there are many of them."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.inside, self.encoder = nn.Linear(3, 16), nn.TransformerEncoder(layer, 2)
            self.head = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.encoder(self.inside(x)).mean(1))
            return found

    X = torch.randn(200, 64, 3, generator=torch.Generator().manual_seed(0))
    exam = in_motion(exam_of(Mean(), (X, torch.arange(200) % 4)), 20)
    assert flow.vanishing_gradient(exam) is None


def test_vanishing_through_functions_keeps_the_sigmoid_of_the_end() -> None:
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList([nn.Linear(1, 16), *(nn.Linear(16, 16) for _ in range(7)), nn.Linear(16, 1)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = torch.sigmoid(layer(x))
            return x

    X, y = wave()
    exam = in_motion(exam_of(Tower(), (X, (y + 1) / 2)), 80)
    model = mended(exam, flow.vanishing_gradient(exam)).new_model(0)
    seen: list[str] = []

    class Names(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    with Names():
        model(X)
    assert (seen.count("relu"), seen.count("sigmoid")) == (8, 1)
    assert seen.index("sigmoid") > max(k for k, name in enumerate(seen) if name == "relu")


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_gates_that_forget(cell: Callable[..., nn.RNNBase]) -> None:
    model = Recurrent()
    model.rnn = cell(model.rnn.input_size, model.rnn.hidden_size, batch_first=True)
    exam = in_motion(exam_of(model, sequences()), 40)
    assert flow.vanishing_gradient(exam) is None
    with torch.no_grad():
        for name, parameter in model.rnn.named_parameters():
            if name.startswith("bias"):
                parameter[12:24] = -4.0
    exam = in_motion(exam_of(model, sequences()), 40)
    changed = mended(exam, flow.vanishing_gradient(exam)).new_model(0).rnn
    assert bool((changed.bias_ih_l0[12:24] == 1).all())
    assert float(changed.bias_hh_l0.detach().abs().max()) <= 12**-0.5


def test_vanishing_through_time() -> None:
    model = Recurrent()
    with torch.no_grad():
        model.rnn.weight_hh_l0.mul_(0.02)
    exam = in_motion(exam_of(model, sequences()), 40)
    changed = mended(exam, flow.vanishing_gradient(exam)).new_model(0).rnn.weight_hh_l0
    torch.testing.assert_close(changed @ changed.mT, torch.eye(12), atol=1e-5, rtol=0)


def test_exploding_gradient() -> None:
    exam = in_motion(exam_of(scaled(mlp((4, *[32] * 5, 2)), 8.0), ring(), recipe=RECIPE.replace(optimizer="sgd")), 40)
    found = flow.exploding_gradient(exam)
    assert found is not None
    assert flow.exploding_gradient(in_motion(Examination(exam.case, (found.remedies[0],)), 150)) is None
    assert found.remedies[-1].on_recipe is not None


@pytest.mark.parametrize("norm", [False, True])
def test_bottleneck(norm: bool) -> None:
    X = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    y = X @ torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    between = [nn.BatchNorm1d(1)] if norm else []
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1), *between, nn.Tanh(), nn.Linear(1, 6))
    exam = in_motion(exam_of(model, (X, y)), 150)
    found = flow.bottleneck(exam)
    program = mended(exam, found)
    assert program.new_model(0)(X).shape == (300, 6)
    assert flow.bottleneck(in_motion(Examination(exam.case, found.remedies), 150)) is None  # type: ignore[union-attr]


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU])
def test_bottleneck_of_states(cell: Callable[..., nn.RNNBase], both_ways: bool) -> None:
    model = Recurrent()
    model.rnn = cell(2, 1, batch_first=True, bidirectional=both_ways)
    model.head = nn.Linear(1 + both_ways, 2)
    exam = in_motion(exam_of(model, sequences()), 20)
    changed = mended(exam, flow.bottleneck(exam)).new_model(0)
    assert changed.rnn.hidden_size == 64
    assert (changed.rnn.bidirectional, changed.rnn.batch_first) == (both_ways, True)
    assert changed(sequences()[0]).shape == (120, 2)


def test_bottleneck_of_tokens() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.head = nn.Embedding(30, 1), nn.Linear(1, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.table(x).mean(1))

    y = torch.arange(300) % 5
    X = 6 * y[:, None] + torch.randint(6, (300, 4), generator=torch.Generator().manual_seed(0))
    exam = in_motion(exam_of(Mean(), (X, y)), 100)
    changed = mended(exam, flow.bottleneck(exam)).new_model(0)
    assert changed.table.weight.shape == (30, 30)
    assert changed(X).shape == (300, 5)


def test_a_single_unit_before_a_single_output() -> None:
    X = torch.randn(240, 4, generator=torch.Generator().manual_seed(0))
    exam = in_motion(exam_of(mlp((4, 1, 1)), (X, X[:, :1] - X[:, 1:2])), 150)
    assert flow.bottleneck(exam) is not None


def test_an_edit_of_first_weights_disturbs_nobody() -> None:
    exam = exam_of(filled(mlp((4, 16, 2)), 0.1), ring())
    before = torch.get_rng_state()
    first, second = (mended(exam, flow.symmetric_init(exam)).new_model(0) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_an_edit_survives_a_module_that_is_gone() -> None:
    exam = exam_of(mlp((4, 16, 8, 2), None), ring())
    remedies = flow.missing_activation(exam)
    assert remedies is not None
    assert remedies.remedies[0].on_model is not None
    assert isinstance(remedies.remedies[0].on_model(nn.Linear(4, 2)), nn.Linear)


@pytest.mark.parametrize("units", [1, 4])
def test_an_auto_encoder_may_be_narrow_but_not_of_one_number(units: int) -> None:
    X = torch.randn(300, 12, generator=torch.Generator().manual_seed(0)) @ torch.randn(
        12, 12, generator=torch.Generator().manual_seed(1)
    )
    exam = in_motion(exam_of(mlp((12, 16, units, 16, 12)), (X, X)), 150)
    found = flow.bottleneck(exam)
    assert (found is not None) == (units == 1)


def test_what_new_layers_do_besides() -> None:
    exam = exam_of(mlp((4, 16, 2)), ring())
    layers = exam.anatomy.weighted
    assert also_done(layers) == ()
    with torch.no_grad():
        layers[0].module.weight.mul_(20)
    layers[1].module.requires_grad_(False)
    assert [s.cause for s in also_done(layers)] == ["frozen_parameters", "bad_init"]


@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU, lambda *a, **k: nn.RNN(*a, **k, nonlinearity="relu")])
def test_orthogonal_first_weights_of_every_gate_and_the_identity_for_relu(cell: Callable[..., nn.RNNBase]) -> None:
    torch.manual_seed(0)
    layer = cell(2, 6, num_layers=2, bidirectional=True)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(9.0)
    before = torch.get_rng_state()
    orthogonal(nn.Sequential(layer))
    assert torch.equal(torch.get_rng_state(), before)
    blocks = [b for n, p in layer.named_parameters() if n.startswith("weight_hh") for b in p.detach().split(6)]
    assert len(blocks) == (12 if layer.mode == "GRU" else 4)
    for block in blocks:
        torch.testing.assert_close(block @ block.T, torch.eye(6))
        assert torch.equal(block, torch.eye(6)) == (layer.mode == "RNN_RELU")
    assert max(p.detach().abs().max() for n, p in layer.named_parameters() if "hh" not in n) < 1.0


class Factors(nn.Module):
    """Ratings as products of two tables, (b, 2) positions."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.of_users, self.of_things = nn.Embedding(20, 4), nn.Embedding(15, 4)
        for table in (self.of_users, self.of_things):
            nn.init.normal_(table.weight, 0.0, size) if size else nn.init.zeros_(table.weight)

    def forward(self, places: Tensor) -> Tensor:
        return (self.of_users(places[:, 0]) * self.of_things(places[:, 1])).sum(1, keepdim=True)


@pytest.mark.parametrize("size", [0.0, 0.3])
def test_tables_at_zero_get_rows_of_length_one(size: float) -> None:
    places = torch.cartesian_prod(torch.arange(20), torch.arange(15))
    torch.manual_seed(1)
    ratings = Factors(1.0)(places).detach()
    case = open_case(fogline.Task(Factors(size), nn.MSELoss(), (places, ratings)), RECIPE)
    found = flow.symmetric_init(Examination(case))
    assert (found is not None) == (size == 0.0)
    if found is not None:
        again = Examination(case, found.remedies[:1]).program.new_model(0)
        lengths = again.of_users.weight.detach().norm(dim=1)
        assert float(lengths.mean()) == pytest.approx(1.0, rel=0.2)


def test_layers_grow_inside_a_wrapper() -> None:
    model = Wrapped(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)))
    grown = widened(model, "wrapped_model.0", "wrapped_model.3", 16)
    assert grown(torch.randn(5, 3)).shape == (5, 2)
    assert [m.num_features for m in grown.modules() if isinstance(m, nn.BatchNorm1d)] == [16]


class Recurrence(nn.Module):
    """A recurrent layer of ReLU that multiplies its state at every step."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.RNN(3, 16, batch_first=True, nonlinearity="relu"), nn.Linear(16, 2)
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(factor * torch.eye(16))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.rnn(x)[0][:, -1])
        return found


@pytest.mark.parametrize(("factor", "swells"), [(1.5, True), (1.0, False)])
def test_a_state_that_swells_from_step_to_step(factor: float, swells: bool) -> None:
    x = torch.randn(200, 30, 3, generator=torch.Generator().manual_seed(0))
    task = fogline.Task(Recurrence(factor), nn.CrossEntropyLoss(), (x, (x[:, :3, 0].sum(1) > 0).long()))
    exam = Examination(open_case(task, fogline.Recipe(optimizer="adam", lr=1e-3, batch_size=32)))
    exam.observed = Laboratory(exam.case, 1000).observe(exam.program, 10)
    found = flow.exploding_gradient(exam)
    assert (found is not None) == swells


@pytest.mark.parametrize(("alike", "found"), [(True, ["symmetric_init"]), (False, [])])
def test_units_that_only_dropout_tells_apart(alike: bool, found: list[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(300, 8, generator=generator)
    y = (X[:, 0] * X[:, 1] + X[:, 2] > 0).long() + (X[:, 3] > 0.5).long()

    def make() -> nn.Module:
        model = nn.Sequential(
            nn.Linear(8, 32),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(32, 32),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(32, 3),
        )
        for layer in model if alike else ():
            if isinstance(layer, nn.Linear):
                nn.init.constant_(layer.weight, 0.05)
                nn.init.zeros_(layer.bias)
        return model

    recipe = fogline.Recipe(optimizer="adam", lr=3e-3, batch_size=20, duration="30ep")
    report = fogline.diagnose(fogline.Task(make, nn.CrossEntropyLoss(), (X, y)), recipe)
    assert [finding.cause for finding in report.findings][:1] == found
