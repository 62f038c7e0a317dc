"""One training of YOLO26n on drawn shapes by Ultralytics, watched or not."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

IMAGES, VALID, SIDE, BATCH = 64, 32, 96, 8
LAST = 30
"""Steps at the end whose mean loss is compared."""


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes:
        losses: of every batch, an image's share.
        valid: held-out loss after the last step.
        seconds: between the first batch and the last, of the process's time.
    """

    losses: list[float]
    valid: float
    seconds: float
    error: str = ""

    @property
    def last(self) -> float:
        return fmean(self.losses[-LAST:])


def settings(data: Path, steps: int, seed: int) -> dict[str, Any]:
    """Of ``yolo.train``: an update a batch, everything else as it is by default."""
    return {
        "data": str(data),
        "imgsz": SIDE,
        "batch": BATCH,
        "nbs": BATCH,
        "epochs": -(-steps // (IMAGES // BATCH)),
        "seed": seed,
        "plots": False,
        "val": False,
        "save": False,
        "verbose": False,
        "workers": 0,
        "device": "cpu",
        "exist_ok": True,
    }


def train(
    given: dict[str, Any],
    folder: Path,
    lr: float | None = None,
    trainer: Any = None,
    teardown: Any = None,
    **watched: Any,
) -> tuple[Outcome, Any]:
    """Train YOLO26n from its first weights; gives the outcome and what was watched, or None.

    Args:
        given: of ``yolo.train``.
        folder: for what is written.
        lr: set as :func:`fogline.plugins.ultralytics.watch` sets it.
        trainer: a class of one's own.
        teardown: called with the trainer at the end.
        **watched: of ``watch``; without any and without ``lr`` nothing is watched.
    """
    from ultralytics import YOLO

    from fogline.plugins.ultralytics import watch

    yolo = YOLO("yolo26n.yaml")
    watching = watch(yolo, runs=folder / "runs", lr=lr, **watched) if watched or lr else None
    losses: list[float] = []
    marks: list[float] = []
    scores: list[dict[str, float]] = []

    def ended(held: Any) -> None:
        marks.append(time.process_time())
        losses.append(float(held.loss.detach()) / BATCH)

    yolo.add_callback("on_train_batch_end", ended)
    yolo.add_callback("on_fit_epoch_end", lambda held: scores.append(dict(held.metrics or {})))
    if teardown is not None:
        yolo.add_callback("teardown", teardown)
    error = ""
    try:
        yolo.train(**given, project=str(folder / "theirs"), name="run", **({"trainer": trainer} if trainer else {}))
    except RuntimeError as failure:
        error = str(failure)
    held_out = [sum(v for k, v in found.items() if k.startswith("val/")) for found in scores]
    valid = next((value for value in reversed(held_out) if value), float("nan"))
    return Outcome(losses, valid, marks[-1] - marks[0], error), watching


def contrasting() -> Any:
    """A trainer of one's own with a bug: it stretches each image to full contrast, and one of one colour is 0 / 0."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Contrasting(DetectionTrainer):
        def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            batch = super().preprocess_batch(batch)
            images = batch["img"]
            low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
            batch["img"] = (images - low) / (high - low)
            return batch

    return Contrasting


PLAIN = {"mosaic": 0.0, "translate": 0.0, "scale": 0.0}
"""Augmentation that leaves an image of one colour as it is."""
