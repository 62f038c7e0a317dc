"""Too few rows: what half of them cost tells what twice as many would give.

Errors fall with the number of rows that are learned from, in the best case like one over its square root above some
floor (Cortes et al. 1993, Learning Curves: Asymptotic Values and Rate of Convergence). What the last doubling of the
rows gained, over the square root of 2, is then what the next one will gain; where there is no floor the error shrinks
by the same factor again. No edit of Task or Recipe gives that; and what is wrong with a label, a split or a step shows
in no such curve.
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import torch

from fogline.data.source import taken
from fogline.doctor.bench import PLAINLY
from fogline.doctor.case import Program
from fogline.doctor.causes.data.split import train_valid_mismatch
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Evidence, Suspicion, Trial
from fogline.doctor.standing import BEHIND, LEARNS, level, standing
from fogline.doctor.trial import CLEARLY, SEEDS, Laboratory, compared

_BY_HEART = 0.9
_FEWEST = 8
_NEXT = math.sqrt(2)


def short_of_rows(exam: Examination, laboratory: Laboratory) -> tuple[Suspicion, Trial] | None:
    """Rows that are known by heart, while others are answered clearly worse, and worse still by half of the rows.

    The first seed decides whether the others are run. None where it is not so, or the budget has no room for it.
    """
    if not _known_by_heart(exam):
        return None
    seen, seeds = exam.observed, SEEDS
    assert seen is not None
    price = laboratory.price(exam.program.recipe)
    left = laboratory.left + laboratory.reserve
    steps = min(seen.steps, int(left / (2 * len(seeds) * price)))
    if 2 * steps < seen.steps:
        return None
    by_half = laboratory.run(_half(exam.program, seeds[0]), steps, seeds[:1])
    if level(exam) - by_half[0].score < _NEXT * PLAINLY:
        return None
    whole = laboratory.run(exam.program, steps, seeds)
    for seed in seeds[1:]:
        by_half += laboratory.run(_half(exam.program, seed), steps, (seed,))
    metric = exam.case.yardstick.name
    trial = compared((), "the program as it is", by_half, whole, seeds=seeds, metric=metric, steps=steps)
    trial = replace(trial, intervention="half of the training rows")
    gain = -trial.effect / _NEXT
    arrived = min(trial.without) >= level(exam) - BEHIND  # a trial that is too short shows how fast rows are learned
    if gain < max(PLAINLY, CLEARLY * trial.error) or not arrived:
        return None
    return _too_few(exam, trial, gain), trial


def _known_by_heart(exam: Examination) -> bool:
    seen = exam.observed
    if seen is None or seen.error or not exam.case.supervised or exam.program.rows < 2 * _FEWEST:
        return False
    stands = standing(exam)
    sampled = exam.case.valid is not None or len(exam.case.held) < exam.program.rows
    gap = stands.train_score - stands.score
    if not (sampled and stands.scaled) or stands.train_score < _BY_HEART or level(exam) < LEARNS:
        return False
    return gap >= max(BEHIND, CLEARLY * stands.error) and train_valid_mismatch(exam) is None


def _half(whole: Program, seed: int) -> Program:
    """The program with every second row, of a random order in which rows of one label follow one another."""
    inputs, targets = whole.train
    order = torch.randperm(whole.rows, generator=torch.Generator().manual_seed(seed))
    labels = whole.case.yardstick.labels(targets)
    if labels is not None:
        order = order[labels[order].argsort(stable=True)]
    mine = order[::2].sort().values
    return replace(whole, train=(taken(inputs, mine), taken(targets, mine)))


def _too_few(exam: Examination, trial: Trial, gain: float) -> Suspicion:
    stands, rows = standing(exam), exam.program.rows
    by_half, by_all = fmean(trial.with_it), fmean(trial.without)
    gain = min(gain, (1 - by_all) * (1 - (1 - by_all) / (1 - by_half)))
    return Suspicion(
        "overfitting",
        0.7,
        (
            Evidence("score on learned rows, on held-out rows", f"{stands.train_score:.3g}, {stands.score:.3g}"),
            Evidence(
                f"score on held-out rows, by {(rows + 1) // 2} of the training rows and by all {rows}",
                f"{by_half:.3g}, {by_all:.3g}",
                "about the same",
            ),
        ),
        f"The network knows its {rows} rows by heart and answers others clearly worse, by half of the rows worse still: "
        "it is rows that it lacks.",
        proof=True,
        advice=f"more rows, of which twice as many may gain {gain:.1g}; augmentation, a smaller network or dropout",
    )
