"""The loss of other answers than a model's: the same for all rows, or those of other rows.

What only a loss can read is measured against them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data.source import Batch, leaves, map_tree, rows_of
from fogline.descent.batches import split
from fogline.descent.objective import Objective
from fogline.descent.randomness import private_randomness
from fogline.doctor.case import FAILURES

_AT_ONCE = 512  # rows


def loss_of(objective: Objective, batch: Batch, said: Callable[[Tensor], Tensor]) -> float | None:
    """Mean loss of other answers than the model's, made of them; None where they are no tensors with a row each.

    Where the loss never calls the model itself, but methods of its own, those of the modules that these call.
    """
    whole = _loss_of(objective, batch, said, [objective.model])
    return whole if whole is not None else _loss_of(objective, batch, said, list(objective.model.children()))


def _loss_of(
    objective: Objective, batch: Batch, said: Callable[[Tensor], Tensor], answering: list[nn.Module]
) -> float | None:
    seen: list[Tensor] = []

    def change(module: nn.Module, given: Any, found: Any) -> Any:
        rows = rows_of(given) if leaves(given) and leaves(given)[0].ndim else 0
        changed = [leaf for leaf in leaves(found) if _a_row_each(leaf, rows)]
        seen.extend(changed)
        return map_tree(lambda leaf: said(leaf) if _a_row_each(leaf, rows) else leaf, found) if changed else found

    handles = [module.register_forward_hook(change) for module in answering]
    sums, total = 0.0, 0
    try:
        with private_randomness(torch.device("cpu")), objective.without_learning():
            for piece in pieces_of(batch):
                rows = rows_of(piece)
                sums += float(objective(placed(piece, next(objective.model.parameters()).device)).detach()) * rows
                total += rows
    except FAILURES:
        return None
    finally:
        for handle in handles:
            handle.remove()
    return sums / total if seen and math.isfinite(sums) else None


def _a_row_each(leaf: Tensor, rows: int) -> bool:
    return leaf.ndim > 0 and len(leaf) == rows > 1 and leaf.is_floating_point()


def mean_of_all(leaf: Tensor) -> Tensor:
    return leaf.mean(0, keepdim=True).expand_as(leaf)


def nothing(leaf: Tensor) -> Tensor:
    """Zeros; no answer where logarithms of shares are wanted, of which zero is all."""
    logarithms = bool((leaf <= 0).all()) and any(_ones(leaf.exp(), dim) for dim in range(1, leaf.ndim))
    return torch.full_like(leaf, math.nan) if logarithms else torch.zeros_like(leaf)


def _ones(shares: Tensor, dim: int) -> bool:
    sums = shares.sum(dim)
    return torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def drawn(leaf: Tensor) -> Tensor:
    return torch.rand(leaf.shape, generator=torch.Generator().manual_seed(0)).to(leaf)


def drawn_for_others(leaf: Tensor) -> Tensor:
    return drawn(leaf).roll(1, 0)


def pieces_of(batch: Batch) -> Any:
    return split(batch, _AT_ONCE)


def placed(batch: Batch, device: torch.device) -> Batch:
    return batch if device.type == "cpu" else map_tree(lambda leaf: leaf.to(device), batch)
