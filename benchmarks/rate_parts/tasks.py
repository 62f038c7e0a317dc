"""The problems of the rate benchmark: small, quick, and in two sets that share no data.

Nor do they share an architecture, save that a linear model is a linear model and a quadratic a point in space.

A finder may be tuned on ``calibration``, which holds the evaluation sets of earlier finders too. ``evaluation`` is
what is reported; nothing is tuned on it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fogline
import timing
from rate_parts.models import (
    Factors,
    Point,
    Recurrent,
    Residual,
    Sine,
    Tied,
    Transformer,
    Variational,
    perceptron,
    second_derivative,
    value_and_slope,
)

FASHION = Path(os.environ.get("FOGLINE_DATA", timing.ROOT.parent / "shared" / "data" / "fashion_mnist_16k.npz"))
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        name: as on the command line.
        title: what it is.
        make: the task for a seed; the seed decides the data's split or draw and the first weights.
        batch_size: examples a step.
        steps: length of the run.
        classes: of a classification, else 1; one rule of thumb asks for it.
    """

    name: str
    title: str
    make: Callable[[int], fogline.Task]
    batch_size: int
    steps: int
    classes: int = 1


def seeded(seed: int, build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A factory that gives the same first weights every time."""

    def factory() -> nn.Module:
        torch.manual_seed(seed)
        return build()

    return factory


def supervised(seed: int, build: Callable[[], nn.Module], loss: Any, data: tuple[Pair, Pair]) -> fogline.Task:
    """A task from a model, a loss and training and held-out data."""
    return fogline.Task(model=seeded(seed, build), loss=loss, train=data[0], valid=data[1])


def alone(
    seed: int, build: Callable[[], nn.Module], loss: Callable[[nn.Module, Any], Tensor], data: tuple[Tensor, Tensor]
) -> fogline.Task:
    """A task whose loss sees the model and the batch."""
    return fogline.Task(model=seeded(seed, build), loss=fogline.on_batch(loss), train=data[0], valid=data[1])


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000 + seed)


def _normal(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = _generator(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _split(seed: int, inputs: Tensor, targets: Tensor, held_out: float = 0.25) -> tuple[Pair, Pair]:
    """Shuffled by the seed and cut in two."""
    order = torch.randperm(len(inputs), generator=_generator(seed))
    cut = round((1 - held_out) * len(inputs))
    train, valid = order[:cut], order[cut:]
    return (inputs[train], targets[train]), (inputs[valid], targets[valid])


def _standardised(data: tuple[Pair, Pair]) -> tuple[Pair, Pair]:
    """Inputs in units of the training data's spread."""
    (inputs, targets), (held, held_targets) = data
    mean, scale = inputs.mean(0), inputs.std(0).clamp_min(1e-6)
    return ((inputs - mean) / scale, targets), ((held - mean) / scale, held_targets)


@cache
def _scikit(name: str) -> Pair:
    from sklearn import datasets

    inputs, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
    return torch.tensor(inputs, dtype=torch.float32), torch.tensor(targets)


def _digits(seed: int, shape: tuple[int, ...]) -> tuple[Pair, Pair]:
    inputs, targets = _scikit("digits")
    return _split(seed, (inputs / 16).reshape(-1, *shape), targets.long())


# Calibration: what was the evaluation set before


def _linear(seed: int) -> fogline.Task:
    inputs, weights, noise = _normal(seed, (800, 20), (20, 1), (800, 1))
    data = _split(seed, inputs, inputs @ weights + 0.3 * noise)
    return supervised(seed, lambda: nn.Linear(20, 1), nn.MSELoss(), data)


def _logistic(seed: int) -> fogline.Task:
    inputs, targets = _scikit("breast_cancer")
    data = _standardised(_split(seed, inputs, targets.float()[:, None]))
    return supervised(seed, lambda: nn.Linear(30, 1), nn.BCEWithLogitsLoss(), data)


def _mlp_digits(seed: int) -> fogline.Task:
    return supervised(seed, lambda: perceptron(64, 96, 96, 10), nn.CrossEntropyLoss(), _digits(seed, (64,)))


def _cnn_batchnorm(seed: int) -> fogline.Task:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(),
            nn.Linear(16 * 16, 10),
        )  # fmt: skip

    return supervised(seed, build, nn.CrossEntropyLoss(), _digits(seed, (1, 8, 8)))


