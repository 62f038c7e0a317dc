"""Losses that the graph names, with targets that are read back or found among what the loop has in its hands."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fogline
from fogline.doctor.graphs import divergence_of_probabilities, loss_on
from fogline.doctor.recovered import read_back, recover
from fogline.doctor.seen_rows import SeenRows
from fogline.run import Run

Loss = Callable[[Tensor, Tensor], Tensor]
ABSOLUTE: dict[str, Loss] = {
    "l1": F.l1_loss,
    "own l1": lambda o, y: (y - o).abs().mean(),
    "huber": F.huber_loss,
    "huber, wide": lambda o, y: F.huber_loss(o, y, delta=50.0),
    "smooth l1": lambda o, y: F.smooth_l1_loss(o, y, beta=0.5),
}


def rows(count: int = 640, inputs: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(count, inputs, generator=generator)
    return X, X[:, :1] - X[:, 1:2] + 0.1 * torch.randn(count, 1, generator=generator)


def net(outputs: int = 1, *ends: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, outputs), *ends)


def watched(
    tmp_path: Path,
    loss: Callable[[Any, Tensor], Tensor],
    targets: Tensor,
    *,
    model: nn.Module | None = None,
    make: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.Adam(p, lr=2e-3),
    batch: int = 32,
    epochs: int = 6,
    shuffled: bool = True,
) -> Run:
    """A loop whose targets have no name of their own, and that logs a number."""
    model = model or net()
    optimizer = make(model.parameters())
    X, y = rows()[0], targets
    generator = torch.Generator().manual_seed(1)
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.5) as run:
        for _ in range(epochs):
            order = torch.randperm(len(X), generator=generator) if shuffled else torch.arange(len(X))
            for at in order.split(batch):
                optimizer.zero_grad()
                value = loss(model(X[at]), y[at])
                value.backward()
                optimizer.step()
                run.log(value.item())
    return run


def causes(run: Run) -> list[str]:
    return [finding.cause for finding in run.diagnose().findings]


# -- what the graph says the loss is -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ABSOLUTE)
@pytest.mark.parametrize("added", [False, True], ids=["alone", "with a penalty"])
def test_targets_are_found_in_sight_and_proven_by_the_gradient(kind: str, added: bool) -> None:
    inputs, targets = rows(32)
    targets = 10 * targets
    model = net()
    outputs = model(inputs)
    outputs.retain_grad()
    loss = ABSOLUTE[kind](outputs, targets)
    if added:
        loss = loss + sum(p.abs().sum() for p in model.parameters())
    loss.backward()
    found = loss_on(loss, outputs)
    assert found is not None
    assert outputs.grad is not None
    assert found[1] is not added
    value = None if added else loss.item()
    back = read_back(found[0], outputs, outputs.grad, value, lambda: [inputs, targets.flip(0), targets.flatten()])
    assert back is not None
    assert torch.allclose(back.targets.float(), targets, atol=1e-4)
    if kind != "huber, wide":  # of which the gradient tells them all
        assert read_back(found[0], outputs, outputs.grad, value, lambda: [inputs, targets.flip(0)]) is None


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, y: 3 * F.l1_loss(o, y),
        lambda o, y: (o - y).abs().mean(1).max(),
        lambda o, y: F.l1_loss(o, y) + F.mse_loss(o, y),
        lambda o, y: 1 - F.mse_loss(o, y),
        lambda o, y: F.mse_loss(o[:8], y[:8]),
        lambda o, y: F.binary_cross_entropy_with_logits(o, y.sigmoid(), pos_weight=torch.tensor([2.0])),
    ],
    ids=["times three", "largest", "two", "turned", "some rows", "weighed"],
)
def test_no_other_loss_is_taken_for_one_of_these(loss: Loss) -> None:
    inputs, targets = rows(32)
    outputs = net()(inputs)
    value = loss(outputs, targets)
    value.backward()
    assert loss_on(value, outputs) is None


def test_two_tensors_that_fit_alike_tell_nothing() -> None:
    outputs = torch.zeros(32, 1, requires_grad=True)
    near, far = torch.full((32, 1), 5.0), torch.full((32, 1), 7.0)
    F.l1_loss(outputs, near).backward()
    assert outputs.grad is not None
    assert read_back(nn.L1Loss(), outputs, outputs.grad, None, lambda: [near, far]) is None
    found = read_back(nn.L1Loss(), outputs, outputs.grad, 5.0, lambda: [near, far])
    assert found is not None
    assert bool((found.targets == 5).all())


def test_rows_that_are_answered_without_doubt_do_not_hide_the_labels() -> None:
    outputs = torch.tensor([[60.0, 0.0, 40.0], [0.0, 2.0, 1.0], [0.0, 0.0, 90.0], [1.0, 0.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 2, 2, 1])
    loss = F.cross_entropy(outputs, labels)
    loss.backward()
    assert outputs.grad is not None
    found = recover(outputs, outputs.grad, loss.item())
    assert found is not None
    assert found.targets.tolist() == labels.tolist()


# -- what a loop is told -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ABSOLUTE)
def test_targets_out_of_scale_and_out_of_reach(tmp_path: Path, kind: str) -> None:
    y = rows()[1]
    assert causes(watched(tmp_path / "scale", ABSOLUTE[kind], 25_000 + 8_000 * y))[:1] == ["unscaled_target"]
    bounded = watched(tmp_path / "reach", ABSOLUTE[kind], 8 * y, model=net(1, nn.Tanh()))
    assert causes(bounded)[:1] == ["output_activation"]
    assert causes(watched(tmp_path / "sound", ABSOLUTE[kind], y, epochs=10)) == []


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = net(16)
        self.number, self.label = nn.Linear(16, 1), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x).relu()
        return self.number(h), self.label(h)


def test_one_of_several_outputs(tmp_path: Path) -> None:
    y = rows()[1]

    def loss(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        labels = (targets[:, 0] > targets.median()).long()
        return F.mse_loss(outputs[0], targets) + F.cross_entropy(outputs[1], labels)

    assert causes(watched(tmp_path / "large", loss, 25_000 + 8_000 * y, model=Several())) == ["unscaled_target"]
    assert causes(watched(tmp_path / "sound", loss, y, model=Several(), epochs=10)) == []


def test_a_penalty_on_a_squared_error(tmp_path: Path) -> None:
    def run(share: float) -> list[str]:
        model = net()

        def penalty(o: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(o, y) + share * sum(p.abs().sum() for p in model.parameters())

        return causes(watched(tmp_path / str(share), penalty, rows()[1], model=model, epochs=20))

    assert run(0.5) == ["regularization_too_strong"]
    assert run(1e-4) == []


def test_a_divergence_of_probabilities(tmp_path: Path) -> None:
    torch.manual_seed(3)
    soft = nn.Linear(8, 4)(rows()[0]).mul(3).softmax(1).detach()

    def wrong(o: Tensor, y: Tensor) -> Tensor:
        return F.kl_div(o.softmax(1), y, reduction="batchmean")

    def right(o: Tensor, y: Tensor) -> Tensor:
        return F.kl_div(o.log_softmax(1), y, reduction="batchmean")

    assert causes(watched(tmp_path / "wrong", wrong, soft, model=net(4))) == ["loss_mismatch"]
    assert causes(watched(tmp_path / "right", right, soft, model=net(4), epochs=12)) == []


def test_an_expected_reward_is_no_divergence() -> None:
    outputs, rewards = net(4)(rows(32)[0]), torch.rand(32, 4).softmax(1)
    outputs.retain_grad()
    loss = 1 - (outputs.softmax(1) * rewards).sum() / 32
    loss.backward()
    assert outputs.grad is not None
    assert not divergence_of_probabilities(loss, outputs, outputs.grad, lambda: [rewards])


def test_yes_and_no_as_plus_and_minus_one(tmp_path: Path) -> None:
    signs = rows()[1].sign()
    assert causes(watched(tmp_path, F.binary_cross_entropy_with_logits, signs))[:1] == ["loss_mismatch"]


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = net()

    def forward(self, better: Tensor, worse: Tensor) -> Tensor:
        difference: Tensor = self.score(better) - self.score(worse)
        return difference


def test_one_answer_for_all_rows(tmp_path: Path) -> None:
    none = torch.zeros(640, 1)
    assert causes(watched(tmp_path / "none", F.binary_cross_entropy_with_logits, none)) == ["constant_target"]


def test_pairs_of_which_the_first_ranks_above_have_one_answer(tmp_path: Path) -> None:
    model, (X, y) = Pair(), rows()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        for step in range(60):
            one, other = torch.randint(640, (2, 32), generator=torch.Generator().manual_seed(step))
            swap = (y[one] < y[other])[:, 0]
            better, worse = torch.where(swap, other, one), torch.where(swap, one, other)
            loss = F.binary_cross_entropy_with_logits(model(X[better], X[worse]), torch.ones(32, 1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log(loss)
    assert causes(run) == []


def test_soft_targets_are_judged_by_what_can_be_learned_of_them(tmp_path: Path) -> None:
    grey = (0.6 * rows()[1]).sigmoid()
    run = watched(tmp_path, F.binary_cross_entropy_with_logits, grey, epochs=20)
    assert run.info["loss_over_constant"] < 0.3  # of the cross-entropy itself most is the targets' entropy
    assert causes(run) == []


# -- lines ---------------------------------------------------------------------------------------------------------


class EndsInSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = net(4)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.body(x)
        return F.softmax(scores, dim=1)


def line(run: Run) -> str:
    evidence = run.diagnose().findings[0].evidence
    return next(str(item.value) for item in evidence if item.signal == "line")


def test_the_line_is_the_one_to_change(tmp_path: Path) -> None:
    y = rows()[1]
    labels = (y[:, 0] > 0).long()
    twice = watched(tmp_path / "twice", F.cross_entropy, labels, model=EndsInSoftmax())
    assert line(twice).endswith("return F.softmax(scores, dim=1)")
    each = watched(tmp_path / "each", lambda o, t: (o - t).abs().mean(), y[:, 0])
    assert line(each).endswith("value = loss(model(X[at]), y[at])")


# -- rates ---------------------------------------------------------------------------------------------------------


def test_an_optimizer_that_takes_every_batch_for_all_rows(tmp_path: Path) -> None:
    y = rows()[1]

    def rprop(p: Any) -> torch.optim.Optimizer:
        return torch.optim.Rprop(p, lr=0.01)

    torch.manual_seed(0)
    labels = (torch.tanh(rows()[0] @ torch.randn(8, 10) / 2) @ torch.randn(10, 4)).argmax(1)
    wide = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    batches = watched(tmp_path / "batches", F.cross_entropy, labels, model=wide, make=rprop, batch=8)
    assert causes(batches)[:1] == ["optimizer_mismatch"]
    assert causes(watched(tmp_path / "all", F.mse_loss, y, make=rprop, batch=640, epochs=60, shuffled=False)) == []


def test_weights_and_loss_that_stay_where_they_began(tmp_path: Path) -> None:
    def made(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
        return lambda p: torch.optim.SGD(p, lr=lr)

    first = net()(rows()[0]).detach()
    near = first.mean() + 6 * (first - first.mean())  # the first answers are somewhat better than a constant one
    still = watched(tmp_path / "still", F.mse_loss, near, make=made(1e-7))
    assert 0.5 < still.info["loss_over_constant"] < 0.99
    assert causes(still) == ["lr_too_low"]
    assert causes(watched(tmp_path / "moves", F.mse_loss, near, make=made(0.05), epochs=12)) == []


def test_few_rows_that_say_little_are_no_shuffled_labels(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(9)
    y = 0.25 * rows()[0][:, :1] + torch.randn(640, 1, generator=generator)
    torch.manual_seed(0)
    run = watched(
        tmp_path, F.mse_loss, y, model=nn.Linear(8, 1), make=lambda p: torch.optim.SGD(p, lr=0.02), batch=8, epochs=8
    )
    assert causes(run) == []


def test_batches_in_a_row_do_no_harm_where_their_rows_are_told_apart(tmp_path: Path) -> None:
    time = torch.arange(660.0)
    noise = 0.1 * torch.randn(660, generator=torch.Generator().manual_seed(6))
    windows = (torch.sin(time / 9) + 0.5 * torch.sin(time / 31) + noise).unfold(0, 21, 1)

    def run(X: Tensor, y: Tensor, folder: str) -> Run:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        with fogline.watch(model, optimizer, runs=tmp_path / folder) as run:
            for step in range(200):
                at = torch.arange(32) + 32 * (7 * step % 20)
                optimizer.zero_grad()
                loss = F.l1_loss(model(X[at]), y[at])
                loss.backward()
                optimizer.step()
                run.log(loss)
        return run

    X, y = windows[:640, :20], windows[:640, 20:]
    assert "unshuffled_data" not in causes(run(X, y, "windows"))
    order = y[:, 0].argsort()
    assert causes(run(X[order].roll(1, 1), y[order], "sorted")) == ["unshuffled_data"]


# -- classes by number ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [False, True])
def test_numbers_of_classes_have_no_order_and_amounts_have_one(tmp_path: Path, ordered: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    numbers = torch.randint(0, 8, (640,), generator=generator)
    way = torch.randn(8, generator=generator)
    places = way * torch.arange(8.0)[:, None] if ordered else 3 * torch.randn(8, 8, generator=generator)
    X = places[numbers] + 0.5 * torch.randn(640, 8, generator=generator)
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        for _ in range(100):
            at = torch.randint(640, (32,), generator=generator)
            loss = F.mse_loss(model(X[at])[:, 0], numbers[at].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log(loss)
    assert (causes(run)[:1] == ["loss_mismatch"]) is not ordered
    assert ("loss_mismatch" in causes(run)) is not ordered


def test_an_order_is_seen_however_the_amounts_spread() -> None:
    generator = torch.Generator().manual_seed(5)
    for classes in (4, 5, 7, 12):
        amounts = torch.rand(classes, generator=generator).cumsum(0)
        X = torch.stack([amounts, amounts.square(), amounts.sqrt()], 1)
        seen, at = SeenRows(), torch.arange(classes).repeat(20)
        seen.add((X[at] + 0.01 * torch.randn(len(at), 3, generator=generator),), at.double())
        assert seen.unordered() is None


@pytest.mark.parametrize("kind", ABSOLUTE)
def test_looking_for_targets_changes_no_bit(tmp_path: Path, kind: str) -> None:
    def trained(look: bool) -> list[Tensor]:
        model, (X, y) = net(), rows()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        with fogline.watch(model, optimizer, runs=tmp_path, share=0.5) if look else nullcontext() as run:
            for _ in range(40):
                at = torch.randint(640, (32,))
                optimizer.zero_grad()
                loss = ABSOLUTE[kind](model(X[at]), 30 * y[at])
                loss.backward()
                optimizer.step()
                if run is not None:
                    run.log(loss)
        return [*(p.detach().clone() for p in model.parameters()), torch.get_rng_state()]

    pairs = list(zip(trained(True), trained(False), strict=True))
    assert all(torch.equal(one, other) for one, other in pairs)
