"""Questions to a loss of one's own: what it means by its targets, and by the outputs it is given."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FAR_OFF = 8.0
"""Usual distances from the middle: farther lie but a few rows, if any, that something is wrong with."""
MOST_NUMBERS = 8
"""Of which one may be the answer; and of which each is asked about."""
_FEW_STEPS, _ROWS = 6, 64
_STEPS_OF_OUTPUTS = 50
_ALIKE, _APART = 1e-5, 1e-3
_TURNS = (2 * math.pi, math.pi, 360.0, 180.0, 24.0, 1.0)
"""Of angles, of hours, and of shares of a turn."""
_LOPSIDED = 0.1  # of what errors either way cost together, what those one way cost more


def asked(loss: Any, outputs: Tensor, targets: Tensor) -> float:
    """The loss as a number; not finite where it refuses."""
    try:
        return float(loss(outputs, targets))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return math.nan


def robust(targets: Tensor, usual: Tensor, loss: Any) -> bool:
    """Whether ten times as long an error costs about ten times as much, or less, and not a hundred times."""
    known = targets[torch.isfinite(targets.reshape(len(targets), -1)).all(1)][:_ROWS]
    unit = usual.to(known.dtype).reshape(known.shape[1:]) if known.ndim > 1 else usual.to(known.dtype)
    try:
        near, far = (float(loss(known + size * unit, known)) for size in (FAR_OFF, 10 * FAR_OFF))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return 0 < far < 30 * near


def does_without(outputs: Tensor, targets: Tensor, loss: Any) -> bool:
    """Whether targets that are all the same stand for nothing: the loss is what it is without them."""
    if targets.is_complex() or bool((targets != targets.reshape(-1)[:1]).any()):
        return False
    once = asked(loss, outputs, targets)
    return math.isfinite(once) and all(asked(loss, outputs, other) == once for other in (targets + 1, 1 - targets))


def lowest(loss: Any, outputs: Tensor, targets: Tensor, bounds: tuple[float, float] = (-math.inf, math.inf)) -> float:
    """The loss where outputs go wherever it is lowest, no model between them and it; within bounds.

    Not finite where it refuses an answer on the way.
    """
    low, high = bounds

    def said(free: Tensor) -> Tensor:
        if math.isinf(low):
            return free
        return low + (free.square() if math.isinf(high) else (high - low) * torch.sigmoid(free))

    free = (outputs.detach().clone() if math.isinf(low) else torch.ones_like(outputs.detach())).requires_grad_()
    descent = torch.optim.LBFGS([free], max_iter=_STEPS_OF_OUTPUTS, line_search_fn="strong_wolfe")

    def again() -> Tensor:
        found: Tensor = loss(said(free), targets)
        (free.grad,) = torch.autograd.grad(found, free)
        return found

    try:
        with torch.enable_grad():
            descent.step(again)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, TypeError, IndexError):
        return math.nan
    return asked(loss, said(free.detach()), targets)


def reads_every_column(outputs: Tensor, targets: Tensor, loss: Any) -> bool:
    """Whether each column of the targets has a say in the loss."""
    outputs = torch.rand(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
    targets = targets.nan_to_num()
    once, wide = asked(loss, outputs, targets), targets.reshape(len(targets), -1)
    for column in range(min(wide.shape[1], MOST_NUMBERS)):
        moved = wide.clone()
        moved[:, column] = moved[:, column] + 1
        if asked(loss, outputs, moved.reshape(targets.shape)) == once:
            return False
    return True


def weighs_rows(outputs: Tensor, targets: Tensor, loss: Any) -> bool:
    """Whether one number answers one column of the targets, and the others say how much each row counts.

    A step from that column to either side, or towards the others, is then no better.
    """
    wide = targets.reshape(len(targets), -1).double().nan_to_num()
    for column in wide.unbind(1):
        others = (wide.sum(1) - column) / (wide.shape[1] - 1)
        step = 0.1 * column.std(correction=0)
        steps = (torch.zeros_like(column), step, -step, 0.1 * (others - column))
        exact, *moved = (asked(loss, (column + by).reshape(outputs.shape).to(outputs), targets) for by in steps)
        if step > 0 and exact < min(moved):
            return True
    return False


def wants_more_than_targets(targets: Tensor, loss: Any) -> bool:
    """Whether outputs that go beyond the targets of some column, away from its mean, are better than these themselves.

    So it is where one column is yes or no, said by a logit, and another one a number. Of maps it is asked of whole
    channels, and of all at once where there are many.
    """
    exact, count = asked(loss, targets, targets), targets.shape[1] if targets.ndim > 1 else 1
    if not math.isfinite(exact):
        return False
    beyond = 2 * targets - targets.mean(0, keepdim=True)
    for some in (slice(k, k + 1) for k in range(count)) if count <= MOST_NUMBERS else (slice(None),):
        said = targets.clone().reshape(len(targets), count, -1)
        said[:, some] = beyond.reshape(said.shape)[:, some]
        if asked(loss, said.reshape(targets.shape), targets) < exact - 1e-4 * abs(exact):
            return True
    return False


def compares_columns(targets: Tensor, loss: Any) -> bool:
    """Whether a loss of several numbers, (n, k), compares each with one of as many targets.

    Then no column can do better half a deviation from the targets, or from them in another order. One that takes the
    numbers for parameters, and the targets for a time and whether it was an end, can.
    """
    unit = targets.std(0, correction=0, keepdim=True)

    def is_least(said: Tensor) -> bool:
        exact = asked(loss, said, targets)
        moved = (
            asked(loss, said + way * unit * (torch.arange(said.shape[1]) == column), targets)
            for column in range(said.shape[1])
            for way in (-0.5, 0.5)
        )
        return all(not found < exact - 1e-4 * abs(exact) for found in moved)

    return any(is_least(targets.roll(turn, 1)) for turn in range(targets.shape[1]))


def tells_places_apart(targets: Tensor, loss: Any) -> bool:
    """Whether it matters which of several points of a row, (n, points, ...), stands where: not to a loss of sets.

    Asked of answers near the targets, some of which are the others' nearest ones.
    """
    unit = targets.std(correction=0)
    noise = torch.randn(targets.shape, generator=torch.Generator().manual_seed(0)).to(targets)
    said = targets + 0.5 * unit * noise
    once, turned = asked(loss, said, targets), asked(loss, said.roll(1, 1), targets)
    return not abs(turned - once) <= _ALIKE * abs(once)


def counts_thresholds(outputs: Tensor, targets: Tensor, loss: Any) -> bool:
    """Whether each of (b, k) outputs says that a grade is above one of k thresholds, as ordinal losses have it.

    Then outputs of which as many are above 0 as the grade says cost less than those of the grades beside it, and than
    the same read from the other end.
    """
    grades = targets.reshape(len(targets), -1)[:, 0].long()
    if outputs.ndim != 2 or targets.numel() != len(targets) or outputs.shape[1] < 2 or int(grades.min()) < 0:
        return False
    width = outputs.shape[1]

    def cost(said: Tensor) -> float:
        above = torch.arange(width, device=said.device) < said.clamp(0, width)[:, None]
        return asked(loss, torch.where(above, 3.0, -3.0).to(outputs), targets)

    return cost(grades) < min(cost(other) for other in (grades - 1, grades + 1, width - grades))


def takes_a_side(outputs: Tensor, classes: int, targets: Tensor, loss: Any) -> bool:
    """Whether the loss prefers the labels, each in its place, to others, or others to them: one or the other.

    One that aligns sequences by itself, such as CTC, does not know of places.
    """
    last = outputs.shape[-1] == classes and outputs.shape[:-1] in (targets.shape, (targets.numel(),))
    sides, alone = set(), [slice(k, k + 1) for k in range(min(MOST_NUMBERS, len(targets)))]
    for turn in (1, 2):
        both = [F.one_hot((targets.long() + k).clamp(0) % classes, classes).to(outputs) for k in (0, turn)]
        right, other = (hot.reshape(outputs.shape) if last else hot.movedim(-1, 1) for hot in both)
        for rows in (slice(None), *(alone if len(outputs) == len(targets) else [])):
            for size, low in ((1.0, 0.0), (1.0, 1.0), (3.0, 1.0), (10.0, 1.0)):
                mine, others = (
                    asked(loss, size * (hot[rows] * (1 + low) - low), targets[rows]) for hot in (right, other)
                )
                if math.isfinite(mine) and math.isfinite(others) and abs(mine - others) > 1e-4 * abs(others):
                    sides.add(mine < others)
    return len(sides) < 2


def asks_for_the_next(outputs: Tensor, classes: int, targets: Tensor, loss: Any) -> bool:
    """Whether a loss of sequences, (n, t) labels, wants at each place what the targets have at the next one."""
    if targets.ndim != 2 or outputs.ndim != 3:
        return False
    last, lost = outputs.shape[-1] == classes and outputs.shape[:-1] == targets.shape, []
    for labels in (targets, targets.roll(-1, 1)):
        hot = F.one_hot(labels.long().clamp(0) % classes, classes).to(outputs)
        lost.append(asked(loss, 10 * (hot if last else hot.movedim(-1, 1)), targets))
    return lost[1] < lost[0]


def tells_columns_apart(outputs: Tensor, targets: Tensor, loss: Any) -> bool:
    """Whether it matters which number of a row stands where: to what compares rows by their distances it does not."""
    said = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
    once, turned = asked(loss, said, targets), asked(loss, said.roll(1, -1), targets)
    return not abs(turned - once) <= _ALIKE * abs(once)


def is_over_rows(outputs: Tensor, targets: Tensor, loss: Any) -> bool:
    """Whether scores of classes, (n, classes), are shared out over the rows of the batch, and not over the classes.

    Then what is added to a class in every row changes nothing, and what is added to a row in every class does. So it is
    of distances between rows, to which all columns are alike.
    """
    if not tells_columns_apart(outputs, targets, loss):
        return False
    draws = torch.Generator().manual_seed(0)
    said = torch.randn(outputs.shape, generator=draws).to(outputs)
    column, row = (torch.randn(shape, generator=draws).to(outputs) for shape in ((1, said.shape[1]), (len(said), 1)))
    once, of_columns, of_rows = (asked(loss, given, targets) for given in (said, said + column, said + row))
    return abs(of_columns - once) <= _ALIKE * abs(once) < _APART * abs(once) < abs(of_rows - once)


def is_of_no_row(outputs: Tensor, targets: Tensor, loss: Any) -> bool:
    """Whether a loss reads the targets, but not whose they are: it is the same when they change places."""
    said = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
    unit = targets.std().nan_to_num(0) if targets.is_floating_point() else 0
    said = said * unit if unit > 0 else said
    once, other = asked(loss, said, targets), asked(loss, said, 2 * targets + 1)
    moved = [asked(loss, said, targets.roll(turn, 0)) for turn in (1, 2, 3)]
    return all(abs(one - once) <= _ALIKE * abs(once) < _APART * abs(once) < abs(other - once) for one in moved)


def is_highest_at_targets(targets: Tensor, loss: Any) -> bool:
    """Whether the targets themselves cost more than those of other rows, and than their opposites."""
    exact, others, opposite = (asked(loss, said, targets) for said in (targets, targets.roll(1, 0), -targets))
    return exact > others > opposite


def compares_rows(outputs: Tensor, targets: Tensor, loss: Any) -> bool:
    """Whether the loss of a batch is neither an average of those of its halves, however weighted, nor their sum."""
    if outputs.numel() == targets.numel():
        outputs = outputs.reshape(targets.shape)
    half = min(len(outputs), len(targets)) // 2
    try:
        whole, first, second = (
            float(loss(outputs[rows], targets[rows]))
            for rows in (slice(0, 2 * half), slice(0, half), slice(half, 2 * half))
        )
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    near = 1e-4 * max(abs(first), abs(second)) + 1e-12
    averaged = min(first, second) - near <= whole <= max(first, second) + near
    return half > 1 and math.isfinite(whole) and not averaged and not abs(first + second - whole) <= near


def of_any_length(targets: Tensor, loss: Any) -> bool:
    """Whether a loss takes outputs of the wrong length for as good as the targets themselves, and not the opposite."""
    try:
        exact, half, double, opposite = (float(loss(times * targets, targets)) for times in (1, 0.5, 2, -1))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    moved = max(abs(half - exact), abs(double - exact))
    return moved <= 1e-3 * abs(opposite - exact) and opposite != exact


def of_any_level(targets: Tensor, loss: Any) -> bool:
    """Whether a loss takes targets (b, k) to which each row adds a number of its own for the targets themselves.

    Such as one of scores of classes, of which the softmax is taken.
    """
    if targets.ndim != 2 or targets.shape[1] < 2 or not targets.is_floating_point():
        return False
    draws = torch.randn(len(targets), 1, generator=torch.Generator().manual_seed(0)).to(targets)
    exact, raised, opposite = (asked(loss, given, targets) for given in (targets, targets + draws, -targets))
    return abs(raised - exact) <= 1e-3 * abs(opposite - exact) and opposite != exact


def goes_round(targets: Tensor, loss: Any) -> bool:
    """Whether numbers a whole turn away are as good as the targets, as of angles, and those a part of it away are not.

    Of such numbers 0 and a whole turn are one, and their squared difference says nothing.
    """
    exact = asked(loss, targets, targets)
    for turn in _TURNS:
        away, part = (asked(loss, targets + step, targets) for step in (turn, turn / 3))
        if part > exact and abs(away - exact) <= 1e-3 * (part - exact):
            return True
    return False


def prefers(loss: Any, outputs: Tensor, targets: Tensor) -> bool:
    """Whether a loss takes these outputs for better than the targets themselves."""
    if not callable(loss) or outputs.numel() != targets.numel():
        return False
    try:
        mine, exact = (float(loss(given, targets)) for given in (outputs, targets.reshape(outputs.shape).to(outputs)))
    except (RuntimeError, ValueError, TypeError):
        return False
    return mine < exact


def hears_nothing(outputs: Tensor, targets: Tensor, loss: Any) -> bool:
    """Whether a loss is one and the same number for outputs of all sizes, drawn at random and as they are."""
    draws = torch.Generator().manual_seed(0)
    said = [size * torch.randn(outputs.shape, generator=draws).to(outputs) for size in (0.1, 1.0, 10.0)]
    found = [asked(loss, one, targets) for one in (outputs, *said, *(-one for one in said), said[1].abs(), said[1] + 5)]
    return math.isfinite(sum(found)) and max(found) - min(found) <= _ALIKE * max(map(abs, found))


def is_lopsided(targets: Tensor, loss: Any) -> bool:
    """Whether a loss takes too much for worse than as much too little, or the other way round, as of quantiles."""
    unit = float(targets.double().std(correction=0)) if targets.is_floating_point() and len(targets) > 1 else 0.0
    over, under = (asked(loss, targets + way * unit, targets) for way in (1.0, -1.0))
    return unit > 0 and math.isfinite(over + under) and abs(over - under) > _LOPSIDED * abs(over + under)


def is_distance(outputs: Tensor, targets: Tensor, loss: Any) -> bool:
    """Whether one number a row, never below 0, is meant to be small where the answer is yes, as of two alike."""
    if outputs.numel() != len(outputs) or targets.numel() != len(targets):
        return False
    if bool((outputs < 0).any()) or _is_probability(outputs):
        return False
    outputs = outputs.detach()
    yes = (targets == targets.max()).to(outputs.dtype).reshape(outputs.shape)
    for size in (0.5, 1.0, 2.0):
        try:
            near, far = (float(loss(size * said, targets)) for said in (1 - yes, yes))
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False
        if not near < far:
            return False
    return True


def _is_probability(outputs: Tensor) -> bool:
    """Whether a sigmoid or a softmax is the last that was done to them, but for their shape."""
    if not bool((outputs <= 1).all()):
        return False
    node = outputs.grad_fn
    for _ in range(_FEW_STEPS):
        name = type(node).__name__
        if node is None or any(word in name for word in ("Sigmoid", "sigmoid", "Softmax")):
            return True
        if not any(word in name for word in ("View", "Squeeze", "Unsqueeze", "Select", "Slice", "Alias", "Clone")):
            return False
        node = node.next_functions[0][0]
    return False
