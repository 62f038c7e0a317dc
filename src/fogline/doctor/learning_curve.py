"""Too few rows: what a quarter of them gets tells what twice as many would gain.

Errors fall with the number of rows that are learned from by a power law (Cortes et al. 1993, Learning Curves:
Asymptotic Values and Rate of Convergence). From a quarter to all of them rows are doubled twice, so that the next
doubling leaves the square root of what these two have left of the error. No edit of Task or Recipe gives that; and
wrong labels, another split or a step that is too long show in no such curve.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import torch

from fogline.data.source import taken
from fogline.doctor.case import Program
from fogline.doctor.causes.data.split import train_valid_mismatch
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Evidence, Suspicion, Trial
from fogline.doctor.standing import BEHIND, LEARNS, level, standing
from fogline.doctor.trial import CLEARLY, SEEDS, Laboratory, compared

_PART = 4
_FEWEST = 4 * _PART
_BY_HEART = 0.98
_WORTH = 0.04
"""What twice the rows must gain to be worth a word: more than twice what any sound program that knew its rows by heart
was seen to gain (docs/LOG.md)."""


def short_of_rows(exam: Examination, laboratory: Laboratory) -> tuple[Suspicion, Trial] | None:
    """Rows that are known by heart, while others are answered clearly worse, and worse still by a quarter of the rows.

    The first seed decides whether the others are run. None where it is not so, or the budget has no room for it.
    """
    if not _known_by_heart(exam):
        return None
    seen, seeds = exam.observed, SEEDS
    assert seen is not None
    left = laboratory.left + laboratory.reserve
    steps = min(seen.steps, int(left / (2 * len(seeds) * laboratory.price(exam.program.recipe))))
    if 2 * steps < seen.steps:
        return None
    fewer = laboratory.run(_part(exam.program, seeds[0]), steps, seeds[:1])
    if _gain(level(exam), fewer[0].score) < _WORTH / 2:
        return None
    whole = laboratory.run(exam.program, steps, seeds)
    for seed in seeds[1:]:
        fewer += laboratory.run(_part(exam.program, seed), steps, (seed,))
    metric = exam.case.yardstick.name
    trial = compared((), "the program as it is", fewer, whole, seeds=seeds, metric=metric, steps=steps)
    trial = replace(trial, intervention="a quarter of the training rows")
    arrived = min(trial.without) >= level(exam) - BEHIND  # a trial that is too short shows how fast rows are learned
    gain = _gain(fmean(trial.without), fmean(trial.with_it))
    if gain < _WORTH or -trial.effect < CLEARLY * trial.error or not arrived:
        return None
    return _too_few(exam, trial, gain), trial


def _known_by_heart(exam: Examination) -> bool:
    seen = exam.observed
    if seen is None or seen.error or not exam.case.supervised or exam.program.rows < _FEWEST:
        return False
    stands = standing(exam)
    sampled = exam.case.valid is not None or len(exam.case.held) < exam.program.rows
    if not (sampled and stands.scaled) or stands.train_score < _BY_HEART or level(exam) < LEARNS:
        return False
    gap = stands.train_score - stands.score
    return gap >= max(BEHIND, CLEARLY * stands.error) and train_valid_mismatch(exam) is None


def _part(whole: Program, seed: int) -> Program:
    """The program with every fourth row, of a random order in which rows of one label follow one another."""
    inputs, targets = whole.train
    order = torch.randperm(whole.rows, generator=torch.Generator().manual_seed(seed))
    labels = whole.case.yardstick.labels(targets)
    if labels is not None:
        order = order[labels[order].argsort(stable=True)]
    mine = order[::_PART].sort().values
    return replace(whole, train=(taken(inputs, mine), taken(targets, mine)))


def _gain(by_all: float, by_fewer: float) -> float:
    """What twice the rows would gain, by the errors that all rows and a quarter of them leave.

    >>> round(_gain(0.8, 0.55), 3)
    0.067
    """
    left, before = 1 - by_all, 1 - by_fewer
    return left * (1 - (left / before) ** 0.5) if before > 0 else 0.0


def _too_few(exam: Examination, trial: Trial, gain: float) -> Suspicion:
    stands, rows = standing(exam), exam.program.rows
    by_fewer, by_all = fmean(trial.with_it), fmean(trial.without)
    return Suspicion(
        "overfitting",
        0.7,
        (
            Evidence("score on learned rows, on held-out rows", f"{stands.train_score:.3g}, {stands.score:.3g}"),
            Evidence(
                f"score on held-out rows, by {-(-rows // _PART)} of the training rows and by all {rows}",
                f"{by_fewer:.3g}, {by_all:.3g}",
                "about the same",
            ),
        ),
        f"The network knows its {rows} rows by heart and answers others clearly worse, by a quarter of the rows worse "
        "still: it is rows that it lacks.",
        proof=True,
        advice=f"more rows, of which twice as many should gain about {gain:.1g}; augmentation, a smaller network or "
        "dropout",
    )
