"""Loss and targets of a loop that shows neither, read back from the gradient at the model's outputs.

A loop may call a function for its loss and log a plain number. The gradient of the usual losses tells their targets all
the same; with o for the outputs, c for 1 / n (the mean) or 1 (the sum), times what the loop multiplies its loss with::

    cross-entropy              c (softmax(o) - one_hot(y))
    negative log-likelihood    -c one_hot(y)
    binary, on logits          c (sigmoid(o) - y)
    binary, on probabilities   c (o - y) / (o (1 - o))
    squared error              2 c (o - y), and the loss itself is c sum (o - y)^2

Each row, and for the squared error the loss, says what c is: where they disagree the loss is another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SLACK = 2e-3
_ROUNDING = 1e-6
_MOST_NUMBERS = 1_000_000
_FEWEST = 4


@dataclass(frozen=True)
class Recovered:
    """A loss of one of PyTorch's kinds.

    Attributes:
        loss_fn: which, with its reduction.
        targets: as it takes them, for the first rows.
        plain: its value on these rows.
        factor: what the loop multiplies it with before ``backward()``: 1, or 1 / k where k batches are accumulated.
    """

    loss_fn: nn.Module
    targets: Tensor
    plain: float
    factor: float


def recover(outputs: Tensor, gradient: Tensor, loss: float | None) -> Recovered | None:
    """What outputs were compared with; None where the loss is of none of these kinds, or has further terms.

    >>> outputs = torch.tensor([[2.0, 0.0, 1.0]] * 4, requires_grad=True)
    >>> loss = nn.functional.cross_entropy(outputs, torch.tensor([1, 0, 2, 2]))
    >>> loss.backward()
    >>> found = recover(outputs, outputs.grad, loss.item())
    >>> found.loss_fn, found.targets, found.factor
    (CrossEntropyLoss(), tensor([1, 0, 2, 2]), 1.0)

    Args:
        outputs: of the model, (b, ...), classes along the last dimension.
        gradient: of the loss, by the outputs.
        loss: its value, if it is known.
    """
    if not outputs.is_floating_point() or not outputs.ndim or outputs.shape != gradient.shape:
        return None
    most = max(1, _MOST_NUMBERS // max(1, outputs[:1].numel()))
    size = len(outputs)
    given, slope = (t.detach()[:most].double().cpu() for t in (outputs, gradient))
    if len(given) < _FEWEST or not bool(torch.isfinite(given).all() & torch.isfinite(slope).all()):
        return None
    for found, targets, each in _candidates(given, slope):
        count = size * targets.numel() / len(targets)
        reduced = found(reduction="sum" if abs(each - 1) < _SLACK < abs(each * count - 1) else "mean")
        factor = each * (1 if reduced.reduction == "sum" else count)
        plain = float(reduced(_shaped(given, targets), targets))
        if loss is None or size > most or abs(plain * factor - loss) <= _SLACK * abs(loss):
            return Recovered(reduced, targets, plain, 1.0 if abs(factor - 1) < _SLACK else factor)
    return None if loss is None or size > most else _squares(given, slope, loss)


def recover_beside(outputs: Tensor, gradient: Tensor) -> Recovered | None:
    """The same for a loss to which the loop adds terms that do not depend on the outputs, as a penalty on the weights.

    The gradient alone tells it, so its factor has to be 1; a squared error cannot be told in this way.
    """
    found = recover(outputs, gradient, None)
    return found if found is not None and found.factor == 1 else None


def _shaped(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs if targets.is_floating_point() else outputs.reshape(-1, outputs.shape[-1])


def _candidates(outputs: Tensor, slope: Tensor) -> Iterator[tuple[type[nn.Module], Tensor, float]]:
    """Losses that the gradient may be of, with their targets and c."""
    rows, slopes = (t.reshape(-1, t.shape[-1]) for t in (outputs, slope))
    sloped = slopes.any(1)  # a row that is answered without doubt has no slope
    if outputs.ndim > 1 and rows.shape[1] > 1 and bool(sloped.any()) and bool((slopes[sloped].amin(1) < 0).all()):
        labels = torch.where(sloped, slopes.argmin(1), rows.argmax(1))
        hot = nn.functional.one_hot(labels, rows.shape[1]).double()
        each = _common(slopes, rows.softmax(1) - hot)
        if each is not None:
            yield nn.CrossEntropyLoss, labels, each
        each = _common(slopes, -hot)
        if each is not None and float(rows.logsumexp(1).abs().max()) < _SLACK:
            yield nn.NLLLoss, labels, each
    yes = (slope < 0).double()
    each = _common(slope, outputs.sigmoid() - yes)
    if each is not None:
        yield nn.BCEWithLogitsLoss, yes, each
    if bool(((outputs > 0) & (outputs < 1)).all()):
        each = _common(slope, (outputs - yes) / (outputs * (1 - outputs)))
        if each is not None:
            yield nn.BCELoss, yes, each


def _common(slope: Tensor, shape: Tensor) -> float | None:
    """The c of ``slope = c * shape``, where there is one."""
    size = float(shape.square().sum())
    if not size > 0:
        return None
    each = float((slope * shape).sum()) / size
    rest = slope - each * shape
    return each if each > 0 and float(rest.norm()) <= _SLACK * float(slope.norm()) else None


def _squares(outputs: Tensor, slope: Tensor, loss: float) -> Recovered | None:
    """A squared error: its c follows from the loss and has to be one over the number of values, or 1."""
    if not loss > 0 or not bool(slope.any()):
        return None
    each, count = float(slope.square().sum()) / (4 * loss), outputs.numel()
    if abs(each * count - 1) < _SLACK:
        return Recovered(nn.MSELoss(), _rounded(outputs - slope * count / 2), loss, 1.0)
    if abs(each - 1) < _SLACK:
        return Recovered(nn.MSELoss(reduction="sum"), _rounded(outputs - slope / 2), loss, 1.0)
    return None


def _rounded(targets: Tensor) -> Tensor:
    """Zeros and ones as they were: a target just above one would be out of the reach of a sigmoid."""
    whole = targets.round()
    return torch.where((targets - whole).abs() < _ROUNDING * (1 + whole.abs()), whole, targets)
