"""What waits for its columns comes back row by row, wherever it was kept meanwhile."""

from __future__ import annotations

import pytest
import torch

from fogline.record.columns import Shown
from fogline.record.waiting import ROWS_TOGETHER, Shelf, Waiting


def shown(rows: int, classes: int = 3, dtype: torch.dtype = torch.float32) -> Shown:
    return Shown(torch.randn(rows, classes).to(dtype), torch.arange(rows), None, torch.rand(rows))


def same(found: Shown, several: list[Shown]) -> bool:
    wanted = Shown.joined(several).named()
    return all(torch.equal(value, wanted[name]) for name, value in found.named().items()) and found.rows > 0


@pytest.mark.parametrize("room", [None, 4, 9, 100])
def test_like_rows_come_back_as_one(room: int | None) -> None:
    several = [shown(2), shown(3), shown(4)]
    waiting = Waiting(None if room is None else Shelf(room))
    for one in several:
        waiting.add(one)
    (found,) = waiting.parts()
    assert same(found, several)
    assert waiting.rows == 9


@pytest.mark.parametrize("other", [shown(4, classes=5), shown(4, dtype=torch.bfloat16), Shown(losses=torch.rand(4))])
def test_unlike_rows_come_behind(other: Shown) -> None:
    first, waiting = shown(2), Waiting(Shelf(100))
    waiting.add(first)
    waiting.add(other)
    parts = waiting.parts()
    assert [part.rows for part in parts] == ([6] if other.like(first) else [2, 4])


def test_a_shelf_is_used_again() -> None:
    shelf = Shelf(8)
    assert shelf.put(shown(8))
    memory = shelf.shown().outputs
    shelf.rows = 0
    again = shown(8)
    assert shelf.put(again)
    assert memory is not None
    assert again.outputs is not None
    assert torch.equal(memory, again.outputs)
    assert not shelf.put(shown(1))


def test_enough_is_enough() -> None:
    waiting = Waiting(Shelf(ROWS_TOGETHER))
    for _ in range(ROWS_TOGETHER // 512):
        assert not waiting.full
        waiting.add(shown(512))
    assert waiting.full
