"""What the loss gives for being right: it is asked about outputs that the last layer could be made to say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fogline.data import losses
from fogline.doctor.case import FAILURES
from fogline.doctor.examination import Examination
from fogline.doctor.heads import FAR, SCALES, answers, bend, said_last, value
from fogline.doctor.reading import ignores_targets

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
    like = said_last(anatomy) if exam.case.supervised else None
    if like is None or not isinstance(anatomy.batch[1], Tensor):
        return None
    targets = anatomy.batch[1]
    labels = labels_of(exam, targets)
    if labels is None or int(torch.unique(labels).numel()) < 2 or not _fit(like, labels):
        return None
    if ignores_targets(loss, anatomy.outputs.detach(), targets):
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
    targets, like = anatomy.batch[1], said_last(anatomy)
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
