"""The order of data that is read in chunks: chunks permuted, and the rows of a window of chunks permuted among them.

As :mod:`fogline.descent.order`, a pure function of (seed, epoch, position): an epoch is a permutation of the chunks,
cut into windows of as many as fit; the rows of a window are permuted by a key of its own. To go to a position one
window has to be read, whatever lies before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fogline.data.privacy import derived_seed
from fogline.data.source import Batch, leaves, map_tree, part
from fogline.data.streamed import Streamed, joined
from fogline.descent.order import permute, permuted_range

_BLOCK_BYTES = 4 << 20  # gathered at once


@dataclass(frozen=True)
class WindowOrder:
    """One epoch.

    Attributes:
        chunks: (C,) in the order they are read.
        sizes: (C,) rows of each of these.
        firsts: (W + 1,) which of them each window begins with.
        starts: (W + 1,) the position each window begins at.
    """

    chunks: NDArray[np.int64]
    sizes: NDArray[np.int64]
    firsts: NDArray[np.int64]
    starts: NDArray[np.int64]
    seed: int
    epoch: int
    shuffle: bool

    @classmethod
    def of(cls, sizes: NDArray[np.int64], window: int, seed: int, epoch: int, shuffle: bool) -> WindowOrder:
        """The order of an epoch.

        Args:
            sizes: (C,) rows of each chunk.
            window: rows of a window at most; a chunk at least.
            seed, epoch: the key.
            shuffle: False leaves the chunks and their rows in the order of the files.

        >>> order = WindowOrder.of(np.array([3, 3, 2]), window=6, seed=0, epoch=0, shuffle=True)
        >>> sorted(order.rows(0, 8, np.array([0, 3, 6, 8])).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7]
        """
        count = len(sizes)
        chunks = permute(seed, epoch, np.arange(count), count) if shuffle else np.arange(count)
        ordered = sizes[chunks]
        firsts, held = [0], 0
        for place, size in enumerate(ordered.tolist()):
            if held and held + size > window:
                firsts.append(place)
                held = 0
            held += size
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(ordered)])
        starts = np.array([*firsts, count], np.int64)
        return cls(chunks, ordered, starts, ends[starts], seed, epoch, shuffle)

    @property
    def windows(self) -> int:
        return len(self.firsts) - 1

    def window_at(self, position: int) -> int:
        """The window that a position lies in."""
        return int(np.searchsorted(self.starts, position, side="right")) - 1

    def chunks_of(self, window: int) -> list[int]:
        """The chunks a window is made of."""
        found: list[int] = self.chunks[self.firsts[window] : self.firsts[window + 1]].tolist()
        return found

    def within(self, window: int, start: int, stop: int) -> NDArray[np.int64]:
        """Which rows of a window, chunk after chunk, stand at the positions ``start`` to ``stop`` of the epoch."""
        first, last = int(self.starts[window]), int(self.starts[window + 1])
        if not self.shuffle:
            return np.arange(start - first, stop - first)
        key = derived_seed(self.seed, self.epoch, window)
        return permuted_range(key, self.epoch, start - first, stop - first, last - first)

    def rows(self, start: int, stop: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which rows of the data stand at these positions.

        Args:
            numbers: (C + 1,) the number of the first row of each chunk.
        """
        found = []
        while start < stop:
            window = self.window_at(start)
            end = min(stop, int(self.starts[window + 1]))
            inside = self.within(window, start, end)
            part = slice(self.firsts[window], self.firsts[window + 1])
            ends = np.cumsum(self.sizes[part])
            chunk = np.searchsorted(ends, inside, side="right")
            before = ends - self.sizes[part]
            found.append(numbers[self.chunks[part][chunk]] + inside - before[chunk])
            start = end
        return np.concatenate(found)


