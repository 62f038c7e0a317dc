"""A softmax inside the model that has decided before anything was learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.causes.flow.attention import saturated_attention
from fogline.doctor.examination import Examination
from fogline.doctor.uncut import ScoresDivided

RECIPE = fogline.Recipe(optimizer="adam", lr=0.01, batch_size=32, duration="12ep")
WIDTH = 16


class Attends(nn.Module):
    """Attention of one's own: ``weigh`` makes of scores what the values are weighed by."""

    def __init__(self, weigh: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(20, WIDTH), nn.Parameter(torch.randn(10, WIDTH))
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head, self.weigh = nn.Linear(WIDTH, 2), weigh

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.places
        scores = self.q(h) @ self.k(h).transpose(1, 2)
        return self.head((self.weigh(scores, x) @ self.v(h)).mean(1))


class Pools(nn.Module):
    """One score an entry, and a sum that it weighs."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.score, self.head = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 2)
        self.softmax, self.factor = nn.Softmax(dim=1), factor

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.head((self.softmax(self.factor * self.score(h)) * h).sum(1))


class Answers(nn.Module):
    """A softmax at the end, as sure as can be."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return (100 * self.head(self.embed(x).sum(1))).softmax(-1)


def tokens(count: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Whether the one marked token of a row is even."""
    source = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 10, (count, 10), generator=source)
    at = torch.randint(0, 10, (count, 1), generator=source)
    chosen = x.gather(1, at)
    return x.scatter(1, at, chosen + 10), chosen[:, 0] % 2


def exam_of(model: nn.Module) -> Examination:
    return Examination(open_case(fogline.Task(model, nn.CrossEntropyLoss(), tokens()), RECIPE))


def all_but(count: int, value: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Softmax over the last few entries, the others masked out."""

    def weigh(scores: Tensor, x: Tensor) -> Tensor:
        masked = (torch.arange(10) < count).expand_as(scores)
        return (scores * WIDTH).masked_fill(masked, value).softmax(-1)

    return weigh


def hard(scores: Tensor, x: Tensor) -> Tensor:
    """One entry on the way there, all of them on the way back."""
    soft = (scores / WIDTH**0.5).softmax(-1)
    return F.one_hot(soft.argmax(-1), scores.shape[-1]).float() - soft.detach() + soft


def drawn(scores: Tensor, x: Tensor) -> Tensor:
    """Gumbel's trick by hand, at a low temperature."""
    noise = -torch.empty_like(scores).exponential_().log()
    return ((scores / WIDTH**0.5 + noise) / 0.02).softmax(-1)


@pytest.mark.parametrize(
    "model",
    [
        lambda: Attends(lambda scores, x: (scores * WIDTH).softmax(-1)),
        lambda: Attends(lambda scores, x: torch.softmax(scores * WIDTH, dim=2)),
        lambda: Attends(lambda scores, x: F.dropout(F.softmax(scores * WIDTH, dim=-1), 0.1)),
        lambda: Attends(all_but(3, -1e9)),
        lambda: Attends(all_but(3, -torch.inf)),
        lambda: Pools(300.0),
    ],
)
def test_scores_too_far_apart(model: Callable[[], nn.Module]) -> None:
    exam = exam_of(model())
    found = saturated_attention(exam)
    assert found is not None
    assert found.cause == "saturated_units"
    assert saturated_attention(Examination(exam.case, (found.remedies[0],))) is None


@pytest.mark.parametrize(
    "model",
    [
        lambda: Attends(lambda scores, x: (scores / WIDTH**0.5).softmax(-1)),
        lambda: Attends(lambda scores, x: scores.softmax(-1)),
        lambda: Attends(all_but(7, -1e9)),  # of three entries one is soon chosen
        lambda: Attends(all_but(7, -1e3)),  # the lowest, again and again
        lambda: Attends(hard),
        lambda: Attends(lambda scores, x: F.gumbel_softmax(scores, tau=0.05, hard=True)),
        lambda: Attends(drawn),
        lambda: Pools(1.0),
        Answers,
    ],
)
def test_silent(model: Callable[[], nn.Module]) -> None:
    assert saturated_attention(exam_of(model())) is None


@pytest.mark.parametrize("value", [-1e4, -1e9, -torch.inf])
def test_only_scores_of_the_call_are_divided(value: float) -> None:
    scores = torch.tensor([[80.0, 40.0, value, 0.0]])
    with ScoresDivided({1: 40.0}):
        first, second = scores.softmax(-1), F.softmax(scores, dim=-1)
    assert torch.equal(first, scores.softmax(-1))
    assert torch.allclose(second, torch.tensor([[2.0, 1.0, -torch.inf, 0.0]]).softmax(-1))


@pytest.mark.parametrize(("factor", "causes"), [(WIDTH, ["saturated_units"]), (WIDTH**-0.5, [])])
def test_a_program_whose_scores_are_multiplied_instead_of_divided(factor: float, causes: list[str]) -> None:
    model = Attends(lambda scores, x: (scores * factor).softmax(-1))
    report = fogline.diagnose(fogline.Task(model, nn.CrossEntropyLoss(), tokens(500), tokens(300, seed=1)), RECIPE)
    assert [found.cause for found in report.findings] == causes
    assert len(report.remedies) == len(causes)


class Marked(nn.Module):
    """The sum of two marked numbers of a sequence, by a transformer whose weights are drawn by its author."""

    def __init__(self, deviation: float | None) -> None:
        super().__init__()
        self.embed, self.last = nn.Linear(2, 16), nn.Linear(16, 1)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        for weight in self.parameters() if deviation is not None else ():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=deviation or 0.0)

    def forward(self, rows: Tensor, hidden: Tensor) -> Tensor:
        found = self.block(self.embed(rows), src_key_padding_mask=hidden)
        return self.last(found.mean(1)).squeeze(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("deviation", "found"), [(2.0, ["bad_init"]), (None, [])])
def test_weights_of_attention_are_drawn_again_with_the_others(deviation: float | None, found: list[str]) -> None:
    draws = torch.Generator().manual_seed(0)
    values, marks = torch.randn(400, 6, generator=draws), torch.zeros(400, 6)
    marks.scatter_(1, torch.rand(400, 6, generator=draws).topk(2).indices, 1.0)
    rows = torch.stack([values, marks], 2)
    data = {"rows": rows, "hidden": torch.zeros(400, 6, dtype=torch.bool), "sum": (values * marks).sum(1)}

    def step(model: Any, batch: Any) -> Tensor:
        return F.mse_loss(model(batch["rows"], batch["hidden"]), batch["sum"])

    task = fogline.Task(lambda: Marked(deviation), fogline.on_batch(step), data)
    report = fogline.diagnose(task, fogline.Recipe(optimizer="adam", lr=3e-3, batch_size=20, duration="20ep"))
    assert [finding.cause for finding in report.findings][:1] == found
    if found:
        assert "self_attn" in str(report.findings[0].remedy)
        assert report.healed is not None
        assert report.healed > 0.5
