"""Frames, CSV and Parquet: every column encoded, everything that was done said, everything that does not fit named."""

import json

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from torch import nn

from fogline.data import InMemory, load_encoder, open_data
from fogline.data.tables import TableEncoder, hold_out
from fogline.task import Task, on_batch

N = 120


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": rng.normal(40, 10, N),
            "visits": rng.integers(0, 9, N),
            "city": rng.choice(["Rome", "Bern", "Oslo"], N),
            "smoker": rng.random(N) > 0.5,
            "since": pd.date_range("2020-01-01", periods=N),
            "name": [f"person {row}" for row in range(N)],
            "outcome": rng.choice(["well", "ill"], N, p=[0.75, 0.25]),
        }
    )


def opened(train, valid=None, target="outcome", loss=None, **more):
    return open_data(Task(None, loss, train, valid, target=target), **more)


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left.tensors, right.tensors, strict=True))


def test_columns_are_encoded_and_said(frame):
    result = opened(frame)
    facts = result.facts
    assert facts.columns == ("age", "visits", "city=Bern", "city=Oslo", "city=Rome", "smoker", "since")
    assert (facts.kind, facts.classes, facts.outputs, facts.inputs) == ("classification", ("ill", "well"), 2, (7,))
    said = "\n".join(facts.notes)
    for part in (
        "'outcome' was read as 2 classes (ill, well)",
        "24 of 120 rows (20 % of each class) were held out",
        "3 numeric columns were standardised",
        "'city' of text was encoded as 3 one-hot columns ('Bern', 'Oslo', 'Rome')",
        "'since' of dates",
        "'name' differs in every row, like a name or an id, and was dropped",
    ):
        assert part in said
    inputs, labels = result.train.tensors
    assert inputs.dtype == torch.float32
    assert labels.dtype == torch.int64
    scaled = inputs[:, [0, 1, 6]].double()
    assert torch.allclose(scaled.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(scaled.std(0, correction=0), torch.ones(3, dtype=torch.float64), atol=1e-5)
    assert torch.equal(inputs[:, 2:5].sum(1), torch.ones(len(inputs)))


def test_the_same_table_in_every_form_gives_the_same_tensors(frame, tmp_path):
    frame.to_csv(tmp_path / "table.csv", index=False)
    frame.to_parquet(tmp_path / "table.parquet")
    expected = opened(frame)
    forms = [pl.from_pandas(frame), tmp_path / "table.csv", str(tmp_path / "table.parquet")]
    forms.append((frame.drop(columns="outcome"), frame["outcome"]))
    forms.append((pl.from_pandas(frame.drop(columns="outcome")), pl.from_pandas(frame["outcome"])))
    for form in forms:
        result = opened(form)
        assert equal(result.train, expected.train)
        assert equal(result.valid, expected.valid)


def test_hold_out_is_stratified_and_keyed_by_the_seed():
    labels = np.array([0] * 50 + [1] * 10 + [2] * 2 + [3])
    train, valid = hold_out(labels, len(labels), 3)
    assert sorted([*train, *valid]) == list(range(len(labels)))
    assert np.bincount(labels[valid], minlength=4).tolist() == [10, 2, 1, 0]
    assert np.array_equal(valid, hold_out(labels, len(labels), 3)[1])
    assert not np.array_equal(valid, hold_out(labels, len(labels), 4)[1])
    assert len(hold_out(None, 100, 0)[1]) == 20


def test_held_out_data_uses_the_encoder_of_the_training_data(frame):
    valid = frame.head(10).copy()
    valid.loc[3, "city"] = "Paris"
    result = opened(frame, valid)
    assert result.train.size == N
    assert equal(InMemory(tuple(leaf[:3] for leaf in result.valid.tensors)), InMemory(result.train.slice(0, 3)))
    assert result.valid.tensors[0][3, 2:5].tolist() == [0, 0, 0]
    assert any("values that training did not: 'Paris'" in note for note in result.facts.notes)


def test_the_encoder_goes_through_json_and_encodes_new_rows(frame, tmp_path):
    result = opened(frame, frame)
    encoder = TableEncoder.from_dict(json.loads(json.dumps(result.encoder.to_dict())))
    assert encoder == result.encoder
    rows = frame.drop(columns="outcome")
    assert torch.equal(encoder.encode(rows), result.train.tensors[0])
    rows.to_csv(tmp_path / "new.csv", index=False)
    assert torch.equal(encoder.encode(tmp_path / "new.csv"), result.train.tensors[0])
    with pytest.raises(ValueError, match="has no column 'city'"):
        encoder.encode(rows.rename(columns={"city": "place"}))
    with pytest.raises(TypeError, match="expected a frame or the path"):
        encoder.encode([1, 2])


@pytest.mark.parametrize("form", ["pandas", "polars", "csv", "parquet"])
def test_missing_values_are_named_by_column_and_row(frame, form, tmp_path):
    frame.loc[7, "age"] = np.nan
    frame.loc[[11, 90], "city"] = None
    frame.loc[5, "outcome"] = None
    data, first = frame, 0
    if form == "polars":
        data = pl.from_pandas(frame)
    elif form != "pandas":
        data, first = tmp_path / f"table.{form}", 1
        frame.to_csv(data, index=False) if form == "csv" else frame.to_parquet(data)
    with pytest.raises(ValueError, match="missing") as raised:
        opened(data)
    message = str(raised.value)
    assert f"column 'age' at rows {7 + first}" in message
    assert f"column 'city' at rows {11 + first}, {90 + first}" in message
    assert f"target 'outcome' at rows {5 + first}" in message
    assert "fill them" in message


def test_infinite_values_count_as_missing(frame):
    frame.loc[7, "age"] = np.inf
    with pytest.raises(ValueError, match="column 'age' at rows 7"):
        opened(frame)


def test_missing_integers_and_booleans_of_the_nullable_types():
    frame = pd.DataFrame(
        {
            "a": pd.array([1, None, 3] * 4, dtype="Int64"),
            "b": pd.array([True, False, None] * 4, dtype="boolean"),
            "text": pd.array(["u", "v", None] * 4, dtype="string"),
            "y": ["p", "q", "p"] * 4,
        }
    )
    with pytest.raises(
        ValueError, match=r"column 'a' at rows 1, 4, 7, 10; column 'b' at rows 2, 5, 8, 11; column 'text' at rows 2"
    ):
        opened(frame, target="y")
    with pytest.raises(
        ValueError, match=r"column 'a' at rows 1, 4, 7, 10; column 'b' at rows 2, 5, 8, 11; column 'text' at rows 2"
    ):
        opened(pl.from_pandas(frame), target="y")


def test_target_names_are_guessed(frame):
    with pytest.raises(ValueError, match=r"no target column 'outcom': did you mean 'outcome'\?"):
        opened(frame, target="outcom")
    with pytest.raises(TypeError, match=r"expected target= with the column to predict.*'age'"):
        opened(frame, target=None)


def test_text_among_numbers_is_kept_as_numbers_and_indicators():
    frame = pd.DataFrame({"x": [1.0, "unknown", "3", 5] * 5, "y": list("abab") * 5})
    result = opened(frame, frame, target="y")
    assert result.facts.columns == ("x", "x=unknown")
    assert any("mixes numbers with text ('unknown')" in note for note in result.facts.notes)
    assert result.train.tensors[0][:4, 1].tolist() == [0, 1, 0, 0]
    assert result.train.tensors[0][1, 0] == 0
    assert torch.allclose(result.train.tensors[0][[0, 2, 3], 0], torch.tensor([-2.0, 0.0, 2.0]) / (8 / 3) ** 0.5)


def test_numbers_written_as_text_are_numbers():
    frame = pd.DataFrame({"x": [str(value) for value in range(20)], "y": list("ab") * 10})
    result = opened(frame, target="y")
    assert result.facts.columns == ("x",)
    assert any("numbers written as text" in note for note in result.facts.notes)


def test_many_categories_become_their_rank_and_unseen_ones_the_rarest():
    words = [f"w{row % 60}" for row in range(119)] + ["w0"]
    frame = pd.DataFrame({"x": words, "y": list("ab") * 60})
    valid = pd.DataFrame({"x": ["w0", "new"], "y": ["a", "b"]})
    result = opened(frame, valid, target="y")
    assert result.facts.columns == ("x",)
    assert any("60 different texts and was encoded as one number" in note for note in result.facts.notes)
    assert any("'new'; encoded as the rarest" in note for note in result.facts.notes)
    column = result.encoder.columns[0]
    assert column.categories[0] == "w0"
    ranks = result.valid.tensors[0][:, 0].double() * column.scale + column.mean
    assert torch.allclose(ranks, torch.tensor([0.0, 60.0], dtype=torch.float64), atol=1e-4)


def test_constant_columns_are_noted_and_harmless():
    frame = pd.DataFrame({"x": [0.1] * 20, "word": ["same"] * 20, "z": range(20), "y": list("ab") * 10})
    result = opened(frame, target="y")
    said = "\n".join(result.facts.notes)
    assert "column 'x' is constant (0.1)" in said
    assert "column 'word' is constant ('same')" in said
    assert bool((result.train.tensors[0][:, 0].abs() < 1e-6).all())


def test_unseen_labels_and_types_of_held_out_data_are_errors_by_row(frame):
    valid = frame.head(6).copy()
    valid.loc[2, "outcome"] = "wel"
    with pytest.raises(ValueError, match=r"received 'wel' at rows 2; did you mean 'well'"):
        opened(frame, valid)
    valid = frame.head(6).astype({"age": object})
    valid.loc[4, "age"] = "old"
    with pytest.raises(ValueError, match=r"expected numbers in column 'age'.*received 'old' at rows 4"):
        opened(frame, valid)
    with pytest.raises(ValueError, match=r"has no column 'age'"):
        opened(frame, frame.drop(columns="age"))


@pytest.mark.parametrize(
    ("values", "loss", "kind", "classes"),
    [
        ([3, 5, 9] * 10, None, "classification", ("3", "5", "9")),
        ([10, 9, 2] * 10, None, "classification", ("2", "9", "10")),
        ([True, False, True] * 10, None, "classification", ("False", "True")),
        ([1.0, 2.0, 1.0] * 10, None, "classification", ("1", "2")),
        ([1, 2, 1] * 10, nn.MSELoss(), "regression", None),
        (list(range(30)), None, "regression", None),
        ([0.5, 1.5, 2.25] * 10, None, "regression", None),
    ],
)
def test_targets_are_classes_or_numbers(values, loss, kind, classes):
    frame = pd.DataFrame({"x": np.arange(30.0), "y": values})
    result = opened(frame, target="y", loss=loss)
    assert (result.facts.kind, result.facts.classes) == (kind, classes)
    assert result.train.tensors[1].shape == ((24,) if classes else (24, 1))
    assert result.train.tensors[1].dtype == (torch.int64 if classes else torch.float32)


@pytest.mark.parametrize(
    ("values", "loss", "message"),
    [
        (["a"] * 30, None, "at least two classes, received only 'a' in all 30 rows"),
        (["a", "b", "c"] * 10, nn.BCEWithLogitsLoss(), "two classes for a binary loss, received 3"),
        (["a", "b", "c"] * 10, nn.MSELoss(), "expected numbers for this loss, received text such as 'a'"),
        ([0.5, 0.25, 1.5] * 10, nn.CrossEntropyLoss(), "expected class labels for this loss, received numbers"),
        ([f"id {row}" for row in range(30)], None, "classes with several rows each, received 30"),
        (pd.date_range("2020-01-01", periods=30), None, "expected classes or numbers, received dates"),
    ],
)
def test_targets_that_do_not_fit(values, loss, message):
    with pytest.raises(ValueError, match=message):
        opened(pd.DataFrame({"x": np.arange(30.0), "y": values}), target="y", loss=loss)


def test_binary_losses_get_a_column_of_zeros_and_ones(frame):
    result = opened(frame, loss=nn.BCEWithLogitsLoss())
    targets = result.train.tensors[1]
    assert targets.shape == (96, 1)
    assert set(targets.flatten().tolist()) == {0.0, 1.0}
    assert result.facts.outputs == 1


def test_real_tables():
    cancer = opened(load_breast_cancer(as_frame=True).frame, target="target")
    assert (cancer.train.size, cancer.valid.size, cancer.facts.outputs) == (456, 113, 2)
    wine = opened(load_wine(as_frame=True).frame, target="target")
    assert wine.facts.classes == ("0", "1", "2")
    diabetes = opened(load_diabetes(as_frame=True, scaled=False).frame, target="target")
    assert diabetes.facts.kind == "regression"
    variance = diabetes.valid.tensors[1].double().var(correction=0)
    assert diabetes.facts.held_out_variance[0] == pytest.approx(float(variance), rel=1e-6)


def test_tables_without_rows_or_columns_or_that_are_none(tmp_path):
    (tmp_path / "empty.csv").write_text("x,y\n")
    with pytest.raises(ValueError, match="at least one row"):
        opened(tmp_path / "empty.csv", target="y")
    with pytest.raises(ValueError, match="at least one column of inputs"):
        opened(pd.DataFrame({"y": list("ab") * 5}), target="y")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(ValueError, match=r"broken.parquet, but it could not be read"):
        opened(tmp_path / "broken.parquet", target="y")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"file ending in .csv.*received notes.txt"):
        opened(tmp_path / "notes.txt", target="y")
    with pytest.raises(ValueError, match=r"does not exist; did you mean 'empty.csv'"):
        opened(tmp_path / "emty.csv", target="y")


