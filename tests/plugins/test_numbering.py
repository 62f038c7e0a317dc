"""Which examples a loader's batches are made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, WeightedRandomSampler

from fogline.plugins.numbering import Numbers

DATA = torch.arange(23)


def loaders() -> dict[str, DataLoader[Any]]:
    """Loaders that draw their batches in all the usual ways."""
    weighted = WeightedRandomSampler(torch.ones(23).tolist(), 30)
    return {
        "in order": DataLoader(DATA, batch_size=4),  # type: ignore[arg-type]
        "shuffled": DataLoader(DATA, batch_size=4, shuffle=True, drop_last=True),  # type: ignore[arg-type]
        "with replacement": DataLoader(DATA, batch_size=4, sampler=weighted),  # type: ignore[arg-type]
        "by a batch sampler": DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 5, False)),  # type: ignore[arg-type]
        "by workers": DataLoader(DATA, batch_size=4, shuffle=True, num_workers=2),  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("kind", list(loaders()))
def test_every_batch_has_its_numbers(kind: str) -> None:
    loader = loaders()[kind]
    numbers = Numbers(loader)
    for _ in range(2):
        for batch in loader:
            assert numbers.next().tolist() == batch.tolist()


def test_the_order_is_the_one_without_it() -> None:
    orders = []
    for numbered in (False, True):
        torch.manual_seed(0)
        loader = loaders()["shuffled"]
        if numbered:
            Numbers(loader)
        orders.append([batch.tolist() for _ in range(2) for batch in loader])
    assert orders[0] == orders[1]


def test_an_epoch_that_is_left_early_does_not_move_the_next() -> None:
    loader = loaders()["shuffled"]
    numbers = Numbers(loader)
    for batch in loader:
        assert numbers.next().tolist() == batch.tolist()
        break
    for batch in loader:
        assert numbers.next().tolist() == batch.tolist()


def test_a_released_loader_is_as_before() -> None:
    loader = loaders()["in order"]
    sampler = loader.batch_sampler
    numbers = Numbers(loader)
    assert len(loader) == 6
    assert loader.batch_sampler.batch_size == 4  # type: ignore[union-attr]
    numbers.release()
    assert loader.batch_sampler is sampler


def test_a_call_without_a_batch_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="once a batch"):
        Numbers(loaders()["in order"]).next()


def test_what_has_no_numbers_is_refused() -> None:
    class Endless(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(3))

    with pytest.raises(TypeError, match="a torch DataLoader, received list"):
        Numbers([1, 2])  # type: ignore[arg-type]
    for loader in (DataLoader(Endless()), DataLoader(DATA, batch_size=None)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="numbered examples"):
            Numbers(loader)
