"""Ultralytics without a network, on a CPU build of PyTorch: called once, before anything imports it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch


def quiet(folder: Path) -> None:
    """Let Ultralytics keep its settings in this folder, look nothing up and say only what goes wrong."""
    os.environ.update(
        YOLO_OFFLINE="1",
        YOLO_AUTOINSTALL="False",
        YOLO_VERBOSE="False",
        YOLO_CONFIG_DIR=str(folder),
        MPLBACKEND="agg",
    )
    place = folder / "Ultralytics"
    place.mkdir(parents=True, exist_ok=True)
    _font(place / "Arial.ttf")
    _suppression()
    from ultralytics import settings

    settings.update({"sync": False, "datasets_dir": str(folder), "runs_dir": str(folder / "runs")})


def _font(place: Path) -> None:
    """Any font will do where the one that Ultralytics would download is looked for."""
    import matplotlib

    if not place.exists():
        shutil.copy(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", place)


def _suppression() -> None:
    """Let torchvision be imported where its binary wants CUDA libraries that a CPU has none of.

    Two operators are then without a name, which is given here; overlapping boxes are suppressed in Python, as
    Ultralytics does itself where it finds no torchvision.
    """
    for name in ("nms", "qnms") if not torch.cuda.is_available() else ():
        if not hasattr(torch.ops.torchvision, name):
            _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
    from ultralytics.utils.nms import TorchNMS

    if not torchvision.extension._has_ops():
        torchvision.ops.nms = TorchNMS.nms


_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
"""Names are forgotten with the library that gave them."""
