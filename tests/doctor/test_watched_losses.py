"""Losses that are plain functions, logged as numbers: read from ``backward()`` and the gradient at the outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fogline
from fogline.doctor.recovered import recover
from fogline.run import Run

BATCH, CLASSES = 32, 4


def rows(count: int = 640) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(count, 8, generator=generator)
    return X, (X[:, 0] > 0).long() * 2 + (X[:, 1] > 0).long()


def net(outputs: int = CLASSES, *ends: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, outputs), *ends)


def watched(
    tmp_path: Path,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    model: nn.Module | None = None,
    make: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.SGD(p, lr=0.05),
    by_class: bool = False,
    each: int = 1,
    epochs: int = 3,
) -> Run:
    """A loop that logs a number: nothing but ``backward()`` shows what the loss is."""
    model = model or net()
    optimizer = make(model.parameters())
    X, y = rows()
    generator = torch.Generator().manual_seed(1)
    with fogline.watch(model, optimizer, runs=tmp_path, share=0.5) as run:
        for _ in range(epochs):
            order = y.argsort(stable=True) if by_class else torch.randperm(len(X), generator=generator)
            for k, at in enumerate(order.split(BATCH)):
                value = loss(model(X[at]), y[at])
                value.backward()
                if k % each == each - 1:
                    optimizer.step()
                    optimizer.zero_grad()
                run.log(value.item())
    return run


def causes(run: Run) -> list[str]:
    return [finding.cause for finding in run.diagnose().findings]


# -- targets from the gradient -------------------------------------------------------------------------------------

LABELS = torch.tensor([0, 2, 1, 3, 3, 0])
YES = torch.tensor([[0.0], [1.0], [1.0], [0.0], [0.0], [1.0]])
NUMBERS = torch.linspace(-2, 3, 6)[:, None]
KINDS: dict[str, tuple[Callable[[Tensor, Tensor, str], Tensor], int, Tensor, type[nn.Module]]] = {
    "classes": (lambda o, y, r: F.cross_entropy(o, y, reduction=r), 4, LABELS, nn.CrossEntropyLoss),
    "likelihood": (lambda o, y, r: F.nll_loss(o, y, reduction=r), 4, LABELS, nn.NLLLoss),
    "logits": (
        lambda o, y, r: F.binary_cross_entropy_with_logits(o, y, reduction=r), 1, YES, nn.BCEWithLogitsLoss,
    ),
    "probabilities": (lambda o, y, r: F.binary_cross_entropy(o, y, reduction=r), 1, YES, nn.BCELoss),
    "numbers": (lambda o, y, r: F.mse_loss(o, y, reduction=r), 1, NUMBERS, nn.MSELoss),
}  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_read_back_from_the_gradient(kind: str, reduction: str) -> None:
    function, width, targets, loss_fn = KINDS[kind]
    outputs = torch.randn(6, width, generator=torch.Generator().manual_seed(3))
    outputs = (
        outputs.log_softmax(1) if kind == "likelihood" else outputs.sigmoid() if kind == "probabilities" else outputs
    )
    outputs.requires_grad_(True)
    loss = function(outputs, targets, reduction)
    loss.backward()
    assert outputs.grad is not None
    found = recover(outputs, outputs.grad, loss.item())
    assert found is not None
    assert (type(found.loss_fn), found.loss_fn.reduction, found.factor) == (loss_fn, reduction, 1.0)
    assert found.plain == pytest.approx(loss.item(), rel=1e-5)
    assert torch.allclose(found.targets.double(), targets.double(), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_with_a_further_term_is_not_read(kind: str) -> None:
    function, width, targets, _ = KINDS[kind]
    outputs = torch.randn(6, width).sigmoid().requires_grad_(True)
    loss = function(outputs, targets, "mean") + 0.3 * outputs.square().mean()
    loss.backward()
    assert outputs.grad is not None
    assert recover(outputs, outputs.grad, loss.item()) is None


def test_a_loss_that_is_divided_keeps_its_factor() -> None:
    outputs = torch.randn(6, 4).requires_grad_(True)
    loss = F.cross_entropy(outputs, LABELS) / 8
    loss.backward()
    assert outputs.grad is not None
    found = recover(outputs, outputs.grad, loss.item())
    assert found is not None
    assert found.factor == pytest.approx(1 / 8, rel=1e-4)


# -- what follows from them ----------------------------------------------------------------------------------------


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).mean()


def quick(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


LOOPS: dict[str, tuple[dict[str, Any], str | None]] = {
    "sound": ({"loss": F.cross_entropy, "epochs": 12}, None),
    "softmax twice": ({"loss": lambda o, y: F.cross_entropy(o.softmax(1), y)}, "double_softmax"),
    "softmax over rows": (
        {"loss": F.nll_loss, "model": lambda: net(CLASSES, nn.LogSoftmax(0))}, "output_activation",
    ),
    "softmax of one": (
        {"loss": lambda o, y: F.binary_cross_entropy(o.softmax(1)[:, 0], (y > 1).float()), "model": lambda: net(1)},
        "softmax_single_unit",
    ),
    "each with each": ({"loss": lambda o, y: squared(o, y.float()), "model": lambda: net(1)}, "shape_broadcast"),
    "sorted rows": ({"loss": F.cross_entropy, "by_class": True}, "unshuffled_data"),
    "undivided": ({"loss": F.cross_entropy, "each": 5}, "accumulation_scale"),
    "divided": ({"loss": lambda o, y: F.cross_entropy(o, y) / 4, "each": 4, "make": quick, "epochs": 12}, None),
    "crawling": (
        {"loss": F.cross_entropy, "make": lambda p: torch.optim.Adam(p, lr=1e-7), "epochs": 8}, "lr_too_low",
    ),
    "out of reach": (
        {"loss": lambda o, y: squared(o, y[:, None] * 3.0), "model": lambda: net(1, nn.Tanh())}, "output_activation",
    ),
    "no activation": (
        {"loss": F.cross_entropy, "model": lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, CLASSES))},
        "missing_activation",
    ),
    "one label": ({"loss": lambda o, y: F.cross_entropy(o, y * 0)}, "constant_target"),
    "another's targets": (
        {"loss": lambda o, y: F.cross_entropy(o, y[torch.randperm(len(y))]), "epochs": 8}, "shuffled_labels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPS)
def test_loops_whose_loss_is_a_function(name: str, tmp_path: Path) -> None:
    given, cause = LOOPS[name]
    torch.manual_seed(0)
    model = given["model"]() if "model" in given else None
    found = causes(watched(tmp_path, **(given | {"model": model})))
    assert found[:1] == ([] if cause is None else [cause])


def test_a_loss_of_weights_alone(tmp_path: Path) -> None:
    model = net()

    def penalty(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.detach(), targets) + sum(p.square().sum() for p in model.parameters())

    assert causes(watched(tmp_path, penalty, model=model))[0] == "detached_graph"


def test_a_logarithm_of_zero_in_a_loss(tmp_path: Path) -> None:
    def likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
        return -(outputs * 1e4).softmax(1)[torch.arange(len(targets)), targets].log().mean()

    assert causes(watched(tmp_path, likelihood))[0] == "log_of_zero"


def test_an_opponent_that_gets_better_is_no_divergence(tmp_path: Path) -> None:
    """The loss of a generator rises as its critic learns."""
    maker, critic = net(2), nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
    first, second = torch.optim.Adam(maker.parameters(), 1e-4), torch.optim.Adam(critic.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    with fogline.watch(maker, first, runs=tmp_path, share=0.5) as run:
        for _ in range(120):
            real, made = torch.randn(32, 2, generator=generator) + 3, maker(torch.randn(32, 8, generator=generator))
            second.zero_grad()
            (F.softplus(-critic(real)).mean() + F.softplus(critic(made.detach())).mean()).backward()
            second.step()
            first.zero_grad()
            loss = F.softplus(-critic(made)).mean()
            loss.backward()
            first.step()
            run.log(loss)
    assert float(run.steps["loss"][-1]) > 2 * float(run.steps["loss"][0])
    assert causes(run) == []


class Experts(nn.Module):
    """Answers of several, weighed by a softmax: what it says has no bounds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.experts = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.gate(x).softmax(1) * self.experts(x)).sum(1)


