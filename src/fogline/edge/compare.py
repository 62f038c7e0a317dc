"""How far apart the outputs of two stages lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fogline.edge.capture import in_parts
from fogline.edge.report import CLOSE, Difference

_ROWS = 64  # at a time
_LEVELS = 255  # steps of eight bits


def outputs_of(model: Callable[[Tensor], Any], inputs: Tensor) -> list[Tensor]:
    """The floating-point outputs of a model, in order, each (b, ...)."""
    with torch.no_grad():
        leaves = pytree.tree_leaves(in_parts(model, inputs, _ROWS))
    return [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def difference(
    first: list[Tensor],
    second: list[Tensor],
    like: list[Tensor],
    threshold: float | None,
    *,
    multilabel: bool = False,
    places: bool = False,
) -> Difference:
    """The difference of two lists of outputs.

    Args:
        first, second: outputs of two stages, each (b, ...).
        like: outputs of float, whose range an output step is 1/255 of.
        threshold: of yes/no outputs; None where outputs are no decisions. Decisions are those of the first output.
        multilabel: whether each of several outputs says yes or no, where else the highest is the decision.
        places: whether the first output is of classes at many places, (b, classes, places), mostly of none.

    >>> one = [torch.tensor([[0.0, 255.0], [2.0, 1.0]])]
    >>> difference(one, [one[0] + torch.tensor([0.0, 2.0])], one, 0.0)
    Difference(largest=2.0, steps=2.0, decisions=0.5, close=1.0)
    """
    largest, steps, far, count = 0.0, 0.0, 0, 0
    for a, b, reference in zip(first, second, like, strict=True):
        apart = (a - b).abs()
        step = float(reference.max() - reference.min()) / _LEVELS
        most = float(apart.max())
        largest, steps = max(largest, most), max(steps, most / step if step else 0.0)
        far, count = far + int((apart > CLOSE * step).sum()), count + apart.numel()
    same = None
    if threshold is not None:
        pair = first[0], second[0]
        same = _same_places(*pair, threshold) if places else _same(*pair, threshold, multilabel)
    return Difference(largest, steps, same, 1 - far / max(1, count))


def _same(first: Tensor, second: Tensor, threshold: float, multilabel: bool) -> float:
    wide = first.ndim > 1 and first.shape[1] > 1 and not multilabel
    decided = [(item.argmax(1) if wide else item > threshold) for item in (first, second)]
    return float((decided[0] == decided[1]).double().mean())


def _same_places(first: Tensor, second: Tensor, threshold: float) -> float:  # (b, classes, places)
    """Of the places where one of the two says that there is something, those where both say the same."""
    found = []
    for item in (first, second):
        best, kind = item.max(1)
        found.append(torch.where(best > threshold, kind, -1))
    said = (found[0] >= 0) | (found[1] >= 0)
    return float((found[0] == found[1])[said].double().mean()) if bool(said.any()) else 1.0
