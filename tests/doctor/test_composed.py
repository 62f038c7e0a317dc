"""Losses of a batch that ask parts of a model, or the model several times, before one of PyTorch's losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline import Recipe, Task
from fogline.doctor.composed import Composed
from fogline.doctor.unfolded import unfolded

_DRAWS = torch.Generator().manual_seed(0)
X = torch.randn(600, 4, generator=_DRAWS) @ torch.randn(4, 20, generator=_DRAWS)
POINTS = torch.randn(800, 10, generator=_DRAWS)
KIND = (POINTS @ torch.randn(10, generator=_DRAWS) > 0).long()
FIRST, SECOND = torch.randint(800, (2, 1200), generator=_DRAWS)
SAME = (KIND[FIRST] == KIND[SECOND]).float()
WORDS = torch.randint(2, 9, (200, 5), generator=_DRAWS)
BACKWARDS = torch.cat([torch.ones(200, 1, dtype=torch.long), WORDS.flip(1)], 1)


class AutoEncoder(nn.Module):
    def __init__(self, *last: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 4))
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 20), *last)


class Twins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(x)
        return found


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(9, 16), nn.Linear(32, 9)
        self.reads, self.writes = nn.GRU(16, 32, batch_first=True), nn.GRU(16, 32, batch_first=True)


def rebuilt(model: Any, batch: Tensor) -> Tensor:
    return F.mse_loss(model.decoder(model.encoder(batch)), batch)


def compared(model: Any, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    first, second, same = batch
    score = model.head((model(first) - model(second)).abs())[:, 0]
    return F.binary_cross_entropy_with_logits(score, same)


def translated(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    text, said = batch
    _, state = model.reads(model.words(text))
    hidden, _ = model.writes(model.words(said[:, :-1]), state)
    return F.cross_entropy(model.out(hidden).reshape(-1, 9), said[:, 1:].reshape(-1))


@pytest.mark.parametrize(
    ("model", "step", "train", "inputs"),
    [
        (AutoEncoder, rebuilt, X, (20,)),
        (Twins, compared, (POINTS[FIRST], POINTS[SECOND], SAME), ((10,), (10,))),
        (Translator, translated, (WORDS, BACKWARDS), ((5,), (6,))),
    ],
)
def test_all_that_is_done_before_a_loss_is_the_model(
    model: Callable[[], nn.Module], step: Callable[[Any, Any], Tensor], train: Any, inputs: Any
) -> None:
    task = Task(model, fogline.on_batch(step), train)
    read = unfolded(task)
    given, targets = read.train
    assert (given.shape[1:] if isinstance(given, Tensor) else tuple(leaf.shape[1:] for leaf in given)) == inputs
    assert callable(read.model)
    assert callable(read.loss)
    made = read.model()
    assert isinstance(made, Composed)
    said = read.loss(made(given), targets)
    torch.testing.assert_close(said, step(made.wrapped_model, train))


def test_labels_are_no_inputs_and_what_both_are_made_of_is_one() -> None:
    """Of a translation the words so far are what goes in, and the words to come are what is compared."""
    read = unfolded(Task(Twins, fogline.on_batch(compared), (POINTS[FIRST], POINTS[SECOND], SAME)))
    assert len(read.train[0]) == 2
    torch.testing.assert_close(read.train[1], SAME)
    read = unfolded(Task(Translator, fogline.on_batch(translated), (WORDS, BACKWARDS)))
    assert torch.equal(read.train[1], BACKWARDS[:, 1:])


@pytest.mark.parametrize(
    ("model", "step", "train", "edit", "cause"),
    [
        (lambda: AutoEncoder(nn.Sigmoid()), rebuilt, X, 1.0, "output_activation"),
        (AutoEncoder, rebuilt, X, 1.0, None),
        (Twins, compared, (POINTS[FIRST], POINTS[SECOND], SAME), 1.0, None),
        (Twins, compared, (POINTS[FIRST], POINTS[SECOND], SAME), 1e3, "unscaled_input"),
    ],
)
def test_faults_are_found_and_mended(
    model: Callable[[], nn.Module], step: Callable[[Any, Any], Tensor], train: Any, edit: float, cause: str | None,
    tmp_path: Path,
) -> None:  # fmt: skip
    def rows(chosen: slice) -> Any:
        if isinstance(train, Tensor):
            return edit * train[chosen]
        return tuple(leaf[chosen] * (edit if leaf.ndim > 1 else 1) for leaf in train)

    most = (len(train) if isinstance(train, Tensor) else len(train[0])) * 3 // 4
    task = Task(model, fogline.on_batch(step), rows(slice(0, most)), rows(slice(most, None)))
    recipe = Recipe(optimizer="adam", lr=1e-2, batch_size=32, duration="20ep", seed=0)
    report = fogline.diagnose(task, recipe)
    assert [finding.cause for finding in report.findings] == ([] if cause is None else [cause])
    run = fogline.fit(*report.apply(task, recipe.replace(duration="3ep")), runs=tmp_path)
    assert run.steps["loss"][-1] < run.steps["loss"][0]
    if step is compared:  # a model that has an answer of its own keeps it
        assert run.model(POINTS[:3]).shape == (3, 16)


outside = AutoEncoder()


@pytest.mark.parametrize(
    "step",
    [
        lambda m, b: F.mse_loss(outside.decoder(outside.encoder(b)), b),  # another model
        lambda m, b: 0.5 * F.mse_loss(m.decoder(m.encoder(b)), b),
        lambda m, b: F.mse_loss(m.decoder(m.encoder(b)), b) + m.encoder(b).square().mean(),
        lambda m, b: F.mse_loss(m.decoder(m.encoder(b + torch.randn_like(b))), b),
        lambda m, b: F.mse_loss(m.decoder(m.encoder(b - b.mean(0))), b),  # made of all rows
        lambda m, b: F.mse_loss(m.decoder(m.encoder(b)), m.decoder(m.encoder(b)) + b),  # targets move with the model
        lambda m, b: F.mse_loss(m.decoder(m.encoder(b)), b + 0.9 * m.decoder(m.encoder(b)).detach()),
    ],
)
def test_what_is_more_than_a_loss_of_pytorch_stays(step: Callable[[Any, Any], Tensor]) -> None:
    task = Task(AutoEncoder, fogline.on_batch(step), X)
    assert unfolded(task) is task
