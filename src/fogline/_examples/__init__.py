"""What each example did: a stand-in until the ranking is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fogline.plots.data_map import dynamics, example_files
from fogline.record.store import Table
from fogline.run import Run


@dataclass(frozen=True)
class LabelErrors:
    ids: NDArray[np.int64]
    probability: NDArray[np.float64]
    likely: NDArray[np.int64]
    count: float
    interval: tuple[float, float]


class Examples:
    def __init__(self, run: Run, table: Table) -> None:
        self.run, self.table = run, table

    def label_errors(self) -> LabelErrors:
        p = self.table["label_error"]
        ids = np.argsort(-p, kind="stable")
        ids = ids[p[ids] > 0.5]
        n = float(p.sum())
        return LabelErrors(ids, p[ids], self.table["likely"][ids], n, (0.8 * n, 1.2 * n))


def examples(run: Run, task: Any = None) -> Examples:
    from safetensors.numpy import load_file

    files = example_files(run)
    seen = dynamics(files)
    assert seen is not None
    last = load_file(files[-1])
    target = load_file(run.folder / "examples" / "targets.safetensors")["target"]
    columns: dict[str, Any] = {
        "example": np.arange(len(target)),
        "target": target,
        "predicted": last["predicted"].astype(np.int64),
        "loss": last["loss"].astype(np.float64),
        "confidence": seen.confidence,
        "variability": seen.variability,
        "correct": seen.correct,
        "gradient_norm": last["gradient_norm"].astype(np.float64),
        "label_error": np.clip(1 - seen.confidence - seen.correct, 0, 1),
        "likely": last["predicted"].astype(np.int64),
    }
    return Examples(run, Table(columns))
