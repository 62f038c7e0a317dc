"""The encoder of a saved run, read back."""

from __future__ import annotations

from typing import Any

from fogline.data.images import ImageEncoder
from fogline.data.tables import TableEncoder
from fogline.errors import unknown


def load_encoder(values: dict[str, Any]) -> TableEncoder | ImageEncoder:
    """An encoder from its ``to_dict()``; its ``encode`` turns new rows or image files into inputs.

    Raises:
        ValueError: for values of another kind.

    >>> load_encoder(TableEncoder(()).to_dict())
    TableEncoder(columns=(), target=None, classes=None)
    """
    if values.get("kind") == "image":
        return ImageEncoder.from_dict(values)
    if values.get("kind") == "table":
        return TableEncoder.from_dict(values)
    raise unknown("kind of encoder", values.get("kind"), ["image", "table"])
