"""One term of a loss that is so loud that nothing else is learned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch

from fogline.data.source import cast, float_type, leaves, part, rows_of
from fogline.descent.copies import copied
from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.doctor.anatomy import dissect
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, Evidence, Remedy, Suspicion
from fogline.doctor.pulls import told_apart
from fogline.doctor.standing import LEARNS, descends, standing
from fogline.doctor.terms import averaged, terms_of, weighed

_SETTLED = 0.1
"""Of the whole loss at the end, what is left at most of a term that was descended in the place of the others."""
_QUIETER = (0.001, 0.01)
_ABOUT = 0.4
"""How far the ratio of the same term of all rows and of half of them may be from two: noise may be drawn in it."""


def loud_term(exam: Examination) -> Suspicion | None:
    """A term of the loss that has been driven to next to nothing, while of the rest nothing was learned.

    Such as a divergence that is summed where the errors are averaged: the model says the same of every row, which
    pleases that term, and gets no further. What is left then is the rest, so that the scores of both weights are of
    one and the same thing.
    """
    seen = exam.observed
    if seen is None or seen.start is None or exam.anatomy.stage or standing(exam).score >= LEARNS:
        return None
    if exam.case.yardstick.work != "other" or not descends(exam):
        return None
    try:
        first, last = (_terms(exam, model) for model in (exam.anatomy.model, seen.start.objective.model))
    except FAILURES:
        return None
    if not 2 <= len(first) == len(last) or not all(map(math.isfinite, (*first, *last))):
        return None
    whole = sum(last)
    for place, (before, after) in enumerate(zip(first, last, strict=True)):
        if not (0 <= after <= _SETTLED * whole and after < before):
            continue
        rest = dissect(exam.anatomy.model, weighed(exam.program.loss, place, 0.0), exam.anatomy.batch)
        found = told_apart(exam.anatomy, rest)
        if found is None or not found.pull > found.slope > 0:  # what has no slope is learned at no weight
            continue
        return Suspicion(
            "regularization_too_strong",
            0.7,
            (
                Evidence(f"term {place + 1} of the loss, at first and at the end", f"{before:.3g}, {after:.3g}"),
                Evidence("the other terms", f"{sum(first) - before:.3g}, {whole - after:.3g}", "lower at the end"),
                Evidence("its pull, slope of the others", f"{found.pull:.2g}, {found.slope:.2g}", "less than theirs"),
            ),
            f"Term {place + 1} of the loss pulls harder than all the others: the model has pleased it, by saying the "
            "same of every row, and learned nothing of the rest.",
            tuple(_quieter(exam, place)),
        )
    return None


def _terms(exam: Examination, model: torch.nn.Module, rows: int | None = None) -> list[float]:
    """Of so many rows of a batch; None takes all of them."""
    model = copied(model).eval()
    batch = cast(exam.anatomy.batch if rows is None else part(exam.anatomy.batch, 0, rows), float_type(model))
    with private_randomness(CPU):
        seed_step(0, 0, PROBE, CPU)
        return terms_of(exam.program.loss, model, batch)


def _is_summed(exam: Examination, place: int) -> bool:
    """Whether a term grows with the rows of a batch, and is twice as much of twice as many."""
    rows = rows_of(exam.anatomy.batch)
    try:
        few, many = (_terms(exam, exam.anatomy.model, count)[place] for count in (rows // 2, rows // 2 * 2))
    except (*FAILURES, IndexError):
        return False
    return few != 0 and abs(many / few - 2) < _ABOUT


def _quieter(exam: Examination, place: int) -> Iterator[Remedy]:
    """By much first, which shows most within a few steps; and as much as a mean over the numbers of a row, or of all
    rows, is less than their sum, which was mixed up with it."""
    numbers, rows = max(leaf[0].numel() for leaf in leaves(exam.anatomy.batch)), rows_of(exam.anatomy.batch)
    if rows > 1 and _is_summed(exam, place):
        yield Remedy(
            f"take the mean of term {place + 1} of the loss, over the rows and over the {numbers:,} numbers of one",
            f"loss = ... + term / {numbers} / len(batch)  # the term at place {place + 1} of the sum",
            on_loss=partial(averaged, place=place, weight=1 / numbers),
            place="term",
            order=LOSS,
        )
    for weight in sorted({1 / numbers, 1 / numbers / rows, *_QUIETER} - {1.0}):
        yield Remedy(
            f"weigh term {place + 1} of the loss {1 / weight:.4g} times less",
            f"loss = ... + {weight:.3g} * term  # the term at place {place + 1} of the sum",
            on_loss=partial(weighed, place=place, weight=weight),
            place="term",
            order=LOSS,
        )
