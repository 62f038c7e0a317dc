"""``fogline examples``: what is told, decided, asked and retrained without the page."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import fogline.cli as cli
from fogline._examples.edits import Edits
from fogline.record.previews import read_previews
from run_folders import add_examples, make_run, write_epoch

COUNT, WRONG = 60, [3, 14, 27]
TASK = """
import torch
from torch import nn
from fogline import Recipe, Task

generator = torch.Generator().manual_seed(0)
truth = torch.arange(240) % 3
X = torch.randn(240, 6, generator=generator) * 0.6 + nn.functional.one_hot(truth, 6) * 2
y = truth.clone()
y[::16] = (y[::16] + 1) % 3
def net():
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))


task = Task(net, nn.CrossEntropyLoss(), (X, y),
            valid=(X[1::4], truth[1::4]), name="dots")
same = Task(task.model, task.loss, task.train, valid=task.valid)
number = 3
recipe = Recipe(optimizer="adamw", lr=0.01, batch_size=16, duration="6ep", step="eager")
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], prog_name="fogline")


def told(*arguments: object) -> str:
    answer = call("examples", *arguments)
    assert answer.exit_code == 0, answer.output
    return answer.output


def refused(*arguments: object) -> str:
    answer = call("examples", *arguments)
    assert answer.exit_code == 2, answer.output
    return answer.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return add_examples(make_run(tmp_path / "run"), COUNT, wrong=WRONG)


def test_what_stands_out_is_listed(folder: Path) -> None:
    lines = told(folder).splitlines()
    assert lines[0] == "run: 60 examples, 8 epochs, classification of 3 classes"
    assert lines[2].startswith("labels likely wrong: 3 (")
    assert lines[3] == "example\tlabel\tlikely\tprobability"
    rows = [line.split("\t") for line in lines[4:7]]
    assert sorted(int(row[0]) for row in rows) == WRONG
    assert {int(row[0]): row[1:3] for row in rows}[3] == ["bird", "cat"]
    assert told(folder, "--top", 1).splitlines()[-1].startswith("the first 1 of 3")


def test_json_is_the_same_and_nothing_else(folder: Path) -> None:
    found = json.loads(told(folder, "--json"))
    assert found["about"] == {"run": str(folder), "examples": 60, "epochs": 8, "kind": "classification"}
    errors = found["label_errors"]
    assert sorted(row["example"] for row in errors["first"]) == WRONG
    assert errors["interval"][0] <= errors["count"] <= errors["interval"][1]
    assert {row["example"]: row["likely"] for row in errors["first"]}[3] == 1


def test_a_question_in_sql(folder: Path) -> None:
    query = "select target_class, count(*) as n, avg(nullif(0, 0)) as none from examples group by 1 order by 1"
    assert told(folder, "--sql", query).splitlines() == [
        "target_class\tn\tnone",
        "bird\t20\t",
        "cat\t20\t",
        "dog\t20\t",
    ]
    rows = json.loads(told(folder, "--json", "--sql", query))["rows"]
    assert rows[0] == {"target_class": "bird", "n": 20, "none": None}
    Edits(folder).drop([7])
    assert told(folder, "--sql", "select example from examples where edit = 'drop'").splitlines() == ["example", "7"]
    assert "column" in refused(folder, "--sql", "select nothing from examples")
    assert "expected one select" in refused(folder, "--sql", "drop table examples")


