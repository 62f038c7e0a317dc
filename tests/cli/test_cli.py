from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import fogline.cli as cli
from fogline.recipe import Recipe
from fogline.verdict import Verdict
from run_folders import add_findings, finding, make_run


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], prog_name="fogline")


def in_a_process(*arguments: object, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fogline", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120
    )


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["runs"], ["show", "first"], ["--version"]])
def test_help_and_looking_import_no_torch(arguments: list[str], tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "first")
    code = (
        "import sys; from fogline.cli import app\n"
        f"try: app({arguments!r}, prog_name='fogline')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)


def test_every_field_of_a_recipe_has_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # in a narrower terminal long names are cut
    shown = call("train", "--help").output
    for field in dataclasses.fields(Recipe):
        name = "option" if field.name == "options" else field.name.replace("_", "-")
        assert f"--{name}" in shown


def test_the_exit_codes_are_documented() -> None:
    shown = call("--help").output
    assert all(f"{code} " in shown for code in (0, 1, 2, 74, 130, 143))


def test_the_version_is_printed() -> None:
    assert call("--version").output.startswith("fogline ")


def test_completion_is_printed(tmp_path: Path) -> None:
    shown = in_a_process("--show-completion", "bash", folder=tmp_path, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_FOGLINE_COMPLETE=complete_bash" in shown.stdout


def test_runs_are_completed_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("digits-1", "digits-2", "other"):
        make_run(tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    assert cli.run_names("dig") == ["digits-1", "digits-2"]


def test_runs_lists_every_run(tmp_path: Path) -> None:
    make_run(tmp_path / "a", started="2026-01-02T00:00:00", verdict=Verdict.STALLED)
    make_run(tmp_path / "b", started="2026-01-01T00:00:00", verdict=None)
    (tmp_path / "not a run").mkdir()
    rows = [line.split("\t") for line in call("runs", tmp_path).output.splitlines()]
    assert rows[0] == ["name", "verdict", "steps", "loss", "scores", "when"]
    assert [row[:2] for row in rows[1:]] == [["b", "training"], ["a", "stalled"]]
    assert rows[2][4] == "loss 0.4, accuracy 0.8 (step 199)"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("run.json", "{", "text that is not"),
        ("run.json", "[]", "received a list"),
        ("run.sqlite", "no database", "file is not a database"),
    ],
)
def test_an_unreadable_run_is_shown_beside_the_others_and_alone_an_error(
    name: str, text: str, said: str, tmp_path: Path
) -> None:
    make_run(tmp_path / "whole")
    (make_run(tmp_path / "torn") / name).write_text(text)
    listed = call("runs", tmp_path)
    assert listed.exit_code == 0
    assert "whole" in listed.output
    assert f"unreadable: expected the {'JSON' if name == 'run.json' else 'record'} of a run" in listed.output
    shown = call("show", "torn", "--runs", tmp_path)
    assert (shown.exit_code, said in shown.output) == (2, True)


def test_an_empty_folder_of_runs_is_no_error(tmp_path: Path) -> None:
    assert call("runs", tmp_path).output == f"no runs in {tmp_path}\n"


def test_show_shows_verdict_scores_curve_and_events(tmp_path: Path) -> None:
    make_run(tmp_path / "digits", events=[(at, "note", f"event {at}") for at in range(20)])
    shown = call("show", "digits", "--runs", tmp_path).output
    for words in ("digits: noise floor", "Noise floor: steps", "accuracy 0.8", "event 19", "8 earlier ones", "┤"):
        assert words in shown
    assert "\x1b" not in shown


def test_show_works_where_only_ascii_can_be_printed(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "digits")
    shown = in_a_process("show", "digits", folder=tmp_path, PYTHONIOENCODING="ascii", NO_COLOR="1")
    assert shown.returncode == 0, shown.stderr
    assert "|*" in shown.stdout


def test_report_writes_one_file(tmp_path: Path) -> None:
    make_run(tmp_path / "digits")
    assert call("report", tmp_path / "digits").output == f"{tmp_path}/digits/report.html\n"
    call("report", tmp_path / "digits", "-o", tmp_path / "x.html")
    assert (tmp_path / "x.html").stat().st_size > 1e6


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The message of a call with bad input: exit code 2 and nothing but the message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def message(*arguments: object) -> str:
        ended = call(*arguments)
        assert ended.exit_code == 2, ended.output
        assert ended.stdout == ""
        assert ended.stderr.startswith("fogline: ")
        return ended.stderr

    return message


def test_an_unknown_run_is_named_with_its_neighbour(tmp_path: Path, bad: Callable[..., str]) -> None:
    make_run(tmp_path / "runs" / "digits")
    assert "did you mean 'digits'?" in bad("show", "digit")


def test_no_runs_at_all_is_said(bad: Callable[..., str]) -> None:
    assert "expected a folder of runs" in bad("runs")
    assert "there are no runs in runs" in bad("show", "x")


def test_resuming_a_run_from_python_says_how(tmp_path: Path, bad: Callable[..., str]) -> None:
    make_run(tmp_path / "runs" / "digits")
    assert "fogline.resume('runs/digits', task)" in bad("resume", "digits")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.csv", "--target", "b"], "expected a task file, a table or a folder of images at no.csv, found nothing"),
        (["data.csv", "--target", "b", "--valid", "no.csv"], "expected held-out data at no.csv"),
        (["data.csv", "--target", "b", "--optimizer", "adamwx"], "did you mean 'adamw'?"),
        (["data.csv", "--target", "b", "--lr", "fast"], "lr: expected a number above 0 or 'auto', received 'fast'"),
        (["data.csv", "--target", "b", "--duration", "20"], "with its unit"),
        (["data.csv", "--target", "b", "--recipe", "no.toml"], "expected the recipe at no.toml"),
        (["empty.py"], "found no `task` in it"),
        (["task.py", "--target", "b"], "--target and --valid are for tables"),
        (["wrong.py"], "line 2: recipe = Recipe(lr=-1)"),
    ],
)
def test_bad_input_is_one_message(tmp_path: Path, bad: Callable[..., str], arguments: list[str], message: str) -> None:
    (tmp_path / "data.csv").write_text("a,b\n1,2\n2,3\n")
    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "task.py").write_text("x = 1\n")
    (tmp_path / "wrong.py").write_text("from fogline.recipe import Recipe\nrecipe = Recipe(lr=-1)\n")
    assert message in bad("train", *arguments)


