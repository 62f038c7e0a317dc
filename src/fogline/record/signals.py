"""The signals of every step: kept where they arise, written in batches, read by everything else."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from fogline.record.probes import Budget, Probed
from fogline.record.store import Store

_ROWS = 4096
_SECONDS = 0.5
_ALWAYS = 2000


class Recorder:
    """Collects the rows of a run and writes them now and then.

    Every step has its row, until steps come faster than rows can be written inside the budget: then every second,
    fourth, ... one has (:attr:`stride`).
    """

    def __init__(self, store: Store, budget: Budget) -> None:
        self.store, self.budget = store, budget
        self.stride = 1
        self.written = 0
        self._pending: list[tuple[int, float, int, float, float | Tensor, float, float | Tensor]] = []
        self._probed: dict[int, Probed] = {}
        self._flushed = time.perf_counter()
        self.last = math.nan  # the loss of the last row written

    def step(
        self,
        step: int,
        epoch: float,
        examples: int,
        seconds: float,
        loss: float | Tensor,
        lr: float,
        gradient_norm: float | Tensor,
    ) -> None:
        """Keep one step; seconds count from the start of the run."""
        if step % self.stride == 0:
            self._pending.append((step, epoch, examples, seconds, loss, lr, gradient_norm))

    def probe(self, probed: Probed) -> None:
        """Keep what a probe measured; it goes into the row of its step."""
        self._probed[probed.step] = probed

    def due(self, now: float) -> bool:
        """Whether it is time to flush: half a second has passed, or many rows wait."""
        return now - self._flushed > _SECONDS or len(self._pending) >= _ROWS

    def flush(self) -> None:
        """Write what waits. This is where the host waits for the device, and nowhere else.

        Raises:
            OSError: the folder cannot be written.
        """
        started = time.perf_counter()
        kept = self._pending
        losses, norms = _numbers([row[4] for row in kept]), _numbers([row[6] for row in kept])
        rows = []
        for (step, epoch, examples, seconds, _, lr, _), loss, norm in zip(kept, losses, norms, strict=True):
            extra = self._probed.get(step)
            signals = (
                (None, None, None, None)
                if extra is None
                else (extra.update_norm, extra.update_ratio, extra.step_cosine, extra.overshoot)
            )
            rows.append((step, epoch, examples, seconds, loss, lr, norm, *signals))
        for probed in self._probed.values():
            self.store.layers(probed.layers)
        self._probed = {}
        if rows:
            self.last = rows[-1][4]
            self.store.steps(rows)
        self.store.flush()
        self._pending = []
        self._account(started, len(rows))

    def first_not_finite(self) -> int | None:
        """The first waiting step whose loss or gradient norm is not finite."""
        losses, norms = (_numbers([row[k] for row in self._pending]) for k in (4, 6))
        for row, loss, norm in zip(self._pending, losses, norms, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                return row[0]
        return None

    def forget(self, step: int) -> None:
        """Drop what waits of this step and later ones: they will be taken again."""
        self._pending = [row for row in self._pending if row[0] < step]

    def _account(self, started: float, rows: int) -> None:
        now = time.perf_counter()
        cost, period = now - started, max(1e-9, now - self._flushed)
        self.budget.spent += cost
        self.written += rows
        self._flushed = now
        # Writing may take half of the budget; the probes have the rest.
        if self.written > _ALWAYS and rows > 100 and cost > 0.5 * self.budget.share * period:
            self.stride *= 2


def _numbers(values: Sequence[float | Tensor]) -> list[float]:
    """Plain numbers; the tensors among them come in one transfer."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors:
        return list(values)  # type: ignore[arg-type]  # no tensor is left
    moved = iter(torch.stack([tensor.detach().float() for tensor in tensors]).tolist())
    return [next(moved) if isinstance(value, Tensor) else value for value in values]
