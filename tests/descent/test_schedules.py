"""Schedules against their closed forms, and the properties every schedule keeps."""

import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fogline.descent.schedules import SCHEDULES, PlateauState, canonical, curve, update, warmup_steps

schedules = st.sampled_from(SCHEDULES)
totals = st.floats(1, 1e6)
warmups = st.one_of(st.just(0.0), st.floats(1e-6, 0.9), st.integers(1, 2000))


def multiplier(schedule: str, position: float, total: float, *, warmup: float = 0.0) -> float:
    return curve(schedule, total, warmup=warmup)(position)


def every_step(schedule: str, total: int, warmup: float = 0.0) -> list[float]:
    return [multiplier(schedule, step, total, warmup=warmup) for step in range(total)]


def test_closed_forms() -> None:
    assert every_step("constant", 3) == [1, 1, 1]
    assert every_step("linear", 5) == [1, 0.8, 0.6, 0.4, 0.2]
    assert every_step("linear", 10, warmup=4) == [0.2, 0.4, 0.6, 0.8, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert every_step("cosine", 4) == pytest.approx([(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)])
    assert every_step("wsd", 10) == pytest.approx([1] * 9 + [1 - math.sqrt(0.5)])
    one_cycle = every_step("one_cycle", 100)
    assert one_cycle[0] == pytest.approx(1 / 25)
    assert one_cycle[15] == pytest.approx((1 + 1 / 25) / 2)
    assert one_cycle[30] == 1
    assert one_cycle[65] == pytest.approx((1 + 1e-4) / 2)
    assert 1e-4 < one_cycle[99] < 2e-3


def test_warmup_is_a_share_or_a_number_of_steps() -> None:
    assert every_step("linear", 100, warmup=0.05) == every_step("linear", 100, warmup=5)
    assert warmup_steps(100, 0) == 0
    assert warmup_steps(100, 99) == 50


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_of_one_step_moves(schedule: str) -> None:
    for warmup in (0.0, 0.1, 0.9, 1, 100):
        assert 0 < multiplier(schedule, 0, 1, warmup=warmup) <= 1
    assert multiplier(schedule, 0, 0.25) > 0


@given(schedules, totals, st.floats(0, 2), warmups)
def test_always_positive_and_at_most_one(schedule: str, total: float, progress: float, warmup: float) -> None:
    assert 0 < multiplier(schedule, progress * total, total, warmup=warmup) <= 1 + 1e-12


@given(schedules, totals, st.floats(0, 1), st.floats(0, 1), warmups)
def test_rises_in_the_warmup_and_never_after(schedule: str, total: float, a: float, b: float, warmup: float) -> None:
    first, second = sorted((a, b))
    joint = warmup_steps(total, warmup or (0.3 if schedule == "one_cycle" else 0))
    joint = min(joint, total - 1)

    def at(position: float) -> float:
        return multiplier(schedule, position, total, warmup=warmup)

    assert at(first * joint) <= at(second * joint) + 1e-12
    after = total - joint
    assert at(joint + first * after) >= at(joint + second * after) - 1e-12


@given(schedules, st.floats(10, 1e6), st.floats(0.01, 0.9))
def test_continuous_where_the_warmup_ends(schedule: str, total: float, warmup: float) -> None:
    joint = warmup_steps(total, warmup)
    before, after = (multiplier(schedule, joint * (1 + side), total, warmup=warmup) for side in (-1e-9, 1e-9))
    assert before == pytest.approx(1, abs=1e-4)
    assert after == pytest.approx(1, abs=1e-4)


@given(schedules, st.integers(2, 500), warmups)
def test_past_the_end_the_last_step_is_kept(schedule: str, total: int, warmup: float) -> None:
    last = multiplier(schedule, total - 1, total, warmup=warmup)
    assert multiplier(schedule, total + 7, total, warmup=warmup) == last


def test_names() -> None:
    assert canonical("One-Cycle") == "one_cycle"
    with pytest.raises(ValueError, match=r"unknown schedule 'cosin'.*cosine"):
        multiplier("cosin", 0, 10)
    with pytest.raises(ValueError, match="unknown schedule None"):
        canonical(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("warmup", [-0.1, math.nan, math.inf, True])
def test_warmup_out_of_range(warmup: float) -> None:
    with pytest.raises(ValueError, match="expected warmup"):
        multiplier("linear", 0, 10, warmup=warmup)


def run_plateau(scores: list[float]) -> list[PlateauState]:
    states = [PlateauState()]
    for score in scores:
        states.append(update(states[-1], score, patience=2))
    return states


def test_plateau_cuts_after_patience_and_not_below_the_floor() -> None:
    factors = [state.factor for state in run_plateau([1.0] * 20)]
    assert factors[:8] == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01])
    assert factors[-1] == 1e-4


def test_plateau_ignores_nan_and_keeps_json() -> None:
    states = run_plateau([math.nan, 2.0, math.nan, -1.0, -1.0005])
    assert states[1] == PlateauState()
    assert states[-1] == PlateauState(best=-1.0, waited=1)
    assert PlateauState(**json.loads(json.dumps(asdict(states[-1])))) == states[-1]


@given(st.lists(st.floats(-1e3, 1e3).filter(lambda x: x == 0 or abs(x) > 1e-3), min_size=1, max_size=40))
def test_plateau_is_scale_free(scores: list[float]) -> None:
    plain = run_plateau(scores)
    for scale in (2.0**20, 2.0**-20):
        scaled = run_plateau([score * scale for score in scores])
        assert [(s.waited, s.factor) for s in scaled] == [(s.waited, s.factor) for s in plain]
