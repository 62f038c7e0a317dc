"""The run that ``fit`` makes at the rate it measures: a tenth of the way in, that is verified once.

The steps are the cell's own (no guard, no checkpoint), so that only the look back is added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from fogline.descent.prepare import begin
from fogline.descent.randomness import private_randomness
from fogline.descent.schedules import curve
from fogline.descent.step import EagerStep, Machine
from fogline.rate import verification
from rate_parts.grid import Cell, Ready, Trained, train

NAME = "verified"


def run(ready: Ready, cell: Cell) -> Trained:
    """The run at Fogline's rate, and on at another where the verification says so; its ``rate`` is the last one."""
    proposal = cell.proposals["fogline"]
    if proposal["rate"] is None:
        return Trained(0.0, math.inf, [], 0.0, 0.0, 0)
    factor, at_step = _factor(ready, proposal["rate"], proposal["evidence"])
    if factor == 1:
        return cell.at(ready, proposal["rate"])
    at = curve(str(ready.recipe.schedule), ready.problem.steps, warmup=float(ready.recipe.warmup))
    found = train(ready, proposal["rate"], multiplier=lambda step: at(step) * (factor if step >= at_step else 1.0))
    found.rate *= factor
    return found


def cost(cell: Cell) -> int:
    """Steps of finding and verifying."""
    proposal = cell.proposals["fogline"]
    return int(proposal["cost_steps"] + proposal["evidence"].get("verify_cost", 0))


def _factor(ready: Ready, rate: float, evidence: dict[str, Any]) -> tuple[float, int]:
    """What the rate is multiplied by, and at which step."""
    verify = verification(begin(ready.task, ready.recipe), evidence)
    assert verify is not None
    objective = ready.fresh()
    objective.model.train()
    machine = Machine(objective, ready.make_optimizer(objective.model, rate), torch.device("cpu"), seed=ready.seed)
    stepper = EagerStep(machine, ready.batches)
    at = curve(str(ready.recipe.schedule), ready.problem.steps, warmup=float(ready.recipe.warmup))
    for step in range(verify.step):
        if stepper.advance(step, verify.step, lambda k: rate * at(k)).finite is False:
            return 1.0, verify.step  # the run counts as broken
    with private_randomness(machine.device):
        factor, _ = verify.look(machine, ready.batches, rate * at(verify.step), rate)
    return factor, verify.step


def moved(cells: Sequence[Cell]) -> str:
    """In which cells the rate was moved."""
    asked = [cell for cell in cells if NAME in cell.others]
    other = [cell for cell in asked if cell.others[NAME].rate != cell.proposals["fogline"]["rate"]]
    where = ", ".join(
        f"{cell.task}/{cell.optimizer}/{cell.seed} ({'down' if _lowered(cell) else 'up'})" for cell in other
    )
    said = "Fogline, verified, is the run that `fit` makes at the rate it measures, without guard or best weights. "
    said += f"Verifying moved the rate in {len(other)} of {len(asked)} cells"
    return said + (f": {where}." if where else ".")


def _lowered(cell: Cell) -> bool:
    return bool(cell.others[NAME].rate < cell.proposals["fogline"]["rate"])
