"""The four problems of the overhead benchmark, and the hand-written PyTorch loop each trainer is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import timing

VOCABULARY = 96


@dataclass(frozen=True)
class Problem:
    """A model, its data in memory and the recipe every contender follows.

    The number of examples is a multiple of the batch size, so that no contender has a short batch to treat apart.
    Learning rates are far too small to train with: a network whose loss has gone to zero has denormal numbers in its
    gradients, which are several times slower, and the benchmark would measure who has trained for longer.
    """

    name: str
    title: str
    make_model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    inputs: Tensor
    targets: Tensor
    batch_size: int
    optimizer: str  # sgd, momentum or adamw
    lr: float
    planned_steps: int  # the length of the run that fit is asked for; it is not run to its end
    seconds: float = 0.15  # the length of a slice
    chunked: bool = False  # whether several steps in one graph are a sensible thing to compile

    @property
    def steps_per_epoch(self) -> int:
        return len(self.inputs) // self.batch_size

    def model(self) -> nn.Module:
        """A fresh model with the same weights every time."""
        torch.manual_seed(0)
        return self.make_model()

    def make_optimizer(self, parameters: Any, **implementation: bool) -> torch.optim.Optimizer:
        """PyTorch's own optimizer; ``implementation`` is one of fused, foreach."""
        return self.optimizer_class(parameters, **self.optimizer_options, **implementation)

    @property
    def optimizer_class(self) -> Any:
        return torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.SGD

    @property
    def optimizer_options(self) -> dict[str, Any]:
        return {
            "sgd": {"lr": self.lr},
            "momentum": {"lr": self.lr, "momentum": 0.9},
            "adamw": {"lr": self.lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
        }[self.optimizer]


class SmallCNN(nn.Module):
    """Two convolutions and a linear layer on 28x28 images."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32 * 7 * 7, 10)

    def forward(self, images: Tensor) -> Tensor:  # (B, 1, 28, 28) -> (B, 10)
        hidden = F.max_pool2d(F.relu(self.first(images)), 2)
        hidden = F.max_pool2d(F.relu(self.second(hidden)), 2)
        return self.head(hidden.flatten(1))


class Block(nn.Module):
    """A pre-norm transformer block with causal attention and no dropout."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, width)
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


class SmallLM(nn.Module):
    """A two-layer causal transformer over tokens; logits as (B, vocabulary, T), as cross-entropy wants them."""

    def __init__(self, width: int = 128, length: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)
        self.register_buffer("places", torch.arange(length), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T) -> (B, vocabulary, T)
        x = self.tokens(tokens) + self.positions(self.places)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2)


def linear() -> Problem:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6400, 20, generator=generator)
    targets = inputs @ torch.randn(20, 1, generator=generator) + 0.1 * torch.randn(6400, 1, generator=generator)
    return Problem(
        "linear", "linear regression, 20 features, batch 64, SGD", partial(nn.Linear, 20, 1), nn.MSELoss(),
        inputs, targets, 64, "sgd", 0.01, planned_steps=10_000_000, chunked=True,
    )  # fmt: skip


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images[:1792] / 16, dtype=torch.float32), torch.tensor(labels[:1792], dtype=torch.int64)


def _mlp_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def mlp() -> Problem:
    inputs, targets = _digits()
    return Problem(
        "mlp", "MLP 64-128-128-10 on digits, batch 64, AdamW", _mlp_model, nn.CrossEntropyLoss(),
        inputs, targets, 64, "adamw", 1e-7, planned_steps=2_000_000, chunked=True,
    )  # fmt: skip


def cnn() -> Problem:
    inputs, targets = _digits()
    images = F.interpolate(inputs.view(-1, 1, 8, 8), size=28, mode="bilinear").contiguous()
    return Problem(
        "cnn", "small CNN on digits at 28x28, batch 128, SGD with momentum", SmallCNN, nn.CrossEntropyLoss(),
        images, targets, 128, "momentum", 1e-6, planned_steps=50_000, seconds=0.25,
    )  # fmt: skip


def transformer() -> Problem:
    generator = torch.Generator().manual_seed(0)
    chain = torch.softmax(2.0 * torch.randn(VOCABULARY, VOCABULARY, generator=generator), dim=1)
    tokens = torch.randint(VOCABULARY, (512, 1), generator=generator)
    for _ in range(64):
        following = torch.multinomial(chain[tokens[:, -1]], 1, generator=generator)
        tokens = torch.cat([tokens, following], dim=1)
    return Problem(
        "transformer", "2-layer transformer LM, d 128, sequence 64, batch 32, AdamW", SmallLM, nn.CrossEntropyLoss(),
        tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), 32, "adamw", 1e-7, planned_steps=20_000, seconds=0.4,
    )  # fmt: skip


PROBLEMS: dict[str, Callable[[], Problem]] = {"linear": linear, "mlp": mlp, "cnn": cnn, "transformer": transformer}


def batch_by_batch(problem: Problem) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end: a new permutation every epoch, the rows of a batch gathered when it is due."""
    inputs, targets, size = problem.inputs, problem.targets, problem.batch_size
    while True:
        for index in torch.randperm(len(inputs)).split(size):
            yield inputs.index_select(0, index), targets.index_select(0, index)


def epoch_by_epoch(problem: Problem) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end: all rows gathered once an epoch, batches are views (twice the memory)."""
    inputs, targets, size = problem.inputs, problem.targets, problem.batch_size
    while True:
        order = torch.randperm(len(inputs))
        yield from zip(
            inputs.index_select(0, order).split(size), targets.index_select(0, order).split(size), strict=True
        )


BATCHES = {"rows gathered by batch": batch_by_batch, "rows gathered by epoch": epoch_by_epoch}
IMPLEMENTATIONS: dict[str, dict[str, bool]] = {
    "fused": {"fused": True}, "foreach": {"foreach": True}, "for-loop": {"foreach": False}
}  # fmt: skip


def raw_loop(
    problem: Problem, batches: Callable[[Problem], Iterator[tuple[Tensor, Tensor]]], **implementation: bool
) -> timing.Contender:
    """The loop anybody would write by hand, without logging, checks or signals."""
    model, loss_function = problem.model(), problem.loss
    optimizer = problem.make_optimizer(model.parameters(), **implementation)
    source = batches(problem)

    def run(steps: int) -> int:
        for _ in range(steps):
            inputs, targets = next(source)
            optimizer.zero_grad(set_to_none=True)
            loss_function(model(inputs), targets).backward()
            optimizer.step()
        return steps

    return timing.Contender(run)


def best_raw_loop(problem: Problem, rounds: int = 7) -> timing.Contender:
    """The fastest of two ways to cut batches and three implementations of the optimizer, by measurement."""
    variants = {
        f"{how}, {which} optimizer": raw_loop(problem, batches, **implementation)
        for how, batches in BATCHES.items()
        for which, implementation in IMPLEMENTATIONS.items()
    }
    costs = timing.interleave(variants, rounds=rounds, seconds=problem.seconds / 3)
    name = min(costs, key=lambda variant: timing.microseconds(costs[variant]).median)
    return timing.Contender(variants[name].run, note=name)
