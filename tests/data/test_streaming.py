"""Tables larger than memory: the rows of a folder, in an order that is a function of the position."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fogline
from fogline.data import chunks as chunks_module
from fogline.data import open_data
from fogline.data.chunks import open_chunks
from fogline.data.source import fingerprint
from fogline.data.streamed import Streamed
from fogline.descent.batches import Batches
from fogline.descent.window import WindowOrder

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
ROWS, GROUP, FILES = 230, 40, 3


def columns(rows: int, first: int) -> dict[str, Any]:
    """Numbers from which the row can be told, a word and a class."""
    number = np.arange(first, first + rows)
    words = np.array(["red", "green", "blue"])[number % 3]
    return {"row": number, "half": number / 2, "word": words, "late": number >= 2 * ROWS, "class": number % 2}


def folder(root: Path, kind: str = "parquet") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for file in range(FILES):
        table = arrow.table(columns(ROWS, file * ROWS))
        if kind == "parquet":
            parquet.write_table(table, root / f"part-{file}.parquet", row_group_size=GROUP)
        else:
            from pyarrow import csv

            csv.write_csv(table, root / f"part-{file}.csv")
    return root


def opened(root: Path, **fields: Any) -> Any:
    return open_data(fogline.Task(train=str(root), target="class"), **fields)


def row_numbers(source: Streamed, inputs: Tensor) -> list[int]:
    """The column that tells the row, without its scaling."""
    column = source.encoder.columns[0]
    return [round(value) for value in (inputs[:, 0].double() * column.scale + column.mean).tolist()]


def stream(source: Streamed, step: int, count: int, **fields: Any) -> list[Tensor]:
    from itertools import islice

    found = Batches(source, 16, seed=3, **fields).stream(step)
    return [inputs for inputs, _ in islice(found, count)]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    window=st.integers(1, 40),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_an_epoch_has_every_row_once(sizes: list[int], window: int, seed: int, epoch: int, shuffle: bool) -> None:
    counts = np.array(sizes, np.int64)
    order = WindowOrder.of(counts, window, seed, epoch, shuffle)
    numbers = np.concatenate([[0], np.cumsum(counts)])
    total = int(counts.sum())
    every = order.rows(0, total, numbers)
    assert sorted(every.tolist()) == list(range(total))
    singly = [int(order.rows(k, k + 1, numbers)[0]) for k in range(total)]
    assert singly == every.tolist()
    assert shuffle or every.tolist() == list(range(total))


def test_batches_are_the_rows_of_their_positions(tmp_path: Path) -> None:
    source = opened(folder(tmp_path)).train
    source = Streamed(source.chunks, source.encoder, source.held, source.seed, window=100)
    every = source.take(torch.arange(source.size))
    batches = Batches(source, 16, seed=3)
    steps = batches.steps_per_epoch
    assert steps == -(-source.size // 16)
    stream_of = batches.stream(0)
    for step in range(2 * steps + 3):
        rows = torch.from_numpy(batches.rows(step))
        inputs, targets = next(stream_of)
        assert torch.equal(inputs, every[0][rows])
        assert torch.equal(targets, every[1][rows])
        again = batches.at(step)
        assert torch.equal(again[0], inputs)
    first, second = ([int(row) for k in range(steps) for row in batches.rows(e * steps + k)] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(source.size))
    assert first != second


def test_rows_are_mixed_within_a_window_and_windows_among_each_other(tmp_path: Path) -> None:
    source = opened(folder(tmp_path)).train
    source = Streamed(source.chunks, source.encoder, source.held, source.seed, window=160)
    order = WindowOrder.of(source.sizes, source.window_rows, 3, 0, True)
    rows = order.rows(0, source.size, source.starts)
    first = rows[: order.starts[1]]
    chunks = set((np.searchsorted(source.starts, first, side="right") - 1).tolist())
    assert len(chunks) >= 4
    assert max(chunks) - min(chunks) >= len(chunks)  # not neighbours only
    assert np.abs(np.diff(first)).mean() > source.size / 10


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_bits_are_those_of_one_reader(shuffle: bool, workers: int, tmp_path: Path) -> None:
    source = opened(folder(tmp_path)).train
    source = Streamed(source.chunks, source.encoder, source.held, source.seed, window=100)
    alone = stream(source, 5, 50, shuffle=shuffle)
    together = stream(source, 5, 50, shuffle=shuffle, workers=workers)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_going_to_a_position_reads_its_window_only(tmp_path: Path) -> None:
    """The files of all other windows are taken away."""
    root = folder(tmp_path)
    source = opened(root).train
    source = Streamed(source.chunks, source.encoder, source.held, source.seed, window=int(source.sizes.max()))
    step = 20
    expected = stream(source, step, 1)[0]
    order = WindowOrder.of(source.sizes, source.window_rows, 3, 0, True)
    needed = [
        chunk for w in {order.window_at(16 * step), order.window_at(16 * step + 15)} for chunk in order.chunks_of(w)
    ]
    files = {source.chunks.chunks[chunk].file for chunk in needed}
    assert len(files) < FILES
    for number, file in enumerate(source.chunks.files):
        if number not in files:
            file.unlink()
    again = Streamed(source.chunks, source.encoder, source.held, source.seed, window=source.window)
    assert torch.equal(Batches(again, 16, seed=3).at(step)[0], expected)


def test_held_out_rows_are_not_trained_on(tmp_path: Path) -> None:
    found = opened(folder(tmp_path))
    train = row_numbers(found.train, found.train.take(torch.arange(found.train.size))[0])
    held = row_numbers(found.train, found.valid.tensors[0])
    assert sorted([*train, *held]) == list(range(FILES * ROWS))
    assert len(held) == pytest.approx(0.2 * FILES * ROWS, rel=0.1)
    other = opened(tmp_path, seed=1)
    assert row_numbers(other.train, other.valid.tensors[0]) != held


def test_what_is_found_is_said(tmp_path: Path) -> None:
    facts = opened(folder(tmp_path)).facts
    notes = " ".join(facts.notes)
    assert "690 rows in 3 files" in notes
    assert "18 of 18 row groups" in notes
    assert "held out for validation and are not trained on" in notes
    assert facts.classes == ("0", "1")
    assert facts.columns == ("row", "half", "word=blue", "word=green", "word=red", "late")


def test_a_class_outside_the_sample_is_known(tmp_path: Path) -> None:
    rows = 150
    labels = np.array(["common"] * rows)
    labels[::2] = "usual"
    outside = min(set(range(rows // 2)) - {k * (rows // 2) // 64 for k in range(64)})  # of the 64 chunks looked at
    labels[2 * outside] = "rare"
    table = arrow.table({"x": np.arange(rows) / 7, "class": labels})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    found = opened(tmp_path)
    assert outside not in found.train.chunks.spread(64)
    assert found.facts.classes == ("common", "rare", "usual")
    assert found.facts.outputs == 3
    assert any("1 of 3 classes" in note for note in found.facts.notes)


def test_csv_and_parquet_are_the_same_rows(tmp_path: Path) -> None:
    one, two = opened(folder(tmp_path / "p")).train, opened(folder(tmp_path / "c", "csv")).train
    one, two = (Streamed(s.chunks, one.encoder) for s in (one, two))
    for a, b in zip(one.take(torch.arange(one.size)), two.take(torch.arange(two.size)), strict=True):
        assert torch.equal(a, b)


def test_a_line_end_between_quotes_ends_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks_module, "_CSV_BYTES", 64)
    lines = [f'{k},"a ""quoted""\nword, {k % 2}",{k % 2}' for k in range(200)]
    (tmp_path / "a.csv").write_text("\n".join(["row,text,class", *lines, ""]))
    found = open_chunks(tmp_path, "train", "class")
    assert found.rows == 200
    assert len(found.chunks) > 10
    tables = [found.read(index) for index in range(len(found.chunks))]
    assert np.concatenate([table.columns["row"] for table in tables]).tolist() == list(range(200))
    assert tables[0].columns["text"][0] == 'a "quoted"\nword, 0'


def test_a_cell_of_another_kind_names_file_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks_module, "_CSV_BYTES", 64)
    lines = [f"{k},{k % 2}" for k in range(1000)]
    lines[20] = "many,0"
    (tmp_path / "a.csv").write_text("\n".join(["row,class", *lines, ""]))
    found = open_chunks(tmp_path, "train", "class")
    with pytest.raises(ValueError, match=r"a\.csv.*rows \d+ to \d+ could not be read.*many"):
        [found.read(index) for index in range(len(found.chunks))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x,class\n1,0\n1,2,3\n", "expected a table in .*a.csv, but it could not be read"),
        ('x,class\n"1,0\n2,1\n', "a quotation mark that is not closed"),
        ("", "an empty file"),
        ("x,class\n", "at least one row"),
    ],
)
def test_files_that_are_no_tables_are_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        open_chunks(tmp_path, "train")


def test_missing_values_are_named_by_file_and_row(tmp_path: Path) -> None:
    values = np.arange(100.0)
    values[57] = np.nan
    parquet.write_table(
        arrow.table({"x": values, "class": np.arange(100) % 2}), tmp_path / "a.parquet", row_group_size=10
    )
    with pytest.raises(ValueError, match=r"a\.parquet.*column 'x' at rows 58"):
        opened(tmp_path)


def test_missing_values_of_a_chunk_outside_the_sample_are_found_before_training(tmp_path: Path) -> None:
    values: list[float | None] = [float(k) for k in range(200)]
    values[3] = None
    table = arrow.table({"x": values, "class": [k % 2 for k in range(200)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    with pytest.raises(ValueError, match=r"a\.parquet, received 1 missing ones in column 'x', rows 3 to 4"):
        open_chunks(tmp_path, "train")


def test_files_of_other_columns_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path)
    parquet.write_table(arrow.table({"row": [1], "class": [0]}), root / "z.parquet")
    with pytest.raises(ValueError, match=r"z\.parquet the columns of .*part-0\.parquet.*half"):
        opened(root)


def test_both_kinds_in_one_folder_are_refused(tmp_path: Path) -> None:
    folder(folder(tmp_path), "csv")
    with pytest.raises(ValueError, match="both CSV and Parquet"):
        opened(tmp_path)


def test_an_unknown_target_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no target column 'clas': did you mean 'class'\?"):
        open_data(fogline.Task(train=str(folder(tmp_path)), target="clas"))


def test_without_pyarrow_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path)
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'fogline\[stream\]'"):
        opened(root)


def test_a_file_too_large_for_memory_is_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder(tmp_path) / "part-0.parquet"
    assert not isinstance(opened(file).train, Streamed)
    monkeypatch.setattr(chunks_module, "IN_MEMORY_BYTES", 100)
    assert isinstance(opened(file).train, Streamed)


def test_folders_of_training_and_held_out_files(tmp_path: Path) -> None:
    folder(tmp_path / "train")
    folder(tmp_path / "valid")
    found = opened(tmp_path)
    assert found.train.size == found.valid.size == FILES * ROWS
    assert isinstance(found.valid, Streamed)
    every = torch.cat([inputs for inputs, _ in found.valid.batches(64)])
    assert row_numbers(found.train, every) == list(range(FILES * ROWS))


def test_other_data_has_another_fingerprint(tmp_path: Path) -> None:
    one = fingerprint(opened(folder(tmp_path / "a")).train)
    assert one == fingerprint(opened(tmp_path / "a").train)
    (tmp_path / "a" / "part-1.parquet").rename(tmp_path / "a" / "part-9.parquet")
    assert one != fingerprint(opened(tmp_path / "a").train)


def _fit(root: Path, runs: Path, name: str, steps: int, **fields: Any) -> fogline.Run:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))
    task = fogline.Task(model, nn.CrossEntropyLoss(), str(root), target="class")
    recipe = fogline.Recipe(
        lr=0.01,
        batch_size=16,
        duration="60st",
        window=100,
        schedule="constant",
        warmup=0,
        step="eager",
        watch=0.0,
        **fields,
    )
    for step in fogline.descend(task, recipe, runs=runs, name=name):
        if step.number == steps - 1:
            break
    return fogline.resume(runs / name, task)


def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(tmp_path: Path) -> None:
    root = folder(tmp_path / "data")
    whole = _fit(root, tmp_path, "whole", 60)
    stopped = _fit(root, tmp_path, "stopped", 33, workers=2)
    assert list(whole.steps["loss"]) == list(stopped.steps["loss"])
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), stopped.model.parameters(), strict=True))
    assert whole.recipe.window == 100
