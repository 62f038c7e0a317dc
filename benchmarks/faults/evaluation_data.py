"""The data of the evaluation half."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn import datasets

from faults.data import Sets, split, tensors


@cache
def cancer() -> Sets:
    """569 tumours by 30 measurements; malignant 0, benign 1, as a column of floats."""
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return split(*tensors(x, y.astype(np.float64)), 300, 100)


@cache
def iris() -> Sets:
    """150 flowers by 4 measurements, three species."""
    return split(*tensors(*datasets.load_iris(return_X_y=True)), 80, 25)


@cache
def friedman() -> Sets:
    """Friedman's first function: 10 columns of which 5 matter, with noise."""
    return split(*tensors(*datasets.make_friedman1(1400, noise=1.0, random_state=0)), 600, 200, targets=True)


@cache
def impedance() -> Sets:
    """Friedman's second: the impedance of a circuit from four quantities whose scales differ a thousandfold."""
    return split(*tensors(*datasets.make_friedman2(1100, noise=20.0, random_state=0)), 400, 150, targets=True)


@cache
def rings() -> Sets:
    """One ring inside another, two classes."""
    return split(*tensors(*datasets.make_circles(1000, noise=0.1, factor=0.5, random_state=0)), 300, 100)


_SEGMENTS = (
    "1110111",
    "0010010",
    "1011101",
    "1011011",
    "0111010",
    "1101011",
    "1101111",
    "1010010",
    "1111111",
    "1111011",
)


@cache
def segments() -> Sets:
    """The ten digits of a seven-segment display, each segment seen by three noisy sensors."""
    source = np.random.default_rng(5)
    lit = np.array([[int(c) for c in digit] for digit in _SEGMENTS], dtype=float)
    y = source.integers(0, 10, 1700)
    x = np.repeat(lit[y], 3, axis=1) + 0.45 * source.normal(size=(1700, 21))
    return split(*tensors(x, y), 700, 200)


@cache
def shapes() -> Sets:
    """Drawings of 12x12 pixels: a disc, the outline of a square, a cross or a bar, with noise."""
    source = np.random.default_rng(6)
    y = source.integers(0, 4, 1300)
    row, column = np.mgrid[0:12, 0:12]
    images = np.zeros((1300, 12, 12))
    for image, label in zip(images, y, strict=True):
        center = source.uniform(3.5, 7.5, 2)
        size = source.uniform(2.4, 3.6)
        down, right = np.abs(row - center[0]), np.abs(column - center[1])
        image[_drawn(int(label), down, right, size)] = source.uniform(0.7, 1.0)
    images += 0.1 * source.normal(size=images.shape)
    sets = split(*tensors(images[:, None], y), 600, 200, inputs=False)
    return sets._replace(units=(torch.zeros(()), torch.tensor(255.0)))


def _drawn(label: int, down: np.ndarray, right: np.ndarray, size: float) -> np.ndarray:
    inside = (down < size) & (right < size)
    drawings = {
        "disc": down**2 + right**2 < size**2,
        "outline of a square": inside & ((down > size - 1.2) | (right > size - 1.2)),
        "cross": inside & (np.abs(down - right) < 0.9),
        "bar": (down < 1) & (right < size),
    }
    return np.asarray(list(drawings.values())[label])


@cache
def decay() -> Sets:
    """Sequences (rows, 12, 1) whose target is a sum in which older steps count less."""
    source = np.random.default_rng(7)
    x = source.normal(size=(1200, 12, 1))
    y = (x[:, :, 0] * 0.8 ** np.arange(11, -1, -1)).sum(1)
    return split(*tensors(x, y), 500, 150, inputs=False, targets=True)


@cache
def signs() -> Sets:
    """The same sequences; whether that sum is above zero, as a column of floats."""
    sets = decay()
    zero = -sets.target_units[0] / sets.target_units[1]
    return Sets(*((x, (y > zero).float()) for x, y in (sets.train, sets.valid, sets.test)))


@cache
def order() -> Sets:
    """Sequences of 10 tokens out of 6; whether the only 1 stands before the only 2."""
    source = np.random.default_rng(8)
    tokens = source.choice([0, 3, 4, 5], (1400, 10))
    places = np.stack([source.permutation(10)[:2] for _ in tokens])
    tokens[np.arange(1400), places[:, 0]], tokens[np.arange(1400), places[:, 1]] = 1, 2
    return split(torch.tensor(tokens), torch.tensor((places[:, 0] < places[:, 1]).astype(int)), 600, 200, inputs=False)


@cache
def rule() -> Sets:
    """Sequences of 16 tokens out of 7: the first is the kind, the others go up by one or by two; a tenth are random."""
    source = np.random.default_rng(9)
    tokens = np.zeros((3000, 16), dtype=int)
    tokens[:, 0], tokens[:, 1] = source.integers(0, 2, 3000), source.integers(2, 7, 3000)
    for place in range(2, 16):
        follows = 2 + (tokens[:, place - 1] - 2 + 1 + tokens[:, 0]) % 5
        tokens[:, place] = np.where(source.random(3000) < 0.1, source.integers(2, 7, 3000), follows)
    rows = torch.tensor(np.unique(tokens, axis=0))
    return split(rows, torch.zeros(len(rows), dtype=torch.long), 900, 200, inputs=False)


@cache
def curves() -> Sets:
    """Curves of 24 points made of three waves; inputs only."""
    source = np.random.default_rng(10)
    time = np.linspace(0, 1, 24)
    basis = np.stack([np.sin(np.pi * time), np.cos(2 * np.pi * time), np.sin(3 * np.pi * time)])
    x = np.tanh(source.normal(size=(1000, 3)) @ basis) + 0.05 * source.normal(size=(1000, 24))
    return split(torch.tensor(x).float(), torch.zeros(1000, 1), 500, 150, inputs=False)


@cache
def rents() -> Sets:
    """Monthly rents in euros (some 300 to 3000) from area, rooms, year, distance and floor."""
    source = np.random.default_rng(11)
    area, rooms = source.uniform(20, 140, 900), source.integers(1, 6, 900)
    year, distance, floor = source.integers(1900, 2024, 900), source.exponential(5000, 900), source.integers(0, 9, 900)
    price = 9 + 8 * np.exp(-distance / 4000) + 3 * (year > 1990) + 2 * ((year < 1930) & (floor < 5)) - 0.8 * rooms
    y = area * price * np.exp(0.08 * source.normal(size=900)) + 120
    x = np.stack([area, rooms, year, distance, floor], 1)
    return split(*tensors(x, y), 450, 150, targets=True)


@cache
def corners() -> Sets:
    """AND of two noisy bits written as -1 and 1, very few rows."""
    source = torch.Generator().manual_seed(12)
    x = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]).repeat(40, 1)
    noisy, y = x + 0.15 * torch.randn(160, 2, generator=source), (x[:, 0] == x[:, 1]).long()
    return Sets((noisy[:12], y[:12]), (noisy[12:40], y[12:40]), (noisy[40:], y[40:]))
