"""What the tests of the engine share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Forked = Callable[..., dict[str, Any]]


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """A temporary folder in memory where the machine has one: many checkpoints are written, each of them synced."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=memory if usable else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def forked() -> Iterator[Forked]:
    """``forked("train", folder=..., kill_after=0.2)`` runs a job of ``programs.jobs`` in a process of its own."""
    tests = Path(__file__).parent.parent
    places = os.pathsep.join(filter(None, [str(tests), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "programs.server"],
        cwd=tests,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    orders, answers = process.stdin, process.stdout

    def run(job: str, kill_after: float | None = None, **arguments: Any) -> dict[str, Any]:
        given = {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}
        orders.write(json.dumps({"job": job, "arguments": given, "kill_after": kill_after}) + "\n")
        orders.flush()
        answer: dict[str, Any] = json.loads(answers.readline())
        return answer

    yield run
    orders.close()
    process.wait(timeout=60)
    answers.close()
