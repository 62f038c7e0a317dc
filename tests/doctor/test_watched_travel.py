"""Watched loops that learned little: how far their weights went, what their first rows tell, what they are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fogline
from fogline.doctor.first_batch import FirstBatch
from fogline.doctor.recovered import recover
from fogline.doctor.scaling import InputExcess
from fogline.doctor.seen_rows import SeenRows
from fogline.doctor.strides import StrideLook
from fogline.run import Run

ROWS, BATCH, CLASSES = 640, 32, 4
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(ROWS, 8, generator=generator)
    return X, (X[:, 0] > 0).long() * 2 + (X[:, 1] > 0).long()


def net(outputs: int = CLASSES, *ends: nn.Module, hidden: int = 32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, outputs), *ends)


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def unreadable(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A loss of two views of the same rows: nobody knows what its best constant answer is."""
    one, other = (F.normalize(model(x + 0.1 * torch.randn_like(x)), dim=1) for _ in range(2))
    return F.cross_entropy(one @ other.mT / 0.2, torch.arange(len(x)))


def watched(
    tmp_path: Path,
    loss: Loss = cross_entropy,
    *,
    model: nn.Module | None = None,
    make: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.Adam(p, lr=0.01),
    data: tuple[Tensor, Tensor] | None = None,
    schedule: Callable[[Any], Any] | None = None,
    held_out: Callable[[nn.Module], Tensor] | None = None,
    before_epoch: Callable[[nn.Module, int], Any] = lambda model, epoch: None,
    epochs: int = 6,
) -> Run:
    model = model or net()
    optimizer = make(model.parameters())
    scheduler = None if schedule is None else schedule(optimizer)
    X, y = data or rows()
    generator = torch.Generator().manual_seed(1)
    with fogline.watch(model, optimizer, scheduler=scheduler, runs=tmp_path, share=0.5) as run:
        for epoch in range(epochs):
            before_epoch(model, epoch)
            for at in torch.randperm(len(X), generator=generator).split(BATCH):
                optimizer.zero_grad()
                value = loss(model, X[at], y[at])
                value.backward()
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
                run.log(value)
            if held_out is not None:
                with torch.no_grad():
                    run.log(valid=held_out(model))
    return run


def causes(run: Run) -> list[str]:
    return [finding.cause for finding in run.diagnose().findings]


# -- how far the weights went --------------------------------------------------------------------------------------


def test_a_step_is_measured_against_the_weights_it_moves() -> None:
    weights = nn.Parameter(torch.tensor([3.0, 4.0]))
    look = StrideLook([weights])
    look.before_step()
    with torch.no_grad():
        weights += torch.tensor([0.0, 1.0])
    look.after_step(0)
    look.after_step(1)
    (stride,) = look.measured()
    assert (stride.step, stride.weights, stride.moved) == (0, 5.0, 1.0)


@pytest.mark.parametrize(
    ("loss", "rate", "found"),
    [
        (cross_entropy, 1e-6, ["lr_too_low"]),
        (cross_entropy, 1.0, ["lr_too_high"]),
        (cross_entropy, 0.01, []),
        (unreadable, 1e-7, ["lr_too_low"]),
        (unreadable, 1.0, ["lr_too_high"]),
        (unreadable, 0.003, []),
    ],
)
def test_steps_too_short_and_too_long(loss: Loss, rate: float, found: list[str], tmp_path: Path) -> None:
    assert causes(watched(tmp_path, loss, make=lambda p: torch.optim.Adam(p, lr=rate))) == found


def test_weights_that_begin_at_zero_may_leap(tmp_path: Path) -> None:
    model = nn.Linear(8, CLASSES)
    nn.init.zeros_(model.weight)
    X, _ = rows()
    y = torch.randint(0, CLASSES, (ROWS,), generator=torch.Generator().manual_seed(2))
    assert "lr_too_high" not in causes(watched(tmp_path, model=model, data=(X, y)))


def test_a_few_steps_are_no_run(tmp_path: Path) -> None:
    X, y = rows()
    short = watched(tmp_path, data=(X[: 3 * BATCH], y[: 3 * BATCH]), make=lambda p: torch.optim.SGD(p, 1e-5), epochs=1)
    assert "lr_too_low" not in causes(short)


def test_a_warm_up_longer_than_the_run(tmp_path: Path) -> None:
    def warm_up(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 1e6)

    assert causes(watched(tmp_path, schedule=warm_up))[:1] == ["bad_schedule"]


