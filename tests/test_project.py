"""The frame of the project: what make, the constraints and the hooks promise."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(file: str = "constraints.txt") -> dict[str, str]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.lower().replace("_", "-").split("==") for line in lines)


def names(items: list[str]) -> set[str]:
    return {re.split(r"[<>=\[ ]", item)[0] for item in items} - {"fogline"}


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-plugins.txt"])
def test_every_line_of_the_constraints_is_a_plain_pin(file: str) -> None:
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) for name in pins(file))
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins(file).values())


def test_every_plug_in_is_pinned_and_in_the_extra_of_all() -> None:
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["plugins"]
    parts = re.fullmatch(r"fogline\[(.*)\]", everything)[1].split(",")  # type: ignore[index]
    wanted = names([item for part in parts for item in extras[part]] + extras["demo"] + extras["dev-plugins"])
    assert wanted | names(PROJECT["dependencies"]) <= set(pins("constraints-plugins.txt"))
    assert {path.stem for path in (ROOT / "src/fogline/plugins").glob("*.py")} >= set(parts) - {"ultralytics"}


def test_every_dependency_is_pinned() -> None:
    wanted = [
        *PROJECT["dependencies"],
        *PROJECT["optional-dependencies"]["dev"],
        *PROJECT["optional-dependencies"]["demo"],
        *PROJECT["optional-dependencies"]["dashboard"],
        *PROJECT["optional-dependencies"]["tune"],
        *PROJECT["optional-dependencies"]["edge"],
        *PROJECT["optional-dependencies"]["docs"],
    ]
    assert names(wanted) <= set(pins())


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("goal", "command"),
    [
        ("demo", "python -m fogline demo"),
        ("test", "python -m pytest"),
        ("test-plugins", "pytest -n logical --maxprocesses 2 tests_plugins"),
        ("bench", "python $script"),
        ("lint", "mypy codespell_lib"),
        ("docs", "mkdocs build --strict"),
    ],
)
def test_make_knows_its_goals(goal: str, command: str) -> None:
    planned = subprocess.run(["make", "-n", goal], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert command in planned


def test_setup_says_which_python_it_needs(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    ended = subprocess.run(
        ["sh", str(ROOT / ".ci" / "setup"), str(tmp_path / "venv")],
        cwd=ROOT,
        env={**os.environ, "PYTHON": str(old)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode != 0
    assert "expected Python 3.11 or newer" in ended.stderr
    assert "Python 3.9.1" in ended.stderr
    assert not (tmp_path / "venv").exists()


def test_continuous_integration_ends_with_the_tests() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line.split()[2] for line in lines if line.startswith("make ")] == ["lint", "test"]
    asked = [line for line in lines if " make " in f" {line}"]
    assert "test-plugins" in asked[-2]
    assert "--no-print-directory test " in asked[-1]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_hooks_ask_no_other_host() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert "http" not in text
    assert set(re.findall(r"entry: python -m (\w+)", text)) == {"ruff", "mypy", "codespell_lib"}


def test_importing_the_package_asks_for_no_network() -> None:
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('a connection was opened')\n"
        "socket.socket.connect = refuse\n"
        "import fogline, fogline.cli"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
