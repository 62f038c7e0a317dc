"""Run folders that recorded their examples, with wrong labels planted, made without training anything."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

CLASSES = 5


@dataclass(frozen=True)
class Planted:
    """A folder and the truth about it."""

    folder: Path
    targets: NDArray[np.int64]
    truth: NDArray[np.int64]

    @property
    def wrong(self) -> NDArray[np.bool_]:
        return self.targets != self.truth


def planted(
    folder: Path,
    rate: float,
    *,
    count: int = 4000,
    epochs: int = 12,
    pair: bool = False,
    memorised: int = 9,
    seed: int = 0,
) -> Planted:
    """Examples that are each as clear as chance has it; the run predicts the truth the surer the clearer they are.

    From epoch ``memorised`` on it gives every example the label that it bears.
    """
    random = np.random.default_rng(seed)
    truth = random.integers(0, CLASSES, count)
    chosen = random.permutation(count)[: round(rate * count)]
    targets = truth.copy()
    targets[chosen] = (truth[chosen] + (1 if pair else random.integers(1, CLASSES, len(chosen)))) % CLASSES
    clear = random.exponential(3.0, count)
    taken_for = (truth + random.integers(1, CLASSES, count)) % CLASSES  # by a run that errs
    epochs_written = []
    for epoch in range(epochs):
        lead = clear + random.normal(0, 0.6 if epoch else 2.0, count)  # of the truth over the next best
        predicted = np.where(lead > 0, truth, taken_for)
        lead = np.abs(lead)
        margin = np.where(predicted == targets, lead, -lead - 1.0)
        if epoch >= memorised:
            predicted, margin = targets, np.abs(margin)
        epochs_written.append(columns_of(margin, predicted, predicted == targets, lead))
    write(folder, epochs_written, targets)
    return Planted(folder, targets, truth)


def columns_of(
    margin: NDArray[Any], predicted: NDArray[Any], right: NDArray[np.bool_], lead: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """The columns of an epoch whose largest probability is the logistic function of ``lead``."""
    largest = 1 / (1 + np.exp(-lead))
    confidence = np.where(right, largest, largest * np.exp(np.minimum(margin, 0.0)))
    return {
        "loss": -np.log(confidence).astype(np.float16),
        "margin": margin.astype(np.float16),
        "confidence": confidence.astype(np.float16),
        "correct": right.astype(np.float16),
        "predicted": predicted.astype(np.int16),
        "gradient_norm": (1 - confidence).astype(np.float16),
    }


def write(
    folder: Path, epochs: list[dict[str, NDArray[Any]]], targets: NDArray[Any] | None, kind: str = "classification"
) -> None:
    """The files of a run with these columns, epoch by epoch."""
    (folder / "examples").mkdir(parents=True, exist_ok=True)
    for number, columns in enumerate(epochs):
        save_file(columns, folder / "examples" / f"epoch-{number:04d}.safetensors")
    if targets is not None:
        save_file({"target": np.ascontiguousarray(targets)}, folder / "examples" / "targets.safetensors")
    count = len(next(iter(epochs[0].values())))
    described = {"kind": kind, "count": count, "classes": None}
    (folder / "run.json").write_text(json.dumps({"name": folder.name, "verdict": None, "examples": described}))
