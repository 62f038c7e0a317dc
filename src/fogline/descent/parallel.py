"""The step of several processes: each takes its share of the batch, and the gradients are summed.

::

    share of the batch -> loss, weighed by what the share counts for -> backward
        gradients in flat buckets, summed over the processes while the backward pass goes on
        beside them: the loss, what the shares count for, the time of process 0, who was asked to stop
    all now have the gradient of the whole batch -> gate -> clip -> update, the same on all

What is not finite on one process is not finite in the sum, so all refuse the step. Process 0 tells the time because
much is done by the clock (a checkpoint, a validation, the end of a run of ten minutes) and all must do it together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from fogline.data.privacy import derived_seed
from fogline.data.source import Batch, Stream
from fogline.descent.batches import Batches, part, rows_of, split
from fogline.descent.group import World
from fogline.descent.interrupts import wanted
from fogline.descent.machine import Machine
from fogline.descent.objective import Objective, mode
from fogline.descent.randomness import PROBE, TRAIN, private_randomness, seed_step
from fogline.descent.replay import explain_refusal
from fogline.descent.share import Portion, Share, Weighing, is_no_average
from fogline.descent.shared_norm import SharedStatistics, normalises_batches
from fogline.descent.shortcuts import backward
from fogline.descent.step import EagerStep, Outcomes, RateFunction, out_of_memory

BUCKET_BYTES = 8 << 20
_TRIED_ROWS = 64
_EXACT = (torch.float32, torch.float64)
_NUMBERS, _CONTROL = 2, 3  # loss, weight; asked to stop, time, weights without a gradient


class _Bucket:
    """Gradients side by side in one tensor."""

    def __init__(self, parameters: Sequence[nn.Parameter], spare: int) -> None:
        like = parameters[0]
        sizes = [p.numel() for p in parameters]
        self.parameters = list(parameters)
        self.flat = torch.zeros(sum(sizes) + spare, dtype=like.dtype, device=like.device)
        parts = torch.split(self.flat[: sum(sizes)], sizes)
        self.views = [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]
        self.missing = len(self.parameters)

    def fill(self) -> None:
        """Take the gradients; where there is none it is zero."""
        found = [(view, p.grad) for view, p in zip(self.views, self.parameters, strict=True) if p.grad is not None]
        if len(found) < len(self.views):
            torch._foreach_zero_(self.views)
        if found:
            with torch.no_grad():
                dense = [grad.to_dense() if grad.is_sparse else grad for _, grad in found]
                torch._foreach_copy_([view for view, _ in found], dense)


class Exchange:
    """Sums the gradients of all processes, bucket by bucket in the order in which a backward pass makes them.

    Every process starts the buckets in the same order, whichever of its parameters has no gradient.

    Args:
        world: the processes.
        parameters: those that are trained.
    """

    def __init__(self, world: World, parameters: Sequence[nn.Parameter]) -> None:
        self.world = world
        self.parameters = list(parameters)
        groups = list(_grouped(list(reversed(self.parameters))))
        on_host = all(p.device.type == "cpu" for p in self.parameters)
        together = on_host and groups[-1][0].dtype in _EXACT
        spare = _NUMBERS + _CONTROL if together else 0
        self.buckets = [_Bucket(group, spare if group is groups[-1] else 0) for group in groups]
        real = torch.float64 if groups[-1][0].dtype == torch.float64 else torch.float32
        if together:
            tail = self.buckets[-1].flat[-spare:]
            self.numbers, self.control = tail[:_NUMBERS], tail[_NUMBERS:]
        else:
            self.numbers = torch.zeros(_NUMBERS, dtype=real, device=groups[-1][0].device)
            self.control = torch.zeros(_CONTROL, dtype=torch.float64)
        self._apart = () if together else (self.numbers, self.control)
        self._works: list[Any] = []
        self.overlaps = False
        self._hooks: list[Any] = []
        if len(self.buckets) > 1:
            for bucket in self.buckets:
                for parameter in bucket.parameters:
                    hang: Any = parameter.register_post_accumulate_grad_hook
                    self._hooks.append(hang(self._arrived(bucket)))

    def close(self) -> None:
        """Leave the parameters as they were found."""
        for hook in self._hooks:
            hook.remove()
        for parameter in self.parameters:
            parameter.grad = None  # a view of a bucket

    @property
    def under_way(self) -> bool:
        """Whether something was sent already: then the gradients cannot be made again."""
        return bool(self._works)

    def begin(self, *, overlaps: bool) -> None:
        """Before the last backward pass of a step; ``overlaps`` sends what is complete while it goes on."""
        self.overlaps = overlaps
        for bucket in self.buckets:
            bucket.missing = len(bucket.parameters)
        told = self.control.new_tensor([float(wanted()), self.world.reading(), 0.0])
        self.control.copy_(told)

    def _arrived(self, bucket: _Bucket) -> Any:
        def hook(_: Tensor) -> None:
            bucket.missing -= 1
            if self.overlaps and bucket.missing == 0:
                while len(self._works) < len(self.buckets) and not self.buckets[len(self._works)].missing:
                    self._send()

        return hook

    def _send(self) -> None:
        bucket = self.buckets[len(self._works)]
        bucket.fill()
        self._works.append(self.world.start(bucket.flat))

    def end(self, doing: str, *, empty: bool) -> None:
        """Send what is left, wait for all, and put the sums where the gradients were.

        Args:
            doing: the step, for an error.
            empty: this process had no rows.

        Raises:
            LostError: a process did not come.
        """
        self.overlaps = False
        mine = [float(p.grad is not None) for p in self.parameters]
        if len(self._works) < len(self.buckets) and not empty:
            self.control[2] = float(mine.count(0.0))
        while len(self._works) < len(self.buckets):
            self._send()
        works, self._works = self._works, []
        works += [self.world.start(tensor) for tensor in self._apart]
        for work in works:
            self.world.finish(work, doing)
        asked, now, unused = self.control.tolist()
        self.world.heed(asked, now)
        used = None
        if unused:
            used = torch.tensor(mine)
            self.world.sum(used, doing)
        self._put(None if used is None else set(used.nonzero().flatten().tolist()))

    def _put(self, used: set[int] | None) -> None:
        kept = None if used is None else {id(self.parameters[k]) for k in used}
        for bucket in self.buckets:
            for view, parameter in zip(bucket.views, bucket.parameters, strict=True):
                parameter.grad = view if kept is None or id(parameter) in kept else None

    def divide(self, rows: int) -> None:
        """Divide gradients and loss by what the shares counted for in all, as a part of so many rows."""
        total = self.numbers[1] / rows
        for bucket in self.buckets:
            gradients = bucket.flat[: sum(view.numel() for view in bucket.views)]
            gradients.div_(total.to(bucket.flat.dtype))
        self.numbers.div_(total)


def _grouped(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Neighbours of one type and device, a few megabytes at a time."""
    group: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        alike = not group or (parameter.dtype, parameter.device) == (group[0].dtype, group[0].device)
        if group and (not alike or size + parameter.nbytes > BUCKET_BYTES):
            yield group
            group, size = [], 0
        group.append(parameter)
        size += parameter.nbytes
    yield group