def test_a_frame_without_target_for_a_loss_that_sees_the_batch(frame):
    loss = on_batch(lambda model, batch: (model(batch) - batch).square().mean())
    result = open_data(Task(nn.Linear(9, 9), loss, frame))
    assert result.train.tensors.shape[0] == N
    assert result.facts.kind == "other"


def test_every_type_of_column():
    rows = 40
    rng = np.random.default_rng(1)
    index = pl.int_range(rows)
    frame = pl.DataFrame({"x": rng.normal(size=rows), "y": list("ab") * 20}).with_columns(
        pl.lit("2020-01-01").str.to_date().dt.offset_by("1d").alias("date"),
        pl.time(hour=index % 24).alias("time"),
        pl.duration(hours=index).alias("span"),
        pl.col("x").cast(pl.Decimal(10, 3)).alias("decimal"),
        pl.col("y").cast(pl.Categorical).alias("category"),
        index.cast(pl.UInt8).alias("small"),
        (index % 3 == 0).alias("truth"),
    )
    result = opened(frame, target="y")
    expected = ("x", "date", "time", "span", "decimal", "category=a", "category=b", "small", "truth")
    assert result.facts.columns == expected
    assert bool(torch.isfinite(result.train.tensors[0]).all())
    frame = pd.DataFrame(
        {
            "zone": pd.date_range("2020-01-01", periods=rows, tz="Europe/Rome"),
            "month": pd.period_range("2020-01", periods=rows, freq="M"),
            "day": pd.Series(pd.date_range("2020-01-01", periods=rows)).dt.date,
            "category": pd.Categorical(rng.choice(list("uv"), rows)),
            "arrow": pd.array(range(rows), dtype="int64[pyarrow]"),
            "y": list("ab") * 20,
        }
    )
    assert opened(frame, target="y").facts.columns == ("zone", "month", "day", "category=u", "category=v", "arrow")


