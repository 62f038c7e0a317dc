"""How the processes of a run were started, so that a run is found again where they were started once more."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import Any

from fogline.descent.group import World
from fogline.record.store import read_info

_runs = 0  # that this process has begun or gone on with


def launched(world: World) -> dict[str, Any]:
    """What ``run.json`` keeps: how many processes, and which launch of them."""
    return {"processes": world.size, "launch": _launch(_runs)}


def begun_before(runs: Path, name: str | None) -> Path | None:
    """The run that these processes were in when ``torchrun`` started them again; None where it is the first time.

    It is the one of that name; else the one that the same launch has begun as its first, second, ... run.
    """
    global _runs
    _runs += 1
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == 0:
        return None
    if name is not None:
        return runs / name if (runs / name / "run.json").exists() else None
    found = [path.parent for path in runs.glob("*/run.json") if read_info(path.parent).get("launch") == _launch(_runs)]
    return max(found, key=lambda folder: read_info(folder)["started"], default=None)


def same_for_all(world: World, what: str, value: str) -> None:
    """Refuse to train where the processes do not have the same.

    Raises:
        ValueError: a process has something else; all raise it.
    """
    found = world.gather(value, f"the comparison of {what}")
    odd = [str(rank) for rank, other in enumerate(found) if other != found[0]]
    if odd:
        raise ValueError(
            f"expected the same {what} in all processes, received other {what} in process {', '.join(odd)} than in "
            "process 0; make it from a fixed seed, or read it from one place"
        )


def _launch(number: int) -> str:
    """Which launch, and which of its runs: the agent that starts processes again stays the same one."""
    words = [os.environ.get("TORCHELASTIC_RUN_ID", ""), socket.gethostname(), str(os.getppid()), str(number)]
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]
