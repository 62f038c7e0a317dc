"""Losses of a batch that are losses of pairs: read as such, and left alone where they are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fogline
from fogline.doctor.asked import Loss
from fogline.doctor.unfolded import unfolded

X = torch.randn(240, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] + X[:, 1] > 0).long()


def net(*last: nn.Module, outputs: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, outputs), *last)


def own(model: Any, batch: Any) -> Tensor:
    return -model(batch[0]).log_softmax(1).gather(1, batch[1][:, None]).mean()


def of_rows(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("step", [own, of_rows])
def test_a_loss_of_pairs_is_read_as_one(step: Callable[[Any, Any], Tensor]) -> None:
    task = fogline.Task(net(), fogline.on_batch(step), (X, Y), (X[:50], Y[:50]))
    read = unfolded(task)
    assert isinstance(read.loss, Loss) if step is own else read.loss is F.cross_entropy
    assert read.train[0] is X
    assert read.train[1] is Y
    assert read.valid[1].shape == (50,)
    outputs = task.model(X)  # type: ignore[operator, misc]
    torch.testing.assert_close(read.loss(outputs, Y), step(task.model, (X, Y)).mean())


def test_a_loss_of_pytorch_is_taken_for_itself() -> None:
    task = fogline.Task(net(), fogline.on_batch(lambda m, b: F.cross_entropy(m(b[0]), b[1])), (X, Y))
    assert unfolded(task).loss is F.cross_entropy


@pytest.mark.parametrize("train", [X, (X, Y), [X, Y]])
def test_an_auto_encoder_has_its_inputs_for_targets(train: Any) -> None:
    def step(model: Any, batch: Any) -> Tensor:
        rows = batch if isinstance(batch, Tensor) else batch[0]
        return (model(rows) - rows).square().mean()

    read = unfolded(fogline.Task(net(outputs=6), fogline.on_batch(step), train))
    assert read.train[0] is read.train[1] is X


@pytest.mark.parametrize(
    "step",
    [
        lambda m, b: own(m, b) + 1e-3 * sum(p.square().sum() for p in m.parameters()),
        lambda m, b: own(m, b) + (m(b[0]) - m(-b[0])).square().mean(),
        lambda m, b: own(lambda x: m(x + torch.randn_like(x)), b),
        lambda m, b: own(m, b) * b[0].square().sum(),
        lambda m, b: own(m[2], (m[1](m[0](b[0])), b[1])),
    ],
)
def test_what_asks_for_more_than_pairs_stays(step: Callable[[Any, Any], Tensor]) -> None:
    model = net()
    task = fogline.Task(model, fogline.on_batch(step), (X, Y))
    assert unfolded(task) is task
    assert model.training


@pytest.mark.parametrize("wrong", [True, False])
def test_faults_are_found_in_a_loss_of_a_batch(tmp_path: Path, wrong: bool) -> None:
    """A sigmoid before rows that are standardised: an auto-encoder gets no further."""

    def step(model: Any, batch: Tensor) -> Tensor:
        return (model(batch) - batch).square().mean()

    rows = torch.randn(300, 3, generator=torch.Generator().manual_seed(1)) @ torch.ones(3, 6).tril(1).triu(-1)
    model = net(*([nn.Sigmoid()] if wrong else []), outputs=6)
    task, recipe = fogline.Task(model, fogline.on_batch(step), rows), fogline.Recipe(lr=0.01, duration="30ep")
    report = fogline.diagnose(task, recipe)
    assert [finding.cause for finding in report.findings] == (["output_activation"] if wrong else [])
    run = fogline.fit(*report.apply(task, recipe), runs=tmp_path, progress=False)
    with torch.no_grad():
        assert float((run.model(rows) - rows).square().mean()) < 0.3 * float(rows.var())


def test_inputs_that_are_read_on_few_rows_only_are_seen() -> None:
    """Rows whose first column is below zero do not count; there is none among the first twenty."""

    def step(model: Any, batch: Any) -> Tensor:
        weights = (batch[0][:, 0] >= 0).float()
        return (F.cross_entropy(model(batch[0]), batch[1], reduction="none") * weights).sum() / weights.sum()

    rows = X.clone()
    rows[:20, 0] = rows[:20, 0].abs()
    task = fogline.Task(net(), fogline.on_batch(step), (rows, Y))
    assert unfolded(task) is task


def of_names(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch["rows"]), batch["labels"])


def test_a_batch_may_be_a_dict() -> None:
    data = {"labels": Y, "rows": X, "ids": torch.arange(240)}
    read = unfolded(fogline.Task(net(), fogline.on_batch(of_names), data, {k: v[:50] for k, v in data.items()}))
    assert read.train[0] is X
    assert read.train[1] is Y
    assert len(read.valid[1]) == 50
    value = read.loss(net()(X), Y) if read.loss is not F.cross_entropy else F.cross_entropy(net()(X), Y)
    assert torch.allclose(value, F.cross_entropy(net()(X), Y))
    others = fogline.Task(net(), fogline.on_batch(of_names), data, {"rows": X[:50], "labels": Y[:50]})
    assert unfolded(others) is others  # held out is something else


class Named(torch.utils.data.Dataset[Any]):
    """Rows by name, some of them with a gap."""

    def __init__(self, first: int, size: int, gaps: int = 0) -> None:
        self.first, self.size, self.gaps = first, size, gaps

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = X[self.first + index]
        return {"labels": Y[self.first + index], "rows": torch.full_like(row, torch.nan) if index < self.gaps else row}


@pytest.mark.parametrize("held", ["loader", "tensors", "none"])
def test_a_loader_may_give_the_batches(held: str) -> None:
    loader: Any = DataLoader(Named(60, 180, 12), batch_size=12, shuffle=True)
    valid: Any = {
        "loader": DataLoader(Named(0, 60), batch_size=30),
        "tensors": {"labels": Y[:60], "rows": X[:60]},
        "none": None,
    }[held]
    task = fogline.Task(net(), fogline.on_batch(of_names), loader, valid)
    read = unfolded(task)
    assert read is not task
    rows, labels = next(iter(read.train))
    assert rows.shape == (12, 6)
    assert labels.shape == (12,)
    assert read.train.batch_sampler is loader.batch_sampler
    recipe = fogline.Recipe(optimizer="adam", lr=0.01, duration="10ep")
    report = fogline.diagnose(task, recipe)
    assert report.findings[0].cause == "nan_in_data"  # which is asked of pairs alone


def test_loaders_whose_batches_are_no_rows_are_left_alone() -> None:
    loader: Any = DataLoader([("a film", 1), ("a plot", 0)] * 20, batch_size=4)
    task = fogline.Task(net(), fogline.on_batch(own), loader)
    assert unfolded(task) is task


class Endless(torch.utils.data.Dataset[Any]):
    """Has no length: only its sampler knows which rows there are."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"labels": Y[index], "rows": X[index]}


