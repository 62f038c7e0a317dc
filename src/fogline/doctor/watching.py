"""The faults of a loop that is not ours, from what passes by: nothing is run, nothing is changed.

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

from fogline.doctor import told
from fogline.doctor.caller import calling_line
from fogline.doctor.finding import Finding
from fogline.doctor.first_batch import FirstBatch, look
from fogline.doctor.graphs import read_pairing
from fogline.doctor.naming import name_not_finite
from fogline.doctor.scheduling import ScheduleLook
from fogline.doctor.surgery import alike, as_drawn, frozen_as_drawn, hidden_modules
from fogline.record.hook import Hook

CLOSE_LOOKS = 12
"""Steps that are looked at closely."""
SURE = 3
"""Steps on which a fault must show: one may be an oddity of the start."""
_LAYER_LOOKS = 3
_TINY = 4
"""Values a channel below which a batch's variance is wrong by its own size: its relative error is sqrt(2 / (n - 1))."""
_SKIPS = 20
"""A scale that starts at 2^16 and is halved at each skip has fallen below 1 by then."""

Tell = Callable[[int, Finding], None]


@dataclass
class _Step:
    """What was seen since the last step."""

    forwards: int = 0
    in_eval: int = 0
    backwards: int = 0
    evaluations: int = 0  # of a closure
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
        first: what the first batch showed.
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
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        self.named, self._tell, self._compiled = list(named), tell, compiled
        self.told: set[str] = set()
        self.looking = True
        self._step = _Step()
        self._lines: dict[str, str] = {}
        self._handles: list[RemovableHandle] = []
        self._layer_handles: list[RemovableHandle] = []
        self._sentinel: Any = next((p for _, p in named if p.ndim == 1), named[0][1])
        self._held: bool | None = None
        self._counts = dict.fromkeys(("stale", "looked", "eval", "no gradient", "cut", "lost", "tiny", "scale"), 0)
        self._noisy = [(name, m) for name, m in model.named_modules() if _depends_on_mode(m)]
        self._was_training = False
        self._evaluations = {True: 0, False: 0}  # forward passes without gradient since the last with one, by mode
        self._given: tuple[Any, Any] | None = None
        self._runs = True  # the model can be run on it
        self._output: Tensor | None = None
        self._paired = False
        self.first: FirstBatch | None = None
        self._named_nan = False
        self._schedule = ScheduleLook(scheduler, optimizer)
        self._idle = _idle_parameters(model, optimizer, left_out)
        if not compiled:
            self._handles.append(self._sentinel.register_hook(Hook(self._before_accumulation)))  # type: ignore[no-untyped-call]

    # -- what the hooks tell ---------------------------------------------------------------------------------------

    def forward(self, step: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward pass with gradients."""
        self._goes_forward(step)
        self.given(args, kwargs)

    def announced(self, step: int, batch: Any) -> None:
        """The loop says that a batch goes forward; the model's own forward may be called on it, or only its parts."""
        self._goes_forward(step)
        self._given, self._output, self._runs = ((batch,), {}), None, False

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What the model's own forward is called with."""
        self._given, self._output, self._runs = (args, kwargs), None, True

    def _goes_forward(self, step: int) -> None:
        seen = self._step
        seen.forwards += 1
        if self._noisy:
            if self.model.training:
                self._was_training = True
            elif any(not module.training for _, module in self._noisy):
                seen.in_eval += 1
            if self._evaluations[True] or self._evaluations[False]:
                self._evaluations = {True: 0, False: 0}
        if self.looking and step < _LAYER_LOOKS and not self._compiled and not self._layer_handles:
            self._hang_on_layers()

    def evaluation(self) -> None:
        """Before a forward pass without gradients."""
        if self._noisy:
            self._evaluations[any(module.training for _, module in self._noisy)] += 1

    def loss(self, step: int, args: tuple[Any, ...], output: Any) -> None:
        """After the loss module."""
        looks = self.looking or step & (step - 1) == 0  # later at every power of two, for the order of the rows
        if not looks or not isinstance(output, Tensor) or not output.requires_grad:
            return
        if output.numel() == 1 and self.looking:
            factors = self._step.factors
            output.register_hook(Hook(lambda gradient: factors.append(gradient.detach())))  # type: ignore[no-untyped-call]
        if len(args) != 2 or not all(isinstance(a, Tensor) for a in args):
            return
        if not self._paired and self.looking:
            self._pair(step, output, args[0], args[1])
        elif self.first is not None:
            self.first = self.first.and_also(step, args[1])

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
            names = [name for name, module in self._noisy if module.training]
            self.say(step, told.train_mode(step, names, calling_line()))
        finding = self._schedule.at_an_epoch(step)
        if finding is not None:
            self.say(step, finding)

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
        """Before a closure is called: once more, it computes a gradient of its own.

        The first time the step may have been accumulated from batches before.
        """
        if self._step.evaluations:
            self._step.backwards = 0
        self._step.evaluations += 1

    def before_step(self, step: int, norm: float | Tensor | None) -> None:
        """Before the optimizer takes a step, its gradients there; ``norm`` is theirs."""
        if self.looking:
            self._lines["step"] = self._lines.get("step") or calling_line()
            self._look_closely(step)
        if self._noisy:
            self._check_mode(step)
        if isinstance(norm, float) and not math.isfinite(norm) and not self._named_nan:
            self._name_not_finite(step, norm)

    def after_step(self, step: int) -> None:
        """After a step was taken."""
        if step == 0 and self._schedule.steps_first():
            self.say(step, told.schedule_first(self._line("step")))
        if step + 1 == SURE:
            self._check_idle(step)
            self._check_frozen(step)
            self._check_symmetric(step)
        self._step, self._given, self._held = _Step(), None, None
        if self._layer_handles:
            self._take_off_layers()
        if self.looking and step + 1 >= CLOSE_LOOKS:
            self.looking, self._output = False, None
            self.remove()

    def skipped(self, step: int, skips: int) -> None:
        """So many steps were skipped by a gradient scaler in all."""
        if skips >= _SKIPS and skips > 0.1 * (step + skips):
            self.say(step, told.scale_collapse(step, skips))

    def finish(
        self, step: int, losses: NDArray[np.float64], rates: NDArray[np.float64], not_finite: Sequence[int]
    ) -> None:
        """The loop is over after so many steps.

        Args:
            losses, rates: of the recorded steps.
            not_finite: numbers of the steps that were not.
        """
        self.remove()
        for finding in self._schedule.at_the_end(step - 1, rates) if step else ():
            self.say(step - 1, finding)
        for finding in self.first.explains(step - 1, losses) if self.first is not None and step else ():
            self.say(step - 1, finding)
        if len(not_finite) and not {"nan_source", "nan_in_data"} & self.told:
            bad = [name for name, p in self.named if not bool(torch.isfinite(p.detach()).all())]
            if bad:  # on a device nobody waited to look at the time
                self.say(not_finite[0], told.not_finite_later(not_finite[0], bad))

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
                self.say(step, told.missing_zero_grad(step, counts["stale"], self._line("backward")))
        self._look_for_gradients(step)
        self._look_at_batch_norm(step)
        self._look_at_factors(step)

    def _look_for_gradients(self, step: int) -> None:
        seen, counts = self._step, self._counts
        without = {name for name, p in self.named if p.grad is None}
        if len(without) == len(self.named):
            counts["no gradient"] += 1
            if counts["no gradient"] == SURE and seen.forwards:
                self.say(step, told.no_gradient(step, len(self.named), self._line("step")))
            return
        counts["no gradient"] = 0
        called = list(dict.fromkeys(name for name, graph, _ in seen.called if graph))
        self._look_for_lost_graph(step, set(called), without)
        has = [name for name in called if any(p.grad is not None for p in self._own(name))]
        cut = called.index(has[0]) if has else 0
        if cut and has == called[cut:]:
            counts["cut"] += 1
            if counts["cut"] == _LAYER_LOOKS:
                self.say(step, told.cut_graph(step, called[:cut], has[0]))

    def _look_for_lost_graph(self, step: int, called: set[str], without: set[str]) -> None:
        """Layers that only ever run without a graph, though they were never trained and are in the optimizer."""
        bare = dict.fromkeys(name for name, graph, _ in self._step.called if not graph and name not in called)
        lost = [name for name in bare if any(f"{name}.{own}" in without for own in ("weight", "bias"))]
        if called and lost and all(as_drawn(self.model.get_submodule(name)) for name in lost):
            self._counts["lost"] += 1
            if self._counts["lost"] == _LAYER_LOOKS:
                self.say(step, told.without_graph(step, lost))

    def _own(self, name: str) -> Iterator[nn.Parameter]:
        return self.model.get_submodule(name).parameters(recurse=False)

    def _look_at_batch_norm(self, step: int) -> None:
        given = [(name, x) for name, _, x in self._step.called if x is not None and x.ndim > 1]
        few = [(name, x.numel() // max(1, x.shape[1]), len(x)) for name, x in given if len(x) <= _TINY]
        if few:
            self._counts["tiny"] += 1
            if self._counts["tiny"] == _LAYER_LOOKS:
                self.say(step, told.tiny_batch(step, *min(few, key=lambda seen: seen[1]), _TINY))

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
                self.say(step, told.undivided(step, count, self._line("backward")))

    def _check_mode(self, step: int) -> None:
        seen = self._step
        self._counts["eval"] = self._counts["eval"] + 1 if seen.forwards and seen.in_eval == seen.forwards else 0
        if self._counts["eval"] == SURE:
            names = [name or "the model" for name, module in self._noisy if not module.training]
            line, switched = self._line("step"), self._was_training
            self.say(step, told.eval_mode(step, SURE, names, switched=switched, line=line))

    def _check_idle(self, step: int) -> None:
        still = [
            (name, hidden)
            for name, p, version, total, hidden in self._idle
            if p.grad is not None and p._version == version and float(p.detach().double().sum()) == total
        ]
        hidden = [name for name, flag in still if flag]
        if hidden:
            self.say(step, told.hidden_parameters(step, hidden))
        elif still:
            self.say(step, told.left_out(step, [name for name, _ in still]))

    def _check_symmetric(self, step: int) -> None:
        """Units that are still alike after some steps; those of the last layer have targets of their own."""
        owners = list(dict.fromkeys(name.rpartition(".")[0] for name, p in self.named if p.grad is not None))
        names = [name for name in owners[:-1] if alike(self.model.get_submodule(name))]
        if names:
            self.say(step, told.symmetric(step, names))

    def _check_frozen(self, step: int) -> None:
        """A frozen part that was trained before is fine-tuning; one that is as it was drawn is not."""
        frozen = frozen_as_drawn(self.model)
        if frozen:
            self.say(step, told.frozen(step, frozen))

    def _pair(self, step: int, loss: Tensor, outputs: Tensor, targets: Tensor | None) -> None:
        self._paired, self._output = True, None
        given = self._given[0] if self._given is not None and self._runs else ()
        self.first = look(self.model, self.loss_fn, given, outputs, targets, step)
        line = calling_line()
        for found in read_pairing(loss, outputs, targets):
            self.say(step, told.pairing(found, line))

    def say(self, step: int, finding: Finding) -> None:
        """Tell a finding, each cause once."""
        if finding.cause not in self.told:
            self.told.add(finding.cause)
            self._tell(step, finding)

    def _name_not_finite(self, step: int, norm: float) -> None:
        if getattr(self.optimizer, "grad_scale", None) is not None:
            return  # the scaler will leave this step out, by design
        self._named_nan = True
        found = name_not_finite(self.model, self.named, self._given, runs=self._runs)
        self.say(step, told.not_finite(step, norm, found, self._line("step")))

    def _line(self, of: str) -> str:
        return self._lines.get(of, "")


def _depends_on_mode(module: nn.Module) -> bool:
    dropping = isinstance(module, (_DropoutNd, nn.RNNBase)) and float(getattr(module, "p", 0) or 0) > 0
    dropping = dropping or (isinstance(module, nn.RNNBase) and module.dropout > 0)
    return dropping or (isinstance(module, _BatchNorm) and module.track_running_stats)


Idle = list[tuple[str, nn.Parameter, int, float, bool]]


def _idle_parameters(model: nn.Module, optimizer: Optimizer, left_out: Sequence[str]) -> Idle:
    """Trainable parameters outside the optimizer, with what tells whether they move: version and sum."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    found = [(name, model.get_parameter(name), False) for name in left_out]
    for name, module in hidden_modules(model):
        found += [(f"{name}.{n}", p, True) for n, p in module.named_parameters() if id(p) not in held]
    found = found[:64]
    return [(n, p, p._version, float(p.detach().double().sum()), hidden) for n, p, hidden in found if p.requires_grad]
