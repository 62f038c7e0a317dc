"""What a watched loop says of its rows and of what it makes of them: copies, units, sequences, and even falls."""

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


def drawn(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def watched(
    model: nn.Module, train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor], loss: Callable[..., Tensor],
    tmp_path: Path, *, lr: float = 5e-3, epochs: int = 12, scored: Callable[[Any], Any] = lambda x: x,
    parameters: Any = None, call: Callable[[Tensor], Tensor] | None = None,
) -> Run:  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters() if parameters is None else parameters, lr=lr)
    draws = torch.Generator().manual_seed(0)
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        for _ in range(epochs):
            model.train()
            for index in torch.randperm(len(train[0]), generator=draws).split(32):  # type: ignore[no-untyped-call]
                optimizer.zero_grad()
                value = loss((call or model)(train[0][index]), train[1][index])
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                run.log(value)
            model.eval()
            with torch.no_grad():
                run.log(valid=loss(model(scored(valid[0])), scored(valid[1])))
    return run


def causes(run: Run) -> list[str]:
    return [finding.cause for finding in run.diagnose().findings]


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ("held out", []),
        ("held out, and some that were repeated before the split", ["duplicate_leak"]),
        ("the training rows", []),  # a loop may look at them as well
    ],
)
@pytest.mark.parametrize("many", [1, 2])
def test_held_out_rows_that_were_trained_on(rows: str, found: list[str], many: int, tmp_path: Path) -> None:
    X = drawn(240 * many + 80, 6)
    y = (X[:, 0] + X[:, 1] + drawn(len(X), 1, 1)[:, 0] > 0).long()
    train, held = (X[80:], y[80:]), (X[:80].clone(), y[:80].clone())
    if rows.endswith("split"):
        held[0][::2], held[1][::2] = X[80:160:2], y[80:160:2]
    if rows.startswith("the"):
        held = train
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))
    assert causes(watched(net, train, held, F.cross_entropy, tmp_path)) == found


class Recalls(nn.Module):
    """Names the first of the numbers of a row, after all of them."""

    def __init__(self, cell: type[nn.Module], cut: bool) -> None:
        super().__init__()
        self.numbers, self.cell, self.out = nn.Embedding(6, 12), cell(12, 32), nn.Linear(32, 5)
        self.cut = cut

    def forward(self, rows: Tensor) -> Tensor:
        given, state = self.numbers(rows), None
        for at in range(rows.shape[1]):
            if self.cut and state is not None:
                state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
            state = self.cell(given[:, at], state)
        said: Tensor = self.out(state[0] if isinstance(state, tuple) else state)
        return said


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell])
@pytest.mark.parametrize("cut", [True, False])
def test_a_state_that_is_cut_off_at_every_step(cell: type[nn.Module], cut: bool, tmp_path: Path) -> None:
    rows = torch.randint(1, 6, (800, 6), generator=torch.Generator().manual_seed(0))
    targets = rows[:, 0] - 1
    torch.manual_seed(0)
    net = Recalls(cell, cut)
    run = watched(net, (rows[:640], targets[:640]), (rows[640:], targets[640:]), F.cross_entropy, tmp_path, lr=0.01)
    found = run.diagnose().findings
    assert [finding.cause for finding in found] == ["detached_graph"] * cut
    assert all("6 times in a pass" in finding.explanation for finding in found)


@pytest.mark.parametrize("scales", [True, False])
def test_a_model_that_scales_its_inputs_by_itself(scales: bool, tmp_path: Path) -> None:
    """Rare rows under a weight take long, and what is left of the loss is not for want of scaled inputs."""
    X = drawn(700, 6) * torch.tensor([1.0, 1, 300, 1, 900, 1]) + torch.tensor([0.0, 0, 900, 0, 4000, 0])
    y = (X[:, 0] + drawn(700, 1, 1)[:, 0] > 0).float()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.deviation = nn.Buffer(X.mean(0)), nn.Buffer(X.std(0))
            self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))

        def forward(self, x: Tensor) -> Tensor:
            said: Tensor = self.body((x - self.mean) / self.deviation if scales else x)
            return said[:, 0]

    torch.manual_seed(0)
    loss = F.binary_cross_entropy_with_logits
    run = watched(Net(), (X[:560], y[:560]), (X[560:], y[560:]), loss, tmp_path, lr=1e-3, epochs=6)
    assert ("unscaled_input" in causes(run)) is not scales


@pytest.mark.parametrize(("rate", "found"), [(1e-5, ["lr_too_low"]), (5e-3, [])])
def test_a_held_out_loss_that_falls_as_fast_at_the_end_as_at_first(
    rate: float, found: list[str], tmp_path: Path
) -> None:
    """Under a loss of one's own, whose best constant answer nobody knows."""
    X = drawn(700, 4)
    y = 2 * X[:, :1] + torch.sin(3 * X[:, 1:2]) + 0.3 * drawn(700, 1, 1)

    def pinball(said: Tensor, told: Tensor) -> Tensor:
        away = told - said
        return torch.maximum(0.9 * away, -0.1 * away).mean()

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 1))
    run = watched(net, (X[:560], y[:560]), (X[560:], y[560:]), pinball, tmp_path, lr=rate, epochs=30)
    assert [cause for cause in causes(run) if cause != "too_few_steps"] == found


@pytest.mark.parametrize("curved", [True, False])
def test_a_net_without_a_bend_is_well_where_nothing_is_bent(curved: bool, tmp_path: Path) -> None:
    X = drawn(200, 8)
    y = (X[:, :1].square() - 1 if curved else X[:, :1] - X[:, 1:2]) + 0.1 * drawn(200, 1, 1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 1))
    run = watched(net, (X[:160], y[:160]), (X[160:], y[160:]), F.mse_loss, tmp_path, lr=1e-2, epochs=60)
    assert ("missing_activation" in causes(run)) is curved


def test_random_features_that_are_left_as_they_are_are_no_fault_where_the_rest_learns(tmp_path: Path) -> None:
    X = drawn(600, 8)
    y = (X[:, 0] > 0).long()
    torch.manual_seed(0)
    features, head = nn.Sequential(nn.Linear(8, 300), nn.ReLU()), nn.Linear(300, 2)
    features.requires_grad_(False)
    net = nn.Sequential(features, head)

    def call(x: Tensor) -> Tensor:
        with torch.no_grad():
            seen = features(x)
        said: Tensor = head(seen)
        return said

    data = ((X[:480], y[:480]), (X[480:], y[480:]))
    run = watched(net, *data, F.cross_entropy, tmp_path, lr=0.02, epochs=20, parameters=head.parameters(), call=call)
    assert causes(run) == []
