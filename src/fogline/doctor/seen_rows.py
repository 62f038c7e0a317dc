"""The rows that a watched loop showed at first, and what classical learners make of them where the loop learned nothing."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

_MOST_NUMBERS, _MOST_OF_A_BATCH = 1_000_000, 100_000
_FEWEST = 100


class SeenRows:
    """Inputs and targets of some batches, on the CPU."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._left = _MOST_NUMBERS

    def add(self, given: tuple[Any, ...], targets: Tensor) -> None:
        """Keep a batch whose model was called with one tensor, of as many rows as there are targets."""
        if len(given) != 1 or not isinstance(given[0], Tensor) or not targets.ndim or len(given[0]) != len(targets):
            return
        rows = min(len(targets), _MOST_OF_A_BATCH // max(1, given[0][:1].numel()))
        size = rows * given[0][:1].numel()
        if rows and size <= self._left:
            self._left -= size
            self._batches.append(tuple(t.detach()[:rows].cpu().clone() for t in (given[0], targets)))  # type: ignore[arg-type]

    def tell(self, loss_fn: Any) -> dict[str, float] | None:
        """How well the best of the classical learners answers rows it did not learn from, by those it did.

        Returns:
            The score, 0 for the best constant answer and 1 for a perfect one; a standard error of it; and the rows.
            None where there are too few, or none that such learners read.
        """
        from fogline.doctor.case import FAILURES
        from fogline.doctor.reference import features, score_of
        from fogline.doctor.yardstick import Yardstick, error_of

        with suppress(*FAILURES):
            inputs, targets = (torch.cat(list(parts)) for parts in zip(*self._batches, strict=True))
            read = features(inputs)
            if read is None or targets.ndim > 2 or not bool(torch.isfinite(read).all()):
                return None
            if read.shape == targets.shape and torch.allclose(read, targets.double()):
                return None  # an auto-encoder, which a linear map copies
            first = _without_copies(read)
            yardstick = Yardstick.of(targets, loss_fn)
            if len(first) >= _FEWEST and yardstick.work in ("classes", "binary", "regression"):
                score = score_of(read[first], targets[first], yardstick)
                error = error_of(len(first) // 5, yardstick.classes)
                return {"score": score, "error": error, "rows": len(first)}
        return None


def _without_copies(rows: Tensor) -> Tensor:
    """Positions of rows that differ: a copy of a row that was learned from is answered by heart."""
    _, of = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((int(of.max()) + 1,), len(rows))
    return first.scatter_reduce(0, of, torch.arange(len(rows)), "amin").sort().values
