"""Classical learners on the same rows: whether there is anything to be learned, told in a fraction of a second.

Ridge regression, on the rows, on a kernel, on pairs of tokens and on random convolutions, and nearest neighbours need
no gradient, so nothing that is wrong with the descent can be wrong with them. What they get, a sound network can get
about as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fogline.data.source import leaves
from fogline.doctor.case import Case
from fogline.doctor.yardstick import Yardstick, error_of

_MOST_ROWS, _MOST_FEATURES, _MOST_TOKENS = 4000, 2000, 2000
_NEIGHBOURS = 5
_MOST_TO_TRY = 1000
"""Rows that one of several suppositions about them is tried on."""
_FEW_COLUMNS, _FEW_MEASURES, _DIFFERENT, _FEWEST_MEASURED = 64, 3, 0.9, 20
"""Columns that copies are told by; and of how many of them how many numbers differ, where they are measured."""
MOST_CLASSES = 10_000
"""Of labels up to so many: beyond, numbers of people or of products were taken for those of classes."""
_FOLDS, _FEW_ROWS = 5, 500
_PENALTY = 1e-2
_WELL, _AS_WELL = 0.75, 0.1
"""Scores that leave no question of what held-out rows could teach, and how far they may lie apart."""
_ALL = 0.97
"""A score that leaves other learners nothing to find."""
_LITTLE, _FEW_NAMES = 0.1, 4
"""Score that is next to nothing; and whole numbers of a row, where more are words, or counts."""
_PAIRED = 600
"""Rows that pairs of tokens are learned from."""
_KERNEL, _KERNELS, _FEWEST_KERNELS, _SCALES = 5, 48, 8, 3
"""Places along each axis of a random kernel; how many there are of each scale, at most and at least; and scales."""
_LARGEST, _COLOURS, _AT_ONCE = 32, 4, 256
"""Pixels along an image, beyond which it is made smaller; channels that stand last; and rows convolved at once."""
_OPERATIONS = int(1e10)
"""Of all convolutions of one scale, about half a second."""
_LANDMARKS = 200
"""Rows that a kernel is seen from."""
_WIDTHS = (0.3, 1.5)
"""Of the kernel, as multiples of the median squared distance of two rows."""
_PENALTIES = tuple(10.0**k for k in range(-9, 0))
"""A row."""


@dataclass(frozen=True)
class Reference:
    """Scores of the best of the classical learners, by the yardstick of the case.

    Attributes:
        score: on rows held out of the training data, each fifth in turn where there are few; None where the work
            cannot be read by them, or of names they know nothing.
        valid_score: of the same learner, trained on training rows, on the task's held-out data.
        within_valid: of the same kind of learner within the task's held-out data: each fifth scored by one that learned
            from the others. None where the training rows teach as much.
        valid_error: a generous standard error of these two.
        scored: how many rows the first of these scores rests on.
        learner: which was best.
        rows: positions in the training data of the rows they were trained and scored on.
        classes: of the targets; 0 where they are numbers.
    """

    score: float | None = None
    valid_score: float | None = None
    within_valid: float | None = None
    valid_error: float = 0.0
    scored: int = 0
    learner: str = ""
    rows: Tensor | None = None
    classes: int = 0

    @property
    def possible(self) -> float | None:
        """What can be got of the rows that a program is scored on: training targets that are wrong do not lower it.

        None where rows left out are answered worse than by guessing: of a parity, whose nearest rows are all of the
        other class, such a learner knows nothing.
        """
        of_held_out = [score for score in (self.valid_score, self.within_valid) if score is not None]
        if self.classes and self.score is not None and self.score < -error_of(self.scored, self.classes):
            return max(of_held_out, default=None)
        if self.score is None or not of_held_out:
            return self.score
        return max(self.score, max(of_held_out) - self.valid_error)


def refer(case: Case) -> Reference:
    """Train the classical learners."""
    yardstick = replace(case.yardstick, logs=False)  # they answer with numbers
    if not case.supervised or yardstick.work == "other" or not isinstance(case.train.targets, Tensor):
        return Reference()
    raw = features(case.train.inputs)
    if raw is None or case.train.targets.ndim > 2 or (yardstick.work == "classes" and case.train.targets.ndim > 1):
        return Reference()
    if rebuilds(case) or yardstick.classes > MOST_CLASSES:
        return Reference()
    usable = torch.isfinite(raw).all(1) & torch.isfinite(case.train.targets.double().reshape(len(raw), -1)).all(1)
    usable &= yardstick.counted(case.train.targets)
    rows = usable.nonzero().flatten()
    if len(rows) < 10:
        return Reference()
    order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))][:_MOST_ROWS]
    if measured(raw):  # who learned from a copy of a row has not to answer it
        order = order[without_copies(raw[order][:, :_FEW_COLUMNS])]
    targets = case.train.targets[order]
    folds = _FOLDS if len(order) <= _FEW_ROWS else 1
    scores: dict[str, float] = {}
    for learner, (sees, _) in _LEARNERS.items():
        if sees is convolved and max(scores.values()) > _WELL:
            continue
        inputs = raw if sees is features else sees(case.train.inputs)
        if inputs is not None:
            scores[learner] = _across_folds(inputs[order], targets, yardstick, learner, folds)
            if scores[learner] > _ALL:
                break
    learner = max(scores, key=lambda name: scores[name])
    if scores[learner] < _LITTLE and are_names(case.train.inputs):
        return Reference()
    scored = len(order) // _FOLDS * folds
    of_valid = _on_valid(case, order, learner, scores[learner])
    return Reference(scores[learner], *of_valid, scored, learner, order, yardstick.classes)


def measured(inputs: Tensor) -> bool:
    """Whether the columns are of numbers that hardly ever repeat, but in copies of whole rows: those have been made."""
    if not inputs.is_floating_point():
        return False
    rows = torch.unique(inputs[:_MOST_ROWS].reshape(min(len(inputs), _MOST_ROWS), -1)[:, :_FEW_COLUMNS], dim=0)
    fine = [column for column in rows.unbind(1) if len(torch.unique(column)) > _DIFFERENT * len(rows)]
    return len(fine) >= _FEW_MEASURES and len(rows) >= _FEWEST_MEASURED


def without_copies(rows: Tensor) -> Tensor:
    """Positions of the first of rows that are alike, in order: (n, d) to (k,)."""
    _, which = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((int(which.max()) + 1,), len(rows)).scatter_reduce(0, which, torch.arange(len(rows)), "amin")
    return first.sort().values


def score_of(inputs: Tensor, targets: Tensor, yardstick: Yardstick) -> float:
    """What the best of the classical learners gets of these rows for others of them: (n, d) features, in any order."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:_MOST_TO_TRY]
    inputs, targets = inputs[order], targets[order]
    able = [learner for learner, (sees, _) in _LEARNERS.items() if sees is features]
    return max(_across_folds(inputs, targets, yardstick, learner, 1) for learner in able)


