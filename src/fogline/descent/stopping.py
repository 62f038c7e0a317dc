"""The verdict: how a descent ended, decided by tests without units.

Every test compares numbers of the same unit, so multiplying the loss by any positive number changes nothing. The
constants are shares and numbers of standard errors.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fogline.descent.ahead import Slope
from fogline.verdict import Judgement, Verdict

_BLOCKS = 10
_SIGNIFICANT, _CLEARLY = 3.0, 2.0  # standard errors
_SMALL_GAIN = 0.01  # of what the run has gained in all
_NOTHING = 1e-8  # of what the run has gained: the rounding of float32 alone is as much
_FAR = 3.0  # lengths of the path that was walked
_MANY = 3.0  # times what the run has gained
_VISIBLE = 0.1  # of what the run has gained
_AGREED = 0.5  # of the gradient is signal
_DEAD_SHARE = 0.5
_FEW = 4  # steps
_WORTH = 0.02  # of what the run has gained: where as much more is foreseen, it has not ended
_EXPLODED = 10.0

Numbers = NDArray[np.float64]


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
        slope: what :func:`~fogline.descent.ahead.measure_slope` found at the end, or None.
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
    evidence["next_doubling_share"] = doubled = _next_doubling(losses, rates) / gained if gained > 0 else 0.0
    fell = ((_SIGNIFICANT, _SMALL_GAIN), (_CLEARLY, _VISIBLE))  # the more, the surer
    falling = any(trend["significance"] > sure and trend["gain_share"] > share for sure, share in fell)
    improving = not settled and (falling or doubled > _WORTH)
    # Of a few steps no fall is sure. Where there may be one, and batches agree on the way, or the run has come further
    # than single batches differ, it is none that has ended.
    agreed = gained > _SIGNIFICANT * noise if slope is None else slope.signal > _AGREED
    moving = improving or (not settled and agreed and _most(trend) > _VISIBLE)
    if slope is None:
        return Judgement(Verdict.IMPROVING if moving else Verdict.NOISE_FLOOR, evidence)
    if len(finite) < 2:
        moving, path = True, 0.0  # of a single step nothing is known but what is left
    return _by_slope(slope, evidence, improving, moving, gained, noise, rates, path, settled=settled)


def _by_slope(
    slope: Slope,
    evidence: dict[str, Any],
    improving: bool,
    moving: bool,
    gained: float,
    noise: float,
    rates: Numbers,
    path: float,
    *,
    settled: bool,
) -> Judgement:
    scale = max(gained, _SMALL_GAIN * abs(slope.loss), 1e-300)
    share, ahead = slope.gain / scale, slope.ahead / scale
    far = slope.distance / path if path > 0 else 0.0
    evidence |= {
        "gain_left_share": share,
        "gain_ahead_share": ahead,
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
    more = share > _SMALL_GAIN or (ahead > _WORTH and not settled)
    return Judgement(Verdict.IMPROVING if more else Verdict.CONVERGED, evidence)


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
    """Standard deviation of the loss from batch to batch near the end."""
    if len(losses) < 3:
        return 0.0
    tail = losses[-_window(len(losses), 0.3) :]
    return _scatter(tail if len(tail) > 2 else losses)


def _scatter(losses: Numbers) -> float:
    """Standard deviation from one to the next, by successive differences, which a trend does not move."""
    differences = np.abs(np.diff(losses))
    return float(np.median(differences) / (0.6745 * math.sqrt(2))) if len(differences) else 0.0


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


def _next_doubling(losses: Numbers, rates: Numbers) -> float:
    """What a run of twice the length would gain, by what its last two doublings did; 0 where these are not sure.

    The means of the last half, of the quarter before it and of the eighth before that fall by what two doublings bring.
    The next brings as much less again: exact for a loss that falls with a power of time, and too much for one that
    falls faster. A rate that falls takes noise away, in proportion to itself: what of the first fall may be of that, if
    all of the second is, does not count.
    """
    ends = [len(losses) // part for part in (8, 4, 2, 1)]
    means, errors, rated = [], [], []
    for a, b in pairwise(ends):
        finite = losses[a:b][np.isfinite(losses[a:b])]
        if len(finite) < _FEW:
            return 0.0
        means.append(float(finite.mean()))
        errors.append(_scatter(finite) / math.sqrt(len(finite)))
        rated.append(float(rates[a:b].mean()))
    falls = [before - after for before, after in pairwise(means)]
    if any(fall <= _CLEARLY * math.hypot(*pair) for fall, pair in zip(falls, pairwise(errors), strict=True)):
        return 0.0
    first, second = (before - after for before, after in pairwise(rated))
    quieter = max(0.0, first / second) if second > 0 else 0.0
    return max(0.0, min(falls[0] - quieter * falls[1], falls[1])) * min(1.0, falls[1] / falls[0])


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
