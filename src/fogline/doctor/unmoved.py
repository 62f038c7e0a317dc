"""Parameters that no step of a loop moves: outside the optimizer, frozen as they were drawn, or moved all alike."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fogline.doctor import loop_findings, task_findings
from fogline.doctor.finding import Finding
from fogline.doctor.inventory import alike, alike_matrix, frozen_as_drawn, hidden_modules, hidden_tensors

_MOST = 64


@dataclass(frozen=True)
class _Idle:
    """A parameter, with what tells whether it moves and whether a gradient came to it since."""

    name: str
    parameter: Tensor
    version: int
    total: float
    gradient: Tensor | None
    gradients: int  # how often that was written to
    hidden: bool = False  # from model.parameters()

    @classmethod
    def of(cls, name: str, parameter: Tensor, *, hidden: bool = False) -> _Idle:
        gradient = parameter.grad
        written = 0 if gradient is None else gradient._version
        return cls(name, parameter, parameter._version, _sum(parameter), gradient, written, hidden)

    def stands(self) -> bool:
        """Whether it was never written to, by torch or behind its back."""
        return self.parameter._version == self.version and _sum(self.parameter) == self.total

    def got_gradient(self) -> bool:
        """Whether its gradient is another than it was, such as one that an earlier training left behind."""
        gradient = self.parameter.grad
        return gradient is not None and (gradient is not self.gradient or gradient._version != self.gradients)


class UnmovedLook:
    """Compares parameters after some steps with what they were.

    Args:
        model, optimizer: of the loop.
        named: the trained parameters.
        left_out: names of the trainable parameters that are not in the optimizer.

    Attributes:
        orphaned: whether the optimizer has none of the model's parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        named: Sequence[tuple[str, nn.Parameter]],
        left_out: Sequence[str],
    ) -> None:
        self.model, self.optimizer, self._named = model, optimizer, named
        self._idle = _idle_parameters(model, optimizer, left_out)
        self._trained = [_Idle.of(name, p) for name, p in named[:_MOST]]
        self._frozen = _frozen_copies(model)
        self._waits = False
        self._told: list[str] = []
        held = held_by(optimizer)
        self.orphaned = not any(id(p) in held for _, p in named)

    def after_some_steps(self, step: int, *, gives_targets: bool) -> Iterator[Finding]:
        """``gives_targets``: what a frozen part says is what another is compared with."""
        yield from self._nobody_moves(step, waits=True)
        frozen = [name for name in frozen_as_drawn(self.model) if self._stands(name)]
        self._told = frozen
        if frozen and not gives_targets:  # a frozen part that was trained before is fine-tuning
            yield loop_findings.frozen(step, frozen)
        # Units that are still alike; those of the last layer have targets of their own.
        owners = list(dict.fromkeys(name.rpartition(".")[0] for name, p in self._named if p.grad is not None))
        names = [name for name in owners[:-1] if alike(self.model.get_submodule(name))]
        trained = [(name, p) for name, p in self._named if p.grad is not None]
        names += [name for name, p in trained[:-1] if self._is_own(name) and alike_matrix(p)]
        if names:
            yield task_findings.symmetric(step, names)

    def _is_own(self, name: str) -> bool:
        """Whether a parameter is of a layer that the author of the model wrote."""
        return not type(self.model.get_submodule(name.rpartition(".")[0])).__module__.startswith("torch.")

    def thawed(self) -> bool:
        """Whether some of the layers that were told to be frozen learn by now, as the loop may have planned."""
        layers = [self.model.get_submodule(name) for name in self._told]
        return any(p.requires_grad for layer in layers for p in layer.parameters(recurse=False))

    def at_the_end(self, step: int, *, starved: str | None) -> Iterator[Finding]:
        """What may have waited for another optimizer has waited long enough.

        ``starved``: no gradient was there at the first steps, taken on this line, whose forward passes were not seen.
        """
        if self._waits:
            yield from self._nobody_moves(step, waits=False)
        if starved is not None and not self.orphaned and all(p.stands() for p in self._trained):
            yield loop_findings.no_gradient(step, len(self._named), starved)

    def without_a_step(self, backwards: int) -> Iterator[Finding]:
        """The optimizer took no step at all, although backward() was called so often."""
        if self.orphaned or not any(p.got_gradient() for p in self._trained):
            return
        if all(p.stands() for p in self._trained):
            yield loop_findings.no_step(backwards)
        else:
            yield loop_findings.another_steps(backwards)

    def _nobody_moves(self, step: int, *, waits: bool) -> Iterator[Finding]:
        """``waits`` for another optimizer that has them and may take its turn later."""
        idle = [p for p in self._idle if p.got_gradient() and p.stands()]
        others = _held_by_others(self.optimizer) if idle and waits else set()
        still = [p for p in idle if id(p.parameter) not in others]
        self._waits = len(still) < len(idle)
        hidden = [p.name for p in still if p.hidden]
        if hidden:
            yield loop_findings.hidden_parameters(step, hidden)
        elif still:
            yield loop_findings.left_out(step, [p.name for p in still], whole=self.orphaned)

    def _stands(self, name: str) -> bool:
        """Whether a frozen layer is no copy of one that learns, and nobody moves it: such ones are targets."""
        was = self._frozen.get(name, math.nan)
        return was is not None and (math.isnan(was) or was == _total(self.model.get_submodule(name)))


def _idle_parameters(model: nn.Module, optimizer: Optimizer, left_out: Sequence[str]) -> list[_Idle]:
    """Trainable parameters outside the optimizer."""
    held = held_by(optimizer)
    found: list[tuple[str, Tensor, bool]] = [(name, model.get_parameter(name), False) for name in left_out]
    for name, module in hidden_modules(model):
        found += [(f"{name}.{n}", p, True) for n, p in module.named_parameters() if id(p) not in held]
    found += [(name, tensor, True) for name, tensor in hidden_tensors(model) if id(tensor) not in held]
    return [_Idle.of(name, p, hidden=hidden) for name, p, hidden in found[:_MOST] if p.requires_grad]


def _sum(tensor: Tensor) -> float:
    return float(tensor.detach().double().sum())


def _frozen_copies(model: nn.Module) -> dict[str, float | None]:
    """Frozen layers as they were drawn, with what tells whether they move; None for copies of one that learns."""
    learns = [m for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    found: dict[str, float | None] = {}
    for name in frozen_as_drawn(model):
        layer = model.get_submodule(name)
        found[name] = None if any(_same(layer, other) for other in learns) else _total(layer)
    return found


def _same(one: nn.Module, other: nn.Module) -> bool:
    pairs = list(zip(one.parameters(recurse=False), other.parameters(recurse=False), strict=False))
    return type(one) is type(other) and all(torch.equal(a, b) for a, b in pairs if a.ndim > 1)


def held_by(*optimizers: Optimizer) -> set[int]:
    """Identities of the parameters that optimizers have."""
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


def _held_by_others(optimizer: Optimizer) -> set[int]:
    """Identities of the parameters that other optimizers have."""
    others = [o for o in gc.get_objects() if issubclass(type(o), Optimizer) and o is not optimizer]
    return held_by(*others)


def _total(layer: nn.Module) -> float:
    return sum(float(p.detach().double().sum()) for p in layer.parameters(recurse=False))
