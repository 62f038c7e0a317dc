"""The command that searches for a recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fogline
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


MEETING = """
import os, time
from pathlib import Path
from programs.searches import RECIPE as recipe, SPACE as space, line_task

HERE = Path(__file__).parent / "workers"


def make_task(columns=3):
    HERE.mkdir(exist_ok=True)
    (HERE / str(os.getpid())).touch()
    deadline = time.monotonic() + 120
    while len(list(HERE.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    return line_task(columns)
"""
"""A task that begins when two processes want it."""


def test_workers_are_processes_that_join_one_search(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'fogline[tune]'")
    file = tmp_path / "meeting.py"
    file.write_text(MEETING)
    words = [
        "tune",
        str(file),
        "--workers",
        "2",
        "--trials",
        "5",
        "--apart",
        "--runs",
        str(tmp_path / "runs"),
        "--json",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "fogline", *words], env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    trials = json.loads(ended.stdout)["trials"]
    assert 5 <= len(trials) <= 6  # each of two may begin the last one
    assert {trial["state"] for trial in trials} <= {"complete", "pruned"}
    came = {int(path.name) for path in (tmp_path / "workers").iterdir()}
    assert len(came) == 2
    search = fogline.Tuned.open(tmp_path / "runs" / "tune-meeting")
    assert {trial.user_attrs["worker"]["pid"] for trial in search.study.trials} <= came
