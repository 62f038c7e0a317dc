"""Where examples lie near each other: by what the trained model makes of them, by their inputs, by what they show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fogline._examples.dynamics import Record
from fogline._examples.fingerprints import fingerprints
from fogline._examples.neighbours import unit
from fogline.data.intake import Opened, open_data
from fogline.data.source import InMemory, Source, Stream, leaves, map_tree, whole
from fogline.descent.objective import mode
from fogline.descent.randomness import private_randomness
from fogline.record.store import Table
from fogline.run import Run
from fogline.task import Task

_WIDEST = 64
_WIDEST_INPUT = 4096
_MOST_FOR_AXES = 20_000
_AT_ONCE = 512
_SIDE = 32  # pixels of the pictures that are compared
_ONE_UNIT = 4.0

Split = dict[str, Tensor]
"""Rows by split: "train" and, where examples are held out, "valid"."""


class Spaces:
    """The vectors of the training and held-out examples, made when they are first asked for."""

    def __init__(self, run: Run, record: Record, task: Task) -> None:
        self.run, self.record, self.task = run, record, task
        self._links: Table | None = None

    @cached_property
    def opened(self) -> Opened:
        """The data of the task.

        Raises:
            ValueError: it is not the data of the run.
        """
        recipe = self.run.info.get("recipe") or {}
        with private_randomness(torch.device("cpu")):
            opened = open_data(self.task, seed=int(recipe.get("seed") or 0))
        if opened.train.size != self.record.count:
            raise ValueError(
                f"expected the task the run was made with, of {self.record.count} training examples, "
                f"received one of {opened.train.size}"
            )
        return opened

    @property
    def sources(self) -> dict[str, Source]:
        """The data by split."""
        found: dict[str, Source | None] = {"train": self.opened.train, "valid": self.opened.valid}
        return {split: source for split, source in found.items() if source is not None}

    @cached_property
    def embedding(self) -> Split:
        """What goes into the model's last linear layer, rows of unit length; {} where there is no such layer.

        It is kept in the run folder as ``examples/embedding.safetensors``.
        """
        path = self.run.folder / "examples" / "embedding.safetensors"
        kept = _read(path)
        if set(kept) != set(self.sources) or len(kept["train"]) != self.record.count:
            model = Run(self.run.folder, task=self.task, model=self.run._model).model
            kept = embed(model, self.sources)
            if kept:
                save_file(kept, path)
        return {split: unit(rows) for split, rows in kept.items()}

    @cached_property
    def inputs(self) -> Split:
        """The inputs as rows of unit length; {} where they are no small arrays in memory.

        Of more than 64 numbers the first 64 principal components are kept.
        """
        found = {split: _flat(source) for split, source in self.sources.items()}
        rows: Split = {split: flat for split, flat in found.items() if flat is not None}
        if set(rows) != set(self.sources):
            return {}
        scale = scales(rows["train"])
        middle = rows["train"].mean(0)
        centred = {split: F.normalize((flat - middle) / scale) for split, flat in rows.items()}
        axes = _principal(centred["train"])
        return {split: F.normalize(flat @ axes) for split, flat in centred.items()} if axes is not None else centred

    @cached_property
    def pictures(self) -> Split:
        """Where inputs are pictures: those, at most 32 pixels a side, (N, channels, height, width); else {}."""
        if not 2 <= len(self.opened.facts.inputs) <= 3:
            return {}
        found = {
            split: torch.cat([_picture(part) for part in _in_parts(source)]) for split, source in self.sources.items()
        }
        return found if 1 <= found["train"].shape[1] <= 4 else {}

    @cached_property
    def looks(self) -> Split:
        """What nearly the same examples are found by: fingerprints of pictures, else the inputs, else the embedding."""
        if not self.pictures:
            return self.inputs or self.embedding
        whole = fingerprints(torch.cat([self.pictures[split] for split in self.sources]))
        parts = torch.split(whole, [len(self.pictures[split]) for split in self.sources])
        return dict(zip(self.sources, parts, strict=True))

    def links(self, labels: NDArray[np.int64] | None) -> Table:
        """Pairs of pictures that are near each other as those of one series are, over both splits."""
        from fogline._examples.series import links

        if self._links is None:
            self._links = links(torch.cat([self.pictures[split] for split in self.sources]), labels)
        return self._links

    def spaces(self) -> list[Tensor]:
        """Rows of the training examples in each space there is, the embedding first."""
        return [split["train"] for split in (self.embedding, self.inputs) if split]

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns of a table by name, (N,) float32 each; {} where the inputs have no names."""
        names, flat = self.opened.facts.columns, _flat(self.opened.train)
        if not names or flat is None or flat.shape[1] != len(names):
            return {}
        return dict(zip(names, flat.T.numpy(), strict=True))

    def labels(self, split: str) -> NDArray[np.int64] | None:
        """The labels of a split, (N,), where they are classes."""
        if split == "train" and self.record.targets is not None and self.record.targets.dtype.kind == "i":
            return self.record.targets
        source = self.sources[split]
        if isinstance(source, Stream) or self.record.kind != "classification":
            return None
        parts = [batch[1] for batch in _batches(source)]
        targets = torch.cat(parts)
        targets = (
            targets.argmax(1) if targets.ndim == 2 and targets.shape[1] > 1 else targets.reshape(len(targets), -1)[:, 0]
        )
        return targets.long().cpu().numpy()


