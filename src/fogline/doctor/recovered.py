"""Loss and targets of a loop that shows neither, read back from the gradient at the model's outputs.

A loop may call a function for its loss and log a plain number. The gradient of the usual losses tells their targets all
the same; with o for the outputs, c for 1 / n (the mean) or 1 (the sum), times what the loop multiplies its loss with::

    cross-entropy              c (softmax(o) - one_hot(y))
    negative log-likelihood    -c one_hot(y)
    binary, on logits          c (sigmoid(o) - y)
    binary, on probabilities   c (o - y) / (o (1 - o))
    squared error              2 c (o - y), and the loss itself is c sum (o - y)^2

Each row, and for the squared error the loss, says what c is: where they disagree the loss is another one. Where
autograd's graph names the loss, c is known beforehand. An absolute error tells on which side a target lies, not where:
it is looked for among the tensors that the loop has in its hands, and has to give the very gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SLACK = 2e-3
_ROUNDING = 1e-6
_MOST_NUMBERS = 1_000_000
_FEWEST = 4
_FEWEST_SIDES = 16  # by chance targets lie on the sides that an absolute error tells once in 2^16


@dataclass(frozen=True)
class Recovered:
    """A loss of one of PyTorch's kinds.

    Attributes:
        loss_fn: which, with its reduction.
        targets: as it takes them, for the first rows.
        plain: its value on these rows.
        factor: what the loop multiplies it with before ``backward()``: 1, or 1 / k where k batches are accumulated.
        alone: nothing is added to it, as far as that is known.
    """

    loss_fn: nn.Module
    targets: Tensor
    plain: float
    factor: float
    alone: bool = True

    @property
    def is_part(self) -> bool:
        """Whether it is the loss itself, or that of one of several batches that are accumulated."""
        return abs(1 / self.factor - round(1 / self.factor)) <= _SLACK / self.factor


def recover(outputs: Tensor, gradient: Tensor, loss: float | None) -> Recovered | None:
    """What outputs were compared with; None where the loss is of none of these kinds, or has further terms.

    >>> outputs = torch.tensor([[2.0, 0.0, 1.0]] * 4, requires_grad=True)
    >>> loss = nn.functional.cross_entropy(outputs, torch.tensor([1, 0, 2, 2]))
    >>> loss.backward()
    >>> found = recover(outputs, outputs.grad, loss.item())
    >>> found.loss_fn, found.targets, found.factor
    (CrossEntropyLoss(), tensor([1, 0, 2, 2]), 1.0)

    Args:
        outputs: of the model, (b, ...), classes along the last dimension, or (b, classes, ...).
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
    for found, answers, targets, each in _candidates(given, slope):
        count = size * targets.numel() / len(given)
        reduced = found(reduction="sum" if abs(each - 1) < _SLACK < abs(each * count - 1) else "mean")
        factor = each * (1 if reduced.reduction == "sum" else count)
        plain = float(reduced(answers, targets))
        if loss is None or size > most or abs(plain * factor - loss) <= _SLACK * abs(loss):
            return Recovered(reduced, targets, plain, 1.0 if abs(factor - 1) < _SLACK else factor)
    return None if loss is None or size > most else _squares(given, slope, loss)


def recover_beside(outputs: Tensor, gradient: Tensor) -> Recovered | None:
    """The same for a loss to which the loop adds terms that do not depend on the outputs, as a penalty on the weights.

    The gradient alone tells it, so its factor has to be 1; a squared error cannot be told in this way.
    """
    found = recover(outputs, gradient, None)
    return found if found is not None and found.factor == 1 else None


def read_back(
    loss_fn: nn.Module, outputs: Tensor, gradient: Tensor, loss: float | None, in_sight: Callable[[], Iterable[Tensor]]
) -> Recovered | None:
    """What outputs were compared with by a loss that is known; None where the gradient is not that of any targets.

    >>> outputs = torch.tensor([[2.0], [0.0], [1.0], [-1.0]], requires_grad=True)
    >>> targets = torch.tensor([[1.0], [0.5], [1.5], [-1.0]])
    >>> nn.functional.huber_loss(outputs, targets, delta=2.0).backward()
    >>> read_back(nn.HuberLoss(delta=2.0), outputs, outputs.grad, None, list).targets.flatten().tolist()
    [1.0, 0.5, 1.5, -1.0]

    Args:
        loss_fn: it compares number with number, its gradient times 1.
        outputs: of the model, (b, ...).
        gradient: of the loss, by the outputs.
        loss: its value, where nothing was added to it.
        in_sight: gives tensors that the targets may be among, should the gradient not tell them.
    """
    if outputs.shape != gradient.shape or outputs.numel() > _MOST_NUMBERS or len(outputs) < _FEWEST:
        return None
    given, slope = (t.detach().double().cpu() for t in (outputs, gradient))
    if not bool(torch.isfinite(given).all() & torch.isfinite(slope).all()) or not bool(slope.any()):
        return None
    each = slope * (1 if getattr(loss_fn, "reduction", "mean") == "sum" else slope.numel())
    targets = _told_by(loss_fn, given, each)
    if targets is None:
        fits = [t for t in _shaped_alike(in_sight(), given) if _gives(loss_fn, given, t, slope, loss)]
        enough = given.numel() >= _FEWEST_SIDES or loss is not None
        targets = fits[0] if fits and enough and all(torch.equal(fits[0], other) for other in fits) else None
    elif not _gives(loss_fn, given, targets, slope, loss):
        return None
    return None if targets is None else Recovered(loss_fn, targets, float(loss_fn(given, targets)), 1.0)