def _cnn_groupnorm(seed: int) -> fogline.Task:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.GroupNorm(3, 12), nn.SiLU(),
            nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.GroupNorm(3, 24), nn.SiLU(),
            nn.Flatten(), nn.LayerNorm(96), nn.Linear(96, 10),
        )  # fmt: skip

    return supervised(seed, build, nn.CrossEntropyLoss(), _digits(seed, (1, 8, 8)))


def _gru_adding(seed: int) -> fogline.Task:
    """The sum of the two numbers that are marked (Hochreiter and Schmidhuber, 1997), ten places long."""
    generator, rows, length = _generator(seed), 2048, 10
    numbers = torch.rand(rows, length, generator=generator)
    marked = torch.rand(rows, length, generator=generator).argsort(1) < 2
    inputs, targets = torch.stack([numbers, marked.float()], 2), (numbers * marked).sum(1, keepdim=True)
    return supervised(seed, lambda: Recurrent(nn.GRU, 2, 24, 1), nn.MSELoss(), _split(seed, inputs, targets))


@cache
def _text() -> tuple[Tensor, int]:
    """English prose that comes with Python, as codes of its most frequent characters (0 for all others)."""
    from pydoc_data.topics import topics

    prose = "\n".join(topics[name] for name in sorted(topics))[:60_000].lower()
    characters, counts = np.unique(list(prose), return_counts=True)
    known = {character: code + 1 for code, character in enumerate(characters[np.argsort(-counts)][:39])}
    return torch.tensor([known.get(character, 0) for character in prose]), 40


