"""What examples look like, from the training data: thumbnails, rows of a table, or texts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fogline.data.decoded import decoded
from fogline.data.images import ImageEncoder
from fogline.data.intake import Opened, open_data
from fogline.data.source import InMemory, MapStyle, whole
from fogline.data.tables import TableEncoder
from fogline.record import example_files
from fogline.record.previews import (
    MOST_CHARACTERS,
    MOST_COLUMNS,
    MOST_EXAMPLES,
    MOST_SIDE,
    Previews,
    most_images,
    read_previews,
    write_previews,
)
from fogline.run import Run
from fogline.task import Task

_READ_FOR = 3.0  # seconds that examples which are not in memory may take
_AT_ONCE = 64
_LEAST_SIDE, _LONGEST = 8, 4  # pixels of the shorter side, and how many times as long the other may be
_BACKGROUND = 0.5  # share of the columns of flattened images whose lowest value is one and the same
_EDGES = 0.005  # share of pixels below and above what becomes black and white


def keep_looks(folder: Path, opened: Opened, first: Iterable[int] = ()) -> Path | None:
    """Write the previews of a run's examples into its folder; returns the file, or None where they have no looks.

    Args:
        folder: of the run.
        opened: its data.
        first: examples that are to have a preview in any case, as far as there is room; others follow evenly.
    """
    found = looks(opened, first)
    return None if found is None or not len(found) else write_previews(folder, found)


def keep_if_missing(run: Run, task: Task) -> None:
    """Write the previews of a run that has none yet, split and read as in the run.

    Raises:
        ValueError, TypeError: the data of the task cannot be read.
    """
    if read_previews(run.folder) is None:
        seed = int((run.info.get("recipe") or {}).get("seed") or 0)
        keep_looks(run.folder, open_data(task, seed=seed), hardest(run.folder))


def hardest(folder: Path, most: int = 1000) -> list[int]:
    """The examples with the highest loss half-way, before a model knows even wrong labels by heart."""
    files = example_files.files(folder)
    found = example_files.read(files[len(files) // 2]) if files else None
    if found is None or "loss" not in found:
        return []
    loss = np.nan_to_num(found["loss"].astype(np.float64), nan=-np.inf)
    order: list[int] = np.argsort(-loss, kind="stable")[:most].tolist()
    return order


def looks(opened: Opened, first: Iterable[int] = ()) -> Previews | None:
    """The previews of some thousand examples: of all of them where there are not more.

    Examples that are no tensors in memory are read for at most three seconds.
    """
    source = opened.train
    if not isinstance(source, InMemory | MapStyle) or not source.size:
        return None
    sample = _inputs(source, [0])
    if isinstance(sample, list):
        return _texts(source, _chosen(source.size, MOST_EXAMPLES, first))
    if not isinstance(sample, Tensor) or sample.ndim < 2 or sample.is_complex() or not sample.numel():
        return None
    encoder = opened.encoder
    shape = tuple(sample.shape[1:])
    if isinstance(encoder, TableEncoder):
        chosen, values = _values(source, _chosen(source.size, MOST_EXAMPLES, first))
        names, rows = decoded(encoder, values.double().cpu().numpy())
        return _rows(chosen, names, rows)
    image = _image_shape(shape) or (_flattened(source, shape) if len(shape) == 1 else None)
    if image is not None:
        return _images(source, image, first, encoder if isinstance(encoder, ImageEncoder) else None)
    if len(shape) == 1:
        chosen, values = _values(source, _chosen(source.size, MOST_EXAMPLES, first))
        names = [f"x{column}" for column in range(shape[0])]
        return _rows(chosen, names, [[f"{cell:.4g}" for cell in row] for row in values[:, :MOST_COLUMNS].tolist()])
    return None


def _chosen(count: int, most: int, first: Iterable[int]) -> list[int]:
    """At most so many examples: the first ones, then others at equal distances.

    >>> _chosen(10, 4, [7])
    [0, 4, 7, 9]
    """
    if count <= most:
        return list(range(count))
    wanted = dict.fromkeys(at for at in first if 0 <= at < count)
    spaced = np.linspace(0, count - 1, most - 1 if len(wanted) == 1 else most).round().astype(int).tolist()
    return sorted(list(dict.fromkeys([*wanted, *spaced]))[:most])


def _inputs(source: InMemory | MapStyle, ids: Sequence[int]) -> Any:
    """The inputs of examples: a tensor, or a list of texts; None where there is neither."""
    batch = whole(source.take(torch.tensor(ids, dtype=torch.int64, device=_device(source))))
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if isinstance(inputs, dict):
        inputs = next(iter(sorted(filter(_has_looks, inputs.values()), key=_is_texts, reverse=True)), None)
    return list(inputs) if _is_texts(inputs) else inputs if isinstance(inputs, Tensor) else None


def _device(source: InMemory | MapStyle) -> torch.device:
    from fogline.data.source import leaves

    return leaves(source.tensors)[0].device if isinstance(source, InMemory) else torch.device("cpu")


def _is_texts(value: Any) -> bool:
    return isinstance(value, tuple | list) and bool(value) and all(isinstance(item, str) for item in value)


def _has_looks(value: Any) -> bool:
    return _is_texts(value) or isinstance(value, Tensor)


def _pieces(source: InMemory | MapStyle, ids: Sequence[int]) -> Iterable[tuple[list[int], Any]]:
    """Examples some at a time; of data that is not in memory until the time is over."""
    end = time.monotonic() + _READ_FOR
    for start in range(0, len(ids), _AT_ONCE):
        if start and isinstance(source, MapStyle) and time.monotonic() > end:
            return
        piece = list(ids[start : start + _AT_ONCE])
        yield piece, _inputs(source, piece)


def _values(source: InMemory | MapStyle, ids: Sequence[int]) -> tuple[list[int], Tensor]:
    """The examples that were read, and their inputs."""
    pieces = list(_pieces(source, ids))
    return [at for piece, _ in pieces for at in piece], torch.cat([values for _, values in pieces]).detach()


def _texts(source: InMemory | MapStyle, ids: Sequence[int]) -> Previews:
    pieces = list(_pieces(source, ids))
    words = [_cut(text) for _, texts in pieces for text in texts]
    return Previews("texts", np.array([at for piece, _ in pieces for at in piece], dtype=np.int64), None, words)


def _rows(ids: Sequence[int], names: Sequence[str], rows: Sequence[Sequence[str]]) -> Previews:
    words = [json.dumps([_cut(cell, 60) for cell in row[:MOST_COLUMNS]], ensure_ascii=False) for row in rows]
    return Previews("rows", np.array(ids, dtype=np.int64), None, words, tuple(names[:MOST_COLUMNS]))


def _cut(text: str, most: int = MOST_CHARACTERS) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


# -- images ------------------------------------------------------------------------------------------------------------


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Channels, height and width of examples of this shape; None where they are no images.

    >>> _image_shape((3, 32, 32)), _image_shape((28, 28)), _image_shape((9, 128)), _image_shape((16, 8, 8))
    ((3, 32, 32), (1, 28, 28), None, None)
    """
    channels, height, width = (1, *shape) if len(shape) == 2 else shape if len(shape) == 3 else (0, 0, 0)
    low, high = min(height, width), max(height, width)
    return (
        (channels, height, width) if channels in (1, 3, 4) and low >= _LEAST_SIDE and high <= _LONGEST * low else None
    )


