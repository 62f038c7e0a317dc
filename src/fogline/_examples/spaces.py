"""Where examples lie near each other: the inputs themselves, and what the trained model makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fogline._examples.dynamics import Record
from fogline._examples.neighbours import unit
from fogline.data.intake import open_data
from fogline.data.source import InMemory, MapStyle, Source, Stream, leaves, map_tree
from fogline.descent.randomness import private_randomness
from fogline.run import Run
from fogline.task import Task

_WIDEST = 64
_WIDEST_INPUT = 4096
_AT_ONCE = 512


class Spaces:
    """The vectors of the training and held-out examples, made when they are first asked for."""

    def __init__(self, run: Run, record: Record, task: Task) -> None:
        self.run, self.record, self.task = run, record, task
        self._made: dict[str, list[Tensor]] = {}

    def train(self) -> list[Tensor]:
        """Rows of unit length of the training examples, a tensor (N, d) for each space; the first is the model's."""
        return self._of("train")

    def valid(self) -> list[Tensor]:
        """The same of the held-out examples; empty where there are none."""
        return self._of("valid")

    def _of(self, split: str) -> list[Tensor]:
        if not self._made:
            self._made = self._make()
        return self._made[split]

    def _make(self) -> dict[str, list[Tensor]]:
        seed = int(self.run.info.get("recipe", {}).get("seed", 0) or 0)
        opened = open_data(self.task, seed=seed)
        sources = {"train": opened.train, "valid": opened.valid}
        if opened.train.size != self.record.count:
            raise ValueError(
                f"expected the task the run was made with, of {self.record.count} training examples, "
                f"received one of {opened.train.size}"
            )
        embedded = self._embedding(sources)
        found: dict[str, list[Tensor]] = {}
        for split, source in sources.items():
            rows = [] if split not in embedded else [unit(embedded[split])]
            flat = None if source is None else _inputs(source)
            found[split] = rows if flat is None else [*rows, unit(flat)]
        return found

    def _embedding(self, sources: dict[str, Source | None]) -> dict[str, Tensor]:
        path = self.run.folder / "examples" / "embedding.safetensors"
        kept = _read(path)
        if kept and len(kept["train"]) == self.record.count:
            return kept
        model = Run(self.run.folder, task=self.task, model=self.run._model).model
        made = embed(model, {name: source for name, source in sources.items() if source is not None})
        if made:
            save_file(made, path)
        return made


def _read(path: object) -> dict[str, Tensor]:
    try:
        return load_file(str(path))
    except (OSError, SafetensorError):
        return {}


def embed(model: nn.Module, sources: dict[str, Source]) -> dict[str, Tensor]:
    """The input of the model's last linear layer for every example, (N, d) float16 by split; {} without such a layer.

    In evaluation mode. Of more than 64 numbers a random projection to 64 is kept.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        return {}
    made: dict[str, Tensor] = {}
    projection: Tensor | None = None
    with private_randomness(torch.device("cpu")), _listening(model, layers[-1]) as heard, torch.no_grad():
        like = next(model.parameters())
        for split, source in sources.items():
            rows = []
            for inputs in _in_parts(source):
                model(map_tree(lambda leaf: leaf.to(like.device), inputs))
                rows.append(heard.pop().reshape(len(leaves(inputs)[0]), -1).float().cpu())
            whole = torch.cat(rows)
            if whole.shape[1] > _WIDEST:
                if projection is None:
                    generator = torch.Generator().manual_seed(0)
                    projection = torch.randn(whole.shape[1], _WIDEST, generator=generator) / _WIDEST**0.5
                whole = whole @ projection
            made[split] = whole.half()
    return made


@contextmanager
def _listening(model: nn.Module, layer: nn.Module) -> Iterator[list[Tensor]]:
    """A list that the inputs of a layer are put in, the model in evaluation mode meanwhile."""
    heard: list[Tensor] = []
    modes = [(module, module.training) for module in model.modules()]
    hook = layer.register_forward_hook(lambda _, given, __: heard.append(given[0].detach()))
    try:
        model.eval()
        yield heard
    finally:
        hook.remove()
        for module, training in modes:
            module.training = training


def _in_parts(source: Source) -> Iterator[Tensor]:
    if isinstance(source, Stream):
        raise ValueError("expected data that can be read by position, received a stream")
    for start in range(0, source.size, _AT_ONCE):
        index = torch.arange(start, min(start + _AT_ONCE, source.size))
        batch = source.take(index)
        yield batch[0] if isinstance(batch, tuple | list) else batch


def _inputs(source: Source) -> Tensor | None:
    """The inputs as rows, (N, d) float32, where they are small arrays in memory."""
    if isinstance(source, MapStyle | Stream):
        return None
    assert isinstance(source, InMemory)
    inputs = source.tensors[0] if isinstance(source.tensors, tuple) else source.tensors
    if not isinstance(inputs, Tensor) or int(np.prod(inputs.shape[1:])) > _WIDEST_INPUT or inputs.is_complex():
        return None
    return inputs.flatten(1).float()