def _next_character(model: nn.Module, windows: Tensor) -> Tensor:  # (B, T + 1) -> ()
    logits = model(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def _transformer_text(seed: int) -> fogline.Task:
    codes, vocabulary = _text()
    windows = codes.unfold(0, 25, 12)[torch.randperm((len(codes) - 25) // 12 + 1, generator=_generator(seed))]
    data = windows[150:].contiguous(), windows[:150].contiguous()
    return alone(seed, lambda: Transformer(vocabulary, 24, 32, 2, causal=True), _next_character, data)


def _reconstruction(model: nn.Module, batch: Tensor) -> Tensor:
    return F.mse_loss(model(batch), batch)


def _autoencoder(seed: int) -> fogline.Task:
    (train, _), (valid, _) = _digits(seed, (64,))
    return alone(seed, lambda: perceptron(64, 64, 8, 64, 64), _reconstruction, (train, valid))


def _ratings(seed: int) -> fogline.Task:
    users, items, rank, generator = 120, 80, 4, _generator(seed)
    left, right, noise = _normal(seed, (users, rank), (items, rank), (users, items))
    table = (left @ right.T) / math.sqrt(rank) + 0.5 * right[:, 0] + 0.3 * noise
    seen = torch.randperm(users * items, generator=generator)[:4000]
    pairs = torch.stack([seen // items, seen % items], 1)
    data = _split(seed, pairs, table.flatten()[seen][:, None])
    return supervised(seed, lambda: Factors(users, items, 6), nn.MSELoss(), data)


def _quadratic(seed: int) -> fogline.Task:
    """f(w) = E |A (w - z)|^2 / 2 in 40 dimensions, condition 1e4, the axes turned; every example is a noisy z."""
    size = 40
    turn, noise, middle = _normal(seed, (size, size), (1024, size), (size,))
    axes = torch.linalg.qr(turn)[0]
    root = axes * torch.logspace(0, -2, size)  # eigenvalues 1 to 1e-4 of A^T A

    def loss(model: nn.Module, rows: Tensor) -> Tensor:
        return (model(rows) @ root).square().sum(1).mean() / 2

    rows = (3 * middle * torch.logspace(0, 1.4, size) + 0.1 * noise * torch.logspace(0, 1, size)) @ axes.T
    return alone(seed, lambda: Point(size), loss, (rows[:768], rows[768:]))


def _poisson_residual(model: nn.Module, points: Tensor) -> Tensor:  # (B, 1) -> ()
    """u'' = -pi^2 sin(pi x) on (0, 1) with u(0) = u(1) = 0: mean squared residual and boundary."""
    bend = second_derivative(model, points)
    residual = bend / math.pi**2 + torch.sin(math.pi * points)
    return residual.square().mean() + 10 * model(torch.tensor([[0.0], [1.0]])).square().mean()


def _physics(seed: int) -> fogline.Task:
    points = torch.rand(1024, 1, generator=_generator(seed))
    data = points[:768].clone(), points[768:].clone()
    return alone(seed, lambda: perceptron(1, 24, 24, 1, activation=nn.Tanh), _poisson_residual, data)


def _diabetes(seed: int) -> fogline.Task:
    inputs, targets = _scikit("diabetes")
    targets = ((targets - targets.mean()) / targets.std()).float()[:, None]
    data = _standardised(_split(seed, inputs, targets))
    return supervised(seed, lambda: perceptron(10, 48, 48, 1), nn.MSELoss(), data)


@cache
def _fashion_data() -> tuple[Pair, Pair]:
    with np.load(FASHION) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in ("x_train", "y_train", "x_test", "y_test")}
    flat = {name: (arrays[name].float() / 255).flatten(1) for name in ("x_train", "x_test")}
    valid = flat["x_test"][:1000], arrays["y_test"][:1000].long()
    return (flat["x_train"], arrays["y_train"].long()), valid


def _fashion(seed: int) -> fogline.Task:
    return supervised(seed, lambda: perceptron(784, 64, 10), nn.CrossEntropyLoss(), _fashion_data())


# Calibration from the beginning


def _wine(seed: int) -> fogline.Task:
    data = _standardised(_split(seed, *_scikit("wine")))
    return supervised(seed, lambda: perceptron(13, 24, 3, activation=nn.Tanh), nn.CrossEntropyLoss(), data)


def _iris(seed: int) -> fogline.Task:
    return supervised(seed, lambda: nn.Linear(4, 3), nn.CrossEntropyLoss(), _split(seed, *_scikit("iris")))


def _teacher(seed: int) -> fogline.Task:
    (inputs, noise), teacher = _normal(seed, (1500, 12), (1500, 1)), seeded(seed + 100, lambda: perceptron(12, 16, 1))
    with torch.no_grad(), torch.random.fork_rng():
        targets = teacher()(inputs)
    targets = (targets - targets.mean()) / targets.std() + 0.1 * noise
    return supervised(seed, lambda: perceptron(12, 48, 48, 1), nn.MSELoss(), _split(seed, inputs, targets))


def _lstm_order(seed: int) -> fogline.Task:
    """Which of three kinds of wave a noisy sequence is."""
    generator, rows, length = _generator(seed), 1200, 12
    kinds = torch.randint(3, (rows,), generator=generator)
    phase = torch.rand(rows, 1, generator=generator) + torch.arange(length) * 0.23
    waves = torch.stack([torch.sin(2 * math.pi * phase), torch.sin(2 * math.pi * phase).sign(), 2 * (phase % 1) - 1], 1)
    noise = 0.2 * torch.randn(rows, length, generator=generator)
    inputs = waves[torch.arange(rows), kinds] + noise
    build = lambda: Recurrent(nn.LSTM, 1, 20, 3)  # noqa: E731
    return supervised(seed, build, nn.CrossEntropyLoss(), _split(seed, inputs[:, :, None], kinds))


def _radial(seed: int) -> fogline.Task:
    """A curve as a sum of 40 bumps that overlap: linear, and badly conditioned."""
    x = torch.rand(600, 1, generator=_generator(seed))
    (noise,) = _normal(seed + 1, (600, 1))
    features = torch.exp(-0.5 * ((x - torch.linspace(0, 1, 40)) / 0.05).square())
    targets = torch.sin(6 * x) + 0.5 * torch.cos(17 * x) + 0.1 * noise
    return supervised(seed, lambda: nn.Linear(40, 1), nn.MSELoss(), _split(seed, features, targets))


def _signals(seed: int) -> fogline.Task:
    """Four frequencies under noise, by a one-dimensional CNN with BatchNorm."""
    generator, rows, length = _generator(seed), 1000, 32
    kinds = torch.randint(4, (rows,), generator=generator)
    phase = 6.3 * torch.rand(rows, 1, generator=generator)
    noise = torch.randn(rows, length, generator=generator)
    inputs = torch.sin((kinds[:, None] + 1.5) * 0.3 * torch.arange(length) + phase) + noise

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv1d(1, 12, 5, stride=2), nn.BatchNorm1d(12), nn.ReLU(),
            nn.Conv1d(12, 16, 5, stride=2), nn.BatchNorm1d(16), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4),
        )  # fmt: skip

    return supervised(seed, build, nn.CrossEntropyLoss(), _split(seed, inputs[:, None], kinds))


def _by_place(logits: Tensor, targets: Tensor) -> Tensor:  # (B, T, V), (B, T) -> ()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _sorting(seed: int) -> fogline.Task:
    """Seven tokens of eight kinds, to be given back sorted."""
    tokens = torch.randint(8, (2400, 7), generator=_generator(seed))
    data = _split(seed, tokens, tokens.sort(1).values, held_out=0.15)
    return supervised(seed, lambda: Transformer(8, 7, 24, 1, causal=False), _by_place, data)


def _counts(seed: int) -> fogline.Task:
    """Counts whose logarithm is linear."""
    inputs, weights = _normal(seed, (900, 15), (15, 1))
    targets = torch.poisson(torch.exp(0.15 * inputs @ weights + 0.5), generator=_generator(seed))
    return supervised(seed, lambda: nn.Linear(15, 1), nn.PoissonNLLLoss(), _split(seed, inputs, targets))


def _bound(model: nn.Module, batch: Tensor) -> Tensor:
    """Negative evidence lower bound of a variational auto-encoder, by column."""
    outputs, mean, log_variance = model(batch)
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
    return 0.5 * (outputs - batch).square().sum(1).mean() / 0.1 / batch.shape[1] + divergence / batch.shape[1]


def _variational(seed: int) -> fogline.Task:
    code, lift, noise = _normal(seed, (1200, 3), (3, 30), (1200, 30))
    rows = torch.tanh(code @ lift) + 0.2 * noise
    return alone(seed, lambda: Variational(30, 32, 4), _bound, (rows[:900], rows[900:]))


def _spirals(seed: int) -> fogline.Task:
    """Two spirals, by a perceptron of four layers of tanh."""
    generator = _generator(seed)
    turn, kinds = torch.rand(800, generator=generator), torch.arange(800) % 2
    angle = 7 * turn.sqrt() + math.pi * kinds
    inputs = turn.sqrt()[:, None] * torch.stack([angle.cos(), angle.sin()], 1) * 2
    inputs = inputs + 0.05 * torch.randn(800, 2, generator=generator)
    build = lambda: perceptron(2, 32, 32, 32, 1, activation=nn.Tanh)  # noqa: E731
    return supervised(seed, build, nn.BCEWithLogitsLoss(), _split(seed, inputs, kinds.float()[:, None]))


def _friedman(seed: int) -> fogline.Task:
    from sklearn.datasets import make_friedman1

    inputs, targets = make_friedman1(1200, noise=1.0, random_state=seed)
    scaled = torch.tensor((targets - targets.mean()) / targets.std(), dtype=torch.float32)[:, None]
    data = _standardised(_split(seed, torch.tensor(inputs, dtype=torch.float32), scaled))
    return supervised(seed, lambda: Residual(10, 32, 2), nn.MSELoss(), data)


# Evaluation


def _sensors(seed: int) -> fogline.Task:
    """Six hidden causes, seen by sixteen sensors of different precision."""
    causes, mixing, weights, noise, error = _normal(seed, (1400, 6), (6, 16), (6, 1), (1400, 16), (1400, 1))
    inputs = causes @ mixing / math.sqrt(6) + noise * torch.logspace(-1.5, 0.3, 16)
    data = _split(seed, inputs, causes @ weights + 0.2 * error)
    return supervised(seed, lambda: nn.Linear(16, 1), nn.MSELoss(), data)


@cache
def _photographs() -> Pair:
    """Tiles of 4 x 4 pixels in colour from scikit-learn's two photographs, and which one they are of."""
    from sklearn.datasets import load_sample_images

    tiles = []
    for image in load_sample_images().images:
        colours = torch.from_numpy(np.array(image)).float() / 255
        tiles.append(colours.unfold(0, 4, 12).unfold(1, 4, 12).reshape(-1, 48))
    kinds = torch.cat([torch.full((len(part), 1), float(kind)) for kind, part in enumerate(tiles)])
    return torch.cat(tiles), kinds


def _tiles(seed: int) -> fogline.Task:
    inputs, kinds = _photographs()
    return supervised(seed, lambda: nn.Linear(48, 1), nn.BCEWithLogitsLoss(), _split(seed, inputs, kinds))


def _mixture(seed: int) -> fogline.Task:
    """Sixteen clouds in twelve dimensions, two to a class; a tenth of the labels are drawn anew."""
    generator, rows = _generator(seed), 3200
    (centres, noise) = _normal(seed + 1, (16, 12), (rows, 12))
    clouds = torch.randint(16, (rows,), generator=generator)
    drawn = torch.randint(8, (rows,), generator=generator)
    kinds = torch.where(torch.rand(rows, generator=generator) < 0.1, drawn, clouds % 8)
    build = lambda: perceptron(12, 64, 48, 32, 8, activation=nn.GELU)  # noqa: E731
    return supervised(seed, build, nn.CrossEntropyLoss(), _split(seed, centres[clouds] + 0.7 * noise, kinds))


def _waves(seed: int) -> fogline.Task:
    """A sum of sines of five inputs and of their sums in pairs."""
    generator, rows = _generator(seed), 3000
    inputs = 2 * torch.rand(rows, 5, generator=generator) - 1
    (pull, noise) = _normal(seed + 1, (5,), (rows,))
    targets = (torch.sin(3 * inputs) * pull).sum(1) + torch.sin(2 * (inputs + inputs.roll(1, 1))).sum(1) / 2
    data = _split(seed, inputs, (targets + 0.1 * noise)[:, None])
    return supervised(seed, lambda: perceptron(5, 80, 40, 1, activation=nn.ELU), nn.MSELoss(), data)


def _textures(seed: int) -> fogline.Task:
    """Gratings in four directions, any phase and several widths, under noise, by a CNN with BatchNorm."""
    generator, rows, size = _generator(seed), 1600, 10
    kinds = torch.randint(4, (rows,), generator=generator)
    angle = (kinds + 0.5 * (torch.rand(rows, generator=generator) - 0.5)) * math.pi / 4
    pitch = 1 + torch.rand(rows, generator=generator)
    phase = 2 * math.pi * torch.rand(rows, 1, 1, generator=generator)
    along = torch.arange(size).float()
    x, y = (pitch * angle.cos())[:, None, None] * along, (pitch * angle.sin())[:, None, None] * along[:, None]
    inputs = torch.sin(x + y + phase) + 0.8 * torch.randn(rows, size, size, generator=generator)

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.1),
            nn.Conv2d(8, 12, 3, stride=2, bias=False), nn.BatchNorm2d(12), nn.LeakyReLU(0.1),
            nn.Conv2d(12, 16, 3, bias=False), nn.BatchNorm2d(16), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(16, 4),
        )  # fmt: skip

    return supervised(seed, build, nn.CrossEntropyLoss(), _split(seed, inputs[:, None], kinds))