def test_a_data_set_without_a_length_is_left_alone() -> None:
    loader: Any = DataLoader(Endless(), batch_size=4, sampler=range(40))
    task = fogline.Task(net(), fogline.on_batch(of_names), loader)
    assert unfolded(task) is task


class Two(nn.Module):
    """Takes two inputs, and something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 8), nn.Linear(3, 8)
        self.last = nn.Linear(8, 2)
        self.width = 8

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        return self.last((self.left(left) + scale * self.right(right)).relu())  # type: ignore[no-any-return]


SIDES = {"left": X[:, :3], "right": X[:, 3:], "label": Y}


@pytest.mark.parametrize(
    "step",
    [
        lambda m, b: F.cross_entropy(m(b["left"], b["right"]), b["label"]),
        lambda m, b: F.cross_entropy(m(b["left"], right=b["right"], scale=0.5), b["label"]),
        lambda m, b: F.cross_entropy(m(b["left"] * (m.width / 8), b["right"], 2.0), b["label"]),
    ],
)
def test_a_model_may_take_several_things(step: Callable[[Any, Any], Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Two()
    task = fogline.Task(model, fogline.on_batch(step), SIDES, {k: v[:50] for k, v in SIDES.items()})
    read = unfolded(task)
    assert read.loss is F.cross_entropy
    assert [tuple(t.shape) for t in read.train[0]] == [(240, 3), (240, 3)]
    assert read.train[1] is Y
    outputs = read.model(read.train[0])  # type: ignore[operator, misc]
    torch.testing.assert_close(F.cross_entropy(outputs, Y), step(model, SIDES))
    torch.testing.assert_close(read.model(X[:, :3], X[:, 3:]), model(X[:, :3], X[:, 3:]))  # type: ignore[operator, misc]
    run = fogline.fit(read, fogline.Recipe(lr=0.01, duration="2ep"), runs=tmp_path, progress=False)
    assert len(run.steps)


class Pieces(nn.Module):
    """Tells each token from those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.rnn, self.last = nn.Embedding(5, 8), nn.GRU(8, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.rnn(self.tokens(ids))[0])  # type: ignore[no-any-return]


