"""Steps whose columns are still to be computed, which together costs a fraction of what each costs on its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fogline.record.columns import Shown

ROWS_TOGETHER = 4096
_BYTES_TOGETHER = 1 << 20
_LARGE = 1 << 18  # bytes of outputs whose columns are computed at once


class Shelf:
    """Memory on the host that the rows of small outputs are copied into, one step after another.

    Outputs that a run holds on to lie between the large blocks that the allocator takes and gives back in every step.
    Of a small convolutional network it then returned memory to the system all the time: 400 page faults a step.

    Args:
        room: rows there is space for.
    """

    def __init__(self, room: int) -> None:
        self.room, self.rows = room, 0
        self._arrays: list[NDArray[Any] | None] = []

    def put(self, shown: Shown) -> bool:
        """Copy the rows of one more; False where they are unlike the others, or too many."""
        stop = self.rows + shown.rows
        given = arrays(shown)
        if stop > self.room or given is None:
            return False
        if not self.rows:
            self._make(given)
        for value, kept in zip(given, self._arrays, strict=True):
            if value is None or kept is None:
                if value is not kept:
                    return False
            elif value.shape[1:] != kept.shape[1:] or value.dtype != kept.dtype:
                return False
        for value, kept in zip(given, self._arrays, strict=True):
            if value is not None and kept is not None:
                kept[self.rows : stop] = value
        self.rows = stop
        return True

    def _make(self, given: list[NDArray[Any] | None]) -> None:
        """Memory for rows such as these, unless there is."""
        wanted = [None if value is None else (value.shape[1:], value.dtype) for value in given]
        if wanted != [None if kept is None else (kept.shape[1:], kept.dtype) for kept in self._arrays]:
            self._arrays = [None if one is None else np.empty((self.room, *one[0]), one[1]) for one in wanted]

    def shown(self) -> Shown:
        """All of it, in the same memory."""
        return Shown(*(None if kept is None else torch.from_numpy(kept[: self.rows]) for kept in self._arrays))


def arrays(shown: Shown) -> list[NDArray[Any] | None] | None:
    """Its tensors as arrays in the same memory, in their order; None where they are not on the host, or of bfloat16."""
    found: list[NDArray[Any] | None] = []
    for value in (shown.outputs, shown.targets, shown.losses, shown.hidden):
        if value is not None and (value.device.type != "cpu" or value.dtype == torch.bfloat16):
            return None
        found.append(None if value is None else value.numpy())
    return found


class Waiting:
    """Steps whose columns are still to be computed: one after another in the epoch.

    Args:
        shelf: an empty one that small outputs are copied into; None keeps them where they are.

    Attributes:
        start: the place of the first row in the epoch.
        rows, nbytes: of all, and of their outputs.
        full: there is enough of it, or it is too large to be put one after the other.
    """

    __slots__ = ("_kept", "full", "nbytes", "rows", "shelf", "start")

    def __init__(self, shelf: Shelf | None = None) -> None:
        self.start, self.rows, self.nbytes, self.full = 0, 0, 0, False
        self.shelf = shelf
        self._kept: list[Shown] = []  # behind what is on the shelf

    def add(self, shown: Shown) -> None:
        """One more. Most steps end here, and every microsecond counts."""
        first = shown.losses if shown.outputs is None else shown.outputs
        size = 0 if first is None else first.nbytes
        self.rows += shown.rows
        self.nbytes += size
        self.full = self.rows >= ROWS_TOGETHER or self.nbytes >= _BYTES_TOGETHER or size >= _LARGE
        if self._kept or self.shelf is None or size >= _LARGE or not self.shelf.put(shown):
            self._kept.append(shown)

    def parts(self) -> list[Shown]:
        """What waits, neighbours that can be put one after the other as one."""
        runs: list[list[Shown]] = []
        for one in ([self.shelf.shown()] if self.shelf is not None and self.shelf.rows else []) + self._kept:
            if runs and runs[-1][-1].like(one):
                runs[-1].append(one)
            else:
                runs.append([one])
        return [Shown.joined(run) for run in runs]
