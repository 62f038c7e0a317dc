"""What stands between a model's outputs and its loss, read from autograd's graph alone: nothing is run again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fogline.doctor.anatomy import SHAPING, inputs_of, nodes_between, operation, operations_between
from fogline.doctor.finding import Evidence, Severity

_ELEMENTWISE = ("Sub", "Rsub", "Add", "Mul", "Div", "MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "Expand")
_LOGARITHMS = {"log_softmax", "log", "log_sigmoid", "Logsumexp"}
_RANGES = {"relu": (0.0, None), "sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "softmax": (0.0, 1.0)}


@dataclass(frozen=True)
class Pairing:
    """A fault of outputs and loss together."""

    cause: str
    confidence: float
    evidence: Evidence
    explanation: str
    title: str
    patch: str
    severity: Severity = "serious"


def read_pairing(loss: Tensor, outputs: Tensor, targets: Tensor | None) -> Iterator[Pairing]:
    """The faults that the graph shows.

    Args:
        loss: with its graph, before or after ``backward()``.
        outputs: what the model gave for it, with its graph.
        targets: what they were compared with, where that is known.
    """
    if outputs.grad_fn is None or loss.grad_fn is None:
        return
    head, in_loss = operations_between(loss, outputs)
    last = head[0] if head else ""
    values = outputs.detach()
    shape = broadcast(loss, outputs)
    if shape is not None:
        yield _broadcast(outputs, targets, shape)
    if values.numel() and last in ("softmax", "log_softmax") and bool((values == (last == "softmax")).all()):
        yield _SINGLE
        return
    if last == "softmax" and "log_softmax" in in_loss:
        yield _DOUBLE
    elif last == "sigmoid" and "BinaryCrossEntropyWithLogits" in in_loss:
        yield _TWICE
    elif last == "relu" and ("log_softmax" in in_loss or "BinaryCrossEntropyWithLogits" in in_loss):
        yield _CUT
    elif "NllLoss" in in_loss and "log_softmax" not in in_loss and not set(head[:3]) & _LOGARITHMS:
        yield _NO_LOG
    elif targets is not None and "MseLoss" in in_loss and last in _RANGES and targets.is_floating_point():
        yield from _out_of_reach(last, targets)


def broadcast(loss: Tensor, outputs: Tensor) -> tuple[int, ...] | None:
    """The shape (n, n) that n outputs were blown up to by meeting n targets of another shape; None if they were not.

    It is found where an operation with a single input of the graph gives (n, n) from n numbers: what two inputs of the
    graph give is somebody's comparison of pairs.
    """
    size = outputs.numel()
    if size < 2 or outputs.shape[0] != size:
        return None
    for node in nodes_between(loss.grad_fn, outputs.grad_fn):
        before = inputs_of(node)
        blown = operation(node) in _ELEMENTWISE and shape_of(node) == (size, size)
        if blown and len(before) == 1 and _is_output(before[0], outputs.grad_fn):
            return size, size
    return None


def shape_of(node: Any) -> tuple[int, ...]:
    """Shape of what an operation gave; it can be asked also after ``backward()``."""
    metadata = getattr(node, "_input_metadata", None)
    return tuple(metadata[0].shape) if metadata else ()


def _is_output(node: Any, end: Any) -> bool:
    for _ in range(8):
        if node is end:
            return True
        if operation(node) not in SHAPING or operation(node) in ("Sub", "Add", "Mul", "Div", "Sum", "Mean"):
            return False
        before = inputs_of(node)
        if len(before) != 1:
            return False
        node = before[0]
    return False


def _broadcast(outputs: Tensor, targets: Tensor | None, shape: tuple[int, ...]) -> Pairing:
    given = "" if targets is None else f" and targets {tuple(targets.shape)}"
    return Pairing(
        "shape_broadcast",
        0.98,
        Evidence("shape in which the loss compares", str(shape), str(tuple(outputs.shape))),
        f"Outputs {tuple(outputs.shape)}{given} are compared each with each, {shape[0]} x {shape[1]}, instead of one "
        "by one: the best the model can do is the mean of all targets.",
        "give targets the shape of the outputs",
        "y = y.reshape(outputs.shape)",
        "fatal",
    )


def _out_of_reach(last: str, targets: Tensor) -> Iterator[Pairing]:
    low, high = _RANGES[last]
    least, most = float(targets.min()), float(targets.max())
    below, above = least < low, high is not None and most > high
    if not (below or above):
        return
    share = float(((targets < low) | (targets > (high if high is not None else torch.inf))).float().mean())
    yield Pairing(
        "output_activation",
        0.95,
        Evidence("share of the targets that the outputs cannot reach", share, 0.0),
        f"The model ends in a {last}, whose values go from {low:g} to {'infinity' if high is None else f'{high:g}'}, "
        f"and the targets go from {least:.3g} to {most:.3g}.",
        f"take the {last} at the end away",
        "end the model in a linear layer",
        "serious" if share < 0.5 else "fatal",
    )


_SINGLE = Pairing(
    "softmax_single_unit",
    0.98,
    Evidence("outputs that differ from the constant", 0, "most"),
    "A softmax over a single unit is the constant 1 whatever goes in: its gradient is zero and nothing is learned.",
    "replace the softmax by a sigmoid",
    "nn.Sigmoid() with nn.BCELoss(), or no activation with nn.BCEWithLogitsLoss()",
    "fatal",
)
_DOUBLE = Pairing(
    "double_softmax",
    0.97,
    Evidence("last operation of the model", "softmax", "logits, because the loss applies its own softmax"),
    "The model ends in a softmax and the loss applies another one: no output can become confident, and the gradient is "
    "many times too small.",
    "remove the softmax at the end of the model",
    "nn.CrossEntropyLoss takes logits: end the model in nn.Linear",
)
_TWICE = Pairing(
    "output_activation",
    0.97,
    Evidence("last operation of the model", "sigmoid", "logits, because the loss applies its own sigmoid"),
    "The model ends in a sigmoid and the loss applies another one: the second sees numbers between 0 and 1 only, so no "
    "probability can fall below one half.",
    "remove the sigmoid, or use nn.BCELoss",
    "loss_fn = nn.BCELoss()",
)
_CUT = Pairing(
    "output_activation",
    0.85,
    Evidence("last operation of the model", "relu", "logits of either sign"),
    "The model ends in a ReLU and the loss takes logits: none can be negative, and where one is cut off there is no "
    "gradient that would bring it back.",
    "remove the activation at the end of the model",
    "end the model in nn.Linear",
)
_NO_LOG = Pairing(
    "loss_mismatch",
    0.9,
    Evidence("last operation of the model", "no log_softmax", "log_softmax, which nn.NLLLoss takes for granted"),
    "nn.NLLLoss takes log-probabilities. Without a log-softmax before it the loss is no likelihood: it has no bound.",
    "use nn.CrossEntropyLoss on logits",
    "loss_fn = nn.CrossEntropyLoss()",
)
