"""Lengths: fixed, in time, and open-ended until nothing more is gained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fogline
from fogline import Recipe, Task, Verdict
from fogline.descent.length import Length, most_steps
from programs.problems import again, counted, final_bits, recipe


def open_ended(**fields: object) -> Length:
    chosen = Recipe(lr=1.0, schedule="wsd", warmup=4, batch_size=10).replace(**fields)
    return Length(chosen, 10, 1000)


def test_an_open_ended_rate_rises_stays_and_falls_to_zero() -> None:
    length = open_ended()
    assert [length.multiplier(step, 0.0) for step in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert length.multiplier(5000, 0.0) == 1.0
    length.progress.checks = [(k, 1.0) for k in range(20)]
    assert length.check(400, 1.0) is not None
    assert length.total == 500
    falling = [length.multiplier(step, 0.0) for step in range(400, 500)]
    assert falling[0] == 1.0
    assert falling == sorted(falling, reverse=True)
    assert 0 < falling[-1] < 0.01
    assert length.over(500, 0.0)
    assert not length.over(499, 0.0)


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6])
def test_it_goes_on_while_there_is_something_to_gain(scale: float) -> None:
    """A loss of t ** -1/2 gains a share of sqrt(2) - 1 of what is left with each doubling: it ends late, not early."""
    length, ended = open_ended(), None
    for step in range(10, 20_000, 10):
        if length.check(step, scale * step**-0.5) is not None:
            ended = step
            break
    assert ended is not None
    assert 1000 < ended < most_steps(10, 1000)


def test_a_curve_that_is_flat_ends_soon_and_one_that_never_is_ends_at_the_most() -> None:
    flat, straight = open_ended(), open_ended()
    at = next(step for step in range(10, 5000, 10) if flat.check(step, 1.0 if step > 100 else 2.0))
    assert at == 300
    last = next(step for step in range(10, 20_000, 10) if straight.check(step, -float(step)))
    assert straight.total == pytest.approx(most_steps(10, 1000), rel=0.01)
    assert last * 1.25 == straight.total
    assert not straight.settled
    assert flat.settled


def test_a_nan_is_no_check() -> None:
    length = open_ended()
    assert length.check(10_000, float("nan")) is None
    assert length.progress.checks == []


def task(held_out: bool) -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(192, 4, generator=generator)
    y = x.sum(1, keepdim=True) + 0.5 * torch.randn(192, 1, generator=generator)

    def model() -> nn.Module:
        torch.manual_seed(2)
        return nn.Linear(4, 1)

    return Task(model, nn.MSELoss(), (x[:128], y[:128]), (x[128:], y[128:]) if held_out else None)


@pytest.mark.parametrize("held_out", [True, False])
def test_an_open_ended_run_ends_by_itself_and_says_how_long_it_was(held_out: bool, tmp_path: Path) -> None:
    chosen = Recipe(optimizer="momentum", lr=0.02, batch_size=16, duration="auto", step="eager")
    run = fogline.fit(task(held_out), chosen, runs=tmp_path)
    assert [event["kind"] for event in run.events].count("cool_down") == 1
    assert run.recipe.duration == f"{run.info['steps']}st"
    assert run.info["resolved"]["duration"]["value"] == run.recipe.duration
    assert run.recipe.schedule == "wsd"
    assert run.steps["lr"][-1] < 0.02 * run.steps["lr"].max()
    assert run.verdict is Verdict.CONVERGED


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("upto", [5, 303, 370])
def test_an_open_ended_run_resumes_with_the_same_bits(held_out: bool, upto: int, quick_path: Path) -> None:
    chosen = recipe(lr=0.02, batch_size=16, duration="auto", schedule="wsd", warmup=10, keep=1000)
    whole = fogline.fit(task(held_out), chosen, runs=quick_path, name="whole")
    assert whole.info["steps"] > 370
    cut = again(whole.folder, quick_path / "cut", upto, duration="auto")
    fogline.resume(cut, task(held_out))
    assert final_bits(cut) == final_bits(whole.folder)
    assert counted(cut) == counted(whole.folder)


def test_an_explicit_schedule_keeps_a_fixed_length(tmp_path: Path) -> None:
    run = fogline.fit(task(True), Recipe(lr=0.02, schedule="linear", batch_size=128, step="eager"), runs=tmp_path)
    assert run.recipe.duration == "200ep"
