"""The verdict: how a descent ended, decided by tests without units.

Every test compares numbers of the same unit, so multiplying the loss by any positive number changes nothing. The
constants are shares and numbers of standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fogline.data.source import Batch
from fogline.descent.objective import Objective, mode
from fogline.verdict import Judgement, Verdict

_BLOCKS = 10
_SIGNIFICANT = 3.0  # standard errors
_SMALL_GAIN = 0.01  # of what the run has gained in all
_NOTHING = 1e-8  # of what the run has gained: the rounding of float32 alone is as much
_FAR = 3.0  # lengths of the path that was walked
_MANY = 3.0  # times what the run has gained
_VISIBLE = 0.1  # of what the run has gained
_AGREED = 0.5  # of the gradient is signal
_DEAD_SHARE = 0.5
_DEAD = 1e-6  # of the largest root mean square gradient of a layer
_EXPLODED = 10.0

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Slope:
    """What the weights that were kept would still gain, measured at the end on a few batches.

    Attributes:
        gain: largest fall of the loss along the negative gradient, by line search, on batches it does not come from; a
            fall within two standard errors of none counts as none.
        signal: |mean gradient|^2, without the part that is noise, over the sum of both; 1 is all signal.
        dead: share of the parameters with a gradient of zero on every batch, or in a layer whose gradient is a
            millionth of that of the layer with the largest.
        cut: no weight matrix gets any gradient while some bias does: what goes in has no bearing on what comes out.
        distance: length of the best step of the line search; 0 where none gains.
        loss: mean loss of the batches.
    """

    gain: float
    signal: float
    dead: float
    distance: float
    loss: float
    cut: bool = False


def judge(
    losses: Numbers,
    rates: Numbers,
    held_out: Numbers,
    *,
    slope: Slope | None,
    refused: Numbers,
    path: float = 0.0,
    settled: bool = False,
) -> Judgement:
    """Decide how a run ended.

    Args:
        losses: training loss of every recorded step, in order; NaN where it was refused.
        rates: learning rate of the same steps.
        held_out: held-out losses in order, the first before training; may be empty.
        slope: what :func:`measure_slope` found at the end, or None.
        refused: 1 for each of those steps that was refused, else 0.
        path: length of the path of the weights, as far as it was measured; 0 where it was not.
        settled: it went on until nothing more was gained; what a cool-down gained at the end is no trend.

    Returns:
        The verdict with the statistics behind it.
    """
    evidence: dict[str, Any] = {"steps": len(losses)}
    evidence["refused_share"] = float(refused[-max(10, len(refused) // 10) :].mean()) if len(refused) else 0.0
    finite = losses[np.isfinite(losses)]
    start, late = (_start(finite), float(np.median(finite[-_window(len(finite), 0.1) :]))) if len(finite) else (0, 0)
    if evidence["refused_share"] > 0.5 or not len(finite):
        # A loss that grew without bound until it overflowed is a step too long, not a NaN from somewhere.
        exploded = len(finite) > 2 and finite[-1] - start > _EXPLODED * abs(start)
        return Judgement(Verdict.DIVERGED if exploded else Verdict.NONFINITE, evidence)
    noise = _noise(finite)
    evidence |= {"loss_at_start": start, "loss_at_end": late, "noise": noise}
    if late - start > max(_SIGNIFICANT * noise, _SMALL_GAIN * abs(start)):
        # A rise within the noise of single batches is jitter; one beyond it is not.
        return Judgement(Verdict.DIVERGED, evidence)
    gained = max(start - late, 0.0)
    overfit = _overfit(held_out, finite)
    evidence |= overfit
    if overfit.get("held_out_rise_share", 0.0) > 0.1 and overfit["rise_significance"] > _SIGNIFICANT:
        return Judgement(Verdict.OVERFIT, evidence)
    trend = _trend(finite, gained)
    evidence |= trend
    improving = not settled and trend["significance"] > _SIGNIFICANT and trend["gain_share"] > _SMALL_GAIN
    # Of a few steps no fall is sure. Where there may be one, and batches agree on the way, or the run has come further
    # than single batches differ, it is none that has ended.
    agreed = gained > _SIGNIFICANT * noise if slope is None else slope.signal > _AGREED
    moving = improving or (not settled and agreed and _most(trend) > _VISIBLE)
    if slope is None:
        return Judgement(Verdict.IMPROVING if moving else Verdict.NOISE_FLOOR, evidence)
    if len(finite) < 2:
        moving, path = True, 0.0  # of a single step nothing is known but what is left
    return _by_slope(slope, evidence, improving, moving, gained, noise, rates, path)


def _by_slope(
    slope: Slope,
    evidence: dict[str, Any],
    improving: bool,
    moving: bool,
    gained: float,
    noise: float,
    rates: Numbers,
    path: float,
) -> Judgement:
    scale = max(gained, _SMALL_GAIN * abs(slope.loss), 1e-300)
    share = slope.gain / scale
    far = slope.distance / path if path > 0 else 0.0
    evidence |= {
        "gain_left_share": share,
        "gradient_signal": slope.signal,
        "dead_share": slope.dead,
        "best_step_over_path": far,
    }
    annealed = bool(len(rates)) and rates[-1] < 0.1 * rates.max()
    if slope.cut or (slope.dead > _DEAD_SHARE and gained <= noise and slope.loss):
        return Judgement(Verdict.STALLED, evidence)  # the gradient does not reach the weights
    if share > (_MANY if moving else 1) and far > _FAR:
        return Judgement(Verdict.STALLED, evidence)  # one step would go further, and gain more, than the whole run
    if improving or (moving and share > _SMALL_GAIN):
        return Judgement(Verdict.IMPROVING, evidence)
    if not annealed and share > _NOTHING and slope.gain > _SMALL_GAIN * min(scale, abs(slope.loss)):
        # There is a fall, and steps of this length do not find it.
        return Judgement(Verdict.NOISE_FLOOR, evidence)
    return Judgement(Verdict.IMPROVING if share > _SMALL_GAIN else Verdict.CONVERGED, evidence)


def _window(count: int, share: float) -> int:
    return max(1, min(count, int(count * share)))


def _start(losses: Numbers) -> float:
    """The loss where the run began: of the first step, or of a few where single batches are noisy.

    A run that never again comes as low as its first step has left it at once: a few would hide where it was.
    """
    if len(losses) > 1 and losses[0] < losses[1:].min():
        return float(losses[0])
    return float(np.median(losses[: max(1, min(5, len(losses) // 50))]))


def _noise(losses: Numbers) -> float:
    """Standard deviation of the loss from batch to batch, by successive differences, which a trend does not move."""
    if len(losses) < 3:
        return 0.0
    tail = losses[-_window(len(losses), 0.3) :]
    differences = np.abs(np.diff(tail if len(tail) > 2 else losses))
    return float(np.median(differences) / (0.6745 * math.sqrt(2)))


def _trend(losses: Numbers, gained: float) -> dict[str, float]:
    """Slope over the last third from the means of blocks, with its standard error (least squares)."""
    tail = losses[-max(_BLOCKS, len(losses) // 3) :]
    if len(tail) < 4:
        fell = float(losses[0] - losses[-1])
        return {"significance": math.inf if fell > 0 else 0.0, "gain_share": 1.0 if fell > 0 else 0.0}
    blocks = np.array([block.mean() for block in np.array_split(tail, min(_BLOCKS, len(tail)))])
    x = np.arange(len(blocks)) - (len(blocks) - 1) / 2
    slope = float((x * blocks).sum() / (x * x).sum())
    rest = blocks - blocks.mean() - slope * x
    error = math.sqrt(float((rest * rest).sum()) / (len(blocks) - 2) / float((x * x).sum()))
    fall = -slope * len(blocks)
    return {
        "significance": fall / (error * len(blocks)) if error > 0 else (math.inf if fall > 0 else 0.0),
        "gain_share": fall / gained if gained > 0 else 0.0,
    }


def _most(trend: dict[str, float]) -> float:
    """The largest share of the gain that the fall of the last third may well be: two standard errors above it."""
    share, significance = trend["gain_share"], trend["significance"]
    return share + 2 * abs(share / significance) if significance else share


def _overfit(held_out: Numbers, losses: Numbers) -> dict[str, float]:
    """How far the held-out loss rose from its best, as a share of its gain, while the training loss went on falling."""
    values = held_out[np.isfinite(held_out)]
    if len(values) < 4:
        return {}
    best = int(values.argmin())
    after = values[best:]
    training = losses[int(len(losses) * best / len(values)) :]
    quarter = max(1, len(training) // 4)
    fell = float(training[:quarter].mean() - training[-quarter:].mean()) if len(training) > 1 else 0.0
    # Where the held-out loss never got better, what training gained is the measure.
    gained = float(values[0] - values[best]) or fell
    if len(after) < 3 or fell <= 0:
        return {}
    rise = float(np.median(after[-max(1, len(after) // 4) :]) - values[best])
    # Between the gain and the best loss: a doubling of a loss of nearly nothing is nothing.
    scale = math.sqrt(gained * min(gained, abs(float(values[best])))) if values[best] else gained
    wiggle = _noise(after) if len(after) > 3 else 0.0
    significance = rise / wiggle if wiggle > 0 else (math.inf if rise > 0 else 0.0)
    return {"held_out_rise_share": rise / scale, "rise_significance": significance}


def measure_slope(
    objective: Objective, batches: Sequence[Batch], stride: float, check: Callable[[], None] = lambda: None
) -> Slope:
    """Gradient and line search at the weights as they are, on a few training batches, in evaluation mode.

    Weights, buffers, ``.grad`` and random states are left bitwise as they were (the caller keeps the random states).

    Args:
        objective: model and loss.
        batches: a few training batches; the more, the better noise is told from signal.
        stride: length of the first step tried, such as the run's own; longer and shorter ones follow.
        check: called between batches; may raise to stop.
    """
    parameters = [p for p in objective.model.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in parameters]
    sums = [torch.zeros_like(p) for p in parameters]
    squares, losses = 0.0, []
    # The line search is scored on batches its direction does not come from, or noise would pass for a gain.
    sources = batches[: max(1, len(batches) // 2)]
    scored = batches[len(sources) :] or batches
    with mode(objective.model, training=False):
        for batch in sources:
            check()
            loss = objective(batch)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            found = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
            torch._foreach_add_(sums, found)
            squares += sum(float(g.double().square().sum()) for g in found)
            losses.append(float(loss.detach()))
        count = len(sources)
        torch._foreach_div_(sums, count)
        size = sum(float(g.double().square().sum()) for g in sums)
        gain, length = 0.0, 0.0
        if size > 0 and math.isfinite(size):
            # Nearer than this, the fall foretold drowns in the digits that the type of the outputs has.
            seen = 4 * torch.finfo(objective.autocast or parameters[0].dtype).eps * abs(float(np.mean(losses))) / size
            first = max(stride / math.sqrt(size), seen)
            gain, length = _search(objective, scored, parameters, kept, sums, first, check)
    noise = max(0.0, (squares / count - size) / max(1, count - 1))
    return Slope(
        gain=gain,
        signal=max(0.0, size - noise) / size if size > 0 else 0.0,
        dead=_dead_share(sums),
        distance=length * math.sqrt(size),
        loss=float(np.mean(losses)),
        cut=_is_cut(sums),
    )


def _is_cut(gradients: Sequence[torch.Tensor]) -> bool:
    matrices, biases = [g for g in gradients if g.ndim > 1], [g for g in gradients if g.ndim <= 1]
    return bool(matrices) and not any(bool(g.any()) for g in matrices) and any(bool(g.any()) for g in biases)


def _dead_share(gradients: Sequence[torch.Tensor]) -> float:
    sizes = [float(g.double().square().mean().sqrt()) for g in gradients]
    live = [int((g != 0).sum()) if size > _DEAD * max(sizes) else 0 for g, size in zip(gradients, sizes, strict=True)]
    return 1 - sum(live) / max(1, sum(g.numel() for g in gradients))


def _search(
    objective: Objective,
    batches: Sequence[Batch],
    parameters: Sequence[torch.nn.Parameter],
    kept: Sequence[torch.Tensor],
    direction: Sequence[torch.Tensor],
    first: float,
    check: Callable[[], None],
) -> tuple[float, float]:
    """Double or halve the step along the negative gradient while that helps; (fall of the loss, step)."""

    here = np.array([float(objective.value(batch)) for batch in batches])

    def fall(length: float) -> float:
        check()
        with torch.no_grad():
            for parameter, start, slope in zip(parameters, kept, direction, strict=True):
                parameter.copy_(start - length * slope)
        values = np.array([float(objective.value(batch)) for batch in batches])
        if not np.isfinite(values).all():
            return -math.inf
        falls = here - values
        error = float(falls.std(ddof=1)) / math.sqrt(len(falls)) if len(falls) > 1 else 0.0
        return float(falls.mean()) if falls.mean() > 2 * error else min(0.0, float(falls.mean()))

    best, length = 0.0, 0.0
    try:
        trial, gain = first, fall(first)
        factor = 4.0 if gain > 0 else 0.25
        for _ in range(12):
            if gain > best:
                best, length = gain, trial
            elif best > 0:
                break
            trial *= factor
            gain = fall(trial)
    finally:
        with torch.no_grad():
            for parameter, start in zip(parameters, kept, strict=True):
                parameter.copy_(start)
    return best, length