def test_bad_input_in_a_process_of_its_own(tmp_path: Path) -> None:
    ended = in_a_process("train", "no.csv", folder=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("fogline: expected a task file")
    assert "Traceback" not in ended.stderr


def test_an_error_in_the_users_code_keeps_its_traceback_and_only_that(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text("def broken():\n    return 1 / 0\n\n\nbroken()\n")
    ended = in_a_process("train", "task.py", folder=tmp_path)
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr
    assert "return 1 / 0" in ended.stderr
    assert "typer" not in ended.stderr
    assert "fogline/cli" not in ended.stderr


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_show_fits_every_terminal(columns: int, encoding: str, tmp_path: Path) -> None:
    long = "a message that goes on — and on → and on " * 5
    folder = make_run(tmp_path / "runs" / "digits", events=[(4, "note", long)])
    add_findings(folder, [(0, finding(explanation=long)), (60, finding("regularization_too_strong"))])
    shown = in_a_process("show", "digits", folder=tmp_path, PYTHONIOENCODING=encoding, COLUMNS=str(columns))
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert "\x1b" not in shown.stdout
    assert "^ double_softmax" in shown.stdout
    assert "remedy: leave out the softmax" in shown.stdout
    assert ("→" in shown.stdout) is (encoding == "utf-8")


def test_several_runs_go_into_one_report(tmp_path: Path) -> None:
    for name in ("first", "second"):
        make_run(tmp_path / name)
    assert call("report", "first", "second", "--runs", tmp_path).output == f"{tmp_path}/report.html\n"
    page = (tmp_path / "report.html").read_text()
    assert 'id="figure-compare"' in page
    assert 'id="run-1"' in page
    call("report", "second", "--runs", tmp_path, "--out", tmp_path / "new" / "x.html")
    assert 'id="figure-compare"' not in (tmp_path / "new" / "x.html").read_text()


def test_a_report_is_opened_in_the_browser_that_is_set(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "digits")
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    shown = in_a_process("report", "digits", "--open", folder=tmp_path, BROWSER=f"{browser} %s")
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "opened").read_text().strip() == (tmp_path / "runs" / "digits" / "report.html").as_uri()


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    make_run(tmp_path / "digits", events=[(at, "note", "x" * 9000) for at in range(12)])
    command = [sys.executable, "-m", "fogline", "show", str(tmp_path / "digits")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as shown:
        assert shown.stdout is not None
        assert shown.stderr is not None
        assert shown.stdout.readline().startswith("digits: noise floor")
        shown.stdout.close()
        assert shown.stderr.read() == ""
    assert shown.returncode == 0


def test_a_long_run_is_shown_by_the_means_of_its_steps(tmp_path: Path) -> None:
    losses = [2.0 if step % 2 else 4.0 for step in range(60_000)]
    make_run(tmp_path / "digits", losses=losses)
    shown = call("show", tmp_path / "digits").output
    assert "steps   60000, last loss 2" in shown
    assert "3.000 ┤" in shown
