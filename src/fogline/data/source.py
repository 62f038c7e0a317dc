"""Where batches come from: tensors in memory, a map-style dataset, or a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from fogline.data.privacy import PrivateRandom, derived_seed

_IN_NUMPY = (torch.float32, torch.float64, torch.int32, torch.int64)

Batch = Any
"""``(inputs, targets)`` for supervised work; a tensor, tuple or dict of tensors for ``on_batch``."""


class Source(Protocol):
    """What the three kinds of source have in common."""

    @property
    def size(self) -> int | None:
        """Examples in one pass; None for a stream of unknown length."""

    def astype(self, dtype: torch.dtype) -> Source:
        """The same data with floating-point leaves of another type; whole numbers stay as they are."""


def map_tree(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply a function to every tensor in nested tuples, lists and dicts; other leaves are kept.

    >>> map_tree(lambda leaf: leaf.shape[0], {"a": torch.ones(2), "b": (torch.ones(3), "text")})
    {'a': 2, 'b': (3, 'text')}
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: map_tree(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tree(function, value) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_tree(function, value) for value in tree)
    return tree


def leaves(tree: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and dicts, in order."""
    found: list[Tensor] = []
    map_tree(found.append, tree)
    return found


def cast(tree: Batch, dtype: torch.dtype) -> Batch:
    """The batch with floating-point tensors of this type; tensors that have it already are not copied."""
    return map_tree(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, tree)


@dataclass(frozen=True)
class InMemory:
    """Tensors with the same first dimension, sliced and never collated.

    >>> source = InMemory((torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0])))
    >>> source.size
    3
    >>> source.take(torch.tensor([2, 0]))
    (tensor([[4., 5.],
            [0., 1.]]), tensor([0, 0]))
    """

    tensors: Any

    def __post_init__(self) -> None:
        sizes = [leaf.shape[0] if leaf.ndim else None for leaf in leaves(self.tensors)]
        if not sizes:
            raise TypeError(f"expected tensors, received {type(self.tensors).__name__} without any tensor in it")
        if None in sizes or len(set(sizes)) > 1:
            raise ValueError(f"expected tensors with the same number of rows, received {sizes} rows")

    @property
    def size(self) -> int:
        return int(leaves(self.tensors)[0].shape[0])

    def take(
        self,
        index: Tensor,  # (b,) int64, on the device of the data
        into: Batch | None = None,
    ) -> Batch:
        """The rows of these positions, in this order; written ``into`` a batch of as many rows where one is given."""
        tensors = self.tensors
        if into is not None:
            for leaf, held in zip(leaves(tensors), leaves(into), strict=True):
                _fill(held, leaf, index)
            return into
        if type(tensors) is tuple and len(tensors) == 2:
            inputs, targets = tensors
            if type(inputs) is Tensor and type(targets) is Tensor:
                return inputs.index_select(0, index), targets.index_select(0, index)
        if type(tensors) is Tensor:
            return tensors.index_select(0, index)
        return map_tree(lambda leaf: leaf.index_select(0, index), tensors)

    def slice(self, start: int, stop: int) -> Batch:
        """Rows ``start`` to ``stop`` as views: nothing is copied."""
        return map_tree(lambda leaf: leaf[start:stop], self.tensors)

    def to(self, device: torch.device | str) -> InMemory:
        """The same data on another device."""
        return InMemory(map_tree(lambda leaf: leaf.to(device), self.tensors))

    def astype(self, dtype: torch.dtype) -> InMemory:
        return InMemory(cast(self.tensors, dtype))

    @property
    def nbytes(self) -> int:
        """Bytes the tensors take."""
        return sum(leaf.nbytes for leaf in leaves(self.tensors))


def _fill(held: Tensor, leaf: Tensor, index: Tensor) -> None:
    if leaf.is_cpu and leaf.dtype in _IN_NUMPY:  # which takes short rows in half the time
        np.take(leaf.numpy(), index.numpy(), axis=0, out=held.numpy(), mode="clip")
    else:
        torch.index_select(leaf, 0, index, out=held)


