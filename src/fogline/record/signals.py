"""The signals of every step: kept where they arise, written in batches, read by everything else."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from fogline.record.probes import Budget, Probed
from fogline.record.store import Store

if TYPE_CHECKING:
    from fogline.descent.step import Outcomes

_ROWS = 4096
_SECONDS = 0.5
_ALWAYS = 2000
_ENOUGH = 200
_SPARSEST = 1024
_NOT_PROBED = (None, None, None, None)

Known = TypeVar("Known", float, float | None)
Signals = tuple[float, float, float | None, float | None] | tuple[None, None, None, None]
Row = tuple[int, float, int, float, float | None, float | None, float | None]
"""Step, epoch, examples and seconds before it, loss, lr, gradient norm; None where one was not seen."""
Block = tuple[int, float, int, float, "Outcomes", Sequence[int]]
"""Steps of one call: the first, epoch, examples and seconds before it, what it gave, and which of them get a row."""


class Recorder:
    """Collects the rows of a run and writes them now and then.

    Every step has its row, until steps come faster than rows can be written inside the budget: then every second,
    fourth, ... one has (:attr:`stride`).
    """

    def __init__(self, store: Store, budget: Budget) -> None:
        self.store, self.budget = store, budget
        self.stride = 1
        self.written = 0
        self._pending: list[Block] = []
        self._waiting = 0
        self._rows: list[Row] = []
        self._probed: dict[int, Signals] = {}
        self._sharpness: list[tuple[int, float]] = []
        self._flushed = time.perf_counter()
        self.last = math.nan  # the loss of the last row written

    def steps(
        self, first: int, epoch: float, examples: int, seconds: float, outcomes: Outcomes, *, probed: bool = False
    ) -> None:
        """Keep the steps of one call.

        Args:
            first: number of the first of them.
            epoch, examples: passes over the data, and examples seen, before them.
            seconds: from the start of the run.
            outcomes: losses, gradient norms and learning rates, still on the device or not.
            probed: a probe looks at them: the last has its row however many are left out.
        """
        count = len(outcomes.losses)
        kept: Sequence[int] = range(-first % self.stride, count, self.stride)
        if (probed or not outcomes.finite) and count - 1 not in kept:
            kept = [*kept, count - 1]
        if kept:
            self._pending.append((first, epoch, examples, seconds, outcomes, kept))
            self._waiting += len(kept)

    def row(self, row: Row) -> None:
        """Keep one step whose numbers are known already."""
        self._rows.append(row)

    def probe(self, probed: Probed) -> None:
        """Keep what a probe measured; it goes into the row of its step."""
        signals = (probed.update_norm, probed.update_ratio, probed.step_cosine, probed.overshoot)
        self._probed[probed.step] = signals
        self.store.layers(probed.layers)

    def sharpness(self, step: int, value: float) -> None:
        """Keep the sharpness after a step, as a share of the optimizer's limit."""
        self._sharpness.append((step, value))

    def due(self, now: float) -> bool:
        """Whether it is time to flush: half a second has passed, or many rows wait."""
        return now - self._flushed > _SECONDS or self._waiting >= _ROWS

    def flush(self, collecting: float = 0.0) -> None:
        """Write what waits. This is where the host waits for the device, and nowhere else.

        Args:
            collecting: seconds that collecting the rows has cost since the last flush, where that is worth counting;
                they are in the budget already.

        Raises:
            OSError: the folder cannot be written.
        """
        started = time.perf_counter()
        pending, self._pending, self._waiting = self._pending, [], 0
        plain, self._rows = self._rows, []
        probed, self._probed = self._probed, {}
        kept = [(block, k) for block in pending for k in block[5]]
        losses = numbers([block[4].losses[k] for block, k in kept])
        norms = numbers([block[4].norms[k] for block, k in kept])
        rows: list[tuple[float | None, ...]] = [
            (block[0] + k, *block[1:4], loss, block[4].rates[k], norm, *probed.get(block[0] + k, _NOT_PROBED))
            for (block, k), loss, norm in zip(kept, losses, norms, strict=True)
        ]
        rows += [(*r, *probed.get(r[0], _NOT_PROBED)) for r in plain if r[0] % self.stride == 0 or r[0] in probed]
        if rows:
            self.last = math.nan if rows[-1][4] is None else rows[-1][4]
            self.store.steps(rows)
        for step, value in self._sharpness:
            self.store.sharpness(step, value)
        self._sharpness = []
        self.store.flush()
        self._account(started, len(rows), collecting)

    def first_not_finite(self) -> int | None:
        """The first waiting step whose loss or gradient norm is not finite."""
        for first, _, _, _, outcomes, _ in self._pending:
            losses, norms = numbers(outcomes.losses), numbers(outcomes.norms)
            for k, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    return first + k
        return None

    def forget(self, step: int) -> None:
        """Drop what waits of this step and later ones: they will be taken again (calls of one step only)."""
        self._pending = [block for block in self._pending if block[0] < step]
        self._waiting = len(self._pending)

    def _account(self, started: float, rows: int, collecting: float) -> None:
        now = time.perf_counter()
        cost, period = now - started, max(1e-9, now - self._flushed)
        self.budget.spent += cost
        self.written += rows
        self._flushed = now
        # Writing may take half of the budget; the probes have the rest.
        most = 0.5 * self.budget.share * period
        if self.written > _ALWAYS and rows > 100 and cost > most:
            self.stride *= 2
        elif self.written > _ENOUGH and rows > 1:
            while collecting > most and self.stride < _SPARSEST:
                self.stride, collecting = self.stride * 2, collecting / 2


def numbers(values: Sequence[Tensor | Known]) -> list[float | Known]:
    """Plain numbers, None as it is; the tensors among them come in one transfer."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors:
        return list(values)  # type: ignore[arg-type]  # no tensor is left
    device = tensors[0].device
    moved = iter(torch.stack([tensor.detach().float().to(device) for tensor in tensors]).tolist())
    return [next(moved) if isinstance(value, Tensor) else value for value in values]
