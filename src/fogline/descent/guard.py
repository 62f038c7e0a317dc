"""The guard: a loss that runs away goes back to the last good state, at a lower learning rate.

It looks at blocks of steps, whose ends depend on the step number alone, so that a resumed run looks at the same ones.
At the end of a block that is as good as the best before it, the state is kept; at the end of one that has lost half of
everything gained, far beyond the noise, the state goes back; so it does after a few steps in a row that were not finite
although their data were. Steps, schedule and data go on: what ran away is not tried again on the same batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fogline.descent.checkpoint import load_model_tensors, model_tensors
from fogline.descent.machine import Machine, below, learned, load_learned
from fogline.descent.optimizers import state_scalars
from fogline.record.signals import numbers

MOST = 3
"""Times that it goes back before the run ends."""
LOWER = 1 / 3
"""What the learning rate is multiplied by each time."""
_BLOCKS = 40
_SHORTEST, _LONGEST = 20, 500
_REFUSALS = 3
_SPIKE = 6.0  # standard deviations of the noise from step to step
_LOST = 0.5  # of everything gained
_CALM = 2.0  # standard deviations above the best within which a block counts as good


@dataclass
class Memory:
    """What the guard remembers between blocks; plain JSON.

    Attributes:
        first: the loss where the run began.
        level: median loss of the best block so far.
        noise: standard deviation from step to step in the last good block.
        kept: the step whose state is kept.
        following: the step at which, or behind which, the block ends that is being taken.
        bad_data: a step was refused for its data: what is not finite is no fault of the rate.
        losses: of the steps since the last block ended.
    """

    first: float | None = None
    level: float | None = None
    noise: float = 0.0
    kept: int = 0
    following: int = 0
    bad_data: bool = False
    losses: list[float] = field(default_factory=list)


class Guard:
    """Keeps the last good state of a descent and says when to go back to it.

    Args:
        machine: whose state it keeps.
        average: the moving average of the weights, if there is one.
        total: steps planned, or None.
    """

    def __init__(self, machine: Machine, average: list[Tensor] | None, total: int | None) -> None:
        self.machine, self.average = machine, average
        self.length = max(_SHORTEST, min(_LONGEST, (total or _BLOCKS * _LONGEST) // _BLOCKS))
        self.memory = Memory()
        self._pending: list[float | Tensor] = []
        self._kept: dict[str, Tensor] = {}
        self._scalars: dict[str, Any] = {}

    def saw(self, losses: list[float | Tensor]) -> None:
        """Take note of the losses of the steps just taken."""
        self._pending += losses

    def look(self, step: int, refused_in_a_row: int) -> str | None:
        """Judge the block that ends here, if one does, and keep its state if it is good.

        Returns:
            What went wrong, in words, where the descent must go back; else None.
        """
        if refused_in_a_row >= _REFUSALS and not self.memory.bad_data:
            return f"{refused_in_a_row} steps in a row were not finite"
        if step < self.memory.following:
            return None
        self.memory.following = (step // self.length + 1) * self.length  # a call of several steps may reach over it
        return self._judged(step)

    def _judged(self, step: int) -> str | None:
        self._collect()
        memory = self.memory
        losses, memory.losses = memory.losses, []
        finite = [loss for loss in losses if math.isfinite(loss)]
        if not finite:
            if not self._kept:
                self._keep(step)
            return None
        if memory.first is None:
            memory.first = memory.level = median(finite[:5])
            memory.noise = _noise(finite[: max(3, len(finite) // 3)])
        assert memory.level is not None
        late = median(finite[len(finite) // 2 :])
        risen, gained = late - memory.level, max(0.0, memory.first - memory.level)
        if risen > max(_SPIKE * memory.noise, _LOST * gained, 0.1 * abs(memory.level)):
            return f"the loss rose from {memory.level:.4g} to {late:.4g}"
        if risen <= _CALM * memory.noise:
            memory.level, memory.noise = min(memory.level, median(finite)), _noise(finite)
            self._keep(step)
        return None

    def back(self) -> int:
        """Put the kept state back; returns its step."""
        machine = self.machine
        load_model_tensors(machine.objective.model, below(self._kept, "model/"))
        load_learned(machine, self.average, self._kept, self._scalars)
        self._pending, self.memory.losses = [], []
        return self.memory.kept

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values for a checkpoint."""
        self._collect()
        return self._kept, {"memory": vars(self.memory), "scalars": self._scalars}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """What :meth:`state` gave."""
        self._kept = {name: value.to(self.machine.device) for name, value in tensors.items()}
        self.memory, self._scalars, self._pending = Memory(**values["memory"]), values["scalars"], []

    def _collect(self) -> None:
        self.memory.losses += numbers(self._pending)
        self._pending = []

    def _keep(self, step: int) -> None:
        machine = self.machine
        live = {f"model/{name}": value for name, value in model_tensors(machine.objective.model).items()}
        live |= learned(machine, self.average)
        if self._kept.keys() != live.keys():
            self._kept = {name: value.detach().clone() for name, value in live.items()}
        else:
            with torch.no_grad():
                torch._foreach_copy_(list(self._kept.values()), [live[name].detach() for name in self._kept])
        self._scalars = state_scalars(machine.optimizer)
        self.memory.kept = step


def _noise(losses: list[float]) -> float:
    """Standard deviation from step to step, by successive differences: neither trend nor spike moves it much."""
    steps = [abs(b - a) for a, b in pairwise(losses)]
    return median(steps) / 0.954 if steps else 0.0  # the median of |N(0, 2 s^2)| is 0.954 s
