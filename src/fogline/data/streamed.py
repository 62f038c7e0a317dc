"""A table larger than memory as a source: rows by number, and chunks decoded ahead by a thread or by processes."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from fogline.data.chunks import Chunks
from fogline.data.privacy import derived_seed
from fogline.data.source import Batch, cast, leaves, map_tree, part
from fogline.data.tables import TableEncoder

WINDOW_BYTES = 64 << 20
"""What the rows that are shuffled together take, unless the recipe says how many they are."""
_FINGERPRINTED = 8  # rows whose values count


@dataclass(frozen=True)
class Streamed:
    """The training (or held-out) rows of tables that are read chunk by chunk.

    A row has a number: rows count through the chunks in the order of the files, without those that are held out.

    Attributes:
        chunks: where the rows are.
        encoder: how they become inputs and targets.
        held: rows of each chunk that are held out, which rows is decided by the seed; None for none anywhere.
        seed: decides which.
        window: rows that are shuffled together and kept in memory.
        dtype: of floating-point tensors.
    """

    chunks: Chunks
    encoder: TableEncoder
    held: tuple[int, ...] | None = None
    seed: int = 0
    window: int = 0
    dtype: torch.dtype | None = field(default=None)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Rows of each chunk that belong to this source."""
        rows = np.array([chunk.rows for chunk in self.chunks.chunks], np.int64)
        return rows if self.held is None else rows - np.array(self.held, np.int64)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The number of the first row of each chunk, and the number of all rows at the end."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.sizes)])

    @property
    def size(self) -> int:
        return int(self.starts[-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row."""
        wide = 8 if self.dtype == torch.float64 else 4
        return wide * len(self.encoder.names) + (8 if self.encoder.target is not None else 0)

    @property
    def window_rows(self) -> int:
        """Rows that are shuffled together: a chunk at least."""
        return max(self.window or WINDOW_BYTES // max(1, self.row_bytes), int(self.sizes.max()))

    def astype(self, dtype: torch.dtype) -> Streamed:
        """The same rows with floating-point tensors of another type."""
        return replace(self, dtype=dtype)

    def __getitem__(self, chunk: int) -> Batch:
        """The rows of one chunk, encoded."""
        used = [column.name for column in self.encoder.columns if column.form != "dropped"]
        if self.encoder.target is not None:
            used.append(self.encoder.target)
        table = self.chunks.read(chunk, used)
        rows = cast(self.encoder.tensors(table, []), self.dtype)
        if self.held is None or not self.held[chunk]:
            return rows
        kept = torch.from_numpy(split_rows(table.rows, self.held[chunk], self.seed, chunk)[1])
        return map_tree(lambda leaf: leaf[kept], rows)

    def take(self, index: Tensor, seed: int = 0, epoch: int = 0) -> Batch:
        """The rows of these numbers, in this order; every chunk that holds one of them is read."""
        rows = index.cpu().numpy()
        where = np.searchsorted(self.starts, rows, side="right") - 1
        found = [
            (np.flatnonzero(where == chunk), self._some(int(chunk), rows[where == chunk])) for chunk in np.unique(where)
        ]
        order = torch.from_numpy(np.argsort(np.concatenate([places for places, _ in found])))
        return map_tree(lambda leaf: leaf[order], joined([batch for _, batch in found]))

    def _some(self, chunk: int, rows: NDArray[np.int64]) -> Batch:
        index = torch.from_numpy(rows - self.starts[chunk])
        return map_tree(lambda leaf: leaf[index], self[chunk])

    def spread(self, count: int, chunks: int = 8) -> Batch:
        """At most so many rows, evenly spaced in a few chunks that are evenly spaced over all."""
        chosen = [chunk for chunk in self.chunks.spread(chunks) if self.sizes[chunk]]
        each = max(1, -(-count // len(chosen)))
        rows = [
            self.starts[chunk] + np.arange(size := min(each, int(self.sizes[chunk]))) * self.sizes[chunk] // size
            for chunk in chosen
        ]
        return self.take(torch.from_numpy(np.concatenate(rows)[:count]))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All rows in the order of the files; the last batch may be short."""
        carry: Batch = None
        for chunk in self.ahead(range(len(self.sizes)), 1):
            rows = chunk if carry is None else joined([carry, chunk])
            size = leaves(rows)[0].shape[0]
            full = size - size % batch_size
            for start in range(0, full, batch_size):
                yield part(rows, start, start + batch_size)
            carry = None if full == size else part(rows, full, size)
        if carry is not None:
            yield carry

    def ahead(self, order: Iterable[int], depth: int, workers: int = 0) -> Iterator[Batch]:
        """Decoded chunks in the order given, whoever decodes them; about ``depth`` of them lie ready.

        Args:
            order: chunks, with or without an end.
            depth: how many are decoded before they are asked for.
            workers: processes that decode; 0 takes a thread of this one.
        """
        if not workers:
            return _ReadAhead(self, order, depth)
        return iter(
            DataLoader(
                self,  # type: ignore[arg-type]  # it has what a DataLoader asks for
                batch_size=None,
                sampler=order,
                num_workers=workers,
                prefetch_factor=max(1, -(-depth // workers)),
                collate_fn=_as_it_is,
                generator=torch.Generator().manual_seed(0),  # else it would draw from the caller's
            )
        )

    def fingerprint(self) -> str:
        """A short name for the data: files, chunks, columns, and the values of a few rows of the first chunk."""
        chunks = self.chunks
        names = [str(file.relative_to(chunks.root)) if file != chunks.root else "" for file in chunks.files]
        parts = [(chunk.file, chunk.rows, chunk.start, chunk.stop) for chunk in chunks.chunks]
        digest = hashlib.sha256(f"{names} {parts} {chunks.columns} {self.held} {self.seed}".encode())
        for leaf in leaves(self.spread(_FINGERPRINTED, 1)):
            digest.update(leaf.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:32]


def split_rows(rows: int, held: int, seed: int, chunk: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which rows of a chunk are held out, and which are not, both ascending.

    >>> [part.tolist() for part in split_rows(5, 2, seed=0, chunk=0)] == [[1, 4], [0, 2, 3]]
    True
    """
    order = np.random.default_rng(derived_seed(seed, chunk)).permutation(rows)
    return np.sort(order[:held]), np.sort(order[held:])


def joined(batches: list[Batch]) -> Batch:
    """Batches one after another as one. The list is emptied on the way, so that little is held twice.

    >>> joined([(torch.ones(1, 2), torch.zeros(1)), (torch.ones(2, 2), torch.ones(2))])[1]
    tensor([0., 1., 1.])
    """
    if len(batches) == 1:
        return batches.pop()
    rows = sum(leaves(batch)[0].shape[0] for batch in batches)
    made = map_tree(lambda leaf: leaf.new_empty((rows, *leaf.shape[1:])), batches[0])
    start = 0
    batches.reverse()
    while batches:
        batch = batches.pop()
        stop = start + leaves(batch)[0].shape[0]
        for into, leaf in zip(leaves(made), leaves(batch), strict=True):
            into[start:stop] = leaf
        start = stop
    return made


class _ReadAhead(Iterator[Batch]):
    """Chunks in their order, decoded by one thread as long as few lie ready; begins at once."""

    def __init__(self, source: Streamed, order: Iterable[int], depth: int) -> None:
        self._source, self._order = source, iter(order)
        self._pool = ThreadPoolExecutor(1, "fogline-read-ahead")
        self._waiting: deque[Future[Batch]] = deque()
        self._submit(depth)

    def __next__(self) -> Batch:
        if not self._waiting:
            raise StopIteration
        chunk = self._waiting.popleft().result()
        self._submit(1)
        return chunk

    def _submit(self, count: int) -> None:
        for index in islice(self._order, count):
            self._waiting.append(self._pool.submit(self._source.__getitem__, index))

    def __del__(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _as_it_is(batch: Any) -> Batch:
    return batch
