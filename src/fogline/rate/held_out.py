"""What probes are compared on: a few batches that they do not learn from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch

from fogline.data.source import Batch, InMemory, MapStyle, Stream
from fogline.data.streamed import Streamed
from fogline.descent.prepare import Start

_BATCHES, _ROWS = 4, 64


def held_out_batches(start: Start) -> Iterator[Batch]:
    """A few batches of held-out data, else of training data that comes late in an epoch.

    Held-out rows are spaced evenly over all there are and dealt out in turn, since they may be sorted.
    """
    source, batches = start.opened.valid, start.batches
    rows = max(_ROWS, batches.batch_size)
    if isinstance(source, Stream):
        yield from (batches.placed(batch) for batch in islice(source.batches(rows), _BATCHES))
    elif isinstance(source, Streamed):
        found = InMemory(source.spread(rows * _BATCHES))
        for k in range(min(_BATCHES, found.size)):
            yield batches.placed(found.take(torch.arange(k, found.size, _BATCHES)))
    elif isinstance(source, InMemory | MapStyle):
        size = min(source.size, rows * _BATCHES)
        chosen = torch.arange(size) * source.size // size
        for k in range(min(_BATCHES, size)):
            yield batches.placed(source.take(chosen[k::_BATCHES]))
    else:
        epoch = batches.steps_per_epoch
        late = 64 if epoch is None else max(0, epoch - _BATCHES)
        yield from islice(batches.stream(late), min(_BATCHES, epoch or _BATCHES))
