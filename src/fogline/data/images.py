"""A folder of images by class becomes normalised tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fogline.data.source import Facts, InMemory, MapStyle, Source
from fogline.data.tables import hold_out
from fogline.errors import did_you_mean, misfit

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
IN_MEMORY_BYTES = 256 << 20
"""Images that take more than this as float32 are read from their files when they are needed."""

HELD_OUT = ("valid", "val", "validation", "test")
_LONGEST_SIDE = 256  # for the built-in model, whose cost grows with the area
_MEASURED = 512  # images from which the statistics of a lazily read folder are taken
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_ORIENTATION = 0x0112

Files = list[tuple[Path, int]]
"""Image files with their labels."""
Shape = tuple[int, int, int]
"""Channels, height and width."""


@dataclass(frozen=True)
class ImageEncoder:
    """How an image file becomes an input; plain values that go through JSON."""

    height: int
    width: int
    mean: tuple[float, ...]  # per channel, of the training images scaled to 0..1
    scale: tuple[float, ...]
    classes: tuple[str, ...]

    @property
    def shape(self) -> Shape:
        """Channels, height and width of an input."""
        return len(self.mean), self.height, self.width

    def encode(self, paths: Sequence[str | Path]) -> Tensor:
        """Image files as inputs, (images, channels, height, width) float32."""
        return self.normalise(_read([Path(path) for path in paths], self.shape))

    def collate(self, files: Files) -> tuple[Tensor, Tensor]:
        """Image files and their labels as a batch."""
        return self.encode([path for path, _ in files]), torch.tensor([label for _, label in files])

    def normalise(self, pixels: Tensor) -> Tensor:
        """``(pixels / 255 - mean) / scale`` per channel, of (..., channels, height, width) uint8."""
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


def open_folder(
    folder: Path, valid: Path | None, seed: int, built_in_model: bool
) -> tuple[Source, Source | None, Facts, ImageEncoder]:
    """A folder whose sub-folders are the classes, or that holds ``train/`` and ``valid/`` (``val/``, ``test/``).

    Raises:
        ValueError: for a folder without classes or with one class only, and for a file that is not an image, by name.
    """
    notes: list[str] = []
    if (folder / "train").is_dir():
        found = [folder / name for name in HELD_OUT if (folder / name).is_dir()]
        if valid is None and found:
            valid = found[0]
            notes.append(f"the images in {valid.name}/ are the held-out data")
            notes += [f"{other.name}/ was left alone" for other in found[1:]]
        folder = folder / "train"
    classes = _classes(folder)
    train, held = _list(folder, classes, notes), Files()
    if valid is None:
        kept, out = hold_out(np.array([label for _, label in train]), len(train), seed)
        notes.append(f"{len(out)} of {len(train)} images (20 % of each class) were held out for validation")
        train, held = [train[place] for place in kept], [train[place] for place in out]
    else:
        inside = (valid / name for name in HELD_OUT if (valid / name).is_dir() and name not in classes)
        held = _list(next(inside, valid), classes, notes)
    shape = _shape([path for path, _ in train], built_in_model, notes)
    step = 1 if _fits(train, shape) else max(1, len(train) // _MEASURED)
    measured = _read([path for path, _ in train[::step]], shape)
    encoder = _fit(measured, classes)
    train_source = _source(train, encoder, measured, notes)
    valid_source = _source(held, encoder, None, notes) if held else None
    facts = Facts("classification", shape, classes, len(classes), notes=tuple(dict.fromkeys(notes)))
    return train_source, valid_source, facts, encoder


def _subfolders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(item.name for item in folder.iterdir() if item.is_dir() and item.name[0] != "."))


def _classes(folder: Path) -> tuple[str, ...]:
    names = _subfolders(folder)
    if len(names) < 2:
        received = f"only {names[0]!r}" if names else "none"
        remedy = "put the images of a class in a folder of its name"
        raise misfit(f"at least two classes and a sub-folder for each class in {folder}", received, remedy)
    return names


def _list(folder: Path, classes: tuple[str, ...], notes: list[str]) -> Files:
    """The images of each class."""
    unknown = [name for name in _subfolders(folder) if name not in classes]
    if unknown:
        expected = f"in {folder} only the classes of the training images"
        raise ValueError(f"expected {expected}, received {unknown[0]!r}: {did_you_mean(unknown[0], classes)}")
    images: Files = []
    other = 0
    for label, name in enumerate(classes):
        files = sorted(item for item in (folder / name).rglob("*") if item.is_file() and item.name[0] != ".")
        found = [(item, label) for item in files if item.suffix.lower() in SUFFIXES]
        if not found and (folder / name).is_dir():
            raise misfit(f"images in {folder / name}", "none", "add images or remove the folder")
        images += found
        other += len(files) - len(found)
    if not images:
        raise misfit(f"images in sub-folders {', '.join(classes)} of {folder}", "none", "add images")
    if other:
        notes.append(f"{other} files in {folder.name}/ that are no images by their names were passed over")
    return images


def _shape(paths: list[Path], built_in_model: bool, notes: list[str]) -> Shape:
    """The shape all images are brought to, from the headers of the files."""
    sizes, modes = zip(*(_header(path) for path in paths), strict=True)
    channels = 1 if all(mode in _GREY_MODES for mode in modes) else 3
    height, width = (int(side) for side in np.median(np.array(sizes), axis=0))
    longest = max(height, width)
    if built_in_model and longest > _LONGEST_SIDE:
        height, width = (max(1, round(side * _LONGEST_SIDE / longest)) for side in (height, width))
        notes.append(f"images were reduced to {height}x{width} pixels for the built-in model")
    elif len(set(sizes)) > 1:
        notes.append(f"images of different sizes were resized to their median, {height}x{width} pixels")
    return channels, height, width


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An image of Pillow's whose failures name the file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError) as error:  # Pillow reports a damaged PNG as a SyntaxError
        raise ValueError(
            f"expected an image in {path}, but it could not be read ({error}); replace or remove the file"
        ) from error


def _header(path: Path) -> tuple[tuple[int, int], str]:
    """(height, width) and mode, without decoding the pixels."""
    with _opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION) in _TURNED
        return ((width, height) if turned else (height, width)), image.mode


def _read(paths: Sequence[Path], shape: Shape) -> Tensor:
    """Images as (images, channels, height, width) uint8."""
    return torch.stack([_pixels(path, shape) for path in paths])


def _pixels(path: Path, shape: Shape) -> Tensor:
    from PIL import Image, ImageOps

    channels, height, width = shape
    with _opened(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16 bits a pixel
            image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return torch.from_numpy(np.array(image, dtype=np.uint8)).reshape(height, width, channels).permute(2, 0, 1)


def _fits(files: Files, shape: Shape) -> bool:
    return 4 * len(files) * int(np.prod(shape)) <= IN_MEMORY_BYTES


def _fit(pixels: Tensor, classes: tuple[str, ...]) -> ImageEncoder:
    """An encoder with the statistics of these images, (images, channels, height, width) uint8."""
    histograms = [torch.bincount(channel.flatten(), minlength=256) for channel in pixels.unbind(1)]
    shares = torch.stack(histograms).double() / histograms[0].sum()  # (channels, 256)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (shares * values).sum(1)
    scale = (shares * (values - mean[:, None]).square()).sum(1).sqrt()
    scale[scale <= 1e-6] = 1.0
    return ImageEncoder(pixels.shape[2], pixels.shape[3], tuple(mean.tolist()), tuple(scale.tolist()), classes)


def _source(files: Files, encoder: ImageEncoder, pixels: Tensor | None, notes: list[str]) -> Source:
    """Images in memory where they fit, their pixels read already or not; else files that are read when needed."""
    if not _fits(files, encoder.shape):
        notes.append(f"{len(files)} images of {encoder.shape} are read from their files as they are needed")
        return MapStyle(files, encoder.collate)
    if pixels is None:
        pixels = _read([path for path, _ in files], encoder.shape)
    source = InMemory((encoder.normalise(pixels), torch.tensor([label for _, label in files])))
    notes.append(f"images are kept in memory, {source.nbytes / 1e6:.1f} MB")
    return source
