"""What is tried next, in closed form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from fogline._tune.plan import Plan
from fogline._tune.pruning import Halving, goes_on
from fogline._tune.sampling import OPENING, WHOLE, Sampler, opening
from fogline._tune.space import RATE, read_space
from programs.searches import RECIPE, line_task

SPACE = {
    RATE: FloatDistribution(1 / 30, 30.0, log=True),
    "width": IntDistribution(4, 64, log=True),
    "optimizer": CategoricalDistribution(["adamw", "momentum"]),
}
COMPLETE = optuna.trial.TrialState.COMPLETE
USUAL = {RATE: 1.0, "width": 16, "optimizer": "momentum"}


def test_the_first_trial_is_the_usual_one() -> None:
    assert opening(0, SPACE, USUAL, 4) == USUAL


def test_the_opening_fills_ranges_evenly() -> None:
    """Of an additive recurrence any 64 points in a row lie nearly as evenly as they can."""
    points = [opening(number, SPACE, USUAL, 1) for number in range(1, 65)]
    low = sum(point["width"] < 16 for point in points)
    assert abs(low - 32) <= 3


def test_the_opening_takes_its_turn_through_rates_and_choices() -> None:
    """Alone with every trial, together with every program; high rates are seen to their end for both optimizers."""
    alone = [opening(number, SPACE, USUAL, 1) for number in range(8)]
    assert [each["optimizer"] for each in alone] == ["momentum", "adamw"] * 4
    together = [opening(number, SPACE, USUAL, 4) for number in range(8)]
    assert [each["optimizer"] for each in together] == ["momentum"] * 4 + ["adamw"] * 4
    for trials in (alone, together):
        assert [each[RATE] for each in trials] == list(OPENING)
        assert {trials[number]["optimizer"] for number in WHOLE} == {"momentum", "adamw"}
        assert {trials[number][RATE] for number in WHOLE} == {max(OPENING)}


def plan(method: str = "gp") -> Plan:
    """Of a search whose trials are made by formula."""
    space = read_space({"lr": "auto"}, RECIPE, None)
    return Plan(line_task(), RECIPE, space, Path("none"), None, None, None, method, "asha", 1)


def search(method: str, loss: Any, count: int) -> list[optuna.trial.FrozenTrial]:
    """A search over the space above; ``loss(values, part)`` is that of a trial after ninths of it."""
    sampler = Sampler(plan(method), SPACE, USUAL)
    study = optuna.create_study(sampler=sampler, pruner=Halving(sampler))
    for _ in range(count):
        trial = study.ask(SPACE)
        for part in (1, 3, 9):
            trial.report(loss(trial.params, part), part)
            if part < 9 and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, loss(trial.params, 9))
    return study.get_trials()


def bowl(values: dict[str, Any], part: int) -> float:
    """Lowest, at 0, for momentum at 4 times the measured rate and a width of 32."""
    off = math.log(values[RATE] / 4) ** 2 + math.log(values["width"] / 32) ** 2 / 4
    return off + (values["optimizer"] == "adamw") + 10 / part - 10 / 9


def test_the_lowest_place_of_a_bowl_is_found() -> None:
    found, by_chance = (
        min(trial.value for trial in search(method, bowl, 24) if trial.state == COMPLETE) for method in ("gp", "random")
    )
    assert found < min(0.05, by_chance / 5)


def slow(values: dict[str, Any], part: int) -> float:
    """The higher the rate, the worse at first and the better at the end."""
    rate = math.log(values[RATE])
    return rate if part == 1 else -rate


def test_slow_starters_go_on_once_it_is_known_what_they_come_to() -> None:
    """Compared by their losses at a ninth alone, high rates are not trained to their end."""
    whole = {
        method: [trial for trial in search(method, slow, 24) if trial.state == COMPLETE] for method in ("gp", "random")
    }
    assert max(trial.params[RATE] for trial in whole["gp"]) > 25
    assert max(trial.params[RATE] for trial in whole["random"]) < 10


def test_the_range_that_was_given_is_kept() -> None:
    sampler = Sampler(plan(), SPACE, USUAL, lambda values: (0.5, 3.0 if values["optimizer"] == "adamw" else 2.0))
    study = optuna.create_study(sampler=sampler)
    for _ in range(12):
        trial = study.ask(SPACE)
        assert 0.5 <= trial.params[RATE] <= (3.0 if trial.params["optimizer"] == "adamw" else 2.0)
        study.tell(trial, -trial.params[RATE])


def test_about_a_share_goes_on() -> None:
    losses = [0.1 * k for k in range(1, 10)]
    assert [goes_on(loss, losses, 1 / 3) for loss in losses] == [True] * 3 + [False] * 6
    assert goes_on(5.0, [5.0], 1 / 3)
    assert not goes_on(5.0, [5.0, 4.0, 3.0], 1 / 3)
