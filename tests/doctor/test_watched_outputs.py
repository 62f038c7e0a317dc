"""Loops whose outputs tell what is wrong: empty codes, targets far away, batches of one row, gates that open late."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fogline
from fogline.run import Run

ROWS = 240


def causes(run: Run) -> list[str]:
    return [finding.cause for finding in run.diagnose().findings]


def looped(
    tmp_path: Path,
    model: nn.Module,
    data: tuple[Tensor, ...],
    loss: Callable[..., Tensor],
    *,
    size: int = 24,
    epochs: int = 20,
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.Adam(p, lr=5e-3),
) -> Run:
    """A loop over batches of (model, *tensors of the rows)."""
    generator, method = torch.Generator().manual_seed(1), optimizer(p for p in model.parameters() if p.requires_grad)
    with fogline.watch(model, method, runs=tmp_path, share=0.5) as run:
        for _ in range(epochs):
            for at in torch.randperm(len(data[0]), generator=generator).split(size):
                method.zero_grad()
                value = loss(model, *(part[at] for part in data))
                value.backward()
                method.step()
                run.log(value)
    return run


class Variational(nn.Module):
    """Rows are coded by a mean and a variance, and rebuilt."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mean, self.logvar = nn.Linear(12, 24), nn.Linear(24, 3), nn.Linear(24, 3)
        self.decode = nn.Sequential(nn.Linear(3, 24), nn.ReLU(), nn.Linear(24, 12))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encode(x).relu()
        mean, logvar = self.mean(h), self.logvar(h)
        return self.decode(mean + torch.randn_like(mean) * (0.5 * logvar).exp()), mean, logvar