def test_a_long_step_before_the_first_nan(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(6)), nn.Linear(8, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 3, generator=torch.Generator().manual_seed(0))
    run = watched(tmp_path, lambda m, x, y: m(x).square().mean(), model=model, make=lambda p: torch.optim.SGD(p, 1e-2))
    assert causes(run)[0] in ("exploding_gradient", "lr_too_high")


# -- the best constant answer --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss_fn", "targets", "constant"),
    [
        (nn.L1Loss(), torch.tensor([0.0, 0.0, 0.0, 4.0] * 4), 1.0),  # of the median
        (nn.MSELoss(), torch.tensor([0.0, 4.0] * 8), 16 / 3.75),  # the variance of a sample
        (nn.HuberLoss(), torch.tensor([-9.0, 9.0] * 8), 8.5),  # anywhere between
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])), torch.tensor([0, 0, 0, 1] * 4), math.log(2)),
        (nn.CrossEntropyLoss(ignore_index=7), torch.tensor([0, 1, 7, 7] * 4), math.log(2)),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)), torch.tensor([0.0, 0.0, 0.0, 1.0] * 4), 1.5 * math.log(2)),
    ],
)
def test_the_best_constant_answer(loss_fn: nn.Module, targets: Tensor, constant: float) -> None:
    first = FirstBatch(loss_fn, None, None).and_also(0, targets)
    share = first.share_left(torch.full((100,), 2 * constant).double().numpy())
    assert share == pytest.approx(2, rel=0.01)


def test_targets_of_thousands_under_an_absolute_loss(tmp_path: Path) -> None:
    X, _ = rows()
    y = 5000 + 1000 * X[:, :1]
    loss_fn = nn.L1Loss()
    model = net(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    with fogline.watch(model, optimizer, loss_fn=loss_fn, runs=tmp_path, share=0.5) as run:
        for _ in range(5):
            for at in torch.arange(ROWS).split(BATCH):
                optimizer.zero_grad()
                loss = loss_fn(model(X[at]), y[at])
                loss.backward()
                optimizer.step()
                run.log(loss)
    assert causes(run)[0] == "unscaled_target"


# -- what is added to a loss, and its sign -------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "found"), [(1.0, ["regularization_too_strong"]), (1e-4, [])])
def test_a_penalty_beside_the_loss(factor: float, found: list[str], tmp_path: Path) -> None:
    def penalised(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y) + factor * sum(p.abs().sum() for p in model.parameters())

    assert causes(watched(tmp_path, penalised)) == found


@pytest.mark.parametrize("maximize", [False, True])
def test_the_sign_of_a_likelihood(maximize: bool, tmp_path: Path) -> None:
    run = watched(
        tmp_path,
        lambda model, x, y: -F.nll_loss(model(x), y),
        model=net(CLASSES, nn.LogSoftmax(1)),
        make=lambda p: torch.optim.Adam(p, lr=0.01, maximize=maximize),
    )
    assert causes(run)[:1] == ([] if maximize else ["loss_mismatch"])


def test_targets_at_the_ends_of_a_sigmoid_are_read_back_as_they_are() -> None:
    outputs = torch.rand(64, 4, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    targets = torch.tensor([0.0, 1.0, 0.3, 1.0]).expand(64, 4)
    loss = F.mse_loss(outputs, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    found = recover(outputs, outputs.grad, loss.item())
    assert found is not None
    assert (float(found.targets.min()), float(found.targets.max())) == (0, 1)


# -- the rows that were seen ---------------------------------------------------------------------------------------


def test_classical_learners_tell_rows_from_shuffled_ones() -> None:
    X, y = rows()
    sound, shuffled, copies = SeenRows(), SeenRows(), SeenRows()
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))
    for at in torch.arange(384).split(BATCH):
        sound.add((X[at],), y[at])
        shuffled.add((X[at],), y[order[at]])
        copies.add((X[:BATCH],), y[:BATCH])
    told = [seen.tell(nn.CrossEntropyLoss()) for seen in (sound, shuffled, copies)]
    assert told[0] is not None
    assert told[1] is not None
    assert told[0]["score"] > 0.6 > 0.2 > told[1]["score"]
    assert told[2] is None  # a batch that comes again and again is too few rows


def test_a_net_without_a_bend_is_not_taken_for_shuffled_rows(tmp_path: Path) -> None:
    X, _ = rows()
    y = (X[:, 0] * X[:, 1] > 0).long()
    data = X[:, :2], y
    assert causes(watched(tmp_path, model=nn.Linear(2, 2), data=data)) == ["underfitting"]
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))
    assert causes(watched(tmp_path, model=nn.Linear(2, 2), data=(X[:, :2], y[order]))) == ["shuffled_labels"]