TEXT = (torch.arange(900) * 7 // 3 % 5).reshape(90, 10)


def of_the_next(model: Any, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch[:, :-1]).reshape(-1, 5), batch[:, 1:].reshape(-1))


def test_what_is_asked_and_told_may_be_made_of_each_row() -> None:
    torch.manual_seed(0)
    model = Pieces()
    read = unfolded(fogline.Task(model, fogline.on_batch(of_the_next), TEXT, TEXT[:20]))
    assert torch.equal(read.train[0], TEXT[:, :-1])
    assert torch.equal(read.train[1], TEXT[:, 1:])
    assert read.valid[1].shape == (20, 9)
    torch.testing.assert_close(read.loss(model(TEXT[:, :-1]), TEXT[:, 1:]), of_the_next(model, TEXT))  # type: ignore[operator, misc]


def test_weights_of_a_loss_of_pytorch_are_kept() -> None:
    weight = torch.tensor([1.0, 3.0])

    def step(model: Any, batch: Any) -> Tensor:
        return nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1)(model(batch[0]), batch[1])

    read = unfolded(fogline.Task(net(), fogline.on_batch(step), (X, Y)))
    assert isinstance(read.loss, nn.CrossEntropyLoss)
    assert read.loss.label_smoothing == 0.1
    assert read.loss.weight is weight


def test_a_data_set_may_give_the_examples() -> None:
    data: Any = Named(60, 180)
    task = fogline.Task(net(), fogline.on_batch(of_names), data, Named(0, 60))
    read = unfolded(task)
    assert read.loss is F.cross_entropy
    rows, label = read.train[3]
    assert torch.equal(rows, X[63])
    assert int(label) == int(Y[63])
    assert len(read.valid) == 60


def test_the_rows_are_left_as_they_are() -> None:
    def step(model: Any, batch: Any) -> Tensor:
        batch[0].sub_(1.0)
        return F.cross_entropy(model(batch[0]), batch[1])

    rows = X.clone()
    task = fogline.Task(net(), fogline.on_batch(step), (rows, Y))
    assert unfolded(task) is task
    assert torch.equal(rows, X)


@pytest.mark.parametrize(
    "step",
    [
        lambda m, b: F.cross_entropy(m(b[0] - b[0].mean(0)), b[1]),  # made of all rows
        lambda m, b: F.cross_entropy(m(b[0]), b[1][torch.randperm(len(b[1]))]),
        lambda m, b: F.cross_entropy(m(b[0][:-1]), b[1][:-1]),
        lambda m, b: F.cross_entropy(m(b[0]), b[1]) + F.cross_entropy(m(-b[0]), b[1]),
        lambda m, b: F.cross_entropy(m(b[0]), b[1]) * (2.0 if m.training else 1.0),
    ],
)
def test_what_is_not_made_of_each_row_by_itself_stays(step: Callable[[Any, Any], Tensor]) -> None:
    task = fogline.Task(net(), fogline.on_batch(step), (X, Y))
    assert unfolded(task) is task


@pytest.mark.parametrize(
    ("step", "train", "cause"),
    [
        (lambda m, b: F.cross_entropy(m(b[0]).softmax(1), b[1]), (X, Y), "double_softmax"),
        (lambda m, b: F.nll_loss(m(b[0]), b[1]), (X, Y), "loss_mismatch"),
    ],
)
def test_faults_before_a_loss_of_pytorch(step: Callable[[Any, Any], Tensor], train: Any, cause: str) -> None:
    recipe = fogline.Recipe(optimizer="adam", lr=0.01, duration="20ep")
    report = fogline.diagnose(fogline.Task(net, fogline.on_batch(step), train), recipe)
    assert report.findings[0].cause == cause