def _spots(seed: int) -> fogline.Task:
    """How many bright spots there are, one to four, by a CNN with LayerNorm over each image."""
    generator, rows, size = _generator(seed), 2000, 12
    kinds = torch.randint(4, (rows,), generator=generator)
    middle = 1 + (size - 3) * torch.rand(rows, 4, 2, 1, generator=generator)
    near = torch.exp(-0.5 * (torch.arange(size) - middle).square())
    shown = (torch.arange(4) <= kinds[:, None]).float()
    images = torch.einsum("bn,bni,bnj->bij", shown, near[:, :, 0], near[:, :, 1])
    images = images + 0.1 * torch.randn(rows, size, size, generator=generator)

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 10, 3, stride=2, padding=1), nn.LayerNorm((10, 6, 6)), nn.GELU(),
            nn.Conv2d(10, 16, 3, padding=1), nn.GroupNorm(1, 16), nn.GELU(),
            nn.AvgPool2d(3), nn.Flatten(), nn.Linear(64, 4),
        )  # fmt: skip

    return supervised(seed, build, nn.CrossEntropyLoss(), _split(seed, images[:, None], kinds))


def _continuation(seed: int) -> fogline.Task:
    """The value that two added waves come to two places later, by a plain recurrent network."""
    generator, rows, length = _generator(seed), 2000, 14
    pace = 0.3 + torch.rand(rows, 2, 1, generator=generator)
    phase = 2 * math.pi * torch.rand(rows, 2, 1, generator=generator)
    path = torch.sin(pace * torch.arange(length + 2) + phase).sum(1)
    inputs = path[:, :length] + 0.05 * torch.randn(rows, length, generator=generator)
    build = lambda: Recurrent(nn.RNN, 1, 32, 1)  # noqa: E731
    return supervised(seed, build, nn.MSELoss(), _split(seed, inputs[:, :, None], path[:, -1:]))


