"""Many at once: members of one architecture that descend side by side, each at a learning rate of its own.

They begin as copies of one model and learn from the same batches or each from its own. Two forms with one interface,
and the second is the reference of the first:

- :class:`Together`: the weights of all members are stacked and the forward pass is mapped over them by ``vmap``; the
  sum of their losses has each member's own gradient, and PyTorch's own optimizer takes each stack for one large tensor.
  It steps at the rate 1; the update of an optimizer that is ``proportional`` is the rate times a direction that does
  not depend on it, so a member's weights move that far along it.
- :class:`InTurn`: an ordinary step of each, one after another. It serves every model and every optimizer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from torch import nn

from fogline.data.source import Batch
from fogline.descent.batches import Batches
from fogline.descent.machine import machine_of, optimizer_of
from fogline.descent.objective import Objective
from fogline.descent.optimizers import to_eval, to_train
from fogline.descent.step import EagerStep
from fogline.descent.together import Each as Each
from fogline.descent.together import Together as Together
from fogline.descent.together import copied, judging
from fogline.recipe import Recipe

_TINY = 1e-12  # a rate that moves nothing

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
        model = copied(objective.model).eval()
        to_train(optimizer)
        return model


def _ordinary(objective: Objective, recipe: Recipe, batches: Batches) -> EagerStep:
    """The step of ``fit``, of a copy of the model."""
    own = replace(objective, model=copied(objective.model).train())
    optimizer = optimizer_of(own.model, recipe, 1.0)
    device = next(p.device for p in own.model.parameters() if p.requires_grad)
    return EagerStep(machine_of(own, recipe, optimizer, device), batches, deferred=False)
