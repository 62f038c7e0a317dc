"""How a descent stands: how far it is from what is possible, and how it moved. All of it is dimensionless."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fogline.data.source import rows_of
from fogline.descent.copies import copied
from fogline.descent.objective import Objective
from fogline.descent.randomness import PROBE, private_randomness, seed_step
from fogline.descent.resolve import OPTIMIZER
from fogline.doctor.case import CPU, Case
from fogline.doctor.examination import Examination
from fogline.doctor.trial import WORTH
from fogline.recipe import Recipe

BEHIND = 0.15
"""Twice as far behind a classical learner as any healthy program of the calibration half was seen to be."""
LEARNS = 0.1
"""A score above which a program does learn something."""
FALLING = 0.25
"""Of all that the loss fell, what it would fall in as many steps again: more is no arrival."""
_BLOCKS = 8
_IMPROVABLE, _POOR = 0.1, 0.6  # distance from perfect, score
_FEWEST_STEPS = 16
_FEW, _GOAL_OF_FEW, _GOAL_UNKNOWN, _GOAL_OF_LOSS = 40, 0.9, 0.3, 0.22
_ERROR_OF_ALL = 0.05
"""Where no classical learner can read the rows: so few of them can be fitted well; of many nobody knows; and of what is
judged by its loss, it is known only that some of it should go."""
_NEARBY, _ROUNDED = 1e-3, 1e-5  # way of the weights, relative to them; what a loss differs by from rounding alone


@dataclass(frozen=True)
class Standing:
    """Where a descent ended.

    Attributes:
        score, train_score: by the yardstick, held out (of what ``fit`` keeps or of the end, the better) and learned.
        goal: what a classical learner gets of the same rows; a modest score where none can read them.
        known: whether one could.
        scaled: whether 1 is a perfect answer, as it is not of a loss.
        error: standard error of the score, from the number of rows it was taken on.
        short: the distance to the goal is more than its error and worth closing.
        train_short: the same of the rows that were learned from.
    """

    score: float
    train_score: float
    goal: float
    known: bool
    scaled: bool
    error: float

    @property
    def short(self) -> bool:
        return self._short(self.score)

    @property
    def improvable(self) -> bool:
        """Far from perfect: where classical learners get no further, or cannot read the rows, a sound network may."""
        return self.short or (self.scaled and self.far)

    @property
    def near(self) -> bool:
        """About as good as a classical learner."""
        return self.known and self.goal - self.score <= BEHIND

    @property
    def far(self) -> bool:
        """From perfect."""
        return 1 - self.score > _IMPROVABLE

    @property
    def poor(self) -> bool:
        """So far from perfect that classical learners that get no further are no measure."""
        return self.scaled and self.score < _POOR

    @property
    def train_short(self) -> bool:
        return self._short(self.train_score)

    def _short(self, score: float) -> bool:
        missing = self.goal - score
        return missing > 2 * self.error and missing > WORTH * (1 - score)


def standing(exam: Examination) -> Standing:
    """Of the observed descent."""
    seen = exam.observed
    assert seen is not None
    reference = exam.reference.possible
    rows = max(2.0, _rows_that_count(exam))
    score = max(seen.score, level(exam))
    spread = max(1 - score * score, 1 / rows)
    goal = _goal(exam) if reference is None else max(0.0, reference)
    # Both scores come from samples of about this many rows; rows that are scored and learned from alike are no sample.
    sampled = exam.case.valid is not None or len(exam.case.held) < exam.program.rows
    error = math.sqrt(2 * spread / rows) / 2 if sampled else _ERROR_OF_ALL
    scaled = exam.case.yardstick.work != "other"
    return Standing(score, seen.train_score, goal, reference is not None, scaled, error)


def _goal(exam: Examination) -> float:
    if exam.case.yardstick.work == "other":
        return _GOAL_OF_LOSS if descends(exam) else -1.0
    return _GOAL_OF_FEW if exam.program.rows < _FEW else _GOAL_UNKNOWN


def descends(exam: Examination) -> bool:
    """Whether the loss falls along its own gradients, by a difference of two values on either side of first weights.

    That of opponents who share one sum, or of targets that are detached from it, need not fall, however well all goes.
    """
    notes = exam.anatomy.notes
    if "descends" not in notes:
        notes["descends"] = exam.case.supervised or exam.anatomy.stage != "" or _falls_as_told(exam)
    return bool(notes["descends"])


def _falls_as_told(exam: Examination) -> bool:
    model = copied(exam.anatomy.model)
    pairs = [(p, exam.anatomy.gradients.get(name)) for name, p in model.named_parameters()]
    along = [(p, g) for p, g in pairs if g is not None]
    slope = sum(float(g.square().sum()) for _, g in along)
    size = sum(float(p.detach().square().sum()) for p, _ in along)
    if not 0 < slope < math.inf or not size > 0:
        return True
    step, values = _NEARBY * math.sqrt(size / slope), []
    for times in (step, -2 * step):
        with torch.no_grad():
            for parameter, gradient in along:
                parameter.add_(gradient, alpha=times)
        with private_randomness(CPU), torch.enable_grad():
            seed_step(0, 0, PROBE, CPU)
            values.append(float(Objective(model, exam.program.loss)(exam.anatomy.batch).detach()))
    told, seen = 2 * step * slope, values[0] - values[1]
    return not math.isfinite(seen) or abs(seen) < _ROUNDED * abs(values[0]) or abs(seen - told) <= 0.5 * told


def _rows_that_count(exam: Examination) -> float:
    """How many held-out rows the score rests on: all, or for labels as many as a balanced set would need to have.

    Recall is averaged over the classes, so its variance is the mean of 1 / n over the classes, over their number: a
    class of one row alone makes it as uncertain as a handful of rows would.
    """
    targets = exam.program.held[1] if exam.case.supervised else None
    if not isinstance(targets, Tensor) or exam.case.yardstick.work == "other":
        return float(rows_of(exam.program.held))
    labels = exam.case.yardstick.labels(targets)
    if labels is None:
        return float(len(targets))
    counts = torch.bincount(labels).double()
    counts = counts[counts > 0]
    return len(counts) ** 2 / float((1 / counts).sum())


def level(exam: Examination) -> float:
    """What ``fit`` would keep of the observed descent: the score at its lowest held-out loss.

    Where the task has no held-out rows it keeps the last weights, whatever there was on the way.
    """
    seen = exam.observed
    assert seen is not None
    return kept_of(seen.looks, exam.case, seen.score)


def kept_of(looks: Sequence[tuple[int, float, float]], case: Case, last: float) -> float:
    """Which of the scores on the way ``fit`` would keep; ``last`` is that of the last weights."""
    finite = [(loss, score) for _, score, loss in looks if math.isfinite(loss)]
    return min(finite)[1] if finite and case.valid is not None else last


def risen(looks: Sequence[tuple[int, float, float]]) -> float:
    """What the held-out loss rose by since it was lowest, as a share of all it moved: near 0 where it only falls."""
    losses = [loss for _, _, loss in looks if math.isfinite(loss)]
    if not losses:
        return 0.0
    fell, rose = losses[0] - min(losses), losses[-1] - min(losses)
    return rose / (fell + rose) if fell + rose > 0 else 0.0


@dataclass(frozen=True)
class Motion:
    """How the loss moved.

    Attributes:
        first, last: mean loss of the first and of the last eighth of the steps that were taken.
        start: loss before any step, on held-out rows.
        highest: mean of the eighth of the steps in which the loss was highest.
        fallen: share of ``start``, or of its distance to the last loss where that is more, that is gone; below 0 where
            the loss rose.
        slope: what the loss falls by over as many steps as the descent had, as a share of all it fell, at the pace of
            its second half; 1 is a straight line.
        significance: of that fall, in standard errors of block means.
        jitter: deviation of block means around their line in the second half, as a share of all that the loss fell.
        refused: share of steps that were refused.
        late: share of the fall of the held-out loss, from the first look to the lowest, that came after half the steps.
    """

    start: float
    first: float
    last: float
    highest: float
    fallen: float
    slope: float
    significance: float
    jitter: float
    refused: float
    late: float = 0.0


def motion(exam: Examination) -> Motion:
    """Of the observed descent."""
    seen = exam.observed
    assert seen is not None
    finite = seen.losses[np.isfinite(seen.losses)]
    refused = 1 - len(finite) / max(1, len(seen.losses))
    if len(finite) < 2:
        return Motion(math.nan, math.nan, math.nan, math.nan, 0.0, 0.0, 0.0, 0.0, refused)
    eighth = max(1, len(finite) // 8)
    start = seen.looks[0][2] if seen.looks and math.isfinite(seen.looks[0][2]) else float(finite[0])
    first, last = float(finite[:eighth].mean()), float(finite[-eighth:].mean())
    start = max(start, float(finite[0])) if len(finite) < _FEWEST_STEPS else start
    scale = max(abs(start), abs(start - last), 1e-300)
    slope, significance, jitter = _end(finite, start - last)
    highest = max(float(block.mean()) for block in np.array_split(finite, min(8, len(finite))))
    late = _late(seen.looks)
    return Motion(start, first, last, highest, (start - last) / scale, slope, significance, jitter, refused, late)


def _late(looks: list[tuple[int, float, float]]) -> float:
    held_out = [loss for _, _, loss in looks if math.isfinite(loss)]
    fell = held_out[0] - min(held_out) if held_out else 0.0
    return max(0.0, min(held_out[: len(held_out) // 2 + 1]) - held_out[-1]) / fell if fell > 0 else 0.0


def _end(losses: NDArray[np.float64], fell: float) -> tuple[float, float, float]:
    """The line through the second half, on block means, which are nearly independent."""
    half = losses[len(losses) // 2 :]
    if len(half) < _BLOCKS or fell <= 0:
        return 0.0, 0.0, 0.0
    blocks = np.array([block.mean() for block in np.array_split(half, _BLOCKS)])
    at = (np.arange(_BLOCKS) + 0.5) / _BLOCKS / 2  # position in the run, as a share of it
    line = np.polyfit(at, blocks, 1)
    rest = blocks - np.polyval(line, at)
    deviation = math.sqrt(float(rest @ rest) / (_BLOCKS - 2))
    error = deviation / math.sqrt(float(((at - at.mean()) ** 2).sum()))
    falls = -float(line[0])
    return falls / fell, falls / error if error > 0 else math.inf * np.sign(falls), deviation / fell


@dataclass(frozen=True)
class Steps:
    """What the probes saw, over the whole descent.

    Attributes:
        path: length of the way the weights went, as a multiple of their norm: mean update ratio times steps.
        each: mean update ratio.
        overshoot: median of it; ``beyond`` is the share of probes at which the far wall was steeper (above 1).
        cosine: median step cosine.
    """

    path: float = math.nan
    each: float = math.nan
    overshoot: float = math.nan
    beyond: float = 0.0
    cosine: float = math.nan
    count: int = 0


def steps_of(exam: Examination) -> Steps:
    """Of the observed descent; NaN where nothing was probed."""
    seen = exam.observed
    if seen is None or not seen.probes:
        return Steps()
    ratios = [p.update_ratio for p in seen.probes if math.isfinite(p.update_ratio)]
    over = [p.overshoot for p in seen.probes if p.overshoot is not None and math.isfinite(p.overshoot)]
    cosines = [p.step_cosine for p in seen.probes if p.step_cosine is not None and math.isfinite(p.step_cosine)]
    each = float(np.mean(ratios)) if ratios else math.nan
    return Steps(
        each * seen.steps,
        each,
        float(np.median(over)) if over else math.nan,
        float(np.mean([value > 1 for value in over])) if over else 0.0,
        float(np.median(cosines)) if cosines else math.nan,
        len(seen.probes),
    )


def resolved(exam: Examination) -> Recipe:
    """The recipe with everything that a rule decides, where a descent was begun; else as it was asked."""
    begun = exam.observed.start if exam.observed is not None else None
    asked = exam.program.recipe
    if begun is not None:
        return begun.resolved.recipe
    return asked.replace(optimizer=OPTIMIZER) if asked.optimizer == "auto" else asked
