"""The data order: a permutation of every epoch, another one each, asked at any position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from fogline.descent.order import permute, permuted_range

SEEDS = st.integers(0, 2**63)
EPOCHS = st.integers(0, 10**6)


@settings(max_examples=200, deadline=None)
@given(SEEDS, EPOCHS, st.integers(1, 3000))
def test_every_example_once(seed: int, epoch: int, examples: int) -> None:
    order = permute(seed, epoch, np.arange(examples), examples)
    assert sorted(order.tolist()) == list(range(examples))


@settings(max_examples=100, deadline=None)
@given(SEEDS, EPOCHS, st.integers(1, 10**12), st.data())
def test_a_position_does_not_depend_on_what_else_is_asked(
    seed: int, epoch: int, examples: int, data: st.DataObject
) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, examples - 1), min_size=1, max_size=20)))
    together = permute(seed, epoch, positions, examples)
    alone = [int(permute(seed, epoch, int(position), examples)) for position in positions]
    assert together.tolist() == alone
    assert together.min() >= 0
    assert together.max() < examples


@settings(max_examples=100, deadline=None)
@given(SEEDS, EPOCHS, st.integers(1, 5000), st.data())
def test_a_range_is_its_positions(seed: int, epoch: int, examples: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, examples - 1))
    stop = data.draw(st.integers(start, examples))
    wanted = permute(seed, epoch, np.arange(start, stop), examples)
    assert permuted_range(seed, epoch, start, stop, examples).tolist() == wanted.tolist()


@pytest.mark.parametrize("examples", [2, 3, 5, 8, 13])
def test_every_example_is_equally_often_at_every_position(examples: int) -> None:
    epochs = 4000
    counts = np.zeros((examples, examples))
    for epoch in range(epochs):
        counts[np.arange(examples), permute(11, epoch, np.arange(examples), examples)] += 1
    wanted = epochs / examples
    statistic = ((counts - wanted) ** 2).sum() / wanted
    assert statistic < chi2.ppf(1 - 1e-4, (examples - 1) ** 2)


def test_orders_of_three_are_equally_frequent() -> None:
    epochs = 6000
    seen: dict[tuple[int, ...], int] = {}
    for epoch in range(epochs):
        order = tuple(permute(5, epoch, np.arange(3), 3).tolist())
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 6
    assert sum((count - epochs / 6) ** 2 for count in seen.values()) / (epochs / 6) < chi2.ppf(1 - 1e-4, 5)


def test_neighbours_are_scattered() -> None:
    """No trace of the order the data came in: neither of positions nor of one epoch in the next."""
    order = permute(3, 0, np.arange(10_000), 10_000)
    later = permute(3, 1, np.arange(10_000), 10_000)
    for one, other in ((order, np.arange(10_000)), (order[1:], order[:-1]), (order, later)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(10_000)


@pytest.mark.parametrize("change", [(1, 0), (0, 1)])
def test_seed_and_epoch_change_the_order(change: tuple[int, int]) -> None:
    base, other = permute(0, 0, np.arange(1000), 1000), permute(*change, np.arange(1000), 1000)
    assert int((base == other).sum()) < 10  # one is expected by chance


def test_the_order_is_frozen() -> None:
    """Run folders rely on it: a change here breaks the resume of every run on disk."""
    assert permute(0, 0, np.arange(10), 10).tolist() == [7, 2, 8, 3, 0, 6, 4, 1, 5, 9]
    assert int(permute(7, 3, 123456789, 10**12)) == 906398282547


@pytest.mark.parametrize("position", [-1, 5])
def test_a_position_outside_is_an_error(position: int) -> None:
    with pytest.raises(ValueError, match="expected positions from 0 to 4"):
        permute(0, 0, position, 5)
