"""Where batches come from: tensors in memory, a map-style dataset, or a stream; and what was found out about them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import InitVar, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, IterableDataset, Subset, default_collate

from fogline.data.privacy import PrivateRandom, derived_seed
from fogline.data.reading import Mark, Pass

if TYPE_CHECKING:
    from fogline.data.streamed import Streamed

_IN_NUMPY = (torch.float32, torch.float64, torch.int32, torch.int64)

Batch = Any
"""``(inputs, targets)`` for supervised work; a tensor, tuple or dict of tensors for ``on_batch``."""


def map_tree(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply a function to every tensor in nested tuples, lists and dicts; other leaves are kept.

    >>> map_tree(lambda leaf: leaf.shape[0], {"a": torch.ones(2), "b": (torch.ones(3), "text")})
    {'a': 2, 'b': (3, 'text')}
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: map_tree(function, value) for key, value in tree.items()}
    if isinstance(tree, PackedSequence):  # made from what it is, it would be checked for being one
        return tree._replace(data=function(tree.data))
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tree(function, value) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_tree(function, value) for value in tree)
    if isinstance(tree, Collated):
        return replace(tree, tree=map_tree(function, tree.tree), after=(*tree.after, function))
    return tree


@dataclass(frozen=True)
class Collated:
    """A batch whose tensors are no rows, as a collate function makes of pictures of many sizes, of graphs or of texts.

    A part of it is made anew from its examples.

    Attributes:
        tree: the batch, as the function of ``on_batch`` is given it.
        examples: that it was made of.
        collate: made it.
        after: what was done to every tensor since, in this order.
    """

    tree: Any
    examples: list[Any]
    collate: Callable[[list[Any]], Any] = default_collate
    after: tuple[Callable[[Tensor], Any], ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def at(self, places: Iterable[int]) -> Collated:
        """The batch of these examples."""
        examples = [self.examples[place] for place in places]
        with PrivateRandom() as random:
            random.seed(derived_seed(0, len(examples)))
            tree = _as_tuple(self.collate(examples))
        for function in self.after:
            tree = map_tree(function, tree)
        return replace(self, tree=tree, examples=examples)

    def pin_memory(self) -> Collated:
        """For a DataLoader that pins what it reads."""
        pinned: Collated = map_tree(Tensor.pin_memory, self)
        return pinned


def whole(batch: Batch) -> Any:
    """The batch as the user's own code is given it."""
    return batch.tree if isinstance(batch, Collated) else batch


def rows_of(batch: Batch) -> int:
    """The number of examples in a batch: the first dimension of its first tensor that has one."""
    if type(batch) is tuple and type(batch[0]) is Tensor:
        return int(batch[0].shape[0])
    if isinstance(batch, Collated):
        return len(batch)
    return next((int(leaf.shape[0]) for leaf in leaves(batch) if leaf.ndim), 1)


def part(batch: Batch, start: int, stop: int) -> Batch:
    """Rows ``start`` to ``stop`` of every tensor in a batch."""
    if type(batch) is tuple and len(batch) == 2 and type(batch[0]) is Tensor and type(batch[1]) is Tensor:
        return batch[0][start:stop], batch[1][start:stop]
    if isinstance(batch, Collated):
        places = range(len(batch))[start:stop]
        return batch if len(places) == len(batch) else batch.at(places)
    return map_tree(lambda leaf: leaf[start:stop] if leaf.ndim else leaf, batch)


def taken(batch: Batch, index: Tensor) -> Batch:
    """These rows of every tensor: (b,) positions, or a bool for every row."""
    if isinstance(batch, Collated):
        return batch.at((index.nonzero().flatten() if index.dtype == torch.bool else index).tolist())
    return map_tree(lambda leaf: leaf[index], batch)


def are_rows(tree: Any, count: int) -> bool:
    """Whether all there is are tensors of so many rows, in nested tuples, lists and dicts.

    >>> are_rows({"x": torch.ones(2, 3)}, 2), are_rows([torch.ones(3, 8, 8), torch.ones(3, 9, 9)], 2)
    (True, False)
    """
    if isinstance(tree, Tensor):
        return tree.ndim > 0 and tree.shape[0] == count
    parts = list(tree.values()) if isinstance(tree, dict) else tree
    return isinstance(parts, (tuple, list)) and all(are_rows(item, count) for item in parts)


