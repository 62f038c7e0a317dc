"""The program that is written beside an ONNX file."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def write_predict(model: Path) -> Path:
    """Write ``predict.py`` beside a model; it needs ONNX Runtime and NumPy, not Fogline and not PyTorch.

    Where there is a ``predict.py`` that is not of an export, it is left alone and ours is called after the model.
    """
    text = files("fogline.edge").joinpath("predict.py").read_text(encoding="utf-8")
    place = model.with_name("predict.py")
    first = text.splitlines()[0]
    if place.exists() and not place.read_text(encoding="utf-8").startswith(first):
        place = model.with_name(f"predict_{model.stem}.py")
    place.write_text(text.replace('MODEL = "model.onnx"', f'MODEL = "{model.name}"'), encoding="utf-8")
    return place
