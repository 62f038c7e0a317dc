"""What a run recorded of its examples: one file an epoch, columns with a value for each example.

An example is named by its position in the training data. The files are memory-mapped and read a column at a time, so
that a million examples over twenty epochs take tens of megabytes and not gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fogline.run import Run

Floats = NDArray[np.floating[Any]]

_NAME = re.compile(r"epoch-(\d+)\.safetensors")


@dataclass(frozen=True)
class Record:
    """The recorded columns of a run.

    Attributes:
        folder: ``examples`` in the run folder.
        kind: "classification", "regression" or "loss" (the loss alone is known).
        count: examples, N.
        classes: names of the classes in the order of their labels, or None.
        epochs: the numbers of the epochs that were recorded, in their order.
        targets: what each example is to be, (N,) or (N, outputs), or None.
    """

    folder: Path
    kind: str
    count: int
    classes: tuple[str, ...] | None
    epochs: tuple[int, ...]
    targets: NDArray[Any] | None
    _columns: tuple[frozenset[str], ...] = field(repr=False)

    def has(self, name: str) -> bool:
        """Whether a column was recorded in every epoch."""
        return all(name in there for there in self._columns)

    def values(self, name: str, at: int) -> NDArray[Any]:
        """A column, (N,), of the epoch at this place in ``epochs``, in the type it was recorded in.

        Raises:
            KeyError: it was not recorded.
        """
        if name not in self._columns[at]:
            raise KeyError(f"expected one of {', '.join(sorted(self._columns[at]))}, received {name!r}")
        with safe_open(_path(self.folder, self.epochs[at]), framework="numpy") as opened:
            found: NDArray[Any] = opened.get_tensor(name)
        return found

    def over(self, name: str, until: int | None = None) -> Iterator[NDArray[Any]]:
        """A column by epoch, one in memory at a time; the first ``until`` epochs."""
        for at in range(len(self.epochs) if until is None else until):
            yield self.values(name, at)

    def curve(self, example: int) -> dict[str, NDArray[Any]]:
        """All columns of one example over the epochs, (epochs,) each; NaN where it was not seen.

        Raises:
            IndexError: there is no such example.
        """
        if not 0 <= example < self.count:
            raise IndexError(f"expected an example from 0 to {self.count - 1}, received {example}")
        names = sorted(frozenset.intersection(*self._columns))
        rows: list[list[Any]] = []
        for epoch in self.epochs:
            with safe_open(_path(self.folder, epoch), framework="numpy") as opened:
                rows.append([opened.get_slice(name)[example : example + 1][0] for name in names])
        return {"epoch": np.array(self.epochs)} | {
            name: np.array(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)
        }


def open_record(run: Run) -> Record:
    """The record of a run; files that are cut short or of another length are left out.

    Raises:
        ValueError: nothing was recorded of the examples.
    """
    folder = run.folder / "examples"
    said: dict[str, Any] = run.info.get("examples") or {}
    found = sorted((int(name[1]), path) for path in folder.glob("epoch-*") if (name := _NAME.fullmatch(path.name)))
    columns, epochs, count = [], [], said.get("count")
    for epoch, path in found:
        there = _there(path)
        if there is not None and count in (None, there[1]):
            columns.append(there[0])
            epochs.append(epoch)
            count = there[1]
    if not epochs or count is None:
        raise ValueError(
            f"expected a run that recorded its examples, found no readable epoch in {folder}; train it with "
            "examples=True, and for at least one whole epoch"
        )
    common = frozenset.intersection(*columns)
    kind = said.get("kind") or (
        "classification" if "margin" in common else "regression" if "residual" in common else "loss"
    )
    classes = said.get("classes")
    targets = _targets(folder / "targets.safetensors", count)
    named = None if classes is None else tuple(map(str, classes))
    return Record(folder, kind, count, named, tuple(epochs), targets, tuple(columns))


def _path(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:04d}.safetensors"


def _there(path: Path) -> tuple[frozenset[str], int] | None:
    """The columns of a file and their length; None where it cannot be read."""
    try:
        with safe_open(path, framework="numpy") as opened:
            shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return None
    if "loss" not in shapes and "residual" not in shapes:
        return None
    length = next(iter(shapes.values()))[0]
    return frozenset(name for name, shape in shapes.items() if shape == [length]), length


def _targets(path: Path, count: int) -> NDArray[Any] | None:
    if not path.exists():
        return None
    with safe_open(path, framework="numpy") as opened:
        found: NDArray[Any] = opened.get_tensor("target")
    return found if len(found) == count else None


def summarise(record: Record) -> dict[str, NDArray[Any]]:
    """What became of each example over all epochs, (N,) each; NaN (-1 for ``predicted``) where it was never seen.

    ``loss`` (the last), ``confidence`` and its ``variability`` (mean and deviation over the epochs), ``correct`` (share
    of the epochs), ``forgetting`` (times it went from right to wrong), ``gradient_norm`` (mean), ``predicted`` (the
    last), ``residual`` (the last), as far as they were recorded. One column of one epoch is in memory at a time.
    """
    found: dict[str, NDArray[Any]] = {}
    for name in ("loss", "predicted", "residual"):
        if record.has(name):
            found[name] = _last(record, name)
    if record.has("confidence"):
        found["confidence"], found["variability"] = _mean_and_deviation(record, "confidence")
    if record.has("correct"):
        found["correct"], _ = _mean_and_deviation(record, "correct")
        found["forgetting"] = _forgetting(record)
    if record.has("gradient_norm"):
        found["gradient_norm"], _ = _mean_and_deviation(record, "gradient_norm")
    return found


def _last(record: Record, name: str) -> NDArray[Any]:
    """The value of the last epoch in which each example was seen."""
    kept: NDArray[Any] | None = None
    for values in record.over(name):
        seen = values >= 0 if name == "predicted" else ~np.isnan(values)
        kept = values.copy() if kept is None else np.where(seen, values, kept)
    assert kept is not None
    return kept.astype(np.int64 if name == "predicted" else np.float32)


def _mean_and_deviation(record: Record, name: str) -> tuple[Floats, Floats]:
    count, total, squares = (np.zeros(record.count) for _ in range(3))
    for values in record.over(name):
        known = values.astype(np.float64)
        seen = np.isfinite(known)
        known[~seen] = 0.0
        count += seen
        total += known
        squares += known * known
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
        return mean.astype(np.float32), np.sqrt(np.maximum(squares / count - mean**2, 0.0)).astype(np.float32)


def _forgetting(record: Record) -> NDArray[np.int64]:
    """Toneva et al., 2019 (arXiv:1812.05159): how often an example that was right the time before is wrong."""
    before = np.zeros(record.count, dtype=bool)
    events = np.zeros(record.count, dtype=np.int64)
    for values in record.over("correct"):
        seen, right = ~np.isnan(values), values > 0.5
        events += seen & before & ~right
        before = np.where(seen, right, before)
    return events
