"""The folder ``examples/`` of a run: what each example did, one file an epoch, and their targets.

``epoch-0003.safetensors`` holds columns of shape (N,), indexed by example: its position in the training data. Examples
that the epoch did not see are NaN there, and -1 in ``predicted``. ``targets.safetensors`` holds ``target``, (N,) or
(N, outputs). Nothing here needs PyTorch: looking at a run does without it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fogline.record.store import Table, sync_file

TARGETS = "targets.safetensors"
Columns = dict[str, NDArray[Any]]
File = tuple[Path, bytes]

_TYPES = {"<f2": "F16", "<f4": "F32", "<f8": "F64", "<i2": "I16", "<i4": "I32", "<i8": "I64"}
_AT_ONCE = 8  # a file system brings what several threads wait for to the disk together


def folder_of(run: Path) -> Path:
    """Where a run keeps its files."""
    return run / "examples"


def files(run: Path) -> list[Path]:
    """The files of a run's epochs, in order."""
    found = folder_of(run).glob("epoch-*.safetensors")
    return sorted((path for path in found if path.is_file() and not path.is_symlink()), key=number_of)


def number_of(path: Path) -> int:
    """Which epoch a file is of."""
    digits = path.stem.removeprefix("epoch-")
    return int(digits) if digits.isdecimal() else -1


def epoch_file(run: Path, epoch: int, step: int, columns: Columns) -> File:
    """The file of an epoch.

    Args:
        step: optimizer steps done when it ended.
        columns: by name, each of shape (N,).
    """
    metadata = {"fogline": json.dumps({"epoch": epoch, "step": step})}
    return folder_of(run) / f"epoch-{epoch:04d}.safetensors", packed(columns, metadata)


def targets_file(run: Path, found: NDArray[Any]) -> File:
    """The file of what each example's target is, (N,) int64 or float32, or (N, outputs) float32."""
    return folder_of(run) / TARGETS, packed({"target": found}, {})


def packed(columns: Columns, metadata: dict[str, str]) -> bytes:
    """The content of a safetensors file: the length of the header, the header, the columns one after the other.

    Written here, since a small file is made in a third of the time that the library takes, and by that in every epoch.

    >>> from safetensors.numpy import load
    >>> load(packed({"a": np.arange(2, dtype=np.int16), "b": np.ones((1, 2), np.float32)}, {"made": "here"}))["a"]
    array([0, 1], dtype=int16)
    """
    wide_first = sorted(columns.items(), key=lambda item: -item[1].itemsize)  # so that all lie at multiples of theirs
    known = _described(tuple((name, column.dtype.str, column.shape) for name, column in wide_first))
    header = (f'{{"__metadata__":{json.dumps(metadata)},' if metadata else "{") + known
    header += " " * (-len(header) % 8)
    return b"".join([len(header).to_bytes(8, "little"), header.encode(), *(c.tobytes() for _, c in wide_first)])


@lru_cache(4)
def _described(columns: tuple[tuple[str, str, tuple[int, ...]], ...]) -> str:
    """What a header says of columns, the same in every epoch."""
    found, place = {}, 0
    for name, dtype, shape in columns:
        end = place + np.dtype(dtype).itemsize * int(np.prod(shape))
        found[name] = {"dtype": _TYPES[dtype], "shape": shape, "data_offsets": [place, end]}
        place = end
    return json.dumps(found, separators=(",", ":"))[1:]


def write(file: File, *, synced: bool = True) -> None:
    """Write a file beside its place and rename it.

    Args:
        synced: bring it to the disk before it has its name; else that is for :func:`sync` to do.

    Raises:
        OSError: the folder cannot be written; the file that was there is untouched.
    """
    place, content = file
    beside = f"{place.parent}/.{place.stem}.{os.getpid()}.tmp"
    try:
        descriptor = _new(beside)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left) :]
            if synced:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(beside, place)
    except OSError as error:
        with suppress(OSError):
            os.unlink(beside)
        raise OSError(f"what the examples did cannot be written to {place}: {error}") from error


def _new(path: str) -> int:
    """A new file, open for writing; without the layers of :func:`open`, which cost as much as a small file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        Path(path).parent.mkdir(exist_ok=True)
        return os.open(path, flags, 0o666)


def has_targets(run: Path) -> bool:
    """Whether they have been written."""
    return (folder_of(run) / TARGETS).exists()


def sync(run: Path, paths: Iterable[Path] = ()) -> None:
    """See to it that these files of a run, and the names of all, are on the disk."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(sync_file, paths))
    sync_file(folder_of(run))


