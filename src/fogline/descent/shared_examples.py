"""What each example does, where the rows of a step are spread over processes: each records its own.

At the end of an epoch, and before a checkpoint, all of them get what all have recorded, so that the one that writes has
every row, and a run that goes on does so from the same columns in any number of processes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fogline.descent.batches import Batches
from fogline.descent.group import World
from fogline.descent.share import share_of
from fogline.record.columns import Columns
from fogline.record.examples import ExampleRecorder
from fogline.record.store import Store


class SharedExamples(ExampleRecorder):
    """Records the share of one process.

    Args:
        run, columns, batches, store: as for :class:`fogline.record.examples.ExampleRecorder`.
        world: the processes.
    """

    def __init__(self, run: Path, columns: Columns, batches: Batches, store: Store, world: World) -> None:
        super().__init__(run, columns, batches, store)
        self.world = world
        self._common = (0, 0)  # epoch, and the place in it before which all processes have all columns

    def span(self, step: int) -> tuple[int, int]:
        start, stop = super().span(step)
        first, last = share_of(stop - start, self.world.rank, self.world.size)
        return start + first, start + last

    def meet(self, step: int) -> None:
        """All processes get the columns of all, as far as they are before this step."""
        epoch, within = divmod(step - 1, self.steps_per_epoch)
        if step == 0 or epoch != self.epoch.number:
            return
        self._compute()
        place = self.batches.place(epoch * self.steps_per_epoch + within)
        assert place is not None
        first = self._common[1] if self._common[0] == epoch else 0
        if place.stop > first:
            values = self.epoch.values[:, first : place.stop]
            # Of every place one process has the columns, bit by bit; of the others nothing is added.
            bits = torch.where(self._is_own(first, place.stop), values, 0.0).contiguous().view(torch.int32)
            self.world.sum(bits, f"the columns of the examples before step {step}")
            values.copy_(bits.view(torch.float32))
        self._common = epoch, place.stop

    def _is_own(self, first: int, stop: int) -> Tensor:
        size, rank = self.world.size, self.world.rank
        places = torch.arange(first, stop, device=self.epoch.values.device)
        rows = self.batches.batch_size
        row = places % rows
        of_step = (self.count - (places - row)).clamp_max(rows)
        start, end = of_step * rank // size, of_step * (rank + 1) // size
        return (row >= start) & (row < end)

    def collect(self) -> None:
        if not self.world.first:
            self._closed = []
        super().collect()

    def back(self, step: int) -> None:
        super().back(step)
        place = self.batches.place(step)
        if place is not None and place.epoch == self._common[0]:
            self._common = place.epoch, min(self._common[1], place.start)

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        super().load(tensors, step)
        place = self.batches.place(step)
        self._common = (0, 0) if place is None else (place.epoch, place.start)
