"""Which steps have a row when not every one can."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from fogline.descent.step import Outcomes
from fogline.record.probes import Budget
from fogline.record.signals import Recorder
from fogline.record.store import Store, read_table


def call(first: int, count: int) -> Outcomes:
    """Steps whose numbers say which they are."""
    numbers: list[float] = [float(step) for step in range(first, first + count)]
    return Outcomes(list(numbers), list(numbers), numbers, finite=True)


@pytest.mark.parametrize("count", [1, 3, 5, 24])
@pytest.mark.parametrize("stride", [1, 4, 16])
def test_every_nth_step_has_a_row_whatever_the_calls(count: int, stride: int, tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        recorder = Recorder(store, Budget(1.0))
        recorder.stride = stride
        for first in range(0, 48, count):
            recorder.steps(first, 0.0, 0, 0.0, call(first, min(count, 48 - first)))
        recorder.flush()
    table = read_table(tmp_path, "steps")
    for column in ("step", "loss", "lr", "grad_norm"):
        assert table[column].tolist() == list(range(0, 48, stride))


@pytest.mark.parametrize("count", [1, 3])
def test_a_probed_step_has_its_row(count: int, tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        recorder = Recorder(store, Budget(1.0))
        recorder.stride = 16
        recorder.steps(6, 0.0, 0, 0.0, call(6, count), probed=True)
        recorder.flush()
    assert read_table(tmp_path, "steps")["step"].tolist() == [5 + count]
