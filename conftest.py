"""Shared by the tests and the examples in docstrings."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

_TRAINERS = ("keras", "lightning", "transformers")
collect_ignore = [f"src/fogline/plugins/{name}.py" for name in _TRAINERS if find_spec(name) is None]
"""A plug-in imports its trainer; where that is not installed there is nothing to collect."""


@pytest.fixture(autouse=True)
def _examples_run_in_a_folder_of_their_own(request: pytest.FixtureRequest) -> None:
    """An example that trains leaves a run folder: not in the checkout."""
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