def _told_by(loss_fn: nn.Module, outputs: Tensor, each: Tensor) -> Tensor | None:
    """Targets from the slope of each number's own loss; None where some of them lie where it is the same all along."""
    if isinstance(loss_fn, nn.MSELoss):
        return _rounded(outputs - each / 2)
    if isinstance(loss_fn, nn.BCEWithLogitsLoss):
        return _rounded(outputs.sigmoid() - each)
    if isinstance(loss_fn, nn.BCELoss):
        return _rounded(outputs - each * outputs * (1 - outputs))
    if isinstance(loss_fn, nn.HuberLoss) and bool((each.abs() < loss_fn.delta * (1 - _ROUNDING)).all()):
        return _rounded(outputs - each)
    if isinstance(loss_fn, nn.SmoothL1Loss) and bool((each.abs() < 1 - _ROUNDING).all()):
        return _rounded(outputs - each * loss_fn.beta)
    return None


def _shaped_alike(tensors: Iterable[Tensor], outputs: Tensor) -> Iterator[Tensor]:
    """Those of as many numbers, as the loss may have had them."""
    for tensor in tensors:
        if tensor.numel() == outputs.numel() and len(tensor) == len(outputs) and not tensor.is_complex():
            yield tensor.detach().double().cpu().reshape(outputs.shape)


def _gives(loss_fn: nn.Module, outputs: Tensor, targets: Tensor, slope: Tensor, loss: float | None) -> bool:
    """Whether these targets make this gradient, and this loss."""
    twin, free = copy.deepcopy(loss_fn), outputs.clone().requires_grad_()
    with torch.enable_grad():
        value = twin(free, targets)
        (found,) = torch.autograd.grad(value, free)
    alike = float((found - slope).norm()) <= _SLACK * float(slope.norm())
    return alike and (loss is None or abs(float(value.detach()) - loss) <= _SLACK * abs(loss))


def _candidates(outputs: Tensor, slope: Tensor) -> Iterator[tuple[type[nn.Module], Tensor, Tensor, float]]:
    """Losses that the gradient may be of, with what is answered, their targets and c."""
    yield from _of_classes(outputs, slope)
    if outputs.ndim > 2:
        yield from _of_classes(outputs.movedim(1, -1), slope.movedim(1, -1))
    yes = (slope < 0).double()
    each = _common(slope, outputs.sigmoid() - yes)
    if each is not None:
        yield nn.BCEWithLogitsLoss, outputs, yes, each
    if bool(((outputs > 0) & (outputs < 1)).all()):
        each = _common(slope, (outputs - yes) / (outputs * (1 - outputs)))
        if each is not None:
            yield nn.BCELoss, outputs, yes, each


def _of_classes(outputs: Tensor, slope: Tensor) -> Iterator[tuple[type[nn.Module], Tensor, Tensor, float]]:
    """Of outputs with the classes along the last dimension."""
    rows, slopes = (t.reshape(-1, t.shape[-1]) for t in (outputs, slope))
    sloped = slopes.amin(1) < 0  # a row that is answered without doubt has next to no slope
    if outputs.ndim > 1 and rows.shape[1] > 1 and bool(sloped.any()):
        labels = torch.where(sloped, slopes.argmin(1), rows.argmax(1))
        hot = nn.functional.one_hot(labels, rows.shape[1]).double()
        each = _common(slopes, rows.softmax(1) - hot)
        if each is not None:
            yield nn.CrossEntropyLoss, rows, labels, each
        each = _common(slopes, -hot)
        if each is not None and float(rows.logsumexp(1).abs().max()) < _SLACK:
            yield nn.NLLLoss, rows, labels, each


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
