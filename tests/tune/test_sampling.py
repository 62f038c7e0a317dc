"""What is tried next, in closed form."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from fogline._tune.sampling import NEAR, goes_on, opening
from fogline._tune.space import RATE

SPACE = {
    RATE: FloatDistribution(1 / 30, 30.0, log=True),
    "width": IntDistribution(4, 64, log=True),
    "optimizer": CategoricalDistribution(["adamw", "momentum"]),
}
USUAL = {RATE: 1.0, "width": 16, "optimizer": "momentum"}


def test_the_first_trial_is_the_usual_one() -> None:
    assert opening(0, SPACE, USUAL) == USUAL


def test_the_opening_fills_the_space_evenly() -> None:
    """Of an additive recurrence any 64 points in a row lie nearly as evenly as they can."""
    points = [opening(number, SPACE, USUAL) for number in range(1, 65)]
    counts = Counter(point["optimizer"] for point in points)
    assert abs(counts["adamw"] - counts["momentum"]) <= 4
    low = sum(point["width"] < 16 for point in points)
    assert abs(low - 32) <= 3
    within = sum(1 / NEAR < point[RATE] < NEAR for point in points)
    assert within / 64 == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.04)  # of a normal distribution


def test_about_a_share_goes_on() -> None:
    losses = [0.1 * k for k in range(1, 10)]
    assert [goes_on(loss, losses, 1 / 3) for loss in losses] == [True] * 3 + [False] * 6
    assert goes_on(5.0, [5.0], 1 / 3)
    assert not goes_on(5.0, [5.0, 4.0, 3.0], 1 / 3)
