"""The ranking that was made with the data at hand, kept in the run for those who look at it without the data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fogline._examples.ranking import Ranking

FILE = "ranking.safetensors"
_COLUMNS = ("margin", "wrong", "probability", "likely", "score", "rare")


def keep_ranking(folder: Path, ranking: Ranking) -> Path:
    """Write it as ``examples/ranking.safetensors``, beside and renamed; returns the file.

    Args:
        folder: of the run.
        ranking: of the epochs that are there.

    Raises:
        OSError: the folder cannot be written.
    """
    place = folder / "examples" / FILE
    beside = place.with_name(f".{place.stem}.{os.getpid()}.tmp")
    about = {"stamp": stamp(folder), "window": ranking.window, "count": ranking.count, "interval": ranking.interval}
    columns = {name: np.ascontiguousarray(getattr(ranking, name)) for name in _COLUMNS}
    beside.write_bytes(save(columns, {"fogline": json.dumps(about)}))
    beside.replace(place)
    return place


def kept_ranking(folder: Path) -> Ranking | None:
    """The ranking that was kept; None where there is none, or epochs were recorded since."""
    place = folder / "examples" / FILE
    if not place.is_file() or place.is_symlink():
        return None
    try:
        with safe_open(place, framework="numpy") as opened:
            about: dict[str, Any] = json.loads((opened.metadata() or {}).get("fogline", "{}"))
            if about.get("stamp") != stamp(folder):
                return None
            columns: dict[str, NDArray[Any]] = {name: opened.get_tensor(name) for name in _COLUMNS}
        low, high = map(float, about["interval"])
        return Ranking(**columns, window=int(about["window"]), count=float(about["count"]), interval=(low, high))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def stamp(folder: Path) -> list[list[str | int]]:
    """Names, times and sizes of the recorded epochs: what a ranking was made of."""
    files = sorted((folder / "examples").glob("epoch-*.safetensors"))
    return [[path.name, path.stat().st_mtime_ns, path.stat().st_size] for path in files]
