"""What each training image does in somebody else's training of a YOLO: its loss alone, epoch by epoch, and its looks.

The loss of a batch is one number, of mosaics of four images at that. So the images are gone through once more, as they
are, with the averaged weights that Ultralytics validates and saves, and each gets a loss of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import DataLoader

from fogline._watched_run import WatchedRun
from fogline.data.source import leaves, map_tree
from fogline.descent.objective import mode
from fogline.plugins.ultralytics.guard import one_image
from fogline.plugins.ultralytics.task import ONLY_LAST, ImageLoss, Images, as_theirs, collate
from fogline.record.previews import MOST_SIDE, Previews, most_images, write_previews

COLOURS = ("#ffd23f", "#3bceac", "#ee4266", "#4ea5ff", "#f79256", "#b388eb", "#9bc53d", "#ffffff")
"""Of the boxes, by class; with more classes they come again."""


class TrainingImages:
    """The training images of a watched training.

    Args:
        trainer: of Ultralytics.
        run: that records them.
    """

    def __init__(self, trainer: Any, run: WatchedRun) -> None:
        self.trainer, self.run = trainer, run
        theirs = trainer.build_dataset(trainer.data["train"], mode="val", batch=trainer.batch_size)
        self.images = Images(theirs, trainer.args, train=False)
        self.places = _places(theirs, trainer.train_loader.dataset)
        self._shown = False

    def look(self, epoch: int) -> None:
        """Record the loss of each image with the weights as they are."""
        if not self._shown:
            self._shown = True
            keep_pictures(self.run.folder, self.images, self.places)
        model, device = self.trainer.ema.ema, self.trainer.device
        with mode(model, training=False):
            for ids, batch in self._batches():
                on_device = map_tree(lambda leaf: leaf.to(device), batch)
                self.run.log_examples(image_losses(model, on_device).cpu(), ids, epoch)

    def _batches(self) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        size = self.trainer.batch_size
        loader = DataLoader(self.images, batch_size=size, collate_fn=collate, generator=torch.Generator())
        for k, batch in enumerate(loader):
            yield self.places[k * size : (k + 1) * size], batch


@torch.no_grad()
def image_losses(model: Any, batch: dict[str, Tensor]) -> Tensor:  # (images,)
    """The loss of each image as if it were the only one: one forward pass of all, then their loss of each.

    Args:
        model: of Ultralytics, in evaluation mode.
        batch: as :func:`~fogline.plugins.ultralytics.task.collate` makes them.
    """
    theirs, count = as_theirs(batch), len(batch["img"])
    given = model(theirs["img"])
    outputs = given[1] if isinstance(given, tuple) else given
    criterion = ImageLoss(1, summed=False).criterion(model, torch.tensor(ONLY_LAST))
    if any(leaf.ndim == 0 or len(leaf) != count for leaf in leaves(outputs)):
        raise ValueError(
            f"expected outputs with a row for each of {count} images, received shapes "
            f"{[tuple(leaf.shape) for leaf in leaves(outputs)][:5]}; leave out examples=True for this model"
        )
    found = []
    for row in range(count):
        own = map_tree(lambda leaf, row=row: leaf[row : row + 1], outputs)  # type: ignore[misc]
        loss, _ = criterion(own, one_image(theirs, row))
        found.append(loss.sum())
    return torch.stack(found).float()


def keep_pictures(folder: Path, images: Images, places: Sequence[int]) -> None:
    """Write a thumbnail of each image with its boxes into a run folder, as many as there is room for."""
    first = images[0]["img"]
    height, width = _small(first.shape[1], first.shape[2])
    order = np.argsort(places)[: most_images(height, width, 3)]
    pixels = [picture(images[int(k)], (width, height)) for k in order]
    ids = np.asarray(places, dtype=np.int64)[order]
    write_previews(folder, Previews("images", ids, np.stack(pixels)))


def picture(example: dict[str, Any], size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The image of an example with its boxes drawn, (height, width, 3)."""
    values = example["img"]
    values = values if values.dtype == torch.uint8 else (values.clamp(0, 1) * 255).round().to(torch.uint8)
    image = Image.fromarray(values[:3].permute(1, 2, 0).expand(-1, -1, 3).contiguous().numpy()).resize(size)
    pen = ImageDraw.Draw(image)
    for kind, x, y, wide, high in example.get("boxes", torch.empty(0, 5)).tolist():
        corners = [
            (x - wide / 2) * size[0],
            (y - high / 2) * size[1],
            (x + wide / 2) * size[0],
            (y + high / 2) * size[1],
        ]
        pen.rectangle(corners, outline=COLOURS[int(kind) % len(COLOURS)])
    return np.asarray(image)


def _small(height: int, width: int) -> tuple[int, int]:
    scale = min(1.0, MOST_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _places(plain: Any, trained: Any) -> list[int]:
    """Where the images of a data set stand in the one that is trained on; they are sorted differently."""
    order = {name: k for k, name in enumerate(_files(trained))}
    return [order[name] for name in _files(plain)]


def _files(dataset: Any) -> list[str]:
    files = getattr(dataset, "im_files", None)
    return [str(sample[0]) for sample in dataset.samples] if files is None else [str(name) for name in files]
