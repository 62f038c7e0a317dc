"""A table larger than memory is opened: what it holds is told from a sample, and its classes from one pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fogline.data.chunks import Chunks
from fogline.data.frames import Table
from fogline.data.losses import Family
from fogline.data.streamed import Streamed, split_rows
from fogline.data.tables import MOST_CLASSES, TableEncoder, class_names, read_target
from fogline.errors import misfit

SAMPLED_CHUNKS = 64
SAMPLED_BYTES = 32 << 20  # as numbers of 8 bytes
_SAMPLED_ROWS = 200_000
_HELD_OUT = 0.2
_FEWEST_TO_SPLIT = 5


def open_streamed(
    chunks: Chunks, given: bool, family: Family, seed: int, notes: list[str]
) -> tuple[Streamed, Table, Table | None]:
    """The source of a table in chunks, with its sample: rows of up to 64 chunks evenly spread over all.

    The encoding of the columns is fitted to the sample. Where no held-out data is given, a fifth of the sample is held
    out; the rest of its chunks is trained on. Classes are those of all rows: one pass reads the target column alone.

    Args:
        chunks: of the training data.
        given: whether there is held-out data already.
        family: of the loss.
        seed: decides which rows are sampled and held out.
        notes: what was found is added.

    Returns:
        The source, the sampled rows that are trained on, and those held out.

    Raises:
        ValueError: for missing values, an unknown target, or a target that the loss cannot work on.
    """
    taken = _sampled(chunks)
    held = dict.fromkeys(taken, 0)
    if not given and chunks.target is not None:
        held = {index: _share(count, chunks.chunks[index].rows) for index, count in taken.items()}
    sample, held_out = _read(chunks, taken, held, seed)
    encoder = TableEncoder()
    if chunks.target is not None:
        encoder = read_target(sample, family, notes)
        if encoder.classes is not None:
            encoder = _all_classes(chunks, encoder, notes)
    encoder = encoder.fit(sample, notes)
    notes += _said(chunks, taken, sample, held_out, given)
    counts = [held.get(index, 0) for index in range(len(chunks.chunks))]
    source = Streamed(chunks, encoder, tuple(counts) if any(counts) else None, seed)
    return source, sample, held_out


def _sampled(chunks: Chunks) -> dict[int, int]:
    """How many rows of which chunks are looked at."""
    chosen = chunks.spread(SAMPLED_CHUNKS)
    most = min(_SAMPLED_ROWS, SAMPLED_BYTES // (8 * len(chunks.columns)))
    each = max(1, most // len(chosen))
    return {index: min(each, chunks.chunks[index].rows) for index in chosen}


def _share(count: int, rows: int) -> int:
    """How many of the sampled rows of a chunk are held out; one remains at least."""
    return min(round(_HELD_OUT * count), rows - 1) if rows >= _FEWEST_TO_SPLIT else 0


def _read(chunks: Chunks, taken: dict[int, int], held: dict[int, int], seed: int) -> tuple[Table, Table | None]:
    """The sampled rows that are trained on, and those held out."""
    learned: list[Table] = []
    out: list[Table] = []
    for index, count in taken.items():
        table = chunks.read(index)
        table.refuse_missing(table.columns)
        aside, kept = split_rows(table.rows, held[index], seed, index)
        if len(aside):
            out.append(table.take(aside))
        wanted = max(1, count - len(aside))
        learned.append(table.take(kept[np.arange(wanted) * len(kept) // wanted] if wanted < len(kept) else kept))
    return stacked(learned, chunks), stacked(out, chunks) if out else None


def stacked(tables: list[Table], chunks: Chunks) -> Table:
    """Tables one below another; a column that is not of one type in all becomes one of objects."""
    columns = {
        name: np.concatenate([_plain(table.columns[name], name, tables) for table in tables])
        for name in tables[0].columns
    }
    numbers = np.concatenate([table.numbers for table in tables])
    return Table(columns, f"{chunks.root.name} (a sample)", chunks.target, numbers, 1)


def _plain(values: np.ndarray, name: str, tables: list[Table]) -> np.ndarray:
    kinds = {table.columns[name].dtype.kind for table in tables}
    return values if len(kinds) == 1 else values.astype(object)


def _all_classes(chunks: Chunks, encoder: TableEncoder, notes: list[str]) -> TableEncoder:
    """The classes of all rows, from one pass over the target column."""
    target = str(encoder.target)
    found: np.ndarray = np.empty(0)
    for index in range(len(chunks.chunks)):
        here = np.unique(chunks.read(index, [target]).values(target))
        found = np.unique(np.concatenate([found.astype(here.dtype), here]))
        if len(found) > MOST_CLASSES:
            received = f"more than {MOST_CLASSES} different values"
            raise misfit(
                "classes with several rows each", received, "choose another target column", f"target {target!r}"
            )
    names = tuple(class_names(found)) if found.dtype.kind == "f" else tuple(sorted(set(class_names(found))))
    assert encoder.classes is not None
    if encoder.as_float and len(names) > 2:
        raise misfit("two classes for a binary loss", len(names), "use nn.CrossEntropyLoss()", f"target {target!r}")
    new = [name for name in names if name not in encoder.classes]
    if new:
        notes.append(f"{len(new)} of {len(names)} classes of {target!r} were not in the sample")
    return replace(encoder, classes=names)


def _said(chunks: Chunks, taken: dict[int, int], sample: Table, held_out: Table | None, given: bool) -> list[str]:
    total = len(chunks.chunks)
    spread = f"{len(taken)} of {total} {chunks.unit}, evenly spread"
    seen = sample.rows + (0 if held_out is None else held_out.rows)
    notes = [
        f"{chunks.root.name} is read chunk by chunk: {chunks.rows} rows in {len(chunks.files)} files; columns are "
        f"encoded by a sample of {seen} rows from {spread}"
    ]
    if held_out is not None:
        notes.append(f"{held_out.rows} rows of that sample were held out for validation and are not trained on")
    elif not given and chunks.target is not None:
        notes.append(f"{chunks.rows} rows are too few to hold some out: nothing is validated")
    return notes