def test_one_row_of_twenty_is_of_the_other_class(tmp_path: Path) -> None:
    X, _ = rows()
    X, y = X.repeat(3, 1), (torch.arange(3 * ROWS) % 20 == 0).long()
    run = watched(tmp_path, data=(X, y), make=lambda p: torch.optim.SGD(p, lr=0.02), epochs=5)
    assert causes(run) == ["class_imbalance"]
    share, seen = run.info["rarest_class"]
    assert share == pytest.approx(0.1, abs=0.04)
    assert seen >= 20


@pytest.mark.parametrize(("factor", "found"), [(30.0, ["train_valid_mismatch"]), (1.0, [])])
def test_held_out_rows_in_other_units(factor: float, found: list[str], tmp_path: Path) -> None:
    X, y = rows()
    held_out = 20 + factor * X if factor > 1 else X
    run = watched(tmp_path, held_out=lambda model: F.cross_entropy(model(held_out), y))
    assert causes(run)[:1] == found


def test_a_held_out_loss_summed_over_batches_is_in_another_unit(tmp_path: Path) -> None:
    X, y = rows()
    run = watched(tmp_path, held_out=lambda model: F.cross_entropy(model(X), y, reduction="sum"))
    assert causes(run) == []


# -- what the model is made of -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda: nn.Sequential(nn.Dropout(0.95), *net(), nn.Dropout(0.95)), "regularization_too_strong"),
        (lambda: nn.Sequential(*net(1), nn.ReLU(), nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, CLASSES)), "bottleneck"),
    ],
)
def test_what_explains_a_loop_that_learns_little(make: Any, cause: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert cause in causes(watched(tmp_path, model=make(), make=lambda p: torch.optim.Adam(p, lr=3e-4)))


@pytest.mark.parametrize(
    ("decay", "rate", "said"),
    [(3.0, 0.01, True), (1e-4, 0.01, False), (0.01, 2.0, False)],
)
def test_weights_that_a_decay_draws_to_zero(decay: float, rate: float, said: bool, tmp_path: Path) -> None:
    """Under a loss whose best constant answer nobody knows; the usual decay does so where steps are far too long."""
    X = rows()[0]

    def ranked(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        better = torch.where(y > y.roll(1), 1.0, -1.0)
        said = model(x).squeeze(1)
        return F.margin_ranking_loss(said, said.roll(1), better, margin=0.5)

    def make(parameters: Any) -> torch.optim.Optimizer:
        kind = torch.optim.AdamW if rate > 1 else torch.optim.Adam
        return kind(parameters, lr=rate, weight_decay=decay)

    run = watched(tmp_path, ranked, model=net(1), make=make, data=(X, X[:, 0] + X[:, 1]), epochs=15)
    assert ("regularization_too_strong" in causes(run)) is said


class Rebuilder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(8, 4), nn.Linear(4, 8)


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("late", [True, False])
def test_parts_that_a_loop_calls_by_name(cut: bool, late: bool, tmp_path: Path) -> None:
    X, model = rows()[0], Rebuilder()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.5) as run:
        for _ in range(4):
            for x in X.split(BATCH):
                if not late:
                    run.forward(x)
                code = model.encoder(x)
                loss = F.mse_loss(model.decoder(torch.tensor(code.tolist()) if cut else code), x)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if late:
                    run.forward(x)
                run.log(loss)
    assert causes(run) == (["detached_graph"] if cut else [])


@pytest.mark.parametrize(("times", "left", "said"), [(50.0, 0.4, True), (5.0, 0.4, False), (50.0, 0.1, False)])
def test_numbers_far_beyond_scale_where_much_is_left(times: float, left: float, said: bool) -> None:
    """More than half is learned, and less than most have to learn."""
    targets = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    first = FirstBatch(nn.MSELoss(), InputExcess(times, 1.0, 1.0), None, {0: (targets,)})
    found = first.explains(99, np.full(100, left * float(targets.var())), chooses=True)
    assert [finding.cause for finding in found] == ["unscaled_input"] * said


def test_weights_that_saturate_are_named_where_nothing_was_learned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, CLASSES))
    for layer in model[:3:2]:
        nn.init.normal_(layer.weight, std=20.0)
    run = watched(tmp_path, model=model, make=lambda p: torch.optim.SGD(p, lr=0.001), epochs=2)
    assert causes(run)[0] in ("saturated_units", "bad_init")


