"""Small networks of the kinds that are exported, trained for nothing but to have statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Depthwise and pointwise convolutions around a sum, batch normalisation, pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 3))

    def forward(self, images: Tensor) -> Tensor:  # (b, 1, h, w)
        images = F.max_pool2d(self.stem(images), 2)
        inner = F.relu(self.norms[0](self.depthwise(images)))
        found: Tensor = self.head(F.relu(images + self.norms[1](self.pointwise(inner))))
        return found


class Reader(nn.Module):
    """A transformer of two layers over (b, 4, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.head(self.encoder(self.embed(rows)).mean(1))
        return found


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.layer(torch.relu(self.layer(rows)))
        return found


class Gated(nn.Module):
    """Parts of a map that go different ways and come together, with SiLU; gives classes and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU())
        self.join = nn.Sequential(nn.Conv2d(12, 8, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classes, self.numbers = nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # (b, 1, h, w)
        first, second = self.stem(images).chunk(2, 1)
        found = self.join(torch.cat((first, second, second + self.inner(second)), 1))
        return {"classes": self.classes(found), "numbers": self.numbers(found)}


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))


SHAPES = {"perceptron": (6,), "residual": (1, 8, 8), "reader": (4, 6), "tied": (6,), "gated": (1, 8, 8)}
MAKERS = {"perceptron": perceptron, "residual": Residual, "reader": Reader, "tied": Tied, "gated": Gated}


def made(kind: str) -> tuple[nn.Module, Tensor]:
    """A network in evaluation that has seen some batches, and inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = MAKERS[kind](), torch.randn(64, *SHAPES[kind])
        with torch.no_grad():
            for _ in range(3):
                model(inputs + 0.5)
    return model.eval(), inputs