def rebuilds(case: Case) -> bool:
    """Whether the targets are the inputs: an auto-encoder, which a linear map would copy without fail."""
    inputs, targets = case.train.inputs, case.train.targets
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor) or inputs.numel() != targets.numel():
        return False
    return torch.allclose(inputs.reshape(-1).double(), targets.reshape(-1).double(), rtol=1e-3, equal_nan=True)


class _AsIs:
    """Stands for the loss: numbers are on the scale of the targets."""


def _across_folds(inputs: Tensor, targets: Tensor, yardstick: Yardstick, learner: str, folds: int) -> float:
    """Score on rows that a learner did not learn from, by one of each of the first ``folds`` fifths."""
    fold, (_, fit) = torch.arange(len(inputs)) % _FOLDS, _LEARNERS[learner]
    said = [fit(inputs[fold != k], targets[fold != k], inputs[fold == k], yardstick) for k in range(folds)]
    return yardstick(torch.cat(said), torch.cat([targets[fold == k] for k in range(folds)]), _AsIs())


def _on_valid(case: Case, rows: Tensor, learner: str, score: float) -> tuple[float | None, float | None, float]:
    """Scores of a learner on the task's held-out data, taught by training rows and by other held-out rows; and their
    error. ``score`` is what it gets of training rows."""
    sees, fit = _LEARNERS[learner]
    yardstick = replace(case.yardstick, logs=False)
    ours, other = sees(case.train.inputs), None if case.valid is None else sees(case.valid.inputs)
    if ours is None or other is None or case.valid is None or other.shape[1] != ours.shape[1]:
        return None, None, 0.0
    inputs, targets = ours[rows], case.train.targets[rows]
    wanted = case.valid.targets[:_MOST_ROWS]
    other = other[:_MOST_ROWS]
    fine = torch.isfinite(other).all(1) & torch.isfinite(wanted.double().reshape(len(other), -1)).all(1)
    fine &= yardstick.counted(wanted)
    other, wanted = other[fine], wanted[fine]
    if len(other) < 2 * _FOLDS:
        return None, None, 0.0
    across = yardstick(fit(inputs, targets, other, yardstick), wanted, _AsIs())
    error = error_of(len(other), yardstick.classes)
    if min(score, across) > _WELL and across > score - _AS_WELL:
        return across, None, error
    order = torch.randperm(len(other), generator=torch.Generator().manual_seed(0))
    within = _across_folds(other[order], wanted[order], yardstick, learner, _FOLDS)
    return across, within, error


