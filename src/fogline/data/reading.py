"""One pass over an ``IterableDataset``, from any position on, with what a later pass needs to go on from there."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from fogline.data.privacy import PrivateRandom, derived_seed

_ORDER = 1 << 40  # behind every position: its random numbers are for the order, not for an example


@dataclass(frozen=True)
class Mark:
    """A position that a pass can be taken up at; plain values.

    Attributes:
        read: examples that the dataset had given.
        state: its ``state_dict()`` at that moment, where it has one of plain values; else all before is read again.
    """

    read: int = 0
    state: Any = None


@dataclass(frozen=True)
class Pass(IterableDataset[Any]):
    """The batches of one pass, each with the mark of the position behind it.

    Random numbers that an example draws depend on (seed, epoch, its place in the pass), so they are the same wherever
    the pass is taken up. A dataset with ``state_dict`` and ``load_state_dict`` is copied (flatly) and the copy is read:
    several passes do not move one another.

    Attributes:
        dataset: is read from its beginning, or from the state of the mark.
        collate: makes a batch of a list of examples.
        batch_size: of every batch but the last.
        start: position of the first example that is given.
        window: examples that are shuffled together; 0 keeps the order of the dataset.
        mark: at or before the window that ``start`` lies in.
    """

    dataset: IterableDataset[Any]
    collate: Callable[[list[Any]], Any]
    batch_size: int
    start: int = 0
    seed: int = 0
    epoch: int = 0
    window: int = 0
    mark: Mark = field(default_factory=Mark)

    def in_a_process(self) -> Iterator[tuple[Any, Mark]]:
        """The same batches, read ahead by a process of its own."""
        private = torch.Generator().manual_seed(self.seed)  # else it would draw from the caller's
        return iter(
            DataLoader(self, batch_size=None, num_workers=1, prefetch_factor=4, collate_fn=_as_it_is, generator=private)
        )

    def __iter__(self) -> Iterator[tuple[Any, Mark]]:
        random, reader = PrivateRandom(), _Reader(self)
        block = self.window or self.batch_size
        first = self.start - self.start % self.window if self.window else self.start
        with random:
            reader.open(random)
            if reader.position > first:  # the mark behind a last batch that was short
                return
            reader.skip(random, first - reader.position)
        if reader.position < first:
            return
        waiting: list[tuple[Any, Mark]] = []
        drop, ended = self.start - first, False
        while not ended or waiting:
            while not ended and len(waiting) < self.batch_size:
                with random:
                    mark = reader.mark()
                    found = reader.next_block(random, block)
                ended = len(found) < block
                waiting += [(example, mark) for example in found[drop:]]
                drop = max(0, drop - len(found))
            given, waiting = waiting[: self.batch_size], waiting[self.batch_size :]
            if not given:
                return
            with random:
                random.seed(derived_seed(self.seed, self.epoch, reader.position, len(given)))
                batch = self.collate([example for example, _ in given])
                behind = waiting[0][1] if waiting else reader.mark()
            yield batch, behind


class _Reader:
    """The examples of a dataset one by one, each with random numbers of its own."""

    def __init__(self, one: Pass) -> None:
        stateful = callable(getattr(one.dataset, "state_dict", None))
        self._stateful = stateful and callable(getattr(one.dataset, "load_state_dict", None))
        self._dataset: Any = copy.copy(one.dataset) if self._stateful else one.dataset
        self._one, self.position = one, 0
        self._examples: Iterator[Any] = iter(())

    def open(self, random: PrivateRandom) -> None:
        """At the mark where the dataset can be put there, else at the beginning."""
        one = self._one
        if callable(getattr(self._dataset, "set_epoch", None)):
            self._dataset.set_epoch(one.epoch)
        if self._stateful and one.mark.state is not None:
            self._dataset.load_state_dict(one.mark.state)
            self.position = one.mark.read
        random.seed(derived_seed(one.seed, one.epoch))
        self._examples = iter(self._dataset)

    def mark(self) -> Mark:
        state = self._dataset.state_dict() if self._stateful else None
        return Mark(self.position, _plain(state))

    def skip(self, random: PrivateRandom, count: int) -> None:
        """Read and drop; the random numbers are drawn as they were."""
        for _ in islice(self._each(random), count):
            pass

    def next_block(self, random: PrivateRandom, count: int) -> list[Any]:
        """Up to so many examples, shuffled where there is a window."""
        place = self.position
        found = list(islice(self._each(random), count))
        if not self._one.window:
            return found
        order = np.random.default_rng(derived_seed(self._one.seed, self._one.epoch, _ORDER + place))
        return [found[k] for k in order.permutation(len(found))]

    def _each(self, random: PrivateRandom) -> Iterator[Any]:
        one = self._one
        while True:
            random.seed(derived_seed(one.seed, one.epoch, self.position))
            try:
                example = next(self._examples)
            except StopIteration:
                return
            self.position += 1
            yield example


def _plain(state: Any) -> Any:
    """The state as JSON keeps it, or None: nothing is ever pickled into a checkpoint."""
    try:
        return json.loads(json.dumps(state, allow_nan=False))
    except (TypeError, ValueError):
        return None


def _as_it_is(pair: Any) -> Any:
    return pair