def test_a_softmax_that_weighs_experts_is_not_the_end_of_the_model(tmp_path: Path) -> None:
    assert causes(watched(tmp_path, lambda o, y: F.mse_loss(o, 1.5 * y - 2.0), model=Experts(), epochs=1)) == []
    ended = net(1, nn.Sigmoid())
    assert "output_activation" in causes(
        watched(tmp_path, lambda o, y: F.mse_loss(o[:, 0], 1.5 * y - 2.0), model=ended, epochs=1)
    )


def test_pairs_of_which_the_first_is_always_to_win_have_no_best_constant(tmp_path: Path) -> None:
    run = watched(tmp_path, lambda o, y: -F.logsigmoid(o).mean(), model=net(1), epochs=1)
    assert run.info["loss_over_constant"] is None


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_layers_with_a_parametrisation_are_watched(norm: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Linear(8, 16)), nn.ReLU(), norm(nn.Linear(16, CLASSES)))
    assert causes(watched(tmp_path, F.cross_entropy, model=model, epochs=1)) == []


def test_layers_without_a_bend_that_fit_a_curve(tmp_path: Path) -> None:
    """One number in, one number out: that is no auto-encoder, whose layers may be straight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    X = torch.linspace(-3, 3, 64)[:, None]
    with fogline.watch(model, optimizer, runs=tmp_path) as run:
        for _ in range(20):
            optimizer.zero_grad()
            loss = F.mse_loss(model(X), X.sin())
            loss.backward()
            optimizer.step()
            run.log(loss)
    assert causes(run)[0] == "missing_activation"
