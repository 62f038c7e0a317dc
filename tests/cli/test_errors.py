from __future__ import annotations

import errno
import json

import pytest
import typer

from fogline.cli.errors import BAD_INPUT, DISK, told_plainly
from fogline.recipe import Recipe


def test_a_full_disk_has_its_own_code_and_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as leaving, told_plainly():
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/run.sqlite")
    assert leaving.value.exit_code == DISK
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "fogline resume" in said


def test_what_the_library_refuses_is_bad_input_and_names_the_users_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as leaving, told_plainly():
        Recipe(lr=-1)
    assert leaving.value.exit_code == BAD_INPUT
    said = capsys.readouterr().err
    assert said.startswith("fogline: lr: expected a number above 0")
    assert "test_errors.py" in said


@pytest.mark.parametrize("error", [ValueError("mine"), TypeError("mine"), KeyError("mine"), OSError(errno.EIO, "mine")])
def test_what_other_code_raises_passes_through(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, told_plainly():
        raise error
    assert raised.value is error


def test_a_value_error_of_a_library_below_ours_passes_through() -> None:
    with pytest.raises(json.JSONDecodeError), told_plainly():
        json.loads("{")
