"""What each example did, epoch by epoch: filled in the training step, written once an epoch.

The columns of a step (:mod:`fogline.record.columns`) go into a buffer on the device, at the places its examples have
in the epoch. Steps of few rows wait until their columns can be computed together, which costs a fraction. Twice a
second the epochs that are over are copied to the host, put in the order of the examples and written by a thread of its
own (:mod:`fogline.record.example_writer`); which epochs that are moves no bits. A checkpoint waits until they are on
the disk. What is in the buffer, and what waits, belongs to it: a resumed run writes the same bytes.

The first 64 epochs all have a file; after that every second one of the next 64, every fourth of the next 128, and so
on: a run of a million short epochs has about 500.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fogline.data.source import leaves
from fogline.record import example_files
from fogline.record.columns import Columns, Shown, shown_by
from fogline.record.example_writer import Epoch, ExampleWriter
from fogline.record.hook import Hook
from fogline.record.store import Store
from fogline.record.waiting import ROWS_TOGETHER, Shelf, Waiting

if TYPE_CHECKING:
    from fogline.data.source import Batch
    from fogline.descent.batches import Batches
    from fogline.descent.objective import Objective

LARGEST = 1 << 28
"""Bytes of one epoch's buffer beyond which nothing is recorded unless it is asked for: 11 million examples."""
IN_FULL = 64
"""Epochs that all have a file."""
_FEW = 1 << 14
_HEAVY = 1 << 16  # bytes of a batch, from which on a step takes blocks from the system and gives them back
_WAITING = "waiting/"


