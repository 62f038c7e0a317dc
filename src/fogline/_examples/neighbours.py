"""Nearest neighbours in blocks of bounded memory: exact, and of very many rows in cells.

Comparing every row with every other takes time as the square of their number. Above 50,000 rows each is compared only
with those of the cells nearest to its own, which finds about nine in ten; benchmarks/labels.py measures it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fogline._examples.dynamics import Floats

_BLOCK = 2**24  # numbers of a block of distances: 64 MiB
MOST_EXACT = 50_000
_CELL = 1_000  # rows of a cell, about
_CELLS = 8  # that are searched


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
        among: where; by default among the rows themselves, without the row itself, and in cells if they are many.
        k: how many, at most as many as there are.

    Returns:
        Positions and distances, (N, k) each.

    >>> nearest(torch.tensor([[0.0], [1.0], [3.0]]), k=1)[0].ravel().tolist()
    [1, 0, 1]
    """
    if among is None and len(rows) > MOST_EXACT:
        return nearest_by_cells(rows, k)
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


def nearest_by_cells(
    rows: Tensor,  # (N, d)
    k: int,
    cell: int = _CELL,
    cells: int = _CELLS,
) -> tuple[NDArray[np.int64], Floats]:
    """As :func:`nearest` among the rows themselves, but each is compared only with those of some cells.

    Args:
        rows: what neighbours are looked for of.
        k: how many; fewer than rows in a cell.
        cell: rows of a cell, about.
        cells: that are searched, its own among them.
    """
    generator = torch.Generator().manual_seed(0)
    count = max(1, len(rows) // cell)
    centres = rows[torch.randperm(len(rows), generator=generator)[:count]]
    label = _assigned(rows, centres)
    sizes = torch.bincount(label, minlength=count).clamp(min=1)[:, None]
    centres = torch.zeros_like(centres).index_add_(0, label, rows) / sizes
    label = _assigned(rows, centres)
    order = torch.argsort(label, stable=True)
    bounds = torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(label, minlength=count).cumsum(0)]).tolist()
    members = [order[bounds[c] : bounds[c + 1]] for c in range(count)]
    around = torch.cdist(centres, centres).topk(min(cells, count), largest=False).indices
    places = np.zeros((len(rows), k), dtype=np.int64)
    distances = np.full((len(rows), k), np.inf, dtype=np.float32)
    for own, near in zip(members, around.tolist(), strict=True):
        if not len(own):
            continue
        pool = torch.cat([members[c] for c in near])
        found, far = nearest(rows[own], rows[pool], k + 1)
        where = pool.numpy()[found]
        itself = where == own.numpy()[:, None]
        itself[:, -1] |= ~itself.any(1)  # of copies another may have taken its place: then the last is dropped
        places[own.numpy(), : where.shape[1] - 1] = where[~itself].reshape(len(own), -1)
        distances[own.numpy(), : where.shape[1] - 1] = far[~itself].reshape(len(own), -1)
    return places, distances


def _assigned(rows: Tensor, centres: Tensor) -> Tensor:
    """(N,) the nearest centre of each row."""
    squares = centres.square().sum(1)
    size = max(1, _BLOCK // len(centres))
    return torch.cat([torch.addmm(squares, part, centres.T, alpha=-2.0).argmin(1) for part in torch.split(rows, size)])
