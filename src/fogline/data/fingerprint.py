"""A short name for data, so that a run is never resumed on other data by mistake."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from fogline.data.source import InMemory, MapStyle, Source, leaves

_ROWS = 64
_READ = 8  # examples of a dataset that has to be read


def fingerprint(source: Source) -> str:
    """A hash of the size, shapes, types and the bytes of up to 64 evenly spaced examples (8 of a map-style dataset).

    A stream cannot be read without using it up, so only its kind counts.

    >>> a, b = InMemory(torch.arange(5.0)), InMemory(torch.arange(5.0) + 1)
    >>> fingerprint(a) == fingerprint(InMemory(torch.arange(5.0))), fingerprint(a) == fingerprint(b)
    (True, False)
    """
    digest = hashlib.sha256(f"{type(source).__name__} {source.size}".encode())
    if isinstance(source, InMemory):
        device = leaves(source.tensors)[0].device
        _add(digest, source.take(_spaced(source.size, _ROWS).to(device)))
    elif isinstance(source, MapStyle):
        _add(digest, source.take(_spaced(source.size, _READ)))
    return digest.hexdigest()[:32]


def _spaced(size: int, count: int) -> torch.Tensor:
    return torch.linspace(0, size - 1, min(size, count), dtype=torch.float64).round().long()


def _add(digest: Any, tree: Any) -> None:
    for leaf in leaves(tree):
        digest.update(f"{tuple(leaf.shape)} {leaf.dtype}".encode())
        digest.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
