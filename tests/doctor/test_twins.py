"""Losses of pairs and triples that are told the wrong way round: found, turned, and nothing said of sound ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.causes.output import loss_mismatch
from fogline.doctor.examination import Examination

RECIPE = {"optimizer": "adam", "lr": 0.003, "batch_size": 32, "duration": "12ep", "seed": 0}


class Distance(nn.Module):
    """How far two inputs lie apart after a network of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, pairs: Tensor) -> Tensor:
        return F.pairwise_distance(self.net(pairs[:, 0]), self.net(pairs[:, 1]))


class Embeddings(Distance):
    def forward(self, parts: Tensor) -> Any:
        return tuple(self.net(part) for part in parts.unbind(1))


class Judge(Distance):
    """A logit of whether two are alike, from the difference: twins have no place of their own in it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        said: Tensor = self.head((self.net(pairs[:, 0]) - self.net(pairs[:, 1])).abs()).squeeze(1)
        return said


def drawn(count: int) -> tuple[Tensor, Tensor]:
    """Points of four kinds, (n, 3, 12): a point, another of its kind, one of another kind."""
    draws = torch.Generator().manual_seed(count)
    centres = 2 * torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    kind = torch.randint(4, (count,), generator=draws)
    other = (kind + torch.randint(1, 4, (count,), generator=draws)) % 4
    points = torch.stack([centres[kind], centres[kind], centres[other]], 1)
    return points + 0.7 * torch.randn(points.shape, generator=draws), kind


def pairs(count: int) -> tuple[Tensor, Tensor]:
    """Half of them of one kind, which the target 1 says."""
    X, _ = drawn(count)
    same = torch.arange(count) % 2
    return torch.where(same[:, None, None] == 1, X[:, :2], X[:, [0, 2]]), same.float()


def contrastive(distance: Tensor, different: Tensor) -> Tensor:
    return ((1 - different) * distance**2 + different * (2 - distance).clamp_min(0) ** 2).mean()


def suspicion_of(model: Any, train: Any, loss: Any) -> Any:
    return loss_mismatch(Examination(open_case(fogline.Task(model, loss, train), fogline.Recipe(**RECIPE))))


@pytest.mark.parametrize("turned", [False, True])
def test_distances_coded_the_wrong_way_round(tmp_path: Path, turned: bool) -> None:
    def loss(distance: Tensor, same: Tensor) -> Tensor:
        return contrastive(distance, same if turned else 1 - same)

    task = fogline.Task(Distance, loss, pairs(400), pairs(200))
    report = fogline.diagnose(task, fogline.Recipe(**RECIPE))
    assert [finding.cause for finding in report.findings] == (["loss_mismatch"] if turned else [])
    if turned:
        run = fogline.fit(*report.apply(task, fogline.Recipe(**RECIPE)), runs=tmp_path, progress=False)
        X, same = pairs(300)
        with torch.no_grad():
            distance = run.model(X)
        assert distance[same == 1].mean() < 0.5 * distance[same == 0].mean()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("apart", [1, 2])
def test_triples_whose_places_were_exchanged(turned: bool, apart: int) -> None:
    def loss(parts: tuple[Tensor, ...], _: Tensor) -> Tensor:
        return F.triplet_margin_loss(parts[0], parts[1], parts[2], margin=float(apart))

    X, kind = drawn(300)
    found = suspicion_of(Embeddings, (X[:, [0, 2, 1]] if turned else X, kind), loss)
    assert (found is not None) == turned
    if turned:
        case = open_case(fogline.Task(Embeddings, loss, (X[:, [0, 2, 1]], kind)), fogline.Recipe(**RECIPE))
        assert loss_mismatch(Examination(case, found.remedies[:1])) is None


@pytest.mark.parametrize("turned", [False, True])
def test_library_losses_of_two_embeddings(turned: bool) -> None:
    X, same = pairs(300)
    told = 2 * same - 1

    def loss(parts: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        return F.cosine_embedding_loss(parts[0], parts[1], targets)

    found = suspicion_of(Embeddings, (X, -told if turned else told), loss)
    assert (found is not None) == turned


@pytest.mark.parametrize("turned", [False, True])
def test_distances_within_a_loss_of_a_batch(turned: bool) -> None:
    X, same = pairs(600)

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        distance = (model(batch["one"]) - model(batch["other"])).square().sum(1).add(1e-9).sqrt()
        return contrastive(distance, batch["same"] if turned else 1 - batch["same"])

    rows = {"one": X[:, 0], "other": X[:, 1], "same": same}
    task = fogline.Task(lambda: Distance().net, fogline.on_batch(loss), rows)
    report = fogline.diagnose(task, **RECIPE)
    assert [finding.cause for finding in report.findings][:1] == ["loss_mismatch"] * turned
    if turned:
        mended, _ = report.apply(task, fogline.Recipe(**RECIPE))
        run = fogline.fit(mended, **RECIPE, progress=False)
        apart = (run.model(X[:, 0]) - run.model(X[:, 1])).norm(dim=1)
        assert apart[same == 1].mean() < apart[same == 0].mean() / 2


def test_two_inputs_that_are_joined_are_no_pair() -> None:
    X, same = pairs(300)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        one, other, told = batch
        return F.binary_cross_entropy_with_logits(model(torch.cat([one, other], 1)).squeeze(1), 1 - told)

    task = (X[:, 0], X[:, 1], same)
    assert suspicion_of(lambda: nn.Linear(24, 1), task, fogline.on_batch(loss)) is None


def test_nothing_is_said_where_twins_have_no_place_or_inputs_no_distance() -> None:
    X, same = pairs(300)
    assert suspicion_of(Judge, (X, 1 - same), nn.BCEWithLogitsLoss()) is None
    noise = torch.randn(X.shape, generator=torch.Generator().manual_seed(5))
    assert suspicion_of(Distance, (noise, same), contrastive) is None
