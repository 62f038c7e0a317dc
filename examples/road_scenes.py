"""Road scenes for the driving program: drawn ones, or photographs of traffic signs where there is a folder with them.

Frames come in drives: a few of each, of the same place a moment later, as from a moving camera. Frames of one drive are
near copies of each other, which is what makes a random split of them dishonest.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE = 64
NAMES = ("car", "stop sign", "warning sign", "traffic light")
Box = tuple[int, float, float, float, float]
"""Class, middle and size, as shares of the picture."""


@dataclass(frozen=True)
class Scenes:
    """Frames with their boxes.

    Attributes:
        frames: (frames, side, side, 3).
        boxes: of each frame.
        drive: which drive a frame is of.
        names: of the classes.
        source: in words.
    """

    frames: NDArray[np.uint8]
    boxes: list[list[Box]]
    drive: NDArray[np.int64]
    names: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def largest(self) -> NDArray[np.int64]:
        """The class of the largest box of each frame."""
        return np.array([max(own, key=lambda box: box[3] * box[4])[0] for own in self.boxes])


def scenes(drives: int, frames: int, seed: int) -> Scenes:
    """Photographs where ``FOGLINE_DATA`` names a folder with ``gtsrb_10.npz``, else drawn scenes."""
    folder = os.environ.get("FOGLINE_DATA", "")
    place = Path(folder) / "gtsrb_10.npz"
    return photographs(place, drives, frames, seed) if folder and place.exists() else drawn(drives, frames, seed)


def photographs(place: Path, drives: int, frames: int, seed: int) -> Scenes:
    """German traffic signs (Stallkamp et al., IJCNN 2011): one sign a frame, ten frames of each sign it drove past."""
    data = np.load(place)
    tracks = np.unique(data["track_train"])
    chosen = np.random.default_rng(seed).permutation(tracks)[:drives]
    rows = np.concatenate([np.flatnonzero(data["track_train"] == track)[:frames] for track in chosen])
    pictures = [np.asarray(Image.fromarray(data["x_train"][row]).resize((SIDE, SIDE))) for row in rows]
    boxes: list[list[Box]] = []
    for row in rows:
        left, top, right, bottom = (float(value) for value in data["box_train"][row])
        middle = (left + right) / 2, (top + bottom) / 2
        boxes.append([(int(data["y_train"][row]), *middle, right - left, bottom - top)])
    drive = np.unique(data["track_train"][rows], return_inverse=True)[1].astype(np.int64)
    names = tuple(str(name) for name in data["names"])
    return Scenes(np.stack(pictures), boxes, drive, names, "photographs of traffic signs (GTSRB)")


def drawn(drives: int, frames: int, seed: int) -> Scenes:
    """A street under a sky, with cars, signs and lights that come nearer from frame to frame."""
    draws = np.random.default_rng(seed)
    pictures, boxes, drive = [], [], []
    for number in range(drives):
        sky, road = draws.integers(90, 230, 3), draws.integers(50, 110)
        horizon = float(draws.uniform(0.35, 0.5))
        things = [
            (int(draws.integers(len(NAMES))), draws.uniform(0.15, 0.85), draws.uniform(0.12, 0.24), draws.random(3))
            for _ in range(int(draws.integers(1, 4)))
        ]
        for step in range(frames):
            picture = _street(sky, int(road), horizon, draws)
            own = [_thing(picture, horizon, *thing, 1 + 0.06 * step) for thing in things]
            pictures.append(np.asarray(picture))
            boxes.append(own)
            drive.append(number)
    return Scenes(np.stack(pictures), boxes, np.array(drive), NAMES, "drawn road scenes")


def _street(sky: NDArray[np.int64], road: int, horizon: float, draws: np.random.Generator) -> Image.Image:
    values = np.empty((SIDE, SIDE, 3))
    edge = int(horizon * SIDE)
    values[:edge], values[edge:] = sky, road
    picture = Image.fromarray(np.clip(values + draws.normal(0, 6, values.shape), 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for side in (-1, 1):
        pen.line([(SIDE / 2, edge), (SIDE / 2 + side * SIDE * 0.6, SIDE)], fill=(210, 210, 200))
    return picture


def _thing(
    picture: Image.Image, horizon: float, kind: int, across: float, size: float, tint: NDArray[np.float64], near: float
) -> Box:
    """Draw one and give its box."""
    x = 0.5 + (across - 0.5) * near
    wide = size * near * (1.4 if kind == 0 else 0.55 if kind == 3 else 0.8)
    high = size * near * (0.8 if kind == 0 else 1.1 if kind == 3 else 0.8)
    y = horizon + (0.2 if kind == 0 else -0.12) * near
    left, right = (max(0.01, x - wide / 2), min(0.99, x + wide / 2))
    top, bottom = (max(0.01, y - high / 2), min(0.99, y + high / 2))
    _PENS[kind](ImageDraw.Draw(picture), [value * SIDE for value in (left, top, right, bottom)], tint)
    return kind, (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _car(pen: ImageDraw.ImageDraw, box: list[float], tint: NDArray[np.float64]) -> None:
    left, top, right, bottom = box
    third = (bottom - top) / 3
    body = tuple(int(40 + 200 * value) for value in tint)
    pen.rectangle([left + third, top, right - third, top + third], fill=(30, 40, 60))
    pen.rectangle([left, top + third, right, bottom - third / 2], fill=body)
    for wheel in (left + third / 2, right - 1.5 * third):
        pen.ellipse([wheel, bottom - third, wheel + third, bottom], fill=(10, 10, 10))


def _stop(pen: ImageDraw.ImageDraw, box: list[float], tint: NDArray[np.float64]) -> None:
    pen.ellipse(box, fill=(200, 30 + int(20 * tint[0]), 30), outline=(250, 250, 250))


def _warning(pen: ImageDraw.ImageDraw, box: list[float], tint: NDArray[np.float64]) -> None:
    left, top, right, bottom = box
    pen.polygon(
        [((left + right) / 2, top), (right, bottom), (left, bottom)], fill=(245, 220, 60), outline=(190, 20, 20)
    )


def _light(pen: ImageDraw.ImageDraw, box: list[float], tint: NDArray[np.float64]) -> None:
    left, top, right, bottom = box
    pen.rectangle(box, fill=(25, 25, 25))
    lit, third = int(tint[0] * 3), (bottom - top) / 3
    for place, colour in enumerate([(230, 40, 40), (240, 190, 40), (60, 220, 90)]):
        shown = colour if place == lit else (60, 60, 60)
        pen.ellipse([left + 1, top + place * third, right - 1, top + (place + 1) * third - 1], fill=shown)


_PENS = {0: _car, 1: _stop, 2: _warning, 3: _light}


def write(held: Scenes, train: NDArray[np.bool_], folder: Path) -> Path:
    """The frames in the layout of Ultralytics, those of ``train`` and the others to be held out; its YAML file."""
    for number, (frame, boxes, trained) in enumerate(zip(held.frames, held.boxes, train, strict=True)):
        part = "train" if trained else "val"
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(folder / "images" / part / f"{number:05d}.png")
        lines = [" ".join([str(kind), *(f"{value:.6f}" for value in place)]) for kind, *place in boxes]
        (folder / "labels" / part / f"{number:05d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = "\n".join(f"  {k}: {name}" for k, name in enumerate(held.names))
    place = folder / "data.yaml"
    place.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames:\n{names}\n", encoding="utf-8")
    return place