def obstacles(objective: Objective, batches: Batches, world: World) -> list[str]:
    """What several processes cannot do with a task, refused, and what they do otherwise than one, in words.

    Raises:
        ValueError: batch normalisation, and a process that would have no row of a batch.
    """
    fewest = None if batches.steps_per_epoch is None else batches.rows_at(batches.steps_per_epoch - 1)
    normalises = normalises_batches(objective.model)
    if normalises and fewest is not None and fewest < world.size:
        raise ValueError(
            f"expected at least as many rows in every batch as there are processes ({world.size}), because the model "
            f"has batch normalisation, received a last batch of {fewest} (batch_size={batches.batch_size}, "
            f"{batches.examples} examples); take another batch_size, or fewer processes"
        )
    with private_randomness(batches.device), mode(objective.model, training=False):
        seed_step(batches.seed, 0, PROBE, batches.device)
        odd = is_no_average(objective, part(next(batches.stream(0)), 0, _TRIED_ROWS))
    notes = []
    if odd:
        notes.append(
            "the loss of a batch is neither the mean nor the sum over its rows: with several processes it is averaged "
            "over their shares, which is another loss than in one process"
        )
    drawing = next((type(m).__name__ for m in objective.model.modules() if isinstance(m, _DropoutNd)), None)
    if drawing is not None:
        notes.append(f"{drawing} draws in each process for its own rows: another number of processes draws others")
    return notes


