"""How gradients come to the layers of somebody else's loop, step by step: left over, cut off, missing, or added up.

On the way to them it is seen how many rows batch normalisation is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from fogline.data.source import leaves
from fogline.doctor import loop_findings
from fogline.doctor.caller import calling_line
from fogline.doctor.finding import Finding
from fogline.doctor.inventory import as_drawn
from fogline.doctor.loss_look import LossLook
from fogline.doctor.modes import SURE
from fogline.record.hook import Hook

LAYER_LOOKS = 3
"""Steps whose layers are looked at, each of them."""
_REPEATED = 3  # calls in one pass
_TINY = 4
"""Values a channel below which a batch's variance is wrong by its own size: its relative error is sqrt(2 / (n - 1))."""


@dataclass
class _Step:
    """What was seen since the last step."""

    forwards: int = 0
    backwards: int = 0
    evaluations: int = 0  # of a closure
    stale: bool = False  # a gradient of an earlier step is in this one's
    gave: bool = False  # backward() gave a gradient that is not zero
    called: list[tuple[str, bool, Tensor | None]] = field(default_factory=list)
    came: dict[str, list[bool]] = field(default_factory=dict)  # whether a gradient came to each answer of a layer


class GradientLook:
    """Follows gradients from ``backward()`` to the step that is taken with them, while the loop is looked at.

    Args:
        model, optimizer, loss_fn: of the loop.
        named: the trained parameters.
        loss_look: what is known of the loss.
        orphaned: the optimizer has none of the model's parameters, so that it clears none of their gradients.

    Attributes:
        starved: the line of steps that found no gradient in any parameter, where no forward pass was seen either: the
            loop may call parts of the model only, or may not have begun to train it. None before there were such steps.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: Any,
        named: Sequence[tuple[str, nn.Parameter]],
        loss_look: LossLook,
        *,
        orphaned: bool,
    ) -> None:
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        self._named, self._loss_look, self._orphaned = named, loss_look, orphaned
        self._sentinel: Any = next((p for _, p in named if p.ndim == 1), named[0][1])
        self._held: bool | None = None  # whether the sentinel had a gradient before this one
        self._step = _Step()
        self._counts = dict.fromkeys(("stale", "no gradient", "cut", "lost", "past", "bare", "tiny", "scale"), 0)
        self.starved: str | None = None
        self._backward_at = ""
        self._called_at: dict[str, str] = {}
        self._last: nn.Module | None = None  # of the layers, the one called last

    # -- what passes by --------------------------------------------------------------------------------------------

    def hang_on_sentinel(self) -> RemovableHandle:
        """Look at the gradient of one parameter before each new one is added to it."""
        handle: RemovableHandle = self._sentinel.register_hook(Hook(self._before_accumulation))
        return handle

    def _before_accumulation(self, _: Tensor) -> None:
        """With the new gradient, before it is added: what is there already is older."""
        if torch.is_grad_enabled():
            return
        old = self._sentinel.grad
        if old is None:
            self._held = False
        else:
            self._held = _any(old)

    def hang_on_layers(self) -> list[RemovableHandle]:
        """Look at every layer that has trained parameters, or normalises a batch, as it is called."""
        held = {id(p) for _, p in self._named}
        handles = []
        for name, module in self.model.named_modules():
            own = any(id(p) in held for p in module.parameters(recurse=False))
            if name and (own or isinstance(module, _BatchNorm)):
                handles.append(module.register_forward_hook(Hook(self._looker(name))))
        return handles

    def hang_on_last(self) -> list[RemovableHandle]:
        """Once the layers are known, look at the last one only, where the model shows nothing behind it but a loss."""
        if self._last is None or not self._loss_look.wants_layer:
            return []
        return [self._last.register_forward_hook(Hook(lambda _, __, output: self._loss_look.after_layer(output)))]

    def _looker(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], object], None]:
        def look(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
            said = next((leaf for leaf in leaves(output) if leaf.requires_grad), None)
            graph = torch.is_grad_enabled() and said is not None
            given = args[0] if args and isinstance(args[0], Tensor) else None
            tiny = given if isinstance(module, _BatchNorm) and module.training else None
            self._last = module
            self._loss_look.after_layer(output, given)
            if graph and said is not None:
                self._follow(name, said)
            self._step.called.append((name, graph, tiny if tiny is None else tiny.detach()))
            if name not in self._called_at:
                self._called_at[name] = calling_line()

        return look

    def _follow(self, name: str, output: Tensor) -> None:
        """Whether a gradient comes to what a layer gives, each time that it is called."""
        came = self._step.came.setdefault(name, [])
        place = len(came)
        came.append(False)
        output.register_hook(Hook(lambda _: came.__setitem__(place, True)))  # type: ignore[no-untyped-call]

    def forward(self) -> None:
        """Before a forward pass with gradients."""
        self._step.forwards += 1

    def accumulated(self, *, closely: bool) -> None:
        """After a gradient was added to that of the sentinel."""
        held, self._held = self._held, None
        seen = self._step
        seen.backwards += 1
        if closely and not seen.gave:
            seen.gave = _any(self._sentinel.grad)
        if held is None:
            return
        if not held:
            seen.stale = False
        elif seen.backwards == 1:
            seen.stale = True
        if seen.backwards == 1:
            self._backward_at = self._backward_at or calling_line()

    def evaluates_closure(self) -> None:
        """Before a closure is called: once more, it computes a gradient of its own.

        The first time the step may have been accumulated from batches before.
        """
        if self._step.evaluations:
            self._step.backwards = 0
        self._step.evaluations += 1

    def step_taken(self, step: int) -> Iterator[Finding]:
        """After a step was taken."""
        seen, self._step, self._held = self._step, _Step(), None
        if seen.stale and seen.evaluations > 1:  # the closure's later gradients were added to its first
            yield from self._holds_old(step)

    # -- what it says ----------------------------------------------------------------------------------------------

    def before_step(self, step: int, line: str) -> Iterator[Finding]:
        """Before the optimizer takes a step, on this line."""
        seen = self._step
        if seen.stale and seen.backwards and step:
            yield from self._holds_old(step)
        yield from self._missing(step, line)
        yield from self._normalised(step)
        yield from self._added_up(step)

    def _holds_old(self, step: int) -> Iterator[Finding]:
        """An older gradient is part of this one."""
        self._counts["stale"] += not self._orphaned
        if self._counts["stale"] == SURE and not self._orphaned:
            yield loop_findings.missing_zero_grad(step, SURE, self._backward_at)

    def _missing(self, step: int, line: str) -> Iterator[Finding]:
        """Parameters to which no gradient comes, and where the graph ends before them."""
        seen, counts = self._step, self._counts
        without = {name for name, p in self._named if p.grad is None}
        cleared = seen.gave and not any(_any(p.grad) for _, p in self._named)
        if len(without) == len(self._named) or cleared:
            counts["no gradient"] += 1
            if counts["no gradient"] == SURE and seen.forwards:
                make = loop_findings.cleared if seen.backwards else loop_findings.no_gradient
                yield make(step, len(self._named), line)
            if counts["no gradient"] == SURE and not seen.forwards:
                self.starved = line
            return
        counts["no gradient"] = 0
        called = list(dict.fromkeys(name for name, graph, _ in seen.called if graph))
        yield from self._without_graph(step, set(called), without)
        yield from self._without_past(step)
        has = [name for name in called if any(p.grad is not None for p in self._own(name))]
        cut = called.index(has[0]) if has else len(called)
        if cut and has == called[cut:]:
            counts["cut"] += 1
            if counts["cut"] == LAYER_LOOKS and has:
                yield loop_findings.cut_graph(step, called[:cut], has[0], self._called_at.get(has[0], ""))
            elif counts["cut"] == LAYER_LOOKS and seen.backwards:
                others = [name for name, _ in self._named if name not in without]
                yield loop_findings.cut_behind(step, called, others, self._backward_at)
        if self._loss_look.bare and has and has[-1] == called[-1]:
            counts["bare"] += 1
            if counts["bare"] == LAYER_LOOKS:
                yield loop_findings.not_of_outputs(step, self._backward_at)

    def _without_graph(self, step: int, called: set[str], without: set[str]) -> Iterator[Finding]:
        """Layers that only ever run without a graph, though they were never trained and are in the optimizer."""
        bare = dict.fromkeys(name for name, graph, _ in self._step.called if not graph and name not in called)
        lost = [name for name in bare if any(f"{name}.{own}" in without for own in ("weight", "bias"))]
        lost = [name for name in lost if all(p.requires_grad for p in self._own(name))]  # else the loop froze them
        if called and lost and all(as_drawn(self.model.get_submodule(name)) for name in lost):
            self._counts["lost"] += 1
            if self._counts["lost"] == LAYER_LOOKS:
                yield loop_findings.without_graph(step, lost, self._called_at.get(lost[0], ""))

    def _without_past(self, step: int) -> Iterator[Finding]:
        """Layers that are called again and again on what they said before, of which only the last time is learned."""
        seen = self._step
        repeated = [name for name, came in seen.came.items() if len(came) >= _REPEATED]
        cut = [name for name in repeated if seen.came[name][-1] and not any(seen.came[name][:-1])]
        if cut and cut == repeated and seen.forwards == 1:
            self._counts["past"] += 1
            if self._counts["past"] == LAYER_LOOKS:
                yield loop_findings.without_past(step, cut, len(seen.came[cut[0]]), self._called_at.get(cut[0], ""))

    def _own(self, name: str) -> Iterator[nn.Parameter]:
        return self.model.get_submodule(name).parameters(recurse=False)

    def _normalised(self, step: int) -> Iterator[Finding]:
        """Batches too small for statistics."""
        given = [(name, x) for name, _, x in self._step.called if x is not None and x.ndim > 1]
        few = [(name, x.numel() // max(1, x.shape[1]), len(x)) for name, x in given if len(x) <= _TINY]
        if few:
            self._counts["tiny"] += 1
            if self._counts["tiny"] == LAYER_LOOKS:
                yield loop_findings.tiny_batch(step, *min(few, key=lambda seen: seen[1]), _TINY)

    def _added_up(self, step: int) -> Iterator[Finding]:
        """Several full-weight losses a step, their gradients added: the step is so many times as long."""
        seen = self._step
        found, single = self._loss_look.factors, type(self.optimizer).__name__ == "SGD"
        count = len(found)
        if count < SURE or count != seen.backwards or count > seen.forwards or seen.stale or not single:
            return
        if "sum" in (getattr(loss, "reduction", "mean") for loss in (self.loss_fn, self._loss_look.read)):
            return  # sums are as many rows as they are of, in one batch or several
        factors = torch.stack([f.reshape(()).double().cpu() for f in found])
        if bool((factors == 1).all()):
            self._counts["scale"] += 1
            if self._counts["scale"] == SURE:
                yield loop_findings.undivided(step, count, self._backward_at)


def _any(gradient: Tensor | None) -> bool:
    """Whether a gradient is there and not zero."""
    if gradient is None:
        return False
    values = gradient.detach()
    return bool((values.coalesce().values() if values.is_sparse else values).any())
