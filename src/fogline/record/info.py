"""What every ``run.json`` holds, whoever drives the loop: where it lies, what ran it, and how it ended."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fogline import __version__
from fogline.record.probes import Budget
from fogline.verdict import Judgement


def new_folder(runs: Path, name: str | None, kind: str, *, remedy: str = "take another name") -> Path:
    """The path of a run folder that holds no run yet; it is not made.

    Args:
        runs: the folder that run folders lie in.
        name: of the run folder; None makes one of ``kind`` and the date.
        kind: what the run is of.
        remedy: what to do where there is a run already.

    Raises:
        ValueError: the name is no plain folder name.
        FileExistsError: there is a run of this name.
        NotADirectoryError: there is a file where the folder of runs should be.
    """
    if name is not None and (not name or Path(name).name != name or name in (".", "..")):
        raise ValueError(f"expected a plain folder name for the run, received {name!r}")
    if runs.exists() and not runs.is_dir():
        raise NotADirectoryError(f"expected a folder for the runs, received the file {runs}; name another")
    if name is None:
        stem = f"{re.sub(r'[^A-Za-z0-9_-]+', '-', kind).strip('-') or 'run'}-{datetime.now():%Y%m%d-%H%M%S}"
        name = next(n for n in (stem, *(f"{stem}-{k}" for k in range(2, 10**6))) if not (runs / n).exists())
    folder = runs / name
    if (folder / "run.json").exists():
        raise FileExistsError(f"expected a new run, found one in {folder}; {remedy}")
    return folder


def frame(folder: Path, asked: Mapping[str, Any], device: str, source: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is known before anything has run: name, what was asked for, versions and hardware."""
    return {
        "format": 1,
        "name": folder.name,
        "asked": dict(asked),
        "source": None if source is None else dict(source),
        "versions": {
            "fogline": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "hardware": {
            "machine": platform.machine(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "device": device,
        },
    }


def ending(
    judgement: Judgement, *, steps: int, refused: int, seconds: float, budget: Budget, message: str = ""
) -> dict[str, Any]:
    """What is known at the end: the verdict, how far it came and what watching cost.

    Args:
        judgement: the verdict and its evidence.
        steps, refused: taken, and refused.
        seconds: of training.
        budget: of the signals.
        message: the verdict's sentence where its own does not fit.
    """
    return {
        "verdict": {
            "name": judgement.verdict.name,
            "message": message or str(judgement.verdict),
            "evidence": {k: v if v == v and abs(v) != float("inf") else str(v) for k, v in judgement.evidence.items()},
        },
        "steps": steps,
        "refused": refused,
        "seconds": seconds,
        "watching": {"share": budget.measured_share(), "budget": budget.share},
        "ended": now(),
    }


def now() -> str:
    """This moment as ISO text, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
