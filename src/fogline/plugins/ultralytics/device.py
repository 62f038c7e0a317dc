"""How a detector of Ultralytics goes to a device: its convolutions as integers, decoding and choosing in floats."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fogline.edge.deployment import Deployment
from fogline.plugins.ultralytics.setting import Setting, undisturbed

CONFIDENCE = 0.25
"""Of a detection that is told: what Ultralytics predicts with."""
_JUDGED = ("mAP50-95(B)", "mAP50(B)")


def deployment(found: Setting, train: Callable[[], Any]) -> Deployment | None:
    """Of a detector with an end-to-end head, such as YOLO26's; None for others, whose boxes await suppression.

    Args:
        found: the setting of its training.
        train: makes the images as they are read in the last epoch.
    """
    head = found.yolo.model.model[-1]
    if found.args.task != "detect" or not hasattr(head, "one2one_cv2"):
        return None
    names = {int(k): str(name) for k, name in found.trainer.data["names"].items()}
    side = int(found.args.imgsz)
    theirs = {"task": "detect", "stride": 32, "batch": 1, "imgsz": [side, side], "names": names, "end2end": True,
              "channels": 3, "args": {"dynamic": False, "nms": False}}  # fmt: skip
    return Deployment(
        network=Branches,
        outputs=_one_to_one,
        ending=Detections,
        scores=lambda whole: _scores(found, whole, names),
        metrics=_JUDGED,
        train=train,
        threshold=math.log(CONFIDENCE / (1 - CONFIDENCE)),
        metadata={
            "kind": "detection",
            "classes": list(names.values()),
            "confidence": CONFIDENCE,
            "encoder": {"kind": "letterbox", "height": side, "width": side, "fill": 114},
            "properties": {name: str(value) for name, value in theirs.items()},
        },
    )


class Branches(nn.Module):
    """What the loss is taken of: both branches of the head as they are in training, everything else in evaluation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)

    def train(self, mode: bool = True) -> Branches:
        super().train(mode)
        self.model.model[-1].training = True  # type: ignore[index, union-attr]
        return self

    def forward(self, images: Tensor) -> Any:  # (b, 3, h, w), 0 to 1
        return self.model(images)


def _one_to_one(outputs: Any) -> tuple[Tensor, Tensor]:
    """Class logits (b, classes, places) and distances to the sides of boxes, where no suppression is needed."""
    branch = outputs["one2one"]
    return branch["scores"], branch["boxes"]


class Detections(nn.Module):
    """The most confident boxes, (b, most, 6): corners in pixels, confidence, class; the head's own arithmetic."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        whole: Any = copy.deepcopy(model).eval()
        self.head = whole.model[-1]
        self.head.end2end = True
        with torch.no_grad():
            whole(example)  # it computes where the places are
        self.places: Tensor
        self.strides: Tensor
        self.register_buffer("places", self.head.anchors.clone())
        self.register_buffer("strides", self.head.strides.clone())
        self.head.anchors = self.head.strides = torch.empty(0)
        for name in ("cv2", "cv3", "one2one_cv2", "one2one_cv3"):
            setattr(self.head, name, nn.ModuleList())

    def forward(self, scores: Tensor, boxes: Tensor) -> Tensor:  # (b, classes, places), (b, 4, places)
        corners = self.head.decode_bboxes(self.head.dfl(boxes), self.places[None]) * self.strides
        found: Tensor = self.head.postprocess(torch.cat((corners, scores.sigmoid()), 1).permute(0, 2, 1))
        return found


class _Judged(nn.Module):
    """A module as their validator takes one: with the facts it asks for, and no parameters to be changed."""

    end2end = True

    def __init__(self, whole: nn.Module, names: dict[int, str]) -> None:
        super().__init__()
        self.held = SimpleNamespace(module=whole)
        self.names, self.stride = names, torch.tensor([32])

    def __deepcopy__(self, memo: dict[int, Any]) -> _Judged:
        return self  # nothing in it would be changed; what it holds need not be a thing that can be copied

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.held.module(images)
        return found


def _scores(found: Setting, whole: nn.Module, names: dict[int, str]) -> dict[str, float]:
    # Padded to squares, as the file takes images of one size.
    scores = judged(found, _Judged(whole.eval(), names), rect=False)
    return {name: scores[name] for name in _JUDGED}


def judged(found: Setting, model: nn.Module, **arguments: Any) -> dict[str, float]:
    """The scores of Ultralytics' own validator for a model that it can take; it is left to it.

    Args:
        found: the setting of the training.
        model: in evaluation.
        **arguments: of the validator.
    """
    found.trainer.test_loader = None
    found.trainer.model, before = model, found.trainer.model
    try:
        validator = found.trainer.get_validator()
        for name, value in {"plots": False, "save_json": False, **arguments}.items():
            setattr(validator.args, name, value)
        with undisturbed():
            scores = validator(model=model)
    finally:
        found.trainer.model = before
    return {str(name).removeprefix("metrics/"): float(value) for name, value in scores.items()}
