"""A stream is taken up where it was left, gives the same examples to any reader, and may be shuffled in a window."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import IterableDataset

import fogline
from fogline.data.source import Stream
from fogline.descent.batches import Batches


class Counting(IterableDataset[Tensor]):
    """0, 1, 2, ..., each with a random number; it knows its place and notes what was read of it."""

    def __init__(self, size: int = 23) -> None:
        self.size, self.place, self.read = size, 0, []

    def __iter__(self) -> Iterator[Tensor]:
        while self.place < self.size:
            value = self.place
            self.place += 1
            self.read.append(value)
            yield torch.tensor([float(value), torch.rand(()).item()])

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


class Forgetful(Counting):
    """The same without a state."""

    state_dict = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Tensor]:
        self.place = 0
        return super().__iter__()


def rows(batches: Any) -> list[list[float]]:
    return [row for batch in batches for row in batch.tolist()]


@pytest.mark.parametrize("kind", [Counting, Forgetful])
@settings(max_examples=40, deadline=None)
@given(batch_size=st.integers(1, 9), window=st.sampled_from([0, 1, 4, 10, 40]), steps=st.integers(0, 9))
def test_a_mark_gives_the_rest_of_the_pass(kind: type[Counting], batch_size: int, window: int, steps: int) -> None:
    source = Stream(kind(), window=window)
    whole = list(source.marked(batch_size, 0, seed=3, epoch=1))
    steps = min(steps, len(whole))
    mark = whole[steps - 1][1] if steps else None
    rest = source.marked(batch_size, steps * batch_size, 3, 1, mark)
    assert rows(batch for batch, _ in rest) == rows(batch for batch, _ in whole[steps:])
    numbers = [int(row[0]) for row in rows(batch for batch, _ in whole)]
    assert sorted(numbers) == list(range(23))
    assert (numbers == list(range(23))) == (window < 2)


def test_what_lies_before_the_mark_is_not_read_again() -> None:
    source = Stream(Counting(), window=5)
    *_, (_, mark) = islice(source.marked(4, 0, 0, 0), 3)
    source.dataset.read.clear()
    list(source.marked(4, 12, 0, 0, mark))
    assert min(source.dataset.read) == 10  # where the window of the next example begins
    assert source.dataset.place == 0  # several readers do not move one another


def test_examples_are_mixed_within_a_window_only() -> None:
    numbers = [int(row[0]) for row in rows(Stream(Counting(20), window=5).batches(4))]
    assert [sorted(numbers[k : k + 5]) for k in range(0, 20, 5)] == [list(range(k, k + 5)) for k in range(0, 20, 5)]
    other = [int(row[0]) for row in rows(Stream(Counting(20), window=5).batches(4, epoch=1))]
    assert numbers != other


def test_a_process_of_its_own_reads_the_same_bits() -> None:
    source = Stream(Counting(), window=6)
    state = torch.get_rng_state()
    alone = list(source.marked(4, 8, 1, 0))
    other = list(source.marked(4, 8, 1, 0, workers=3))
    assert torch.equal(state, torch.get_rng_state())
    assert [mark for _, mark in alone] == [mark for _, mark in other]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(alone, other, strict=True))
    assert source.dataset.read  # by this process; the other has noted its reading where it ran


def test_a_state_that_json_does_not_keep_is_left_out() -> None:
    class Odd(Counting):
        def state_dict(self) -> Any:
            return {"place": torch.tensor(self.place)}

    source = Stream(Odd())
    assert next(source.marked(4, 0, 0, 0))[1].state is None


@pytest.mark.parametrize("step", [0, 4, 6, 9, 13])
def test_batches_go_on_from_what_a_checkpoint_keeps(step: int) -> None:
    batches = Batches(Stream(Counting(), window=7), 4)
    stream = batches.stream(0)
    list(islice(stream, step))
    place = batches.position(step)
    wanted = [next(stream).tolist() for _ in range(9)]
    dataset = Counting()
    later = Batches(Stream(dataset, window=7), 4)
    later.resume_at(place)
    assert [batch.tolist() for batch in islice(later.stream(step), 9)] == wanted
    if step in (4, 9):  # in the middle of a pass
        assert dataset.read[0] > 0


def _fit(dataset: IterableDataset[Tensor], runs: Path, name: str, stop: int, workers: int = 0) -> fogline.Run:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(0.1)
        model.bias.zero_()
    loss = fogline.on_batch(lambda model, batch: (model(batch / 20) - batch[:, :1] / 20).square().mean())
    task = fogline.Task(model, loss, dataset)
    recipe = fogline.Recipe(
        lr=0.1, optimizer="momentum", batch_size=4, duration="12st", window=7, step="eager", watch=0.0, workers=workers
    )
    for step in fogline.descend(task, recipe, runs=runs, name=name):
        if step.number == stop:
            break
    return fogline.resume(runs / name, task)


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    whole = _fit(Counting(), tmp_path, "whole", 11)
    for name, dataset, stop, workers in (
        ("state", Counting(), 8, 0),
        ("process", Counting(), 2, 1),
    ):
        run = _fit(dataset, tmp_path, name, stop, workers)
        assert list(run.steps["loss"]) == list(whole.steps["loss"]), name
        assert torch.equal(run.model.weight, whole.model.weight), name
