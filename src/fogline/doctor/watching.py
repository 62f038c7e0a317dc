"""The faults of a loop that is not ours, from what passes by: nothing is run, nothing is changed.

An :class:`Inspector` is told by the hooks of a watched run what happens, and looks closely at the first few steps only::

    forward of the model     whether it trains or evaluates, and in which mode; once, what each layer was given
    loss                     its graph and its arguments, once; what backward() multiplies it by
    gradient of one weight   whether an older gradient was still in it
    before optimizer.step    which parameters have no gradient; the first gradient that is not finite
    held-out scores          in which mode they were measured; the epochs, for the schedule

Each cause is told once, at the step it was seen at, with the line of code where Python can tell it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from fogline.doctor.caller import calling_line
from fogline.doctor.finding import Evidence, Finding, Remedy, Severity
from fogline.doctor.graphs import read_pairing
from fogline.doctor.naming import name_not_finite
from fogline.doctor.surgery import frozen_as_drawn, hidden_modules
from fogline.record.observer import Hook

CLOSE_LOOKS = 12
"""Steps that are looked at closely."""
SURE = 3
"""Steps on which a fault must show: one may be an oddity of the start."""
_LAYER_LOOKS = 3
_TINY = 4
"""Values a channel below which a batch's variance is wrong by its own size: its relative error is sqrt(2 / (n - 1))."""
_SKIPS = 20
"""A scale that starts at 2^16 and is halved at each skip has fallen below 1 by then."""
_UNIT_BY_EPOCH = ("StepLR", "MultiStepLR", "ExponentialLR", "ReduceLROnPlateau")
_COLLAPSED = 1e-3

Tell = Callable[[int, Finding], None]


