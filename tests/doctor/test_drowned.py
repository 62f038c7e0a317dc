"""Constants inside a model, beside which nothing is left of what rows differ in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.causes.flow.drowned import drowned
from fogline.doctor.examination import Examination

WORDS = torch.randint(0, 6, (200, 12), generator=torch.Generator().manual_seed(0))
RECIPE = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=20, duration="15ep")


class Placed(nn.Module):
    """Adds a table of positions to embeddings, and something to its answers."""

    def __init__(self, table: Tensor, shift: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.norm, self.says = nn.Embedding(6, 16), nn.LayerNorm(16), nn.Linear(16, 6)
        self.register_buffer("table", table)
        self.shift = torch.tensor(shift)

    def forward(self, words: Tensor) -> Tensor:
        hidden = self.norm(self.words(words) + self.table)
        return self.says(hidden.mean(1)) + self.shift


def numbered(most: float) -> Tensor:
    return torch.linspace(0, most, 12)[:, None] * torch.linspace(-1, 1, 16)


def seen(model: nn.Module) -> object:
    task = fogline.Task(model, nn.CrossEntropyLoss(), (WORDS, WORDS.mode(1).values))
    return drowned(Examination(open_case(task, RECIPE)))


def test_numbers_of_positions_beside_embeddings() -> None:
    task = fogline.Task(Placed(numbered(200.0)), nn.CrossEntropyLoss(), (WORDS, WORDS.mode(1).values))
    found = drowned(Examination(open_case(task, RECIPE)))
    assert found is not None
    assert found.cause == "unscaled_input"
    edit = found.remedies[0].on_model
    assert edit is not None
    model = Placed(numbered(200.0)).eval()
    apart = model(WORDS).std(0).mean()
    assert edit(model)(WORDS).std(0).mean() > 1.5 * apart


@pytest.mark.parametrize("most", [0.0, 1.0, 3.0])
def test_tables_of_usual_size(most: float) -> None:
    assert seen(Placed(numbered(most))) is None


def test_units_of_the_answers() -> None:
    assert seen(Placed(numbered(1.0), shift=1e5)) is None
