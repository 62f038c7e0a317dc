"""A detector for the road, honestly judged: YOLO26n through the plug-in, a leak across the split, an int8 file.

    python examples/driving.py [--epochs 20] [--drives 48] [--pictures FOLDER]

1. Frames come in drives, and a random split puts frames of one drive on both sides. The leak is found from the pictures
   alone, and the frames are split again by what belongs together.
2. YOLO26n is trained on both splits with one measured learning rate, a guard and the findings told; the difference of
   their scores is what the leak was worth.
3. The small network that was used to look at the frames becomes a file of eight bits.

Needs ``pip install 'fogline[ultralytics,edge]'``. With ``FOGLINE_DATA`` naming a folder that holds ``gtsrb_10.npz`` the
frames are photographs of traffic signs, else they are drawn.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pictures import BLUE, ORANGE, Panel, save
from PIL import Image, ImageDraw
from road_scenes import SIDE, Scenes, scenes, write
from torch import nn

import fogline

FRAMES, BATCH, HELD_OUT, SEED = 5, 8, 0.25, 0
Mask = NDArray[np.bool_]


# -- the leak ----------------------------------------------------------------------------------------------------------


def at_random(count: int) -> Mask:
    """Which frames are trained on, drawn frame by frame."""
    return np.random.default_rng(SEED).random(count) >= HELD_OUT


def in_groups(group: NDArray[np.int64]) -> Mask:
    """The same, drawn by whole groups."""
    held = np.random.default_rng(SEED).random(group.max() + 1) < HELD_OUT
    return ~held[group]


def looker() -> nn.Module:
    """A small network that says what is largest in a frame."""
    layers: list[nn.Module] = []
    for inner, outer in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def looked_at(held: Scenes, train: Mask, runs: Path) -> tuple[fogline.Task, fogline.Run]:
    """Train the small network on a split; what it does with each frame is recorded."""
    frames = torch.from_numpy(held.frames).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(held.largest)
    parts = [(frames[rows], labels[rows]) for rows in (torch.from_numpy(train), torch.from_numpy(~train))]
    task = fogline.Task(model=looker, loss=nn.CrossEntropyLoss(), train=parts[0], valid=parts[1], name="looker")
    recipe = fogline.Recipe(duration="12ep", batch_size=16, lr=3e-3, seed=SEED)
    return task, fogline.fit(task, recipe, runs=runs, progress=False)


@dataclass(frozen=True)
class Leak:
    """What was found across a split.

    Attributes:
        copied: share of the held-out frames that belong together with one that is trained on.
        right: share of the pairs across the split that are of one drive.
        group: which frames belong together, by the pictures alone.
    """

    copied: float
    right: float
    group: NDArray[np.int64]


def leak(held: Scenes, train: Mask, task: fogline.Task, run: fogline.Run) -> Leak:
    """Frames on both sides of a split that are of the same place."""
    group = np.empty(len(held), dtype=np.int64)
    group[train], group[~train] = fogline.examples(run, task).groups()
    across = group[train][:, None] == group[~train][None]
    of_one_drive = held.drive[train][:, None] == held.drive[~train][None]
    right = float((across & of_one_drive).sum() / max(1, across.sum()))
    return Leak(float(across.any(0).mean()), right, group)


# -- the detector ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detector:
    """A YOLO26n trained on a split.

    Attributes:
        score: mAP50 on the frames that were held out.
        curve: mAP50 behind each epoch.
        causes: findings of its run, with their severity.
        verdict: of its run, in words.
    """

    score: float
    curve: list[float]
    causes: dict[str, str]
    verdict: str


def settings(data: Path, epochs: int) -> dict[str, Any]:
    """Everything as Ultralytics has it, but an update a batch and no mirrored signs."""
    return {
        "data": str(data),
        "imgsz": SIDE,
        "batch": BATCH,
        "nbs": BATCH,
        "epochs": epochs,
        "seed": SEED,
        "fliplr": 0.0,
    }


def measured_rate(held: Scenes, train: Mask, epochs: int, folder: Path) -> float:
    """The learning rate for a split."""
    from ultralytics import YOLO

    from fogline.plugins.ultralytics import find_lr

    return find_lr(YOLO("yolo26n.yaml"), **settings(write(held, train, folder / "data"), epochs)).value


def detector(held: Scenes, train: Mask, epochs: int, rate: float, folder: Path) -> Detector:
    """Train through the plug-in."""
    from ultralytics import YOLO

    from fogline.plugins.ultralytics import watch

    yolo: Any = YOLO("yolo26n.yaml")
    watching = watch(yolo, lr=rate, guard=True, examples=True, runs=folder / "runs")
    where = {"plots": False, "verbose": False, "project": str(folder / "theirs")}
    yolo.train(**settings(write(held, train, folder / "data"), epochs), **where)
    run = watching.run
    curve = [float(row["value"]) for row in run.scores if row["name"] == "mAP50(B)"]
    causes = dict(zip(run.findings["cause"].tolist(), run.findings["severity"].tolist(), strict=True))
    return Detector(max(curve), curve, causes, str(run.verdict))


# -- pictures ----------------------------------------------------------------------------------------------------------


def sheet(held: Scenes, place: Path, drives: int = 4) -> Path:
    """Frames of a few drives with their boxes, a drive a row."""
    scale = 2
    page = Image.new("RGB", (FRAMES * SIDE * scale, drives * SIDE * scale))
    for row in range(drives):
        for column, k in enumerate(np.flatnonzero(held.drive == row)[:FRAMES]):
            frame = Image.fromarray(held.frames[k]).resize((SIDE * scale, SIDE * scale))
            pen = ImageDraw.Draw(frame)
            for _, x, y, wide, high in held.boxes[k]:
                corners = [x - wide / 2, y - high / 2, x + wide / 2, y + high / 2]
                pen.rectangle([value * SIDE * scale for value in corners], outline="#ffd23f", width=2)
            page.paste(frame, (column * SIDE * scale, row * SIDE * scale))
    place.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(96).save(place, optimize=True)
    return place


def curves(random: Detector, honest: Detector, place: Path) -> Path:
    """mAP50 by epoch on both splits."""
    panel = Panel("mAP50 on the frames held out", "epoch", (0, len(random.curve)), (0, 1), width=420)
    highest = max(random.curve[-1], honest.curve[-1])
    for found, colour, words in ((random, ORANGE, "split at random"), (honest, BLUE, "split by groups")):
        panel.line([(k + 1, value) for k, value in enumerate(found.curve)], colour, 2)
        last = found.curve[-1]
        panel.words((len(found.curve) * 0.72, last + 0.06 if last == highest else max(0.03, last - 0.2)), words, colour)
    return save([panel], place, "mAP50 by epoch for both splits", columns=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--drives", type=int, default=48)
    parser.add_argument("--pictures", type=Path, help="a folder for the pictures of the page")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="driving-"))
    held = scenes(arguments.drives, FRAMES, SEED)
    print(f"{len(held)} frames of {arguments.drives} drives, {held.source}")

    train = at_random(len(held))
    task, run = looked_at(held, train, folder / "runs")
    found = leak(held, train, task, run)
    print(f"split at random: {found.copied:.0%} of the held-out frames belong together with one that is trained on;")
    print(
        f"{found.right:.0%} of these pairs are of one drive; {found.group.max() + 1} groups, {arguments.drives} drives"
    )

    whole = in_groups(found.group)
    rate = measured_rate(held, whole, arguments.epochs, folder / "honest")
    print(f"learning rate measured on the split by groups, and taken for both: {rate:.2e}")
    honest = detector(held, whole, arguments.epochs, rate, folder / "honest")
    random = detector(held, train, arguments.epochs, rate, folder / "random")
    for name, one in (("by groups", honest), ("at random", random)):
        told = ", ".join(f"{cause} ({severity})" for cause, severity in one.causes.items()) or "nothing"
        print(f"split {name}: mAP50 {one.score:.3f}; {one.verdict}; found: {told}")

    report = fogline.export(run, folder / "looker.onnx", task=task, qat=None, classes=list(held.names))
    scores = report.scores
    print(f"int8 file of the small network: accuracy {scores['float']['accuracy']:.3f} in float, "
          f"{scores['runtime']['accuracy']:.3f} in the runtime; {report.latency.verdict}")  # fmt: skip
    if arguments.pictures is not None:
        sheet(held, arguments.pictures / "driving-frames.png")
        curves(random, honest, arguments.pictures / "driving-curves.svg")


if __name__ == "__main__":
    main()
