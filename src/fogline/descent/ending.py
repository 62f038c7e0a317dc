"""The end of a run: what there is still to gain, the best weights, their scores, the verdict."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from fogline.descent.ahead import LEAST, Slope, measure_slope
from fogline.descent.batches import split
from fogline.descent.confusion import Confusion, added_up
from fogline.descent.group import by_first, leads
from fogline.descent.guard import MOST as MOST_ROLLBACKS
from fogline.descent.interrupts import poll
from fogline.descent.randomness import PROBE, seed_everything
from fogline.descent.state import Descent
from fogline.descent.stopping import judge
from fogline.descent.validation import copied_state, evaluation_weights
from fogline.record.info import ending
from fogline.record.store import read_table
from fogline.verdict import Judgement, Verdict

_SLOPE_BATCHES, _SLOPE_ROWS, _SLOPE_SHARE = 8, 512, 50
_SHORT_LOOK, _LONG_LOOK = 16, 32  # gradients of a batch


def measured_end(descent: Descent) -> Slope | None:
    """What there is still to gain where the descent ended; without held-out data its weights are the ones to keep."""
    machine, model = descent.machine, descent.machine.objective.model
    seed_everything(machine.seed, descent.step, PROBE, machine.device)
    with evaluation_weights(descent):
        slope = None
        if all(p.dtype.is_floating_point for p in machine.parameters):
            with machine.recomputing():
                slope = _slope(descent)
        if descent.scorer is None or descent.best is None:
            descent.best = copied_state(model)
    return slope


def _slope(descent: Descent) -> Slope | None:
    """By one process for all: it is small."""
    if descent.sharded is not None:
        return None  # a gradient of a model in parts goes into its parameters, and nowhere else

    def measured() -> Any:
        batches = _some_batches(descent)
        if not batches:
            return None
        # What the run took is what a look ahead may take a part of: a quarter of a short one, a tenth of a long one.
        each = 2 * descent.step // len(batches)  # one half of them is learned from
        gradients = max(LEAST, min(each // 4, _SHORT_LOOK), min(each // 10, _LONG_LOOK))
        return asdict(measure_slope(descent.machine.objective, batches, _stride(descent), poll, gradients=gradients))

    found = by_first(descent.world, measured, "the slope at the end")
    return None if found is None else Slope(**found)


def finish(descent: Descent, info: dict[str, Any], slope: Slope | None) -> None:
    """Take the best weights, score them, judge the run."""
    machine, model = descent.machine, descent.machine.objective.model
    assert descent.best is not None
    model.load_state_dict(descent.best, strict=False)
    model.eval()
    if descent.length.open:
        length = f"{descent.step}st"
        info["recipe"]["duration"] = length
        info["resolved"]["duration"] |= {"value": length}
    if descent.scorer is not None:
        confusion = Confusion(machine.objective.loss, labels=info["task"]["kind"] == "classification")
        scores = descent.scorer(machine.objective, confusion.add)
        info["scores"] = scores | {"step": descent.counters.best_step}
        rows = confusion.rows()
        if descent.world is not None:
            rows = added_up(descent.world.gather(rows, "the confusion of classes"))
        descent.store.confusion(rows)
    if leads(descent.world):
        write_verdict(descent, info, _judged(descent, slope))


def _judged(descent: Descent, slope: Slope | None) -> Judgement:
    table = read_table(descent.folder, "steps")
    scores = read_table(descent.folder, "scores")
    held_out = np.array([row["value"] for row in scores if row["name"] == "loss"], dtype=np.float64)
    losses = table["loss"].astype(np.float64)
    refused = (~np.isfinite(losses) | ~np.isfinite(table["grad_norm"].astype(np.float64))).astype(np.float64)
    path = _stride(descent) * descent.step if descent.probe is not None else 0.0
    if descent.counters.rollbacks > MOST_ROLLBACKS:
        return Judgement(Verdict.DIVERGED, {"steps": descent.step, "rollbacks": descent.counters.rollbacks - 1})
    rates, settled = table["lr"].astype(np.float64), descent.length.settled
    return judge(losses, rates, held_out, slope=slope, refused=refused, path=path, settled=settled)


def _stride(descent: Descent) -> float:
    """Length of a typical step of the run, as it was probed; where it was not, that of plain gradient descent."""
    descent.recorder.flush()
    table = read_table(descent.folder, "steps")
    moved = table["update_norm"].astype(np.float64)
    if np.isfinite(moved).any():
        return float(np.nanmedian(moved))
    norms = table["grad_norm"].astype(np.float64)
    assert not isinstance(descent.recipe.lr, str)
    return descent.recipe.lr * (float(np.median(norms[np.isfinite(norms)])) if np.isfinite(norms).any() else 1.0)


def _some_batches(descent: Descent) -> list[Any]:
    # Of small batches more are needed to tell a fall from their noise, as far as the run was long enough for it.
    wanted = min(_SLOPE_ROWS // descent.batches.batch_size, descent.step // _SLOPE_SHARE)
    count = min(max(_SLOPE_BATCHES, wanted), descent.batches.steps_per_epoch or _SLOPE_BATCHES)
    stream = descent.batches.stream(0)
    size = -(-descent.batches.batch_size // descent.machine.parts)  # what the memory is known to hold
    return [piece for _ in range(count) for piece in split(next(stream), size)]


def write_verdict(descent: Descent, info: dict[str, Any], judgement: Judgement) -> None:
    """Write how the run ended into ``info`` and its ``run.json``."""
    descent.recorder.flush()
    info |= ending(
        judgement,
        steps=descent.step,
        refused=descent.counters.refused,
        seconds=descent.elapsed(),
        budget=descent.recorder.budget,
    )
    descent.store.write_info(info)
