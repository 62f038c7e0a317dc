"""What the loss gives for being right: it is asked about outputs that the last layer could be made to say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fogline.data import losses
from fogline.data.source import leaves, map_tree
from fogline.doctor.case import FAILURES
from fogline.doctor.examination import Examination
from fogline.doctor.heads import FAR, SCALES, answers, bend, last_layer, value

_FEW_VALUES = 8
_ROWS = 16
_ANSWERING = ("", "sigmoid", "softmax", "log_softmax")
"""Ends of a model behind which more is still more."""


@dataclass(frozen=True)
class Profile:
    """Lowest values of the loss on a batch, over the answers of the last layer that were tried.

    Attributes:
        right: every example's own class is said, weakly to utterly surely.
        wrong: the next class is.
        constant: the same is said of every example.
        free: as ``right``, but the loss is given the answers themselves, without what bends behind the last layer.
        unbounded: the surer the right answer, the lower the loss, without end.
        blind: labels about which the loss is the same whatever is said.
    """

    right: float
    wrong: float
    constant: float
    free: float
    unbounded: bool
    blind: tuple[int, ...] = ()

    @property
    def out_of_reach(self) -> float:
        """Share of what the loss could give that no weights can get, because of what bends behind the last layer."""
        whole = self.constant_free - self.free
        return (self.right - self.free) / whole if whole > 0 and math.isfinite(whole) else 0.0

    constant_free: float = math.nan


def profile(exam: Examination) -> Profile | None:
    """The profile of a program whose targets are labels; None for others, and where the loss cannot be asked."""
    known: dict[str, Any] = exam.notes
    if "profile" not in known:
        known["profile"] = _profile(exam)
    found: Profile | None = known["profile"]
    return found


def labels_of(exam: Examination, targets: Tensor) -> Tensor | None:
    """The class of each example of a batch of targets, or of each of its yes and no, as whole numbers."""
    stick = exam.case.yardstick
    if stick.work == "classes":
        return targets.long().clamp_min(0)
    if stick.work == "one_hot":
        return targets.argmax(1)
    if stick.work == "binary":
        yes = (targets > sum(stick.values) / 2).long()
        return yes.reshape(-1) if targets.numel() == len(targets) else yes
    return None


def _profile(exam: Examination) -> Profile | None:
    anatomy, loss = exam.anatomy, exam.program.loss
    layer = last_layer(anatomy)
    if not exam.case.supervised or layer is None or layer.output is None or not isinstance(anatomy.batch[1], Tensor):
        return None
    targets, like = anatomy.batch[1], layer.output
    labels = labels_of(exam, targets)
    if labels is None or int(torch.unique(labels).numel()) < 2 or not _fit(like, labels):
        return None
    if _ignores(loss, anatomy.outputs.detach(), targets):
        return None

    def lowest(said: Iterator[Tensor], *, bent: bool = True) -> list[float]:
        found = []
        for one in said:
            outputs = answers(anatomy, one) if bent else one
            number = None if outputs is None else value(loss, outputs, targets)
            if number is not None:
                found.append(number)
        return found

    classes = int(labels.max()) + 1
    right = lowest(_saying(like, labels))
    wrong = lowest(_saying(like, (labels + 1) % classes))
    constant = lowest(_constants(like, labels))
    if not right or not wrong or not constant:
        return None
    free = lowest(_saying(like, labels), bent=False) or right
    free_constant = lowest(_constants(like, labels), bent=False) or constant
    return Profile(
        min(right),
        min(wrong),
        min(constant),
        min(min(free), min(right)),
        _without_end(exam, like, labels, targets),
        _blind(exam, like, labels, targets) if like.numel() == len(like) else (),
        max(min(free_constant), min(free)),
    )


def rewards_wrong_answers(exam: Examination) -> tuple[float, float] | None:
    """The loss of the right answers and of wrong ones, where it is lower for wrong ones however they are said.

    Outputs that are small for what is right, such as distances, make it so for some answers and not for others. One
    number a row may be such a distance as well: there only what goes through a sigmoid is an answer.

    Returns:
        The two values, of the answers on which they differ most; None for others.
    """
    anatomy = exam.anatomy
    of_its_own = losses.family(exam.program.loss) == "unknown"
    if not of_its_own or profile(exam) is None or bend(anatomy) not in _ANSWERING:
        return None
    targets, like = anatomy.batch[1], last_layer(anatomy).output  # type: ignore[union-attr]
    labels = labels_of(exam, targets)
    assert labels is not None
    assert like is not None
    single = _yes_or_no(like, labels) and targets.numel() == len(targets)
    if single and "sigmoid" not in (*anatomy.head, *anatomy.in_loss):
        return None
    other = (labels + 1) % (int(labels.max()) + 1)
    pairs = []
    for both in zip(_saying(like, labels), _saying(like, other), strict=True):
        outputs = [answers(anatomy, said) for said in both]
        pairs.append([None if out is None else value(exam.program.loss, out, targets) for out in outputs])
    known = [(right, wrong) for right, wrong in pairs if right is not None and wrong is not None]
    if not known or any(right <= wrong for right, wrong in known):
        return None
    return max(known, key=lambda pair: pair[0] - pair[1])


def _ignores(loss: Any, outputs: Tensor, targets: Tensor) -> bool:
    """Whether the loss is about the outputs alone, whatever the targets: such as that of pairs of views."""
    draws = torch.Generator().manual_seed(0)
    other = torch.rand(outputs.shape, generator=draws).to(outputs.dtype)
    seen = [value(loss, other, turned) for turned in (targets, targets.roll(1, 0), targets.roll(2, 0))]
    return seen[0] is not None and len(set(seen)) == 1 and value(loss, other.flip(0) / 2, targets) != seen[0]


def _fit(like: Tensor, labels: Tensor) -> bool:
    if _yes_or_no(like, labels):
        return labels.numel() == like.numel() and int(labels.max()) <= 1
    return like.ndim >= 2 and like.shape[:1] + like.shape[2:] == labels.shape and int(labels.max()) < like.shape[1]


def _saying(like: Tensor, labels: Tensor) -> Iterator[Tensor]:
    for size in SCALES:
        for said in _patterns(like, labels):
            yield said * size


def _yes_or_no(like: Tensor, labels: Tensor) -> bool:
    """Whether each number of the output is an answer of its own, to one of two classes."""
    return like.numel() == len(like) or like.shape == labels.shape


def _patterns(like: Tensor, labels: Tensor) -> list[Tensor]:
    if _yes_or_no(like, labels):
        yes = labels.to(like.dtype).reshape(like.shape)
        return [2 * yes - 1, yes]
    hot = F.one_hot(labels, like.shape[1]).movedim(-1, 1).to(like.dtype)
    return [2 * hot - 1, hot]


def _constants(like: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """The same for every example: one number in all units, or the shares of the classes as logits and as they are."""
    for size in (0.0, *SCALES):
        yield torch.full_like(like, size)
        yield torch.full_like(like, -size)
    if _yes_or_no(like, labels):
        share = labels.double().mean().clamp(1e-6, 1 - 1e-6).to(like.dtype)
        yield torch.full_like(like, float(torch.logit(share)))
        yield torch.full_like(like, float(share))
        return
    shares = F.one_hot(labels, like.shape[1]).movedim(-1, 1).to(like.dtype)
    shares = shares.mean(dim=[0, *range(2, like.ndim)], keepdim=True).expand_as(like)
    yield shares.clamp_min(1e-6).log()
    yield shares.clone()


def _without_end(exam: Examination, like: Tensor, labels: Tensor, targets: Tensor) -> bool:
    """Whether the loss falls as steeply from 1,000 to 10,000 as from 100 to 1,000: then nothing will stop it.

    A loss with a floor has a slope of zero there, one with a least value in between rises.
    """
    for pattern in _patterns(like, labels):
        found = []
        for size in (FAR / 100, FAR / 10, FAR):
            outputs = answers(exam.anatomy, pattern * size)
            found.append(None if outputs is None else value(exam.program.loss, outputs, targets))
        first, second, third = found
        if first is None or second is None or third is None:
            continue
        near, far = (first - second) / (0.09 * FAR), (second - third) / (0.9 * FAR)
        if near > 0 and far > 0.5 * near and third < 0:
            return True
    return False


def _blind(exam: Examination, like: Tensor, labels: Tensor, targets: Tensor) -> tuple[int, ...]:
    """Of the two classes, those whose examples get no gradient, whatever is said of them."""
    found = []
    for label in (0, 1):
        mine = (labels == label).reshape(-1)
        if not bool(mine.any()) or bool(mine.all()):
            continue
        heard = [_heard(exam, like, targets, mine, size) for size in (-10.0, -0.7, -0.1, 0.1, 0.7, 10.0)]
        if None not in heard and not any(heard):
            found.append(label)
    return tuple(found)


def _heard(exam: Examination, like: Tensor, targets: Tensor, mine: Tensor, size: float) -> bool | None:
    """Whether the loss has any gradient with respect to the outputs of these examples."""
    outputs = answers(exam.anatomy, torch.full_like(like, size))
    if outputs is None or len(outputs) != len(mine):
        return None
    outputs = outputs.detach().clone().requires_grad_(True)
    try:
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(exam.program.loss(outputs, targets).mean(), outputs)
    except FAILURES:
        return None
    return bool((slope[mine] != 0).any())


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


def wants_probabilities(exam: Examination) -> bool:
    """Whether the loss takes numbers from 0 to 1 only: outside it is not finite, or has no slope, and inside it has.

    Asked of outputs of which all are 0.3, 0.7 (inside) and -0.5, 1.5 (outside).
    """
    outputs, loss = exam.anatomy.outputs, exam.program.loss
    if not isinstance(outputs, Tensor) or not exam.case.supervised:
        return False
    targets = exam.anatomy.batch[1]
    if not isinstance(targets, Tensor) or _ignores(loss, outputs.detach(), targets):
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
