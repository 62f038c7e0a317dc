"""Small networks of the calibration half, and of whoever wants a plain stack of layers.

Every builder takes the keywords that plants change: ``activation`` and ``last`` make a module, ``init`` changes the
first weights in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

Maker = Callable[[], nn.Module]
Init = Callable[[nn.Module], None]


class Detach(nn.Module):
    """Passes its input on without its history."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def mlp(
    *,
    sizes: Sequence[int],
    activation: Maker | None = nn.ReLU,
    norm: bool = False,
    dropout: float = 0.0,
    first: Maker | None = None,
    before_head: Maker | None = None,
    last: Maker | None = None,
    init: Init | None = None,
) -> nn.Sequential:
    """Fully connected layers: (rows, sizes[0]) to (rows, sizes[-1]); ``activation=None`` leaves it out."""
    layers: list[nn.Module] = [first()] if first else []
    for width_in, width_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(width_in, width_out)]
        layers += [nn.BatchNorm1d(width_out)] if norm else []
        layers += [activation()] if activation else []
        layers += [nn.Dropout(dropout)] if dropout else []
    layers += [before_head()] if before_head else []
    layers += [nn.Linear(sizes[-2], sizes[-1])]
    layers += [last()] if last else []
    return _begun(nn.Sequential(*layers), init)


def cnn(
    *,
    channels: Sequence[int] = (8, 16),
    classes: int = 10,
    side: int = 8,
    hidden: int = 32,
    activation: Maker | None = nn.ReLU,
    norm: bool = False,
    dropout: float = 0.0,
    first: Maker | None = None,
    before_head: Maker | None = None,
    last: Maker | None = None,
    init: Init | None = None,
) -> nn.Sequential:
    """Convolutions of 3x3 that keep the size, each halved by pooling, two linear layers: (rows, 1, side, side) in."""
    layers: list[nn.Module] = [first()] if first else []
    for depth_in, depth_out in pairwise([1, *channels]):
        layers += [nn.Conv2d(depth_in, depth_out, 3, padding=1)]
        layers += [nn.BatchNorm2d(depth_out)] if norm else []
        layers += [activation()] if activation else []
        layers += [nn.MaxPool2d(2)]
        side //= 2
    layers += [nn.Flatten(), nn.Linear(channels[-1] * side * side, hidden)]
    layers += [activation()] if activation else []
    layers += [nn.Dropout(dropout)] if dropout else []
    layers += [before_head()] if before_head else []
    layers += [nn.Linear(hidden, classes)]
    layers += [last()] if last else []
    return _begun(nn.Sequential(*layers), init)


def _begun(model: nn.Sequential, init: Init | None) -> nn.Sequential:
    if init is not None:
        init(model)
    return model


class Recurrent(nn.Module):
    """A recurrent layer and a linear one on its last state: (rows, time, features) to (rows, outputs)."""

    def __init__(
        self,
        *,
        cell: Callable[..., nn.Module] = nn.GRU,
        hidden: int = 24,
        outputs: int = 3,
        features: int = 1,
        dropout: float = 0.0,
        first: Maker | None = None,
        before_head: Maker | None = None,
        last: Maker | None = None,
        init: Init | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.first = first() if first else nn.Identity()
        self.rnn = cell(features, hidden, batch_first=True, **options)
        self.drop = nn.Dropout(dropout)
        self.before_head = before_head() if before_head else nn.Identity()
        self.head = nn.Linear(hidden, outputs)
        self.last = last() if last else nn.Identity()
        if init is not None:
            init(self)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(self.first(x))
        result: Tensor = self.last(self.head(self.before_head(self.drop(states[:, -1]))))
        return result


class Encoder(nn.Module):
    """Embedding, PyTorch's own encoder layers, the mean over positions and a linear layer: (rows, time) tokens in."""

    def __init__(
        self,
        *,
        tokens: int = 4,
        length: int = 12,
        width: int = 16,
        heads: int = 2,
        layers: int = 1,
        outputs: int = 3,
        dropout: float = 0.0,
        before_head: Maker | None = None,
        last: Maker | None = None,
        init: Init | None = None,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        stack = [nn.TransformerEncoderLayer(width, heads, 2 * width, dropout, batch_first=True) for _ in range(layers)]
        self.layers = nn.Sequential(*stack)
        self.before_head = before_head() if before_head else nn.Identity()
        self.head = nn.Linear(width, outputs)
        self.last = last() if last else nn.Identity()
        if init is not None:
            init(self)

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.layers(self.embed(tokens) + self.place)
        result: Tensor = self.last(self.head(self.before_head(states.mean(1))))
        return result
