"""SQL reads the one table and can do nothing else; exports hold what the table holds."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import polars
import pytest
import torch
from PIL import Image

from fogline._examples.export import cleanlab_table, write_fiftyone, write_table
from fogline._examples.query import QueryError, query
from fogline.record.store import Table

COLUMNS = {
    "example": np.arange(4),
    "loss": np.array([0.5, np.nan, 2.0, 1.0], dtype=np.float32),
    "target_class": np.array(["cat", "dog", "cat", None], dtype=object),
}


def test_it_answers() -> None:
    found = query(COLUMNS, "select target_class, count(*) as n from examples group by 1 order by n desc, 1 limit 1")
    assert found["target_class"].tolist() == ["cat"]
    assert found["n"].tolist() == [2]


def test_what_has_no_value_is_null_and_comes_back_as_nan() -> None:
    assert query(COLUMNS, "select example from examples where loss is null")["example"].tolist() == [1]
    assert query(COLUMNS, "select example from examples order by loss desc nulls last")["example"][0] == 2
    back = query(COLUMNS, "select loss, target_class from examples order by example")
    assert np.isnan(back["loss"]).tolist() == [False, True, False, False]
    assert back["target_class"].tolist()[-1] is None


@pytest.mark.parametrize(
    "text",
    [
        "select * from read_csv('{file}')",
        "select * from '{file}'",
        "select * from read_text('{file}')",
        "copy examples to '{file}'",
        "attach '{file}'",
        "select getenv('HOME')",
        "install httpfs",
        "select * from hidden",
    ],
)
def test_nothing_else_is_within_reach(tmp_path: Path, text: str) -> None:
    file = tmp_path / "secret.csv"
    file.write_text("a\n1\n")
    hidden = {"a": np.arange(3)}  # a variable here is no table there
    with pytest.raises(QueryError):
        query(COLUMNS, text.format(file=file))
    assert file.read_text() == "a\n1\n"
    assert len(hidden) == 1


@pytest.mark.parametrize(
    "text", ["drop table examples", "delete from examples", "select 1; select 2", "", "set threads = 1"]
)
def test_only_one_select_is_taken(text: str) -> None:
    with pytest.raises(QueryError, match="expected one select"):
        query(COLUMNS, text)


def test_a_wrong_name_is_answered_with_the_right_ones() -> None:
    with pytest.raises(QueryError, match="columns example, loss, target_class"):
        query(COLUMNS, "select los from examples")
    with pytest.raises(QueryError, match="one table, examples"):
        query(COLUMNS, "select * from example")


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "json"])
def test_exports_hold_the_table(tmp_path: Path, ending: str) -> None:
    path = write_table(Table(COLUMNS), tmp_path / f"it's {ending}.{ending}")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    reader = {"parquet": "read_parquet", "csv": "read_csv", "tsv": "read_csv", "json": "read_json"}[ending]
    quoted = str(path).replace("'", "''")
    with duckdb.connect() as connection:
        rows = connection.execute(f"select example, loss, target_class from {reader}('{quoted}') order by 1").fetchall()
    assert rows == [(0, 0.5, "cat"), (1, None, "dog"), (2, 2.0, "cat"), (3, 1.0, None)]


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"did you mean '\.parquet'"):
        write_table(Table(COLUMNS), tmp_path / "a.parquett")


def test_the_frame_of_cleanlab() -> None:
    made = cleanlab_table(np.array([0, 1]), np.array([2, -1]), np.array([0.75, 0.25], dtype=np.float32)).to_pandas()
    assert made["is_label_issue"].tolist() == [True, False]
    assert made["label_quality"].tolist() == [0.25, 0.75]
    assert made["predicted_label"].tolist() == [2, 1]


def test_the_folder_of_fiftyone(tmp_path: Path) -> None:
    table = Table({"example": np.arange(2), "target": np.array([1, 0]), "loss": np.array([0.5, np.nan])})
    pictures = torch.stack([torch.zeros(3, 4, 5), torch.ones(3, 4, 5)])
    folder = write_fiftyone(tmp_path / "out", pictures, table, ["cat", "dog"], np.array([0, 1]))
    said = json.loads((folder / "labels.json").read_text())
    assert said["classes"] == ["cat", "dog"]
    assert said["labels"]["0"] == {"label": "dog", "attributes": {"example": 0, "target": 1, "loss": 0.5}}
    assert said["labels"]["1"]["attributes"]["loss"] is None
    with Image.open(folder / "data" / "1.png") as image:
        assert (image.size, image.getpixel((0, 0))) == ((5, 4), (255, 255, 255))
    with pytest.raises(FileExistsError):
        write_fiftyone(folder, pictures, table, ["cat", "dog"], np.array([0]))


def test_polars_reads_the_parquet(tmp_path: Path) -> None:
    path = write_table(Table(COLUMNS), tmp_path / "a.parquet")
    assert polars.read_parquet(path)["loss"].to_list() == [0.5, None, 2.0, 1.0]