class Windows:
    """The batches of a source in chunks; the window that was read last is kept.

    At most two windows are in memory: the one whose rows are given out, and the chunks that are decoded meanwhile.
    """

    def __init__(self, source: Streamed, batch_size: int, seed: int, shuffle: bool, workers: int) -> None:
        self.source, self.batch_size, self.seed, self.shuffle, self.workers = source, batch_size, seed, shuffle, workers
        self._depth = max(1, source.window_rows // max(1, int(source.sizes.max())))
        self._block = max(1, _BLOCK_BYTES // max(1, source.row_bytes) // batch_size) * batch_size
        self._order = self._made(0)
        self._kept: tuple[int, int] = (-1, -1)  # epoch and number of the window
        self._window: Batch = None

    def order(self, epoch: int) -> WindowOrder:
        """The order of an epoch."""
        if self._order.epoch != epoch:
            self._order = self._made(epoch)
        return self._order

    def _made(self, epoch: int) -> WindowOrder:
        return WindowOrder.of(self.source.sizes, self.source.window_rows, self.seed, epoch, self.shuffle)

    def rows(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Which rows of the data stand at these positions."""
        return self.order(epoch).rows(start, stop, self.source.starts)

    def at(self, epoch: int, start: int, stop: int) -> Batch:
        """The rows at these positions; a window other than the one kept is read for it."""
        order, parts = self.order(epoch), []
        while start < stop:
            window = order.window_at(start)
            end = min(stop, int(order.starts[window + 1]))
            if self._kept != (epoch, window):
                self._read(order, window, self.source.ahead(order.chunks_of(window), self._depth))
            parts.append(_gathered(self._window, order.within(window, start, end)))
            start = end
        return joined(parts)

    def stream(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches from a position of an epoch on, epoch after epoch without end."""
        carry: Batch = None
        for block, ends in self._blocks(epoch, start):
            rows = block if carry is None else joined([carry, block])
            size = leaves(rows)[0].shape[0]
            stop = size if ends else size - size % self.batch_size
            for first in range(0, stop, self.batch_size):
                yield part(rows, first, min(first + self.batch_size, stop))
            carry = None if stop == size else part(rows, stop, size)

    def _blocks(self, epoch: int, start: int) -> Iterator[tuple[Batch, bool]]:
        """A few megabytes of rows in order at a time, and whether an epoch ends with them."""
        reader: Iterator[Batch] | None = None
        while True:
            order = self.order(epoch)
            for window in range(order.window_at(start), order.windows):
                if reader is None and self._kept != (epoch, window):
                    reader = self._reader(epoch, window)
                if reader is not None:
                    self._read(order, window, reader)
                held, stop = self._window, int(order.starts[window + 1])
                while start < stop:
                    end = min(start + self._block, stop)
                    yield _gathered(held, order.within(window, start, end)), end == order.starts[-1]
                    if reader is None:  # the window was there: what follows is read while it is given out
                        reader = self._reader(*_following(order, window))
                    start = end
                del held
            epoch, start = epoch + 1, 0

    def _reader(self, epoch: int, window: int) -> Iterator[Batch]:
        """Decoded chunks from a window on, without end."""
        return self.source.ahead(self._chunks(epoch, window), self._depth, self.workers)

    def _chunks(self, epoch: int, window: int) -> Iterator[int]:
        while True:
            order = self._made(epoch)
            yield from order.chunks[order.firsts[window] :].tolist()
            epoch, window = epoch + 1, 0

    def _read(self, order: WindowOrder, window: int, reader: Iterator[Batch]) -> None:
        """Put the chunks that come next together as the window that is kept; the one before is let go first."""
        self._kept, self._window = (-1, -1), None
        rows, made, start = int(order.starts[window + 1] - order.starts[window]), None, 0
        for _ in order.chunks_of(window):
            chunk = next(reader)
            if made is None:
                made = map_tree(lambda leaf: leaf.new_empty((rows, *leaf.shape[1:])), chunk)
            stop = start + leaves(chunk)[0].shape[0]
            for into, leaf in zip(leaves(made), leaves(chunk), strict=True):
                into[start:stop] = leaf
            start = stop
        self._kept, self._window = (order.epoch, window), made


def _following(order: WindowOrder, window: int) -> tuple[int, int]:
    return (order.epoch, window + 1) if window + 1 < order.windows else (order.epoch + 1, 0)


def _gathered(window: Batch, rows: NDArray[np.int64]) -> Batch:
    index = torch.from_numpy(rows)
    return map_tree(lambda leaf: leaf.index_select(0, index), window)
