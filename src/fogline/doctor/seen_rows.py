"""The rows that a watched loop showed at first, and what they say where it learned nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

_MOST_NUMBERS, _MOST_OF_A_BATCH = 1_000_000, 100_000
_FEWEST, _FEWEST_HELD_OUT, _FEWEST_COPIES = 100, 32, 5
_SURE = 3.0  # standard errors
_FEWEST_CLASSES, _FEWEST_OF_A_CLASS = 4, 8  # three have but three orders
_ALMOST_ALL = 0.9  # of the columns
_CLEAR, _ANY_ORDER, _ORDERS = 0.6, 0.25, 400


class SeenRows:
    """Inputs and targets of some batches, on the CPU."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._left = _MOST_NUMBERS
        self._later: list[Tensor] = []
        self._first = 0  # batches that came before those
        self._held_out: list[Tensor] = []
        self._waiting: list[Tensor] = []

    def add(self, given: tuple[Any, ...], targets: Tensor) -> None:
        """Keep a batch whose model was called with one tensor, of as many rows as there are targets."""
        if len(given) != 1 or not isinstance(given[0], Tensor) or not targets.ndim or len(given[0]) != len(targets):
            return
        rows = _most_rows(given[0])
        size = rows * given[0][:1].numel()
        if rows and size <= self._left:
            self._left -= size
            self._batches.append(tuple(t.detach()[:rows].cpu().clone() for t in (given[0], targets)))  # type: ignore[arg-type]

    def later(self, given: tuple[Any, ...]) -> None:
        """Keep the inputs of a batch that comes later."""
        if len(given) == 1 and isinstance(given[0], Tensor) and given[0].ndim and self._batches:
            self._first = self._first or len(self._batches)
            self._later.append(given[0].detach()[: _most_rows(given[0])].cpu().clone())

    def differ(self) -> bool:
        """Whether there are batches of other rows than the first."""
        first = self._batches[0][0] if self._batches else None
        return first is not None and any(not torch.equal(first, other) for other, _ in self._batches[1:])

    def held_out(self, given: tuple[Any, ...]) -> None:
        """Keep the first rows that go forward without gradients; they are held-out ones if scores follow."""
        if self._held_out or self._waiting or len(given) != 1 or not isinstance(given[0], Tensor) or not given[0].ndim:
            return
        self._waiting = [given[0].detach()[: _most_rows(given[0])].cpu().clone()]

    def scored(self) -> None:
        """Scores followed."""
        self._held_out, self._waiting = self._held_out or self._waiting, []

    def moved(self) -> tuple[float, float] | None:
        """How far the held-out rows have moved, in deviations of the training rows, and the ratio of their deviations.

        Medians over the columns. None where units that are the same explain it: for at least half of the columns what
        is utterly apart, for a tenth what is clearly so.
        """
        from fogline.doctor.case import FAILURES
        from fogline.doctor.causes.data.split import shifted
        from fogline.doctor.reference import features

        if not self._held_out or not self._batches or not self._held_out[0].is_floating_point():
            return None
        with suppress(*FAILURES):
            train, other = features(torch.cat([inputs for inputs, _ in self._batches])), features(self._held_out[0])
            if train is not None and other is not None and train.shape[1] == other.shape[1]:
                if len(other) < _FEWEST_HELD_OUT or not bool((other.std(0) > 0).any()):
                    return None
                shift, ratio, counted = shifted(train, other)
                half, most = (shift > 3) | (ratio > 5), (shift > 1.5) | (ratio > 1.5)
                if counted and (float(half.double().mean()) > 0.5 or float(most.double().mean()) > _ALMOST_ALL):
                    return float(shift.median()), float(ratio.median())
        return None

    def copied(self) -> tuple[int, int] | None:
        """How many of the held-out rows are copies of training rows, and of how many; None where there is no leak.

        Rows of measured numbers have no twins by chance. What is scored may be the training rows themselves: then as
        many of them are found among the first rows as of those that were trained on later.
        """
        if not self._held_out or not self._later:
            return None
        parts = (self._held_out[0], *self._later, *(inputs for inputs, _ in self._batches[: self._first]))
        read = _bytes_of_rows(parts)
        if read is None:
            return None
        held, late, first = read[0], read[1 : len(self._later) + 1], read[len(self._later) + 1 :]
        known = {row for batch in first for row in batch}
        again = [row in known for batch in late for row in batch]
        found = sum(row in known for row in held)
        share, covered = found / len(held), (sum(again) + 1) / (len(again) + 2)
        error = math.sqrt(covered * (1 - covered) * (1 / len(held) + 1 / len(again)))
        if len(held) < _FEWEST_HELD_OUT or found < _FEWEST_COPIES or share > covered - _SURE * error:
            return None
        known |= {row for batch in late for row in batch}
        return sum(row in known for row in held), len(held)

    def unordered(self) -> dict[str, float] | None:
        """Whether targets are numbers of classes whose order means nothing, though a loss may take them for amounts.

        Amounts that the inputs tell have means of the inputs that lie the farther apart the more the amounts differ.
        Where the classes are told by these means, and the means know no more of the order than of any other, there is
        none.

        Returns:
            The number of classes, the skill of the nearest mean for other rows, and the share of other orders that suit
            the means as well. None where there is an order, or where that is not to be seen.
        """
        from fogline.doctor.case import FAILURES
        from fogline.doctor.reference import without_copies

        with suppress(*FAILURES):
            inputs, targets = self._together()
            numbers = targets.double()
            if numbers.numel() != len(numbers) or not torch.equal(numbers, numbers.round()):
                return None
            read = _finite_features(inputs)
            if read is None:
                return None
            first = without_copies(read)
            values, classes = torch.unique(numbers.reshape(-1)[first], return_inverse=True)
            counted = values[0] + torch.arange(len(values), dtype=values.dtype)
            rows = torch.bincount(classes)
            few = len(values) < _FEWEST_CLASSES or int(rows.min()) < _FEWEST_OF_A_CLASS
            if few or float(values[0]) not in (0.0, 1.0) or not torch.equal(values, counted):
                return None
            skill, means = _nearest_mean(read[first].double(), classes)
            share = _orders_as_good(torch.cdist(means, means))
            if skill > _CLEAR and share > _ANY_ORDER:
                return {"classes": len(values), "skill": skill, "orders": share}
        return None

    def tell(self, loss_fn: Any, *, fewest: int = _FEWEST) -> dict[str, float] | None:
        """How well the best of the classical learners answers rows it did not learn from, by those it did.

        Returns:
            The score, 0 for the best constant answer and 1 for a perfect one; a standard error of it; and the rows.
            None where there are too few, or none that such learners read.
        """
        from fogline.doctor.case import FAILURES
        from fogline.doctor.reference import score_of, without_copies
        from fogline.doctor.yardstick import Yardstick, error_of

        with suppress(*FAILURES):
            inputs, targets = self._together()
            read = _finite_features(inputs)
            if read is None or targets.ndim > 2:
                return None
            if read.shape == targets.shape and torch.allclose(read, targets.double()):
                return None  # an auto-encoder, which a linear map copies
            first = without_copies(read)
            yardstick = Yardstick.of(targets, loss_fn)
            first = first[yardstick.counted(targets[first])]
            if len(first) >= fewest and yardstick.work in ("classes", "binary", "regression"):
                score = score_of(read[first], targets[first], yardstick)
                error = error_of(len(first) // 5, yardstick.classes)
                return {"score": score, "error": error, "rows": len(first)}
        return None

    def _together(self) -> tuple[Tensor, Tensor]:
        """All batches as one."""
        inputs, targets = (torch.cat(list(parts)) for parts in zip(*self._batches, strict=True))
        return inputs, targets


def _most_rows(inputs: Tensor) -> int:
    """Rows of a batch that are kept: fewer where a row is large."""
    return min(len(inputs), _MOST_OF_A_BATCH // max(1, inputs[:1].numel()))


def _bytes_of_rows(parts: Sequence[Tensor]) -> list[list[bytes]] | None:
    """The rows of each part; None where they are not of measured numbers, or not of one width."""
    from fogline.doctor.case import FAILURES
    from fogline.doctor.reference import features, measured

    with suppress(*FAILURES):
        read = [columns for columns in map(features, parts) if columns is not None]
        if len(read) == len(parts) and len({part.shape[1] for part in read}) == 1 and measured(read[0]):
            return [[row.tobytes() for row in part.numpy()] for part in read]
    return None


def _finite_features(inputs: Tensor) -> Tensor | None:
    """What classical learners read of the inputs; None where that is nothing, or not finite."""
    from fogline.doctor.reference import features

    read = features(inputs)
    return read if read is not None and bool(torch.isfinite(read).all()) else None


def _nearest_mean(rows: Tensor, classes: Tensor) -> tuple[float, Tensor]:
    """Skill of the nearest mean of half of the rows for the others, 0 for the commonest class; and all rows' means."""
    scaled = (rows - rows.mean(0)) / rows.std(0).clamp_min(1e-12)
    hot = torch.nn.functional.one_hot(classes).double()
    place = (hot.cumsum(0) * hot).sum(1) % 2 == 0  # every other row of each class

    def means(of: Tensor) -> Tensor:
        return hot[of].T @ scaled[of] / hot[of].sum(0).clamp_min(1)[:, None]

    right = torch.cdist(scaled[~place], means(place)).argmin(1) == classes[~place]
    chance = float(hot.mean(0).max())
    return (float(right.double().mean()) - chance) / (1 - chance), means(torch.ones_like(place))


def _orders_as_good(apart: Tensor) -> float:
    """Share of all orders of classes in which those far from one another are as far apart as in the order given."""
    count, generator = len(apart), torch.Generator().manual_seed(0)
    steps = (torch.arange(count)[:, None] - torch.arange(count)).abs().double()
    others = [torch.randperm(count, generator=generator) for _ in range(_ORDERS)]
    suits = float((apart * steps).sum())
    return sum(float((apart[o][:, o] * steps).sum()) >= suits * (1 - 1e-9) for o in others) / _ORDERS
