"""Fogline and its peers: each searches one problem until its budget is used up and says what it knew when."""

from __future__ import annotations

import math
import random
import tempfile
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

import fogline
from tune_parts import arena
from tune_parts.arena import BUDGETS, LOOKS, STEPS, Event

_ALL = BUDGETS[-1] * STEPS


def fogline_tune(task: fogline.Task, seed: int, **options: Any) -> list[Event]:
    """``fogline.tune`` as it is. Members of a shared program are counted as if each had trained alone, measuring the
    rates before everything else, and what a program came to know at its end."""
    with tempfile.TemporaryDirectory() as runs:
        tuned = fogline.tune(
            task, arena.space(), recipe=arena.base(seed), budget=BUDGETS[-1], runs=runs, progress=False, **options
        )
        rows = tuned.trials
        attributes = tuned.study.user_attrs
    total = sum(int(each["steps"]) for name, each in attributes.items() if name.startswith("rate/"))
    events, at = [], 0
    while at < len(rows):
        group = rows[at : at + rows[at]["together"]]
        total += sum(row["steps"] for row in group)
        losses = [loss for row in group for _, loss in row["curve"] if loss is not None]
        events.append(Event(total, min(losses, default=math.inf)))
        at += len(group)
    return events


def _whole(
    task: fogline.Task, seed: int, ask: Callable[[], dict[str, Any]], tell: Callable[[float], None]
) -> list[Event]:
    """Trials trained to their end, one after another."""
    events, total, trained = [], 0, arena.Arena(task, seed)
    while total < _ALL:
        seen = list(trained.looks(ask()))
        best = min((loss for _, loss in seen if math.isfinite(loss)), default=math.inf)
        total += seen[-1][0]
        tell(best)
        events.append(Event(total, best))
    return events


def optuna_tpe(task: fogline.Task, seed: int) -> list[Event]:
    """Optuna with its default sampler, TPE; no pruning."""
    return _optuna(task, seed, lambda optuna: optuna.samplers.TPESampler(seed=seed))


def random_search(task: fogline.Task, seed: int) -> list[Event]:
    """Settings drawn at random; no pruning."""
    return _optuna(task, seed, lambda optuna: optuna.samplers.RandomSampler(seed=seed))


def _optuna(task: fogline.Task, seed: int, make: Callable[[Any], Any]) -> list[Event]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=make(optuna))
    trials: list[Any] = []

    def ask() -> dict[str, Any]:
        trial = study.ask()
        trials.append(trial)
        return {
            "lr": trial.suggest_float("lr", *arena.LR, log=True),
            "weight_decay": trial.suggest_float("weight_decay", *arena.DECAY, log=True),
            **{name: trial.suggest_categorical(name, choices) for name, choices in arena.CHOICES.items()},
        }

    def tell(loss: float) -> None:
        # A setting that broke is told as worse than anything, since Optuna takes no infinity from TPE's peers.
        study.tell(trials[-1], loss if math.isfinite(loss) else 1e9)

    return _whole(task, seed, ask, tell)


def ray_asha(task: fogline.Task, seed: int) -> list[Event]:
    """Ray Tune's ASHAScheduler over its own random space, driven trial by trial in this process."""
    warnings.simplefilter("ignore")
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    random.seed(seed)
    np.random.seed(seed)
    space = {"lr": tune.loguniform(*arena.LR), "weight_decay": tune.loguniform(*arena.DECAY)}
    space |= {name: tune.choice(choices) for name, choices in arena.CHOICES.items()}
    scheduler = ASHAScheduler(metric="loss", mode="min", max_t=LOOKS, grace_period=1, reduction_factor=3)
    events, total, number, trained = [], 0, 0, arena.Arena(task, seed)
    while total < _ALL:
        trial: Any = SimpleNamespace(trial_id=f"{number:05d}")
        number += 1
        scheduler.on_trial_add(None, trial)
        before = 0
        for part, (steps, loss) in enumerate(trained.looks({n: d.sample() for n, d in space.items()}), 1):
            total, before = total + steps - before, steps
            events.append(Event(total, loss if math.isfinite(loss) else math.inf))
            if scheduler.on_trial_result(None, trial, {"training_iteration": part, "loss": loss}) == "STOP":
                break
    return events


CONTENDERS: dict[str, Callable[..., list[Event]]] = {
    "Fogline": fogline_tune,
    "Optuna TPE": optuna_tpe,
    "random search": random_search,
    "Ray Tune ASHA": ray_asha,
}