def _read(path: Path) -> Split:
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return {}


def scales(rows: Tensor) -> Tensor:
    """By what columns are divided before they are compared: 1 where all have one unit, as pixels do; else deviations.

    >>> scales(torch.tensor([[0.0, 0.0], [1.0, 2.0]])).tolist()
    [1.0, 1.0]
    >>> scales(torch.tensor([[0.0, 0.0], [1.0, 90.0]])).tolist()
    [0.5, 45.0]
    """
    ranges = rows.amax(0) - rows.amin(0)
    used = ranges > 0
    if not used.any() or ranges.max() <= _ONE_UNIT * ranges[used].median():
        return torch.ones_like(ranges)
    return torch.where(used, rows.std(0, correction=0), torch.ones_like(ranges))


def _principal(rows: Tensor) -> Tensor | None:
    """The first 64 principal components of rows, (d, 64); None where there are no more than that."""
    if rows.shape[1] <= _WIDEST:
        return None
    some = rows[torch.linspace(0, len(rows) - 1, min(len(rows), _MOST_FOR_AXES)).long()]
    vectors: Tensor = torch.linalg.eigh(some.T @ some / len(some))[1]
    return vectors[:, -_WIDEST:]


def embed(model: nn.Module, sources: dict[str, Source]) -> Split:
    """The input of the model's last linear layer for every example, (N, d) float16 by split; {} without such a layer.

    In evaluation mode. Of more than 64 numbers a random projection to 64 is kept.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        return {}
    like = next(model.parameters())

    def to_model(leaf: Tensor) -> Tensor:
        return leaf.to(like.device, like.dtype if leaf.is_floating_point() else leaf.dtype)

    made: Split = {}
    project: Callable[[Tensor], Tensor] | None = None
    with private_randomness(like.device), _listening(model, layers[-1]) as heard, torch.no_grad():
        for split, source in sources.items():
            rows = []
            for inputs in _in_parts(source):
                model(map_tree(to_model, inputs))
                found = heard.pop().reshape(len(leaves(inputs)[0]), -1).float().cpu()
                project = project or _projection(found.shape[1])
                rows.append(project(found).half())
                heard.clear()
            made[split] = torch.cat(rows)
    return made


def _projection(width: int) -> Callable[[Tensor], Tensor]:
    if width <= _WIDEST:
        return lambda rows: rows
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(width, _WIDEST, generator=generator) / _WIDEST**0.5
    return lambda rows: rows @ matrix


@contextmanager
def _listening(model: nn.Module, layer: nn.Module) -> Iterator[list[Tensor]]:
    """A list that the inputs of a layer are put in, the model in evaluation mode meanwhile."""
    heard: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, given, __: heard.append(given[0].detach()))
    try:
        with mode(model, training=False):
            yield heard
    finally:
        hook.remove()


def _batches(source: Source) -> Iterator[Any]:
    if isinstance(source, Stream):
        raise ValueError(
            "expected data that can be read by position, received a stream; give it as a map-style dataset"
        )
    for start in range(0, source.size, _AT_ONCE):
        yield whole(source.take(torch.arange(start, min(start + _AT_ONCE, source.size))))


def _in_parts(source: Source) -> Iterator[Any]:
    """The inputs, some rows at a time."""
    for batch in _batches(source):
        yield batch[0] if isinstance(batch, tuple | list) else batch


def _flat(source: Source) -> Tensor | None:
    if not isinstance(source, InMemory):
        return None
    inputs = source.tensors[0] if isinstance(source.tensors, tuple) else source.tensors
    if not isinstance(inputs, Tensor) or int(np.prod(inputs.shape[1:])) > _WIDEST_INPUT or inputs.is_complex():
        return None
    return inputs.flatten(1).float().cpu()


def _picture(inputs: Tensor) -> Tensor:
    pictures = inputs.float().cpu()
    pictures = pictures[:, None] if pictures.ndim == 3 else pictures
    return F.adaptive_avg_pool2d(pictures, _SIDE) if max(pictures.shape[-2:]) > _SIDE else pictures