def test_the_table_is_written(folder: Path, tmp_path: Path) -> None:
    assert "rows.csv" in told(folder, "--export", tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (len(rows), rows[3]["target_class"]) == (COUNT, "bird")
    assert ".parquet" in refused(folder, "--export", tmp_path / "rows.odt")


@pytest.mark.parametrize(
    ("action", "text", "expected"),
    [
        ("drop", "3,17,20-22", {3: "drop", 17: "drop", 20: "drop", 21: "drop", 22: "drop"}),
        ("keep", " 3 , 5", {3: "keep", 5: "keep"}),
        ("relabel", "3=dog,5=0,7-8=cat", {3: 2.0, 5: 0.0, 7: 1.0, 8: 1.0}),
        ("relabel", "3", {3: 1.0}),
        ("relabel", "likely", {3: 1.0, 14: 0.0, 27: 1.0}),
        ("drop", "likely:2", 2),
    ],
)
def test_decisions(folder: Path, action: str, text: str, expected: Any) -> None:
    output = told(folder, "--edit", action, text)
    assert "the data itself is not changed" in output
    edits = Edits(folder)
    if isinstance(expected, int):
        assert set(edits.dropped) <= set(WRONG)
        assert len(edits) == expected
    else:
        rows = {row["example"]: row["label"] if row["action"] == "relabel" else row["action"] for row in edits.table}
        assert rows == expected
    count = len(edits)
    assert f"about {count} examples" in told(folder, "--undo")
    assert len(Edits(folder)) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--edit", "burn", "3"), "unknown action"),
        (("--edit", "drop", "60"), "examples 0 to 59"),
        (("--edit", "drop", "x"), "3,17,20-25"),
        (("--edit", "drop", "3="), "3,17,20-25"),
        (("--edit", "drop", "3=cat"), "labels are for relabel"),
        (("--edit", "relabel", "3=cow"), "unknown class 'cow'"),
        (("--edit", "relabel", "3=7"), "0 to 2"),
        (("--retrain",), "started from Python"),
        (("--data",), "started from Python"),
        (("--task", "none.py"), "none.py"),
    ],
)
def test_what_does_not_fit_is_said(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(folder, *arguments)
    assert len(Edits(folder)) == 0


def test_classes_whose_names_are_numbers_are_meant_by_their_names(tmp_path: Path) -> None:
    folder = add_examples(make_run(tmp_path / "run"), classes=["7", "1", "0"])
    told(folder, "--edit", "relabel", "3=0,5=7")
    assert Edits(folder).relabelled == {3: 2.0, 5: 0.0}


def test_edits_are_told_with_what_to_do(folder: Path) -> None:
    Edits(folder).drop([3])
    assert "`fogline examples run --retrain`" in told(folder).splitlines()[-1]


def test_a_run_without_examples_says_so(tmp_path: Path) -> None:
    assert "expected a run that recorded its examples" in refused(make_run(tmp_path / "run"))


def test_numbers_to_predict_are_listed_by_how_far_off_they_are(tmp_path: Path) -> None:
    import numpy as np

    folder = make_run(tmp_path / "run", examples={"kind": "regression", "count": 3, "classes": None})
    columns = {"residual": np.array([0.5, -3.0, np.nan], np.float32), "loss": np.array([0.25, 9.0, np.nan], np.float16)}
    write_epoch(folder, 0, 10, columns)
    lines = told(folder).splitlines()
    assert lines[2:] == ["largest residual", "example\tresidual", "1\t-3", "0\t0.5"]


def test_looking_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys; from fogline.cli import app\n"
        f"try: app(['examples', {str(folder)!r}], prog_name='fogline')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_train_look_relabel_and_retrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("task.py").write_text(TASK)
    trained = call("train", "task.py", "--name", "dots")
    assert trained.exit_code == 0, trained.output
    folder = tmp_path / "runs" / "dots"
    previews = read_previews(folder)
    assert previews is not None
    assert (previews.kind, len(previews)) == ("rows", 240)
    looked = told("dots", "--data")
    for word in ("labels likely wrong", "leaks:", "duplicates:", "outliers:", "slices:"):
        assert word in looked
    told("dots", "--edit", "relabel", "likely")
    assert len(set(Edits(folder).relabelled) & set(range(0, 240, 16))) >= 8
    said = told("dots", "--retrain", "--seeds", 2)
    assert "seed 1 with the edits" in said
    assert "held-out accuracy" in said.splitlines()[-2]
    found = json.loads(told("dots", "--retrain", "--seeds", 2, "--task", "task.py:same", "--json"))
    assert found["seeds"] == [0, 1]
    assert found["words"].splitlines() == said.splitlines()[-3:]
    assert "found no `other`" in refused("dots", "--retrain", "--task", "task.py:other")
    assert "expected `number`" in refused("dots", "--retrain", "--task", "task.py:number")