def _mirrored(model: nn.Module, rows: Tensor) -> Tensor:  # (B, T + 1) -> ()
    """Cross-entropy of the second half, which the first decides."""
    logits, half = model(rows[:, :-1]), rows.shape[1] // 2
    return F.cross_entropy(logits[:, half:].flatten(0, 1), rows[:, half + 1 :].flatten())


def _reversal(seed: int) -> fogline.Task:
    """Five tokens of six kinds, a mark, and the five backwards, by a causal post-norm transformer."""
    tokens = torch.randint(6, (4000, 5), generator=_generator(seed))
    rows = torch.cat([tokens, torch.full((4000, 1), 6), tokens.flip(1)], 1)
    data = rows[:3400].clone(), rows[3400:].clone()
    return alone(seed, lambda: Tied(7, 10, 36, 3, 2), _mirrored, data)


def _denoising(seed: int) -> fogline.Task:
    """Rectangles to be freed from noise, by a convolutional auto-encoder."""
    generator, rows, size = _generator(seed), 1600, 12
    ends = (size * torch.rand(rows, 2, 2, 1, generator=generator)).sort(2).values
    place = torch.arange(size) + 0.5
    sides = ((place > ends[:, :, 0]) & (place < ends[:, :, 1])).float()
    clean = (sides[:, 0, :, None] * sides[:, 1, None, :])[:, None]
    noisy = clean + 0.4 * torch.randn(clean.shape, generator=generator)

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 6, 4, stride=2, padding=1), nn.SiLU(), nn.Conv2d(6, 12, 4, stride=2, padding=1), nn.SiLU(),
            nn.ConvTranspose2d(12, 6, 4, stride=2, padding=1), nn.SiLU(),
            nn.ConvTranspose2d(6, 1, 4, stride=2, padding=1),
        )  # fmt: skip

    return supervised(seed, build, nn.MSELoss(), _split(seed, noisy, clean))


