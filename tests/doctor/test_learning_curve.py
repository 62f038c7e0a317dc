"""Rows that are too few: told by what a quarter of them gets, and not said of what else held-out rows suffer from."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fogline
from fogline.doctor.case import open_case, program
from fogline.doctor.examination import Examination
from fogline.doctor.learning_curve import _part, short_of_rows
from fogline.doctor.trial import Laboratory, planned_steps

LONG = fogline.Recipe(optimizer="adam", lr=0.001, batch_size=16, duration="150ep")


def digits(count: int, *, labels: Tensor | None = None) -> fogline.Task:
    """So many of the digits to learn from, and 400 others to be scored on."""
    data = load_digits()
    order = torch.randperm(len(data.data), generator=torch.Generator().manual_seed(0))
    X = torch.tensor(data.data, dtype=torch.float32)[order] / 16
    y = torch.tensor(data.target)[order]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    few = y[:count] if labels is None else labels
    return fogline.Task(net, nn.CrossEntropyLoss(), (X[:count], few), valid=(X[-400:], y[-400:]))


def watched(task: fogline.Task, recipe: fogline.Recipe, budget: float = 1e6) -> tuple[Examination, Laboratory]:
    case = open_case(task, recipe)
    laboratory = Laboratory(case, budget)
    exam = Examination(case)
    exam.observed = laboratory.observe(exam.program, planned_steps(recipe, case))
    return exam, laboratory


def test_rows_are_too_few_where_a_quarter_of_them_does_much_worse() -> None:
    won = short_of_rows(*watched(digits(40), LONG))
    assert won is not None
    suspicion, trial = won
    assert suspicion.cause == "overfitting"
    assert suspicion.proof
    assert trial.intervention == "a quarter of the training rows"
    assert trial.effect < -0.1
    assert "twice as many" in suspicion.advice


def test_rows_are_enough_where_a_quarter_of_them_does_nearly_as_well() -> None:
    assert short_of_rows(*watched(digits(600), LONG.replace(duration="15ep"))) is None


def test_wrong_labels_are_no_lack_of_rows() -> None:
    """Known by heart, and held-out rows answered badly: but no worse by a quarter of them."""
    shuffled = load_digits().target[torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    assert short_of_rows(*watched(digits(300, labels=torch.tensor(shuffled)), LONG.replace(duration="60ep"))) is None


def test_what_is_not_known_by_heart_is_not_tried_with_less() -> None:
    exam, laboratory = watched(digits(40), LONG.replace(duration="1ep"))
    before = laboratory.spent
    assert short_of_rows(exam, laboratory) is None
    assert laboratory.spent == before


def test_nothing_is_tried_beyond_the_budget() -> None:
    exam, laboratory = watched(digits(40), LONG)
    laboratory.budget = laboratory.spent + 10
    assert short_of_rows(exam, laboratory) is None
    assert laboratory.left == 10


def test_a_quarter_of_the_rows_is_a_quarter_of_every_class() -> None:
    whole = program(open_case(digits(400), LONG))
    part = _part(whole, 1)
    counts, quarters = (torch.bincount(each.train[1], minlength=10) for each in (whole, part))
    assert part.rows == 100
    assert bool(((counts - 4 * quarters).abs() <= 3).all())
    assert not torch.equal(part.train[0], _part(whole, 2).train[0])


def test_the_report_tells_that_it_was_rows_that_were_left_out() -> None:
    report = fogline.diagnose(digits(40), LONG)
    assert report.verdict == "faulty"
    (found,) = report.findings
    assert found.cause == "overfitting"
    assert found.remedy is None
    assert "tried, a quarter of the training rows: " in " ".join(str(report).split())