def _flattened(source: InMemory | MapStyle, shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """The shape of square images that were laid out as columns: most of those share their lowest value, the background.

    Columns of a table rarely do.
    """
    for channels in (1, 3):
        side = round((shape[0] / channels) ** 0.5)
        if side >= _LEAST_SIDE and channels * side * side == shape[0]:
            _, values = _values(source, _chosen(source.size, 4 * _AT_ONCE, ()))
            lowest = values.amin(0)
            _, counts = torch.unique(lowest, return_counts=True)
            return (channels, side, side) if int(counts.max()) > _BACKGROUND * shape[0] else None
    return None


def _images(
    source: InMemory | MapStyle, shape: tuple[int, int, int], first: Iterable[int], encoder: ImageEncoder | None
) -> Previews:
    """Thumbnails of at most 64 pixels a side."""
    channels, height, width = shape
    shown = 3 if channels >= 3 else 1
    scale = min(1.0, MOST_SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    ids, small = [], []
    for piece, values in _pieces(source, _chosen(source.size, most_images(*size, shown), first)):
        if not isinstance(values, Tensor):
            break
        pixels = values.detach().reshape(len(piece), *shape)[:, :shown].float().cpu()
        ids += piece
        small.append(F.interpolate(pixels, size, mode="area") if scale < 1 else pixels)
    shades = _bytes(torch.cat(small), encoder, _inputs(source, [0]).dtype)
    return Previews("images", np.array(ids, dtype=np.int64), shades.transpose(0, 2, 3, 1))


def _bytes(pixels: Tensor, encoder: ImageEncoder | None, dtype: torch.dtype) -> NDArray[np.uint8]:
    """Pixels from 0 to 255: as they were before they were normalised where that is known, else from black to white."""
    if encoder is not None:
        mean, scale = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.scale))
        pixels = (pixels * scale + mean) * 255
    elif dtype != torch.uint8:
        pixels = pixels.nan_to_num(0.0, 0.0, 0.0)
        low, high = float(pixels.min()), float(pixels.max())
        if low >= 0 and high <= 1:
            pixels = pixels * 255
        elif low < 0 or high > 255:
            pixels = _stretched(pixels)
        elif high < 128:  # such as digits from 0 to 16
            pixels = pixels * (255 / high)
    found: NDArray[np.uint8] = pixels.round().clamp(0, 255).to(torch.uint8).numpy()
    return found


def _stretched(pixels: Tensor) -> Tensor:
    """Each channel from its dark pixels to its bright ones."""
    flat = pixels.transpose(0, 1).flatten(1)
    flat = flat[:, :: max(1, flat.shape[1] // 100_000)]
    low, high = (torch.quantile(flat, share, dim=1)[:, None, None] for share in (_EDGES, 1 - _EDGES))
    return (pixels - low) / (high - low).clamp_min(1e-12) * 255
