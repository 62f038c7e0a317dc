"""What probes are compared on: a few batches that they do not learn from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch

from fogline.data.source import Batch, InMemory, MapStyle, Stream
from fogline.descent.prepare import Start

_CHUNKS, _CHUNK_ROWS = 4, 64


def held_out_batches(start: Start) -> Iterator[Batch]:
    """A few batches that the probes do not learn from: held-out data, else training data that comes later."""
    rows = max(_CHUNK_ROWS, start.batches.batch_size)
    source, device = start.opened.valid, start.batches.device
    if isinstance(source, InMemory):
        # Evenly spaced over all of it, and dealt out in turn: rows may be sorted.
        size = min(source.size, rows * _CHUNKS)
        chosen = torch.arange(size) * source.size // size
        for k in range(min(_CHUNKS, size)):
            yield start.batches.placed(source.take(chosen[k::_CHUNKS]))
        return
    if isinstance(source, MapStyle | Stream):
        if isinstance(source, Stream):
            found = source.batches(rows)
        else:
            size = min(source.size, rows * _CHUNKS)
            chosen = [k * source.size // size for k in range(size)]
            found = source.loader([chosen[k::_CHUNKS] for k in range(min(_CHUNKS, size))], 0)
        yield from (start.batches.placed(batch) for batch in islice(found, _CHUNKS))
        return
    later = 64 if start.batches.steps_per_epoch is None else max(0, start.batches.steps_per_epoch - _CHUNKS)
    yield from islice(start.batches.stream(later), min(_CHUNKS, start.batches.steps_per_epoch or _CHUNKS))
