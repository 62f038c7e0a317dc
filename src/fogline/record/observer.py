"""What can be seen of somebody else's training loop, by hooks that leave everything as it is.

Where the hooks sit, and what they see::

    forward of the model    examples; which step the loss that follows belongs to; activations while a probe is open
    forward of the loss     the loss, where the loop does not log it
    gradient of one weight  gradients that were dropped without a step
    before optimizer.step   learning rate, gradient norm; the weights and gradients while a probe is open
    after optimizer.step    the step is counted; what it was skipped for; the update while a probe is open

Values stay on the device until :meth:`Observer.flush`; on the CPU they are read at once, which waits for nothing.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fogline.record.incidents import Incidents
from fogline.record.seen import Hook, Seen, Value, gradient_norm, hook_seconds, rate_of, rows_of, value_of
from fogline.record.signals import Recorder, numbers
from fogline.record.window import Window

_MOST_WAITING = 1024
_SCALER_SHOWS = 200  # steps after which a gradient scaler would have been seen at work


class Observer:
    """Observes the steps of one optimizer and hands their signals to a recorder.

    Args:
        model, optimizer, loss_fn: of the loop; a loss that is no module is not observed.
        recorder: gets a row for every step, or for every ``recorder.stride``-th where steps come too fast.
        named: the trained parameters with their names, for the probes.
        flushed: called after each flush.

    Attributes:
        taken: steps so far.
        examples: rows that went forward through the model in training.
        incidents: steps that were not finite or were skipped.
        last_rate: learning rate of the latest step flushed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: object,
        recorder: Recorder,
        named: Sequence[tuple[str, nn.Parameter]],
        flushed: Callable[[], None],
    ) -> None:
        self.optimizer, self.recorder, self.flushed = optimizer, recorder, flushed
        self.budget, self.store = recorder.budget, recorder.store
        self.taken = self.examples = 0
        self.incidents = Incidents(recorder.store)
        self.last_rate: float | None = None
        self._model, self._loss_fn = model, loss_fn if isinstance(loss_fn, nn.Module) else None
        self._started = time.perf_counter()
        inner = getattr(model, "_orig_mod", model)
        compiled = inner is not model or any(m._compiled_call_impl is not None for m in inner.modules())
        self._window = Window(optimizer, named, self.budget, None if compiled else inner)
        self._coming: Seen | None = Seen()
        self._last: Seen | None = None
        self._waiting: list[Seen] = []
        self._scores: list[tuple[int, str, Value]] = []
        self._suspects: list[tuple[int, Tensor]] = []
        self._feeds: int | None = None  # the step that the latest forward pass of the model is for
        self._first_log_before_step: bool | None = None
        self._inside, self._evaluations = False, 0
        self._examples_before, self._rows_a_step, self._mark = 0, 0, (0, 0)
        self._scaled = False
        self._missed: bool | None = None  # whether a step's loss was not logged; None before the first
        self._sentinel_gradient: Tensor | None = None
        self._sentinel_version = 0
        self._collecting = 0.0
        # Overflow in a backward pass reaches the early layers; a small parameter costs nothing to hold on to.
        sentinel = next((p for _, p in named if p.ndim == 1), named[0][1])
        hook: Any = sentinel.register_post_accumulate_grad_hook(Hook(self._after_backward))  # type: ignore[no-untyped-call]
        self._sentinel_hook, self._sentinel_device = hook, sentinel.device.type
        self._hook_seconds = hook_seconds()
        self._passes: list[Any] = []
        self._ahead: list[Any] = []
        self._wake = self._flushed_at = 0
        self._handles = [optimizer.register_step_post_hook(self._after_step)]
        self._attach()
        self._look_ahead()

    def _attach(self) -> None:
        """Look at the forward passes of the coming step: a hook there costs more than one on the optimizer."""
        if self._passes:
            return
        self._passes.append(self._model.register_forward_pre_hook(Hook(self._before_forward), with_kwargs=True))
        if self._loss_fn is not None and self._missed is not False:
            self._passes.append(self._loss_fn.register_forward_hook(Hook(self._after_loss)))

    def _detach(self) -> None:
        for handle in self._passes:
            handle.remove()
        self._passes = []

    def _look_ahead(self) -> None:
        """Be there before the coming step only if it has a row or may be the first of a window."""
        if self._coming is not None or self._window.open or self._may_probe():
            if not self._ahead:
                self._ahead = [self.optimizer.register_step_pre_hook(self._before_step)]
            self._wake = 0
            return
        for handle in self._ahead:
            handle.remove()
        self._ahead = []
        stride = self.recorder.stride
        self._wake = 0 if self._last is not None else self.taken + stride - 1 - self.taken % stride
        if self.taken < _SCALER_SHOWS:
            self._wake = min(self._wake, _SCALER_SHOWS)

    def _may_probe(self) -> bool:
        """The second step of a window must be one that has a row."""
        return (self.taken + 1) % self.recorder.stride == 0

    def remove(self) -> None:
        """Take every hook away."""
        self._detach()
        for handle in (*self._handles, *self._ahead, self._sentinel_hook):
            handle.remove()
        self._handles, self._ahead = [], []
        self._window.remove()

    # -- what the loop says ----------------------------------------------------------------------------------------

    def log(self, loss: object, step: int | None) -> None:
        """Keep a loss of the step that its forward pass was for.

        Raises:
            TypeError, ValueError: it is no single number, or is for a step that is neither the last nor the coming one.
        """
        if (self._coming is None and self._last is None) or not self._handles:
            return
        started = time.perf_counter()
        kept = value_of("loss", loss)
        if step is None:
            step = self._step_logged()
        elif step not in (self.taken - 1, self.taken):
            raise ValueError(
                f"expected the loss of the last step or of the coming one ({self.taken - 1} or {self.taken}), received "
                f"step={step}; leave `step` out, or count optimizer steps from 0"
            )
        if not self._inside:  # within a closure the loss is that of a trial point
            seen = self._coming if step == self.taken else self._last if step == self.taken - 1 else None
            if seen is not None:
                seen.logged.append(kept)
        self._count(started)

    def score(self, name: str, value: object, step: int | None) -> None:
        """Keep a held-out score, of the last step if none is given."""
        self._scores.append((max(0, self.taken - 1) if step is None else step, name, value_of(name, value)))

    def _step_logged(self) -> int:
        """With no forward pass to go by, losses come before the steps if the first one did."""
        if self._feeds is not None:
            return self._feeds
        if self._first_log_before_step is None:
            self._first_log_before_step = self.taken == 0
        return self.taken if self._first_log_before_step else self.taken - 1

    # -- hooks -----------------------------------------------------------------------------------------------------

    def _before_forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled() or self._evaluations:
            return
        started = time.perf_counter()
        self._feeds = self.taken
        if self._coming is None:
            self._detach()
        else:
            self._mark = (len(self._coming.logged), len(self._coming.observed))
            self.examples += rows_of(args, kwargs)
            self._window.forward()
            if not self._scaled and self.taken < _SCALER_SHOWS:
                kind = self._sentinel_device
                self._scaled = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.float16
        self._count(started)

    def _after_loss(self, _: nn.Module, __: object, output: object) -> None:
        if self._coming is None or self._evaluations or not torch.is_grad_enabled():
            return
        started = time.perf_counter()
        if isinstance(output, Tensor) and output.numel() == 1:
            self._coming.observed.append(value_of("loss", output))
        self._count(started)

    def _after_backward(self, parameter: Tensor) -> None:
        """Gradients made anew without a step since the last ones: those were dropped."""
        gradient = parameter.grad
        if self._inside or gradient is None or torch.is_grad_enabled():
            return
        started = time.perf_counter()
        before, version = self._sentinel_gradient, gradient._version
        # Accumulation is in place and counts the version up; after zero_grad the gradient is another tensor.
        if before is not None and before is not gradient and version <= self._sentinel_version:
            if self._coming is not None:
                self._coming.forget(*self._mark)
            bad = ~torch.isfinite(before).all()
            if bad.device.type != "cpu" or bool(bad):
                self._suspects.append((self.taken, bad))
        self._sentinel_gradient, self._sentinel_version = gradient, version
        self._count(started)

    def _before_step(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():
            return None
        self._inside, self._evaluations = True, 0
        if self._last is not None:
            self._settle()
        seen = self._coming
        started = time.perf_counter()
        if seen is not None:
            seen.number, seen.seconds, seen.examples = self.taken, started - self._started, self._examples_before
            seen.rate = rate_of(self.optimizer)
        self._count(started)
        self._window.begin(self._may_probe())
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._look_at_gradients(seen)
            return None
        observed = self._closure(seen, closure)
        return ((args[0], observed, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": observed})

    def _settle(self) -> None:
        """No more losses come for the last step. A loss module is looked at until, and after, the loop logs its own."""
        last, self._last = self._last, None
        assert last is not None
        self._waiting.append(last)
        if not last.logged and self._missed is False:
            self._missed = True
        elif last.logged and self._missed is None:
            self._missed = False
            self._detach()
            self._attach()

    def _closure(self, seen: Seen | None, closure: Callable[[], Any]) -> Callable[[], Any]:
        def observed() -> Any:
            loss = closure()
            if self._evaluations == 0:
                if seen is not None and (isinstance(loss, Real) or (isinstance(loss, Tensor) and loss.numel() == 1)):
                    seen.evaluated = value_of("loss", loss)
                self._look_at_gradients(seen)
            self._evaluations += 1
            return loss

        return observed

    def _look_at_gradients(self, seen: Seen | None) -> None:
        started = time.perf_counter()
        scale = getattr(self.optimizer, "grad_scale", None)
        if seen is not None:
            groups = self.optimizer.param_groups
            gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
            if gradients:
                norm = gradient_norm(gradients)
                seen.norm = value_of("norm", norm if scale is None else norm / scale.to(norm.device))
            self._count(started)
        if self._window.probing:
            self._window.gradients(scale)

    def _after_step(self, optimizer: Optimizer, _: object, __: object) -> None:
        if torch.compiler.is_compiling():
            return
        found = optimizer.__dict__.get("found_inf")
        if found is None and self.taken + 1 < self._wake:
            self.taken += 1  # most steps, where they come too fast for a row each: every microsecond counts
            self.examples += self._rows_a_step
            self._sentinel_gradient = None
            return
        self._inside, self._evaluations = False, 0
        self._sentinel_gradient = None
        started = time.perf_counter()
        seen = self._coming
        if found is not None and self._skipped(seen, found):
            return
        self._next(seen)
        if seen is not None:
            self._count(started)
        if self._window.probing:
            self._end_probe()
        if self.recorder.due(started) or len(self._waiting) >= _MOST_WAITING:
            self._flush_or_stop()
        self._look_ahead()

    def _skipped(self, seen: Seen | None, found: Tensor) -> bool:
        """Whether a fused optimizer is known to have left the weights alone; on a device that is asked at the flush."""
        self._scaled = True
        if (found.device.type == "cpu" or self._window.probing) and bool(found):
            self.incidents.skip(self.taken)
            self._window.cancel()
            self._coming = Seen() if seen is not None else None
            self._feeds = None if self._feeds is None else self.taken - 1  # a loss still to come is of no step
            return True
        if seen is None:
            self._waiting.append(Seen(self.taken, skipped=found, recorded=False))
        else:
            seen.skipped = found
        return False

    def _next(self, seen: Seen | None) -> None:
        """A step was taken."""
        if self._last is not None:
            self._settle()
        if seen is None:
            self.examples += self._rows_a_step
        else:
            self._rows_a_step = self.examples - self._examples_before
        self._examples_before, self._mark = self.examples, (0, 0)
        self._last = seen
        self.taken += 1
        self._coming = None
        if self.taken % self.recorder.stride == 0:
            self._coming = Seen()
            self._attach()
        if self.taken >= _SCALER_SHOWS and not (self._scaled or self.incidents.skipped or self._suspects):
            self._sentinel_hook.remove()

    def _end_probe(self) -> None:
        if self._window.open and any(seen.skipped is not None for seen in self._waiting):
            self._resolve()  # else the number of this step would not be known
        probed = self._window.end(self.taken - 1)
        if probed is not None:
            self.recorder.probe(probed)

    def _flush_or_stop(self) -> None:
        """A full disk ends the watching, not the training."""
        try:
            self.flush()
        except OSError as error:
            self.remove()
            message = f"watching ended at step {self.taken}, training goes on: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    # -- from the device to the recorder ---------------------------------------------------------------------------

    def flush(self, *, last: bool = False) -> None:
        """Write what waits; with ``last`` also the step that might still have been logged.

        Raises:
            OSError: the run folder cannot be written.
        """
        started = time.perf_counter()
        if last and self._last is not None:
            self._settle()
        self._resolve()
        for (step, name, _), value in zip(self._scores, numbers([v for *_, v in self._scores]), strict=True):
            self.store.scores(step, "valid", {name: value})
        self._scores = []
        self._count(started)
        self.budget.spent += (self.taken - self._flushed_at) * self._hook_seconds  # of the steps without a row, too
        self._flushed_at = self.taken
        self.recorder.flush(self._collecting)
        self._collecting = 0.0
        self.flushed()

    def _resolve(self) -> None:
        """Turn what waits into rows; a step that a fused optimizer skipped is none, and the later ones move up."""
        waiting, self._waiting = self._waiting, []
        suspects, self._suspects = self._suspects, []
        for (step, _), bad in zip(suspects, numbers([flag for _, flag in suspects]), strict=True):
            if bad:
                self.incidents.skip(step)
        losses = numbers([seen.loss() for seen in waiting])
        norms, rates = numbers([seen.norm for seen in waiting]), numbers([seen.rate for seen in waiting])
        skips = numbers([seen.skipped for seen in waiting])
        moved = 0
        for seen, loss, norm, rate, skip in zip(waiting, losses, norms, rates, skips, strict=True):
            step = seen.number - moved
            if skip:
                self.incidents.skip(step)
                moved += 1
                continue
            if not seen.recorded:
                continue
            self.incidents.check(step, loss, norm)
            self.last_rate = rate
            self.recorder.row(step, math.nan, seen.examples, seen.seconds, loss, rate, norm)
        self.taken -= moved
        self._feeds = None if self._feeds is None else self._feeds - moved
        if self._last is not None:
            self._last.number -= moved

    def _count(self, started: float) -> None:
        seconds = time.perf_counter() - started + self._hook_seconds
        self.budget.spent += seconds
        self._collecting += seconds
