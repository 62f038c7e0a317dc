"""What is written to a run folder is read back, by another process too, and nothing half is ever seen."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fogline.record.store import STEP_COLUMNS, Store, count_rows, read_groups, read_info, read_table, write_json


def row(step: int, loss: float = 1.0) -> tuple[float | None, ...]:
    return (step, step / 10, 8 * step, 0.1 * step, loss, 0.5, 2.0, None, 0.25, None, None)


def test_rows_come_back_in_order_with_nan_where_nothing_was_measured(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.steps([row(1, 0.5), row(0, float("inf"))])
        store.steps([row(2, float("nan"))])
    table = read_table(tmp_path, "steps")
    assert tuple(table.columns) == STEP_COLUMNS
    assert table["step"].tolist() == [0, 1, 2]
    assert table["step"].dtype == np.int64
    np.testing.assert_array_equal(table["loss"], [np.inf, 0.5, np.nan])
    np.testing.assert_array_equal(table["update_norm"], [np.nan] * 3)
    np.testing.assert_array_equal(table["update_ratio"], [0.25] * 3)
    assert [found["examples"] for found in table] == [0, 8, 16]


def test_a_row_written_again_replaces_the_older(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.steps([row(0, 1.0)])
        store.flush()
        store.steps([row(0, 2.0)])
    assert read_table(tmp_path, "steps")["loss"].tolist() == [2.0]


def test_nothing_is_seen_before_the_flush_and_everything_after_it_by_another_process(tmp_path: Path) -> None:
    count = "import sys, pathlib; from fogline.record.store import read_table as read; " + (
        "print(len(read(pathlib.Path(sys.argv[1]), 'steps')))"
    )
    with closing(Store(tmp_path)) as store:
        store.steps([row(0), row(1)])
        assert len(read_table(tmp_path, "steps")) == 0
        store.flush()
        seen = subprocess.run([sys.executable, "-c", count, tmp_path], capture_output=True, text=True, check=True)
        assert seen.stdout == "2\n"


def test_rewind_forgets_what_lies_after_a_step(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        for step in range(6):
            store.steps([row(step)])
            store.scores(step, "valid", {"loss": float(step)})
            store.event(step, "note", f"at {step}", {"step": step})
        store.flush()
        store.event(3, "checkpoint_skipped", "still in the queue")
        assert store.last_event() == 6
        store.rewind(3, last_event=4)
    assert read_table(tmp_path, "steps")["step"].tolist() == [0, 1, 2]
    assert read_table(tmp_path, "scores")["step"].tolist() == [0, 1, 2, 3]  # scored before the third step was taken
    events = list(read_table(tmp_path, "events", "id"))
    assert [event["message"] for event in events] == ["at 0", "at 1", "at 2", "at 3", "still in the queue"]
    assert json.loads(events[1]["data"]) == {"step": 1}


def test_a_folder_that_cannot_be_written_is_an_oserror_and_leaves_the_older_rows(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.steps([row(0)])
    store.flush()
    store._connection.execute("pragma query_only=on")
    store.steps([row(1)])
    with pytest.raises(OSError, match=r"the run folder .* cannot be written"):
        store.flush()
    store.close()
    assert read_table(tmp_path, "steps")["step"].tolist() == [0]


def test_a_reader_does_not_stop_the_writer(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store, closing(sqlite3.connect(tmp_path / "run.sqlite")) as reader:
        store.steps([row(0)])
        store.flush()
        reader.execute("begin")
        assert reader.execute("select count(*) from steps").fetchone() == (1,)
        store.steps([row(1)])
        store.flush()
        assert reader.execute("select count(*) from steps").fetchone() == (1,)  # its own moment
        reader.execute("commit")
        assert reader.execute("select count(*) from steps").fetchone() == (2,)


def test_unknown_columns_and_missing_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run\.sqlite"):
        read_table(tmp_path, "steps")
    with pytest.raises(FileNotFoundError, match=r"run\.sqlite"):
        count_rows(tmp_path, "steps")
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        read_info(tmp_path)
    Store(tmp_path).close()
    with pytest.raises(KeyError, match="received 'los'"):
        read_table(tmp_path, "steps")["los"]


def test_an_empty_table_has_its_columns(tmp_path: Path) -> None:
    Store(tmp_path).close()
    table = read_table(tmp_path, "steps")
    assert (len(table), list(table), tuple(table.columns)) == (0, [], STEP_COLUMNS)


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "run.json", {"a": 2, "b": object()})
    assert read_info(tmp_path) == {"a": 1}


def test_a_folder_of_an_earlier_version_can_be_read_and_gone_on_with(tmp_path: Path) -> None:
    earlier = "step integer primary key, epoch real, examples integer, seconds real, loss real, lr real, " + (
        "grad_norm real, update_norm real, update_ratio real, step_cosine real, overshoot real"
    )
    with closing(sqlite3.connect(tmp_path / "run.sqlite", isolation_level=None)) as connection:
        connection.execute(f"create table steps ({earlier})")
        connection.execute(f"insert into steps values ({','.join('?' * 11)})", row(0))
    table = read_table(tmp_path, "steps")
    assert tuple(table.columns) == STEP_COLUMNS
    assert table["loss"].tolist() == [1.0]
    np.testing.assert_array_equal(table["sharpness"], [np.nan])
    assert len(read_table(tmp_path, "steps", filled="sharpness")) == 0
    assert (len(read_table(tmp_path, "confusion", "target")), len(read_table(tmp_path, "findings", "id"))) == (0, 0)
    with closing(Store(tmp_path)) as store:
        store.steps([row(1)])
        store.sharpness(1, 0.5)
    np.testing.assert_array_equal(read_table(tmp_path, "steps")["sharpness"], [np.nan, 0.5])


def test_a_sharpness_goes_into_the_last_row_that_is_there(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.steps([row(0), row(4)])
        store.sharpness(6, 0.75)
    table = read_table(tmp_path, "steps")
    assert table["step"].tolist() == [0, 4]
    np.testing.assert_array_equal(table["sharpness"], [np.nan, 0.75])
    assert read_table(tmp_path, "steps", columns=("step", "loss"), filled="sharpness")["step"].tolist() == [4]


def test_counts_replace_those_before(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.confusion([(0, 0, 5), (1, 0, 2)])
        store.confusion([(0, 0, 6)])
    assert list(read_table(tmp_path, "confusion", "target")) == [{"target": 0, "predicted": 0, "count": 6}]


def test_groups_are_the_extremes_and_means_of_finite_values(tmp_path: Path) -> None:
    values = [4.0, 2.0, float("inf"), float("nan"), float("nan"), float("-inf"), 1.0]
    with closing(Store(tmp_path)) as store:
        store.steps([row(step, value) for step, value in enumerate(values)])
    table = read_groups(tmp_path, "loss", count=4)
    assert table["step"].tolist() == [0.5, 2.5, 4.5, 6.5]
    np.testing.assert_array_equal(table["low"], [2.0, np.nan, np.nan, 1.0])
    np.testing.assert_array_equal(table["high"], [4.0, np.nan, np.nan, 1.0])
    np.testing.assert_array_equal(table["mean"], [3.0, np.nan, np.nan, 1.0])