@dataclass(frozen=True)
class MapStyle:
    """A dataset with ``__getitem__`` and ``__len__``, read by PyTorch's own DataLoader in the order it is given.

    The random numbers an example draws (augmentation) depend only on (seed, epoch, index), so they are the same for any
    number of workers and after a resume, and the random state of the caller is left as it was.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any] = default_collate
    num_workers: int = 0
    pin: bool = False
    dtype: torch.dtype | None = None  # floating-point leaves are cast to it

    @property
    def size(self) -> int:
        return len(self.dataset)

    def loader(
        self, index_batches: Iterable[list[int]], workers: int | None = None, seed: int = 0, epoch: int = 0
    ) -> Iterator[Batch]:
        """Batches of the positions given, in the order given.

        Args:
            index_batches: the positions of each batch.
            workers: processes that read; None takes the number the DataLoader had.
            seed, epoch: with an example's position they decide its random numbers.
        """
        workers = self.num_workers if workers is None else workers
        collate: Any = _SeededCollate(self.collate, seed, epoch, self.dtype)  # is given what _Seeded fetched
        yield from DataLoader(
            _Seeded(self.dataset, seed, epoch),
            batch_sampler=index_batches,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=self.pin and torch.accelerator.is_available(),
            generator=torch.Generator().manual_seed(seed),  # else it would draw from the caller's
        )

    def take(self, index: Tensor, seed: int = 0, epoch: int = 0) -> Batch:
        """One batch, read in this process; the same values :meth:`loader` gives."""
        return next(self.loader([index.tolist()], 0, seed, epoch))

    def astype(self, dtype: torch.dtype) -> MapStyle:
        return replace(self, dtype=dtype)


@dataclass(frozen=True)
class _Seeded(Dataset[Any]):
    """The dataset with its own random state around every example; gives (positions, examples) to the collate."""

    dataset: Any
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> tuple[list[int], list[Any]]:
        base = self.dataset.dataset if type(self.dataset) is Subset else self.dataset
        with PrivateRandom() as random:
            if callable(getattr(base, "__getitems__", None)):  # reads a batch at once: one state for the batch
                random.seed(derived_seed(self.seed, self.epoch, *indices[:1]))
                return indices, list(self.dataset.__getitems__(indices))
            examples = []
            for index in indices:
                random.seed(derived_seed(self.seed, self.epoch, index))
                examples.append(self.dataset[index])
        return indices, examples


@dataclass(frozen=True)
class _SeededCollate:
    collate: Callable[[list[Any]], Any]
    seed: int
    epoch: int
    dtype: torch.dtype | None

    def __call__(self, fetched: tuple[list[int], list[Any]]) -> Batch:
        indices, examples = fetched
        with PrivateRandom() as random:
            random.seed(derived_seed(self.seed, self.epoch, *indices[:1], len(indices)))
            return _finish(self.collate(examples), self.dtype)


def _finish(batch: Any, dtype: torch.dtype | None) -> Batch:
    """A tuple where the collate made a list, and the float type asked for."""
    batch = tuple(batch) if type(batch) is list else batch
    return batch if dtype is None else cast(batch, dtype)


@dataclass(frozen=True)
class Stream:
    """An ``IterableDataset``: examples come in the order it gives them, and the position is a count of examples.

    It is read in this process, because with several workers its order would depend on their number.
    """

    dataset: IterableDataset[Any]
    collate: Callable[[list[Any]], Any] = default_collate
    dtype: torch.dtype | None = None

    @property
    def size(self) -> int | None:
        try:
            return len(self.dataset)  # type: ignore[arg-type]  # most have none
        except TypeError:
            return None

    def batches(self, batch_size: int, start: int = 0, seed: int = 0, epoch: int = 0) -> Iterator[Batch]:
        """One pass from position ``start`` on; the last batch may be short.

        The examples before ``start`` are read and dropped, with the random numbers they drew the first time.
        """
        if callable(getattr(self.dataset, "set_epoch", None)):
            self.dataset.set_epoch(epoch)  # type: ignore[attr-defined]
        random = PrivateRandom()
        with random:
            random.seed(derived_seed(seed, epoch))
            examples = iter(self.dataset)
            skipped = sum(1 for _ in islice(examples, start))
        if skipped < start:
            return
        while True:
            with random:
                batch = list(islice(examples, batch_size))
                if not batch:
                    return
                made = _finish(self.collate(batch), self.dtype)
            yield made

    def astype(self, dtype: torch.dtype) -> Stream:
        return replace(self, dtype=dtype)
