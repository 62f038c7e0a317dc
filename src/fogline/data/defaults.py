"""A model, a loss and metrics that fit the data, for when none were given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fogline.data.source import Facts
from fogline.errors import misfit


def default_model(facts: Facts) -> Callable[[], nn.Module]:
    """A factory of a multilayer perceptron for tables, or of a small convolutional net for images.

    Raises:
        ValueError: if the inputs are neither columns (width,) nor images (channels, height, width), or the kind of
            work is unknown.

    >>> default_model(Facts("classification", (4,), outputs=3))()(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    >>> default_model(Facts("classification", (1, 28, 28), outputs=10))()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    known = facts.kind != "other"
    if known and facts.inputs == ():
        raise misfit("inputs of shape (examples, columns)", "one number each", "pass x[:, None]")
    if known and facts.outputs < 1:
        raise misfit("data whose number of classes is known", "a stream of labels", "pass model=")
    if not known or len(facts.inputs) not in (1, 3):
        expected = "columns (width,) or images (channels, height, width) to build a model for"
        raise misfit(expected, f"{facts.kind} work on examples of shape {facts.inputs}", "pass model=")
    if len(facts.inputs) == 1:
        return lambda: _perceptron(facts)
    return lambda: _convolutional(facts.inputs, facts.outputs)


class Standardise(nn.Module):
    """``(inputs - mean) / scale`` per column, with fixed statistics that are saved with the weights."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: tuple[float, ...], scale: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, inputs: Tensor) -> Tensor:  # (b, columns)
        return (inputs - self.mean) / self.scale


def _perceptron(facts: Facts) -> nn.Module:
    width = facts.inputs[0]
    hidden = min(256, max(32, 1 << (width - 1).bit_length() + 1))
    layers: list[nn.Module] = []
    if facts.input_mean and facts.input_scale:
        layers.append(Standardise(facts.input_mean, facts.input_scale))
    layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
    layers.append(nn.Linear(hidden, facts.outputs))
    if facts.target_mean and facts.target_scale:  # the other way round: the layers work on numbers near one
        shift = tuple(-mean / scale for mean, scale in zip(facts.target_mean, facts.target_scale, strict=True))
        layers.append(Standardise(shift, tuple(1 / scale for scale in facts.target_scale)))
    return nn.Sequential(*layers)


def _convolutional(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Convolution blocks, each halving the image, until it is at most 8 pixels wide or there are four."""
    channels, height, width = shape
    layers: list[nn.Module] = []
    features = 16
    for _ in range(4):
        layers += [nn.Conv2d(channels, features, 3, padding=1, bias=False), nn.BatchNorm2d(features), nn.ReLU()]
        channels, features = features, features * 2
        if min(height, width) >= 4:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        if max(height, width) <= 8 and channels >= 32:
            break
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(channels * 4, outputs))


def default_loss(facts: Facts) -> Callable[[Any, Any], Tensor]:
    """Cross-entropy for classes, the mean squared error for numbers.

    Raises:
        ValueError: for other work, whose loss only the user knows.
    """
    if facts.kind == "classification":
        return nn.CrossEntropyLoss()
    if facts.kind == "regression":
        return nn.MSELoss()
    raise misfit("a loss", "None for data that is neither labels nor numbers", "pass loss=")


def default_metrics(facts: Facts) -> dict[str, Callable[[Any, Any], Tensor]]:
    """Accuracy for classes; the mean absolute error and R2 for numbers.

    Each is a mean over examples, so that the mean over batches weighted by their size is the value on all data. For R2,
    ``1 - mean((y - f)^2) / var(y)``, the variance is therefore that of all held-out data, taken when it is opened.

    >>> metrics = default_metrics(Facts("classification", (2,), outputs=2))
    >>> metrics["accuracy"](torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    tensor(0.5000)
    """
    if facts.kind == "classification":
        return {"accuracy": partial(accuracy, threshold=facts.threshold)}
    if facts.kind == "regression":
        explained = {"r2": partial(r2, variance=facts.held_out_variance)} if facts.held_out_variance else {}
        return {"mean_absolute_error": F.l1_loss, **explained}
    return {}


def r2(
    outputs: Tensor,  # (b, ...)
    targets: Tensor,  # (b, ...)
    variance: tuple[float, ...],  # of each column of all targets
) -> Tensor:
    """Share of the variance that is explained: the mean over columns of ``1 - mean((y - f)^2) / variance``."""
    squares = (outputs - targets).square().reshape(targets.shape[0], -1).mean(0)
    return (1 - squares / torch.tensor(variance, dtype=squares.dtype, device=squares.device)).mean()


def accuracy(
    outputs: Tensor,  # (b, classes, ...) scores, or (b, ...) of the shape of the targets for yes/no
    targets: Tensor,  # (b, ...) labels, or (b, classes) probabilities
    threshold: float = 0.0,
) -> Tensor:
    """Share of examples whose highest score is the label's (or, for yes/no outputs, on the right side)."""
    if outputs.shape == targets.shape and targets.is_floating_point():
        if outputs.ndim == 2 and outputs.shape[1] > 1 and torch.allclose(targets.sum(1), targets.new_ones(())):
            return (outputs.argmax(1) == targets.argmax(1)).float().mean()
        return ((outputs > threshold) == (targets > 0.5)).float().mean()
    return (outputs.argmax(1) == targets).float().mean()