def out_of_fold(case: Case, learner: str, rows: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """What a classical learner says of rows that it did not learn from.

    Args:
        learner: one of those of :func:`refer`.
        rows: positions in the training data, (n,).

    Returns:
        Its outputs for these rows, (n, k), each by a learner of the other four fifths, and for the task's held-out
        data, (m, k), by the mean of the five, None where there is none that can be read; None where the training data
        cannot be read.
    """
    sees, fit = _LEARNERS[learner]
    inputs = sees(case.train.inputs)
    if inputs is None:
        return None
    other = None if case.valid is None else sees(case.valid.inputs)
    held_out = other is not None and other.shape[1] == inputs.shape[1]
    others = other[:_MOST_ROWS] if other is not None and held_out else inputs[:0]
    inputs, targets = inputs[rows], case.train.targets[rows]
    fold = torch.arange(len(rows)) % _FOLDS
    inside, outside = [], []
    for k in range(_FOLDS):
        left_out = inputs[fold == k]
        asked = torch.cat([left_out, others])
        said = fit(inputs[fold != k], targets[fold != k], asked, case.yardstick)
        inside.append(said[: len(left_out)])
        outside.append(said[len(left_out) :])
    order = torch.cat([(fold == k).nonzero().flatten() for k in range(_FOLDS)]).argsort()
    return torch.cat(inside)[order], torch.stack(outside).mean(0) if held_out else None


def are_names(inputs: Any) -> bool:
    """Whether inputs are a few names of things, of whose meeting no classical learner knows anything."""
    columns = sum(math.prod(leaf.shape[1:]) for leaf in leaves(inputs))
    return 1 < columns <= _FEW_NAMES and not any(leaf.is_floating_point() for leaf in leaves(inputs))


def features(inputs: Any) -> Tensor | None:
    """One row of numbers an example: columns and pixels as they are, tokens counted; of several inputs all of them."""
    if isinstance(inputs, (tuple, list, dict)):
        parts = [features(leaf) for leaf in leaves(inputs)]
        found = [one for one in parts if one is not None]
        return torch.cat(found, 1) if found and len(found) == len(parts) else None
    if not isinstance(inputs, Tensor) or inputs.is_complex():
        return None
    if inputs.ndim == 1 and not inputs.is_floating_point():
        return features(inputs[:, None])  # names of things
    if inputs.is_floating_point() or inputs.dtype == torch.uint8 or inputs.dtype == torch.bool:
        flat = inputs.reshape(len(inputs), -1)
        if flat.shape[1] > _MOST_FEATURES:
            flat = flat[:, :: -(-flat.shape[1] // _MOST_FEATURES)]
        return flat.double()
    if inputs.ndim == 2 and int(inputs.min()) >= 0 and int(inputs.max()) < _MOST_TOKENS:
        width = int(inputs.max()) + 1
        counted = torch.zeros(len(inputs), width, dtype=torch.float64)
        counted.scatter_add_(1, inputs.long(), torch.ones(inputs.shape, dtype=torch.float64))
        if inputs.shape[1] * width > _MOST_FEATURES:
            return counted
        placed = F.one_hot(inputs.long(), width).reshape(len(inputs), -1)
        return torch.cat([counted, placed.double()], 1)
    return inputs.reshape(len(inputs), -1).double()


def pairs(inputs: Any) -> Tensor | None:
    """How often each token follows each other one, at once and anywhere: (n, 2 w w); None where that is too much.

    What depends on the order of tokens shows in pairs of them (subsequences of length two, Lodhi et al. 2002).
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 2 or inputs.is_floating_point() or inputs.is_complex():
        return None
    if inputs.dtype == torch.bool or int(inputs.min()) < 0 or 2 * (int(inputs.max()) + 1) ** 2 > _MOST_FEATURES:
        return None
    tokens, width = inputs.long(), int(inputs.max()) + 1
    earlier = torch.zeros(len(tokens), width, dtype=torch.float64)
    anywhere = torch.zeros(len(tokens), width, width, dtype=torch.float64)
    for now in tokens.T:
        anywhere.scatter_add_(2, now[:, None, None].expand(-1, width, 1), earlier[:, :, None])
        earlier.scatter_add_(1, now[:, None], torch.ones_like(earlier[:, :1]))
    at_once = torch.zeros(len(tokens), width * width, dtype=torch.float64)
    at_once.scatter_add_(1, tokens[:, :-1] * width + tokens[:, 1:], torch.ones_like(tokens[:, 1:], dtype=torch.float64))
    return torch.cat([at_once, anywhere.flatten(1)], 1).log1p()


def convolved(inputs: Any) -> Tensor | None:
    """What random kernels say of images (n, c, h, w) and of series (n, c, t), at three scales: the most, the least, how
    much it varies and how often it is high, anywhere (Dempster et al. 2020, ROCKET). None of anything else.

    A form that may stand anywhere is no sum over pixels, and no picture has another near it.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim not in (3, 4) or inputs.is_complex() or inputs.dtype == torch.bool:
        return None
    if not inputs.is_floating_point() and inputs.dtype != torch.uint8:
        return None
    image, rows = inputs.ndim == 4, len(inputs)
    convolve, pool = (F.conv2d, F.avg_pool2d) if image else (F.conv1d, F.avg_pool1d)
    one = _channels_first(inputs[:1])
    width = _KERNEL ** (one.ndim - 2)
    count = max(_FEWEST_KERNELS, min(_KERNELS, _OPERATIONS // max(1, 2 * rows * one.numel() * width)))
    drawn = torch.randn(_SCALES, count, one.shape[1], width, generator=torch.Generator().manual_seed(0))
    kernels = (drawn - drawn.mean(3, keepdim=True)).view(_SCALES, count, one.shape[1], *[_KERNEL] * (one.ndim - 2))
    found = []
    for piece in torch.split(inputs, _AT_ONCE):
        seen, parts = _channels_first(piece), []
        for scale in kernels:
            if min(seen.shape[2:]) < _KERNEL:
                break
            parts.append(_anywhere(convolve(seen, scale).flatten(2)))
            seen = pool(seen, 2)
        found += [torch.cat(parts, 1)] if parts else []
    return torch.cat(found).double() if found else None


def _channels_first(inputs: Tensor) -> Tensor:
    """Images and series with the channels in their second place, and no more places than a glance takes."""
    seen, image = inputs.detach().float().nan_to_num(), inputs.ndim == 4
    last = seen.shape[-1] <= _COLOURS < seen.shape[1] if image else seen.shape[-1] < seen.shape[1]
    seen = seen.movedim(-1, 1) if last else seen
    while max(seen.shape[2:]) > (_LARGEST if image else _LARGEST**2):
        seen = F.avg_pool2d(seen, 2) if image else F.avg_pool1d(seen, 2)
    return seen


def _anywhere(said: Tensor) -> Tensor:
    """Of what each kernel says at all places: (n, k, places) to (n, 4 k)."""
    deviation = said.std(2, correction=0)
    high = (said > deviation[:, :, None]).float().mean(2)
    return torch.cat([said.amax(2), said.amin(2), deviation, high], 1)


def standardised(inputs: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    mean, scale = inputs.mean(0), inputs.std(0, correction=0)
    scale = torch.where(scale > 1e-12 * inputs.abs().amax(0).clamp_min(1e-300), scale, torch.ones_like(scale))
    return (inputs - mean) / scale, ((other - mean) / scale).clamp(-20, 20)


def _coded(targets: Tensor, yardstick: Yardstick) -> Tensor:
    if yardstick.work == "classes":
        return F.one_hot(targets.clamp(0).long(), max(1, yardstick.classes)).double()
    return targets.double().reshape(len(targets), -1)


def _ridge(inputs: Tensor, targets: Tensor, other: Tensor, yardstick: Yardstick) -> Tensor:
    inputs, other = standardised(inputs, other)
    coded = _coded(targets, yardstick)
    centre, size = coded.mean(0), min(inputs.shape)
    gram = inputs.mT @ inputs if inputs.shape[1] <= inputs.shape[0] else inputs @ inputs.mT
    gram = gram + _PENALTY * len(inputs) * torch.eye(size, dtype=torch.float64)
    weights: Tensor  # by the normal equations, or by their dual where there are more columns than rows
    if inputs.shape[1] <= inputs.shape[0]:
        weights = torch.linalg.solve(gram, inputs.mT @ (coded - centre))
    else:
        weights = inputs.mT @ torch.linalg.solve(gram, coded - centre)
    return torch.addmm(centre, other, weights)


def _neighbours(inputs: Tensor, targets: Tensor, other: Tensor, yardstick: Yardstick) -> Tensor:
    inputs, other = standardised(inputs, other)
    count = min(_NEIGHBOURS, len(inputs))
    nearest = torch.cdist(other.float(), inputs.float()).topk(count, largest=False).indices
    return _coded(targets, yardstick)[nearest].mean(1)


def _kernel_ridge(inputs: Tensor, targets: Tensor, other: Tensor, yardstick: Yardstick) -> Tensor:
    """Ridge regression on the Gaussian kernel of each row with some of them (the subset of regressors).

    Its width and its penalty are those of the least error at rows left out.
    """
    inputs, other = standardised(inputs, other)
    coded = _coded(targets, yardstick)
    centre, count = coded.mean(0), min(_LANDMARKS, len(inputs))
    marks = inputs[torch.arange(count) * len(inputs) // count]
    apart = [torch.cdist(rows, marks).square() for rows in (inputs, other)]
    usual = float(apart[0].median().clamp_min(1e-12))
    fits = []
    for width in _WIDTHS:
        learned, asked = (torch.exp(-squares / (width * usual)) for squares in apart)
        error, weights = _smoothed(learned - learned.mean(0), coded - centre)
        fits.append((error, centre + (asked - learned.mean(0)) @ weights))
    best: Tensor = min(fits, key=lambda fit: fit[0])[1]
    return best


def _ridge_of_many(inputs: Tensor, targets: Tensor, other: Tensor, yardstick: Yardstick) -> Tensor:
    """Ridge regression of many columns, from a part of the rows, with the best of several penalties."""
    inputs, other = standardised(inputs[:_PAIRED], other)
    coded, columns = _coded(targets[:_PAIRED], yardstick), math.sqrt(inputs.shape[1])
    centre = coded.mean(0)
    weights = _smoothed(inputs / columns, coded - centre)[1]
    return torch.addmm(centre, other / columns, weights)


def _smoothed(inputs: Tensor, targets: Tensor) -> tuple[float, Tensor]:
    """Ridge regression, (n, k) to (n, c), with the penalty that leaves the least squared error at rows left out, one at
    a time: the residual over one less its leverage (Allen 1974). That error, and the weights, (k, c).
    """
    penalties = len(inputs) * torch.tensor(_PENALTIES, dtype=inputs.dtype)
    wide = inputs.shape[1] >= inputs.shape[0]
    products = inputs @ inputs.mT if wide else inputs.mT @ inputs
    if wide:  # centred rows have nothing along the axis of the mean: set apart as the longest one, it is left out
        size, axes = torch.linalg.eigh(products + (products.trace() / len(inputs)).clamp_min(1e-300))
        size, axes = size[:-1], axes[:, :-1]
    else:
        size, axes = torch.linalg.eigh(products)
    turned = axes if wide else inputs @ axes
    pulled = turned.mT @ targets
    shrunk = 1 / (size.clamp_min(0)[:, None] + penalties)  # (k or n, penalties)
    # What is left of a row, and one less its leverage: where columns abound both are small, and so no difference of 1s.
    parts = penalties * shrunk if wide else shrunk
    own = turned.square() @ parts
    room = (own if wide else 1 - own - 1 / len(inputs)).clamp_min(1e-12)
    missed = (turned @ (parts[:, [p]] * pulled) for p in range(len(_PENALTIES)))
    errors = [
        float(((part if wide else targets - part) / room[:, [p]]).square().sum()) for p, part in enumerate(missed)
    ]
    best = min(range(len(errors)), key=errors.__getitem__)
    weights = axes @ (shrunk[:, [best]] * pulled)
    return errors[best], inputs.mT @ weights if wide else weights


_LEARNERS: dict[str, tuple[Callable[[Any], Tensor | None], Callable[[Tensor, Tensor, Tensor, Yardstick], Tensor]]] = {
    "ridge regression": (features, _ridge),
    "nearest neighbours": (features, _neighbours),
    "kernel ridge regression": (features, _kernel_ridge),
    "ridge regression on pairs of tokens": (pairs, _ridge_of_many),
    "ridge regression on random convolutions": (convolved, _ridge_of_many),
}
"""What each of them sees of inputs, and how it learns."""
