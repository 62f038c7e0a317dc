"""The part of every batch that one of several processes takes, and what it counts for in the mean over all of them.

The batch of a step is the same for any number of processes; each takes a contiguous share of its rows, the largest and
the smallest of which differ by one. A share may be empty: then there are fewer rows than processes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fogline.data.source import Batch, InMemory, MapStyle, Stream
from fogline.descent.batches import Batches, Place, part, rows_of
from fogline.descent.objective import Objective
from fogline.descent.order import permute


def share_of(rows: int, rank: int, size: int) -> tuple[int, int]:
    """First row and the one behind the last that a process takes of so many rows.

    >>> [share_of(5, rank, 3) for rank in range(3)]
    [(0, 1), (1, 3), (3, 5)]
    """
    return rows * rank // size, rows * (rank + 1) // size


class Portion(NamedTuple):
    """What a process takes of the batch of a step: None where it has no row, and how many rows all have."""

    batch: Batch | None
    rows: int


@dataclass(frozen=True)
class Share:
    """The batches of a run as one process of several takes them.

    Only rows of its own are read, except from a stream, which every process reads to its end.
    """

    batches: Batches
    rank: int
    size: int
    filled: bool = False  # where there is no row for this process, it gets the first of the batch

    def stream(self, step: int) -> Iterator[Portion]:
        """The portions from a step on, without end."""
        source = self.batches.source
        if isinstance(source, InMemory):
            return self._sliced(source, step)
        return self._loaded(source, step) if isinstance(source, MapStyle) else self._streamed(step)

    def at(self, step: int) -> tuple[Batch | None, NDArray[np.int64]]:
        """The share of one step, read on its own, and which examples it is made of.

        Raises:
            ValueError: the source is a stream, which cannot be asked again.
        """
        batches, place = self.batches, self.batches.place(step)
        if place is None or isinstance(batches.source, Stream):
            raise ValueError("expected data that can be read by position, received a stream")
        rows = self._index(place.epoch, self._positions(place))
        if not len(rows):
            return None, rows
        if isinstance(batches.source, MapStyle):
            return batches.placed(batches.source.take(torch.from_numpy(rows), batches.seed, place.epoch)), rows
        return batches.source.take(batches.index(rows)), rows

    def _places(self, step: int) -> Iterator[Place]:
        """Of a step and those after it in its epoch."""
        steps = self.batches.steps_per_epoch
        assert steps is not None
        found = (self.batches.place(k) for k in range(step, step + steps - step % steps))
        return (place for place in found if place is not None)

    def _bounds(self, rows: int) -> tuple[int, int]:
        start, stop = share_of(rows, self.rank, self.size)
        return (0, 1) if self.filled and start == stop else (start, stop)

    def _positions(self, place: Place) -> NDArray[np.int64]:
        start, stop = self._bounds(place.stop - place.start)
        return np.arange(place.start + start, place.start + stop)

    def _index(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        batches = self.batches
        assert batches.examples is not None
        return permute(batches.seed, epoch, positions, batches.examples) if batches.shuffle else positions

    def _sliced(self, source: InMemory, step: int) -> Iterator[Portion]:
        """Rows of many steps are gathered at once and then only sliced, as :class:`Batches` does it."""
        batches = self.batches
        many = max(1, batches.block_rows(1) * self.size // batches.batch_size)
        while True:
            places = self._places(step)
            while block := list(islice(places, many)):
                positions = [self._positions(place) for place in block]
                rows = self._index(block[0].epoch, np.concatenate(positions))
                gathered, start = source.take(batches.index(rows)), 0
                for place, own in zip(block, positions, strict=True):
                    batch = part(gathered, start, start + len(own)) if len(own) else None
                    yield Portion(batch, place.stop - place.start)
                    start += len(own)
                step += len(block)

    def _loaded(self, source: MapStyle, step: int) -> Iterator[Portion]:
        batches = self.batches
        while True:
            places = list(self._places(step))
            epoch = places[0].epoch
            indices = [self._index(epoch, self._positions(place)).tolist() for place in places]
            found = source.loader([rows for rows in indices if rows], batches.workers, batches.seed, epoch)
            for place, rows in zip(places, indices, strict=True):
                yield Portion(batches.placed(next(found)) if rows else None, place.stop - place.start)
            step += len(places)

    def _streamed(self, step: int) -> Iterator[Portion]:
        for batch in self.batches.stream(step):
            rows = rows_of(batch)
            start, stop = self._bounds(rows)
            yield Portion(part(batch, start, stop) if stop > start else None, rows)


@dataclass(frozen=True)
class Weighing:
    """How the losses of shares make that of the whole batch.

    Attributes:
        objective: of a share: the mean over its rows, or a sum.
        count: what a share counts for where that is not its rows: targets that are not ignored, weights of classes.
        summed: the loss adds over examples; nothing is weighed.
    """

    objective: Objective
    count: Callable[[Batch], Tensor] | None
    summed: bool

    @classmethod
    def of(cls, objective: Objective, *, summed: bool) -> Weighing:
        """The weighing of a loss.

        A cross-entropy averages over the targets that are not ignored, by the weights of their classes; so its shares
        are summed, and what they count for is summed beside. Everything else is taken for a mean over rows.
        """
        loss = objective.loss
        of_module = type(loss) in (nn.CrossEntropyLoss, nn.NLLLoss) and getattr(loss, "reduction", "") == "mean"
        if summed or not (of_module or loss in (F.cross_entropy, F.nll_loss)):
            return cls(objective, None, summed)
        if of_module:
            adding: Any = copy.copy(loss)
            adding.reduction = "sum"
        else:
            function: Any = loss
            adding = partial(function, reduction="sum")
        weights, ignored = getattr(loss, "weight", None), getattr(loss, "ignore_index", -100)
        return cls(replace(objective, loss=adding), partial(_counted, weights=weights, ignored=ignored), False)

    def share(
        self, batch: Batch, rows: int, evaluated: Callable[[Objective, Batch], Tensor] = Objective.__call__
    ) -> tuple[Tensor, float | Tensor]:
        """The loss of a share as it adds to that of ``rows`` rows, and how many of them it counts for.

        Where all counts together are not ``rows``, loss and gradient are to be divided by their part of them.
        """
        loss = evaluated(self.objective, batch)
        own = rows_of(batch)
        if self.summed:
            return loss, own
        if self.count is None:
            return loss * (own / rows), own
        return loss / rows, self.count(batch)


def _counted(batch: Batch, *, weights: Tensor | None, ignored: int) -> Tensor:
    """The divisor of the mean of a cross-entropy."""
    targets = batch[1]
    if targets.is_floating_point():  # probabilities of classes
        return torch.tensor(targets.numel() / targets.shape[1], device=targets.device)
    kept: Tensor = targets != ignored
    if weights is None:
        return kept.sum()
    return torch.sum(weights[torch.where(kept, targets, 0)] * kept)


def is_no_average(objective: Objective, batch: Batch) -> bool:
    """Whether the loss of a batch is neither the mean nor the sum of those of its halves, by what they count for."""
    rows = rows_of(batch)
    if rows < 2 or getattr(objective.loss, "reduction", None) == "sum":
        return False
    weighing = Weighing.of(objective, summed=False)
    shares = [weighing.share(part(batch, *share_of(rows, half, 2)), rows) for half in range(2)]
    whole, total = objective.value(batch).item(), sum(float(weight) for _, weight in shares)
    mean = sum(loss.item() for loss, _ in shares) * rows / total if total else whole
    added = sum(objective.value(part(batch, *share_of(rows, half, 2))).item() for half in range(2))
    far = 1e-3 * abs(whole) + 1e-6
    return not (abs(whole - mean) <= far or abs(whole - added) <= far)
