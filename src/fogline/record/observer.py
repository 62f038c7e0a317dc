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
from array import array
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fogline.record.probes import Activations, Probe
from fogline.record.seen import Hook, Seen, Value, gradient_norm, rate_of, rows_of, value_of
from fogline.record.signals import Recorder, numbers

_MOST_EVENTS = 20
_MOST_WAITING = 1024
_ROWS_OBSERVED = 32


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
        not_finite: the steps whose loss or gradient was not finite.
        skipped: steps that a gradient scaler skipped; they are not counted as taken.
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
        self.taken = self.examples = self.skipped = 0
        self.last_rate: float | None = None
        self.not_finite: array[int] = array("q")
        self._named, self._started = list(named), time.perf_counter()
        inner = getattr(model, "_orig_mod", model)
        compiled = inner is not model or any(m._compiled_call_impl is not None for m in inner.modules())
        self._observable = None if compiled else inner
        self._activations: Activations | None = None
        self._probe: Probe | None = None
        self._probing = False
        self._gradients: list[Tensor] = []
        self._coming: Seen | None = Seen()
        self._last: Seen | None = None
        self._waiting: list[Seen] = []
        self._scores: list[tuple[int, str, Value]] = []
        self._suspects: list[tuple[int, Tensor]] = []
        self._feeds: int | None = None  # the step that the latest forward pass of the model is for
        self._first_log_before_step: bool | None = None
        self._inside, self._evaluations = False, 0
        self._examples_before, self._mark = 0, (0, 0)
        self._sentinel_gradient: Tensor | None = None
        self._sentinel_version = 0
        self._collecting = 0.0
        self._was_finite = True
        self._handles = self._register(model, loss_fn)

    def _register(self, model: nn.Module, loss_fn: object) -> list[Any]:
        trained = [p for _, p in self._named]
        # Overflow in a backward pass reaches the early layers; a small parameter costs nothing to hold on to.
        sentinel = next((p for p in trained if p.ndim == 1), trained[0])
        handles = [
            model.register_forward_pre_hook(Hook(self._before_forward), with_kwargs=True),
            self.optimizer.register_step_pre_hook(Hook(self._before_step)),
            self.optimizer.register_step_post_hook(Hook(self._after_step)),
            sentinel.register_post_accumulate_grad_hook(Hook(self._after_backward)),  # type: ignore[no-untyped-call]
        ]
        if isinstance(loss_fn, nn.Module):
            handles.append(loss_fn.register_forward_hook(Hook(self._after_loss)))
        return handles

    def remove(self) -> None:
        """Take every hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._stop_activations()

    # -- what the loop says ----------------------------------------------------------------------------------------

    def log(self, loss: object, step: int | None) -> None:
        """Keep a loss of the step that its forward pass was for.

        Raises:
            TypeError, ValueError: it is no single number, or is for a step that is neither the last nor the coming one.
        """
        started = time.perf_counter()
        kept = value_of("loss", loss)
        if not self._handles:
            return
        if step is None:
            step = self._step_logged()
        elif step not in (self.taken - 1, self.taken):
            raise ValueError(
                f"expected the loss of the last step or of the coming one ({self.taken - 1} or {self.taken}), received "
                f"step={step}; leave `step` out, or count optimizer steps from 0"
            )
        if not self._inside:  # within a closure the loss is that of a trial point
            seen = self._coming if step == self.taken else self._last
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
        if self._coming is not None:
            self._mark = (len(self._coming.logged), len(self._coming.observed))
        self.examples += rows_of(args, kwargs)
        if self._probe is not None and self._probe.open and self._activations is None and self._observable is not None:
            self._activations = Activations(self._observable, _ROWS_OBSERVED)
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
                logged, observed = self._mark
                self._coming.logged, self._coming.observed = (
                    self._coming.logged[logged:],
                    self._coming.observed[observed:],
                )
            bad = ~torch.isfinite(before).all()
            if bad.device.type != "cpu" or bool(bad):
                self._suspects.append((self.taken, bad))
        self._sentinel_gradient, self._sentinel_version = gradient, version
        self._count(started)

    def _before_step(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        started = time.perf_counter()
        self._sentinel_gradient = None
        if self._last is not None:
            self._waiting.append(self._last)
            self._last = None
        self._inside, self._evaluations = True, 0
        seen = self._coming
        if seen is not None:
            seen.number, seen.seconds, seen.examples = self.taken, started - self._started, self._examples_before
            seen.rate = rate_of(self.optimizer)
            self._count(started)
            self._begin_probe()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._look_at_gradients(seen)
            return None
        observed = self._closure(seen, closure)
        return ((args[0], observed, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": observed})

    def _closure(self, seen: Seen | None, closure: Callable[[], Any]) -> Callable[[], Any]:
        def observed() -> Any:
            loss = closure()
            if self._evaluations == 0 and seen is not None:
                if isinstance(loss, Real) or (isinstance(loss, Tensor) and loss.numel() == 1):
                    seen.evaluated = value_of("loss", loss)
                self._look_at_gradients(seen)
            self._evaluations += 1
            return loss

        return observed

    def _look_at_gradients(self, seen: Seen | None) -> None:
        if seen is None:
            return
        started = time.perf_counter()
        scale = getattr(self.optimizer, "grad_scale", None)
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            norm = gradient_norm(gradients)
            seen.norm = value_of("norm", norm if scale is None else norm / scale.to(norm.device))
        self._count(started)
        if self._probing and self._probe is not None:
            started = time.perf_counter()
            held = [p.grad.detach() for p in self._probe.parameters if p.grad is not None]
            # Copies: a fused optimizer unscales in place, a closure is called again.
            self._gradients = [
                (g.to_dense() if g.is_sparse else g.clone()) if scale is None else g / scale.to(g.device) for g in held
            ]
            self._probe.charge(started)

    def _after_step(self, optimizer: Optimizer, _: object, __: object) -> None:
        started = time.perf_counter()
        self._inside, self._evaluations = False, 0
        seen, found = self._coming, getattr(optimizer, "found_inf", None)
        if found is not None and (found.device.type == "cpu" or self._probing) and bool(found):
            self._skip(self.taken)
            self._cancel_probe()
            self._coming = Seen() if seen is not None else None
            self._feeds = None if self._feeds is None else self.taken - 1  # a loss still to come is of no step
        else:
            if seen is not None and found is not None:
                seen.skipped = found.clone()
            self._last = seen
            self.taken += 1
            self._coming = Seen() if self.taken % self.recorder.stride == 0 else None
        self._examples_before, self._mark = self.examples, (0, 0)
        self._count(started)
        if self._probing:
            self._end_probe()
        if len(self._waiting) >= _MOST_WAITING or self.recorder.due(started):
            self._flush_or_stop()

    def _flush_or_stop(self) -> None:
        """A full disk ends the watching, not the training."""
        try:
            self.flush()
        except OSError as error:
            self.remove()
            warnings.warn(
                f"watching ended at step {self.taken}, training goes on: {error}", RuntimeWarning, stacklevel=2
            )

    # -- probes ----------------------------------------------------------------------------------------------------

    def _begin_probe(self) -> None:
        if self._probe is None:
            named = [(name, p) for name, p in self._named if p.grad is not None] or self._named
            self._probe = Probe([n for n, _ in named], [p for _, p in named], self.budget, self._read_activations)
        # The second step of a window must be one that has a row.
        ready = (self.taken + 1) % self.recorder.stride == 0
        self._probing = self.budget.share > 0 and (self._probe.open or (ready and self._probe.affords()))
        if self._probing:
            self._probe.before()

    def _end_probe(self) -> None:
        probe, self._probing = self._probe, False
        assert probe is not None
        if probe.open and any(seen.skipped is not None for seen in self._waiting):
            self._resolve()  # else the number of this step would not be known
        probed = probe.after(self.taken - 1, self._gradients)
        self._gradients = []
        if probed is not None:
            self.recorder.probe(probed)
        if not probe.open:
            self._stop_activations()

    def _stop_activations(self) -> None:
        if self._activations is not None:
            self._activations.remove()
            self._activations = None

    def _cancel_probe(self) -> None:
        if self._probing and self._probe is not None:
            self._probe.cancel()
            self._probing, self._gradients = False, []
            self._stop_activations()

    def _read_activations(self) -> dict[str, tuple[float, float]]:
        observed, self._activations = self._activations, None
        if observed is None or self._probe is None:
            return {}
        self._probe.charge(time.perf_counter() - observed.seconds)
        return observed.read()

    # -- from the device to the recorder ---------------------------------------------------------------------------

    def flush(self, *, last: bool = False) -> None:
        """Write what waits; with ``last`` also the step that might still have been logged.

        Raises:
            OSError: the run folder cannot be written.
        """
        started = time.perf_counter()
        if last and self._last is not None:
            self._waiting.append(self._last)
            self._last = None
        self._resolve()
        for (step, name, _), value in zip(self._scores, numbers([v for *_, v in self._scores]), strict=True):
            self.store.scores(step, "valid", {name: value})
        self._scores = []
        self._count(started)
        self.recorder.flush(self._collecting)
        self._collecting = 0.0
        self.flushed()

    def _resolve(self) -> None:
        """Turn what waits into rows; a step that a fused optimizer skipped is none, and the later ones move up."""
        waiting, self._waiting = self._waiting, []
        suspects, self._suspects = self._suspects, []
        for (step, _), bad in zip(suspects, numbers([flag for _, flag in suspects]), strict=True):
            if bad:
                self._skip(step)
        losses = numbers([seen.loss() for seen in waiting])
        norms, rates = numbers([seen.norm for seen in waiting]), numbers([seen.rate for seen in waiting])
        skips = numbers([seen.skipped for seen in waiting])
        moved = 0
        for seen, loss, norm, rate, skip in zip(waiting, losses, norms, rates, skips, strict=True):
            step = seen.number - moved
            if skip:
                self._skip(step)
                moved += 1
                continue
            self._check(step, loss, norm)
            self.last_rate = rate
            self.recorder.row(step, math.nan, seen.examples, seen.seconds, loss, rate, norm)
        self.taken -= moved
        self._feeds = None if self._feeds is None else self._feeds - moved
        if self._last is not None:
            self._last.number -= moved

    def _check(self, step: int, loss: float | None, norm: float | None) -> None:
        wrong = [
            f"the {name} is {value}"
            for name, value in (("loss", loss), ("gradient norm", norm))
            if value is not None and not math.isfinite(value)
        ]
        if wrong:
            self.not_finite.append(step)
            if self._was_finite and len(self.not_finite) <= _MOST_EVENTS:
                self.store.event(step, "nonfinite", f"step {step}: {' and '.join(wrong)}")
        self._was_finite = not wrong

    def _skip(self, step: int) -> None:
        self.skipped += 1
        if self.skipped <= _MOST_EVENTS:
            self.store.event(step, "amp_skip", f"the gradient scaler found infinity and skipped one before step {step}")

    def _count(self, started: float) -> None:
        seconds = time.perf_counter() - started
        self.budget.spent += seconds
        self._collecting += seconds
