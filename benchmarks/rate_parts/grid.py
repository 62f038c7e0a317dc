"""Training at one rate, a grid of rates, and the file in which a cell's runs are kept.

A cell is a task, an optimizer and a seed. Every run of a cell has the same first weights, batches, number of steps and
schedule (linear to zero after 5 % of warm-up, or constant from the first step); only the rate differs. It is scored by
the held-out loss of its last weights.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fogline
from fogline.descent.batches import Batches
from fogline.descent.groups import parameter_roles
from fogline.descent.objective import Objective
from fogline.descent.optimizers import build, spec_of
from fogline.descent.prepare import begin
from fogline.descent.schedules import curve
from fogline.descent.scoring import Scorer
from fogline.descent.step import EagerStep, Machine
from rate_parts.tasks import Problem

POINTS = 20
RANGES = {"momentum": (1e-5, 10.0), "adamw": (1e-5, 1.0), "muon": (1e-5, 1.0)}
OPTIMIZERS = tuple(RANGES)
WARMUP = 0.05
_MORE = 6  # points added at an end that wins
_LOOKS = 50  # held-out losses along a run
_FORMAT = 1


@dataclass
class Trained:
    """One run.

    Attributes:
        rate: the learning rate at the top of the schedule.
        loss: held-out loss of the last weights; infinite where a step was not finite.
        curve: (steps taken, held-out loss), about every 2 % of the run.
        seconds: wall time of the steps alone.
        processor: processor time of the steps alone.
        steps: steps taken.
    """

    rate: float
    loss: float
    curve: list[tuple[int, float]]
    seconds: float
    processor: float
    steps: int


@dataclass
class Ready:
    """A cell that is ready to be trained: everything that its runs share."""

    problem: Problem
    optimizer: str
    seed: int
    task: fogline.Task
    recipe: fogline.Recipe
    objective: Objective
    batches: Batches
    scorer: Scorer

    @classmethod
    def of(cls, problem: Problem, optimizer: str, seed: int, schedule: str = "linear") -> Ready:
        """Make the data and the first weights."""
        task = problem.make(seed)
        recipe = fogline.Recipe(
            optimizer=optimizer, batch_size=problem.batch_size, duration=f"{problem.steps}st", schedule=schedule,
            warmup=WARMUP if schedule == "linear" else 0.0, seed=seed, step="eager", device="cpu",
        )  # fmt: skip
        start = begin(task, recipe)
        assert start.opened.valid is not None
        scorer = Scorer(start.opened.valid, {}, 4096, torch.device("cpu"))
        return cls(problem, optimizer, seed, task, recipe, start.objective, start.batches, scorer)

    def fresh(self) -> Objective:
        """The objective with a copy of the first weights."""
        return replace(self.objective, model=copy.deepcopy(self.objective.model))

    def loss(self, objective: Objective) -> float:
        """Held-out loss."""
        return self.scorer(objective)["loss"]

    def make_optimizer(self, model: nn.Module, rate: float) -> torch.optim.Optimizer:
        """The cell's optimizer in its fastest implementation, with its own weight decay."""
        fused = "fused" if "fused" in spec_of(self.optimizer).implementations else None
        return build(model, self.optimizer, rate, implementation=fused)


def applies(problem: Problem, optimizer: str) -> bool:
    """Muon is for models with hidden matrices."""
    if optimizer != "muon":
        return True
    model = problem.make(0).model
    assert model is not None
    with torch.random.fork_rng():
        roles = parameter_roles(model if isinstance(model, nn.Module) else model())
    return any(role.hidden for role in roles)


def train(
    ready: Ready,
    rate: float,
    *,
    steps: int | None = None,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    multiplier: Callable[[float], float] | None = None,
    before_scoring: Callable[[torch.optim.Optimizer, Objective], Callable[[], None]] | None = None,
) -> Trained:
    """Train from the first weights at this rate.

    Args:
        ready: the cell.
        rate: at the top of the schedule.
        steps: another length, with the schedule drawn together to it.
        optimizer: another optimizer than the cell's.
        multiplier: another schedule than the cell's.
        before_scoring: makes the model ready to be scored; what it returns makes it ready to be trained again.
    """
    total = steps or ready.problem.steps
    objective = ready.fresh()
    objective.model.train()
    made = optimizer(objective.model) if optimizer else ready.make_optimizer(objective.model, rate)
    stepper = EagerStep(Machine(objective, made, torch.device("cpu"), seed=ready.seed), ready.batches)
    at = multiplier or curve(str(ready.recipe.schedule), total, warmup=float(ready.recipe.warmup))
    found = Trained(rate, math.inf, [], 0.0, 0.0, 0)

    def look() -> float:
        back = before_scoring(made, objective) if before_scoring else None
        loss = ready.loss(objective)
        if back:
            back()
        return loss if math.isfinite(loss) else math.inf

    stops = sorted({round(total * (k + 1) / _LOOKS) for k in range(_LOOKS)} - {0})
    for stop in stops if steps is None else [total]:
        if not _advance(found, stepper, stop, lambda step: rate * at(step)):
            return found
        found.curve.append((stop, look()))
    found.loss = found.curve[-1][1]
    return found