def test_probabilities_that_were_averaged_are_no_scores() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = nn.ModuleList(nn.Linear(6, 2) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([member(x).softmax(1) for member in self.members]).mean(0)

    task = fogline.Task(Several, nn.CrossEntropyLoss(), (X, Y))
    report = fogline.diagnose(task, fogline.Recipe(optimizer="adam", lr=0.01, duration="20ep"))
    assert report.findings[0].cause == "double_softmax"
    assert report.findings[0].remedy is not None


def test_grades_under_thresholds_are_judged_by_how_many_are_passed() -> None:
    grades = (X[:, 0] > -0.5).long() + (X[:, 0] > 0.5).long()

    def ordinal(outputs: Tensor, wanted: Tensor) -> Tensor:
        above = (torch.arange(2) < wanted[:, None]).float()
        return F.binary_cross_entropy_with_logits(outputs, above)

    task, recipe = fogline.Task(net(), ordinal, (X, grades)), fogline.Recipe(optimizer="adam", lr=0.02, duration="40ep")
    report = fogline.diagnose(task, recipe)
    assert report.metric.endswith("(share of variance explained)")
    assert report.verdict == "healthy"


class Beside(nn.Module):
    """Numbers beside what a table says of a name."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.body = nn.Embedding(5, 4), nn.Sequential(nn.Linear(7, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, numbers: Tensor, name: Tensor) -> Tensor:
        return self.body(torch.cat([numbers, self.names(name)], 1)).squeeze(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("unit", "found"), [(2000.0, ["unscaled_input"]), (1.0, [])])
def test_columns_that_are_put_beside_others_may_have_units(unit: float, found: list[str], tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(0)
    numbers, name = torch.randn(400, 3, generator=draws), torch.randint(0, 5, (400,), generator=draws)
    wanted = numbers[:, 0] + (numbers[:, 1] - numbers[:, 2]).abs() + name / 3
    data = {"numbers": numbers * torch.tensor([1.0, unit, unit]), "name": name, "wanted": wanted}

    def step(model: Any, batch: Any) -> Tensor:
        return F.mse_loss(model(batch["numbers"], batch["name"]), batch["wanted"])

    recipe = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=20, duration="20ep")
    task = fogline.Task(Beside, fogline.on_batch(step), data)
    report = fogline.diagnose(task, recipe)
    assert [finding.cause for finding in report.findings] == found
    run = fogline.fit(*report.apply(task, recipe), runs=tmp_path, progress=False)
    assert run.steps["loss"][-10:].mean() < 0.5 * float(wanted.var())
    with torch.no_grad():
        said = run.model(data["numbers"], data["name"])  # as before
    assert float((said - wanted).square().mean()) < 0.5 * float(wanted.var())


def test_a_model_that_compares_the_rows_of_a_batch_answers_none_by_itself(tmp_path: Path) -> None:
    """Its answers are as wide as the batch is long, so that no pair of inputs and targets has one."""

    class Alike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = nn.Embedding(40, 8), nn.Embedding(30, 8)
            nn.init.zeros_(self.users.weight)
            nn.init.zeros_(self.items.weight)

        def forward(self, users: Tensor, items: Tensor) -> Tensor:
            return self.users(users) @ self.items(items).T

    def sampled(model: Any, batch: Any) -> Tensor:
        scores = model(batch["user"], batch["item"])
        return F.cross_entropy(scores, torch.arange(len(scores)))

    draws = torch.Generator().manual_seed(0)
    rows = {"user": torch.randint(40, (300,), generator=draws), "item": torch.randint(30, (300,), generator=draws)}
    task = fogline.Task(Alike, fogline.on_batch(sampled), rows)
    assert unfolded(task) is task
    report = fogline.diagnose(task, fogline.Recipe(lr=0.01, batch_size=64, duration="3ep"))
    assert report.findings[0].cause == "symmetric_init"
    run = fogline.fit(*report.apply(task, fogline.Recipe(lr=0.01, batch_size=64, duration="1ep")), runs=tmp_path)
    assert isinstance(run.model, Alike)
