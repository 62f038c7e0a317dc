"""Whether outputs, targets and loss go together: types, shapes and the range of labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fogline.data import losses
from fogline.data.arrays import labels_in_words
from fogline.data.datasets import described
from fogline.data.facts import Facts


def check_pairing(loss: Any, outputs: Any, targets: Any, facts: Facts) -> None:
    """Refuse what PyTorch would broadcast, misread or reject; losses we do not know are left to themselves.

    Raises:
        TypeError: for outputs or targets that are no tensors.
        ValueError: for shapes, types or labels that do not fit the loss.
    """
    family = losses.family(loss)
    if family == "unknown":
        return
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"expected a model that returns one tensor for {losses.name(loss)}, received {described(outputs)}; "
            "return the tensor the loss is for, or pass loss=fogline.on_batch(fn) with fn(model, batch)"
        )
    if not isinstance(targets, Tensor):
        raise TypeError(
            f"expected targets that are one tensor for {losses.name(loss)}, received {described(targets)}; "
            "pass loss=fogline.on_batch(fn) with fn(model, batch)"
        )
    if family == "classes":
        _check_classes(loss, outputs, targets, facts)
    else:
        _check_elementwise(loss, outputs, targets)


def _check_elementwise(loss: Any, outputs: Tensor, targets: Tensor) -> None:
    name = losses.name(loss)
    if not targets.is_floating_point():
        raise ValueError(
            f"expected floating-point targets for {name}, received {targets.dtype}; convert with y.float()"
        )
    if outputs.shape != targets.shape:
        raise ValueError(
            f"outputs are {tuple(outputs.shape)} and targets are {tuple(targets.shape)}: "
            f"{_meeting(outputs, targets)}; {_remedy(outputs, targets)}"
        )
    if losses.family(loss) == "binary":
        low, high = targets.min().item(), targets.max().item()
        if low < 0 or high > 1:  # NaN passes: such rows are named elsewhere
            raise ValueError(
                f"expected targets from 0 to 1 for {name}, received {low:g} to {high:g}; map them to 0 and 1"
            )
    if losses.on_probabilities(loss) and (outputs.min() < 0 or outputs.max() > 1):
        raise ValueError(
            f"expected probabilities for {name}, received outputs from {outputs.min().item():.3g} to "
            f"{outputs.max().item():.3g}; use nn.BCEWithLogitsLoss() on the logits, or end the model in nn.Sigmoid()"
        )


def _meeting(outputs: Tensor, targets: Tensor) -> str:
    try:
        return f"would broadcast to {np.broadcast_shapes(outputs.shape, targets.shape)}"
    except ValueError:
        return "they do not match"


def _remedy(outputs: Tensor, targets: Tensor) -> str:
    if outputs.ndim == targets.ndim + 1 and outputs.shape == (*targets.shape, 1):
        return "reshape targets with y[:, None]" if targets.ndim == 1 else "reshape targets with y.unsqueeze(-1)"
    if targets.ndim == outputs.ndim + 1 and targets.shape == (*outputs.shape, 1):
        return "reshape targets with y.squeeze(-1)"
    if outputs.ndim == targets.ndim == 2:
        return f"let the last layer have {targets.shape[1]} outputs"
    return "give both the same shape"


def _check_classes(loss: Any, outputs: Tensor, targets: Tensor, facts: Facts) -> None:
    name, shape, wanted = losses.name(loss), tuple(outputs.shape), tuple(targets.shape)
    if outputs.ndim < 2:
        raise ValueError(
            f"expected outputs of shape (batch, classes) for {name}, received {shape}; let the last layer have one "
            "output per class"
        )
    if targets.is_floating_point():
        if targets.shape == outputs.shape and not isinstance(loss, nn.NLLLoss):
            return  # probabilities of the classes
        raise ValueError(
            f"expected whole-number labels for {name}, received {targets.dtype} targets of shape {wanted}; "
            "convert with y.long() if they are labels, or use nn.MSELoss() if they are quantities"
        )
    if targets.dtype != torch.int64:
        raise ValueError(f"expected int64 labels for {name}, received {targets.dtype}; convert with y.long()")
    expected = (shape[0], *shape[2:])
    if wanted != expected:
        remedy = "reshape targets with y[:, 0]" if wanted == (*expected, 1) else "give one label per example"
        if wanted == shape:
            remedy = "for one-hot targets use y.argmax(1), or y.float() for probabilities"
        elif len(shape) == 3 and wanted == shape[:2]:
            remedy = "the classes are dimension 1: use on_batch with outputs.flatten(0, 1) and targets.flatten()"
        raise ValueError(f"expected targets of shape {expected} for outputs {shape}, received {wanted}; {remedy}")
    _check_labels(loss, outputs.shape[1], targets, facts)


def _check_labels(loss: Any, width: int, targets: Tensor, facts: Facts) -> None:
    used = targets[targets != getattr(loss, "ignore_index", -100)]
    if not used.numel():
        return
    highest = max(int(used.max()), facts.outputs - 1 if facts.kind == "classification" else 0)
    if int(used.min()) < 0 or highest >= width:
        came = labels_in_words(used) + (f" (up to {highest} in all the data)" if highest > int(used.max()) else "")
        if width == 1:
            raise ValueError(
                f"expected one output per class for {losses.name(loss)}, received a single output and {came}; let the "
                f"last layer have {highest + 1} outputs, or use nn.BCEWithLogitsLoss() with y.float()[:, None]"
            )
        raise ValueError(
            f"expected labels from 0 to {width - 1} for a model with {width} outputs, received {came}; let the last "
            f"layer have {highest + 1} outputs, or map the labels with "
            "classes, y = torch.unique(y, return_inverse=True)"
        )
