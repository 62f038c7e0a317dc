"""Early stopping that stops too early: found where it is, and not a word where stopping was right."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import fogline
from fogline.doctor.case import open_case
from fogline.doctor.examination import Examination
from fogline.doctor.patience import stopped_early
from fogline.doctor.trial import Laboratory, planned_steps
from fogline.doctor.validations import Stop, kept, stopped

HASTY = fogline.Recipe(
    optimizer="adam", lr=0.003, batch_size=16, duration="20ep", schedule="constant", patience=1, validate_every="2st"
)


def task(flipped: float = 0.1, count: int = 300) -> fogline.Task:
    """Which side of a curve: easy to learn, but of small and noisy batches no validation is better than the last."""
    source = torch.Generator().manual_seed(0)
    X = torch.randn(count + 200, 4, generator=source)
    y = (X[:, 0] + X[:, 1] * X[:, 2] > 0).long()
    wrong = torch.rand(len(y), generator=source) < flipped
    y = torch.where(wrong, 1 - y, y)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    return fogline.Task(net, nn.CrossEntropyLoss(), (X[:count], y[:count]), valid=(X[count:], y[count:]))


def observed(recipe: fogline.Recipe, of: fogline.Task | None = None) -> Examination:
    case = open_case(of or task(), recipe)
    exam = Examination(case)
    exam.observed = Laboratory(case, 1e6).observe(exam.program, planned_steps(recipe, case))
    return exam


def losses(*values: float) -> list[tuple[int, float, float]]:
    """Validations of which the score is the negative loss."""
    return [(k, -loss, loss) for k, loss in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "patience", "stop", "score"),
    [
        ((3.0, 2.0, 2.5, 1.0), 1, Stop(2, -2.0), -2.0),
        ((3.0, 2.0, 2.5, 1.0), 2, None, -1.0),
        ((3.0, 2.0, 2.0, 1.0), 1, Stop(2, -2.0), -2.0),  # as good is no better
        ((3.0, 2.0, math.nan, 1.0), 1, Stop(2, -2.0), -2.0),
        ((3.0, 4.0, 5.0, 1.0), None, None, -1.0),
        ((), 1, None, -1.0),
    ],
)
def test_where_patience_is_lost(
    values: tuple[float, ...], patience: int | None, stop: Stop | None, score: float
) -> None:
    assert stopped(losses(*values), patience) == stop
    assert kept(losses(*values), patience) == score


@pytest.mark.parametrize("patience", [1, 3])
def test_an_observation_tells_where_fit_stops(patience: int, tmp_path: Path) -> None:
    recipe = HASTY.replace(patience=patience)
    seen = observed(recipe).observed
    assert seen is not None
    run = fogline.fit(task(), recipe, runs=tmp_path, progress=False)
    assert seen.stop is not None
    assert seen.stop.step == len(run.steps["step"]) < seen.steps


def test_too_few_steps_of_a_run_that_stops_at_once() -> None:
    report = fogline.diagnose(task(), HASTY)
    assert [found.cause for found in report.findings] == ["too_few_steps"]
    trial = report.findings[0].trial
    assert trial is not None
    assert trial.accepted
    assert report.control is not None
    assert report.healed is not None
    assert report.control_in < report.healed_in
    assert report.control < report.healed
    _, recipe = report.apply(task(), HASTY)
    assert recipe == HASTY.replace(patience=recipe.patience)
    assert recipe.patience is None or recipe.patience > 1


@pytest.mark.parametrize(
    "recipe",
    [
        HASTY.replace(patience=None),
        HASTY.replace(patience=4, validate_every="1ep"),
        HASTY.replace(patience=2, validate_every="1ep", duration="60ep"),
        HASTY.replace(ema=0.9),  # of averaged weights, which no descent here has
    ],
)
def test_silent_where_stopping_is_right_or_unseen(recipe: fogline.Recipe) -> None:
    assert stopped_early(observed(recipe)) is None


def test_silent_where_nothing_more_can_be_learned() -> None:
    noise = task(flipped=0.5)
    assert stopped_early(observed(HASTY, noise)) is None
    assert not fogline.diagnose(noise, HASTY).remedies


def test_the_smallest_patience_that_suffices() -> None:
    exam = observed(HASTY)
    seen = exam.observed
    assert seen is not None
    assert patiences(exam) == [10, None]
    every, seen.validated_every = seen.validated_every, exam.planned // 9  # ten in all: none can be lost
    assert patiences(exam) == [None]
    seen.validated_every = every
    worse = [(10_000 + k, 0.9, math.inf) for k in range(10)]  # lost by ten as well, where one lost it
    seen.validations = [v for v in seen.validations if seen.stop is not None and v[0] <= seen.stop.step] + worse
    assert patiences(exam) == [None]


def patiences(exam: Examination) -> list[int | None]:
    found = stopped_early(exam)
    assert found is not None
    edits = [remedy.on_recipe for remedy in found.remedies]
    return [edit(exam.case.recipe).patience for edit in edits if edit is not None]


def test_a_run_that_stops_at_once_has_another_fault() -> None:
    """Both are named, and neither remedy is dropped for what trials that never stop early can not show."""
    given = task()
    (X, y), (A, b) = given.train, given.valid
    far = fogline.Task(given.model, given.loss, (0.01 * X + 3, y), valid=(0.01 * A + 3, b))
    report = fogline.diagnose(far, HASTY)
    assert {"unscaled_input", "too_few_steps"} <= {found.cause for found in report.findings}
    _, recipe = report.apply(far, HASTY)
    assert recipe.patience is None or recipe.patience > 1
