"""The real Ultralytics on a few drawn images, without a network."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from yolo_parts.quiet import quiet
from yolo_parts.shapes import draw

pytest.importorskip("ultralytics", reason="Ultralytics is not installed")
SIDE, BATCH = 64, 8


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with drawn shapes for every task: 16 images to train on, 8 held out."""
    folder = tmp_path_factory.mktemp("shapes")
    quiet(folder)
    draw(folder, train=16, valid=8, side=SIDE, seed=0)
    return folder


@pytest.fixture
def make(shapes: Path) -> Callable[..., Any]:
    """``make("yolo26n")`` is a YOLO of that name from its first weights."""

    def made(name: str) -> Any:
        from ultralytics import YOLO

        return YOLO(f"{name}.yaml")

    return made


@pytest.fixture
def given(shapes: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a short training; ``given("outlines.yaml", nbs=64)`` with other data and more settings."""

    def settings(data: str = "boxes.yaml", **more: Any) -> dict[str, Any]:
        usual = {"data": str(shapes / data), "imgsz": SIDE, "batch": BATCH, "nbs": BATCH, "epochs": 2, "plots": False}
        where = {"project": str(tmp_path / "theirs"), "name": "run", "device": "cpu", "verbose": False, "workers": 0}
        return {**usual, **where, **more}

    return settings
