"""Models of the rate benchmark that are more than a row of layers."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def perceptron(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths with an activation between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def second_derivative(model: nn.Module, x: Tensor) -> Tensor:  # (B, 1) -> (B, 1)
    """u''(x) of a perceptron of tanh, by carrying value, slope and bend through its layers."""
    assert isinstance(model, nn.Sequential)
    value, slope, bend = x, torch.ones_like(x), torch.zeros_like(x)
    for layer in model:
        if isinstance(layer, nn.Linear):
            value, slope, bend = layer(value), slope @ layer.weight.T, bend @ layer.weight.T
        else:
            value = torch.tanh(value)
            gain = 1 - value.square()
            slope, bend = gain * slope, gain * (bend - 2 * value * slope.square())
    return bend


class Sine(nn.Module):
    """The sine of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


def value_and_slope(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:  # (B, 1) -> (B, n), (B, n)
    """u(x) and u'(x) of a perceptron of sines, carried through its layers together."""
    assert isinstance(model, nn.Sequential)
    value, slope = x, torch.ones_like(x)
    for layer in model:
        if isinstance(layer, nn.Linear):
            value, slope = layer(value), slope @ layer.weight.T
        else:
            value, slope = torch.sin(value), torch.cos(value) * slope
    return value, slope


class Recurrent(nn.Module):
    """A plain recurrent network, GRU or LSTM whose last hidden state goes through a linear layer."""

    def __init__(self, kind: type[nn.RNNBase], inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.cell = kind(inputs, hidden, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, sequence: Tensor) -> Tensor:  # (B, T, inputs) -> (B, outputs)
        return self.head(self.cell(sequence)[0][:, -1])


class Block(nn.Module):
    """Attention and a perceptron, each behind a LayerNorm and around a skip."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def attended(self, x: Tensor) -> Tensor:  # (B, T, width) -> (B, T, width)
        """What each place gathers from the others."""
        batch, length, width = x.shape
        parts = self.mix(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))

    def forward(self, x: Tensor) -> Tensor:  # (B, T, width) -> (B, T, width)
        x = x + self.attended(self.before(x))
        return x + self.perceptron(self.between(x))


class LateBlock(Block):
    """Attention and a perceptron, each around a skip and before a LayerNorm (post-norm)."""

    def forward(self, x: Tensor) -> Tensor:  # (B, T, width) -> (B, T, width)
        x = self.before(x + self.attended(x))
        return self.between(x + self.perceptron(x))


class Transformer(nn.Module):
    """Tokens to logits of a token at each place."""

    def __init__(self, vocabulary: int, length: int, width: int, layers: int, *, causal: bool) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, 2, causal) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T) -> (B, T, vocabulary)
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


class Tied(nn.Module):
    """A causal post-norm transformer whose logits are products with its token embeddings."""

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.2)
        self.blocks = nn.Sequential(*(LateBlock(width, heads, causal=True) for _ in range(layers)))

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T) -> (B, T, vocabulary)
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        return self.blocks(x) @ self.tokens.weight.T


class Factors(nn.Module):
    """Matrix factorisation with biases: the rating of an item by a user."""

    def __init__(self, users: int, items: int, rank: int) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, rank), nn.Embedding(items, rank)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.3)
        for bias in (self.user_bias, self.item_bias):
            nn.init.zeros_(bias.weight)

    def forward(self, pairs: Tensor) -> Tensor:  # (B, 2) -> (B, 1)
        user, item = pairs[:, 0], pairs[:, 1]
        product = (self.user(user) * self.item(item)).sum(1, keepdim=True)
        return product + self.user_bias(user) + self.item_bias(item)


class Point(nn.Module):
    """A point in space, all that a quadratic has."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(dimensions))

    def forward(self, rows: Tensor) -> Tensor:  # (B, n) -> (B, n)
        return self.w - rows


class Residual(nn.Module):
    """A residual perceptron, each block behind a LayerNorm."""

    def __init__(self, inputs: int, width: int, blocks: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, width), nn.Linear(width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs) -> (B, 1)
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


class Variational(nn.Module):
    """A variational auto-encoder; the noise is drawn in training only."""

    def __init__(self, inputs: int, hidden: int, code: int) -> None:
        super().__init__()
        self.encoder = perceptron(inputs, hidden, 2 * code)
        self.decoder = perceptron(code, hidden, inputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (B, n) -> (B, n), (B, code), (B, code)
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        return self.decoder(code), mean, log_variance