def test_a_layer_that_thaws_is_frozen_on_purpose(tmp_path: Path) -> None:
    def thaw(model: nn.Module, epoch: int) -> None:
        model.get_submodule("0").requires_grad_(epoch > 1)

    model = net()
    model[0].requires_grad_(False)
    assert causes(watched(tmp_path, model=model, before_epoch=thaw)) == []


def test_low_rank_weights_beside_frozen_ones_need_no_bend(tmp_path: Path) -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = net().requires_grad_(False)
            self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, CLASSES, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.up(self.down(x))  # type: ignore[no-any-return]

    run = watched(
        tmp_path, model=Adapted(), make=lambda p: torch.optim.Adam([q for q in p if q.requires_grad], lr=0.01)
    )
    assert "missing_activation" not in causes(run)


# -- what nothing moves, and what is gone --------------------------------------------------------------------------


def test_a_divergence_below_zero_was_given_no_logarithms(tmp_path: Path) -> None:
    X, y = rows()
    shares = (F.one_hot(y, CLASSES).float() + 0.5) / 3

    def trained(given: Callable[[Tensor], Tensor]) -> Run:
        model, criterion = net(), nn.KLDivLoss(reduction="batchmean")
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        with fogline.watch(model, optimizer, loss_fn=criterion, runs=tmp_path) as run:
            for _ in range(4):
                for at in torch.arange(ROWS).split(BATCH):
                    optimizer.zero_grad()
                    value = criterion(given(model(X[at])), shares[at])
                    value.backward()
                    optimizer.step()
                    run.log(value)
        return run

    assert causes(trained(lambda scores: scores.softmax(1)))[0] == "loss_mismatch"
    assert causes(trained(lambda scores: scores.log_softmax(1))) == []


@pytest.mark.parametrize(("unit", "found"), [(1.0, []), (1e-18, ["epsilon_underflow"])])
def test_a_gradient_below_the_epsilon(unit: float, found: list[str], tmp_path: Path) -> None:
    run = watched(tmp_path, lambda model, x, y: unit * unreadable(model, x, y))
    assert causes(run) == found


class Pairs(nn.Module):
    """Products of two tables."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Embedding(CLASSES, 4), nn.Embedding(CLASSES, 4)
        for table in (self.one, self.other):
            nn.init.normal_(table.weight, std=deviation)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.one(a) * self.other(b)).sum(1)


@pytest.mark.parametrize(("deviation", "found"), [(0.1, []), (0.0, ["symmetric_init"])])
def test_factors_that_are_all_zero(deviation: float, found: list[str], tmp_path: Path) -> None:
    def ranked(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        other = (y + 1) % CLASSES
        return -F.logsigmoid(model(y, y) - model(y, other)).mean()

    run = watched(tmp_path, ranked, model=Pairs(deviation), make=lambda p: torch.optim.Adam(p, lr=0.05))
    assert causes(run) == found


def test_how_long_a_rate_is_gone_is_counted_in_steps(tmp_path: Path) -> None:
    """Of a long loop that is not ours most of what is recorded is of its beginning."""

    def halved(gamma: float) -> Run:
        X, y = rows()
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
        with fogline.watch(model, optimizer, scheduler=scheduler, runs=tmp_path, share=0.001) as run:
            for _ in range(60):
                for at in torch.arange(ROWS).split(BATCH):
                    optimizer.zero_grad()
                    value = cross_entropy(model, X[at], y[at])
                    value.backward()
                    optimizer.step()
                    run.log(value)
                scheduler.step()
        return run

    assert "bad_schedule" in causes(halved(0.5))
    assert "bad_schedule" not in causes(halved(0.99))


@pytest.mark.parametrize(("reward", "found"), [(-1.0, ["loss_mismatch"]), (-0.37, []), (-1.24, [])])
def test_a_reward_below_zero_is_no_minus_before_the_loss(reward: float, found: list[str], tmp_path: Path) -> None:
    def rewarded(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return reward * F.cross_entropy(model(x), y)

    run = watched(tmp_path, rewarded, make=lambda p: torch.optim.SGD(p, lr=1e-3), epochs=1)
    assert [cause for cause in causes(run) if cause == "loss_mismatch"] == found
