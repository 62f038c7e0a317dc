"""Watched loops that learn nothing: why, from the record of their first steps; and the order of the rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fogline
from fogline.doctor.sorting import between_batches
from fogline.run import Run

ROWS, BATCH, CLASSES = 960, 32, 4


def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(ROWS, 8, generator=generator)
    return X, (X[:, 0] > 0).long() * 2 + (X[:, 1] > 0).long()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def watched(
    tmp_path: Path,
    make_optimizer: Callable[[Any], torch.optim.Optimizer],
    *,
    model: nn.Module | None = None,
    loss_fn: nn.Module | None = None,
    batch: int = BATCH,
    by_class: bool = False,
    epochs: int = 4,
) -> Run:
    model, loss_fn = model or net(), loss_fn or nn.CrossEntropyLoss()
    optimizer = make_optimizer(model.parameters())
    X, y = rows()
    generator = torch.Generator().manual_seed(1)
    with fogline.watch(model, optimizer, loss_fn=loss_fn, runs=tmp_path, share=0.5) as run:
        for _ in range(epochs):
            order = y.argsort(stable=True) if by_class else torch.randperm(ROWS, generator=generator)
            for at in order.split(batch):
                optimizer.zero_grad()
                loss = loss_fn(model(X[at]), y[at])
                loss.backward()
                optimizer.step()
                run.log(loss)
    return run


def causes(run: Run) -> list[str]:
    return [finding.cause for finding in run.diagnose().findings]


def test_a_loop_that_learns_is_left_in_peace(tmp_path: Path) -> None:
    report = watched(tmp_path, lambda p: torch.optim.Adam(p, lr=0.01)).diagnose()
    assert (report.verdict, report.findings) == ("healthy", ())


@pytest.mark.parametrize("method", [torch.optim.SGD, torch.optim.Adam])
def test_steps_that_move_nothing(method: Any, tmp_path: Path) -> None:
    assert causes(watched(tmp_path, lambda p: method(p, lr=1e-7))) == ["lr_too_low"]


def test_steps_as_long_as_the_weights_on_single_rows(tmp_path: Path) -> None:
    run = watched(tmp_path, lambda p: torch.optim.SGD(p, lr=3.0), batch=1, epochs=1)
    assert causes(run)[0] == "lr_too_high"


def test_a_sum_over_the_batch(tmp_path: Path) -> None:
    loss_fn = nn.CrossEntropyLoss(reduction="sum")
    assert causes(watched(tmp_path, lambda p: torch.optim.SGD(p, lr=1.0), loss_fn=loss_fn))[0] == "sum_reduction"
    assert causes(watched(tmp_path, lambda p: torch.optim.SGD(p, lr=0.01), loss_fn=loss_fn)) == []


def test_a_decay_that_outweighs_the_loss(tmp_path: Path) -> None:
    run = watched(tmp_path, lambda p: torch.optim.Adam(p, lr=0.003, weight_decay=1.0))
    assert causes(run) == ["regularization_too_strong"]


def test_a_decay_beside_the_gradient(tmp_path: Path) -> None:
    run = watched(tmp_path, lambda p: torch.optim.AdamW(p, lr=0.003, weight_decay=100.0))
    assert causes(run) == ["regularization_too_strong"]
    assert causes(watched(tmp_path, lambda p: torch.optim.AdamW(p, lr=0.003, weight_decay=0.1))) == []


def test_what_one_batch_leaves_no_doubt_about_is_told_at_it(tmp_path: Path) -> None:
    """A loss of probabilities that is given logits, and its twin."""
    X, y = rows()
    wanted = nn.functional.one_hot(y, CLASSES).float()
    for ends, found in (((), [(0, "loss_mismatch")]), ((nn.LogSoftmax(1),), [])):
        model, loss_fn = nn.Sequential(*net(), *ends), nn.KLDivLoss(reduction="batchmean")
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        with fogline.watch(model, optimizer, loss_fn=loss_fn, runs=tmp_path, share=0.5) as run:
            state = torch.get_rng_state()
            loss = loss_fn(model(X[:BATCH]), wanted[:BATCH])
            loss.backward()
            optimizer.step()
            run.log(loss)
            assert torch.equal(state, torch.get_rng_state())
        assert [(row["step"], row["cause"]) for row in run.findings] == found


def test_layers_have_the_names_of_the_loop_where_outputs_are_reshaped(tmp_path: Path) -> None:
    X, y = rows()
    model, loss_fn = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 1)), nn.BCEWithLogitsLoss()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, loss_fn=loss_fn, runs=tmp_path, share=0.5) as run:
        loss = loss_fn(model(X[:BATCH]).squeeze(1), (y[:BATCH] > 1).float())
        loss.backward()
        optimizer.step()
        run.log(loss)
    (row,) = run.findings
    assert (row["step"], row["cause"]) == (0, "symmetric_init")
    assert json.loads(row["data"])["evidence"][0]["layer"] == "0"


def test_units_that_stay_alike(tmp_path: Path) -> None:
    model = net()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert causes(watched(tmp_path, lambda p: torch.optim.SGD(p, lr=0.1), model=model)) == ["symmetric_init"]


def test_a_last_layer_of_zeros_is_a_good_start(tmp_path: Path) -> None:
    model = net()
    nn.init.zeros_(model[2].weight)
    assert causes(watched(tmp_path, lambda p: torch.optim.Adam(p, lr=0.01), model=model)) == []


def test_rows_sorted_by_class(tmp_path: Path) -> None:
    run = watched(tmp_path, lambda p: torch.optim.Adam(p, lr=0.01), by_class=True)
    assert "unshuffled_data" in causes(run)


class Bare(nn.Module):
    """Its first layer is run without a graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head = nn.Linear(8, 32), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = self.features(x).relu()
        logits: Tensor = self.head(hidden)
        return logits


def test_layers_that_run_without_a_graph(tmp_path: Path) -> None:
    assert "detached_graph" in causes(watched(tmp_path, lambda p: torch.optim.Adam(p, lr=0.01), model=Bare()))
    trained = Bare()
    with torch.no_grad():
        trained.features.weight.add_(torch.randn(32, 8, generator=torch.Generator().manual_seed(3)))
    assert causes(watched(tmp_path, lambda p: torch.optim.Adam(p, lr=0.01), model=trained)) == []


def test_between_batches_is_that_of_random_order() -> None:
    values = torch.randn(600, 1, generator=torch.Generator().manual_seed(0))
    assert between_batches(values.split(20)) is None
    found = between_batches(values.sort(0).values.split(20))
    assert found is not None
    assert found.share > 0.95
    assert found.by_chance == pytest.approx(29 / 599)
    assert between_batches([torch.ones(4, 1)] * 4) is None  # nothing varies
    assert between_batches(values[:6].split(3)) is None  # too few to tell
