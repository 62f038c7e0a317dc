"""Shared by the tests and the examples in docstrings."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

# The program that is written beside an exported model imports what only an extra brings.
collect_ignore = [] if find_spec("onnxruntime") else ["src/fogline/edge/predict.py"]


@pytest.fixture(autouse=True)
def _examples_run_in_a_folder_of_their_own(request: pytest.FixtureRequest) -> None:
    """An example that trains leaves a run folder: not in the checkout."""
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
