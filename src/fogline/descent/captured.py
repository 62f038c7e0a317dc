"""The eager step as a CUDA graph: recorded once and replayed, one launch where there were hundreds.

::

    the batch, the rate -> fixed places -> replay: forward, backward, gate, clip, update -> loss and norm

Random numbers stay counted: a replay draws from the generator as it is seeded then. The kernels are those of the eager
step, so the bits are the same but for one rounding: the rate lies on the device, in float32. What is recorded of each
example is computed within the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fogline.data.source import Batch, leaves, map_tree
from fogline.descent.batches import Batches, rows_of, same_shape
from fogline.descent.machine import Machine, kept, put_back
from fogline.descent.optimizer_state import init_state
from fogline.descent.optimizers import quiet_when_capturable, set_lr
from fogline.descent.randomness import TRAIN, private_randomness, seed_step
from fogline.descent.recorded import COMPILE_ERRORS
from fogline.descent.step import EagerStep, Outcome
from fogline.record.examples import ExampleRecorder

FEWEST = 50
"""Steps that must lie ahead: recording takes as long as a few of them."""
_WARM_UP = 3  # steps before the recording, in which libraries choose kernels and take their memory
_AGREEMENT = 1e-3  # of losses, against the eager step: the rate is rounded


class CannotCaptureError(Exception):
    """The step cannot be one CUDA graph; the text says why."""


class CapturedStep(EagerStep):
    """Replays the step for batches shaped as the first; the others are taken eagerly.

    Raises:
        CannotCaptureError: model, loss or optimizer make the host wait for the device or do what a graph cannot hold,
            or the graph gives other losses than the eager step. Weights, buffers and state are as they were.
    """

    def __init__(self, machine: Machine, batches: Batches, examples: ExampleRecorder | None, rate: float) -> None:
        super().__init__(machine, batches, deferred=True)
        if any(parameter.dtype == torch.float64 for parameter in machine.parameters):
            raise CannotCaptureError("a graph reads its learning rate in float32, and the weights are float64")
        if not init_state(machine.optimizer):
            raise CannotCaptureError(f"the state of {type(machine.optimizer).__name__} cannot be made beforehand")
        # That of the first step, also where a run is resumed: which batches are replayed must not depend on it.
        self._rows: Batch = map_tree(torch.clone, next(batches.stream(0)))
        self._rates = [
            (torch.zeros((), device=machine.device), group.get("lr_scale", 1.0))
            for group in machine.optimizer.param_groups
        ]
        self._signals, self._replayed = torch.zeros(2, device=machine.device), False
        self._gradients: list[Tensor] = []
        self._columns: Tensor | None = None
        self._graph = torch.cuda.CUDAGraph()
        before = kept(machine)
        try:
            with private_randomness(machine.device):
                with self._on_the_device():
                    self._warm_up(rate)
                    self.examples = examples
                    self._record()
                put_back(before)
                self._check(rate)
        except COMPILE_ERRORS as error:  # CUDA says no, or an optimizer whose rate must be a plain number
            _let_go(machine.device)
            raise CannotCaptureError(f"cannot be a CUDA graph: {str(error).strip().splitlines()[0]}") from error
        finally:
            put_back(before)
            self.release()

    @property
    def gradients(self) -> list[Tensor]:
        return self._gradients if self._replayed else super().gradients

    def take(self, step: int, batch: Batch, lr: float) -> Outcome:
        """One step on one batch; nothing waits for the device."""
        self._replayed = same_shape(batch, self._rows)
        if not self._replayed:
            return super().take(step, batch, lr)
        seed_step(self.seed, step, TRAIN, self.machine.device)
        set_lr(self.machine.optimizer, lr)
        for rate, scale in self._rates:
            rate.fill_(lr * scale)
        torch._foreach_copy_(leaves(self._rows), leaves(batch))
        self._graph.replay()
        if self.examples is not None and self._columns is not None:
            self.examples.put(step, 1, self._columns)
        loss, norm = self._signals.clone().unbind()
        return Outcome(loss, norm, None)

    def _warm_up(self, rate: float) -> None:
        """On a stream of its own, as PyTorch asks for."""
        device = self.machine.device
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            super().take(0, self._rows, rate)  # allocates, for which the host may wait
            with _never_waiting():
                for _ in range(_WARM_UP - 1):
                    super().take(0, self._rows, rate)
        torch.cuda.current_stream(device).wait_stream(stream)

    def _record(self) -> None:
        machine = self.machine
        for parameter in machine.parameters:
            parameter.grad = None
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._step_of_graph()

    @contextmanager
    def _on_the_device(self) -> Iterator[None]:
        """Within it the optimizer reads its rates from where a graph can find them."""
        groups = self.machine.optimizer.param_groups
        quiet_when_capturable(self.machine.optimizer)
        before: list[dict[str, Any]] = [{k: group[k] for k in ("lr", "capturable") if k in group} for group in groups]
        for group, (rate, _) in zip(groups, self._rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True
        try:
            yield
        finally:
            for group, old in zip(groups, before, strict=True):
                group.update(old)

    def _step_of_graph(self) -> None:
        machine = self.machine
        if machine.buffers:
            torch._foreach_copy_(self._saved_buffers, machine.buffers)
        if self.examples is not None:
            self.examples.look()
        loss = self.backward(self._rows)
        if self.examples is not None:
            self._columns = self.examples.computed()
        self._gradients = [p.grad for p in machine.parameters if p.grad is not None]
        outcome = self._deferred(loss, torch._foreach_norm(self._gradients), self._gradients)
        assert isinstance(outcome.gradient_norm, Tensor)
        self._signals.copy_(torch.stack([loss.float(), outcome.gradient_norm.float()]))

    def _check(self, rate: float) -> None:
        """The losses of the first steps must be those of the eager step: Python code that counts or draws is frozen."""
        examples, self.examples = self.examples, None
        twin = EagerStep(self.machine.copied(), self.batches, deferred=False)
        for number, batch in enumerate(islice(self.batches.stream(0), 2)):
            if rows_of(batch) != rows_of(self._rows):
                break
            loss, expected = float(self.take(number, batch, rate).loss), float(twin.take(number, batch, rate).loss)
            if not abs(loss - expected) <= _AGREEMENT * abs(expected) + 1e-6 and expected - expected == 0:
                raise CannotCaptureError(f"its graph gave loss {loss:.6g} where the eager step gave {expected:.6g}")
        self.examples = examples


@contextmanager
def _never_waiting() -> Iterator[None]:
    """Within it an operation for which the host waits is an error: better here than in the midst of a recording."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says of this mode that it is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


def _let_go(device: torch.device) -> None:
    """A recording that fails leaves the generator of the device waiting for its end: give it another state."""
    generator = torch.cuda.default_generators[device.index or 0]
    generator.graphsafe_set_state(torch.Generator(device).graphsafe_get_state())