def leaves(tree: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and dicts, in order."""
    found: list[Tensor] = []
    map_tree(found.append, tree)
    return found


def cast(tree: Batch, dtype: torch.dtype | None) -> Batch:
    """The batch with floating-point tensors of this type; tensors that have it already are not copied."""
    if dtype is None:
        return tree
    return map_tree(partial(_of_type, dtype), tree)


def _of_type(dtype: torch.dtype, leaf: Tensor) -> Tensor:
    return leaf.to(dtype) if leaf.is_floating_point() else leaf


def float_type(model: nn.Module) -> torch.dtype:
    """Of the first weights that are real numbers: what numbers that the model is given have to be."""
    return next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)


def described(batch: Any) -> str:
    """The structure of a batch in words.

    >>> described({"x": torch.ones(2, 3)})
    "a dict with keys ['x']"
    """
    if isinstance(batch, Tensor):
        return f"one tensor of shape {tuple(batch.shape)}"
    if isinstance(batch, dict):
        return f"a dict with keys {list(batch)}"
    if isinstance(batch, Collated):
        return described(batch.tree)
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {len(batch)} ({', '.join(type(item).__name__ for item in batch)})"
    return f"a {type(batch).__name__}"


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
    called: InitVar[str] = ""  # what an error begins with

    def __post_init__(self, called: str) -> None:
        found = leaves(self.tensors)
        if not found:
            raise TypeError(f"{called}expected tensors, received {described(self.tensors)} without any tensor in it")
        if any(leaf.ndim == 0 for leaf in found):
            received = "a single number; give it a first dimension with x[None]"
            raise ValueError(f"{called}expected tensors whose first dimension counts examples, received {received}")
        rows = [leaf.shape[0] for leaf in found]
        if len(set(rows)) > 1:
            raise ValueError(f"{called}expected tensors with the same number of rows, received {rows} rows")

    @property
    def size(self) -> int:
        return int(leaves(self.tensors)[0].shape[0])

    def take(self, index: Tensor, into: Batch | None = None) -> Batch:
        """The rows of these positions, (b,) int64 on the device of the data, in this order.

        They are written ``into`` a batch of as many rows where one is given.
        """
        if into is not None:
            for leaf, held in zip(leaves(self.tensors), leaves(into), strict=True):
                _fill(held, leaf, index)
            return into
        if type(self.tensors) is tuple and len(self.tensors) == 2:  # without the cost of walking a tree
            inputs, targets = self.tensors
            if type(inputs) is Tensor and type(targets) is Tensor:
                return inputs.index_select(0, index), targets.index_select(0, index)
        return map_tree(lambda leaf: leaf.index_select(0, index), self.tensors)

    def slice(self, start: int, stop: int) -> Batch:
        """Rows ``start`` to ``stop`` as views: nothing is copied."""
        return map_tree(lambda leaf: leaf[start:stop], self.tensors)

    def to(self, device: torch.device | str) -> InMemory:
        """The same data on another device."""
        return InMemory(map_tree(lambda leaf: leaf.to(device), self.tensors))

    def astype(self, dtype: torch.dtype) -> InMemory:
        """The same data with floating-point tensors of another type; whole numbers stay as they are."""
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
    number of workers and after a resume, and the random state of the caller is left as it was. A dataset with a method
    ``set_epoch`` is told which pass it is read for, before every batch, as samplers of PyTorch are.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any] = default_collate
    num_workers: int = 0
    pin: bool = False
    dtype: torch.dtype | None = None  # floating-point leaves are cast to it
    seed: int = 0
    epoch: int = 0
    whole: bool = False  # batches are Collated

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
        loader: Any = DataLoader(
            replace(self, seed=seed, epoch=epoch),  # type: ignore[arg-type]  # it has what a DataLoader asks for
            batch_sampler=index_batches,
            collate_fn=_as_it_is,
            num_workers=self.num_workers if workers is None else workers,
            pin_memory=self.pin and torch.accelerator.is_available(),
            generator=torch.Generator().manual_seed(seed),  # else it would draw from the caller's
        )
        return (replace(batch, collate=self.collate) for batch in loader) if self.whole else iter(loader)

    def __getitems__(self, indices: list[int]) -> Batch:
        """A batch, with a random state of its own around every example and around the collation."""
        base: Any = self.dataset.dataset if type(self.dataset) is Subset else self.dataset
        if callable(getattr(base, "set_epoch", None)):
            base.set_epoch(self.epoch)
        with PrivateRandom() as random:
            if callable(getattr(base, "__getitems__", None)):  # reads a batch at once: one state for the batch
                random.seed(derived_seed(self.seed, self.epoch, *indices[:1]))
                examples = list(self.dataset.__getitems__(indices))
            else:
                examples = [self._example(random, index) for index in indices]
            random.seed(derived_seed(self.seed, self.epoch, *indices[:1], len(indices)))
            return _collated(self, examples)

    def _example(self, random: PrivateRandom, index: int) -> Any:
        random.seed(derived_seed(self.seed, self.epoch, index))
        return self.dataset[index]

    def take(self, index: Tensor, seed: int = 0, epoch: int = 0) -> Batch:
        """One batch, read in this process; the same values :meth:`loader` gives."""
        return next(self.loader([index.tolist()], 0, seed, epoch))

    def astype(self, dtype: torch.dtype) -> MapStyle:
        """The same examples with floating-point tensors of another type."""
        return replace(self, dtype=dtype)


def _as_it_is(batch: Any) -> Batch:
    return batch


def _collated(source: MapStyle | Stream, examples: list[Any]) -> Batch:
    """A batch: a tuple where the collate function made a list, in the float type asked for."""
    batch = _as_tuple(source.collate(examples))
    if source.whole:  # the user's function stays in its process: it need not be one that can be sent
        return cast(Collated(batch, examples), source.dtype)
    return cast(batch, source.dtype)


def _as_tuple(batch: Any) -> Any:
    return tuple(batch) if type(batch) is list else batch


@dataclass(frozen=True)
class Stream:
    """An ``IterableDataset``: examples come in the order it gives them, or shuffled in a window of so many.

    One process reads it, this one or one of its own, because with several its order would depend on their number.
    """

    dataset: IterableDataset[Any]
    collate: Callable[[list[Any]], Any] = default_collate
    dtype: torch.dtype | None = None
    window: int = 0
    whole: bool = False  # batches are Collated

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
        return (batch for batch, _ in self.marked(batch_size, start, seed, epoch))

    def marked(
        self, batch_size: int, start: int, seed: int, epoch: int, mark: Mark | None = None, workers: int = 0
    ) -> Iterator[tuple[Batch, Mark]]:
        """The same with the mark behind each batch, from which a later pass goes on without reading all before."""
        one = Pass(self.dataset, partial(_collated, self), batch_size, start, seed, epoch, self.window, mark or Mark())
        found = one.in_a_process() if workers else iter(one)
        return ((replace(batch, collate=self.collate), at) for batch, at in found) if self.whole else found

    def astype(self, dtype: torch.dtype) -> Stream:
        """The same examples with floating-point tensors of another type."""
        return replace(self, dtype=dtype)


def source_of(batch: Batch, dtype: torch.dtype | None = None) -> InMemory | MapStyle:
    """A batch as a source of batches, floating-point numbers in this type."""
    if isinstance(batch, Collated):
        return MapStyle(batch.examples, batch.collate, dtype=dtype, whole=True)
    return InMemory(cast(batch, dtype))


Source = Union[InMemory, MapStyle, Stream, "Streamed"]
"""Each has a ``size`` (examples in one pass; None for a stream of unknown length) and ``astype(dtype)``."""

_ROWS = {InMemory: 64, MapStyle: 8}  # examples that count for the fingerprint; a stream would be used up


def fingerprint(source: Source) -> str:
    """A short name for data, so that a run is never resumed on other data by mistake.

    A hash of the size, shapes, types and the bytes of up to 64 evenly spaced examples (8 of a map-style dataset). A
    stream cannot be read without using it up, so only its kind counts.

    >>> a, b = InMemory(torch.arange(5.0)), InMemory(torch.arange(5.0) + 1)
    >>> fingerprint(a) == fingerprint(InMemory(torch.arange(5.0))), fingerprint(a) == fingerprint(b)
    (True, False)
    """
    named = getattr(source, "fingerprint", None)
    if callable(named):
        return str(named())
    assert isinstance(source, InMemory | MapStyle | Stream)
    digest = hashlib.sha256(f"{type(source).__name__} {source.size}".encode())
    if isinstance(source, Stream):
        return digest.hexdigest()[:32]
    count = min(source.size, _ROWS[type(source)])
    spaced = torch.linspace(0, source.size - 1, count, dtype=torch.float64).round().long()
    device = leaves(source.tensors)[0].device if isinstance(source, InMemory) else "cpu"
    for leaf in leaves(source.take(spaced.to(device))):
        digest.update(f"{tuple(leaf.shape)} {leaf.dtype}".encode())
        digest.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


Kind = Literal["classification", "regression", "other"]


@dataclass(frozen=True)
class Facts:
    """What the data is, for choosing a model, a loss and metrics, and for telling the user.

    Attributes:
        kind: classification, regression, or other (``on_batch``).
        inputs: shape of one example's input without the batch dimension; () where it has no single shape.
        classes: names of the classes in the order of their labels.
        outputs: width the last layer of a model needs; 0 where it is not known without reading all the data.
        columns: names of the input columns after encoding.
        notes: sentences to show the user.
        batch_size: the batch size of the DataLoader that was given.
        shuffle: what the DataLoader asked for; None where nothing was said.
        threshold: output above which a single-unit classifier says "yes": 0 for a logit, 0.5 for a probability.
        input_mean, input_scale: statistics of each input column, for a built-in model on tensors that nobody scaled.
        target_mean, target_scale: mean and deviation of each column of numbers to predict, on the training data.
        held_out_variance: variance of each of those columns on the held-out data (else the training data), for R2.
    """

    kind: Kind
    inputs: tuple[int, ...] = ()
    classes: tuple[str, ...] | None = None
    outputs: int = 1
    columns: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    batch_size: int | None = None
    shuffle: bool | None = None
    threshold: float = 0.0
    input_mean: tuple[float, ...] | None = None
    input_scale: tuple[float, ...] | None = None
    target_mean: tuple[float, ...] | None = None
    target_scale: tuple[float, ...] | None = None
    held_out_variance: tuple[float, ...] | None = None
