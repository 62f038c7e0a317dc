"""Whether batches differ in their targets by more than chance: the sign of rows that are sorted by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDING = 1e-10
"""Of the squares of numbers: what varies less is the rounding of float32."""


@dataclass(frozen=True)
class Between:
    """The share of the targets' variance that lies between batches (eta squared).

    Attributes:
        share: as found.
        by_chance: expected of rows in random order: (k - 1) / (n - 1) for k batches of n rows in all.
    """

    share: float
    by_chance: float


def between_batches(batches: Sequence[Tensor]) -> Between | None:
    """What lies between batches, where that is more than chance; None else, or where it cannot be told.

    >>> rows = torch.tensor([0.0] * 40 + [1.0] * 40)[:, None]
    >>> between_batches(rows.split(8)).share
    1.0

    Args:
        batches: targets as columns of numbers, each (b, k).
    """
    columns = torch.cat(list(batches)).double()
    size, count = len(columns), len(batches)
    if count < 2 or size < max(8, 2 * count) or not bool(torch.isfinite(columns).all()):
        return None
    mean = columns.mean(0)
    whole = float((columns - mean).square().sum())
    if not whole > _ROUNDING * float(columns.square().sum()):
        return None
    share = sum(len(batch) * float((batch.double().mean(0) - mean).square().sum()) for batch in batches) / whole
    by_chance = (count - 1) / (size - 1)
    error = math.sqrt(2 * (count - 1)) / (size - 1)  # of a chi-squared with k - 1 degrees, over n - 1
    return Between(share, by_chance) if share > max(by_chance + 6 * error, 2 * by_chance) else None
