"""The faults of a loop that is not ours, from what passes by: nothing is changed.

Nothing is run, either, but copies of model and loss, once, on the first batch.

An :class:`Inspector` is told by the hooks of a watched run what happens, and looks closely at the first steps only::

    forward of the model     whether it trains or evaluates, and in which mode; once, what each layer was given
    loss                     its graph and its arguments, once; what backward() multiplies it by
    gradient of one weight   whether an older gradient was still in it
    before optimizer.step    which parameters have no gradient; the first gradient that is not finite
    held-out scores          in which mode they were measured; the epochs, for the schedule

Each cause is told once, at the step it was seen at, with the line of code where Python can tell it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from fogline.doctor import loop_findings, task_findings
from fogline.doctor.caller import calling_line
from fogline.doctor.finding import Finding
from fogline.doctor.first_batch import LEARNS, NOTHING, FirstBatch
from fogline.doctor.gradient_look import LAYER_LOOKS, GradientLook
from fogline.doctor.inventory import frozen_noise
from fogline.doctor.loss_look import LossLook
from fogline.doctor.modes import SURE, Found, ModeLook
from fogline.doctor.naming import name_not_finite
from fogline.doctor.scheduling import ScheduleLook
from fogline.doctor.series import ends
from fogline.doctor.strides import StrideLook
from fogline.doctor.unmoved import UnmovedLook
from fogline.record.hook import Hook

_CLOSE_LOOKS = 12
"""Steps that are looked at closely."""
_MOST_DROPPED = 0.8
_ALL_BUT_GONE = 0.2  # of the loss of a constant answer, or of the first one
_FEWEST_TO_TELL = 40  # rows, where others say no more than the loop itself
_FEWEST_BACKWARDS = 16
"""Calls of ``backward()`` without a step: a loop that was broken off, or accumulates, may have a few."""
_SKIPS = 20
"""A scale that starts at 2^16 and is halved at each skip has fallen below 1 by then."""

Tell = Callable[[int, Finding], None]


class Inspector:
    """Looks for the faults of a loop.

    Args:
        model, optimizer, loss_fn, scheduler: of the loop.
        named: the trained parameters.
        left_out: names of the trainable parameters that are not in the optimizer.
        compiled: the model's insides are compiled, and are left alone.
        tell: called with a step and what was found there.

    Attributes:
        looking: whether the first steps are still going on.
        told: causes that were told.
        loss_look: what is known of the loss, and of the first batches.
        strides: how long some of the steps were.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: Any,
        scheduler: Any,
        named: Sequence[tuple[str, nn.Parameter]],
        left_out: Sequence[str],
        tell: Tell,
        *,
        compiled: bool,
    ) -> None:
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        up = any(group.get("maximize", False) for group in optimizer.param_groups)
        self.loss_look = LossLook(model, loss_fn, descends=not up, whole=not left_out)
        self.named, self._tell, self._compiled = list(named), tell, compiled
        self.told: set[str] = set()
        self.looking = True
        self._step_handles: list[RemovableHandle] = []  # hung anew at every step that is looked at
        self._now = self._backwards = 0
        self._stepped_at = ""
        self._given: tuple[Any, Any] | None = None
        self._runs = True  # the model can be run on it
        self._targets: Tensor | None = None  # the latest numbers that outputs were compared with
        self._keeper: RemovableHandle | None = None
        self._named_nan = False
        self._suspected: list[Finding] = []
        self._schedule = ScheduleLook(scheduler, optimizer)
        self._modes = ModeLook(model)
        self.strides = StrideLook(p for _, p in named)
        self._unmoved = UnmovedLook(model, optimizer, self.named, left_out)
        self._gradients = GradientLook(
            model, optimizer, loss_fn, self.named, self.loss_look, orphaned=self._unmoved.orphaned
        )
        self._handles = [] if compiled else [self._gradients.hang_on_sentinel()]

    # -- what the hooks tell ---------------------------------------------------------------------------------------

    def forward(self, step: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward pass with gradients."""
        self._goes_forward(step)
        self.given(args, kwargs)
        if not self.looking and _looks_again(step):
            self.loss_look.rows.later(args)

    def announced(self, step: int, batch: Any) -> None:
        """The loop says that a batch goes forward; the model's own forward may be called on it, or only its parts."""
        self._given, self._runs = ((batch,), {}), False
        self._goes_forward(step)
        self.loss_look.given(())

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What the model's own forward is called with."""
        self._given, self._runs = (args, kwargs), True
        self.loss_look.given(args, kwargs)

    def _goes_forward(self, step: int) -> None:
        self._gradients.forward()
        self._now = step
        self._say_found(self._modes.forward(step))
        if not self._compiled and not self._step_handles and (self.looking or _looks_again(step)):
            self._hang(step)

    def evaluation(self, args: tuple[Any, ...]) -> None:
        """Before a forward pass without gradients."""
        self._modes.evaluation()
        self.loss_look.rows.held_out(args)

    def loss(self, step: int, args: tuple[Any, ...], output: Any) -> None:
        """After the loss module."""
        if self._keeper is None and len(args) == 2 and isinstance(args[1], Tensor) and args[1].is_floating_point():
            self._keeper = self.loss_fn.register_forward_hook(Hook(self._keep_targets))
            self._targets = args[1].detach()
        if self.looking and isinstance(output, Tensor) and output.requires_grad:
            self._say_all(step, self.loss_look.module(step, args, output))

    def logged(self, step: int, loss: Any) -> None:
        """A loss was logged."""
        if self.looking:
            self._say_all(step, self.loss_look.logged(step, loss))

    def scored(self, step: int) -> None:
        """Held-out scores were logged."""
        self.loss_look.rows.scored()
        self._say_found(self._modes.scored(step))
        finding = self._schedule.at_an_epoch(step)
        if finding is not None:
            self.say(step, finding)

    def accumulated(self) -> None:
        """After a gradient was added to ``.grad`` of the sentinel."""
        self._gradients.accumulated(closely=self.looking)
        self._backwards += 1
        self._modes.accumulated(self._now)
        if self.looking or _looks_again(self._now):
            self._say_all(self._now, self.loss_look.backward(self._now))

    def evaluates_closure(self) -> None:
        """Before a closure is called."""
        self._gradients.evaluates_closure()

    def before_step(self, step: int, norm: float | Tensor | None) -> None:
        """Before the optimizer takes a step, its gradients there; ``norm`` is theirs."""
        if self.looking:
            self._stepped_at = self._stepped_at or calling_line()
            self._say_all(step, self._gradients.before_step(step, self._stepped_at))
        if step == 0 and not self._compiled:
            self._look_at_batch()
        self._say_found(self._modes.before_step(step, self._stepped_at))
        if not self.looking and _looks_again(step):
            self.loss_look.late(step, self._targets)
        if _looks_again(step):
            self.strides.before_step()
        if isinstance(norm, float) and not math.isfinite(norm) and not self._named_nan:
            self._name_not_finite(step, norm)

    def after_step(self, step: int) -> None:
        """After a step was taken."""
        self.strides.after_step(step)
        if step == 0 and self._schedule.steps_first():
            self.say(step, loop_findings.schedule_first(self._stepped_at))
        if step + 1 == SURE:
            self._say_all(step, self._unmoved.after_some_steps(step, gives_targets=self.loss_look.gives_targets))
        self._given = None
        self._say_all(step, self._gradients.step_taken(step))
        self._modes.step_taken()
        self.loss_look.step_taken()
        if self._step_handles:
            self._take_off()
        if self.looking and step + 1 >= _CLOSE_LOOKS:
            self.looking = False
            self.remove()

    def skipped(self, step: int, skips: int) -> None:
        """So many steps were skipped by a gradient scaler in all."""
        if skips >= _SKIPS and skips > 0.1 * (step + skips):
            self.say(step, loop_findings.scale_collapse(step, skips))

    def finish(
        self,
        step: int,
        losses: NDArray[np.float64],
        rates: NDArray[np.float64],
        not_finite: Sequence[int],
        held_out: NDArray[np.float64],
    ) -> None:
        """The loop is over after so many steps.

        Args:
            losses, rates: of the recorded steps.
            not_finite: numbers of the steps that were not.
            held_out: losses of held-out rows, as they were logged.
        """
        self.remove()
        if self._keeper is not None:
            self._keeper.remove()
        for finding in self._schedule.at_the_end(step - 1, rates) if step else ():
            self.say(step - 1, finding)
        first = self.loss_look.compared()
        self._say_all(
            step - 1,
            first.explains(step - 1, losses, chooses=self.loss_look.chooses, carries=self.loss_look.carries)
            if first is not None and step
            else (),
        )
        left = None if first is None else first.share_left(losses)
        if left is not None and left > LEARNS:
            self._say_all(0, self._explain(left))
        if first is not None and first.numbers and left is not None:
            self._say_all(step - 1, self._take_for_amounts(step - 1, left))
        far = self.loss_look.far
        if far is not None:
            self.say(step - 1, task_findings.far_targets(step - 1, far, self.loss_look.line))
        if step and self.loss_look.codes_are_empty:
            self.say(step - 1, task_findings.empty_codes(step - 1))
        moved = self.loss_look.rows.moved()
        if moved is not None and _much_worse(losses, held_out):
            self.say(step - 1, task_findings.other_rows(step - 1, *moved))
        copied = self.loss_look.rows.copied()
        if copied is not None:
            self.say(step - 1, task_findings.copies(step - 1, *copied))
        if not step and self._backwards >= _FEWEST_BACKWARDS:
            self._say_all(0, self._unmoved.without_a_step(self._backwards))
        self._say_found(self._modes.finish())
        self._say_all(step - 1, self._unmoved.at_the_end(step - 1, starved=self._gradients.starved))
        if len(not_finite) and not self._named_nan:
            bad = [name for name, p in self.named if not bool(torch.isfinite(p.detach()).all())]
            if bad:  # on a device nobody waited to look at the time
                self.say(not_finite[0], loop_findings.not_finite_later(not_finite[0], bad))

    def _explain(self, left: float) -> Iterator[Finding]:
        """What the model itself has that explains why the loop learned little, or nothing."""
        yield from (f for f in self._suspected if left > NOTHING or f.cause == "bottleneck")
        noise = frozen_noise(self.model)  # it is asked where little was learned
        if noise:
            yield loop_findings.frozen(0, noise)
        dropping = {name: float(m.p) for name, m in self.model.named_modules() if isinstance(m, _DropoutNd)}
        name = max(dropping, key=lambda name: dropping[name], default="")
        if left > NOTHING and dropping and dropping[name] >= _MOST_DROPPED:
            yield task_findings.dropped(name, dropping[name])

    def _take_for_amounts(self, step: int, left: float) -> Iterator[Finding]:
        """Numbers of classes under a loss of amounts, unless answers are near enough to be rounded to their class.

        Amounts that are no more than rounded have a variance of 1 / 12, and the numbers of k classes one of
        (k^2 - 1) / 12.
        """
        seen = self.loss_look.rows.unordered()
        if seen is not None and left * (seen["classes"] ** 2 - 1) > 1:
            yield task_findings.class_numbers(
                step, int(seen["classes"]), seen["skill"], seen["orders"], self.loss_look.line
            )

    def facts(self, losses: NDArray[np.float64], held_out: NDArray[np.float64]) -> dict[str, Any]:
        """What is known of a loop that is over, for the record; the same losses, and those of held-out rows.

        What classical learners make of its rows is asked only where it learned nothing of them, or of held-out ones.
        """
        known: dict[str, Any] = {"strides": [astuple(stride) for stride in self.strides.measured()]}
        known |= {"batches_differ": self.loss_look.rows.differ(), "opposed": self.loss_look.opposed}
        first = self.loss_look.compared()
        left = None if first is None else first.share_left(losses)
        known["withdrawn"] = sorted(self.told & set(self._withdrawn(first, left, losses)))
        if first is None:
            return known
        known |= {"loss_over_constant": left, "rarest_class": first.rarest(), "bounds_errors": first.bounds_errors}
        if left is None:
            return known
        constant = float(np.mean(losses[np.isfinite(losses)][-max(1, len(losses) // 10) :])) / left if left else 0.0
        if left > NOTHING or (len(held_out) and np.nanmin(held_out) > NOTHING * constant):
            known["seen_rows"] = self.loss_look.rows.tell(first.loss_fn)
        return known

    def _withdrawn(self, first: FirstBatch | None, left: float | None, losses: NDArray[np.float64]) -> Iterator[str]:
        """What was told and did no harm, as is seen at the end."""
        at_first, late = ends(losses[np.isfinite(losses)])
        share = late / at_first if left is None and at_first > 0 else left
        if self._unmoved.thawed() or (share is not None and share < _ALL_BUT_GONE):
            yield "frozen_parameters"
        if "missing_activation" in self.told and first is not None and first.numbers and left is not None:
            told = self.loss_look.rows.tell(first.loss_fn, fewest=_FEWEST_TO_TELL)
            if told is not None and 1 - left > told["score"]:
                yield "missing_activation"  # learners that bend get no more out of it

    def _keep_targets(self, _: nn.Module, args: tuple[Any, ...], __: object) -> None:
        if torch.is_grad_enabled() and len(args) == 2 and isinstance(args[1], Tensor):
            self._targets = args[1].detach()

    def rest(self) -> None:
        """Look closely at nothing: watching must cost nothing that can be left out."""
        self.looking = False
        self.remove()

    def remove(self) -> None:
        """Take every hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._take_off()

    # -- looks -----------------------------------------------------------------------------------------------------

    def _hang(self, step: int) -> None:
        self._step_handles = [self.model.register_forward_hook(Hook(self._after_model))]
        if not self.looking and self._keeper is None and isinstance(self.loss_fn, nn.Module):
            self._step_handles.append(self.loss_fn.register_forward_hook(Hook(self._keep_targets)))
        looks = LAYER_LOOKS + (not self._runs)  # what is announced may have gone forward already
        on_layers = self._gradients.hang_on_layers if step < looks else self._gradients.hang_on_last
        self._step_handles += on_layers()

    def _take_off(self) -> None:
        for handle in self._step_handles:
            handle.remove()
        self._step_handles = []

    def _after_model(self, _: nn.Module, __: object, output: object) -> None:
        if torch.is_grad_enabled():
            self.loss_look.after_model(output)

    def _look_at_batch(self) -> None:
        """What the first batch leaves no doubt about."""
        direct = self.loss_look.direct
        if direct is not None and self._given is not None and not self._given[1]:
            from fogline.doctor.first_look import look_at_batch  # loads every cause

            sure, self._suspected = look_at_batch(self.model, direct)
            self._say_all(0, sure)

    def _say_all(self, step: int, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.say(step, finding)

    def _say_found(self, found: Found) -> None:
        for step, finding in found:
            self.say(step, finding)

    def say(self, step: int, finding: Finding) -> None:
        """Tell a finding, each cause once."""
        if finding.cause not in self.told:
            self.told.add(finding.cause)
            self._tell(step, finding)

    def _name_not_finite(self, step: int, norm: float) -> None:
        if getattr(self.optimizer, "grad_scale", None) is not None:
            return  # the scaler will leave this step out, by design
        self._named_nan = True
        found = name_not_finite(
            self.model,
            self.named,
            self._given,
            targets=self._targets,
            in_loss=self.loss_look.operations,
            runs=self._runs,
        )
        self.say(step, loop_findings.not_finite(step, norm, found, self._stepped_at))


def _much_worse(losses: NDArray[np.float64], held_out: NDArray[np.float64]) -> bool:
    """Whether even the lowest loss of held-out rows is above the training losses of the end, twice over."""
    late = losses[np.isfinite(losses)][-max(1, len(losses) // 10) :]
    return bool(len(late) and len(held_out) and late.mean() > 0 and np.nanmin(held_out) > 2 * late.mean())


def _looks_again(step: int) -> bool:
    """At every power of two."""
    return step & (step - 1) == 0
