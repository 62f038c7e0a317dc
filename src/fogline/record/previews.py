"""Small pictures of examples, kept in the run so that they can be looked at without the data.

One file, ``examples/previews.safetensors``: thumbnails, rows of a table, or the beginnings of texts, of some thousand
examples. Of larger data the rest has no preview. Without PyTorch, so that the dashboard can read it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

FILE = "previews.safetensors"
MOST_EXAMPLES = 5000
MOST_SIDE = 64  # pixels
MOST_BYTES = 16 << 20
MOST_CHARACTERS = 400  # of a text, and of a row
MOST_COLUMNS = 40

Kind = Literal["images", "rows", "texts"]


@dataclass(frozen=True)
class Previews:
    """What some examples look like.

    Attributes:
        kind: images, rows or texts.
        ids: the examples, rising, (n,) int64.
        pixels: of images, (n, height, width, 1 or 3) uint8.
        words: of texts a text each; of rows a list of cells as JSON.
        columns: names of the cells.
    """

    kind: Kind
    ids: NDArray[np.int64]
    pixels: NDArray[np.uint8] | None = None
    words: Sequence[str] = ()
    columns: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.ids)

    def place(self, example: int) -> int | None:
        """Where the preview of an example stands; None where it has none."""
        at = int(np.searchsorted(self.ids, example))
        return at if at < len(self.ids) and self.ids[at] == example else None

    def cells(self, example: int) -> list[str] | None:
        """The row of an example, or its text as the only cell; None where it has none, or is an image."""
        at = self.place(example)
        if at is None or self.kind == "images":
            return None
        return [str(cell) for cell in json.loads(self.words[at])] if self.kind == "rows" else [self.words[at]]


def write_previews(folder: Path, previews: Previews) -> Path:
    """Keep previews in a run folder, in the place of those that were there; returns the file.

    Raises:
        ValueError: they take more than :data:`MOST_BYTES`.
        OSError: the folder cannot be written.
    """
    tensors: dict[str, NDArray[Any]] = {"example": np.ascontiguousarray(previews.ids, dtype=np.int64)}
    if previews.pixels is not None:
        tensors["pixels"] = np.ascontiguousarray(previews.pixels)
    else:
        encoded = [text.encode("utf-8", "replace") for text in previews.words]
        tensors["ends"] = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        tensors["text"] = np.frombuffer(b"".join(encoded) or b" ", dtype=np.uint8)
    size = sum(values.nbytes for values in tensors.values())
    if size > MOST_BYTES:
        raise ValueError(
            f"expected previews of at most {MOST_BYTES} bytes, received {size}; keep fewer or smaller ones"
        )
    about = {"kind": previews.kind, "columns": list(previews.columns)}
    place = folder / "examples" / FILE
    place.parent.mkdir(exist_ok=True)
    beside = place.with_name(f".{place.stem}.{os.getpid()}.tmp")
    beside.write_bytes(save(tensors, {"fogline": json.dumps(about)}))
    beside.replace(place)
    return place


def read_previews(folder: Path) -> Previews | None:
    """The previews of a run; None where it keeps none that can be read."""
    place = folder / "examples" / FILE
    if not place.is_file() or place.is_symlink() or place.parent.is_symlink():
        return None
    try:
        with safe_open(place, framework="numpy") as opened:
            about = json.loads((opened.metadata() or {}).get("fogline", "{}"))
            found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return _read(about, found)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def _read(about: dict[str, Any], found: dict[str, NDArray[Any]]) -> Previews:
    kind, ids = about["kind"], found["example"]
    if kind == "images":
        pixels = found["pixels"]
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or len(pixels) != len(ids):
            raise ValueError("expected pixels as (n, height, width, 1 or 3) uint8")
        return Previews("images", ids, pixels)
    text, ends = found["text"].tobytes(), found["ends"].tolist()
    starts = [0, *ends[:-1]]
    words = [text[start:end].decode("utf-8", "replace") for start, end in zip(starts, ends, strict=True)]
    if len(words) != len(ids) or kind not in ("rows", "texts"):
        raise ValueError("expected a text for each example")
    return Previews("rows" if kind == "rows" else "texts", ids, None, words, tuple(map(str, about["columns"])))


def most_images(height: int, width: int, channels: int) -> int:
    """How many thumbnails of this size are kept.

    >>> most_images(28, 28, 1), most_images(64, 64, 3)
    (5000, 1361)
    """
    return min(MOST_EXAMPLES, (MOST_BYTES - 8 * MOST_EXAMPLES) // (height * width * channels + 8))
