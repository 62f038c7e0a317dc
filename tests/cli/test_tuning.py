"""The command that searches for a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fogline.cli import app

TASK = """
from programs.searches import RECIPE as recipe, SPACE as space, line_task


def make_task(columns=3):
    return line_task(columns)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "line.py"
    path.write_text(TASK)
    return path


def test_a_search_is_made_kept_and_gone_on_with(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'fogline[tune]'")
    best = tmp_path / "best.toml"
    command = ["tune", str(file), "--runs", str(tmp_path / "runs"), "--search", "lr=auto", "--search", "columns=[2, 3]"]
    first = CliRunner().invoke(app, [*command, "--trials", "4", "--save", str(best)])
    assert first.exit_code == 0, first.output
    assert "trial 0: " in first.output
    assert "optimizer = " in best.read_text()
    again = CliRunner().invoke(app, [*command, "--trials", "5", "--json"])
    found = json.loads(again.stdout)
    assert [trial["number"] for trial in found["trials"]] == [0, 1, 2, 3, 4]
    assert found["value"] <= min(trial["loss"] for trial in found["trials"] if trial["state"] == "complete")


def test_what_is_wrong_is_said_in_one_message(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'fogline[tune]'")
    ended = CliRunner().invoke(app, ["tune", str(file), "--runs", str(tmp_path), "--search", "batchsize=[1,2]"])
    assert ended.exit_code == 2
    assert "did you mean 'batch_size'" in ended.output
