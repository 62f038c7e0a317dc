"""Many at once: members of one architecture that descend side by side, each at a learning rate of its own.

They begin as copies of one model and learn from the same batches or each from its own. Two forms with one interface,
and the second is the reference of the first:

- :class:`Together`: the weights of all members are stacked and the forward pass is mapped over them by ``vmap``; the
  sum of their losses has each member's own gradient, and PyTorch's own optimizer takes each stack for one large tensor.
  It steps at the rate 1; the update of an optimizer that is ``proportional`` is the rate times a direction that does
  not depend on it, so a member's weights move that far along it. The whole step can be compiled (:meth:`compile
  <Together.compile>`): for a descent that is long enough to pay for the seconds that takes.
- :class:`InTurn`: an ordinary step of each, one after another. It serves every model and every optimizer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from torch import nn

from fogline.data.source import Batch
from fogline.descent.batches import Batches
from fogline.descent.machine import machine_of, optimizer_of
from fogline.descent.objective import Objective
from fogline.descent.optimizers import to_eval, to_train
from fogline.descent.recorded import CannotCompileError
from fogline.descent.step import EagerStep
from fogline.descent.together import Each as Each
from fogline.descent.together import Together as Together
from fogline.descent.together import bare_copy, judging
from fogline.recipe import Recipe

_ROUNDS = 3
_TINY = 1e-12  # a rate that moves nothing
_CLEARLY = 0.8  # of the time of taking turns, or two runs with one seed would differ for noise

# What ``vmap`` raises for a model it cannot map: no rule for an operation, data-dependent flow, a batch dimension lost.
_CANNOT_MAP = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)


class Population(Protocol):
    """Members 0 to ``size - 1``."""

    size: int

    def step(self, number: int, batch: Batch | Each, rates: Sequence[float]) -> list[float]:
        """Take one step of every member.

        Args:
            number: of the step, which decides its random numbers, the same for all.
            batch: the same for all, or one for each.
            rates: a learning rate for each.

        Returns:
            The loss of each before its step. A member whose loss is not finite is lost for good and keeps saying so.
        """

    def losses(self, batch: Batch) -> list[float]:
        """The loss of each member on a batch, in evaluation mode; nothing is learned.

        Layers with running statistics take those of the batch: in a short descent the running ones lag behind.
        """

    def member(self, k: int) -> nn.Module:
        """A copy of the model with the weights and buffers that member ``k`` has now, in evaluation mode."""


@dataclass(frozen=True)
class Choice:
    """A population and why it has this form.

    Attributes:
        population: fresh: nothing has been learned.
        together: whether its members step in one program.
        why: the reason, with the times measured.
        steps: what one step of all members costs, in steps of one.
        compiled: whether that program is compiled.
    """

    population: Population
    together: bool
    why: str
    steps: float
    compiled: bool = False


def populate(
    objective: Objective,
    recipe: Recipe,
    size: int,
    batches: Batches,
    *,
    together: bool | None = None,
    compiled: bool = False,
) -> Choice:
    """A population of members of a model's architecture, in the faster form.

    Args:
        objective: the model as it is and its loss; left untouched.
        recipe: optimizer, options, decay and clipping of every member.
        size: how many members.
        batches: those of the run; the two forms are timed on the first.
        together: True or False to have one form; by default a short measurement decides.
        compiled: compile the step of members in one program, which takes seconds and pays in a long descent. Where that
            cannot be, the reason says why and the step is as without.

    Raises:
        ValueError: ``together=True`` where the members cannot step in one program, the text says why.
    """
    in_turn = partial(InTurn, objective, recipe, size, batches)
    if together is not None and not together:
        return Choice(in_turn(), False, "asked for", float(size))
    obstructed = None if together else "one member" if size == 1 else obstacle(objective, recipe, batches)
    if obstructed is not None:
        return Choice(in_turn(), False, obstructed, float(size))
    members, batch = Together(objective, recipe, size), next(batches.stream(0))
    refused = _refusal(members, batch) if compiled else None
    beside = "" if refused is None else f"; not compiled: {refused}"
    if together:
        return Choice(members, True, "asked for" + beside, float(size), members.compiled)
    cost = _cost(members, InTurn(objective, recipe, 1, batches), batch, clock(batches))
    program = "compiled program" if members.compiled else "program"
    why = f"a step of {size} members in one {program} takes {cost:.1f} times as long as a step of one{beside}"
    if cost < _CLEARLY * size:
        return Choice(members, True, why, max(1.0, cost), members.compiled)
    return Choice(in_turn(), False, why, float(size))


def _refusal(members: Together, batch: Batch) -> str | None:
    """Compile the step; why it cannot be, or None."""
    try:
        members.compile(batch)
    except CannotCompileError as error:
        return str(error)
    return None


def _cost(members: Together, one: InTurn, batch: Batch, now: Callable[[], float]) -> float:
    """What a step of all takes in steps of one."""
    rates = [_TINY] * members.size
    with members.on_trial():
        seconds = _shortest(now, lambda: members.step(0, batch, rates), lambda: one.step(0, batch, rates[:1]))
    return seconds[0] / seconds[1]


def obstacle(objective: Objective, recipe: Recipe, batches: Batches) -> str | None:
    """Why members of this kind cannot step in one program, found by trying; None where they can."""
    try:
        Together(objective, recipe, 2).step(0, next(batches.stream(0)), [_TINY] * 2)
    except _CANNOT_MAP as error:
        words = str(error).strip().splitlines()
        return f"cannot be mapped over members: {words[0][:200] if words else error!r}"
    return None


def clock(batches: Batches) -> Callable[[], float]:
    """What steps are timed by: processor time, which other work on the machine does not touch; on a device the time."""
    return time.process_time if batches.device.type == "cpu" else time.perf_counter


class InTurn:
    """Members that step one after another.

    What the model draws in training is the same for all of them.
    """

    def __init__(self, objective: Objective, recipe: Recipe, size: int, batches: Batches) -> None:
        self.size = size
        self._steps = [_ordinary(objective, recipe, batches) for _ in range(size)]
        self._lost = [False] * size

    def step(self, number: int, batch: Batch | Each, rates: Sequence[float]) -> list[float]:
        found = []
        for k, (step, rate) in enumerate(zip(self._steps, rates, strict=True)):
            if self._lost[k]:
                found.append(math.nan)
                continue
            outcome = step.take(number, batch.of_member(k) if isinstance(batch, Each) else batch, rate)
            self._lost[k] = outcome.finite is False
            found.append(float(outcome.loss) if not self._lost[k] else math.nan)
        return found

    def losses(self, batch: Batch) -> list[float]:
        found = []
        for step, lost in zip(self._steps, self._lost, strict=True):
            objective, optimizer = step.machine.objective, step.machine.optimizer
            to_eval(optimizer)
            with judging(objective):
                found.append(math.nan if lost else objective(batch).item())
            to_train(optimizer)
        return found

    def member(self, k: int) -> nn.Module:
        objective, optimizer = self._steps[k].machine.objective, self._steps[k].machine.optimizer
        to_eval(optimizer)  # of a method that keeps an average, which is what it has learned
        model = bare_copy(objective.model).eval()
        to_train(optimizer)
        return model


def _ordinary(objective: Objective, recipe: Recipe, batches: Batches) -> EagerStep:
    """The step of ``fit``, of a copy of the model."""
    own = replace(objective, model=bare_copy(objective.model).train())
    optimizer = optimizer_of(own.model, recipe, 1.0)
    device = next(p.device for p in own.model.parameters() if p.requires_grad)
    return EagerStep(machine_of(own, recipe, optimizer, device), batches, deferred=False)


def _shortest(clock: Callable[[], float], *actions: Callable[[], object]) -> list[float]:
    """Seconds of each, the shortest of a few, taken in turn; the first round only warms up."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(1 + _ROUNDS):
        for action, found in zip(actions, times, strict=True):
            started = clock()
            action()
            found.append(clock() - started)
    return [min(found[1:]) for found in times]
