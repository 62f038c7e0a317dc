"""A folder of images by class becomes normalised tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from fogline.data.facts import Facts, Opened
from fogline.data.labels import hold_out
from fogline.data.source import InMemory, MapStyle, Source
from fogline.errors import did_you_mean

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
IN_MEMORY_BYTES = 256 << 20
"""Images that take more than this as float32 are read from their files when they are needed."""

_HELD_OUT = ("valid", "val", "validation", "test")
_LONGEST_SIDE = 256  # for the built-in model, whose cost grows with the area
_MEASURED = 512  # images from which the statistics of a lazily read folder are taken
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class ImageEncoder:
    """How an image file becomes an input; plain values that go through JSON."""

    height: int
    width: int
    mean: tuple[float, ...]  # per channel, of the training images scaled to 0..1
    scale: tuple[float, ...]
    classes: tuple[str, ...]

    def encode(self, paths: list[str | Path]) -> Tensor:
        """Image files as inputs, (images, channels, height, width) float32."""
        read = partial(_pixels, height=self.height, width=self.width, channels=len(self.mean))
        return self.normalise(torch.stack([torch.from_numpy(read(Path(path))) for path in paths]))

    def normalise(
        self,
        pixels: Tensor,  # (..., channels, height, width) uint8
    ) -> Tensor:
        """``(pixels / 255 - mean) / scale`` per channel."""
        mean, scale = (torch.tensor(values)[:, None, None] for values in (self.mean, self.scale))
        return pixels.float().div_(255).sub_(mean).div_(scale)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"kind": "image", **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ImageEncoder:
        """The inverse of :meth:`to_dict`."""
        mean, scale, classes = (tuple(values[name]) for name in ("mean", "scale", "classes"))
        return cls(values["height"], values["width"], mean, scale, classes)


@dataclass(frozen=True)
class _Files:
    """Image files with their labels."""

    paths: list[Path]
    labels: NDArray[np.int64]

    def take(self, index: NDArray[np.int64]) -> _Files:
        return _Files([self.paths[place] for place in index], self.labels[index])


@dataclass(frozen=True)
class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images that are read from their files when they are asked for."""

    files: _Files
    encoder: ImageEncoder

    def __len__(self) -> int:
        return len(self.files.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.encoder.encode([self.files.paths[index]])[0], int(self.files.labels[index])


def open_folder(folder: Path, valid: Path | None, seed: int, built_in_model: bool) -> Opened:
    """A folder whose sub-folders are the classes, or that holds ``train/`` and ``valid/`` (``val/``, ``test/``).

    Raises:
        ValueError: for a folder without classes or with one class only, and for a file that is not an image, by name.
    """
    notes: list[str] = []
    if (folder / "train").is_dir():
        found = [folder / name for name in _HELD_OUT if (folder / name).is_dir()]
        if valid is None and found:
            valid = found[0]
            notes.append(f"the images in {valid.name}/ are the held-out data")
            notes += [f"{other.name}/ was left alone" for other in found[1:]]
        folder = folder / "train"
    classes = _classes(folder)
    train = _list(folder, classes, notes)
    if valid is not None:
        valid = next((valid / name for name in _HELD_OUT if (valid / name).is_dir() and name not in classes), valid)
        held: _Files | None = _list(valid, classes, notes)
    else:
        kept, out = hold_out(train.labels, len(train.paths), seed)
        train, held = train.take(kept), train.take(out)
        notes.append(f"{len(out)} of {len(out) + len(kept)} images (20 % of each class) were held out for validation")
        held = held if len(out) else None
    height, width, channels = _shape(train, built_in_model, notes)
    encoder, pixels = _fit(train, classes, height, width, channels)
    train_source = _source(train, encoder, pixels, notes)
    valid_source = None if held is None else _source(held, encoder, None, notes)
    facts = Facts("classification", (channels, height, width), classes, len(classes), notes=tuple(dict.fromkeys(notes)))
    return Opened(train_source, valid_source, facts, encoder)


def _classes(folder: Path) -> tuple[str, ...]:
    names = _subfolders(folder)
    if not names:
        raise ValueError(
            f"expected a sub-folder for each class in {folder}, received none; put the images of a class in a folder "
            "of its name"
        )
    if len(names) == 1:
        raise ValueError(
            f"expected at least two classes (sub-folders) in {folder}, received only {names[0]!r}; add one"
        )
    return names


def _subfolders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(item.name for item in folder.iterdir() if item.is_dir() and item.name[0] != "."))


