"""Files of an epoch as they are written by hand, read by the library whose format that is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from fogline.record import example_files
from fogline.record.columns import Columns
from fogline.record.example_files import epoch_file, packed, read, sync, targets_file, write
from fogline.record.example_writer import Epoch, ExampleWriter

COLUMNS = {
    "loss": np.array([0.5, np.nan, 65504.0], np.float16),
    "residual": np.array([1e30, -0.0, np.nan], np.float32),
    "predicted": np.array([-1, 3, 32767], np.int16),
    "many": np.arange(6, dtype=np.int64).reshape(3, 2),
    "last": np.array([2**31 - 1, 0, -1], np.int32),
}


@pytest.mark.parametrize(
    "names", [["loss"], ["loss", "residual"], ["predicted", "many", "loss"], list(COLUMNS)], ids=str
)
def test_every_type_comes_back_bit_by_bit(names: list[str], tmp_path: Path) -> None:
    columns = {name: COLUMNS[name] for name in names}
    file = epoch_file(tmp_path, 7, 210, columns)
    write(file, synced=False)
    sync(tmp_path, [file[0]])
    found = read(file[0])
    assert found is not None
    assert set(found) == set(columns)
    for name, column in columns.items():
        assert found[name].dtype == column.dtype
        assert found[name].tobytes() == column.tobytes()
    with safe_open(file[0], framework="numpy") as opened:
        assert opened.metadata() == {"fogline": '{"epoch": 7, "step": 210}'}


def test_columns_lie_at_multiples_of_their_width() -> None:
    content = packed(COLUMNS, {"a": "b"})
    assert int.from_bytes(content[:8], "little") % 8 == 0
    assert content[-len(COLUMNS["predicted"].tobytes()) :] == COLUMNS["predicted"].tobytes()  # the widest come first


def test_a_row_of_a_transposed_table_is_written_as_it_reads(tmp_path: Path) -> None:
    write(targets_file(tmp_path, np.arange(12.0, dtype=np.float32).reshape(3, 4).T))
    found = example_files.targets(tmp_path)
    assert found is not None
    np.testing.assert_array_equal(found, np.arange(12.0).reshape(3, 4).T)


def test_targets_are_those_of_the_first_epoch_though_the_run_ends_within_the_next(tmp_path: Path) -> None:
    columns = Columns("regression", "elementwise", (1,), targets=1)
    whole = torch.arange(12.0).reshape(3, 4)  # loss, residual and target of four examples
    partly = whole.clone()
    partly[:, 1:] = torch.nan
    writer = ExampleWriter(tmp_path, columns, 4, lambda epoch: np.roll(np.arange(4), epoch))
    writer.write([Epoch(0, whole, 2), Epoch(1, partly, 3)])
    writer.drain()
    writer.close()
    found = example_files.targets(tmp_path)
    assert found is not None
    np.testing.assert_array_equal(found, whole[2].numpy())
