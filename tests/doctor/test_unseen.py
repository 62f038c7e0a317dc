"""What a model does not see of its inputs: places, their order, the level of a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.causes.flow.invariant import invariant
from fogline.doctor.causes.flow.unseen import missed_inputs, unseen_inputs
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Suspicion
from fogline.doctor.trial import Laboratory

STEPS, WORDS = 9, 12
RECIPE = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="8ep")


class States(nn.Module):
    """Classes from one of the states of a recurrent layer."""

    def __init__(self, at: int, *, words: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed: nn.Module = nn.Embedding(WORDS, 8) if words else nn.Linear(3, 8)
        self.gru, self.head, self.at = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 2), at

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.gru(self.embed(x))[0][:, self.at])
        return found


class MadeAnew(nn.Module):
    """A state that starts from nothing in each step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head = nn.RNNCell(3, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], torch.zeros(len(x), 16))
        found: Tensor = self.head(state)
        return found


class Attending(nn.Module):
    """A mean over what attends to one another, with positions or without."""

    def __init__(self, *, positions: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(WORDS, 16), nn.Linear(16, 2)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        self.positions = nn.Parameter(torch.randn(STEPS, 16)) if positions else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        found: Tensor = self.head(self.layer(h if self.positions is None else h + self.positions).mean(1))
        return found


def series(count: int = 600) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, STEPS, 3, generator=torch.Generator().manual_seed(0))
    return x, (x[..., 0].sum(1) > 0).long()


def sentences(count: int = 600) -> tuple[Tensor, Tensor]:
    """Whether the larger words come first."""
    x = torch.randint(0, WORDS, (count, STEPS), generator=torch.Generator().manual_seed(0))
    return x, (x[:, :4].sum(1) > x[:, 5:].sum(1)).long()


def exam_of(model: nn.Module, data: tuple[Tensor, Tensor], loss: Any = None, *, steps: int = 0) -> Examination:
    x, y = data
    rows = {"train": (x[: len(x) // 2], y[: len(x) // 2]), "valid": (x[len(x) // 2 :], y[len(x) // 2 :])}
    found = Examination(open_case(fogline.Task(model, loss or nn.CrossEntropyLoss(), **rows), RECIPE))
    if steps:
        found.observed = Laboratory(found.case, 10_000).observe(found.program, steps)
    return found


def mended(found: Suspicion, model: nn.Module) -> nn.Module:
    edit = found.remedies[0].on_model
    assert edit is not None
    return edit(model)


@pytest.mark.parametrize("words", [False, True])
def test_the_first_state_is_taken_for_the_last(words: bool) -> None:
    data = sentences() if words else series()
    wrong = States(0, words=words)
    found = unseen_inputs(exam_of(wrong, data))
    assert found is not None
    assert found.cause == "bottleneck"
    torch.testing.assert_close(mended(found, wrong)(data[0][:7]), States(-1, words=words)(data[0][:7]))
    assert unseen_inputs(exam_of(States(-1, words=words), data)) is None


def test_large_columns_do_not_hide_small_ones() -> None:
    x = torch.cat([1e8 + 1e7 * torch.randn(200, 1), torch.randn(200, 9)], 1)
    net = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2))
    assert unseen_inputs(exam_of(net, (x, (x[:, 1] > 0).long()))) is None


def test_a_state_that_is_made_anew_in_each_step_is_said_where_classical_learners_get_further() -> None:
    given = exam_of(MadeAnew(), series(), steps=60)
    assert unseen_inputs(given) is None  # nothing can be tried
    found = missed_inputs(given)
    assert found is not None
    assert not found.remedies
    assert missed_inputs(exam_of(States(-1), series(), steps=60)) is None


def test_a_model_that_says_the_same_of_all_rows_is_not_said_to_miss_places() -> None:
    dead = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        dead[0].bias.fill_(-100)
    x = torch.randn(200, 10)
    assert unseen_inputs(exam_of(dead, (x, (x[:, 1] > 0).long()))) is None


def test_attention_without_positions_does_not_see_the_order() -> None:
    wrong = Attending(positions=False)
    found = invariant(exam_of(wrong, sentences(), steps=60))
    assert found is not None
    assert "position" in found.remedies[0].title
    x = sentences()[0][:7]
    model = mended(found, wrong).eval()
    assert not torch.allclose(model(x), model(x.flip(1)), atol=1e-3)
    assert invariant(exam_of(Attending(positions=True), sentences(), steps=60)) is None


def test_a_mean_of_words_that_does_well_needs_no_positions() -> None:
    x, _ = sentences()
    bag = nn.Sequential(nn.Embedding(WORDS, 16), _Mean(), nn.Linear(16, 2))
    assert invariant(exam_of(bag, (x, (x.float().mean(1) > 5.5).long()), steps=200)) is None


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def test_rows_that_are_normalised_one_by_one_have_lost_their_level() -> None:
    source = torch.Generator().manual_seed(0)
    level = torch.randn(600, 1, generator=source)
    x = torch.randn(600, 12, generator=source) + 2 * level

    def net(first: nn.Module) -> nn.Module:
        return nn.Sequential(first, nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 1))

    wrong = net(nn.LayerNorm(12))
    found = invariant(exam_of(wrong, (x, level), nn.MSELoss(), steps=60))
    assert found is not None
    assert isinstance(mended(found, wrong)[0], nn.Identity)  # type: ignore[index]
    assert invariant(exam_of(net(nn.BatchNorm1d(12)), (x, level), nn.MSELoss(), steps=60)) is None
