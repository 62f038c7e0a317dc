"""Writes what the examples did in an epoch, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fogline.record import example_files
from fogline.record.columns import Columns
from fogline.record.example_files import File

_MOST_QUEUED = 1 << 28  # bytes that may wait for the disk before the steps do
_SMALL = 1 << 14  # examples
_LARGE_FILE = 1 << 20  # bytes
_IN_FULL = ("residual",)  # a number in the target's own unit: half precision may not hold it
_MOST_SHORT = 1 << 15


@dataclass
class Epoch:
    """The columns of an epoch as far as it has come.

    Attributes:
        number: which epoch.
        values: shape (columns, N) by place in the epoch, float32; NaN where no step has been.
        step: optimizer steps done when it ended.
        ids: the example at each place, where that was known at its end.
    """

    number: int
    values: Tensor
    step: int = 0
    ids: NDArray[np.int64] | None = None

    @cached_property
    def array(self) -> NDArray[np.float32]:
        """The values where they are on the CPU, in the same memory."""
        return self.values.numpy()


class ExampleWriter:
    """Brings epochs into the order of the examples and writes them.

    Args:
        run: the run folder.
        columns: what an epoch holds.
        count: how many examples there are.
        order: which examples an epoch sees, in its order.
    """

    def __init__(self, run: Path, columns: Columns, count: int, order: Callable[[int], NDArray[np.int64]]) -> None:
        self.run, self.columns, self.count, self.order = run, columns, count, order
        self._thread: ThreadPoolExecutor | None = None
        self._queued: list[tuple[Future[None], int]] = []
        self._unsynced: list[Path] = []
        self._targets_known = False  # they are written, or on their way

    def write(self, epochs: list[Epoch]) -> None:
        """Begin to write epochs. What is on the device is copied meanwhile.

        Raises:
            OSError: one of those before could not be written.
        """
        while self._queued and self._queued[0][0].done():
            self._queued.pop(0)[0].result()
        if not epochs:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "examples")
        # Where two threads work on small arrays each waits for the other all the time: that much is done here, and the
        # thread is left to wait for the disk.
        small = self.count <= _SMALL and all(epoch.values.device.type == "cpu" for epoch in epochs)
        work: list[list[File] | tuple[Epoch, Any]]
        work = [self._files(epoch) if small else _on_the_host(epoch) for epoch in epochs]
        size = sum(epoch.values.nbytes for epoch in epochs)
        self._queued.append((self._thread.submit(self._write, work), size))
        while len(self._queued) > 1 and sum(size for _, size in self._queued) > _MOST_QUEUED:
            self._queued.pop(0)[0].result()

    def drain(self) -> None:
        """Wait until all is on the disk.

        A small file is brought there now, not when it is written: what the system has not brought there by itself when
        the power goes was not in a checkpoint, and is recorded again.

        Raises:
            OSError: something could not be written.
        """
        queued, self._queued = self._queued, []
        for written, _ in queued:
            written.result()
        paths, self._unsynced = self._unsynced, []
        if queued or paths:
            example_files.sync(self.run, paths)

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _write(self, work: list[list[File] | tuple[Epoch, Any]]) -> None:
        for one in work:
            if isinstance(one, tuple):
                epoch, ready = one
                if ready is not None:
                    ready.synchronize()
                one = self._files(epoch)
            for path, content in one:
                large = len(content) >= _LARGE_FILE
                example_files.write((path, content), synced=large)
                if not large:
                    self._unsynced.append(path)

    def _files(self, epoch: Epoch) -> list[File]:
        """What is to be written of an epoch: its columns by example, and once the targets."""
        ids, values = self.order(epoch.number) if epoch.ids is None else epoch.ids, epoch.array
        names = self.columns.names
        kept = encoded(names, values, ids, self.count, self.columns.classes)
        files = [example_files.epoch_file(self.run, epoch.number, epoch.step, kept)]
        self._targets_known = self._targets_known or not self.columns.targets or example_files.has_targets(self.run)
        if not self._targets_known:
            self._targets_known = True  # the epoch that comes next may be one that the run ends within
            found = np.full((self.count, self.columns.targets), np.nan, np.float32)
            found[ids] = values[len(names) :].T
            files.append(example_files.targets_file(self.run, as_targets(self.columns, found)))
        return files


def _on_the_host(epoch: Epoch) -> tuple[Epoch, Any]:
    """The epoch with a copy of its values on the CPU, and the mark on the device after which that is complete."""
    if epoch.values.device.type == "cpu":
        return epoch, None
    if epoch.values.device.type != "cuda":
        return replace(epoch, values=epoch.values.cpu()), None
    copied, ready = epoch.values.to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
    ready.record()
    return replace(epoch, values=copied), ready


def encoded(
    names: tuple[str, ...], values: NDArray[np.float32], ids: NDArray[np.int64], count: int, classes: int
) -> dict[str, NDArray[Any]]:
    """Columns as they are kept: by example, in half precision, what that cannot hold at its ends.

    Args:
        names: of the rows of ``values``; longer ``values`` have the targets behind.
        values: shape (columns, seen), float32.
        ids: which example each of the seen is, shape (seen,).
        count: how many examples there are.
        classes: how many there are; predicted ones are whole numbers.
    """
    largest = torch.finfo(torch.float16).max
    halves = torch.from_numpy(values[: len(names)]).clamp(-largest, largest).half().numpy()
    kept = np.full((len(names), count), np.nan, np.float16)
    kept[:, ids] = halves
    found: dict[str, NDArray[Any]] = dict(zip(names, kept, strict=True))
    for name in set(names) & {"predicted", *_IN_FULL}:
        column = values[names.index(name)]
        if name == "predicted":
            found[name] = np.full(count, -1, np.int16 if classes < _MOST_SHORT else np.int32)
            found[name][ids] = np.where(np.isfinite(column), column, -1)
        else:
            found[name] = np.full(count, np.nan, np.float32)
            found[name][ids] = column
    return found


def known_targets(columns: Columns, targets: Tensor) -> NDArray[Any] | None:
    """The targets of data in memory as they are kept; None where they are not a few numbers an example."""
    width = columns.with_targets().targets
    if columns.form == "classes" and width:
        return (targets.argmax(1) if targets.is_floating_point() else targets).long().cpu().numpy()
    if width:
        return as_targets(columns, targets.float().reshape(len(targets), -1).cpu().numpy())
    if columns.form == "loss" and targets.ndim == 1 and not targets.is_complex():
        return (targets.float() if targets.is_floating_point() else targets.long()).cpu().numpy()
    return None


def as_targets(columns: Columns, found: NDArray[np.float32]) -> NDArray[Any]:
    """Targets of shape (N, width) as they are kept: labels as whole numbers, single numbers in one dimension."""
    if columns.kind == "classification" and columns.single:
        return np.nan_to_num(found[:, 0] if columns.form == "classes" else found[:, 0] > 0.5, nan=-1).astype(np.int64)
    return found[:, 0] if found.shape[1] == 1 else found