def has_file(epoch: int) -> bool:
    """Whether an epoch is recorded: a function of its number alone, so that a resumed run has the same files.

    >>> [epoch for epoch in range(62, 70) if has_file(epoch)], sum(map(has_file, range(1_000_000)))
    ([62, 63, 64, 66, 68], 510)
    """
    return epoch % (1 << (epoch // IN_FULL).bit_length()) == 0


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
        self.writer = ExampleWriter(run, columns, self.count, batches.epoch_rows)
        self.epoch = Epoch(0, self._fresh())
        # Over, but perhaps to be gone back into; with what waits of them: several one after another take a third of the
        # time that each takes between steps.
        self._closed: list[tuple[Epoch, Waiting]] = []
        self._heavy: bool | None = None
        self._shelves: list[Shelf] = []  # that are empty
        self._waiting = self._anew()
        self._until = 0  # the step that the epoch ends before, 0 before it is known
        self._recorded = True
        self._step, self._shown, self._open, self._missed = 0, list[Shown](), False, False
        self._hidden: Tensor | None = None
        head = columns.head
        self._hook = None if head is None else head.register_forward_pre_hook(Hook(self._keep))

    # -- in the step -----------------------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """A step begins; the first forward passes in it are those of its batch."""
        if not self._until - self.steps_per_epoch <= step < self._until:
            self._turn(step // self.steps_per_epoch)
        self._step, self._open = step, self._recorded

    def again(self) -> None:
        """The batch is gone through from its beginning."""
        self._shown = []

    def loss(self, objective: Objective, batch: Batch) -> Tensor:
        """The loss of (a part of) the batch; what the forward pass shows on the way is kept."""
        if not self._open:
            return objective(batch)
        if self._heavy is None:
            self._heavy = self.batches.device.type == "cpu" and sum(leaf.nbytes for leaf in leaves(batch)) >= _HEAVY
        forward = objective.forward(batch)
        self._shown.append(shown_by(forward, batch, self._hidden))
        self._hidden = None
        return forward.loss

    def end(self) -> None:
        """The batch has been gone through; a step may go through it again, which is not recorded."""
        if not self._open:
            return
        self._open = False
        start, stop = self.span(self._step)
        rows = 0
        for shown in self._shown:
            rows += shown.rows
        if rows == stop - start:
            for shown in self._shown:
                self._wait(start, shown)
                start += shown.rows
        else:
            self._miss(self.epoch.number, start)
        self._pass(self._step, 1)

    def look(self) -> None:
        """What comes shows its examples, for :meth:`computed`, and belongs to no step."""
        self._shown, self._open = [], True

    def computed(self) -> Tensor:
        """The columns of what was shown since :meth:`look`, shape (columns, rows), on its device."""
        shown, self._shown, self._open = self._shown, [], False
        with torch.no_grad():
            return self.columns(Shown.joined(shown))

    def span(self, step: int) -> tuple[int, int]:
        """The places in the epoch of the rows that are seen here, the first and the one behind the last."""
        start = (step - self._until + self.steps_per_epoch) * self.batches.batch_size
        return start, min(start + self.batches.batch_size, self.count)

    def put(self, step: int, count: int, values: Tensor) -> None:
        """Keep the columns of steps that a compiled program or a graph computed, shape (columns, rows)."""
        if not self._until - self.steps_per_epoch <= step < self._until:
            self._turn(step // self.steps_per_epoch)
        if not self._recorded:
            return
        start = (step - self._until + self.steps_per_epoch) * self.batches.batch_size
        if values.device.type == "cpu":
            self.epoch.array[:, start : start + values.shape[1]] = values.numpy()
        else:
            self.epoch.values[:, start : start + values.shape[1]] = values
        self._pass(step, count)

    def _keep(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        if self._open:
            self._hidden = given[0]

    def _miss(self, epoch: int, start: int) -> None:
        """A forward pass did not show what is expected of it; said once."""
        if not self._missed:
            self._missed = True
            step = epoch * self.steps_per_epoch + start // self.batches.batch_size
            said = "what the examples of this step did is not recorded: its outputs are not shaped as the first ones"
            self.store.event(step, "examples", said)

    def _wait(self, start: int, shown: Shown) -> None:
        waiting = self._waiting
        if waiting.start + waiting.rows != start:
            self._compute()
            waiting = self._waiting
        if not waiting.rows:
            waiting.start = start
        waiting.add(shown)
        if waiting.full:
            self._compute()

    def _compute(self) -> None:
        """The columns of what waits go into the buffer."""
        waiting, self._waiting = self._waiting, self._anew()
        self._put_into(self.epoch, waiting)

    def _anew(self) -> Waiting:
        if not self._heavy:
            return Waiting()
        return Waiting(self._shelves.pop() if self._shelves else Shelf(min(self.count, ROWS_TOGETHER)))

    def _put_into(self, epoch: Epoch, waiting: Waiting) -> None:
        """The columns of what waits of an epoch, those of like forward passes together."""
        start = waiting.start
        for shown in waiting.parts():
            if self.columns.fits(shown):
                with torch.no_grad():
                    epoch.values[:, start : start + shown.rows] = self.columns(shown)
            else:
                self._miss(epoch.number, start)
            start += shown.rows
        if waiting.shelf is not None and waiting is not self._waiting:  # it may go on after the last file of a run
            waiting.shelf.rows = 0
            self._shelves.append(waiting.shelf)

    def _turn(self, epoch: int) -> None:
        """Steps of another epoch come."""
        self._until = (epoch + 1) * self.steps_per_epoch
        self._recorded = has_file(epoch)
        if self._recorded and epoch != self.epoch.number:
            self.epoch = Epoch(epoch, self._fresh())

    def _pass(self, step: int, count: int) -> None:
        """Close the epoch where the last of these steps was its last."""
        if step + count != self._until:
            return
        self.meet(self._until)
        self.epoch.step = self._until
        if self.count <= _FEW:  # the order of these is still there from cutting the batches
            self.epoch.ids = self.batches.epoch_rows(self.epoch.number)
        self._closed.append((self.epoch, self._waiting))
        self._waiting = self._anew()

    def _fresh(self) -> Tensor:
        return torch.full((self.columns.width, self.count), torch.nan, device=self.batches.device)

    def meet(self, step: int) -> None:
        """Where several processes record a run: let all have what each has recorded before this step."""

    # -- between steps ---------------------------------------------------------------------------------------------

    def back(self, step: int) -> None:
        """Go on from this step: what was recorded of it and of later ones is dropped."""
        self._compute()
        epoch, over = step // self.steps_per_epoch, self._computed()
        again = [closed for closed in (*over, self.epoch) if closed.number == epoch]
        self._closed = [(closed, Waiting()) for closed in over if closed.number < epoch]
        self._until = 0
        place = self.batches.place(step)
        if again and place is not None:
            self.epoch = again[0]
            self.epoch.values[:, place.start :] = torch.nan

    def collect(self) -> None:
        """Begin to write the epochs that are over. To be called where the host waits for the device anyway.

        Raises:
            OSError: one of those before could not be written.
        """
        closed, self._closed = self._computed(), []
        self.writer.write(closed)

    def _computed(self) -> list[Epoch]:
        """The epochs that are over, with all of their columns."""
        for epoch, waiting in self._closed:
            self._put_into(epoch, waiting)
        return [epoch for epoch, _ in self._closed]

    def finish(self, step: int) -> None:
        """At the end of the run: an epoch that it ends within has its file, too.

        Raises:
            OSError: it could not be written.
        """
        if self._partly(step):
            self.meet(step)
            # A run that goes on from here goes on with the epoch and what waits as they are.
            self._closed.append((replace(self.epoch, values=self.epoch.values.clone(), step=step), self._waiting))
        self.collect()
        self.writer.drain()

    def close(self) -> None:
        """End the thread that writes, and leave the model alone."""
        self.writer.close()
        if self._hook is not None:
            self._hook.remove()

    def _partly(self, step: int) -> bool:
        epoch, within = divmod(step, self.steps_per_epoch)
        return bool(within) and has_file(epoch) and self.epoch.number == epoch

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def state(self, step: int) -> dict[str, Tensor]:
        """What a checkpoint keeps: the columns of the epoch that is under way, and what waits.

        Raises:
            OSError: an epoch that is over could not be written.
        """
        self.collect()
        self.writer.drain()
        place = self.batches.place(step)
        if not self._partly(step) or place is None:
            return {}
        waiting = self._waiting
        computed = waiting.start if waiting.rows else place.start
        found = {"columns": self.epoch.values[:, :computed].cpu()}
        # How many rows are computed together moves last digits: a resumed run must take the same ones together.
        for k, shown in enumerate(waiting.parts()):
            found |= {f"{_WAITING}{k:06d}/{name}": value.cpu() for name, value in shown.named().items()}
        return found

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Go on from a checkpoint of this step, with what :meth:`state` gave then."""
        epoch = step // self.steps_per_epoch
        example_files.forget(self.run, epoch)
        self._waiting, self._closed, self._until = self._anew(), [], 0
        self.epoch = Epoch(epoch, self._fresh())
        if "columns" not in tensors or len(tensors["columns"]) != self.columns.width:
            return
        device, computed = self.batches.device, tensors["columns"].shape[1]
        self.epoch.values[:, :computed] = tensors["columns"].to(device)
        kept: dict[str, dict[str, Tensor]] = {}
        for name in sorted(name for name in tensors if name.startswith(_WAITING)):
            _, run, field_name = name.split("/")
            kept.setdefault(run, {})[field_name] = tensors[name].to(device)
        self._waiting.start = computed
        for one in kept.values():
            self._waiting.add(Shown(**one))

    def described(self, classes: tuple[str, ...] | None) -> dict[str, Any]:
        """What ``run.json`` says of the examples."""
        return {"kind": self.columns.kind, "count": self.count, "classes": None if classes is None else list(classes)}
