"""Scores of a trained model that do not depend on its loss, nor on the form of its outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WORST = -1.0
"""The least R^2 that is reported: how much worse than the mean a model is does not matter."""


def outputs(model: nn.Module, inputs: Any) -> Tensor:
    """Predictions in evaluation mode; the mode is put back."""
    training = model.training
    model.eval()
    with torch.no_grad():
        predicted: Tensor = model(inputs)
    model.train(training)
    return predicted.float()


def balanced_accuracy(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    """Recall averaged over the classes; 0 where an output is not a number.

    Targets are labels, zeros and ones, or one-hot rows. Outputs are one column a class, or a single column: a
    probability where all lie in [0, 1], a label where there are more than two classes, else a logit.
    """
    truth = _labels(test[1])
    predicted = outputs(model, test[0])
    if not torch.isfinite(predicted).all():
        return 0.0
    chosen = _chosen(predicted, int(truth.max()) + 1)
    recalls = [(chosen[truth == label] == label).float().mean() for label in torch.unique(truth)]
    return float(torch.stack(recalls).mean())


def _labels(targets: Tensor) -> Tensor:
    if targets.ndim == 2 and targets.shape[1] > 1:
        return targets.argmax(1)
    return (targets.reshape(len(targets)) > 0 if bool((targets < 0).any()) else targets.reshape(len(targets))).long()


def _chosen(predicted: Tensor, classes: int) -> Tensor:
    predicted = predicted.reshape(len(predicted), -1)
    if predicted.shape[1] > 1:
        return predicted.argmax(1)
    column = predicted[:, 0]
    if classes > 2:
        return column.round().long()
    probabilities = bool((column >= 0).all() and (column <= 1).all())
    return (column > (0.5 if probabilities else 0.0)).long()


def r_squared(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    """Share of the variance of the targets that is explained, not below -1; several columns for one are averaged."""
    truth = test[1].reshape(len(test[1]), -1).double()
    predicted = outputs(model, test[0]).reshape(len(truth), -1).double()
    if predicted.shape != truth.shape:
        predicted = predicted.mean(1, keepdim=True)
    rest = (predicted - truth).square().sum() / (truth - truth.mean(0)).square().sum()
    return max(WORST, 1 - float(rest)) if torch.isfinite(rest) else WORST


def reconstruction(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    """R^2 of an auto-encoder's outputs against its inputs."""
    return r_squared(model, (test[0], test[0]))


def next_token(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    """Share of the last half of the tokens that are foretold; the model gives (rows, positions, tokens)."""
    tokens = test[0]
    guess = outputs(model, tokens[:, :-1]).argmax(-1)
    half = guess.shape[1] // 2
    return float((guess == tokens[:, 1:])[:, half:].float().mean())
