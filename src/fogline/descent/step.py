"""One step of the descent: forward, backward, gate, update - eagerly or as a compiled graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from math import hypot, isfinite, nan
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fogline.data.source import Batch
from fogline.descent.batches import Batches, part, rows_of, split
from fogline.descent.clipping import memory_of
from fogline.descent.graph import Program
from fogline.descent.machine import Machine as Machine
from fogline.descent.machine import has_batch_statistics, is_summed
from fogline.descent.objective import Objective
from fogline.descent.optimizer_state import live_tensors
from fogline.descent.optimizers import init_state, set_lr
from fogline.descent.randomness import TRAIN, seed_step
from fogline.descent.shortcuts import backward, bare_step, skipping, skips_itself
from fogline.record.examples import ExampleRecorder

_FEW = 16  # tensors up to which reading them one by one beats stacking them


class Outcome(NamedTuple):
    """What one step gave. Numbers on the CPU; tensors still on the device elsewhere, so that nothing waits.

    ``finite`` is False where loss or gradient was not and the update was refused; None where the host does not know
    yet.
    """

    loss: float | Tensor
    gradient_norm: float | Tensor
    finite: bool | None


class Outcomes(NamedTuple):
    """What one call gave: the same for one step or several, in order, with the learning rates they were taken at.

    ``finite`` is True where all of them were, False where one was not, None where the host does not know yet.
    """

    losses: list[float | Tensor]
    norms: list[float | Tensor]
    rates: list[float]
    finite: bool | None


RateFunction = Callable[[int], float]


class EagerStep:
    """The step as PyTorch runs it, operation by operation.

    A loss or gradient that is not finite is refused: weights, buffers and optimizer state stay as they were. On the CPU
    the host sees it at once. On an accelerator (``deferred``) a flag on the device refuses this step and every one
    after it, until the host looks, finds the first refused step and goes on behind it: nothing waits, nothing is lost.
    """

    def __init__(self, machine: Machine, batches: Batches, *, deferred: bool | None = None) -> None:
        self.machine = machine
        self.batches = batches
        wanted = machine.device.type != "cpu" if deferred is None else deferred
        self.deferred = wanted and machine.scaler is None  # the scaler makes the host wait for the device anyway
        self.stuck = torch.zeros((), dtype=torch.bool, device=machine.device) if self.deferred else None
        self.examples: ExampleRecorder | None = None
        self.batch: Batch = None
        self._stream: Iterator[Batch] | None = None
        self._next = -1
        self._saved_buffers = [buffer.clone() for buffer in machine.buffers]
        self._has_state = False
        self._step = bare_step(machine.optimizer)

    @property
    def seed(self) -> int:
        """What the random numbers of a step come from."""
        return self.machine.seed

    @property
    def rows(self) -> int:
        """Of the latest batch."""
        return rows_of(self.batch)

    @property
    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.machine.parameters if p.grad is not None]

    def advance(self, step: int, stop: int, rates: RateFunction) -> Outcomes:
        """Take one step; ``stop`` is for steppers that take several."""
        if self._stream is None or step != self._next:
            self._stream = self.batches.stream(step)
        self._next = step + 1
        self.batch = next(self._stream)
        rate = rates(step)
        loss, norm, finite = self.take(step, self.batch, rate)
        return Outcomes([loss], [norm], [rate], finite)

    def take(self, step: int, batch: Batch, lr: float) -> Outcome:
        """One step on one batch."""
        machine = self.machine
        seed_step(self.seed, step, TRAIN, machine.device)
        set_lr(machine.optimizer, lr)
        if machine.buffers:
            torch._foreach_copy_(self._saved_buffers, machine.buffers)
        if self.examples is not None:
            self.examples.begin(step)
        if machine.needs_closure:
            return self._with_closure(batch)
        loss = self._in_memory(step, batch)
        if self.examples is not None:
            self.examples.end()
        gradients = self.gradients
        if not gradients:
            return Outcome(loss.item(), 0.0, isfinite(loss.item()))
        norms = torch._foreach_norm(gradients)
        if self.deferred and self._restorable():
            return self._deferred(loss, norms, gradients)
        return self._update(loss, norms, gradients)

    def _restorable(self) -> bool:
        """Whether there is an optimizer state to go back to, all of it on the device.

        Where it cannot be made now the first step makes it; a counter on the host would not hear of a refusal.
        """
        if not self._has_state:
            optimizer, device = self.machine.optimizer, self.machine.device
            made = init_state(optimizer) or bool(optimizer.state)
            self._has_state = made and all(value.device.type == device.type for value in live_tensors(optimizer))
        return self._has_state

    def _in_memory(self, step: int, batch: Batch) -> Tensor:
        """:meth:`backward`, in twice as many micro-batches each time the memory does not suffice; the maths stay."""
        machine = self.machine
        while True:
            try:
                with machine.recomputing():
                    return self.backward(batch)
            except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator has no class of its own
                if not out_of_memory(error) or not self._can_save(batch):
                    raise
            self._restore_buffers()
            machine.events.append((step, "out_of_memory", f"out of memory: {self._save_memory(batch)}"))
            seed_step(machine.seed, step, TRAIN, machine.device)

    def _can_save(self, batch: Batch) -> bool:
        machine = self.machine
        return rows_of(batch) >= 2 * machine.parts or (machine.recompute is None and machine.blocks > 0)

    def _save_memory(self, batch: Batch) -> str:
        """Take what costs least and leaves the result as it is; says what."""
        machine = self.machine
        statistics = has_batch_statistics(machine.objective.model)
        few = rows_of(batch) < 2 * machine.parts
        if machine.recompute is None and (statistics or few) and machine.blocks:
            machine.recompute = True
            return f"the activations of {machine.blocks} blocks are now computed again on the way back"
        machine.summed = is_summed(machine.objective, part(batch, 0, 2))
        machine.parts *= 2
        said = f"each step is now made of {machine.parts} micro-batches"
        rows = -(-rows_of(batch) // machine.parts)
        return f"{said}; batch normalisation takes its statistics over the {rows} rows of one" if statistics else said

    def backward(self, batch: Batch) -> Tensor:
        """Gradients of the mean loss of a batch into ``.grad``, in micro-batches where so set; returns the loss."""
        machine = self.machine
        for parameter in machine.parameters:
            parameter.grad = None
        if self.examples is not None:
            self.examples.again()
        if machine.parts == 1:
            loss = self.evaluated(machine.objective, batch)
            backward(loss if machine.scaler is None else machine.scaler.scale(loss))
            loss = loss.detach()
        else:
            loss = self._accumulated(batch)
        if machine.scaler is not None:
            machine.scaler.unscale_(machine.optimizer)
        return loss

    def evaluated(self, objective: Objective, batch: Batch) -> Tensor:
        """The loss of (a part of) the batch, on the way to its gradient."""
        return objective(batch) if self.examples is None else self.examples.loss(objective, batch)

    def _accumulated(self, batch: Batch) -> Tensor:
        machine = self.machine
        rows = rows_of(batch)
        total = torch.zeros((), device=machine.device)
        for micro in split(batch, -(-rows // machine.parts)):
            loss = self.evaluated(machine.objective, micro) * (1.0 if machine.summed else rows_of(micro) / rows)
            backward(loss if machine.scaler is None else machine.scaler.scale(loss))
            total = total + loss.detach()
        return total

    def _update(self, loss: Tensor, norms: Sequence[Tensor], gradients: list[Tensor]) -> Outcome:
        machine = self.machine
        value = loss.item()
        size = hypot(*(norm.item() for norm in norms) if len(norms) < _FEW else torch.stack(list(norms)).tolist())
        finite = isfinite(value) and isfinite(size)
        if isfinite(value) and machine.scaler is not None:
            if finite and machine.clipping is not None:
                machine.clipping(gradients, loss.new_tensor(size))
            machine.scaler.step(machine.optimizer)  # leaves the step out where its scale was too large, by design
            machine.scaler.update()
            return Outcome(value, size, finite=True)
        if finite:
            if machine.clipping is not None:
                machine.clipping(gradients, loss.new_tensor(size))
            self._step()
        else:
            self._restore_buffers()
        return Outcome(value, size, finite)

    def _restore_buffers(self) -> None:
        if self.machine.buffers:
            torch._foreach_copy_(self.machine.buffers, self._saved_buffers)

    def _deferred(self, loss: Tensor, norms: Sequence[Tensor], gradients: list[Tensor]) -> Outcome:
        machine = self.machine
        norm = torch.linalg.vector_norm(torch.stack(list(norms)))
        assert self.stuck is not None
        self.stuck |= ~(torch.isfinite(loss) & torch.isfinite(norm))
        memory = memory_of(machine.clipping)
        skips = skips_itself(machine.optimizer)
        gated = memory if skips else [*machine.parameters, *live_tensors(machine.optimizer), *memory]
        with torch.no_grad():
            before = [value.clone() for value in gated]
            if machine.clipping is not None:
                machine.clipping(gradients, norm)
            with skipping(machine.optimizer, self.stuck) if skips else nullcontext():
                self._step()
            for value, old in zip((*gated, *machine.buffers), (*before, *self._saved_buffers), strict=True):
                torch.where(self.stuck, old, value, out=value)
        return Outcome(loss, norm, None)

    def _with_closure(self, batch: Batch) -> Outcome:
        machine = self.machine
        before = [p.detach().clone() for p in machine.parameters]
        with machine.recomputing():
            first = self.backward(batch)
        if self.examples is not None:
            self.examples.end()
        value = first.item()
        size = hypot(*torch.stack(list(torch._foreach_norm(self.gradients))).tolist())
        if not (isfinite(value) and isfinite(size)):
            self._restore_buffers()
            return Outcome(value, size, False)

        def closure() -> Any:
            with torch.enable_grad(), machine.recomputing():
                return self.backward(batch)

        machine.optimizer.step(closure)
        if all(bool(torch.isfinite(p).all()) for p in machine.parameters):
            return Outcome(value, size, True)
        with torch.no_grad():
            for parameter, old in zip(machine.parameters, before, strict=True):
                parameter.copy_(old)
        self._restore_buffers()
        machine.optimizer.state.clear()
        return Outcome(nan, size, False)

    def release(self) -> None:
        """Take steps again after the host has seen the refused one."""
        if self.stuck is not None:
            self.stuck.zero_()


class CompiledStep:
    """The compiled program where batches have its shape, the eager step for the others.

    Which of the two takes a step depends on its position alone, so a resumed run takes the same.
    """

    def __init__(self, eager: EagerStep, program: Program) -> None:
        self.eager = eager
        self.machine = eager.machine
        self.batches = eager.batches
        self.single = program if program.chunk == 1 else None
        self.chunked = program if program.chunk > 1 else None
        self.gradients: Sequence[Tensor] = ()
        self.products: Tensor | None = None  # of the last two steps of a call of several
        self.batch: Batch = None
        self._stream: Iterator[Batch] | None = None
        self._next = -1
        self._rates = torch.zeros(program.chunk, dtype=program.rate_type, device=program.state[0].device)

    @property
    def rows(self) -> int:
        """Of the latest batch."""
        return rows_of(self.batch)

    def advance(self, step: int, stop: int, rates: RateFunction) -> Outcomes:
        """Take at least one step from ``step`` on and none at ``stop`` or after."""
        chunked = self.chunked
        if chunked is not None and step + chunked.chunk <= stop:
            rows = self.batches.run(step, chunked.chunk) if self._aligned(step, chunked.chunk) else None
            if rows is not None:
                return self._several(chunked, step, rows, [rates(step + k) for k in range(chunked.chunk)])
        if self._stream is None or step != self._next:
            self._stream = self.batches.stream(step)
        self._next = step + 1
        self.batch = next(self._stream)
        self.products = None
        rate, single = rates(step), self.single
        if single is None or rows_of(self.batch) != self.batches.batch_size:
            loss, norm, finite = self.eager.take(step, self.batch, rate)
            self.gradients = self.eager.gradients
            return Outcomes([loss], [norm], [rate], finite)
        if single.random:
            seed_step(self.machine.seed, step, TRAIN, self.machine.device)
        self._rates.fill_(rate)
        signals, self.gradients = self._recorded(single, step, *single(self.batch, self._rates))
        loss, norm = signals.tolist()[0]
        return Outcomes([loss], [norm], [rate], isfinite(loss) and isfinite(norm))

    def _several(self, program: Program, step: int, rows: Batch, rates: list[float]) -> Outcomes:
        if program.random:
            seed_step(self.machine.seed, step, TRAIN, self.machine.device)
        self._rates.numpy()[:] = rates  # calls of several steps are for the CPU; a tensor of a list costs more
        signals, rest = self._recorded(program, step, *program(rows, self._rates))
        self.gradients, self.products = (), rest[0] if rest else None
        losses, norms = signals.t().tolist()
        return Outcomes(losses, norms, rates, isfinite(sum(losses)) and isfinite(sum(norms)))

    def _recorded(
        self, program: Program, step: int, signals: Tensor, rest: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """What a program gave besides the columns of its examples, which are kept."""
        if self.eager.examples is None:
            return signals, rest
        self.eager.examples.put(step, program.chunk, rest[0])
        return signals, rest[1:]

    def _aligned(self, step: int, chunk: int) -> bool:
        steps = self.batches.steps_per_epoch
        return steps is not None and (step % steps) % chunk == 0

    def release(self) -> None:
        self.eager.release()


def out_of_memory(error: RuntimeError) -> bool:
    """Whether this is what the error says."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "not enough memory" in text