@dataclass
class _Step:
    """What was seen since the last step."""

    forwards: int = 0
    in_eval: int = 0
    backwards: int = 0
    stale: bool = False  # a gradient of an earlier step is in this one's
    factors: list[Tensor] = field(default_factory=list)  # what backward() began with at the loss
    called: list[tuple[str, bool, Tensor | None]] = field(default_factory=list)


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
        compiled: bool = False,
    ) -> None:
        self.model, self.optimizer, self.loss_fn, self.scheduler = model, optimizer, loss_fn, scheduler
        self.named, self._tell, self._compiled = list(named), tell, compiled
        self.told: set[str] = set()
        self.looking = True
        self._step = _Step()
        self._lines: dict[str, str] = {}
        self._handles: list[RemovableHandle] = []
        self._layer_handles: list[RemovableHandle] = []
        self._sentinel: Any = next((p for _, p in named if p.ndim == 1), named[0][1])
        self._held: bool | None = None
        self._counts = dict.fromkeys(("stale", "looked", "eval", "no gradient", "cut", "tiny", "scale"), 0)
        self._noisy = [(name, m) for name, m in model.named_modules() if _depends_on_mode(m)]
        self._was_training = False
        self._evaluations = {True: 0, False: 0}  # forward passes without gradient since the last with one, by mode
        self._epochs = 0
        self._given: tuple[Any, Any] | None = None
        self._output: Tensor | None = None
        self._paired = False
        self._named_nan = False
        self._begun = _step_count(scheduler)
        self._idle = _idle_parameters(model, optimizer, left_out)
        if not compiled:
            self._handles.append(self._sentinel.register_hook(Hook(self._before_accumulation)))

    # -- what the hooks tell ---------------------------------------------------------------------------------------

    def forward(self, step: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward pass with gradients."""
        seen = self._step
        seen.forwards += 1
        if self._noisy:
            if self.model.training:
                self._was_training = True
            elif any(not module.training for _, module in self._noisy):
                seen.in_eval += 1
            if self._evaluations[True] or self._evaluations[False]:
                self._evaluations = {True: 0, False: 0}
        self._given, self._output = (args, kwargs), None
        if self.looking and step < _LAYER_LOOKS and not self._compiled and not self._layer_handles:
            self._hang_on_layers()

    def evaluation(self) -> None:
        """Before a forward pass without gradients."""
        if self._noisy:
            self._evaluations[any(module.training for _, module in self._noisy)] += 1

    def loss(self, step: int, args: tuple[Any, ...], output: Any) -> None:
        """After the loss module."""
        if not self.looking or not isinstance(output, Tensor) or not output.requires_grad:
            return
        if output.numel() == 1:
            factors = self._step.factors
            output.register_hook(Hook(lambda gradient: factors.append(gradient.detach())))  # type: ignore[no-untyped-call]
        if not self._paired and len(args) == 2 and all(isinstance(a, Tensor) for a in args):
            self._pair(step, output, args[0], args[1])

    def logged(self, step: int, loss: Any) -> None:
        """A loss was logged; its graph can be read also after backward()."""
        if self._paired or not self.looking or not isinstance(loss, Tensor) or loss.grad_fn is None:
            return
        if self._output is not None:
            self._pair(step, loss, self._output, None)

    def scored(self, step: int) -> None:
        """Held-out scores were logged."""
        trained, evaluated = self._evaluations[True], self._evaluations[False]
        self._evaluations = {True: 0, False: 0}
        if trained and not evaluated:
            self._say_train_mode_eval(step)
        self._epochs += 1
        if self._epochs == 1:
            self._check_collapse(step)

    def accumulated(self) -> None:
        """After a gradient was added to ``.grad`` of the sentinel."""
        held, self._held = self._held, None
        seen = self._step
        seen.backwards += 1
        if held is None:
            return
        if not held:
            seen.stale = False
        elif seen.backwards == 1:
            seen.stale = True
        if seen.backwards == 1:
            self._lines["backward"] = self._lines.get("backward") or calling_line()

    def evaluates_closure(self) -> None:
        """Before a closure is called: what it computes is a gradient of its own."""
        self._step.backwards = 0

    def before_step(self, step: int, norm: float | Tensor | None) -> None:
        """Before the optimizer takes a step, its gradients there; ``norm`` is theirs."""
        if self.looking:
            self._lines["step"] = self._lines.get("step") or calling_line()
            self._look_closely(step)
        if self._noisy:
            self._check_mode(step)
        if isinstance(norm, float) and not math.isfinite(norm) and not self._named_nan:
            self._say_not_finite(step, norm)

    def after_step(self, step: int) -> None:
        """After a step was taken."""
        if step == 0 and _step_count(self.scheduler) > self._begun >= 0:
            self._say_schedule_first()
        if step + 1 == SURE:
            self._check_idle(step)
            self._check_frozen(step)
        self._step, self._given, self._held = _Step(), None, None
        if self._layer_handles:
            self._take_off_layers()
        if self.looking and step + 1 >= CLOSE_LOOKS:
            self.looking, self._output = False, None
            self.remove()

    def skipped(self, step: int, skips: int) -> None:
        """So many steps were skipped by a gradient scaler in all."""
        if skips >= _SKIPS and skips > 0.1 * (step + skips):
            self._say_scale(step, skips)

    def finish(self, step: int, rates: NDArray[np.float64]) -> None:
        """The loop is over after so many steps, at these learning rates."""
        self.remove()
        if step:
            self._check_schedule(step - 1)
            self._check_rates(step - 1, rates)

    def rest(self) -> None:
        """Look closely at nothing: watching must cost nothing that can be left out."""
        self.looking = False
        self.remove()

    def remove(self) -> None:
        """Take every hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._take_off_layers()

    # -- looks -----------------------------------------------------------------------------------------------------

    def _before_accumulation(self, _: Tensor) -> None:
        """With the new gradient, before it is added: what is there already is older."""
        if torch.is_grad_enabled():
            return
        old = self._sentinel.grad
        if old is None:
            self._held = False
        else:
            values = old.detach()
            values = values.coalesce().values() if values.is_sparse else values
            self._held = bool((values != 0).any())

    def _hang_on_layers(self) -> None:
        held = {id(p): name for name, p in self.named}
        self._layer_handles = [self.model.register_forward_hook(Hook(self._after_model))]
        for name, module in self.model.named_modules():
            own = any(id(p) in held for p in module.parameters(recurse=False))
            if name and (own or isinstance(module, _BatchNorm)):
                self._layer_handles.append(module.register_forward_hook(Hook(self._looker(name))))

    def _take_off_layers(self) -> None:
        for handle in self._layer_handles:
            handle.remove()
        self._layer_handles = []

    def _after_model(self, _: nn.Module, __: object, output: object) -> None:
        if torch.is_grad_enabled():
            self._output = output if isinstance(output, Tensor) else None

    def _looker(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], object], None]:
        def look(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
            graph = torch.is_grad_enabled() and isinstance(output, Tensor) and output.requires_grad
            given = args[0] if args and isinstance(args[0], Tensor) else None
            tiny = given if isinstance(module, _BatchNorm) and module.training else None
            self._step.called.append((name, graph, tiny if tiny is None else tiny.detach()))

        return look

    def _look_closely(self, step: int) -> None:
        seen, counts = self._step, self._counts
        counts["looked"] += 1
        if seen.stale and seen.backwards and step:
            counts["stale"] += 1
            if counts["stale"] == SURE:
                self._say_missing_zero_grad(step)
        self._look_for_gradients(step)
        self._look_at_batch_norm(step)
        self._look_at_factors(step)

    def _look_for_gradients(self, step: int) -> None:
        seen, counts = self._step, self._counts
        without = {name for name, p in self.named if p.grad is None}
        if len(without) == len(self.named):
            counts["no gradient"] += 1
            if counts["no gradient"] == SURE and seen.forwards:
                self._say_no_gradient(step)
            return
        called = list(dict.fromkeys(name for name, graph, _ in seen.called if graph))
        has = [name for name in called if any(p.grad is not None for p in self._own(name))]
        cut = called.index(has[0]) if has else 0
        if cut and has == called[cut:]:
            counts["cut"] += 1
            if counts["cut"] == _LAYER_LOOKS:
                self._say_cut(step, called[:cut], has[0])

    def _own(self, name: str) -> Iterator[nn.Parameter]:
        return self.model.get_submodule(name).parameters(recurse=False)

    def _look_at_batch_norm(self, step: int) -> None:
        given = [(name, x) for name, _, x in self._step.called if x is not None and x.ndim > 1]
        few = [(name, x.numel() // max(1, x.shape[1]), len(x)) for name, x in given if len(x) <= _TINY]
        if few:
            self._counts["tiny"] += 1
            if self._counts["tiny"] == _LAYER_LOOKS:
                self._say_tiny(step, *min(few, key=lambda seen: seen[1]))

    def _look_at_factors(self, step: int) -> None:
        """Several full-weight losses a step, their gradients added: the step is so many times as long."""
        seen = self._step
        count = len(seen.factors)
        if count < SURE or count != seen.backwards or seen.stale or type(self.optimizer).__name__ != "SGD":
            return
        if getattr(self.loss_fn, "reduction", "mean") != "mean":
            return
        factors = torch.stack([f.reshape(()).double().cpu() for f in seen.factors])
        if bool((factors == 1).all()):
            self._counts["scale"] += 1
            if self._counts["scale"] == SURE:
                self._say_scale_of_accumulation(step, count)

    def _check_mode(self, step: int) -> None:
        seen = self._step
        self._counts["eval"] = self._counts["eval"] + 1 if seen.forwards and seen.in_eval == seen.forwards else 0
        if self._counts["eval"] == SURE:
            self._say_eval_mode(step)

    def _check_idle(self, step: int) -> None:
        still = [
            (name, hidden)
            for name, p, version, total, hidden in self._idle
            if p.grad is not None and p._version == version and float(p.detach().double().sum()) == total
        ]
        if still:
            self._say_not_optimized(step, still)

    def _check_frozen(self, step: int) -> None:
        """A frozen part that was trained before is fine-tuning; one that is as it was drawn is not."""
        frozen = frozen_as_drawn(self.model)
        if frozen:
            self._say_frozen(step, frozen)

    def _pair(self, step: int, loss: Tensor, outputs: Tensor, targets: Tensor | None) -> None:
        self._paired, self._output = True, None
        line = calling_line()
        for found in read_pairing(loss, outputs, targets):
            self._say(
                step,
                found.cause,
                found.confidence,
                (found.evidence,),
                found.explanation,
                Remedy(found.title, found.patch),
                severity=found.severity,
                line=line,
            )

    # -- the schedule ----------------------------------------------------------------------------------------------

    def _check_collapse(self, step: int) -> None:
        """At the end of the first epoch: a schedule whose unit is the epoch was counted in batches."""
        steps = _step_count(self.scheduler) - self._begun
        kind = type(self.scheduler).__name__
        if kind not in _UNIT_BY_EPOCH or step < 20 or steps < 0.9 * step:
            return
        share = self._rate_share()
        if share < _COLLAPSED:
            self._say_schedule(
                step,
                0.85,
                Evidence("learning rate after the first epoch, as a share of the first", share, "about 1", step),
                f"{kind} counts in epochs here, but step() is called at every batch: the learning rate is all but zero "
                "before the first epoch is over.",
                "call scheduler.step() once an epoch",
            )

    def _check_rates(self, step: int, rates: NDArray[np.float64]) -> None:
        """Most of a run at next to no rate: no schedule of a whole run spends more than half of it below a hundredth."""
        kind, steps, known = type(self.scheduler).__name__, _step_count(self.scheduler) - self._begun, rates[rates >= 0]
        if kind not in _UNIT_BY_EPOCH or steps < 0.9 * step or not 1 < self._epochs < step / 2 or not len(known):
            return
        share = float((known < 0.01 * known.max()).mean())
        if share > 0.5:
            self._say_schedule(
                step,
                0.75,
                Evidence(
                    "share of the steps with less than a hundredth of the largest learning rate", share, 0.0, step
                ),
                f"{kind} counts in epochs here, but step() is called at every batch: the learning rate is all but zero for "
                "most of the run.",
                "call scheduler.step() once an epoch",
            )

    def _rate_share(self) -> float:
        rate = float(self.optimizer.param_groups[0]["lr"])
        bases = getattr(self.scheduler, "base_lrs", None) or [self.optimizer.param_groups[0].get("initial_lr", rate)]
        return rate / float(bases[0]) if float(bases[0]) > 0 else 1.0

    def _check_schedule(self, step: int) -> None:
        """At the end: how far the schedule came."""
        count = _step_count(self.scheduler)
        if count < 0 or self._begun < 0:
            return
        kind, steps = type(self.scheduler).__name__, count - self._begun
        if steps == 0 and step >= 20:
            self._say_schedule(
                step,
                0.8 if self._epochs > 1 else 0.6,
                Evidence("calls of scheduler.step()", 0, "one an epoch, or one a batch", step),
                f"{kind} was made and never asked: the learning rate is the same from the first step to the last.",
                "call scheduler.step() after optimizer.step()",
            )
        period = getattr(self.scheduler, "T_max", None)
        if kind == "CosineAnnealingLR" and period and steps >= 3 * period and steps >= 0.9 * step:
            self._say_schedule(
                step,
                0.8,
                Evidence("calls of scheduler.step()", steps, f"at most T_max={period}", step),
                "CosineAnnealingLR was stepped at every batch far beyond its T_max: the learning rate does not fall once "
                f"over the run but swings down and up again every {2 * period} batches.",
                f"call scheduler.step() once an epoch, or make it with T_max={step + 1} batches",
            )
        total = getattr(self.scheduler, "total_steps", None)
        if kind == "OneCycleLR" and total and steps < 0.2 * total and step + 1 >= 0.5 * total:
            self._say_schedule(
                step,
                0.9,
                Evidence("calls of scheduler.step()", steps, f"total_steps={total}", step),
                "OneCycleLR was made for as many calls as there are batches and was called once an epoch: the learning "
                "rate never left its warm-up.",
                "call scheduler.step() after every optimizer.step()",
            )

    # -- what is said ----------------------------------------------------------------------------------------------

    def _say(
        self,
        step: int,
        cause: str,
        confidence: float,
        evidence: tuple[Evidence, ...],
        explanation: str,
        remedy: Remedy | None = None,
        *,
        severity: Severity = "serious",
        line: str = "",
        advice: str = "",
    ) -> None:
        if cause in self.told:
            return
        self.told.add(cause)
        if line:
            evidence = (*evidence, Evidence("line", line))
        self._tell(step, Finding(cause, severity, confidence, evidence, explanation, None, remedy, advice))

    def _say_missing_zero_grad(self, step: int) -> None:
        counts, line = self._counts, self._lines.get("backward", "")
        self._say(
            step,
            "missing_zero_grad",
            0.97,
            (Evidence("steps whose gradient still held that of the step before", counts["stale"], 0, step),),
            "backward() adds to the gradients that are there. They are not cleared between steps, so each step goes along "
            "the sum of all gradients so far: the first ones, from the worst weights, are never forgotten, and the "
            "steps grow longer and longer.",
            Remedy("clear the gradients before each backward()", "optimizer.zero_grad()\nloss.backward()"),
            line=line,
        )

    def _say_no_gradient(self, step: int) -> None:
        self._say(
            step,
            "detached_graph",
            0.97,
            (Evidence("parameters of the optimizer with a gradient", 0, len(self.named), step),),
            "No parameter has a gradient when the optimizer is asked to step, so it does nothing at all. Something "
            "between the model and the loss cuts the graph: detach(), .data, .item(), argmax, NumPy, torch.no_grad(), "
            "or a new tensor made from the old numbers; or backward() is not called.",
            severity="fatal",
            line=self._lines.get("step", ""),
            advice="compute the loss from the model's own outputs with torch operations, and call loss.backward()",
        )

    def _say_cut(self, step: int, names: list[str], next_name: str) -> None:
        self._say(
            step,
            "detached_graph",
            0.75,
            (Evidence("layers without a gradient though they are in the optimizer", ", ".join(names[:5]), "", step),),
            f"The layers before {next_name!r} are run in training and are in the optimizer, yet no gradient reaches "
            f"them: the graph is cut just before {next_name!r}, by detach(), .data or a tensor made anew. They stay as "
            "they were at the start.",
            advice=f"pass the output of {names[-1]!r} on as it is; if it is meant to stay fixed, freeze it with "
            "requires_grad_(False)",
        )

    def _say_eval_mode(self, step: int) -> None:
        names = [name or "the model" for name, module in self._noisy if not module.training]
        since = "since a validation put it there" if self._was_training else "from the start"
        self._say(
            step,
            "eval_mode_training",
            0.9 if self._was_training else 0.75,
            (Evidence("steps in a row taken in evaluation mode", self._counts["eval"], 0, step),),
            f"The model is trained in evaluation mode {since}: dropout does nothing, and batch normalisation uses running "
            f"statistics that are no longer updated ({', '.join(names[:4])}).",
            Remedy("put the model back in training mode", "model.train()  # at the start of every epoch"),
            line=self._lines.get("step", ""),
        )

    def _say_train_mode_eval(self, step: int) -> None:
        names = [name for name, module in self._noisy if module.training]
        self._say(
            step,
            "train_mode_eval",
            0.85,
            (Evidence("modules in training mode while held-out data were scored", ", ".join(names[:4]), "none", step),),
            "Held-out scores are measured in training mode: dropout drops units, and batch normalisation uses the "
            "statistics of the held-out batch and learns from it. The scores are worse, and noisier, than the model is.",
            Remedy("evaluate in evaluation mode", "model.eval()\nwith torch.no_grad():\n    ...\nmodel.train()"),
            line=calling_line(),
        )

    def _say_tiny(self, step: int, name: str, count: int, rows: int) -> None:
        few = count <= _TINY
        counted = "values a channel that its statistics are made of" if few else "rows a batch"
        self._say(
            step,
            "tiny_batch_norm",
            0.8 if few else 0.6 if rows <= 2 else 0.5,
            (Evidence(counted, count if few else rows, "32 or more", step, name),),
            f"Batch normalisation takes its mean and variance from {rows} rows: that is mostly chance, so the same example "
            "comes out different in every batch, and quite different again in evaluation mode.",
            Remedy("normalise each example on its own", "nn.GroupNorm or nn.LayerNorm instead of nn.BatchNorm"),
            advice="or take batches of 32 or more",
        )

    def _say_scale_of_accumulation(self, step: int, count: int) -> None:
        self._say(
            step,
            "accumulation_scale",
            0.6,
            (Evidence("mean losses added up for a step", count, f"each divided by {count}", step),),
            f"The gradients of {count} batches are added for one step, and the losses are not divided by {count}: the "
            f"step is {count} times as long as the learning rate says for plain SGD.",
            Remedy("divide each loss by the number of batches", f"(loss / {count}).backward()"),
            severity="minor",
            line=self._lines.get("backward", ""),
        )

    def _say_not_optimized(self, step: int, still: list[tuple[str, bool]]) -> None:
        hidden = any(flag for _, flag in still)
        names = ", ".join(name for name, _ in still[:5]) + (f" and {len(still) - 5} more" if len(still) > 5 else "")
        listed = "they are kept in a plain Python list or dict, where model.parameters() does not see them"
        self._say(
            step,
            "parameters_not_optimized",
            0.95 if hidden else 0.7,
            (Evidence("parameters that get gradients and are in no optimizer that steps", names, "none", step),),
            f"These parameters get gradients and never move{': ' + listed if hidden else ''}. What they compute stays as "
            "it was at the start.",
            Remedy("register them", "self.layers = nn.ModuleList(layers)")
            if hidden
            else Remedy(
                "give all parameters to the optimizer", "optimizer = type(optimizer)(model.parameters(), lr=lr)"
            ),
            advice=""
            if hidden
            else "if they are meant to stay fixed, freeze them with requires_grad_(False): it is faster",
        )

    def _say_frozen(self, step: int, names: list[str]) -> None:
        self._say(
            step,
            "frozen_parameters",
            0.6,
            (Evidence("frozen layers whose weights are as they were drawn", ", ".join(names[:5]), "none", step),),
            "These layers have requires_grad=False and hold the random weights they were made with: nobody trained them, "
            "and nobody will.",
            Remedy("let them learn", "model.requires_grad_(True)  # before the optimizer is made"),
            advice="if trained weights were meant to be there, load them",
        )

    def _say_schedule_first(self) -> None:
        self._say(
            0,
            "schedule_step_unit",
            0.9,
            (Evidence("calls of scheduler.step() before the first optimizer.step()", 1, 0, 0),),
            "The scheduler is asked before the optimizer: the first value of the schedule is skipped.",
            Remedy("step the optimizer first", "optimizer.step()\nscheduler.step()"),
            severity="minor",
            line=self._lines.get("step", ""),
        )

    def _say_schedule(self, step: int, confidence: float, evidence: Evidence, explanation: str, title: str) -> None:
        self._say(step, "schedule_step_unit", confidence, (evidence,), explanation, Remedy(title, title))

    def _say_scale(self, step: int, skips: int) -> None:
        self._say(
            step,
            "amp_scale_collapse",
            0.9,
            (Evidence("steps that the gradient scaler skipped", skips, "a few at the start", step),),
            "The gradient scaler finds infinity again and again and halves its scale each time. After so many the scale "
            "is below one: the cause is not the scale, something is infinite in float16 itself, and the steps left over "
            "lose their small gradients.",
            Remedy("compute in bfloat16, which needs no scaler", "torch.autocast(device, dtype=torch.bfloat16)"),
            severity="fatal" if skips > step else "serious",
        )

    def _say_not_finite(self, step: int, norm: float) -> None:
        if getattr(self.optimizer, "grad_scale", None) is not None:
            return  # the scaler will leave this step out, by design
        self._named_nan = True
        found = name_not_finite(self.model, self.named, self._given)
        self._say(
            step,
            "nan_in_data" if found.in_data else "nan_source",
            0.97 if found.in_data else 0.9 if found.module is not None else 0.7,
            (Evidence("gradient norm", norm, "finite", step, found.module), *found.evidence),
            f"{found.sentence} The step taken with it puts NaN into the weights, and nothing is learned from there on.",
            severity="fatal",
            line=self._lines.get("step", ""),
            advice="drop these rows, or fill in what is missing"
            if found.in_data
            else "skip steps whose gradient is not finite, and mend the operation that is named here",
        )


def _depends_on_mode(module: nn.Module) -> bool:
    dropping = isinstance(module, (_DropoutNd, nn.RNNBase)) and float(getattr(module, "p", 0) or 0) > 0
    dropping = dropping or (isinstance(module, nn.RNNBase) and module.dropout > 0)
    return dropping or (isinstance(module, _BatchNorm) and module.track_running_stats)


def _step_count(scheduler: Any) -> int:
    """How often a scheduler was asked; -1 where it cannot be told."""
    count = getattr(scheduler, "_step_count", None)
    if not isinstance(count, int):
        count = getattr(scheduler, "last_epoch", None)
    return count if isinstance(count, int) else -1


Idle = list[tuple[str, nn.Parameter, int, float, bool]]


def _idle_parameters(model: nn.Module, optimizer: Optimizer, left_out: Sequence[str]) -> Idle:
    """Trainable parameters outside the optimizer, with what tells whether they move: version and sum."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    found = [(name, model.get_parameter(name), False) for name in left_out]
    for name, module in hidden_modules(model):
        found += [(f"{name}.{n}", p, True) for n, p in module.named_parameters() if id(p) not in held]
    found = found[:64]
    return [(n, p, p._version, float(p.detach().double().sum()), hidden) for n, p, hidden in found if p.requires_grad]
