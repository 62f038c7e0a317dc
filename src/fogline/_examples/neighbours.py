"""Nearest neighbours, exact, in blocks of bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fogline._examples.dynamics import Floats

_BLOCK = 2**24  # numbers of a block of distances: 64 MiB


def unit(vectors: Any) -> Tensor:
    """Vectors (N, ...) as rows of unit length about their mean, (N, d) float32: near is what points the same way.

    >>> unit([[0.0, 2.0], [0.0, -2.0]]).tolist()
    [[0.0, 1.0], [0.0, -1.0]]
    """
    rows = torch.as_tensor(np.asarray(vectors), dtype=torch.float32).flatten(1)
    rows = rows - rows.mean(0)
    length: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / length.clamp(min=1e-12)


def nearest(
    rows: Tensor,  # (N, d)
    among: Tensor | None = None,  # (M, d)
    k: int = 10,
) -> tuple[NDArray[np.int64], Floats]:
    """The k nearest of each row by Euclidean distance, nearest first.

    Args:
        rows: what neighbours are looked for of.
        among: where; by default among the rows themselves, without the row itself.
        k: how many, at most as many as there are.

    Returns:
        Positions and distances, (N, k) each.

    >>> nearest(torch.tensor([[0.0], [1.0], [3.0]]), k=1)[0].ravel().tolist()
    [1, 0, 1]
    """
    others = rows if among is None else among
    k = min(k, len(others) - (among is None))
    squares = others.square().sum(1)
    places, distances = [], []
    size = max(1, _BLOCK // max(1, len(others)))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        far = torch.addmm(squares, part, others.T, alpha=-2.0)
        if among is None:
            far[torch.arange(len(part)), torch.arange(start, start + len(part))] = torch.inf
        found = far.topk(k, largest=False)
        places.append(found.indices)
        distances.append((found.values + part.square().sum(1, keepdim=True)).clamp(min=0.0).sqrt())
    if not places:
        return np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32)
    return torch.cat(places).numpy(), torch.cat(distances).numpy()
