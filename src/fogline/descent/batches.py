"""From a step number to its batch: where the order, the source and the batch size meet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fogline.data.reading import Mark
from fogline.data.source import Batch, InMemory, MapStyle, Source, Stream, leaves, map_tree
from fogline.data.source import part as part
from fogline.data.source import rows_of as rows_of
from fogline.data.streamed import Streamed
from fogline.descent.order import permuted_range
from fogline.descent.window import Windows

_BLOCK_BYTES = 4 << 20
_BLOCK_ROWS = 1 << 14
_MARKS = 4


@dataclass(frozen=True)
class Place:
    """Where a step lies in the data: its epoch and the positions ``start`` to ``stop`` in it."""

    epoch: int
    start: int
    stop: int


@dataclass
class Batches:
    """The batches of a run, by step number.

    Data in memory is gathered a few megabytes at a time in the order of the epoch and then only sliced, which costs a
    fraction of an index per step; the values are those of one gather per step.
    """

    source: Source
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    workers: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        self.examples = self.source.size
        if self.examples is not None:
            self.batch_size = min(self.batch_size, self.examples)
        self.steps_per_epoch = None if self.examples is None else -(-self.examples // self.batch_size)
        self._block: tuple[int, int, Batch] = (-1, 0, torch.empty(0))
        self._known: tuple[int, int, NDArray[np.int64]] = (-1, 0, np.empty(0, np.int64))
        self._marks: dict[int, dict[str, Any]] = {}
        self._windows: Windows | None = None
        if isinstance(self.source, Streamed):
            self._windows = Windows(self.source, self.batch_size, self.seed, self.shuffle, self.workers)
        if isinstance(self.source, InMemory) and self.device.type != "cpu":
            self.source = self.source.to(self.device)

    def place(self, step: int) -> Place | None:
        """The place of a step, a closed form; None for a stream, whose length nobody knows."""
        if self.steps_per_epoch is None or self.examples is None:
            return None
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.batch_size
        return Place(epoch, start, min(start + self.batch_size, self.examples))

    def rows_at(self, step: int) -> int | None:
        """How many examples a step sees; None for a stream."""
        if self.steps_per_epoch is None or self.examples is None:
            return None
        last = step % self.steps_per_epoch == self.steps_per_epoch - 1
        return self.examples - (self.steps_per_epoch - 1) * self.batch_size if last else self.batch_size

    def rows(self, step: int) -> NDArray[np.int64] | None:
        """Which examples a step sees, in order; None for a stream."""
        place = self.place(step)
        if place is None or isinstance(self.source, Stream):
            return None
        return self._rows(place.epoch, place.start, place.stop)

    def at(self, step: int) -> Batch:
        """The batch of one step, read on its own.

        Raises:
            ValueError: the source is a stream, which cannot be asked again.
        """
        rows, place = self.rows(step), self.place(step)
        if rows is None or place is None:
            raise ValueError("expected data that can be read by position, received a stream")
        if self._windows is not None:
            return self.placed(self._windows.at(place.epoch, place.start, place.stop))
        if isinstance(self.source, MapStyle):
            return self.placed(self.source.take(torch.from_numpy(rows), self.seed, place.epoch))
        assert isinstance(self.source, InMemory)
        return self.source.take(self.index(rows))

    def run(self, step: int, count: int) -> Batch | None:
        """The batches of ``count`` steps as one, rows one after another, or None where that is not ``count`` full ones.

        Only data in memory can be asked; the steps must lie in one epoch. The next call may overwrite what this one
        gave: fresh memory for every block costs more than filling it.
        """
        place = self.place(step)
        if place is None or not isinstance(self.source, InMemory):
            return None
        stop = place.start + count * self.batch_size
        if self.examples is None or stop > self.examples:
            return None
        epoch, start, rows = self._block
        if epoch != place.epoch or not start <= place.start or stop > start + rows_of(rows):
            end = min(place.start + self.block_rows(count), self.examples)
            again = rows if self.shuffle and rows_of(rows) == end - place.start else None
            epoch, start = place.epoch, place.start
            rows = self._gather(epoch, start, end, again)
            self._block = epoch, start, rows
        return part(rows, place.start - start, stop - start)

    def block_rows(self, multiple: int) -> int:
        """Rows of one gather: a few megabytes, a whole number of steps, and of calls of several steps."""
        assert isinstance(self.source, InMemory)
        assert self.examples is not None
        row_bytes = max(1, self.source.nbytes // max(1, self.examples))
        size = self.batch_size * multiple
        return max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // row_bytes) // size) * size

    def stream(self, step: int) -> Iterator[Batch]:
        """The batches from a step on, without end (a stream starts again when it is exhausted)."""
        if isinstance(self.source, InMemory):
            return self._sliced(step)
        if isinstance(self.source, MapStyle):
            return self._loaded(self.source, step)
        if self._windows is not None:
            place = self.place(step)
            assert place is not None
            return map(self.placed, self._windows.stream(place.epoch, place.start))
        assert isinstance(self.source, Stream)
        return self._streamed(self.source, step)

    def _sliced(self, step: int) -> Iterator[Batch]:
        assert isinstance(self.source, InMemory)
        assert self.examples is not None
        rows = self.block_rows(1)
        place = self.place(step)
        assert place is not None
        epoch, start = place.epoch, place.start
        while True:
            while start < self.examples:
                stop = min(start + rows, self.examples)
                yield from split(self._gather(epoch, start, stop), self.batch_size)
                start = stop
            epoch, start = epoch + 1, 0

    def _loaded(self, source: MapStyle, step: int) -> Iterator[Batch]:
        assert self.examples is not None
        place = self.place(step)
        assert place is not None
        epoch, start = place.epoch, place.start
        while True:
            starts = range(start, self.examples, self.batch_size)
            self._rows(epoch, start, self.examples)  # once for all of them
            indices = [
                self._rows(epoch, first, min(first + self.batch_size, self.examples)).tolist() for first in starts
            ]
            for batch in source.loader(indices, self.workers, self.seed, epoch):
                yield self.placed(batch)
            epoch, start = epoch + 1, 0

    def _streamed(self, source: Stream, step: int) -> Iterator[Batch]:
        marked = step in self._marks
        known = self._marks.get(step, {"epoch": 0, "first": 0, "read": 0, "state": None})
        epoch, first = known["epoch"], known["first"]  # the pass, and the step that it began with
        mark = Mark(known["read"], known["state"])
        while True:
            before = step
            start = (step - first) * self.batch_size
            for batch, behind in source.marked(self.batch_size, start, self.seed, epoch, mark, self.workers):
                step += 1
                self._remember(step, {"epoch": epoch, "first": first, **asdict(behind)})
                yield self.placed(batch)
            if step == before and start == 0:
                raise ValueError("expected a stream that yields examples, received an empty one")
            if step == before and not marked:
                # The step lies in a later pass: find out how many steps one pass has.
                first += sum(1 for _ in source.batches(self.batch_size, 0, self.seed, epoch))
            else:
                first = step
            epoch, mark, marked = epoch + 1, Mark(), False

    def _remember(self, step: int, place: dict[str, Any]) -> None:
        """Where a stream stands before a step; of the last few, since others than the run may read it too."""
        self._marks[step] = place
        if len(self._marks) > _MARKS:
            del self._marks[min(self._marks)]

    def position(self, step: int) -> dict[str, Any] | None:
        """What a checkpoint keeps to find this step of a stream again; None for other data, where the step suffices."""
        place = self._marks.get(step)
        return None if place is None else {"step": step, **place}

    def resume_at(self, place: Mapping[str, Any] | None) -> None:
        """Take note of what :meth:`position` gave."""
        if place is not None:
            self._marks[place["step"]] = {key: place[key] for key in ("epoch", "first", "read", "state")}

    def epoch_rows(self, epoch: int) -> NDArray[np.int64]:
        """Which examples an epoch sees, all of them in its order."""
        assert self.examples is not None
        return self._rows(epoch, 0, self.examples)

    def _rows(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """A block is asked for whole and then in pieces: the last one is kept."""
        assert self.examples is not None
        if self._windows is not None:
            return self._windows.rows(epoch, start, stop)
        if not self.shuffle:
            return np.arange(start, stop)
        kept, first, rows = self._known
        if kept != epoch or start < first or stop > first + len(rows):
            first, rows = start, permuted_range(self.seed, epoch, start, stop, self.examples)
            self._known = epoch, first, rows
        return rows[start - first : stop - first]

    def _gather(self, epoch: int, start: int, stop: int, into: Batch | None = None) -> Batch:
        assert isinstance(self.source, InMemory)
        if not self.shuffle:
            return self.source.slice(start, stop)
        return self.source.take(self.index(self._rows(epoch, start, stop)), into)

    def index(self, rows: NDArray[np.int64]) -> Tensor:
        """Row numbers where the data is, without the host waiting for the device."""
        index = torch.from_numpy(rows)
        if self.device.type == "cpu":
            return index
        return (index.pin_memory() if self.device.type == "cuda" else index).to(self.device, non_blocking=True)

    def placed(self, batch: Any) -> Batch:
        """The batch on the device."""
        if self.device.type == "cpu":
            return batch
        return map_tree(lambda leaf: leaf.to(self.device, non_blocking=True), batch)


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """Consecutive parts of at most ``size`` rows, as views."""
    if type(batch) is tuple and len(batch) == 2 and type(batch[0]) is Tensor and type(batch[1]) is Tensor:
        return zip(torch.split(batch[0], size), torch.split(batch[1], size), strict=True)
    if type(batch) is Tensor:
        return iter(torch.split(batch, size))
    return (part(batch, start, start + size) for start in range(0, rows_of(batch), size))


def same_shape(a: Batch, b: Batch) -> bool:
    """Whether two batches have tensors of the same shapes and types."""
    return [(x.shape, x.dtype) for x in leaves(a)] == [(x.shape, x.dtype) for x in leaves(b)]