def _list(folder: Path, classes: tuple[str, ...], notes: list[str]) -> _Files:
    unknown = [name for name in _subfolders(folder) if name not in classes]
    if unknown:
        raise ValueError(
            f"expected in {folder} only the classes of the training images, received {unknown[0]!r}: "
            f"{did_you_mean(unknown[0], classes)}"
        )
    paths: list[Path] = []
    labels: list[int] = []
    other = 0
    for label, name in enumerate(classes):
        files = sorted(item for item in (folder / name).rglob("*") if item.is_file() and item.name[0] != ".")
        images = [item for item in files if item.suffix.lower() in SUFFIXES]
        other += len(files) - len(images)
        if not images and (folder / name).is_dir():
            raise ValueError(f"expected images in {folder / name}, received none; add images or remove the folder")
        paths += images
        labels += [label] * len(images)
    if not paths:
        raise ValueError(f"expected images in sub-folders {', '.join(classes)} of {folder}, received none; add images")
    if other:
        notes.append(f"{other} files in {folder.name}/ that are no images by their names were passed over")
    return _Files(paths, np.array(labels, dtype=np.int64))


def _shape(files: _Files, built_in_model: bool, notes: list[str]) -> tuple[int, int, int]:
    """Height, width and channels all images are brought to, from the headers of the files."""
    headers = [_header(path) for path in files.paths]
    sizes = np.array([size for size, _ in headers])
    channels = 1 if all(mode in _GREY_MODES for _, mode in headers) else 3
    height, width = (int(side) for side in np.median(sizes, axis=0))
    differ = bool((sizes != sizes[0]).any())
    longest = max(height, width)
    if built_in_model and longest > _LONGEST_SIDE:
        height, width = (max(1, round(side * _LONGEST_SIDE / longest)) for side in (height, width))
        notes.append(f"images were reduced to {height}x{width} pixels for the built-in model")
    elif differ:
        notes.append(f"images of different sizes were resized to their median, {height}x{width} pixels")
    return height, width, channels


def _header(path: Path) -> tuple[tuple[int, int], str]:
    """(height, width) and mode, without decoding the pixels."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in _TURNED
            return ((width, height) if turned else (height, width)), image.mode
    except (OSError, SyntaxError, ValueError) as error:  # Pillow reports a damaged PNG as a SyntaxError
        raise _unreadable(path, error) from error


def _pixels(path: Path, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """One image as (channels, height, width)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16") or image.mode == "I":
                image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
            image = image.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from error
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    array = np.array(image, dtype=np.uint8)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _unreadable(path: Path, error: BaseException) -> ValueError:
    return ValueError(f"expected an image in {path}, but it could not be read ({error}); replace or remove the file")


def _fits(count: int, encoder_shape: tuple[int, int, int]) -> bool:
    channels, height, width = encoder_shape
    return 4 * count * channels * height * width <= IN_MEMORY_BYTES


def _read(files: _Files, height: int, width: int, channels: int) -> Tensor:
    pixels = torch.empty(len(files.paths), channels, height, width, dtype=torch.uint8)
    for row, path in enumerate(files.paths):
        pixels[row] = torch.from_numpy(_pixels(path, height, width, channels))
    return pixels


def _fit(
    files: _Files, classes: tuple[str, ...], height: int, width: int, channels: int
) -> tuple[ImageEncoder, Tensor | None]:
    """Statistics of the training images, and their pixels where those fit in memory."""
    everything = _fits(len(files.paths), (channels, height, width))
    step = 1 if everything else max(1, len(files.paths) // _MEASURED)
    pixels = _read(files.take(np.arange(0, len(files.paths), step)), height, width, channels)
    means, scales = [], []
    for channel in range(channels):  # one channel at a time: a quarter of the memory in float64
        counts = torch.bincount(pixels[:, channel].flatten().int(), minlength=256).double()
        values = torch.arange(256, dtype=torch.float64) / 255
        mean = float((counts * values).sum() / counts.sum())
        deviation = float((counts * (values - mean).square()).sum() / counts.sum()) ** 0.5
        means.append(mean)
        scales.append(deviation if deviation > 1e-6 else 1.0)
    return ImageEncoder(height, width, tuple(means), tuple(scales), classes), pixels if everything else None


def _source(files: _Files, encoder: ImageEncoder, pixels: Tensor | None, notes: list[str]) -> Source:
    shape = (len(encoder.mean), encoder.height, encoder.width)
    if not _fits(len(files.paths), shape):
        notes.append(f"{len(files.paths)} images of {shape} are read from their files as they are needed")
        return MapStyle(ImageFiles(files, encoder))
    if pixels is None:
        pixels = _read(files, shape[1], shape[2], shape[0])
    source = InMemory((encoder.normalise(pixels), torch.from_numpy(files.labels)))
    notes.append(f"images are kept in memory, {source.nbytes / 1e6:.1f} MB")
    return source
