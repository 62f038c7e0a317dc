"""How far apart the outputs of two stages lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fogline.edge.report import Difference

_LEVELS = 255  # steps of eight bits


def outputs_of(model: Callable[[Tensor], Any], inputs: Tensor) -> list[Tensor]:
    """The floating-point outputs of a model, in order, each (b, ...)."""
    with torch.no_grad():
        leaves = pytree.tree_leaves(model(inputs))
    return [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def difference(
    first: list[Tensor], second: list[Tensor], like: list[Tensor], threshold: float | None, multilabel: bool = False
) -> Difference:
    """The difference of two lists of outputs.

    Args:
        first, second: outputs of two stages, each (b, ...).
        like: outputs of float, whose range an output step is 1/255 of.
        threshold: of yes/no outputs; None where outputs are no decisions.
        multilabel: whether each of several outputs says yes or no, where else the highest is the decision.

    >>> one = [torch.tensor([[0.0, 255.0], [2.0, 1.0]])]
    >>> difference(one, [one[0] + torch.tensor([0.0, 2.0])], one, 0.0)
    Difference(largest=2.0, steps=2.0, decisions=0.5)
    """
    largest, steps = 0.0, 0.0
    for a, b, reference in zip(first, second, like, strict=True):
        apart = float((a - b).abs().max())
        step = float(reference.max() - reference.min()) / _LEVELS
        largest, steps = max(largest, apart), max(steps, apart / step if step else 0.0)
    same = None if threshold is None else _same(first[0], second[0], threshold, multilabel)
    return Difference(largest, steps, same)


def _same(first: Tensor, second: Tensor, threshold: float, multilabel: bool) -> float:
    wide = first.ndim > 1 and first.shape[1] > 1 and not multilabel
    decided = [(item.argmax(1) if wide else item > threshold) for item in (first, second)]
    return float((decided[0] == decided[1]).double().mean())
