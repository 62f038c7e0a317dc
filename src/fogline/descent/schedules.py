"""Learning-rate schedules: pure functions of a position in the run, nothing to save.

Steps count from 0 and a run has `total` of them, so its steps are 0 .. total - 1. Every decaying schedule reaches its
end at position `total`, one step after the last: no step is wasted on a rate of zero. Both numbers may be fractions, so
that a run measured in minutes asks with `position = progress * expected_steps, total = expected_steps`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from fogline.errors import unknown
from fogline.recipe import SCHEDULES

ONE_CYCLE_RISE, ONE_CYCLE_START, ONE_CYCLE_END = 0.3, 1 / 25, 1e-4
WSD_DECAY = 0.2
_PLATEAU_CUT, _PLATEAU_MARGIN, _PLATEAU_LOWEST = 0.1, 1e-3, 1e-4


def canonical(schedule: str) -> str:
    """The name in `SCHEDULES` for a name as users write it.

    Raises:
        ValueError: no such schedule, with the nearest known name.

    Example:
        >>> canonical("one-cycle")
        'one_cycle'
    """
    name = schedule.lower().replace("-", "_") if isinstance(schedule, str) else schedule
    if name not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    return name


def warmup_steps(total: float, warmup: float) -> float:
    """The length of the warm-up in steps: a share of the run below 1, a number of steps from 1; at most half the run.

    Example:
        >>> warmup_steps(200, 0.05), warmup_steps(200, 30), warmup_steps(200, 500)
        (10.0, 30, 100.0)
    """
    if isinstance(warmup, bool) or not 0 <= warmup < math.inf:
        raise ValueError(
            "expected warmup to be a share of the run (0 <= warmup < 1) or a number of steps (>= 1), "
            f"received {warmup!r}"
        )
    return min(warmup * total if warmup < 1 else warmup, total / 2)


def curve(schedule: str, total: float, *, warmup: float = 0.0) -> Callable[[float], float]:
    """What the base learning rate is multiplied by, in (0, 1], as a function of the position in the run.

    With w warm-up steps, T = total and k = position, k held to at most T - 1:

    - while k < w: `(k + 1) / (w + 1)`, so the first step moves and the joint at k = w is 1;
    - constant, plateau: 1 (plateau is multiplied by `PlateauState.factor`);
    - linear: `(T - k) / (T - w)`, 1 / (T - w) at the last step (linear to zero,
      Defazio et al., 2023, arXiv:2310.07831);
    - cosine: `(1 + cos(pi (k - w) / (T - w))) / 2` (Loshchilov & Hutter, 2016, arXiv:1608.03983, without restarts);
    - one_cycle: half a cosine up from 1/25 over the first 30 % (over `warmup` where given), half a cosine down to 1e-4
      (Smith, 2017, arXiv:1708.07120, with the cosine legs of later practice);
    - wsd: 1, then `1 - sqrt((k - s) / (T - s))` from s = 0.8 T (warm-up, stable, decay; Haegele et al., 2024,
      arXiv:2405.18392).

    Args:
        schedule: one of `SCHEDULES`.
        total: steps of the whole run, whole or not; less than 1 counts as 1.
        warmup: share of the run (< 1) or steps (>= 1), at most half the run.

    Returns:
        A function of the steps done so far, whole or not.

    Raises:
        ValueError: unknown schedule, or a warm-up out of its range.

    Example:
        >>> linear, constant = curve("linear", 4), curve("constant", 8, warmup=3)
        >>> [linear(step) for step in range(4)], [constant(step) for step in range(5)]
        ([1.0, 0.75, 0.5, 0.25], [0.25, 0.5, 0.75, 1.0, 1.0])
    """
    name, total = canonical(schedule), max(total, 1.0)
    last = total - 1
    rise = warmup_steps(total, (warmup or ONE_CYCLE_RISE) if name == "one_cycle" else warmup)

    def up(position: float) -> float:
        if name == "one_cycle":
            return _half_cosine(ONE_CYCLE_START, 1.0, position / rise)
        return (position + 1) / (rise + 1)

    def down(position: float) -> float:
        if name == "linear":
            return (total - position) / (total - rise)
        if name == "cosine":
            return _half_cosine(1.0, 0.0, (position - rise) / (total - rise))
        if name == "one_cycle":
            return _half_cosine(1.0, ONE_CYCLE_END, (position - rise) / (total - rise))
        if name == "wsd":
            length = WSD_DECAY * total
            return 1 - math.sqrt(max(0.0, position - (total - length)) / length)
        return 1.0

    def at(position: float) -> float:
        if position > last:
            position = last
        return up(position) if position < rise else down(position)

    return at


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class PlateauState:
    """What the plateau schedule remembers; `dataclasses.asdict` of it is JSON, `PlateauState(**that)` the way back.

    Attributes:
        best: lowest score so far, None before the first.
        waited: scores since the last improvement or cut.
        factor: what to multiply the learning rate by.
    """

    best: float | None = None
    waited: int = 0
    factor: float = 1.0


def update(state: PlateauState, score: float, patience: int = 5) -> PlateauState:
    """The state after one more score (lower is better): cut the rate when it has not improved for a while.

    Better means below `best - 1e-3 |best|`; the margin is relative, so a score in other units gives the same decisions.
    NaN is never better. After more than `patience` scores without improvement the factor is multiplied by 0.1, down to
    1e-4.

    Example:
        >>> state = PlateauState()
        >>> for score in [1.0, 0.5, 0.5, 0.5, 0.5]:
        ...     state = update(state, score, patience=2)
        >>> state
        PlateauState(best=0.5, waited=0, factor=0.1)
    """
    if state.best is None:
        return state if math.isnan(score) else replace(state, best=float(score), waited=0)
    if score < state.best - _PLATEAU_MARGIN * abs(state.best):
        return replace(state, best=float(score), waited=0)
    if state.waited < patience:
        return replace(state, waited=state.waited + 1)
    return replace(state, waited=0, factor=max(_PLATEAU_LOWEST, state.factor * _PLATEAU_CUT))
