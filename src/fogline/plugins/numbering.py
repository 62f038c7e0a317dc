"""Which examples a batch of a ``DataLoader`` is made of, for data that does not say so itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from fogline.errors import misfit


class Numbers:
    """The numbers of the examples of each batch that a loader gives, in the order of the batches.

    The loader's batch sampler is asked as before and what it answers is remembered, so the data, its order and the
    random numbers stay as they are. Workers and batches that are fetched ahead change nothing: batches come in the
    order in which they were asked for.

    Args:
        loader: a ``DataLoader`` over a map-style dataset, before the epoch that is to be numbered has begun.

    Raises:
        TypeError, ValueError: it is no DataLoader, or one that does not make its batches of numbered examples.

    >>> import torch
    >>> loader = DataLoader(torch.arange(5), batch_size=2)
    >>> numbers = Numbers(loader)
    >>> [(batch.tolist(), numbers.next().tolist()) for batch in loader]
    [([0, 1], [0, 1]), ([2, 3], [2, 3]), ([4], [4])]
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        if not isinstance(loader, DataLoader):
            raise misfit(
                "a torch DataLoader", type(loader).__name__, "pass the loader of the training data", "", TypeError
            )
        loader = getattr(loader, "base_dataloader", loader)  # Accelerate's reads from the one it stands around
        sampler = loader.batch_sampler
        if not can_be_numbered(loader) or sampler is None:
            received = f"one over {type(loader.dataset).__name__} that has no batch sampler"
            raise misfit("a DataLoader over numbered examples", received, "let the dataset return the numbers itself")
        self._given: deque[NDArray[np.int64]] = deque()
        self._loader = loader
        self._sampler = sampler
        # DataLoader refuses this assignment to keep its batch_size true, which stays as it is here.
        object.__setattr__(loader, "batch_sampler", _Remembering(sampler, self._given))

    def next(self) -> NDArray[np.int64]:
        """The numbers of the next batch, in the order of its rows.

        Raises:
            ValueError: no further batch was asked for.
        """
        if not self._given:
            raise ValueError(
                "numbers: expected a batch of the loader for every call, received none since; call next() once a "
                "batch, and make Numbers before the epoch begins"
            )
        return self._given.popleft()

    def release(self) -> None:
        """Give the loader its own batch sampler back."""
        object.__setattr__(self._loader, "batch_sampler", self._sampler)


def can_be_numbered(loader: object) -> bool:
    """Whether it is a loader that makes its batches of examples that it draws by their numbers."""
    if not isinstance(loader, DataLoader):
        return False
    return loader.batch_sampler is not None and not isinstance(loader.dataset, IterableDataset)


class _Remembering(BatchSampler):
    """A batch sampler that remembers what it gave in this epoch; all else is the sampler's own."""

    def __init__(self, sampler: Any, given: deque[NDArray[np.int64]]) -> None:
        self._own, self._given = sampler, given

    def __iter__(self) -> Iterator[list[int]]:
        self._given.clear()
        for batch in self._own:
            self._given.append(np.asarray(batch, dtype=np.int64))
            yield batch

    def __len__(self) -> int:
        return len(self._own)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_own":
            raise AttributeError(name)
        return getattr(self._own, name)