def forget(run: Path, epoch: int) -> None:
    """Remove the files of this epoch and later ones, and leftovers: the run goes on from there."""
    for path in files(run):
        if number_of(path) >= epoch:
            path.unlink(missing_ok=True)
    for path in folder_of(run).glob(".*.tmp"):
        path.unlink(missing_ok=True)


def lengthen(run: Path, count: int) -> None:
    """Write files again that have fewer rows than there are examples, as if the others had not been seen.

    Raises:
        OSError: they cannot be written.
    """
    for path in [*files(run), folder_of(run) / TARGETS]:
        columns = read(path)
        if columns is None or all(len(column) >= count for column in columns.values()):
            continue
        longer = {name: _longer(column, count) for name, column in columns.items()}
        with safe_open(path, framework="numpy") as opened:
            metadata = opened.metadata() or {}
        write((path, packed(longer, metadata)))


def _longer(column: NDArray[Any], count: int) -> NDArray[Any]:
    found = np.full((count, *column.shape[1:]), -1 if column.dtype.kind == "i" else np.nan, column.dtype)
    found[: len(column)] = column
    return found


def read(path: Path, only: Collection[str] | None = None) -> Columns | None:
    """The columns of a file by name, all or some; None where it is not there or cannot be read."""
    try:
        with safe_open(path, framework="numpy") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys() if not only or name in only}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def targets(run: Path) -> NDArray[Any] | None:
    """What each example's target is, or None where that is not kept."""
    found = read(folder_of(run) / TARGETS)
    return None if found is None else found.get("target")


def epochs(run: Path, only: Collection[str] | None = None) -> Iterator[tuple[int, Columns]]:
    """Each epoch with its columns, one in memory at a time."""
    for path in files(run):
        columns = read(path, only)
        if columns is not None:
            yield number_of(path), columns


def summary(run: Path, only: Collection[str] | None = None) -> Table:
    """One row per example, over the epochs there are; see :attr:`fogline.run.Run.examples`.

    Args:
        run: its folder.
        only: columns of the files that are looked at; all if None.
    """
    totals = _Totals()
    for _, columns in epochs(run, only):
        totals.add(columns)
    found = totals.columns()
    target = targets(run)
    if found and target is not None and target.ndim == 1 and len(target) == totals.count:
        found = {"example": found.pop("example"), "target": target, **found}
    return Table(found)


class _Totals:
    """Sums over the epochs, by example; there may be more examples from epoch to epoch."""

    def __init__(self) -> None:
        self.count = 0
        self._kept: Columns = {}

    def add(self, columns: Columns) -> None:
        self.count = max(self.count, *map(len, columns.values()), 0)
        for name, column in columns.items():
            if name == "predicted":
                seen = column >= 0
                self._of("predicted", np.int64, -1)[: len(column)][seen] = column[seen]
            else:
                seen = np.isfinite(column)
                self._of(f"sum of {name}")[: len(column)][seen] += column[seen]
                self._of(f"times of {name}", np.int64)[: len(column)] += seen
        if "confidence" in columns:
            values = np.nan_to_num(columns["confidence"].astype(np.float64))
            self._of("squares")[: len(values)] += values**2
        if "correct" in columns:
            correct = columns["correct"].astype(np.float64)
            before = self._of("before", fill=np.nan)[: len(correct)]
            self._of("forgotten", np.int64)[: len(correct)] += before > correct
            np.copyto(before, correct, where=np.isfinite(correct))

    def _of(self, name: str, kind: type = np.float64, fill: float = 0) -> NDArray[Any]:
        """An array with a place for every example."""
        kept = self._kept.get(name, np.empty(0, kind))
        if len(kept) < self.count:
            kept = self._kept[name] = np.pad(kept, (0, self.count - len(kept)), constant_values=fill)
        return kept

    def columns(self) -> Columns:
        names = [name.removeprefix("sum of ") for name in self._kept if name.startswith("sum of ")]
        if not names:
            return {}
        times = {name: self._of(f"times of {name}", np.int64) for name in names}
        with np.errstate(invalid="ignore", divide="ignore"):
            means = {name: self._of(f"sum of {name}") / times[name] for name in names}
            found = {"example": np.arange(self.count), "epochs": np.max(list(times.values()), axis=0), **means}
            if "confidence" in means:
                spread = self._of("squares") / times["confidence"] - means["confidence"] ** 2
                found["variability"] = np.sqrt(np.maximum(spread, 0.0))
                found["forgetting"] = self._of("forgotten", np.int64)
        return found | ({"predicted": self._of("predicted", np.int64, -1)} if "predicted" in self._kept else {})
