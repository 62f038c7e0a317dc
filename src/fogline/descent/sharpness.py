"""How sharp the loss is for the steps of the optimizer, as a share of what the optimizer can bear.

With P the preconditioner of the method (1 for gradient descent, ``sqrt(v)`` for Adam) and ``M = limit * P / lr``, the
share is the largest curvature in size of ``M^(-1/2) H M^(-1/2)``: 1 at the limit on ``lr * curvature``, which is 2 for
gradient descent, ``2 + 2b`` for heavy ball, ``(2 + 2b) / (1 + 2b)`` for Nesterov and ``(2 + 2b1) / (1 - b1)`` for Adam
(Cohen et al., 2021, arXiv:2103.00065; 2022, arXiv:2207.14484).

It is found by power iteration on the batch of the latest step. A product ``H u`` is the difference of two gradients of
that batch, at the weights and a little way along ``u``: no second derivative is asked for, and no more memory than a
step takes. Every measurement goes on from the direction of the one before, so one product suffices: the direction turns
slowly. From below it comes close to the true value; the first measurements may lie under it.

Overshoot of successive steps cannot tell this where batches are small, since the next batch has another gradient.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fogline.data.source import Batch
from fogline.descent.batches import rows_of, split
from fogline.descent.machine import Machine
from fogline.descent.optimizer_specs import OptimizerSpec, stability_limit
from fogline.descent.randomness import PROBE, seed_step
from fogline.descent.step import out_of_memory
from fogline.record.probes import Budget

MOST_PARAMETERS = 50_000_000
"""A direction of this size is kept in memory; of larger models the sharpness is not measured."""
_EXACT = (torch.float32, torch.float64)
_FIRST_PRODUCTS = 2
_FIRST_GUESS = 1.0 + _FIRST_PRODUCTS  # steps that the first measurement takes
_SHARE = 1 / 3  # of the budget of the signals
_LENGTH = 1e-3  # of the way along a direction, against the weights


class Sharpness:
    """Measures now and then, within a third of the budget of the signals.

    Args:
        machine: what takes the steps; weights and buffers are bitwise the same afterwards.
        spec: of the optimizer, one with a known limit.
        budget: of the signals.

    Attributes:
        cost: seconds that a measurement takes, 0 before the first.
    """

    def __init__(self, machine: Machine, spec: OptimizerSpec, budget: Budget) -> None:
        self.machine, self.spec, self.budget = machine, spec, budget
        self.cost = self._spent = 0.0
        self._direction: list[Tensor] | None = None
        self._looked = -1, math.inf  # step and time
        self._quickest = math.inf  # seconds of a step
        self._gave_up = False

    def affords(self, step: int) -> bool:
        """Whether it may measure before this step; what it saves up for, other probes leave alone."""
        (before, then), now = self._looked, time.perf_counter()
        if step > before:
            self._looked = step, now
            self._quickest = min(self._quickest, (now - then) / (step - before) if before >= 0 else math.inf)
        cost, allowed = self.cost or _FIRST_GUESS * self._quickest, self.budget.allowed()
        entitled = self._spent + cost <= _SHARE * allowed and not self._gave_up
        self.budget.saved = cost if entitled else 0.0
        return entitled and self.budget.spent + cost <= allowed

    def measure(self, step: int, batch: Batch, rate: float) -> float | None:
        """The share of the limit at the weights as they are, None where it cannot be told.

        Args:
            step: the coming one.
            batch: of the step before.
            rate: the learning rate.
        """
        started = time.perf_counter()
        machine, products = self.machine, 1 if self._direction else _FIRST_PRODUCTS
        buffers = [buffer.clone() for buffer in machine.buffers]
        live = [p.detach() for p in machine.parameters]
        weights = [value.clone() for value in live]
        try:
            value = self._iterated(step, batch, rate, live, products)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            value, self._gave_up = None, True  # what fits a step need not fit a step and a measurement
        finally:
            for now, before in zip([*live, *machine.buffers], [*weights, *buffers], strict=True):
                now.copy_(before)
        seconds = time.perf_counter() - started
        self.cost = seconds * 2 / (1 + products)  # of the next one, which takes two gradients
        self._spent += seconds
        self.budget.saved = 0.0
        self.budget.spent += seconds
        self.budget.probing += seconds
        return value

    def _iterated(self, step: int, batch: Batch, rate: float, live: list[Tensor], products: int) -> float | None:
        """Power iteration; ``live`` are the weights themselves."""
        weights = [value.clone() for value in live]
        here = self._gradients(step, batch)
        metric = _metric(self.machine.optimizer, self.spec, rate, self.machine.parameters, here)
        if metric is None:
            return None
        # Before the first, the step that the method would take without momentum.
        direction = self._direction or list(torch._foreach_div(here, metric))
        reach = _LENGTH * _length(weights) or _length(direction)
        value = None
        for _ in range(products):
            length = _length(direction)
            if not 0 < length < math.inf:
                self._direction = None
                return None
            along = list(torch._foreach_mul(direction, reach / length))
            torch._foreach_add_(live, along)
            bent = list(torch._foreach_sub(self._gradients(step, batch), here))
            torch._foreach_copy_(live, weights)
            turned = list(torch._foreach_div(bent, metric))
            value = math.sqrt(_product(bent, turned) / _product(list(torch._foreach_mul(along, metric)), along))
            direction = turned
        self._direction = direction
        return value if value is not None and math.isfinite(value) else None

    def _gradients(self, step: int, batch: Batch) -> list[Tensor]:
        """Gradients of the mean loss, with the same random numbers each time; ``.grad`` is left alone."""
        machine = self.machine
        seed_step(machine.seed, step, PROBE, machine.device)
        rows = rows_of(batch)
        total = [torch.zeros_like(p) for p in machine.parameters]
        exact = replace(machine.objective, autocast=None)
        for piece in split(batch, -(-rows // machine.parts)):
            loss = exact(piece) * (1.0 if machine.summed else rows_of(piece) / rows)
            found = torch.autograd.grad(loss, machine.parameters, allow_unused=True)
            total = [t if g is None else t + g for t, g in zip(total, found, strict=True)]
        return total


def can_measure(machine: Machine, spec: OptimizerSpec) -> bool:
    """Whether the limit is known, the model small enough, and the difference of two gradients not lost in rounding."""
    exact = all(p.dtype in _EXACT for p in machine.parameters)
    small = sum(p.numel() for p in machine.parameters) <= MOST_PARAMETERS
    return spec.edge is not None and exact and small


def _metric(
    optimizer: torch.optim.Optimizer, spec: OptimizerSpec, rate: float, parameters: Any, gradients: list[Tensor]
) -> list[Tensor] | None:
    """``M`` of each parameter; None where the optimizer has none yet."""
    gradient_of = dict(zip(parameters, gradients, strict=True))
    metric: dict[Any, Tensor] = {}
    for group in optimizer.param_groups:
        scaled = rate * group.get("lr_scale", 1.0)
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            preconditioner = _preconditioner(group, state, gradient_of[parameter], spec)
            if preconditioner is None or not scaled > 0:
                return None
            metric[parameter] = preconditioner / scaled
    return [metric[parameter] for parameter in parameters]


def _preconditioner(
    group: dict[str, Any], state: dict[str, Any], gradient: Tensor, spec: OptimizerSpec
) -> Tensor | None:
    """``limit * P`` as the coming step has it."""
    if spec.edge != "preconditioned":
        momentum = group.get("momentum", 0.0)
        damped = (1 - group.get("dampening", 0.0)) if momentum else 1.0
        kind = "nesterov" if group.get("nesterov") else "heavy_ball"
        return torch.full_like(gradient, stability_limit(kind, momentum) / damped)
    if "exp_avg_sq" not in state:
        return None
    first, second = group["betas"]
    moment = second * state["exp_avg_sq"] + (1 - second) * gradient.square()
    if "max_exp_avg_sq" in state:
        moment = torch.maximum(state["max_exp_avg_sq"], moment)
    correction = 1 - second ** (float(state["step"]) + 1)
    floor = group["eps"] + torch.finfo(moment.dtype).tiny
    preconditioner: Tensor = ((moment / correction).sqrt() + floor) * stability_limit("preconditioned", first)
    return preconditioner


def _product(a: list[Tensor], b: list[Tensor]) -> float:
    parts = [torch.sum(x * y, dtype=torch.float64) for x, y in zip(a, b, strict=True)]
    return float(torch.stack(parts).sum())


def _length(vector: list[Tensor]) -> float:
    return math.sqrt(_product(vector, vector))
