"""How a loss reads what it is given: as numbers, probabilities or shares, to what end, and what it does not hear."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from fogline.data import losses
from fogline.data.source import leaves, map_tree
from fogline.doctor.case import FAILURES
from fogline.doctor.examination import Examination
from fogline.doctor.heads import answers, bend, last_layer, value
from fogline.doctor.others import loss_of

_FEW_VALUES = 8
_ROWS = 16
_TURNS, _APART = 9, 4.0
"""Rows that answers are given to in the place of their own, in turn; and how many deviations of these tell."""


def falls_without_end(exam: Examination, loss: Any) -> tuple[float, float] | None:
    """How far all outputs may go, one way, with a loss that falls as steeply as ever.

    Asked at distances of 10 to 10,000 of the targets' own deviations, of a loss of one's own and no labels. Each row by
    itself must fall, too: where some are weighed with the other sign, as by rewards, the sum is a matter of the batch.

    Returns:
        The last distance, and the loss there; None where the loss rises somewhere, or levels off.
    """
    outputs = exam.anatomy.outputs
    own = exam.case.yardstick.work in ("regression", "other") and losses.family(exam.program.loss) == "unknown"
    if (
        not own
        or not isinstance(exam.anatomy.batch[1], Tensor)
        or not isinstance(outputs, Tensor)
        or exam.anatomy.stage
    ):
        return None
    layer, targets = last_layer(exam.anatomy), exam.anatomy.batch[1]
    if layer is None and bend(exam.anatomy):
        return None  # what may bound the outputs
    unit = float(targets.double().std(correction=0))

    def moved(far: float) -> Tensor | None:
        if layer is None or layer.output is None:
            return outputs.detach() + far
        return answers(exam.anatomy, layer.output + far)

    def said(far: float, rows: slice = slice(None)) -> float | None:
        found = moved(far)
        return None if found is None else value(loss, found[rows], targets[rows])

    def rises(far: float, row: int) -> bool:
        near, there = (said(size, slice(row, row + 1)) for size in (far / 10, far))
        return near is not None and there is not None and there > near

    for way in (1.0, -1.0):
        asked = [said(way * size * unit) for size in (0, 10, 100, 1000, 10000)]
        known = [one for one in asked if one is not None]
        if len(known) < len(asked) or unit == 0 or known[-1] >= 0:
            continue
        falls = [before - after for before, after in pairwise(known)]
        steep = all(fall > 0 for fall in falls) and all(later > 5 * before for before, later in pairwise(falls))
        far = way * 10000 * unit
        if steep and not any(rises(far, row) for row in range(min(_ROWS, len(targets)))):
            return far, known[-1]
    return None


def unheard(exam: Examination, loss: Any) -> tuple[float, ...]:
    """Of a few different targets, those that the loss is the same about, whatever is put out for their rows.

    Such as 0 where a loss of pairs is told by 1 and -1. Asked of what the model gives, one tensor or several: as it
    is, of random numbers, of rows that are all alike, and of the opposite; with one and the same seed.
    """
    anatomy = exam.anatomy
    if not exam.case.supervised or anatomy.stage or not isinstance(anatomy.batch[1], Tensor):
        return ()
    targets, given = anatomy.batch[1].reshape(-1), leaves(anatomy.outputs)
    if targets.is_complex():
        return ()
    values = torch.unique(targets)
    few = 2 <= len(values) <= _FEW_VALUES and bool((values >= 0).all())
    if not few or targets.numel() != len(anatomy.batch[1]) or any(len(leaf) != len(targets) for leaf in given):
        return ()
    draws, heard = torch.Generator().manual_seed(0), torch.zeros(len(targets), dtype=torch.bool)
    for said in (_as_it_is, _random, _all_alike, _opposite):
        tried = [said(leaf.detach(), draws).requires_grad_() for leaf in given]
        outputs = map_tree(partial(_next, iter(tried)), anatomy.outputs)
        try:
            with torch.enable_grad():
                slopes = torch.autograd.grad(loss(outputs, anatomy.batch[1]).sum(), tried, allow_unused=True)
        except FAILURES:
            return ()
        for slope in slopes:
            if slope is not None:
                heard |= (slope.reshape(len(slope), -1) != 0).any(1)
    return tuple(float(value) for value in values if not bool(heard[targets == value].any()))


def _next(rest: Iterator[Tensor], _: Tensor) -> Tensor:
    return next(rest)


def _as_it_is(leaf: Tensor, draws: torch.Generator) -> Tensor:
    return leaf.clone()


def _random(leaf: Tensor, draws: torch.Generator) -> Tensor:
    return torch.randn(leaf.shape, generator=draws).to(leaf.dtype)


def _all_alike(leaf: Tensor, draws: torch.Generator) -> Tensor:
    """The same in every row and every tensor of this shape, but for a tenth."""
    same = torch.randn(leaf.shape[1:], generator=torch.Generator().manual_seed(1)).to(leaf.dtype)
    return same + 0.1 * _random(leaf, draws)


def _opposite(leaf: Tensor, draws: torch.Generator) -> Tensor:
    return -leaf.clone()


def ignores_targets(loss: Any, outputs: Tensor, targets: Tensor) -> bool:
    """Whether the loss is about the outputs alone, whatever the targets: such as that of pairs of views."""
    draws = torch.Generator().manual_seed(0)
    other = torch.rand(outputs.shape, generator=draws).to(outputs.dtype)
    seen = [value(loss, other, turned) for turned in (targets, targets.roll(1, 0), targets.roll(2, 0))]
    return seen[0] is not None and len(set(seen)) == 1 and value(loss, other.flip(0) / 2, targets) != seen[0]


def wants_probabilities(exam: Examination) -> bool:
    """Whether the loss takes numbers from 0 to 1 only: outside it is not finite, or has no slope, and inside it has.

    Asked of outputs of which all are 0.3, 0.7 (inside) and -0.5, 1.5 (outside).
    """
    outputs, loss = exam.anatomy.outputs, exam.program.loss
    if not isinstance(outputs, Tensor) or not exam.case.supervised:
        return False
    targets = exam.anatomy.batch[1]
    if not isinstance(targets, Tensor) or ignores_targets(loss, outputs.detach(), targets):
        return False
    inside = [_slope(loss, outputs, targets, size) for size in (0.3, 0.7)]
    outside = [_slope(loss, outputs, targets, size) for size in (-0.5, 1.5)]
    return all(s is not None and s > 0 for s in inside) and not any(s is not None and s > 0 for s in outside)


def is_difference(exam: Examination) -> bool:
    """Whether the loss is one of differences: of outputs and targets both doubled it is twice or four times as much.

    And of outputs alone doubled it is another one, unlike a cross-entropy of outputs divided by their sum.
    """
    loss, outputs = exam.program.loss, exam.anatomy.outputs
    if losses.family(loss) != "unknown":
        return losses.family(loss) == "elementwise"
    if not exam.case.supervised or not isinstance(outputs, Tensor) or not isinstance(exam.anatomy.batch[1], Tensor):
        return False
    outputs, targets = outputs.detach(), exam.anatomy.batch[1]
    whole = not targets.is_floating_point() and outputs.numel() == targets.numel()
    if not whole and outputs.shape != targets.shape and not several_for_one(outputs, targets):
        return False
    targets = targets.to(outputs.dtype)  # a loss of whole numbers makes numbers of them itself
    outputs = around(targets, outputs)
    once, twice = value(loss, outputs, targets), value(loss, 2 * outputs, 2 * targets)
    alone = value(loss, 2 * outputs, targets)
    if not once or twice is None or alone is None or abs(alone / once - 1) < 1e-6:
        return False
    return min(abs(twice / once - power) for power in (2, 4)) < 0.01


def around(targets: Tensor, outputs: Tensor) -> Tensor:
    """Numbers like these outputs, each as far from its target as targets are from one another.

    Far away from all targets, where first weights may be, losses that differ look alike.
    """
    noise = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs.dtype)
    level = targets.to(outputs.dtype).reshape(
        outputs.shape if outputs.numel() == targets.numel() else (len(targets), -1)
    )
    return level + level.std(correction=0) * noise


def several_for_one(outputs: Tensor, targets: Tensor) -> bool:
    """Whether there are several numbers for one target, such as quantiles."""
    return outputs.ndim == targets.ndim == 2 and outputs.shape[1] > 1 == targets.shape[1]


def reads_probabilities(exam: Examination) -> bool:
    """Whether a loss of one's own takes yes and no for probabilities, not for logits.

    It grows the less sure zeros and ones are said, and is nothing where they are said as they are, or else no lower
    where they are said as large numbers of either sign: such as an overlap (Dice) that was given no sigmoid. A
    difference is as large for outputs and targets that both were moved.
    """
    outputs, loss, stick = exam.anatomy.outputs, exam.program.loss, exam.case.yardstick
    if losses.family(loss) != "unknown" or not exam.case.supervised or not isinstance(outputs, Tensor):
        return False
    targets = exam.anatomy.batch[1]
    if stick.work != "binary" or stick.values != (0.0, 1.0) or outputs.numel() != targets.numel():
        return False
    yes = targets.to(outputs.dtype).reshape(outputs.shape)
    fading = [value(loss, 0.5 + size * (yes - 0.5), targets) for size in (1.0, 0.9, 0.6, 0.0, -1.0)]
    sure = [value(loss, size * (2 * yes - 1), targets) for size in (10.0, 100.0)]
    known = [found for found in fading if found is not None]
    if len(known) < len(fading) or any(a >= b for a, b in pairwise(known)):
        return False
    near = 1e-4 * (known[-1] - known[0])
    moved = value(loss, 0.8 * yes + 0.4, targets + 0.3), value(loss, 0.8 * yes + 0.1, targets)
    if None not in moved and abs(float(moved[0] or 0) - float(moved[1] or 0)) < near:
        return False
    return abs(known[0]) < near or all(found is None or found > known[0] for found in sure)


def wants_shares(exam: Examination) -> bool:
    """Whether the loss divides the outputs by their sum: it is the same of outputs doubled, and of their negatives."""
    outputs, loss = exam.anatomy.outputs, exam.program.loss
    if not exam.case.supervised or not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
        return False
    targets = exam.anatomy.batch[1]
    draws = torch.Generator().manual_seed(0)
    shares = torch.rand(outputs.shape, generator=draws).to(outputs.dtype) + 0.2
    once, turned = value(loss, shares, targets), value(loss, shares.flip(1), targets)
    if once is None or turned is None or abs(once - turned) < 1e-4 * abs(once):
        return False
    same = [value(loss, factor * shares, targets) for factor in (2.0, -1.0)]
    return all(other is not None and abs(other - once) < 1e-4 * abs(once) for other in same)


def _slope(loss: Any, like: Tensor, targets: Any, size: float) -> float | None:
    outputs = torch.full_like(like.detach(), size).requires_grad_(True)
    try:
        with torch.enable_grad():
            found = loss(outputs, targets).mean()
            (slope,) = torch.autograd.grad(found, outputs)
    except FAILURES:
        return None
    if not bool(torch.isfinite(found)) or not bool(torch.isfinite(slope).all()):
        return None
    rounding = 1e-6 * float(found.detach().abs()) / max(1, slope.numel())
    steepest = float(slope.abs().max())
    return steepest if steepest > rounding else 0.0


def answers_are_of_their_rows(exam: Examination) -> bool:
    """Whether a loss of several numbers for one, which no yardstick can read, likes answers better for their own rows.

    Such as a mixture, whose mean says nothing. Were answers as good for other rows, those would be as likely to have
    the lowest loss.
    """
    outputs, targets, observed = exam.anatomy.outputs, exam.program.train[1], exam.observed
    if observed is None or observed.start is None or losses.family(exam.program.loss) != "unknown":
        return False
    if not isinstance(outputs, Tensor) or outputs[:1].numel() <= targets[:1].numel():
        return False
    return answers_suit_their_rows(exam) is True


def answers_suit_their_rows(exam: Examination) -> bool | None:
    """Whether the observed descent's answers to held-out rows have a lower loss there than those to other rows.

    None where the loss cannot be asked that.
    """
    observed = exam.observed
    if observed is None or observed.start is None:
        return None
    objective, held = observed.start.objective, exam.program.held
    own, *others = (loss_of(objective, held, partial(torch.roll, shifts=turn, dims=0)) for turn in range(_TURNS))
    known = [other for other in others if other is not None]
    return None if own is None or len(known) < 2 else fmean(known) - own > _APART * stdev(known)
