"""What of a batch a loss hears: its slopes with respect to what is put out, place by place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fogline.doctor.case import FAILURES, spaced

_MOST_NUMBERS = 1_000_000  # of made-up outputs
_MOST_ROWS, _MOST_ROWS_OF_NUMBERS = 128, 512
_MOST_COLUMNS = 8
_FAR = 30.0  # deviations beyond the targets: farther some losses overflow, and here all rows are about as far off
_FEW = 2


def the_only_heard(loss: Any, outputs: Tensor, targets: Tensor) -> tuple[float, int] | None:
    """The value of the targets at all the places that the loss hears, where others have several other values.

    Such as padding, where a mask is the wrong way round. Made-up outputs are asked about, of as many rows as there are
    targets, a place being heard where the loss of any of them has a slope. It must be pulled towards that answer, too:
    outputs that are no answers, such as those that should be near one another, are not.

    Args:
        outputs: (b, c, ...), (b, ..., c), or (b, ...), of which the shape is taken; or (places, c).
        targets: (n, ...) labels or numbers.

    Returns:
        The value, and the dimension of outputs that has the classes, -1 where each number is an answer; None where
        several values are heard, or not just the places that have it.
    """
    flat = outputs.ndim == 2 < targets.ndim + 1 and outputs.shape[1:] != targets.shape[1:]
    width = outputs[:1].numel() * (targets[:1].numel() if flat else 1)
    targets = targets[spaced(len(targets), max(_FEW, min(_MOST_ROWS, _MOST_NUMBERS // max(1, width))))]
    shape = torch.Size((targets.numel() if flat else len(targets), *outputs.shape[1:]))
    classes = _place_of_classes(shape, targets)
    if classes is None or not outputs.is_floating_point():
        return None
    slopes = [found for found in _slopes(loss, shape, outputs.dtype, targets) if found is not None]
    if not slopes:
        return None
    placed = [found if classes < 0 else found.movedim(classes, -1) for found in slopes]
    heard = torch.zeros(targets.numel(), dtype=torch.bool)
    for found in placed:
        heard |= (found.reshape(targets.numel(), -1) != 0).any(1)
    values = targets.reshape(-1)
    only = values[heard]
    if not len(only) or not torch.equal(heard, values == only[0]) or len(torch.unique(values[~heard])) < _FEW:
        return None  # where there is one other value, that may be the one that stands for nothing
    pulled = placed[0].reshape(targets.numel(), -1)[heard]
    if classes < 0:
        alike = bool((pulled > 0).all()) or bool((pulled < 0).all())
    else:
        label = int(only[0])
        no_class = label < 0  # it stands for no answer, wherever its places are pulled
        alike = no_class or (label < pulled.shape[1] and bool((pulled[:, label] < 0).all()))
    return (float(only[0]), classes) if alike else None


def _place_of_classes(shape: torch.Size, targets: Tensor) -> int | None:
    """Which dimension of outputs has the classes of labels, -1 where there is none; None where nobody can tell."""
    if shape == targets.shape:
        return -1 if targets.numel() > len(targets) else None
    if targets.is_floating_point():
        return None
    if len(shape) == 2 and shape[0] == targets.numel():
        return 1
    fits = [k for k in (1, len(shape) - 1) if len(shape) > 1 and shape[:k] + shape[k + 1 :] == targets.shape]
    return fits[0] if len(set(fits)) == 1 else None


def _slopes(loss: Any, shape: torch.Size, dtype: torch.dtype, targets: Tensor) -> Iterator[Tensor | None]:
    """Of outputs that may be shares or scores, and of scores of either sign; None where one is not finite."""
    draws = torch.Generator().manual_seed(0)
    between = 0.1 + 0.8 * torch.rand(shape, generator=draws)
    for made in (between, torch.randn(shape, generator=draws), 3 * torch.randn(shape, generator=draws)):
        yield slope_of(loss, made.to(dtype), targets)


def slope_of(loss: Any, outputs: Tensor, targets: Tensor) -> Tensor | None:
    """Of the loss with respect to outputs; None where the loss refuses them or a slope is not finite."""
    asked = outputs.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            (found,) = torch.autograd.grad(loss(asked, targets).mean(), asked)
    except FAILURES:
        return None
    return found if bool(torch.isfinite(found).all()) else None


def share_in_relative_errors(loss: Any, targets: Tensor) -> float:
    """How many of the rows count, as a share, where a loss hears those the more the nearer to zero their targets are.

    The weight of a row is the slope of the loss where all answers are equally far beyond the targets, so that rows
    differ by their targets alone; what counts is (sum w)^2 / sum w^2, of the side on which that is more. 1 of targets
    of one sign, of which relative errors may well be what is wanted, and of losses that hear other rows most.

    Args:
        targets: (n, ...) numbers; each column is asked about by itself, and the least of them told.
    """
    targets = targets[spaced(len(targets), _MOST_ROWS_OF_NUMBERS)]
    wide = targets.reshape(len(targets), -1)
    counted = wide[torch.isfinite(wide).all(1)]
    lowest = 1.0
    if not len(counted) or wide.shape[1] > _MOST_COLUMNS:
        return lowest
    known = targets[torch.isfinite(wide).all(1)]
    unit = float(counted.std(correction=0)) + float(counted.abs().max())
    slopes = [slope_of(loss, torch.full_like(known, side * _FAR * unit), known) for side in (1, -1)]
    for column, numbers in enumerate(counted.unbind(1)):
        if not float(numbers.min()) <= 0 <= float(numbers.max()) or len(torch.unique(numbers)) <= _FEW:
            continue
        shares = [_counting(found, column, numbers) for found in slopes if found is not None]
        lowest = min(lowest, max(shares, default=1.0) if len(shares) == len(slopes) else 1.0)
    return lowest


def _counting(slopes: Tensor, column: int, targets: Tensor) -> float:
    weights = slopes.reshape(len(targets), -1)[:, column].double().abs()
    total, squares = float(weights.sum()), float(weights.square().sum())
    order = weights.argsort(descending=True)
    heaviest = order[: 1 + int((weights[order].cumsum(0) < total / 2).sum())]
    near = float(targets[heaviest].abs().max()) < float(targets.abs().median())
    return total**2 / squares / len(weights) if near and 0 < squares < math.inf else 1.0
