"""Decisions about examples lie over the data, and a task follows them whatever its data is made of."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import fogline
from fogline._examples.edited import edited
from fogline._examples.edits import ACTIONS, Edits, edit_columns
from fogline.data.intake import open_data
from fogline.data.source import InMemory, MapStyle
from fogline.record.store import Store, read_table
from run_folders import make_run

CLASSES = ["bird", "cat", "dog"]
DROPPED, LABELS = [1, 4], {2: 2.0, 4: 0.0, 5: 0.0}


@pytest.fixture(autouse=True)
def _runs_lie_in_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def edits(tmp_path: Path) -> Edits:
    examples = {"kind": "classification", "count": 10, "classes": CLASSES}
    return Edits(make_run(tmp_path / "run", examples=examples))


def test_the_last_decision_about_an_example_counts(edits: Edits) -> None:
    edits.drop([3, 5, 7])
    edits.relabel([5], "dog")
    edits.relabel([1, 2], ["cat", 0])
    edits.keep([3])
    rows = [(row["example"], row["action"], row["label"]) for row in edits.table]
    assert [row[:2] for row in rows] == [(1, "relabel"), (2, "relabel"), (3, "keep"), (5, "relabel"), (7, "drop")]
    assert [row[2] for row in rows if row[1] == "relabel"] == [1.0, 0.0, 2.0]
    assert all(math.isnan(row[2]) for row in rows if row[1] != "relabel")
    assert (edits.dropped, edits.relabelled) == ([7], {1: 1.0, 2: 0.0, 5: 2.0})
    assert edits.counts() == {"relabel": 3, "drop": 1, "keep": 1}
    assert (len(edits), str(edits)) == (5, "3 relabelled, 1 left out, 1 kept")


def test_undo_takes_back_call_by_call_until_nothing_is_left(edits: Edits) -> None:
    edits.drop([3, 5])
    edits.keep([5])
    assert edits.undo() == 1
    assert edits.dropped == [3, 5]
    assert edits.undo() == 2
    assert (len(edits), edits.undo()) == (0, 0)


def test_undo_of_some_examples_leaves_the_others(edits: Edits) -> None:
    edits.drop([3, 5, 7])
    edits.keep([5])
    assert edits.undo([5, 6]) == 1
    assert edits.dropped == [3, 7]


def test_calls_of_one_moment_are_still_two(edits: Edits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1e9)
    edits.drop([1])
    edits.drop([2])
    edits.undo()
    assert edits.dropped == [1]


def test_all_of_a_call_is_refused_or_none(edits: Edits) -> None:
    with pytest.raises(ValueError, match=r"expected examples 0 to 9, received 10"):
        edits.drop([1, 10])
    assert len(edits) == 0


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda e: e.edit([1], "remove"), ValueError, "unknown action 'remove'"),
        (lambda e: e.edit([1], "relabl"), ValueError, "did you mean 'relabel'"),
        (lambda e: e.edit([1], "relabel"), ValueError, "pass labels="),
        (lambda e: e.edit([1], "drop", "cat"), ValueError, "only to relabel"),
        (lambda e: e.relabel([1], "cow"), ValueError, "unknown class 'cow'"),
        (lambda e: e.relabel([1], 3), ValueError, "0 to 2, received 3"),
        (lambda e: e.relabel([1], -1), ValueError, "0 to 2, received -1"),
        (lambda e: e.relabel([1], 0.5), ValueError, "received 0.5"),
        (lambda e: e.relabel([1, 2, 3], [1, 2]), ValueError, "3, one each"),
        (lambda e: e.drop([-1]), ValueError, "received -1"),
        (lambda e: e.drop([1.0]), TypeError, "whole numbers, received 1.0"),
        (lambda e: e.drop([True]), TypeError, "received True"),
    ],
)
def test_what_does_not_fit_is_refused(edits: Edits, call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(edits)
    assert len(edits) == 0


def test_a_run_that_trains_writes_beside(edits: Edits) -> None:
    store = Store(edits.folder)
    store.steps([(1000, 0.0, 0, 0.0, 5.0)])
    edits.drop(np.array([3], dtype=np.int32))
    store.flush()
    edits.keep(range(2))
    store.close()
    assert len(edits) == 3
    assert 1000 in read_table(edits.folder, "steps")["step"]


def test_a_run_of_an_earlier_version_can_be_edited(edits: Edits) -> None:
    with sqlite3.connect(edits.folder / "run.sqlite") as connection:
        connection.execute("drop table edits")
    connection.close()
    assert len(edits) == 0
    edits.drop([3])
    assert edits.dropped == [3]


def test_resuming_leaves_edits_alone(edits: Edits) -> None:
    edits.drop([3])
    store = Store(edits.folder)
    store.rewind(0)
    store.close()
    assert edits.dropped == [3]


def test_a_folder_that_cannot_be_written_says_so(edits: Edits) -> None:
    connection = sqlite3.connect(edits.folder / "run.sqlite")
    connection.execute("drop table edits")
    connection.execute("create view edits as select 1 as seconds")
    connection.commit()
    connection.close()
    with pytest.raises(OSError, match="cannot be written"):
        edits.drop([3])


def test_columns_of_all_examples(edits: Edits) -> None:
    edits.drop([3])
    edits.relabel([1], "dog")
    columns = edit_columns(edits.table, 3)
    assert columns["edit"].tolist() == ["", "relabel", ""]
    np.testing.assert_array_equal(columns["edit_label"], [np.nan, 2, np.nan])
    assert set(columns["edit"]) <= {"", *ACTIONS}


# -- tasks -------------------------------------------------------------------------------------------------------------

X, Y = torch.arange(14.0).reshape(7, 2), torch.tensor([0, 1, 0, 2, 1, 2, 0])
KEPT = [0, 2, 3, 5, 6]
NEW = [0, 2, 2, 0, 0]


def net() -> nn.Module:
    return nn.Linear(2, 3)


def opened(task: fogline.Task, **info: Any) -> tuple[Any, Any, fogline.Task]:
    """Inputs and targets of the edited training data, in order, and the edited task."""
    made = edited(task, DROPPED, LABELS, info)
    source = open_data(made).train
    assert isinstance(source, InMemory | MapStyle)
    inputs, targets = source.take(torch.arange(source.size))
    return inputs, targets, made


class Pairs(Dataset[Any]):
    """Examples that are made when they are asked for."""

    classes = CLASSES

    def __init__(self, make: Any = lambda target: target) -> None:
        self.make = make

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, at: int) -> Any:
        if at >= len(X):
            raise IndexError(at)
        return X[at], self.make(int(Y[at]))


def doubled(examples: list[Any]) -> Any:
    inputs, targets = zip(*examples, strict=True)
    return 2 * torch.stack(inputs), torch.tensor(targets)


@pytest.mark.parametrize(
    ("data", "scale"),
    [
        ((X, Y), 1),
        ((X.numpy(), Y.numpy().astype(np.uint8)), 1),
        ((X, [CLASSES[label] for label in Y.tolist()]), 1),
        (TensorDataset(X, Y), 1),
        (DataLoader(TensorDataset(X, Y), batch_size=3), 1),
        (Pairs(), 1),
        (Pairs(torch.tensor), 1),
        (Pairs(np.int64), 1),
        (Pairs(lambda label: torch.tensor([label])[0]), 1),
        (DataLoader(Pairs(), batch_size=3, shuffle=True, collate_fn=doubled), 2),
    ],
)
def test_every_kind_of_data_follows(data: Any, scale: int) -> None:
    task = fogline.Task(net, nn.CrossEntropyLoss(), data, valid=(X, Y) if not isinstance(data, tuple) else data)
    inputs, targets, made = opened(task)
    torch.testing.assert_close(inputs.float(), scale * X[KEPT])
    assert targets.dtype == torch.int64
    assert targets.tolist() == NEW
    assert made is not task
    assert task.train is data
    if isinstance(data, DataLoader):
        facts = open_data(made).facts
        assert (facts.batch_size, facts.shuffle) == (3, type(data.sampler).__name__ == "RandomSampler")
    fogline.fit(made, lr=0.1, optimizer="sgd", duration="2st")


def test_the_data_itself_is_not_touched() -> None:
    inputs, targets = X.clone(), Y.clone()
    edited(fogline.Task(net, nn.CrossEntropyLoss(), (inputs, targets)), DROPPED, LABELS, {})
    assert torch.equal(inputs, X)
    assert torch.equal(targets, Y)


@pytest.mark.parametrize(
    ("targets", "loss", "labels", "expected"),
    [
        ((Y > 0).float()[:, None], nn.BCEWithLogitsLoss(), {2: 1.0}, [[0.0], [1.0], [1.0], [1.0], [0.0]]),
        ((Y > 0).float(), nn.BCEWithLogitsLoss(), {2: 1.0}, [0.0, 1.0, 1.0, 1.0, 0.0]),
        (Y.double()[:, None], nn.MSELoss(), {2: 0.25}, [[0.0], [0.25], [2.0], [2.0], [0.0]]),
        (Y.float(), nn.MSELoss(), {2: -7.5}, [0.0, -7.5, 2.0, 2.0, 0.0]),
        (nn.functional.one_hot(Y).float(), nn.CrossEntropyLoss(), {2: 1.0}, np.eye(3)[[0, 1, 2, 2, 0]].tolist()),
    ],
)
def test_every_kind_of_target_follows(targets: Tensor, loss: Any, labels: dict[int, float], expected: Any) -> None:
    made = edited(fogline.Task(net, loss, (X, targets)), DROPPED, labels, {})
    assert made.train[1].dtype == targets.dtype
    assert made.train[1].tolist() == expected


def test_a_frame_is_split_as_in_the_run_and_its_held_out_rows_stay() -> None:
    frame = pd.DataFrame({"x": np.arange(60.0), "kind": ["a", "b", "c"] * 20, "y": ["no", "yes"] * 30})
    for data in (frame, pl.from_pandas(frame)):
        task = fogline.Task(train=data, target="y")
        before = open_data(task, seed=7)
        made = edited(task, [0, 2], {1: 1.0}, {"recipe": {"seed": 7}})
        after = open_data(made)
        assert isinstance(before.train, InMemory)
        assert isinstance(after.train, InMemory)
        assert torch.equal(after.valid.tensors[0], before.valid.tensors[0])  # type: ignore[union-attr]
        assert torch.equal(after.train.tensors[0], before.train.tensors[0][[1, *range(3, 48)]])
        assert after.train.tensors[1][0] == 1
        assert fogline.fit(made, lr=0.01, optimizer="adamw", duration="3st").final_scores()["accuracy"] >= 0


def test_a_table_file_and_a_folder_of_images_follow(tmp_path: Path) -> None:
    pd.DataFrame({"x": np.arange(40.0), "y": [0, 1] * 20}).to_csv(tmp_path / "rows.csv", index=False)
    made = edited(fogline.Task(train=tmp_path / "rows.csv", target="y"), [0], {1: 0.0}, {})
    assert open_data(made).train.size == 31
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for k in range(10):
            Image.new("RGB", (8, 8), (25 * k, 0, 99)).save(tmp_path / "images" / label / f"{k}.png")
    task = fogline.Task(train=tmp_path / "images")
    before, made = open_data(task), edited(task, [0], {15: 0.0}, {})
    after = open_data(made)
    assert isinstance(before.train, InMemory)
    assert isinstance(after.train, InMemory)
    assert torch.equal(after.train.tensors[0], before.train.tensors[0][1:])
    assert after.train.tensors[1].tolist() == [0] * 7 + [1] * 7 + [0]


def test_images_that_are_read_when_needed_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fogline.data.images.IN_MEMORY_BYTES", 0)
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for k in range(10):
            Image.new("RGB", (8, 8), (25 * k, 0, 99)).save(tmp_path / label / f"{k}.png")
    made = edited(fogline.Task(train=tmp_path), [0], {15: 0.0}, {})
    source = open_data(made).train
    assert isinstance(source, MapStyle)
    assert source.take(torch.arange(15))[1].tolist() == [0] * 7 + [1] * 7 + [0]


def test_a_dict_of_tensors_for_a_loss_of_its_own_is_dropped_from() -> None:
    def mean(model: nn.Module, batch: Any) -> Tensor:
        return model(batch["x"]).square().mean()

    task = fogline.Task(net, fogline.on_batch(mean), {"x": X, "w": Y})
    made = edited(task, DROPPED, {}, {})
    assert made.train["w"].tolist() == Y[KEPT].tolist()
    with pytest.raises(ValueError, match="drop these examples"):
        edited(task, [], {2: 1.0}, {})


def test_what_cannot_be_edited_says_so() -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([(X[0], Y[0])] * 10)

    with pytest.raises(TypeError, match="stream"):
        edited(fogline.Task(net, nn.CrossEntropyLoss(), Endless()), [1], {}, {})
    pixels = fogline.Task(net, nn.CrossEntropyLoss(), (X[:, :, None], Y[:, None].repeat(1, 4)))
    with pytest.raises(ValueError, match="one number or class each"):
        edited(pixels, [], {1: 1.0}, {})
    with pytest.raises(ValueError, match="labels 0 to 2"):
        edited(fogline.Task(net, nn.CrossEntropyLoss(), (X, Y)), [], {1: 5.0}, {})
    with pytest.raises(ValueError, match="examples 0 to 6"):
        edited(fogline.Task(net, nn.CrossEntropyLoss(), (X, Y)), [7], {}, {})


def test_edits_are_for_the_data_of_their_run() -> None:
    def task(inputs: Tensor) -> fogline.Task:
        return fogline.Task(net, nn.CrossEntropyLoss(), (inputs, Y))

    run = fogline.fit(task(X), lr=0.1, optimizer="sgd", duration="2st")
    edits = Edits(run.folder)
    edits.drop([1])
    assert len(edits.applied(task(X)).train[0]) == 6
    assert len(edits.applied(task(X.double())).train[0]) == 6  # the same values in another type
    with pytest.raises(ValueError, match="fingerprint differs"):
        edits.applied(task(X.flip(0)))
    with pytest.raises(ValueError, match="the 7 training examples"):
        edits.applied(fogline.Task(net, nn.CrossEntropyLoss(), (X[1:], Y[1:])))
