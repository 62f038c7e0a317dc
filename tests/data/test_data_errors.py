"""Data that does not fit: what was expected, what came, what to do."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from fogline.data import open_data
from fogline.task import Task, on_batch

X, Y, Z = torch.randn(8, 4), torch.arange(8) % 2, torch.randn(8, 1)


class Empty(Dataset):
    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError


class Single(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"pixels": torch.ones(2)}


CASES = {
    "lengths": ((X, Y[:5]), ValueError, r"as many targets as inputs, received 8 inputs and 5 targets"),
    "no rows": ((X[:0], Y[:0]), ValueError, r"at least one example, received 0 rows"),
    "a single tensor": (X, TypeError, r"pair \(inputs, targets\), received one tensor of shape \(8, 4\).*on_batch"),
    "three tensors": ((X, Y, Z), TypeError, r"received a tuple of 3 .*on_batch"),
    "a number": ((X, torch.tensor(1)), ValueError, r"first dimension counts examples, received a single number"),
    "negative labels": (
        (X, 2 * Y - 1),
        ValueError,
        r"labels 0\.\.C-1 for CrossEntropyLoss, received labels -1, 1; map",
    ),
    "one class": ((X, torch.ones(8, dtype=torch.int64)), ValueError, r"at least two classes, received only 1 in all 8"),
    "ragged": (([[1.0], [1.0, 2.0]], [0, 1]), TypeError, r"rows of equal length"),
    "text inputs": ((np.array([["a"], ["b"]]), [0, 1]), TypeError, r"expected numbers, received ndarray of <U1"),
    "no pairs": ({"x": "text"}, TypeError, r"expected numbers"),
    "empty dataset": (Empty(), ValueError, r"dataset of length 0"),
    "dataset of dicts": (Single(), TypeError, r"pair \(inputs, targets\), received a dict with keys \['pixels'\]"),
    "unknown kind": (42, TypeError, r"expected tensors or arrays.*received int"),
    "no such file": ("nowhere/data.csv", ValueError, r"nowhere/data.csv does not exist"),
    "lazy frame": (pl.DataFrame({"y": [1]}).lazy(), TypeError, r"pass frame.collect\(\)"),
    "twice the same name": (
        pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]),
        ValueError,
        r"different column names, received \['a'\]",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_data_that_does_not_fit(case):
    data, error, message = CASES[case]
    with pytest.raises(error, match=message):
        open_data(Task(nn.Linear(4, 2), nn.CrossEntropyLoss(), data, target="y"))


def test_valid_has_the_form_and_width_of_train():
    task = Task(nn.Linear(4, 2), nn.CrossEntropyLoss(), (X, Y), pd.DataFrame({"a": [1.0]}), target="a")
    with pytest.raises(TypeError, match="data of the same form"):
        open_data(task)
    with pytest.raises(TypeError, match="valid: expected a frame or table file"):
        open_data(Task(None, None, pd.DataFrame({"a": range(9), "y": list("xyz") * 3}), (X, Y), target="y"))
    with pytest.raises(ValueError, match="valid: expected inputs with 4 columns"):
        open_data(Task(nn.Linear(4, 2), nn.CrossEntropyLoss(), (X, Y), (X[:, :3], Y)))


def test_one_class_in_the_held_out_data_is_no_error():
    zeros = torch.zeros(8, dtype=torch.int64)
    assert open_data(Task(nn.Linear(4, 2), nn.CrossEntropyLoss(), (X, Y), (X, zeros))).valid.size == 8


def test_nan_rows_of_tensors_are_named_and_no_error():
    inputs, targets = X.clone(), Z.clone()
    inputs[3, 1] = float("nan")
    inputs[5, 2] = float("inf")
    targets[6] = float("-inf")
    notes = open_data(Task(nn.Linear(4, 1), nn.MSELoss(), (inputs, targets))).facts.notes
    assert any("2 of 8 rows of inputs hold NaN or infinity: rows 3, 5, columns 1, 2" in note for note in notes)
    assert any("1 of 8 rows of targets hold NaN or infinity: rows 6" in note for note in notes)
    assert open_data(Task(nn.Linear(4, 1), nn.MSELoss(), (X, Z))).facts.notes == ()
    loss = on_batch(lambda model, batch: model(batch).mean())
    assert "of the data hold NaN" in open_data(Task(nn.Linear(4, 1), loss, inputs)).facts.notes[0]


def test_ignored_labels_are_allowed():
    labels = Y.clone()
    labels[0] = -100
    assert open_data(Task(nn.Linear(4, 2), nn.CrossEntropyLoss(), (X, labels))).facts.outputs == 2


@pytest.mark.parametrize(
    ("targets", "loss", "kind", "outputs"),
    [
        (Y, nn.CrossEntropyLoss(), "classification", 2),
        (Y, nn.functional.cross_entropy, "classification", 2),
        (Y, None, "classification", 2),
        (Y, lambda outputs, targets: outputs.mean(), "classification", 2),
        (Z, nn.MSELoss(), "regression", 1),
        (Z, None, "regression", 1),
        (Z[:, 0], nn.L1Loss(), "regression", 1),
        (torch.rand(8, 5).softmax(1), nn.CrossEntropyLoss(), "classification", 5),
        (Y.float()[:, None], nn.BCEWithLogitsLoss(), "classification", 1),
        (torch.randint(0, 9, (8, 6)), lambda outputs, targets: outputs.mean(), "other", 0),
    ],
)
def test_the_kind_of_work(targets, loss, kind, outputs):
    model = nn.Linear(4, 2) if loss else None
    facts = open_data(Task(model, loss, TensorDataset(X, targets))).facts
    assert (facts.kind, facts.outputs) == (kind, outputs)


def test_whole_numbers_that_are_no_labels_need_a_word():
    with pytest.raises(ValueError, match=r"received whole numbers of shape \(8,\) from -3 to"):
        open_data(Task(None, None, (X, torch.arange(8) - 3)))


def test_truth_values_are_labels():
    for loss in (None, nn.CrossEntropyLoss()):
        opened = open_data(Task(nn.Linear(4, 2) if loss else None, loss, (X, Y > 0)))
        assert opened.train.tensors[1].dtype == torch.int64


def test_an_unknown_path_names_a_neighbour_but_does_not_list_the_folder(tmp_path):
    (tmp_path / "private.csv").write_text("")
    with pytest.raises(ValueError, match=r"zzz does not exist; check the path"):
        open_data(Task(None, None, tmp_path / "zzz", target="y"))
