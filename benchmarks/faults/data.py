"""Splitting and standardising, and the data of the calibration half."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor

from faults.program import Pair


class Sets(NamedTuple):
    """Three disjoint sets, and the units the inputs and targets were measured in (mean, deviation)."""

    train: Pair
    valid: Pair
    test: Pair
    units: tuple[Tensor, Tensor] = (torch.zeros(()), torch.ones(()))
    target_units: tuple[Tensor, Tensor] = (torch.zeros(()), torch.ones(()))


def split(x: Tensor, y: Tensor, train: int, valid: int, *, inputs: bool = True, targets: bool = False) -> Sets:
    """The rows in a fixed random order: first the training rows, then the held-out ones, the rest for the test.

    Args:
        x, y: inputs, and labels (rows,) or numbers (rows, 1).
        train, valid: numbers of rows.
        inputs, targets: whether they are standardised by the training rows.
    """
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    units, target_units = Sets._field_defaults["units"], Sets._field_defaults["target_units"]
    if inputs:
        units = x[:train].mean(0), x[:train].std(0).clamp_min(1e-6)
        x = (x - units[0]) / units[1]
    if targets:
        target_units = y[:train].mean(0), y[:train].std(0)
        y = (y - target_units[0]) / target_units[1]
    cuts = [slice(0, train), slice(train, train + valid), slice(train + valid, None)]
    train_rows, valid_rows, test_rows = ((x[cut], y[cut]) for cut in cuts)
    return Sets(train_rows, valid_rows, test_rows, units, target_units)


def tensors(x: np.ndarray, y: np.ndarray) -> Pair:
    """Inputs as float32; labels as int64 (rows,), numbers as float32 (rows, 1)."""
    labels = np.issubdtype(y.dtype, np.integer)
    return torch.tensor(x).float(), torch.tensor(y).long() if labels else torch.tensor(y).float()[:, None]


@cache
def wine() -> Sets:
    """178 wines by 13 measurements, three growers."""
    return split(*tensors(*datasets.load_wine(return_X_y=True)), 100, 30)


@cache
def digits() -> Sets:
    """1797 handwritten digits of 8x8, values 0 to 16 brought to 0 to 1."""
    x, y = tensors(*datasets.load_digits(return_X_y=True))
    sets = split(x / 16, y, 1000, 250, inputs=False)
    return sets._replace(units=(torch.zeros(()), torch.tensor(255.0)))


@cache
def digit_images() -> Sets:
    """The same as images (rows, 1, 8, 8)."""
    sets = digits()
    train, valid, test = ((x.reshape(-1, 1, 8, 8), y) for x, y in sets[:3])
    return Sets(train, valid, test, sets.units, sets.target_units)


@cache
def diabetes() -> Sets:
    """442 patients by 10 measurements, the progression of the disease after a year (25 to 346)."""
    x, y = datasets.load_diabetes(return_X_y=True, scaled=False)
    return split(*tensors(x, y.astype(np.float64)), 260, 80, targets=True)


@cache
def moons() -> Sets:
    """Two interleaved half circles, labels 0 and 1 as a column of floats."""
    x, y = datasets.make_moons(900, noise=0.2, random_state=0)
    return split(*tensors(x, y.astype(np.float64)), 300, 100)


@cache
def sine() -> Sets:
    """y = sin(3 x) + noise for x in -2 to 2."""
    source = np.random.default_rng(1)
    x = source.uniform(-2, 2, (800, 1))
    return split(*tensors(x, np.sin(3 * x[:, 0]) + 0.1 * source.normal(size=800)), 300, 100)


@cache
def waves() -> Sets:
    """Sine, square and saw-tooth waves of random phase with noise: (rows, 20, 1), three classes."""
    source = np.random.default_rng(2)
    y = source.integers(0, 3, 900)
    angle = np.linspace(0, 4 * np.pi, 20)[None] + source.uniform(0, 2 * np.pi, (900, 1))
    shapes = np.stack([np.sin(angle), np.sign(np.sin(angle)), (angle / np.pi) % 2 - 1])
    x = shapes[y, np.arange(900)] + 0.15 * source.normal(size=(900, 20))
    return split(*tensors(x[:, :, None], y), 400, 120, inputs=False)


@cache
def majority() -> Sets:
    """Sequences of 12 tokens out of 4; the class is which of the first three is most frequent, ties to the lowest."""
    source = np.random.default_rng(3)
    tokens = source.integers(0, 4, (1400, 12))
    counts = np.stack([(tokens == k).sum(1) for k in range(3)], 1)
    return split(torch.tensor(tokens), torch.tensor(counts.argmax(1)), 700, 150, inputs=False)


@cache
def xor() -> Sets:
    """The four rows everybody starts with; tested on points near the corners."""
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    source = torch.Generator().manual_seed(4)
    near = x.repeat(25, 1) + 0.1 * torch.randn(100, 2, generator=source)
    others = x.repeat(5, 1) + 0.1 * torch.randn(20, 2, generator=source)
    return Sets((x, y), (others, y.repeat(5, 1)), (near, y.repeat(25, 1)))
