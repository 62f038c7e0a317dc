"""Language models whose targets were not shifted: found, and models that are meant to copy left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline

WORDS = 7


def tokens(count: int) -> Tensor:
    """Each token tells the next one, mostly: (n, 10)."""
    draws = torch.Generator().manual_seed(count)
    rows = [torch.randint(WORDS, (count,), generator=draws)]
    for _ in range(9):
        odd = torch.rand(count, generator=draws) < 0.1
        rows.append(torch.where(odd, torch.randint(WORDS, (count,), generator=draws), (3 * rows[-1] + 1) % WORDS))
    return torch.stack(rows, 1)


class Reader(nn.Module):
    def __init__(self, both_ways: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 16)
        self.rnn = nn.GRU(16, 24, batch_first=True, bidirectional=both_ways)
        self.head = nn.Linear(48 if both_ways else 24, WORDS)

    def forward(self, rows: Tensor) -> Any:
        return self.head(self.rnn(self.table(rows))[0]).transpose(1, 2)


@pytest.mark.parametrize(("shifted", "both_ways"), [(False, False), (True, False), (False, True)])
def test_targets_that_the_model_has_just_been_told(shifted: bool, both_ways: bool) -> None:
    rows = tokens(300)
    pair = (rows[:, :-1], rows[:, 1:]) if shifted else (rows, rows)
    task = fogline.Task(lambda: Reader(both_ways), nn.CrossEntropyLoss(), pair)
    recipe = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="15ep")
    report = fogline.diagnose(task, recipe)
    planted = not shifted and not both_ways
    assert [finding.cause for finding in report.findings] == (["loss_mismatch"] if planted else [])
    if planted:
        mended, _ = report.apply(task, recipe)
        said = torch.randn(4, WORDS, 10, generator=torch.Generator().manual_seed(0))
        expected = F.cross_entropy(said[..., :-1], rows[:4, 1:])
        torch.testing.assert_close(mended.loss(said, rows[:4]), expected)
        assert report.healed is not None
        assert report.healed > 0.7


def test_a_loss_that_shifts_by_itself() -> None:
    """Of the whole batch, or of outputs and targets: what comes next is what such a loss asks for."""
    rows = tokens(300)

    def next_one(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[..., :-1], targets[:, 1:])

    recipe = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="15ep")
    for task in (
        fogline.Task(Reader, next_one, (rows, rows)),
        fogline.Task(Reader, fogline.on_batch(lambda model, batch: next_one(model(batch), batch)), rows),
    ):
        report = fogline.diagnose(task, recipe)
        assert report.verdict == "healthy"
