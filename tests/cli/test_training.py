"""The commands that train, each in a process of its own, with the real engine."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

TASK = """
import torch
from fogline.task import Task
from fogline.recipe import Recipe

X = torch.linspace(-1, 1, 64).reshape(-1, 1)
task = Task(torch.nn.Linear(1, 1), torch.nn.MSELoss(), (X, 3 * X + 1), valid=(X, 3 * X + 1), name="line")
recipe = Recipe(optimizer="gd", lr=0.5, batch_size="full", duration="60st", schedule="constant", step="eager")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "task.py").write_text(TASK)
    return tmp_path


def start(*arguments: object, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fogline", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(*arguments: object, folder: Path, code: int = 0) -> tuple[str, str]:
    """Run a command to its end; returns what it printed and what it complained about."""
    process = start(*arguments, folder=folder)
    printed, complained = process.communicate(timeout=300)
    assert process.returncode == code, complained
    return printed, complained


def info(folder: Path, name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "runs" / name / "run.json").read_text())
    return read


def test_train_resume_show_and_report(folder: Path) -> None:
    printed, complained = call("train", "task.py", "--name", "line", "--report", "line.html", folder=folder)
    assert complained == ""
    assert "run: runs/line" in printed
    assert "held out: loss" in printed
    assert (folder / "line.html").exists()
    assert info(folder, "line")["steps"] == 60
    call("resume", "line", "--duration", "90st", folder=folder)
    assert info(folder, "line")["steps"] == 90
    assert "training loss by step" in call("show", "line", folder=folder)[0]


def test_options_win_over_the_recipe_file_which_wins_over_the_task_file(folder: Path) -> None:
    (folder / "recipe.toml").write_text('lr = 0.25\nduration = "10st"\nbatch_size = 32\nstep = "eager"\n')
    call("train", "task.py", "--recipe", "recipe.toml", "--lr", "0.125", "--name", "x", folder=folder)
    recipe = info(folder, "x")["recipe"]
    assert (recipe["lr"], recipe["duration"], recipe["batch_size"]) == (0.125, "10st", 32)


def test_a_table_needs_no_code(folder: Path) -> None:
    rows = [f"{at % 7},{at % 5},{'high' if at % 7 > 3 else 'low'}" for at in range(200)]
    (folder / "table.csv").write_text("a,b,level\n" + "\n".join(rows) + "\n")
    printed, _ = call(
        *("train", "table.csv", "--target", "level", "--valid", "table.csv", "--name", "table"),
        *("--lr", "0.01", "--duration", "40st", "--step", "eager"),
        folder=folder,
    )
    assert "accuracy" in printed
    assert info(folder, "table")["source"]["path"] == str(folder / "table.csv")
    call("resume", "table", "--duration", "60st", folder=folder)
    assert info(folder, "table")["steps"] == 60


def test_a_diverged_run_exits_with_1(folder: Path) -> None:
    printed, _ = call("train", "task.py", "--lr", "30", "--duration", "40st", folder=folder, code=1)
    assert printed.startswith(("Diverged", "Non-finite"))


def test_ctrl_c_saves_says_how_to_go_on_and_exits_with_130(folder: Path) -> None:
    process = start("train", "task.py", "--name", "long", "--duration", "30min", folder=folder)
    wait_for_steps(folder / "runs" / "long" / "run.sqlite", process)
    process.send_signal(signal.SIGINT)
    _, complained = process.communicate(timeout=120)
    assert process.returncode == 130, complained
    assert "Traceback" not in complained
    assert complained.endswith("go on with: fogline resume runs/long\n")
    assert info(folder, "long")["verdict"]["name"] == "INTERRUPTED"


def wait_for_steps(path: Path, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        if path.exists() and steps_in(path):
            return
        time.sleep(0.05)
    raise AssertionError(process.communicate()[1])


def steps_in(path: Path) -> int:
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        if not connection.execute("select name from sqlite_master where name = 'steps'").fetchone():
            return 0
        count: int = connection.execute("select count(*) from steps").fetchone()[0]
        return count


def test_a_diagnosis_can_be_written_as_a_page(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        "import torch\nfrom torch import nn\nimport fogline\n"
        "X = torch.linspace(-1, 1, 64)[:, None]\n"
        "make = lambda: nn.Sequential(nn.Linear(1, 2), nn.Softmax(dim=1))\n"
        "task = fogline.Task(make, nn.CrossEntropyLoss(), (X, (X[:, 0] > 0).long()))\n"
        "recipe = fogline.Recipe(optimizer='adam', lr=0.01, batch_size=16, duration='2ep')\n"
    )
    page = tmp_path / "new" / "doctor.html"
    command = [sys.executable, "-m", "fogline", "doctor", "task.py", "--budget", "0", "--report", str(page)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert f"report: {page}" in ended.stdout, ended.stderr
    assert "double_softmax" in page.read_text(encoding="utf-8")
