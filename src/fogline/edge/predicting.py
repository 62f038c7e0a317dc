"""The program that is written beside an ONNX file."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def write_predict(model: Path) -> Path:
    """Write ``predict.py`` beside a model; it needs ONNX Runtime and NumPy, not Fogline and not PyTorch."""
    text = files("fogline.edge").joinpath("predict.py").read_text(encoding="utf-8")
    place = model.with_name("predict.py")
    place.write_text(text.replace('MODEL = "model.onnx"', f'MODEL = "{model.name}"'), encoding="utf-8")
    return place
