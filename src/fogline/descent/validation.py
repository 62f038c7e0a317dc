"""How a descent is judged on its way: by held-out data, or by its training loss where none is held out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean

import torch
from torch import Tensor, nn

from fogline.descent.optimizers import to_eval, to_train
from fogline.descent.randomness import REFRESH, seed_step
from fogline.descent.replica import own_buffers
from fogline.descent.schedules import update
from fogline.descent.scoring import normalisation_layers, refresh_statistics
from fogline.descent.state import Descent
from fogline.record.signals import numbers

_REFRESH_BATCHES = 50


def validate(descent: Descent) -> dict[str, float]:
    """Score the held-out data; remember the best weights; decide on early stopping and the plateau."""
    assert descent.scorer is not None
    counters, world = descent.counters, descent.world
    if world is not None:
        world.spread(own_buffers(descent.machine.objective.model))
    with evaluation_weights(descent):
        scores = descent.scorer(descent.machine.objective)
        loss = scores["loss"]
        better = math.isfinite(loss) and (counters.best_score is None or loss < counters.best_score)
        if better:
            descent.best = copied_state(descent.machine.objective.model)
    counters.waited = 0 if better else counters.waited + 1
    if better:
        counters.best_score, counters.best_step = loss, descent.step
    if descent.recipe.schedule == "plateau" and descent.step:
        counters.plateau = update(counters.plateau, loss)
    counters.validated = descent.step
    if world is not None:
        world.agree(f"the validation of step {descent.step}")
    descent.validated_at = descent.clock()
    descent.scores = scores
    descent.store.scores(descent.step, "valid", scores)
    check_length(descent, loss)
    descent.stopped_early = descent.recipe.patience is not None and counters.waited >= descent.recipe.patience
    if descent.stopped_early:
        descent.store.event(descent.step, "early_stop", f"no better held-out loss for {counters.waited} validations")
    return scores


def check_training(descent: Descent) -> None:
    """Without held-out data an open-ended run is judged by its training loss, as often as it would be validated."""
    if descent.since_check and descent.every is not None and descent.step % descent.every == 0:
        finite = [loss for loss in numbers(descent.since_check) if math.isfinite(loss)]
        check_length(descent, fmean(finite) if finite else math.nan)
        descent.since_check = []


def check_length(descent: Descent, loss: float) -> None:
    """Let an open-ended run know its end, where its losses say so."""
    why = descent.length.check(descent.step, loss)
    if why is not None:
        descent.store.event(
            descent.step, "cool_down", f"{why}: {(descent.length.total or 0) - descent.step} more steps"
        )


def copied_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights and buffers by name, as they are now."""
    return {name: value.detach().clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}


@contextmanager
def evaluation_weights(descent: Descent) -> Iterator[None]:
    """The weights that are judged and kept: averaged ones where the recipe or the optimizer averages."""
    machine, average = descent.machine, descent.average
    if average is None:
        to_eval(machine.optimizer)
        try:
            yield
        finally:
            to_train(machine.optimizer)
        return
    kept = [value.detach().clone() for value in (*machine.parameters, *machine.buffers)]
    with torch.no_grad():
        torch._foreach_copy_([p.data for p in machine.parameters], average)
    try:
        if normalisation_layers(machine.objective.model):
            seed_step(machine.seed, descent.step, REFRESH, machine.device)
            count = min(descent.batches.steps_per_epoch or _REFRESH_BATCHES, _REFRESH_BATCHES)
            refresh_statistics(machine.objective, descent.batches.stream(0), count)
        yield
    finally:
        with torch.no_grad():
            for value, old in zip((*machine.parameters, *machine.buffers), kept, strict=True):
                value.data.copy_(old)