class ParallelStep(EagerStep):
    """The eager step on this process's share of every batch, with the gradients of all.

    It is not compiled: between the gradients and the update lies a message, so the step is not one graph. Random
    numbers (dropout) are drawn by every process for its own rows, so they are others for another number of processes.

    Attributes:
        portion: what this process took of the latest batch.
    """

    def __init__(self, machine: Machine, share: Share, world: World, *, deferred: bool | None = None) -> None:
        super().__init__(machine, share.batches, deferred=deferred)
        self.world, self.share = world, share
        self.portion = Portion(None, 0)
        self.weighing = Weighing.of(machine.objective, summed=machine.summed)
        self.exchange = self._made_exchange()
        self._portions: Iterator[Portion] | None = None
        self._doing = "the first step"
        self._tried = -1  # micro-batches that are known to fit the memory
        self._together: AbstractContextManager[Any] = nullcontext()
        if normalises_batches(machine.objective.model):
            self._together = SharedStatistics(world)

    def _made_exchange(self) -> Exchange:
        return Exchange(self.world, self.machine.parameters)

    def close(self) -> None:
        """Take away what hangs on the model."""
        self.exchange.close()

    @property
    def seed(self) -> int:
        """Of this process: 0 draws what a single process would."""
        return self.machine.seed if self.world.first else derived_seed(self.machine.seed, self.world.rank)

    @property
    def rows(self) -> int:
        return self.portion.rows

    def advance(self, step: int, stop: int, rates: RateFunction) -> Outcomes:
        if self._portions is None or step != self._next:
            self._portions = self.share.stream(step)
        self._next = step + 1
        self.portion = next(self._portions)
        self.batch = self.portion.batch
        self._doing = f"step {step}"
        rate = rates(step)
        loss, norm, finite = self.take(step, self.batch, rate)
        return Outcomes([loss], [norm], [rate], finite)

    def _in_memory(self, step: int, batch: Batch | None) -> Tensor:
        """More micro-batches where the memory does not suffice, as long as nothing was sent.

        The first step, and the first with more micro-batches, therefore sends nothing before its gradients are there.
        """
        while True:
            try:
                with self.machine.recomputing():
                    return self.backward(batch)
            except RuntimeError as error:
                too_large = out_of_memory(error) and not self.exchange.under_way
                if not too_large or batch is None or rows_of(batch) < 2 * self.machine.parts:
                    raise
            self._restore_buffers()
            self.machine.parts *= 2
            message = f"out of memory: each step is now made of {self.machine.parts} micro-batches"
            self.machine.events.append((step, "out_of_memory", message))
            seed_step(self.seed, step, TRAIN, self.machine.device)

    def backward(self, batch: Batch | None) -> Tensor:
        """The gradient of the whole batch into ``.grad``, from the shares of all; returns the loss of all."""
        machine, exchange = self.machine, self.exchange
        for parameter in machine.parameters:
            parameter.grad = None
        exchange.numbers.zero_()
        if self.examples is not None:
            self.examples.again()
        pieces = self._pieces(batch)
        overlaps = self._tried == machine.parts
        with self._together:
            for k, piece in enumerate(pieces):
                loss, weight = self.weighing.share(piece, self.portion.rows, self.evaluated)
                exchange.numbers[0] += loss.detach()
                exchange.numbers[1] += weight
                if k == len(pieces) - 1:
                    exchange.begin(overlaps=overlaps)
                backward(loss if machine.scaler is None else machine.scaler.scale(loss))
        if not pieces:
            exchange.begin(overlaps=False)
        self._tried = machine.parts
        exchange.end(self._doing, empty=not pieces)
        if self.weighing.count is not None:
            exchange.divide(self.portion.rows)
        if machine.scaler is not None:
            machine.scaler.unscale_(machine.optimizer)
        return exchange.numbers[0].clone()

    def explained(self, step: int) -> dict[str, Any]:
        """Which process's rows a refused step came from, and where they went wrong; all processes ask together."""
        machine = self.machine
        rows = None
        batch = self.batch
        if not isinstance(self.batches.source, Stream):
            batch, rows = self.share.at(step)
        found = None
        if batch is not None:
            found = explain_refusal(machine.objective, batch, step, self.seed, machine.device, rows)
        told = [item for item in self.world.gather(found, f"the refusal of step {step}") if item is not None]
        # Where nothing is wrong with the rows of a process, the replay blames the norm of its gradient.
        return min(
            told, key=lambda item: (item["where"] == "gradient" and item["module"] is None, item["where"] != "data")
        )

    def _pieces(self, batch: Batch | None) -> list[Batch]:
        """Micro-batches of the size they have in a single process."""
        if batch is None:
            return []
        size = -(-self.portion.rows // self.machine.parts)
        return [batch] if rows_of(batch) <= size else list(split(batch, size))