@pytest.mark.parametrize("cell", [[1, 2], {"a": 1}, np.ones(2), 1j])
def test_cells_that_hold_more_than_one_value_are_refused(cell):
    cells = np.full(10, cell) if isinstance(cell, complex) else [cell] * 10
    with pytest.raises(ValueError, match=r"numbers, text, dates or truth values in column 'x' of the train frame"):
        opened(pd.DataFrame({"x": cells, "y": list("ab") * 5}), target="y")


@pytest.mark.parametrize("pair", [("yes", "no"), ("TRUE", "FALSE"), ("t", "f")])
def test_words_for_truth_in_a_csv_file_are_words(pair, tmp_path):
    words = {"x": range(N), "sure": [*pair, "maybe"] * (N // 3), "y": pair * (N // 2)}
    pd.DataFrame(words).to_csv(tmp_path / "a.csv", index=False)
    known = pd.read_csv(tmp_path / "a.csv", dtype=str).query("sure != 'maybe'")
    known.to_csv(tmp_path / "b.csv", index=False)  # what one file lacks changes nothing
    result = opened(str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), target="y")
    assert result.facts.classes == tuple(sorted(pair))
    assert not [note for note in result.facts.notes if "that training did not" in note]
    assert result.valid.tensors[1].tolist() == [sorted(pair).index(word) for word in known["y"]]


def test_truth_values_of_a_frame_are_encoded_from_the_words_of_a_csv_file(frame, tmp_path):
    encoder = opened(frame).encoder
    frame.to_csv(tmp_path / "new.csv", index=False)
    assert torch.equal(encoder.encode(tmp_path / "new.csv"), encoder.encode(frame))


def test_categories_that_are_numbers_are_known_where_a_file_has_no_others(tmp_path):
    sized = pd.DataFrame({"x": range(N), "size": ["S", "M", "L", "48"] * 30, "y": [0, 1] * 60})
    sized.to_csv(tmp_path / "a.csv", index=False)
    encoder = opened(str(tmp_path / "a.csv"), target="y").encoder
    sized[3::4].to_csv(tmp_path / "b.csv", index=False)
    sizes = [name.startswith("size=") for name in encoder.names]
    assert encoder.encode(tmp_path / "b.csv")[:, sizes].sum() == N // 4


def test_several_targets_beside_a_frame_are_refused():
    with pytest.raises(ValueError, match=r"one column of targets beside a frame, received shape \(10, 2\)"):
        opened((pd.DataFrame({"x": range(10)}), np.ones((10, 2))))
    with pytest.raises(ValueError, match=r"one column of targets beside a frame, received shape \(10, 2\)"):
        opened((pd.DataFrame({"x": range(10)}), pd.DataFrame(np.ones((10, 2)))))
    with pytest.raises(ValueError, match="received 10 inputs and 9 targets"):
        opened((pd.DataFrame({"x": range(10)}), np.ones(9)))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_separators_are_read_from_the_header(tmp_path, delimiter):
    rows = [["x", '"the, target"'], *([str(row), "ab"[row % 2]] for row in range(10))]
    (tmp_path / "table.csv").write_text("\n".join(delimiter.join(row) for row in rows))
    result = opened(tmp_path / "table.csv", target="the, target")
    assert result.facts.columns == ("x",)
    (tmp_path / "table.csv").write_text("\n".join(["x" + delimiter + "y", "1" + delimiter + "a", "2", "3"]))
    with pytest.raises(ValueError, match=r"could not be read: line 3 has 1 cells and the header 2"):
        opened(tmp_path / "table.csv", target="y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,y\n1,2\n3\n4,5,6\n", "line 3 has 1 cells and the header 2"),
        ("a,y\n" + "1,2,3\n" * 40, "line 2 has 3 cells and the header 2"),
        ("größe,y\n1,2\n".encode("latin1"), "not text in UTF-8"),
        ("a,y\n1,2\n".encode("utf-16"), "not text in UTF-8"),
    ],
)
def test_no_row_of_a_csv_file_is_passed_over(text, message, tmp_path):
    (tmp_path / "a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        opened(str(tmp_path / "a.csv"), target="y")


def test_decimal_commas_are_numbers(tmp_path):
    rows = [f"{row},5;{row}:30;{row % 2}" for row in range(20)]
    (tmp_path / "a.csv").write_text("\n".join(["size;at;y", *rows, ""]))
    encoder = opened(str(tmp_path / "a.csv"), target="y").encoder
    assert encoder.columns[0].form == "number"
    assert encoder.columns[0].mean == pytest.approx(10.0, abs=2)


def test_a_handful_of_rows_is_not_split():
    result = opened(pd.DataFrame({"x": [1.0, 2.0, 3.0, 4.0], "y": list("abab")}), target="y")
    assert result.valid is None
    assert any("4 rows are too few to hold some out" in note for note in result.facts.notes)


def test_held_out_targets_beside_a_frame_may_have_another_name(frame):
    inputs = frame.drop(columns="outcome")
    result = opened((inputs, frame["outcome"]), (inputs.head(6), frame["outcome"].head(6).to_numpy()))
    assert torch.equal(result.valid.tensors[1], result.train.tensors[1][:6])


def test_encoders_are_loaded_by_their_kind(frame):
    result = opened(frame)
    assert load_encoder(result.encoder.to_dict()) == result.encoder
    with pytest.raises(ValueError, match="unknown kind of encoder 'tabel': did you mean 'table'"):
        load_encoder({"kind": "tabel"})
