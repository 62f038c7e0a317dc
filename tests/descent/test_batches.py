"""Batches by step number: the same ones however they are asked for, every example once an epoch."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from fogline.data.source import InMemory, MapStyle, Stream
from fogline.descent.batches import Batches, rows_of, split


class Numbers(Dataset[Tensor]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(float(index))


class Counting(IterableDataset[Tensor]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Any:
        return (torch.tensor(float(k)) for k in range(self.count))


def of(kind: str, examples: int, size: int, **settings: Any) -> Batches:
    sources = {"memory": lambda: InMemory(torch.arange(float(examples))), "map": lambda: MapStyle(Numbers(examples))}
    return Batches(sources[kind](), size, **settings)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 5), st.booleans())
def test_an_epoch_covers_every_example_once(examples: int, size: int, seed: int, shuffle: bool) -> None:
    batches = of("memory", examples, size, seed=seed, shuffle=shuffle)
    per_epoch = batches.steps_per_epoch
    assert per_epoch == -(-examples // min(size, examples))
    taken = list(islice(batches.stream(0), 3 * per_epoch))
    for epoch in range(3):
        found = torch.cat(taken[epoch * per_epoch : (epoch + 1) * per_epoch]).tolist()
        assert sorted(found) == list(range(examples))
        assert shuffle or found == list(range(examples))
    assert [rows_of(batch) for batch in taken] == [batches.rows_at(step) for step in range(3 * per_epoch)]


@pytest.mark.parametrize("kind", ["memory", "map"])
def test_stream_at_rows_and_run_agree_from_every_step(kind: str) -> None:
    batches = of(kind, 23, 4, seed=7)
    wanted = [batch.tolist() for batch in islice(batches.stream(0), 17)]
    for step in range(14):
        assert batches.at(step).tolist() == wanted[step]
        rows = batches.rows(step)
        assert rows is not None
        assert rows.tolist() == wanted[step]
        assert [batch.tolist() for batch in islice(batches.stream(step), 3)] == wanted[step : step + 3]
        run = batches.run(step, 2)
        full = kind == "memory" and step % 6 < 4  # both are full batches of one epoch
        assert (run is not None) == full
        if run is not None:
            assert run.tolist() == wanted[step] + wanted[step + 1]


def test_memory_and_data_set_have_the_same_order() -> None:
    one, other = (islice(of(kind, 17, 5, seed=3).stream(2), 9) for kind in ("memory", "map"))
    assert [batch.tolist() for batch in one] == [batch.tolist() for batch in other]


def test_blocks_are_invisible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathering a few steps at a time gives what one gather a step gives."""
    whole = [batch.tolist() for batch in islice(of("memory", 50, 3, seed=1).stream(5), 40)]
    monkeypatch.setattr("fogline.descent.batches._BLOCK_ROWS", 7)
    assert [batch.tolist() for batch in islice(of("memory", 50, 3, seed=1).stream(5), 40)] == whole


def test_a_batch_size_beyond_the_data_is_the_data() -> None:
    batches = of("memory", 5, 100)
    assert batches.batch_size == 5
    assert batches.steps_per_epoch == 1


@pytest.mark.parametrize("step", range(9))
def test_a_stream_is_sought_by_reading(step: int) -> None:
    batches = Batches(Stream(Counting(7)), 3)
    wanted = [batch.tolist() for batch in islice(batches.stream(0), 12)]
    assert wanted[:3] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [batch.tolist() for batch in islice(batches.stream(step), 3)] == wanted[step : step + 3]
    assert batches.rows(0) is None
    assert batches.place(0) is None


def test_a_stream_cannot_be_asked_by_position() -> None:
    with pytest.raises(ValueError, match="received a stream"):
        Batches(Stream(Counting(7)), 3).at(0)


def test_an_empty_stream_is_an_error() -> None:
    with pytest.raises(ValueError, match="received an empty one"):
        next(Batches(Stream(Counting(0)), 3).stream(0))


def test_split_gives_views_of_any_structure() -> None:
    batch = {"x": torch.arange(10).reshape(5, 2), "scale": torch.tensor(2.0)}
    parts = list(split(batch, 2))
    assert [rows_of(part) for part in parts] == [2, 2, 1]
    assert torch.cat([part["x"] for part in parts]).tolist() == batch["x"].tolist()
    assert all(part["scale"] is batch["scale"] for part in parts)
