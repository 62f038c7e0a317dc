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

import time
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar, TypeVarTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from fogline.data.source import leaves
from fogline.progress import ProgressFunction, ProgressReport
from fogline.record.columns import is_compiled
from fogline.record.hook import Hook
from fogline.record.inspector import Inspector, hook_seconds
from fogline.record.probes import Window
from fogline.record.seen import Ledger, Seen, gradient_norm, is_single, rate_of, rows_of, value_of
from fogline.record.signals import Recorder

_MOST_WAITING = 1024
_SCALER_SHOWS = 200  # steps after which a gradient scaler would have been seen at work

Given = TypeVarTuple("Given")
Result = TypeVar("Result")


def counted(method: Callable[[Observer, *Given], Result]) -> Callable[[Observer, *Given], Result]:
    """Count what a method costs, and what is counted inside it only once."""

    @wraps(method)
    def counting(self: Observer, *given: *Given) -> Result:
        before, started = self.budget.spent, time.perf_counter()
        result = method(self, *given)
        self.budget.spent = before + time.perf_counter() - started + self.hook_seconds
        return result

    return counting


class Observer:
    """Observes the steps of one optimizer and hands their signals to a recorder.

    Args:
        model, optimizer, loss_fn: of the loop; a loss that is no module is not observed.
        recorder: gets a row for every step, or for every ``recorder.stride``-th where steps come too fast.
        named: the trained parameters with their names, for the probes.
        report: called after each flush.
        inspector: is told what passes by, if there is one.

    Attributes:
        taken: steps so far.
        examples: rows that went forward through the model in training.
        ledger: what was seen of the steps, and what went wrong in them.
        started: when the observing began, a reading of ``perf_counter``.
        hook_seconds: what the call of a hook costs.
        unclipped: norm of the coming step's gradient before the loop clips it, where the loop tells it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: object,
        recorder: Recorder,
        named: Sequence[tuple[str, nn.Parameter]],
        report: ProgressFunction,
        inspector: Inspector | None = None,
    ) -> None:
        self.optimizer, self.recorder, self.report = optimizer, recorder, report
        self.inspector = inspector
        self.budget, self.ledger = recorder.budget, Ledger(recorder)
        self.hook_seconds, self._collected = hook_seconds(), 0.0
        self.started = time.perf_counter()
        self.taken = self.examples = 0
        self._window = Window(named, self.budget, None if is_compiled(model) else model)
        self._coming: Seen | None = None  # the step to come, if it has a row
        self._last: Seen | None = None  # the step just taken, if it has a row
        self._fed: Seen | None = None  # the step that the latest forward pass was for
        self._logs: bool | None = None  # whether every row so far had its loss logged; None before the first
        self._logs_ahead: bool | None = None  # whether losses are logged before their step; None before the first
        self._inside, self._evaluations = False, 0
        self._scaled = self._stopped = self._announces = False
        self._rows_a_step = self._wake = self._flushed_at = 0
        self._gradient: Tensor | None = None
        self._version = 0
        self.unclipped: float | Tensor | None = None
        # Overflow in a backward pass reaches the early layers; a small parameter costs nothing to hold on to.
        sentinel: Any = next((p for _, p in named if p.ndim == 1), named[0][1])
        self._device = sentinel.device.type
        self._hooks: dict[str, Callable[[], RemovableHandle]] = {
            "forward": lambda: model.register_forward_pre_hook(Hook(self._before_forward), with_kwargs=True),
            "gradient": lambda: sentinel.register_post_accumulate_grad_hook(Hook(self._after_backward)),
            "before": lambda: optimizer.register_step_pre_hook(Hook(self._before_step)),
            "after": lambda: optimizer.register_step_post_hook(self._after_step),
        }
        if isinstance(loss_fn, nn.Module):
            self._hooks["loss"] = lambda: loss_fn.register_forward_hook(Hook(self._after_loss))
        self._hung: dict[str, RemovableHandle] = {}
        self._hang("gradient", True)
        self._hang("after", True)
        self._arrange()

    def _hang(self, name: str, wanted: bool) -> None:
        if wanted == (name in self._hung):
            return
        if wanted:
            self._hung[name] = self._hooks[name]()
        else:
            self._hung.pop(name).remove()

    def _arrange(self) -> None:
        """Hang the hooks that the coming step needs, and no others: a hook costs more than what is done in it."""
        stride, past = self.recorder.stride, self.taken % self.recorder.stride
        self._coming = None if past else Seen()
        near = not past or self._last is not None
        ahead = not past or self._window.open or self._may_probe()
        self._hang("before", ahead)
        self._hang("forward", near)
        looks = self.inspector is not None and self.inspector.looking
        self._hang("loss", near and (looks or not self._logs) and "loss" in self._hooks)
        self._wake = 0 if near or ahead else self.taken - past + stride - 1
        if self.taken < _SCALER_SHOWS:
            self._wake = min(self._wake, _SCALER_SHOWS)
        elif "gradient" in self._hung and not (self._scaled or self.ledger.may_have_skipped):
            self._hang("gradient", False)

    def _may_probe(self) -> bool:
        """The second step of a window must be one that has a row."""
        return (self.taken + 1) % self.recorder.stride == 0

    def remove(self) -> None:
        """Take every hook away; what was seen waits for :meth:`flush`."""
        self._stop()
        self._hang("after", False)

    def _stop(self) -> None:
        """Observe nothing any more; the hook after the step stays, in case it is the one that is being called."""
        self._stopped = True
        for name in self._hooks:
            if name != "after":
                self._hang(name, False)
        self._window.remove()
        if self.inspector is not None:
            self.inspector.remove()
            self.inspector = None
        self._settle()
        self._coming = None

    # -- what the loop says ----------------------------------------------------------------------------------------

    def log(self, loss: object, step: int | None) -> None:
        """Keep a loss of the step that its forward pass was for.

        Raises:
            TypeError, ValueError: it is no single number, or is for a step that is neither the last nor the coming one.
        """
        if self._coming is not None or self._last is not None:
            self._log(loss, step)
            if self.inspector is not None:
                self.inspector.logged(self.taken, loss)

    def announce(self, batch: Any) -> None:
        """A batch goes forward, by whatever way the loop has: the model's own forward passes are parts of it then."""
        self._announces = True
        if "forward" in self._hung and torch.is_grad_enabled():
            self._announce(batch)

    def score(self, name: str, value: object, step: int | None) -> None:
        """Keep a held-out score, of the last step if none is given."""
        self.ledger.scores.append((max(0, self.taken - 1) if step is None else step, name, value_of(name, value)))

    def scored(self) -> None:
        """Held-out scores were logged, all of one look."""
        if self.inspector is not None:
            self.inspector.scored(max(0, self.taken - 1))

    @counted
    def _log(self, loss: object, step: int | None) -> None:
        kept, seen = value_of("loss", loss), self._step_of_loss(step)
        # Within a closure the loss is that of a trial point.
        if seen is not None and (seen is self._coming or seen is self._last) and not self._inside:
            seen.logged.append(kept)

    def _step_of_loss(self, step: int | None) -> Seen | None:
        """With no forward pass to go by, losses come before the steps if the first one did."""
        if step is not None:
            if step not in (self.taken - 1, self.taken):
                raise ValueError(
                    f"expected the loss of the last step or of the coming one ({self.taken - 1} or {self.taken}), "
                    f"received step={step}; leave `step` out, or count optimizer steps from 0"
                )
            return self._coming if step == self.taken else self._last
        if self._fed is not None:
            return self._fed
        if self._logs_ahead is None:
            self._logs_ahead = self.taken == 0
        return self._coming if self._logs_ahead else self._last

    # -- hooks -----------------------------------------------------------------------------------------------------

    @counted
    def _before_forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled() or self._evaluations:
            if self.inspector is not None and not self._evaluations:
                self.inspector.evaluation(args)
            return
        if self._announces:
            if self.inspector is not None:
                self.inspector.given(args, kwargs)
            return
        if self.inspector is not None:
            self.inspector.forward(self.taken, args, kwargs)
        self._goes_forward(rows_of(args, kwargs))

    @counted
    def _announce(self, batch: Any) -> None:
        if self.inspector is not None:
            self.inspector.announced(self.taken, batch)
        self._goes_forward(rows_of(tuple(leaves(batch)[:1]), {}))

    def _goes_forward(self, rows: int) -> None:
        self._fed = self._coming or Seen()
        self._fed.forward(rows)
        self._window.forward()
        if not self._scaled and self.taken < _SCALER_SHOWS:
            autocast = torch.is_autocast_enabled(self._device)
            self._scaled = autocast and torch.get_autocast_dtype(self._device) is torch.float16

    @counted
    def _after_loss(self, _: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if self._coming is None or self._evaluations or not torch.is_grad_enabled():
            return
        if self.inspector is not None:
            self.inspector.loss(self.taken, args, output)
        if isinstance(output, Tensor) and output.numel() == 1:
            self._coming.observed.append(value_of("loss", output))

    @counted
    def _after_backward(self, parameter: Tensor) -> None:
        """Gradients made anew without a step since the last ones: those were dropped."""
        gradient = parameter.grad
        if self.inspector is not None and not torch.is_grad_enabled():
            self.inspector.accumulated()
        if self._inside or gradient is None or torch.is_grad_enabled():
            return
        before, version = self._gradient, gradient._version
        # Accumulation is in place and counts the version up; after zero_grad the gradient is another tensor.
        if before is not None and before is not gradient and version <= self._version:
            if self._coming is not None:
                self._coming.forget()
            bad = ~torch.isfinite(before).all()
            if bad.device.type != "cpu" or bool(bad):
                self.ledger.suspect(self.taken, bad)
        self._gradient, self._version = gradient, version

    @counted
    def _before_step(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._inside, self._evaluations = True, 0
        if self._coming is not None:
            self._coming.seconds = time.perf_counter() - self.started
            self._coming.rate = rate_of(self.optimizer)
        self._window.begin(self._may_probe())
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._look_at_gradients()
            return None

        def observed() -> Any:
            if self.inspector is not None:
                self.inspector.evaluates_closure()
            loss = closure()
            self._evaluated(loss)
            return loss

        return ((args[0], observed, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": observed})

    @counted
    def _evaluated(self, loss: object) -> None:
        """Only the first evaluation of a closure is at the weights that the step starts from."""
        self._evaluations += 1
        if self._evaluations == 1:
            if self._coming is not None and is_single(loss):
                self._coming.observed = [value_of("loss", loss)]
            self._look_at_gradients()

    def _look_at_gradients(self) -> None:
        scale = getattr(self.optimizer, "grad_scale", None)
        if self._coming is not None:
            groups = self.optimizer.param_groups
            gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
            if self.unclipped is not None:
                self._coming.norm = value_of("norm", self.unclipped)
            elif gradients:
                norm = gradient_norm(gradients)
                self._coming.norm = value_of("norm", norm if scale is None else norm / scale.to(norm.device))
        if self._window.probing:
            self._window.gradients(scale)
        if self.inspector is not None:
            self.inspector.before_step(self.taken, None if self._coming is None else self._coming.norm)

    def _after_step(self, optimizer: Optimizer, _: object, __: object) -> None:
        if torch.compiler.is_compiling():
            return
        self._gradient = self.unclipped = None
        found = optimizer.__dict__.get("found_inf")
        if found is None and self.taken + 1 < self._wake:
            self.taken += 1  # most steps, where they come too fast for a row each: every microsecond counts
            self.examples += self._rows_a_step
            return
        self._inside, self._evaluations = False, 0
        if not self._stopped and (self.recorder.due(time.perf_counter()) or len(self.ledger.waiting) >= _MOST_WAITING):
            self._flush_or_stop()
        if not self._stopped and not (found is not None and self._skipped(found)):
            self._taken(found)

    def _skipped(self, found: Tensor) -> bool:
        """Whether a fused optimizer is known to have left the weights alone; on a device that is asked at the flush."""
        if (found.device.type != "cpu" and not self._window.probing) or not bool(found):
            return False
        self.ledger.skip(self.taken)
        self._window.cancel()
        # A loss still to come is of no step.
        self._settle()
        if self._coming is not None:
            self._coming = Seen(rows=self._coming.rows)
        return True

    @counted
    def _taken(self, found: Tensor | None) -> None:
        """A step was taken, as far as is known."""
        self._settle()
        if self.inspector is not None:
            self.inspector.after_step(self.taken)
            if self.ledger.skipped:
                self.inspector.skipped(self.taken, self.ledger.skipped)
        seen = self._coming or Seen(has_row=False)
        seen.number, seen.examples, seen.skipped = self.taken, self.examples, found
        if seen.has_row:
            self._last, self._rows_a_step = seen, seen.rows
        elif found is not None:
            self.ledger.waiting.append(seen)
        self.taken += 1
        self.examples += self._rows_a_step
        if self._window.probing:
            self._end_probe()
        self._arrange()

    def _settle(self) -> None:
        """No more losses come for the last step. A loss module is looked at while the loop does not log every loss."""
        last, self._last = self._last, None
        if last is not None:
            self.ledger.waiting.append(last)
            self._logs = bool(last.logged) and self._logs is not False

    def _end_probe(self) -> None:
        if self._window.open and self.ledger.may_have_skipped:
            self._read()  # else the number of this step would not be known
        probed = self._window.end(self.taken - 1)
        if probed is not None:
            self.recorder.probe(probed)

    # -- from the device to the recorder ---------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what waits.

        Raises:
            OSError: the run folder cannot be written.
        """
        self._read()
        collecting = self.budget.spent - self.budget.probing - self._collected
        self.budget.spent += (self.taken - self._flushed_at) * self.hook_seconds  # of the steps without a row, too
        self._flushed_at = self.taken
        self.recorder.flush(collecting)
        self._collected = self.budget.spent - self.budget.probing
        speed = self.examples / max(time.perf_counter() - self.started, 1e-9)
        self.report(
            ProgressReport(self.taken, loss=self.recorder.last, lr=self.ledger.last_rate, examples_per_second=speed)
        )

    def _flush_or_stop(self) -> None:
        """A full disk ends the watching, not the training."""
        try:
            self.flush()
        except OSError as error:
            self._stop()
            message = f"watching ended at step {self.taken}, training goes on: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    @counted
    def _read(self) -> None:
        """A step that turns out to have been skipped is none, and those after it move up."""
        moved = self.ledger.read()
        self.taken -= moved
        if self._last is not None:
            self._last.number -= moved
