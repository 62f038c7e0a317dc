"""Networks of the evaluation half: classes whose ``forward`` calls functions, as most scripts have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faults.nets import Init

Function = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    """What it is given."""
    return x


class Tabular(nn.Module):
    """Fully connected: (rows, columns) to (rows, outputs)."""

    def __init__(
        self,
        *,
        columns: int,
        hidden: Sequence[int],
        outputs: int,
        act: Function = F.relu,
        before: Function = same,
        head: Function = same,
        last: Function = same,
        dropout: float = 0.0,
        norm: bool = False,
        listed: bool = True,
        init: Init | None = None,
    ) -> None:
        super().__init__()
        widths = [columns, *hidden]
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        self.layers = nn.ModuleList(layers) if listed else layers
        self.norms = nn.ModuleList([nn.BatchNorm1d(b) for b in hidden] if norm else [])
        self.out = nn.Linear(widths[-1], outputs)
        self.act, self.before, self.head, self.last, self.dropout = act, before, head, last, dropout
        if init is not None:
            init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        for k, layer in enumerate(self.layers):
            x = layer(x)
            x = self.norms[k](x) if self.norms else x
            x = F.dropout(self.act(x), self.dropout, self.training)
        return self.last(self.out(self.head(x)))


class ConvNet(nn.Module):
    """Two strided convolutions, the mean over the image and a linear layer: (rows, 1, 12, 12) to (rows, outputs)."""

    def __init__(
        self,
        *,
        channels: tuple[int, int] = (12, 24),
        outputs: int = 4,
        norm: bool = False,
        act: Function = F.relu,
        before: Function = same,
        head: Function = same,
        last: Function = same,
        dropout: float = 0.0,
        init: Init | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels[0], 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels[0]) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(channels[0], channels[1], 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(channels[1]) if norm else nn.Identity()
        self.fc = nn.Linear(channels[1] * 9, outputs)
        self.act, self.before, self.head, self.last, self.dropout = act, before, head, last, dropout
        if init is not None:
            init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(self.before(x))))
        x = F.max_pool2d(x, 2)
        x = self.act(self.bn2(self.conv2(x)))
        x = F.dropout(x.flatten(1), self.dropout, self.training)
        return self.last(self.fc(self.head(x)))


class Sequence1d(nn.Module):
    """A recurrent layer read at its last step: (rows, time, 1) to (rows, 1)."""

    def __init__(
        self,
        *,
        recurrent: Callable[..., nn.Module] = nn.LSTM,
        width: int = 16,
        outputs: int = 1,
        head: Function = same,
        last: Function = same,
        gain: float = 1.0,
        init: Init | None = None,
    ) -> None:
        super().__init__()
        self.recurrent = recurrent(1, width, batch_first=True)
        self.fc = nn.Linear(width, outputs)
        self.head, self.last, self.gain = head, last, gain
        if init is not None:
            init(self)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.recurrent(self.gain * x)
        return self.last(self.fc(self.head(states[:, -1])))


class Attention(nn.Module):
    """One block of attention written by hand: (rows, time) tokens to (rows, outputs), or to (rows, time, outputs)."""

    def __init__(
        self,
        *,
        tokens: int,
        length: int,
        outputs: int,
        width: int = 24,
        causal: bool = False,
        act: Function = F.gelu,
        head: Function = same,
        last: Function = same,
        dropout: float = 0.0,
        init: Init | None = None,
    ) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.fc = nn.Linear(width, outputs)
        self.causal, self.act, self.head, self.last, self.dropout = causal, act, head, last, dropout
        if init is not None:
            init(self)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]  # (rows, time, width)
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.mix(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal))
        x = x + F.dropout(self.down(self.act(self.up(self.norm2(x)))), self.dropout, self.training)
        x = x if self.causal else x.mean(1)
        return self.last(self.fc(self.head(x)))


def softmax(x: Tensor) -> Tensor:
    """Over the last dimension."""
    return torch.softmax(x, -1)


def cut(x: Tensor) -> Tensor:
    """Without its history."""
    return x.detach()


def through_data(x: Tensor) -> Tensor:
    """A copy made by ``torch.tensor``, which forgets where it came from."""
    return x.detach().clone()


def logarithm(x: Tensor) -> Tensor:
    """A logarithm of columns that can be negative."""
    return torch.log(x + 2.0)
