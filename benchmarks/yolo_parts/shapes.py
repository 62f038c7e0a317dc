"""A drawn data set in the layout of Ultralytics: circles, squares and triangles on a noisy ground."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

NAMES = ("circle", "square", "triangle")


def draw(folder: Path, *, train: int = 64, valid: int = 16, side: int = 96, seed: int = 0) -> Path:
    """Draw images with one to four shapes each and their labels; returns the path of ``data.yaml``.

    Labels are boxes; with them come the outlines as polygons under ``segment.yaml`` and a crop of a shape an image by
    class under ``classes/``, for the other tasks.
    """
    draws = np.random.default_rng(seed)
    for part, count in (("train", train), ("val", valid)):
        for number in range(count):
            _image(folder, part, number, side, draws)
    names = "\n".join(f"  {k}: {name}" for k, name in enumerate(NAMES))
    for kind in ("boxes", "outlines"):
        text = f"path: {folder / kind}\ntrain: images/train\nval: images/val\nnames:\n{names}\n"
        (folder / f"{kind}.yaml").write_text(text, encoding="utf-8")
    return folder / "boxes.yaml"


def _image(folder: Path, part: str, number: int, side: int, draws: np.random.Generator) -> None:
    ground = draws.integers(0, 90, 3)
    pixels = np.clip(ground + draws.normal(0, 12, (side, side, 3)), 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    boxes, outlines = [], []
    for _ in range(int(draws.integers(1, 5))):
        kind = int(draws.integers(len(NAMES)))
        half = float(draws.uniform(0.08, 0.2)) * side
        x, y = draws.uniform(half, side - half, 2)
        colour = tuple(int(c) for c in draws.integers(110, 256, 3))
        points = outline(kind, x, y, half)
        ImageDraw.Draw(image).polygon([tuple(point) for point in points], fill=colour)
        low, high = points.min(0), points.max(0)
        centre, size = (low + high) / 2 / side, (high - low) / side
        boxes.append(" ".join([str(kind), *(f"{value:.6f}" for value in (*centre, *size))]))
        outlines.append(" ".join([str(kind), *(f"{value:.6f}" for value in (points / side).ravel())]))
    for kind_of, lines in (("boxes", boxes), ("outlines", outlines)):
        place = folder / kind_of
        (place / "images" / part).mkdir(parents=True, exist_ok=True)
        (place / "labels" / part).mkdir(parents=True, exist_ok=True)
        image.save(place / "images" / part / f"{number:04d}.png")
        (place / "labels" / part / f"{number:04d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    kind = int(boxes[-1].split()[0])
    place = folder / "classes" / part / NAMES[kind]
    place.mkdir(parents=True, exist_ok=True)
    image.save(place / f"{number:04d}.png")


def outline(kind: int, x: float, y: float, half: float) -> np.ndarray:
    """The corners of a shape, (points, 2); a circle is a polygon of many."""
    corners = {0: 24, 1: 4, 2: 3}[kind]
    start = {0: 0.0, 1: np.pi / 4, 2: -np.pi / 2}[kind]
    angle = start + 2 * np.pi * np.arange(corners) / corners
    return np.stack([x + half * np.cos(angle), y + half * np.sin(angle)], 1)
