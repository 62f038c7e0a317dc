"""``fogline export`` on a run of a table, and the program it leaves beside the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import fogline
from fogline.cli import app
from fogline.cli.sources import describe_source

pytest.importorskip("onnxruntime", reason="the extra 'edge' is not installed: pip install 'fogline[edge]'")

COLUMNS = "age,city,smoker,joined,risk"


def table(path: Path, rows: int) -> Path:
    random = np.random.default_rng(0)
    lines = []
    for _ in range(rows):
        age, city, smoker = random.integers(20, 80), random.choice(["Bern", "Rome"]), random.random() < 0.5
        high = age + 30 * smoker + 10 * (city == "Rome") > 65
        lines.append(f"{age},{city},{smoker},2026-0{random.integers(1, 9)}-15,{'high' if high else 'low'}")
    path.write_text("\n".join([COLUMNS, *lines]) + "\n")
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    data = table(tmp_path / "patients.csv", 240)
    fogline.fit(
        fogline.Task(train=str(data), target="risk"), runs=tmp_path / "runs", name="patients", progress=False,
        source=describe_source(data, "risk", None), optimizer="adamw", lr=1e-2, batch_size=32, duration="8ep",
        step="eager",
    )  # fmt: skip
    return tmp_path / "runs"


def test_a_run_of_a_table_is_exported_and_predicts_rows_of_text(runs: Path, tmp_path: Path) -> None:
    asked = ["export", "patients", "--runs", str(runs), "--qat", "none", "--json"]
    printed = CliRunner().invoke(app, asked)
    assert printed.exit_code == 0, printed.output
    values = json.loads(printed.stdout)
    assert values["differences"]["fake - converted"]["largest"] == 0
    model = runs / "patients" / "model.onnx"
    assert values["path"] == str(model)
    fresh = table(tmp_path / "fresh.csv", 20)
    command = [sys.executable, str(model.with_name("predict.py")), str(fresh)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answers = [json.loads(line)["class"] for line in done.stdout.splitlines()]
    truth = [line.split(",")[-1] for line in fresh.read_text().splitlines()[1:]]
    # The first rows of the same table: the model has learned most of them, from the same encoding.
    assert np.mean([a == b for a, b in zip(answers, truth, strict=True)]) > 0.8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--qat", "always"], "expected auto or none"),
        (["--bits", "4"], "take target='executorch'"),
        (["-o", "model.bin"], "ends in .onnx"),
    ],
)
def test_bad_input_is_told_in_one_message(runs: Path, options: list[str], words: str) -> None:
    printed = CliRunner().invoke(app, ["export", "patients", "--runs", str(runs), *options])
    assert printed.exit_code == 2
    assert words in printed.stderr