def _advance(found: Trained, stepper: EagerStep, stop: int, rates: Callable[[int], float]) -> bool:
    """Steps until ``stop``; False when one was not finite."""
    wall, processor, good = time.perf_counter(), time.process_time(), True
    while good and found.steps < stop:
        good = stepper.advance(found.steps, stop, rates).finite is not False
        found.steps += 1
    found.seconds += time.perf_counter() - wall
    found.processor += time.process_time() - processor
    return good


def grid_rates(optimizer: str) -> list[float]:
    """Twenty rates, evenly spaced on a logarithmic scale."""
    low, high = RANGES[optimizer]
    return [float(f"{low * (high / low) ** (k / (POINTS - 1)):.6g}") for k in range(POINTS)]


@dataclass
class Cell:
    """What is known of a task, an optimizer and a seed; a JSON file.

    Attributes:
        task, optimizer, seed: which.
        steps: length of its runs.
        initial: held-out loss before training.
        signature: what the runs depend on; a file with another one is refused.
        grid: rates of the grid.
        runs: by rate, those of the grid and those at rates that were proposed.
        proposals: by finder: rate, cost and what else it said.
        others: runs of methods that are no rate but a whole optimizer, by name.
        absent: finders that were not there, and why.
    """

    task: str
    optimizer: str
    seed: int
    steps: int
    initial: float
    signature: str
    grid: list[float] = field(default_factory=list)
    runs: dict[str, Trained] = field(default_factory=dict)
    proposals: dict[str, dict[str, Any]] = field(default_factory=dict)
    others: dict[str, Trained] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, ready: Ready, folder: Path) -> Cell:
        """Read it from the cache, or begin it."""
        initial = ready.loss(ready.fresh())
        size = sum(p.numel() for p in ready.objective.model.parameters())
        signature = f"format {_FORMAT}, {ready.problem.steps} steps of {ready.problem.batch_size}, {size} parameters, "
        signature += f"{initial:.4g}"
        path = cell_path(folder, ready.problem.name, ready.optimizer, ready.seed)
        if not path.exists():
            return cls(ready.problem.name, ready.optimizer, ready.seed, ready.problem.steps, initial, signature)
        cell = cls.read(path)
        if cell.signature != signature:
            raise ValueError(
                f"expected {path} to hold runs of '{signature}', received '{cell.signature}': the task has changed; "
                "delete the file or name another folder with --cache"
            )
        return cell

    @classmethod
    def read(cls, path: Path) -> Cell:
        """From its file."""
        values = json.loads(path.read_text(encoding="utf-8"))
        for name in ("runs", "others"):
            values[name] = {key: _run(value) for key, value in values[name].items()}
        return cls(**values)

    def write(self, folder: Path) -> None:
        """To its file, at once or not at all."""
        path = cell_path(folder, self.task, self.optimizer, self.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(asdict(self), default=float), encoding="utf-8")
        beside.replace(path)

    def at(self, ready: Ready, rate: float) -> Trained:
        """The run at exactly this rate, trained now where it is not known."""
        key = repr(float(rate))
        if key not in self.runs:
            self.runs[key] = train(ready, rate)
        return self.runs[key]

    @property
    def best(self) -> Trained:
        """The run with the lowest held-out loss, of the grid or proposed."""
        return min(self.runs.values(), key=lambda run: run.loss)

    @property
    def best_of_grid(self) -> Trained:
        return min((self.runs[repr(rate)] for rate in self.grid), key=lambda run: run.loss)

    def regret(self, loss: float) -> float:
        """(L - L*) / (L0 - L*), from 0 to 1; 1 for a run that is no number.

        Raises:
            ValueError: no rate is better than not training at all.
        """
        lowest = self.best.loss
        if not self.initial > lowest:
            raise ValueError(
                f"{self.task}, {self.optimizer}, seed {self.seed}: expected some rate to come below the first loss "
                f"{self.initial:.6g}, received {lowest:.6g} at best; mend the task"
            )
        if not math.isfinite(loss):
            return 1.0
        return min(1.0, max(0.0, (loss - lowest) / (self.initial - lowest)))


def cell_path(folder: Path, task: str, optimizer: str, seed: int) -> Path:
    """Where a cell is kept."""
    return folder / task / f"{optimizer}-{seed}.json"


def _run(values: dict[str, Any]) -> Trained:
    return Trained(**{**values, "curve": [(step, loss) for step, loss in values["curve"]]})


def fill_grid(ready: Ready, cell: Cell) -> None:
    """Train at every rate of the grid; where an end wins, go on beyond it."""
    rates = cell.grid or grid_rates(ready.optimizer)
    for rate in rates:
        cell.at(ready, rate)
    cell.grid = sorted(rates)
    for _ in range(_MORE):
        best = cell.best_of_grid.rate
        if best not in (cell.grid[0], cell.grid[-1]):
            return
        low, high = cell.grid[:2] if best == cell.grid[0] else cell.grid[:-3:-1]
        beyond = float(f"{low * low / high:.6g}")
        cell.at(ready, beyond)
        cell.grid = sorted([*cell.grid, beyond])