@pytest.mark.parametrize(("summed", "found"), [(True, ["regularization_too_strong"]), (False, [])])
def test_a_divergence_that_is_summed_beside_a_mean_empties_the_codes(
    summed: bool, found: list[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    rows = torch.randn(ROWS, 2) @ torch.randn(2, 12)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        rebuilt, mean, logvar = model(x)
        divergence = -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum(1)
        if summed:
            return F.mse_loss(rebuilt, x) + divergence.sum()
        return F.mse_loss(rebuilt, x, reduction="sum") / len(x) + divergence.mean()

    assert causes(looped(tmp_path, Variational(), (rows,), loss, epochs=30)) == found


@pytest.mark.parametrize(("unit", "found"), [(1e5, ["unscaled_target"]), (1.0, [])])
def test_targets_that_no_step_gets_to(unit: float, found: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    X = torch.randn(ROWS, 4)
    y = unit * (3 + X[:, :1])

    def pinball(model: nn.Module, x: Tensor, wanted: Tensor) -> Tensor:
        error = wanted - model(x)
        total = sum(torch.maximum((q - 1) * e, q * e).mean() for q, e in zip((0.1, 0.5, 0.9), error.T, strict=True))
        return torch.as_tensor(total)

    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    assert causes(looped(tmp_path, model, (X, y), pinball, epochs=60)) == found


@pytest.mark.parametrize(("size", "found"), [(1, ["batch_too_small"]), (40, [])])
def test_a_batch_of_one_row_has_nothing_to_compare(size: int, found: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    X = torch.randn(ROWS, 5)
    time = (X[:, 0] - X[:, 1]).exp()

    def cox(model: nn.Module, x: Tensor, until: Tensor) -> Tensor:
        risk = model(x).flatten()[until.argsort(descending=True)]
        return -(risk - risk.logcumsumexp(0)).mean()

    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1))
    assert causes(looped(tmp_path, model, (X, time), cox, size=size, epochs=1 if size == 1 else 40)) == found


class Gated(nn.Module):
    """Blocks behind gates that begin closed: no gradient reaches them at the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 2)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)) for _ in range(4))
        self.gates = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for gate, block in zip(self.gates, self.blocks, strict=True):
            h = h + gate * block(h)
        return self.last(h)  # type: ignore[no-any-return]


def test_gates_that_open_with_the_first_steps_are_no_dead_units(tmp_path: Path) -> None:
    torch.manual_seed(0)
    X = torch.randn(ROWS, 6)
    y = (X[:, 0] + X[:, 1] > 0).long()
    run = looped(tmp_path, Gated(), (X, y), lambda model, x, label: F.cross_entropy(model(x), label))
    assert causes(run) == []


@pytest.mark.parametrize("frozen", [True, False])
def test_embeddings_of_noise_that_are_frozen(frozen: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 200, (ROWS, 12))
    y = (torch.randn(200)[tokens].sum(1) > 0).long()
    vectors = 0.3 * torch.randn(200, 4)

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vectors, self.last = nn.Embedding.from_pretrained(vectors.clone(), freeze=frozen), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.last(self.vectors(ids).mean(1))  # type: ignore[no-any-return]

    run = looped(
        tmp_path,
        Bag(),
        (tokens, y),
        lambda model, x, label: F.cross_entropy(model(x), label),
        epochs=15 if frozen else 40,
    )
    assert causes(run) == (["frozen_parameters"] if frozen else [])


@pytest.mark.parametrize("end", [nn.ReLU(), nn.Identity()])
def test_targets_out_of_reach_of_a_loss_of_ones_own(end: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(0)
    X = torch.randn(ROWS, 12)
    y = X.cumsum(1) / 3

    class Slopes(nn.Module):
        def forward(self, outputs: Tensor, wanted: Tensor) -> Tensor:
            return (outputs - wanted).abs().mean() + 0.5 * (outputs.diff(dim=1) - wanted.diff(dim=1)).abs().mean()

    model, loss_fn = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 12), end), Slopes()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    with fogline.watch(model, optimizer, loss_fn=loss_fn, runs=tmp_path, share=0.5) as run:
        for _ in range(30):
            for at in torch.randperm(ROWS).split(24):
                optimizer.zero_grad()
                value = loss_fn(model(X[at]), y[at])
                value.backward()
                optimizer.step()
                run.log(value)
    assert causes(run) == (["output_activation"] if isinstance(end, nn.ReLU) else [])


@pytest.mark.parametrize(("wrong", "found"), [(True, "train_valid_mismatch"), (False, None)])
def test_one_scale_for_training_pictures_and_another_for_held_out_ones(
    wrong: bool, found: str | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    raw = torch.rand(ROWS, 1, 8, 8)
    y = (raw[:, 0, :4].mean((1, 2)) > raw[:, 0, 4:].mean((1, 2))).long()
    scaled = (raw - 0.35) / 0.2
    X, Xv = scaled[:180], (raw if wrong else scaled)[180:]
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with fogline.watch(model, optimizer, loss_fn=F.cross_entropy, runs=tmp_path, share=0.5) as run:
        for _ in range(25):
            for at in torch.randperm(180).split(20):
                optimizer.zero_grad()
                value = F.cross_entropy(model(X[at]), y[:180][at])
                value.backward()
                optimizer.step()
                run.log(value)
            with torch.no_grad():
                run.log(valid=F.cross_entropy(model(Xv), y[180:]))
    assert (found in causes(run)) if found else "train_valid_mismatch" not in causes(run)


@pytest.mark.parametrize(("rate", "found"), [(0.01, ["lr_too_low"]), (1.0, [])])
def test_factors_of_people_and_things_want_long_steps(rate: float, found: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    people, things = torch.randint(0, 60, (1500,)), torch.randint(0, 40, (1500,))
    stars = (torch.randn(60, 3)[people] * torch.randn(40, 3)[things]).sum(1) + torch.randn(60)[people]

    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.people, self.things, self.kind = nn.Embedding(60, 4), nn.Embedding(40, 4), nn.Embedding(60, 1)
            for factors in (self.people, self.things):
                nn.init.normal_(factors.weight, std=0.3)
            nn.init.zeros_(self.kind.weight)

        def forward(self, who: Tensor, what: Tensor) -> Tensor:
            return (self.people(who) * self.things(what)).sum(1) + self.kind(who).squeeze(1)

    run = looped(
        tmp_path, Factors(), (people, things, stars), lambda model, u, i, r: F.mse_loss(model(u, i), r),
        size=250, epochs=100, optimizer=lambda p: torch.optim.SGD(p, lr=rate),
    )  # fmt: skip
    assert causes(run) == found


def test_steps_as_long_as_that_may_be_why_nothing_is_learned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 6, (ROWS, 8))

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.last = nn.Embedding(6, 16), nn.Linear(16, 6)
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

        def forward(self, ids: Tensor) -> Tensor:
            return self.last(self.layer(self.tokens(ids)))  # type: ignore[no-any-return]

    def loss(model: nn.Module, ids: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(model(ids).flatten(0, 1), wanted.flatten())

    run = looped(
        tmp_path, Tagger(), (tokens, tokens.flip(1)), loss, epochs=12,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.1),
    )  # fmt: skip
    assert causes(run)[:1] == ["lr_too_high"]


@pytest.mark.parametrize("constant", [True, False])
def test_units_of_ones_own_layers_that_stay_alike(constant: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    X = torch.randn(ROWS, 6)
    y = (X[:, 0] * X[:, 1] > 0).long()

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Parameter(torch.full((6, 16), 0.1)), nn.Parameter(torch.full((16, 2), 0.1))
            if not constant:
                nn.init.xavier_uniform_(self.first)
                nn.init.xavier_uniform_(self.last)

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.first).relu() @ self.last

    run = looped(tmp_path, Own(), (X, y), lambda model, x, label: F.cross_entropy(model(x), label), epochs=40)
    assert ("symmetric_init" in causes(run)) is constant