def _skipgram(seed: int) -> fogline.Task:
    """Which of sixty words stands beside a word: embeddings before a softmax."""
    generator, words, rows = _generator(seed), 60, 16_000
    left, right, common = _normal(seed + 1, (words, 5), (words, 5), (words,))
    chances = torch.softmax(left @ right.T + 0.5 * common, 1)
    centres = torch.randint(words, (rows,), generator=generator)
    contexts = torch.multinomial(chances[centres], 1, generator=generator)[:, 0]
    build = lambda: nn.Sequential(nn.Embedding(words, 8), nn.Linear(8, words, bias=False))  # noqa: E731
    return supervised(seed, build, nn.CrossEntropyLoss(), _split(seed, centres, contexts))


def _valley(seed: int) -> fogline.Task:
    """Half of the curvatures 30, half 0.03, the axes turned; the noise of an example's minimum has heavy tails."""
    size = 24
    turn, noise, wild, middle = _normal(seed, (size, size), (1200, size), (1200, 3), (size,))
    axes = torch.linalg.qr(turn)[0]
    root = axes * torch.tensor([30.0, 0.03]).sqrt().repeat_interleave(size // 2)
    tails = 0.1 / wild.square().mean(1, keepdim=True).clamp_min(0.05).sqrt()
    rows = (middle * torch.tensor([2.0, 40.0]).repeat_interleave(size // 2) + noise * tails) @ axes.T

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) @ root).square().sum(1).mean() / 2

    return alone(seed, lambda: Point(size), loss, (rows[:900], rows[900:]))


def _oscillation(model: nn.Module, times: Tensor) -> Tensor:  # (B, 1) -> ()
    """x' = 3 v, v' = -3 x - 0.6 v from x = 1, v = 0: mean squared residual and beginning."""
    state, slope = value_and_slope(model, times)
    place, speed = state[:, :1], state[:, 1:]
    due = torch.cat([3 * speed, -3 * place - 0.6 * speed], 1)
    first = model(torch.zeros(1, 1)) - torch.tensor([[1.0, 0.0]])
    return (slope - due).square().mean() + 5 * first.square().mean()


def _oscillator(seed: int) -> fogline.Task:
    times = 2 * torch.rand(1200, 1, generator=_generator(seed))
    data = times[:900].clone(), times[900:].clone()
    return alone(seed, lambda: perceptron(1, 40, 40, 2, activation=Sine), _oscillation, data)


_EVALUATION = (
    Problem("sensors", "linear regression, correlated sensors of different precision", _sensors, 32, 800),
    Problem("tiles", "logistic regression on raw pixels, tiles of two photographs", _tiles, 32, 1000, 2),
    Problem("mixture", "MLP of GELU, mixture of clouds with wrong labels", _mixture, 64, 800, 8),
    Problem("waves", "MLP of ELU, sum of sines of five inputs", _waves, 64, 1000),
    Problem("textures", "CNN of three layers with BatchNorm, gratings under noise", _textures, 32, 500, 4),
    Problem("spots", "CNN with LayerNorm and GroupNorm, number of spots", _spots, 32, 600, 4),
    Problem("continuation", "plain RNN, two waves carried on", _continuation, 64, 600),
    Problem("reversal", "post-norm transformer with tied embeddings, five tokens backwards", _reversal, 16, 500, 7),
    Problem("denoising", "convolutional auto-encoder, rectangles under noise", _denoising, 32, 500),
    Problem("skipgram", "embeddings and softmax, words beside words", _skipgram, 128, 1000, 60),
    Problem("valley", "quadratic of condition 1e3, heavy-tailed noise", _valley, 16, 1000),
    Problem("oscillator", "physics-informed net of sines, damped oscillator", _oscillator, 64, 800),
)
_FORMER = (
    Problem("linear", "linear regression, synthetic", _linear, 32, 1000),
    Problem("logistic", "logistic regression, breast cancer", _logistic, 32, 1500, 2),
    Problem("mlp_digits", "MLP, digits", _mlp_digits, 64, 1000, 10),
    Problem("cnn_batchnorm", "CNN with BatchNorm, digits", _cnn_batchnorm, 64, 350, 10),
    Problem("cnn_groupnorm", "CNN with GroupNorm and LayerNorm, digits", _cnn_groupnorm, 64, 450, 10),
    Problem("gru_adding", "GRU, adding problem of length 10", _gru_adding, 64, 600),
    Problem("transformer_text", "transformer, characters of English prose", _transformer_text, 16, 500, 40),
    Problem("autoencoder", "auto-encoder, digits", _autoencoder, 64, 1000),
    Problem("ratings", "matrix factorisation, synthetic ratings", _ratings, 128, 1000),
    Problem("quadratic", "quadratic of condition 1e4 under noise", _quadratic, 16, 2000),
    Problem("physics", "physics-informed net, Poisson equation in one dimension", _physics, 64, 600),
    Problem("mlp_diabetes", "MLP regression, diabetes", _diabetes, 32, 600),
)
_FASHION = Problem("mlp_fashion", "MLP, Fashion-MNIST", _fashion, 64, 1000, 10)
_FIRST = (
    Problem("wine", "MLP of tanh, wine", _wine, 16, 800, 3),
    Problem("iris", "softmax regression on raw inputs, iris", _iris, 16, 1500, 3),
    Problem("teacher", "student of a random MLP", _teacher, 64, 1000),
    Problem("lstm_waves", "LSTM, three kinds of waves", _lstm_order, 64, 500, 3),
    Problem("radial", "regression on overlapping bumps", _radial, 32, 2000),
    Problem("signals", "one-dimensional CNN with BatchNorm, signals under noise", _signals, 64, 400, 4),
    Problem("sorting", "transformer encoder, sorting seven tokens", _sorting, 64, 500, 8),
    Problem("counts", "Poisson regression", _counts, 32, 1000),
    Problem("variational", "variational auto-encoder, curved plane", _variational, 64, 800),
    Problem("spirals", "MLP of four layers, two spirals", _spirals, 64, 1200, 2),
    Problem("friedman", "residual MLP with LayerNorm, Friedman's function", _friedman, 64, 600),
)
_CALIBRATION = _FIRST + _FORMER

REDUCED = {
    "evaluation": ("sensors", "tiles", "mixture", "waves", "skipgram", "valley"),
    "calibration": ("wine", "iris", "teacher", "radial", "counts", "spirals"),
}
"""The tasks of a run that is not ``--full``: those with the cheapest steps."""
CONSTANT = {
    "evaluation": ("sensors", "tiles", "mixture", "waves", "skipgram", "valley"),
    "calibration": (
        "wine", "iris", "teacher", "radial", "counts", "spirals", "friedman", "linear", "logistic", "mlp_digits",
        "ratings", "quadratic",
    ),
}  # fmt: skip
"""Those of the cells whose schedule never lowers the rate."""


def problems(which: str) -> dict[str, Problem]:
    """The problems of a set by name; Fashion-MNIST only where its file is."""
    found = _EVALUATION if which == "evaluation" else _CALIBRATION + ((_FASHION,) if FASHION.is_file() else ())
    return {problem.name: problem for problem in found}


def missing(which: str) -> list[str]:
    """Why a problem of a set is left out, a line each."""
    if which == "calibration" and not FASHION.is_file():
        return [f"mlp_fashion left out: no file {FASHION.name}; name one in the environment variable FOGLINE_DATA"]
    return []
