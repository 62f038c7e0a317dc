"""How long one call takes, two programs against each other in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from statistics import median

_ROUNDS = 15
_ROUND_SECONDS = 0.02
_MARGIN = 0.03  # ratios nearer to one than this are no difference


@dataclass(frozen=True)
class Latency:
    """Time of one call, while both took turns: of each round the fastest call of either, of these the median.

    Attributes:
        float_us: of the float file, in microseconds.
        own_us: of the file in question.
        ratio: of float time to own time, the median over rounds: above one the file is faster than float.
        batch, threads, rounds: how it was measured.
        what: what the file is called in the verdict.
    """

    float_us: float
    own_us: float
    ratio: float
    batch: int
    threads: int
    rounds: int
    what: str = "int8"

    @property
    def verdict(self) -> str:
        """In words, which is faster here."""
        if self.ratio < 1 - _MARGIN:
            return f"{self.what} is slower here: {self.own_us:.0f} us a call, float {self.float_us:.0f} us"
        if self.ratio <= 1 + _MARGIN:
            return f"{self.what} is as fast as float here: {self.own_us:.0f} us a call, float {self.float_us:.0f} us"
        return (
            f"{self.what} is {self.ratio:.2f}x faster here: {self.own_us:.0f} us a call, float {self.float_us:.0f} us"
        )


def alternating(calls: Sequence[Callable[[], object]], rounds: int = _ROUNDS) -> list[list[float]]:
    """Microseconds of the fastest call of each program in each round, in which they take turns, call by call.

    >>> [len(times) for times in alternating([int, str], rounds=3)]
    [3, 3]
    """
    for call in calls:
        call()
    once = max(_timed(call) for call in calls)
    repeats = max(3, min(1000, int(_ROUND_SECONDS / max(once, 1e-7))))
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        lowest = [inf] * len(calls)
        for _ in range(repeats):
            for place, call in enumerate(calls):
                lowest[place] = min(lowest[place], _timed(call))
        for times, seconds in zip(found, lowest, strict=True):
            times.append(seconds * 1e6)
    return found


def _timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def compare(
    floating: Callable[[], object], own: Callable[[], object], *, batch: int, threads: int, what: str = "int8"
) -> Latency:
    """The latency of a program beside that of its float twin."""
    first, second = alternating([floating, own])
    ratio = median(a / b for a, b in zip(first, second, strict=True))
    return Latency(median(first), median(second), ratio, batch, threads, _ROUNDS, what)
