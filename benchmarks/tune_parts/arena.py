"""What all contenders share: the problems, the space, and training one setting with looks on the way."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

import fogline
from fogline.descent.optimizers import build, spec_of
from fogline.descent.prepare import begin
from fogline.descent.schedules import curve
from fogline.descent.scoring import Scorer
from fogline.descent.step import EagerStep, Machine

STEPS = 120
"""Of a whole trial."""
LOOKS = 9
BUDGETS = (10, 20, 40)
"""Trials' worth of steps at which the best is compared."""
SCORED = ("mixture", "waves", "skipgram", "tiles", "sensors", "valley", "spots", "delayed")
CALIBRATION = ("teacher", "mlp_diabetes", "friedman", "cnn_groupnorm", "lstm_waves", "sorting")
"""Methods and constants were chosen on these; the others were scored once, at the end."""
FIRST_SEED = {"scored": 10, "calibration": 0}
"""Of the seeds; those below 10 of the scored problems were used up by earlier methods."""

LR = (1e-5, 1.0)
DECAY = (1e-6, 1e-1)
CHOICES: dict[str, list[Any]] = {
    "optimizer": ["adamw", "momentum"],
    "batch_size": [16, 32, 64, 128],
    "schedule": ["linear", "cosine", "constant"],
}
"""The space, the same for all: learning rate and decay by their logarithm, and these."""


@dataclass(frozen=True)
class Event:
    """Something a search came to know.

    Attributes:
        steps: all training steps it had taken by then.
        loss: held-out.
    """

    steps: int
    loss: float


def space() -> dict[str, Any]:
    """The space as Fogline writes it."""
    return {"lr": fogline.log(*LR), "weight_decay": fogline.log(*DECAY), **CHOICES}


def base(seed: int) -> fogline.Recipe:
    """What no contender chooses."""
    return fogline.Recipe(duration=f"{STEPS}st", seed=seed, device="cpu", step="eager")


class Arena:
    """Trains settings of one task, all from the same first weights.

    Args:
        task: the same for all contenders.
        seed: of the order of the data.
    """

    def __init__(self, task: fogline.Task, seed: int) -> None:
        self.task, self.seed = task, seed
        self.start = begin(task, base(seed).replace(lr=1.0))
        assert self.start.opened.valid is not None
        self.scorer = Scorer(self.start.opened.valid, {}, 4096, torch.device("cpu"))

    def first(self) -> float:
        """The held-out loss before training."""
        return self.scorer(self.start.objective)["loss"]

    def looks(self, setting: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
        """(Steps taken, held-out loss) at every ninth. Ends early where a step is not finite."""
        start = self.start
        objective = replace(start.objective, model=copy.deepcopy(start.objective.model))
        batches = replace(start.batches, batch_size=setting["batch_size"])
        name, decay = setting["optimizer"], setting["weight_decay"]
        fused = "fused" if "fused" in spec_of(name).implementations else None
        optimizer = build(objective.model, name, 1.0, weight_decay=decay, implementation=fused)
        step = EagerStep(Machine(objective, optimizer, torch.device("cpu"), seed=self.seed), batches, deferred=False)
        warmup = 0.0 if setting["schedule"] == "constant" else 0.05  # as a recipe resolves it
        rate, every = curve(setting["schedule"], STEPS, warmup=warmup), math.ceil(STEPS / LOOKS)
        for number, batch in enumerate(islice(batches.stream(0), STEPS), 1):
            if step.take(number - 1, batch, setting["lr"] * rate(number - 1)).finite is False:
                yield number, math.inf
                return
            if number % every == 0 or number == STEPS:
                yield number, self.scorer(objective)["loss"]


def best_by(events: list[Event], budget: int) -> float:
    """The lowest loss that was known when so many trials' worth of steps were spent."""
    return min((event.loss for event in events if event.steps <= budget * STEPS), default=math.inf)
