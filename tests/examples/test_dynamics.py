"""What is read from the files of a run, against what was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from example_records import planted, write
from fogline import Run
from fogline._examples.dynamics import open_record, summarise


def halves(*rows: list[float]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.float16) for row in rows]


def test_the_summary_is_that_of_the_written_epochs(tmp_path: Path) -> None:
    nan = float("nan")
    correct = halves([0, 1, nan], [1, 0, nan], [0, 1, 1], [0, 0, 1])
    confidence = halves([0.25, 0.5, nan], [0.75, 0.5, nan], [0.25, 0.5, 0.5], [0.75, 0.5, 1.0])
    loss = halves([1, 2, nan], [3, 4, nan], [5, 6, 7], [8, 9, nan])
    predicted = [np.array(row, dtype=np.int16) for row in ([1, 0, -1], [0, 1, -1], [1, 0, 1], [1, 1, -1])]
    epochs = [
        {"loss": a, "correct": b, "confidence": c, "predicted": d}
        for a, b, c, d in zip(loss, correct, confidence, predicted, strict=True)
    ]
    write(tmp_path, epochs, np.array([0, 0, 1]))
    found = summarise(open_record(Run(tmp_path)))
    assert found["loss"].tolist() == [8, 9, 7]
    assert found["predicted"].tolist() == [1, 1, 1]
    assert found["forgetting"].tolist() == [1, 2, 0]
    assert found["correct"].tolist() == [0.25, 0.5, 1.0]
    assert found["confidence"].tolist() == [0.5, 0.5, 0.75]
    assert found["variability"].tolist() == [0.25, 0.0, 0.25]


def test_a_curve_is_one_example_over_the_epochs(tmp_path: Path) -> None:
    made = planted(tmp_path, 0.2, count=50, epochs=4)
    record = open_record(Run(made.folder))
    curve = record.curve(7)
    assert curve["epoch"].tolist() == [0, 1, 2, 3]
    assert curve["margin"].tolist() == [values[7] for values in record.over("margin")]
    with pytest.raises(IndexError, match="from 0 to 49, received 50"):
        record.curve(50)


def test_files_that_are_cut_short_or_of_another_run_are_left_out(tmp_path: Path) -> None:
    planted(tmp_path, 0.0, count=50, epochs=4)
    files = sorted((tmp_path / "examples").glob("epoch-*"))
    files[1].write_bytes(files[1].read_bytes()[:200])
    planted(tmp_path / "other", 0.0, count=60, epochs=3)
    files[2].write_bytes((tmp_path / "other" / "examples" / files[2].name).read_bytes())
    assert open_record(Run(tmp_path)).epochs == (0, 3)


def test_a_run_without_examples_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="train it with"):
        open_record(Run(tmp_path))


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    record = open_record(Run(planted(tmp_path, 0.0, count=20, epochs=2).folder))
    with pytest.raises(KeyError, match="residual"):
        record.values("residual", 0)
