"""What each example did, epoch by epoch: filled in the training step, written once an epoch.

The columns of a step (:mod:`fogline.record.columns`) go into a buffer on the device, at the places its examples have
in the epoch, several small steps at a time. When the epoch is over the buffer is copied to the host, put in the order
of the examples and written by a thread of its own. What is still in the buffers belongs to the checkpoint, so a resumed
run writes the same bytes.

The first 128 epochs all have a file; after that every second one of the next 128, every fourth of the next 256, and so
on: a run of a million short epochs has about a thousand.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fogline.record import example_files
from fogline.record.columns import Columns, Shown, shown_by
from fogline.record.store import Store

if TYPE_CHECKING:
    from fogline.data.source import Batch
    from fogline.descent.batches import Batches
    from fogline.descent.objective import Objective

LARGEST = 1 << 28
"""Bytes of one epoch's buffer beyond which nothing is recorded unless it is asked for: 11 million examples."""
MOST_QUEUED = 1 << 28
"""Bytes that may wait to be written before the steps wait for the disk."""
IN_FULL = 128
"""Epochs that all have a file."""
_ROWS_AT_ONCE = 4096
_FEW = 1 << 14
_SMALL = 1 << 18  # bytes that a step may show and still wait for others


def has_file(epoch: int) -> bool:
    """Whether an epoch is recorded: a function of its number alone, so that a resumed run has the same files.

    >>> [epoch for epoch in range(126, 136) if has_file(epoch)], sum(map(has_file, range(1_000_000)))
    ([126, 127, 128, 130, 132, 134], 955)
    """
    return epoch % (1 << (epoch // IN_FULL).bit_length()) == 0


@dataclass
class Waiting:
    """Steps whose columns are still to be computed: one after another in the epoch."""

    start: int
    rows: int = 0
    shown: list[Shown] = field(default_factory=list)


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


class ExampleRecorder:
    """Records the examples of a run.

    Args:
        run: the run folder.
        columns: what is recorded, and how it is computed.
        batches: says which examples a step sees.
        store: is told where something cannot be recorded.
    """

    def __init__(self, run: Path, columns: Columns, batches: Batches, store: Store) -> None:
        assert batches.examples is not None
        assert batches.steps_per_epoch is not None
        self.run, self.columns, self.batches, self.store = run, columns, batches, store
        self.count, self.steps_per_epoch = batches.examples, batches.steps_per_epoch
        self.epoch = Epoch(0, self._fresh())
        self._closed: list[Epoch] = []  # over, but perhaps to be gone back into
        self._waiting = Waiting(0)
        self._until = 0  # the step that the epoch ends before, 0 before it is known
        self._recorded = True
        self._step, self._shown, self._open = 0, list[Shown](), False
        self._writer: ThreadPoolExecutor | None = None
        self._written: list[Future[None]] = []
        self._missed = False

    # -- in the step -----------------------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """A step begins; the first forward passes in it are those of its batch."""
        if not self._until - self.steps_per_epoch <= step < self._until:
            self._turn(step // self.steps_per_epoch)
        self._step, self._open = step, self._recorded
        self._shown = []

    def again(self) -> None:
        """The batch is gone through from its beginning."""
        self._shown = []

    def loss(self, objective: Objective, batch: Batch) -> Tensor:
        """The loss of (a part of) the batch; what the forward pass shows on the way is kept."""
        if not self._open:
            return objective(batch)
        loss, shown = shown_by(objective, batch, self.columns)
        self._shown.append(shown)
        return loss

    def end(self) -> None:
        """The batch has been gone through; a step may go through it again, which is not recorded."""
        if not self._open:
            return
        self._open = False
        shown, self._shown = self._shown, []
        start, rows = self._place(self._step)
        if not shown or not all(self._fits(one) for one in shown) or sum(map(_rows, shown)) != rows:
            self._miss()
        else:
            for one in shown:
                self._wait(start, one)
                start += _rows(one)
        self._pass(self._step, 1)

    def put(self, step: int, count: int, values: Tensor) -> None:
        """Keep the columns of steps that a compiled program computed, shape (columns, rows)."""
        if not self._until - self.steps_per_epoch <= step < self._until:
            self._turn(step // self.steps_per_epoch)
        if not self._recorded:
            return
        start, _ = self._place(step)
        self._compute()
        self.epoch.values[:, start : start + values.shape[1]] = values
        self._pass(step, count)

    def _place(self, step: int) -> tuple[int, int]:
        """Where in its epoch a step's rows begin, and how many they are."""
        place = self.batches.place(step)
        assert place is not None
        return place.start, place.stop - place.start

    def _fits(self, shown: Shown) -> bool:
        return self.columns.fits(shown, _rows(shown))

    def _miss(self) -> None:
        if not self._missed:
            self._missed = True
            said = "what the examples of this step did is not recorded: its outputs are not shaped as the first ones"
            self.store.event(self._step, "examples", said)

    def _wait(self, start: int, shown: Shown) -> None:
        waiting, rows = self._waiting, _rows(shown)
        if waiting.shown and not (waiting.start + waiting.rows == start and waiting.shown[-1].like(shown)):
            self._compute()
        if not self._waiting.shown:
            self._waiting = Waiting(start)
        self._waiting.shown.append(shown)
        self._waiting.rows += rows
        if self._waiting.rows >= _ROWS_AT_ONCE or shown.nbytes > _SMALL:
            self._compute()

    def _compute(self) -> None:
        """The columns of what waits go into the buffer."""
        waiting = self._waiting
        if not waiting.shown:
            return
        self._waiting = Waiting(0)
        with torch.no_grad():
            values = self.columns(Shown.joined(waiting.shown))
        self.epoch.values[:, waiting.start : waiting.start + waiting.rows] = values

    def _turn(self, epoch: int) -> None:
        """Steps of another epoch come."""
        self._until = (epoch + 1) * self.steps_per_epoch
        self._recorded = has_file(epoch)
        if self._recorded and epoch != self.epoch.number:
            self.epoch = Epoch(epoch, self._fresh())

    def _pass(self, step: int, count: int) -> None:
        """Close the epoch where the last of these steps was its last."""
        if step + count == self._until:
            self._compute()
            self.epoch.step = self._until
            if self.count <= _FEW:  # the order of these is still there from cutting the batches
                self.epoch.ids = self.batches.epoch_rows(self.epoch.number)
            self._closed.append(self.epoch)

    def _fresh(self) -> Tensor:
        return torch.full((self.columns.width, self.count), torch.nan, device=self.batches.device)

    # -- between steps ---------------------------------------------------------------------------------------------

    def back(self, step: int) -> None:
        """Go on from this step: what was recorded of it and of later ones is dropped."""
        self._compute()
        epoch = step // self.steps_per_epoch
        again = [closed for closed in (*self._closed, self.epoch) if closed.number == epoch]
        self._closed = [closed for closed in self._closed if closed.number < epoch]
        self._until = 0
        if again:
            self.epoch = again[0]
            self.epoch.values[:, self._place(step)[0] :] = torch.nan

    def collect(self) -> None:
        """Begin to write the epochs that are over. To be called where the host waits for the device anyway.

        Raises:
            OSError: one of those before could not be written.
        """
        while self._written and self._written[0].done():
            self._written.pop(0).result()
        closed, self._closed = self._closed, []
        for epoch in closed:
            self._submit(epoch)
        most = max(2, MOST_QUEUED // max(1, self.epoch.values.nbytes))
        while len(self._written) > most:
            self._written.pop(0).result()

    def drain(self) -> None:
        """Wait until every epoch that is over is on the disk.

        Raises:
            OSError: one of them could not be written.
        """
        self.collect()
        written, self._written = self._written, []
        for one in written:
            one.result()
        if written:
            example_files.sync(self.run)

    def finish(self, step: int) -> None:
        """At the end of the run: an epoch that it ends within has its file, too.

        Raises:
            OSError: it could not be written.
        """
        if self._partly(step):
            self._compute()
            self._submit(replace(self.epoch, step=step))
        self.drain()

    def close(self) -> None:
        """End the thread that writes."""
        if self._writer is not None:
            self._writer.shutdown()
            self._writer = None

    def _partly(self, step: int) -> bool:
        epoch, within = divmod(step, self.steps_per_epoch)
        return bool(within) and has_file(epoch) and self.epoch.number == epoch

    def _submit(self, epoch: Epoch) -> None:
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "examples")
        if epoch.values.device.type != "cuda":
            values, ready = epoch.values.cpu(), None
        else:
            values, ready = epoch.values.to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        self._written.append(self._writer.submit(self._write, replace(epoch, values=values), ready))

    def _write(self, epoch: Epoch, ready: torch.cuda.Event | None) -> None:
        """Put an epoch in the order of the examples and write it; in the thread that writes."""
        if ready is not None:
            ready.synchronize()
        ids = self.batches.epoch_rows(epoch.number) if epoch.ids is None else epoch.ids
        ids, seen = gathered(ids, epoch.values.numpy())
        columns, names = self.columns, self.columns.names
        kept = example_files.by_example(example_files.encoded(names, seen, columns.classes), ids, self.count)
        example_files.write_epoch(self.run, epoch.number, epoch.step, kept)
        if columns.targets and not example_files.has_targets(self.run):
            found = np.empty((self.count, columns.targets), np.float32)
            found[ids] = seen[len(names) :].T
            example_files.write_targets(self.run, _as_targets(columns, found))

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def state(self, step: int) -> dict[str, Tensor]:
        """What a checkpoint keeps: the columns of the epoch that is under way, as far as it has come.

        Raises:
            OSError: an epoch that is over could not be written.
        """
        self.drain()
        if not self._partly(step):
            return {}
        self._compute()
        names, start = self.columns.names, self._place(step)[0]
        values = self.epoch.values[:, :start].cpu().numpy()
        kept = example_files.encoded(names, values, self.columns.classes)
        found = {name: torch.from_numpy(value) for name, value in kept.items()}
        return found | ({"target": torch.from_numpy(values[len(names) :].copy())} if self.columns.targets else {})

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Go on from a checkpoint of this step, with what :meth:`state` gave then."""
        example_files.forget(self.run, step // self.steps_per_epoch)
        self._waiting, self._closed, self._until = Waiting(0), [], 0
        self.epoch = Epoch(step // self.steps_per_epoch, self._fresh())
        if not tensors:
            return
        arrays = {name: value.numpy() for name, value in tensors.items()}
        values = example_files.decoded(self.columns.names, arrays)
        if self.columns.targets:
            values = np.concatenate([values, arrays["target"]])
        self.epoch.values[:, : values.shape[1]] = torch.from_numpy(values)

    def described(self, classes: tuple[str, ...] | None) -> dict[str, Any]:
        """What ``run.json`` says of the examples."""
        return {"kind": self.columns.kind, "count": self.count, "classes": None if classes is None else list(classes)}


def gathered(ids: NDArray[np.int64], values: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """All that was recorded of an epoch, from all processes: which examples, and their columns.

    One process has seen them all, and this is what it has. Where several have taken part, each holds the places of the
    epoch that its rows had, and NaN elsewhere; this is the one spot at which they are to be brought together.

    Args:
        ids: the example at each place of the epoch, shape (N,).
        values: shape (columns, N) by place.
    """
    return ids, values


def known_targets(columns: Columns, targets: Tensor) -> NDArray[Any] | None:
    """The targets of data in memory as they are kept; None where they are not a few numbers an example."""
    width = columns.with_targets().targets
    if columns.form == "classes" and width:
        return (targets.argmax(1) if targets.is_floating_point() else targets).long().cpu().numpy()
    if width:
        return _as_targets(columns, targets.float().reshape(len(targets), -1).cpu().numpy())
    if columns.form == "loss" and targets.ndim == 1 and not targets.is_complex():
        return (targets.float() if targets.is_floating_point() else targets.long()).cpu().numpy()
    return None


def _as_targets(columns: Columns, found: NDArray[np.float32]) -> NDArray[Any]:
    """Targets of shape (N, width) as they are kept: labels as whole numbers, single numbers in one dimension."""
    if columns.kind == "classification" and columns.single:
        return np.nan_to_num(found[:, 0] if columns.form == "classes" else found[:, 0] > 0.5, nan=-1).astype(np.int64)
    return found[:, 0] if found.shape[1] == 1 else found


def _rows(shown: Shown) -> int:
    first = next((value for value in shown.tensors if value is not None and value.ndim), None)
    return 0 if first is None else first.shape[0]
