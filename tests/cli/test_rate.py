"""``fogline lr``: the measurement itself is tested in tests/rate; here, what is said of it."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import fogline.cli as cli
from fogline.cli.rate import print_rate
from fogline.rate import Rate
from run_folders import race_evidence

TASK = """
import torch
from fogline.task import Task
from fogline.recipe import Recipe

generator = torch.Generator().manual_seed(0)
X = torch.randn(256, 4, generator=generator)
y = X.sum(dim=1, keepdim=True)
task = Task(torch.nn.Linear(4, 1), torch.nn.MSELoss(), (X[:192], y[:192]), valid=(X[192:], y[192:]))
recipe = Recipe(optimizer="momentum", batch_size=16, duration="1000st")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, which is the current one, with a task file and a table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "task.py").write_text(TASK)
    dice = random.Random(0)
    rows = [(dice.random(), dice.random()) for _ in range(300)]
    (tmp_path / "table.csv").write_text("a,b,sum\n" + "\n".join(f"{a},{b},{a + b}" for a, b in rows) + "\n")
    return tmp_path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["lr", *map(str, arguments)], prog_name="fogline")


def as_json(*arguments: object) -> dict[str, Any]:
    ended = call(*arguments, "--json")
    assert ended.exit_code == 0, ended.output
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_a_task_file_gets_value_interval_cost_reason_and_a_chart(folder: Path) -> None:
    ended = call("task.py")
    assert ended.exit_code == 0, ended.output
    lines = ended.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["rate", "interval", "cost", "decided"]
    assert "of the 1,000 that are planned" in ended.stdout
    assert "rates for" in ended.stdout
    assert any(line.startswith("held-out loss after") for line in lines)
    assert "┤" in ended.stdout
    assert not (folder / "runs").exists()


def test_json_is_all_that_is_printed(folder: Path) -> None:
    found = as_json("table.csv", "--target", "sum", "--duration", "200st", "--plot", "lr.html")
    assert set(found) == {"value", "interval", "cost_steps", "evidence", "warnings"}
    assert found["interval"][0] <= found["value"] <= found["interval"][1]
    assert found["evidence"]["planned_steps"] == 200
    assert len(found["evidence"]["race"]["rates"]) == len(found["evidence"]["race"]["scores"])
    assert "Learning rate for table" in (folder / "lr.html").read_text()


def test_options_win_over_the_recipe_file_which_wins_over_the_task_file(folder: Path) -> None:
    (folder / "recipe.toml").write_text('optimizer = "sgd"\nduration = "300st"\n')
    assert as_json("task.py", "--recipe", "recipe.toml")["evidence"]["planned_steps"] == 300
    found = as_json("task.py", "--recipe", "recipe.toml", "--optimizer", "prodigy")
    assert (found["value"], found["cost_steps"]) == (1.0, 0)
    assert "finds its own step" in found["evidence"]["rule"]


def test_a_method_that_sets_its_own_step_needs_no_chart(folder: Path) -> None:
    printed = call("task.py", "--optimizer", "prodigy").stdout
    assert "The method finds its own step" in printed
    assert "┤" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.csv"], "expected a task file, a table or a folder of images at no.csv, found nothing"),
        (["table.csv", "--target", "summ"], "did you mean 'sum'?"),
        (["table.csv", "--target", "sum", "--optimizer", "adamwx"], "did you mean 'adamw'?"),
        (["table.csv", "--target", "sum", "--duration", "20"], "with its unit"),
        (["task.py", "--target", "sum"], "--target and --valid are for tables"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(folder: Path, arguments: list[str], message: str) -> None:
    ended = call(*arguments, "--json")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("fogline: ")
    assert message in ended.stderr


def test_warnings_lost_probes_and_the_form_of_the_race_are_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    print_rate(Rate(0.05, (0.0025, 1.0), 40, race_evidence(), ("the upper end won",)))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 60
    said = " ".join(printed.split())
    for words in (
        "40 steps, 4 % of the 1,000",
        "The winner, annealed.",
        "5 rates for 3 steps each, together in one program: a step of 5 members",
        "warning the upper end won",
        "(before: 1)",
        "^ 0.05",
        "drawn at the top: 2 that ended higher or were lost",
    ):
        assert words in said


def test_what_is_printed_of_a_lost_field_is_still_json(capsys: pytest.CaptureFixture[str]) -> None:
    evidence = race_evidence()
    evidence["race"] |= {"scores": [None] * 5, "before": None}
    rate = Rate(0.05, (0.0025, 1.0), 40, evidence)
    print_rate(rate, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        **dataclasses.asdict(rate),
        "interval": [0.0025, 1.0],
        "warnings": [],
    }
    print_rate(rate)
    assert "no probe had a finite held-out loss" in capsys.readouterr().out
