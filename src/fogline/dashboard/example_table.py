"""What the examples of a run did, kept while nothing new is recorded: the table, its orders, and curves of a few."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from fogline._examples import examples
from fogline._examples.edits import Edits, edit_columns
from fogline.dashboard.runs import NoRunError, mapping
from fogline.plots.example_map import axes
from fogline.record import example_files
from fogline.record.previews import Previews, read_previews
from fogline.record.store import Table
from fogline.run import Run

Ids = NDArray[np.int64]

_KEPT = 2  # runs whose table is in memory: of a million examples it takes some hundred megabytes
_LARGE = 64 << 20  # bytes of recorded epochs that take more than a moment to read
_MOST_CORNERS = 200
_MOST_IDS = 100_000
_CURVES = ("confidence", "margin", "residual", "loss", "correct", "gradient_norm")

LISTS: Mapping[str, tuple[str, str, bool]] = {
    "errors": ("Likely wrong labels", "label_error", True),
    "unsure": ("Hardest", "confidence", False),
    "loss": ("Highest loss", "loss", True),
    "rare": ("Rare but right", "rare", True),
    "wavering": ("Wavering", "variability", True),
    "forgotten": ("Forgotten most often", "forgetting", True),
    "steep": ("Steepest gradient", "gradient_norm", True),
    "edited": ("Edited", "", True),
    "all": ("All", "example", False),
}
"""Lists of examples: what they are called, the column that orders them, and whether the highest come first."""


class SelectionError(ValueError):
    """No such selection of examples; the text says why."""


@dataclass
class Seen:
    """The examples of a run as they were when they were read.

    Attributes:
        folder: of the run.
        table: one row per example, without edits.
        epochs: how many were recorded.
        kind: classification, regression or loss.
        classes: their names, or None.
        likely: examples that are likely labelled wrongly, the likeliest first.
        count: how many labels are estimated to be wrong, and the interval of that; None where it is not known.
        previews: what examples look like, or None.
    """

    folder: Path
    table: Table
    epochs: int
    kind: str
    classes: tuple[str, ...] | None
    likely: Ids
    count: tuple[float, float, float] | None
    previews: Previews | None
    _orders: dict[str, Ids] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def with_edits(self) -> Table:
        """The table with what was decided by now: ``edit`` and ``edit_label``."""
        return Table({**self.table.columns, **edit_columns(Edits(self.folder).table, len(self))})

    def lists(self) -> list[str]:
        """Names of the lists that there is something to order by for."""
        there = [name for name, (_, column, _) in LISTS.items() if not column or column in self.table.columns]
        return [name for name in there if name != "errors" or len(self.likely)]

    def order(self, name: str) -> Ids:
        """All examples of a list, in its order; those that were never recorded are left out of ordered ones."""
        if name == "edited":
            return self._edited()
        if name not in self._orders:
            _, column, falling = LISTS[name]
            if name == "errors":
                self._orders[name] = self.likely
            else:
                values = self.table[column].astype(np.float64)
                there = np.flatnonzero(np.isfinite(values))
                self._orders[name] = there[np.argsort(-values[there] if falling else values[there], kind="stable")]
        return self._orders[name]

    def _edited(self) -> Ids:
        """What was decided about, the latest first."""
        edits = Edits(self.folder).table
        ids: Ids = edits["example"][np.argsort(-edits["seconds"], kind="stable")].astype(np.int64)
        return ids[ids < len(self)]

    @cached_property
    def columns_file(self) -> Path:
        """The table as a file, for a process that answers a query; it is gone with this table."""
        folder = Path(tempfile.mkdtemp(prefix="fogline-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        place = folder / "examples.safetensors"
        columns = {name: values for name, values in self.table.columns.items() if not self.names_classes(name)}
        numbers = {name: np.ascontiguousarray(values) for name, values in columns.items() if _is_number(values)}
        words = {name: values.tolist() for name, values in columns.items() if not _is_number(values)}
        about = {"order": list(self.table.columns), "words": words, "classes": self.classes}
        save_file(numbers, place, {"fogline": json.dumps(about)})
        return place

    def names_classes(self, column: str) -> bool:
        """Whether a column says by name what another says by number."""
        return self.classes is not None and column.endswith("_class") and column[:-6] in self.table.columns

    def curves(
        self, ids: Sequence[int], names: Sequence[str] = _CURVES
    ) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]]:
        """What some examples did in each epoch: the epochs, and columns of shape (epochs, examples)."""
        at = np.asarray(ids, dtype=np.int64)
        epochs: list[int] = []
        rows: dict[str, list[NDArray[np.float64]]] = {}
        for path in example_files.files(self.folder):
            found = _columns(path, names, at)
            if found is not None:
                epochs.append(example_files.number_of(path))
                for name in names:
                    rows.setdefault(name, []).append(found.get(name, np.full(len(at), np.nan)))
        whole = {name: np.stack(values) for name, values in rows.items()}
        return np.array(epochs, dtype=np.int64), {name: v for name, v in whole.items() if np.isfinite(v).any()}


class Tables:
    """The tables of a few runs, each read anew when its folder ``examples/`` has changed."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Path, tuple[Any, Seen]] = OrderedDict()
        self._reading = threading.Lock()  # a table that takes seconds to make is made once for all who ask

    def at_once(self, folder: Path) -> bool:
        """Whether :meth:`of` takes but a moment: the table is in memory, or small."""
        stamp, known = stamp_of(folder), self._kept.get(folder)
        return (known is not None and known[0] == stamp) or sum(size for _, _, size in stamp) < _LARGE

    def of(self, folder: Path) -> Seen:
        """The examples of a run.

        Raises:
            NoRunError: nothing that can be shown was recorded of them.
        """
        with self._reading:
            stamp = stamp_of(folder)
            known = self._kept.get(folder)
            if known is None or known[0] != stamp:
                known = stamp, _seen(folder)
            self._kept[folder] = known
            self._kept.move_to_end(folder)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return known[1]


def stamp_of(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes with every file of the folder ``examples/``."""
    place = folder / "examples"
    if not place.is_dir() or place.is_symlink():
        return ()
    files = sorted(place.glob("*.safetensors"))
    return tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files)


def _seen(folder: Path) -> Seen:
    run = Run.open(folder)
    about, task = mapping(run.info.get("examples")), mapping(run.info.get("task"))
    files = example_files.files(folder)
    if not files or files[0].parent.is_symlink():
        raise NoRunError("expected a run that recorded its examples")
    found = examples(run)
    errors = found.label_errors() if "label_error" in found.table.columns else None
    classes = about.get("classes") or task.get("classes")
    return Seen(
        folder,
        found.table,
        len(files),
        str(about.get("kind") or task.get("kind") or ""),
        tuple(map(str, classes)) if isinstance(classes, list) else None,
        np.zeros(0, dtype=np.int64) if errors is None else errors.ids[: max(errors.cut, round(errors.count))],
        None if errors is None else (float(errors.count), float(errors.interval[0]), float(errors.interval[1])),
        read_previews(folder),
    )


# -- selections --------------------------------------------------------------------------------------------------------


def selected(seen: Seen, asked: Mapping[str, Any]) -> Ids:
    """The examples of a selection, in its order.

    Args:
        seen: the examples.
        asked: ``list`` (one of :data:`LISTS`), or ``region`` (corners over the axes of the map), or ``ids``; and
            ``target``, a label that all are to have.

    Raises:
        SelectionError: it is no such selection.
    """
    if "region" in asked:
        found = _inside(seen, asked["region"])
    elif "ids" in asked:
        found = _these(asked["ids"], len(seen))
    else:
        name = asked.get("list", "all")
        if name not in LISTS or name not in seen.lists():
            raise SelectionError(f"expected one of the lists {', '.join(seen.lists())}, received {name!r}")
        found = seen.order(name)
    target = asked.get("target")
    if target is None or "target" not in seen.table.columns:
        return found
    if not isinstance(target, int | float):
        raise SelectionError(f"expected a label as a number, received {target!r}")
    mine: Ids = found[seen.table["target"][found] == target]
    return mine


def _these(ids: Any, count: int) -> Ids:
    if not isinstance(ids, list) or len(ids) > _MOST_IDS or not all(type(at) is int and 0 <= at < count for at in ids):
        raise SelectionError(f"expected examples 0 to {count - 1}, at most {_MOST_IDS} of them")
    return np.array(list(dict.fromkeys(ids)), dtype=np.int64)


def _inside(seen: Seen, corners: Any) -> Ids:
    """The examples inside a polygon over the map, the likeliest label errors first."""
    across = axes(seen.table)
    try:
        polygon = np.array(corners, dtype=np.float64)
    except (TypeError, ValueError):
        polygon = np.zeros(0)
    if (
        across is None
        or polygon.ndim != 2
        or polygon.shape[1] != 2
        or len(polygon) < 3
        or not np.isfinite(polygon).all()
    ):
        raise SelectionError("expected a region as [[x, y], [x, y], [x, y], ...] over a map")
    polygon = polygon[:: -(-len(polygon) // _MOST_CORNERS)]
    x, y = (seen.table[name].astype(np.float64) for name in across)
    low, high = polygon.min(0), polygon.max(0)
    near = np.flatnonzero((x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1]))
    found = near[inside(polygon, x[near], y[near])]
    if "label_error" in seen.table.columns:
        error = np.nan_to_num(seen.table["label_error"][found].astype(np.float64))
        found = found[np.argsort(-error, kind="stable")]
    return found


def inside(
    polygon: NDArray[np.float64],  # (corners, 2)
    x: NDArray[np.float64],  # (n,)
    y: NDArray[np.float64],  # (n,)
) -> NDArray[np.bool_]:
    """Which points lie in a polygon, by the even-odd rule: a ray from them crosses its outline an odd number of times.

    >>> inside(np.array([[0, 0], [2, 0], [2, 2], [0, 2.0]]), np.array([1.0, 3.0]), np.array([1.0, 1.0]))
    array([ True, False])
    """
    within = np.zeros(len(x), dtype=bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (y0 > y) != (y1 > y)
            within ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return within


def _is_number(values: NDArray[Any]) -> bool:
    return values.dtype.kind in "fiub"


def _columns(path: Path, names: Sequence[str], ids: Ids) -> dict[str, NDArray[np.float64]] | None:
    """Columns of an epoch at some examples; None where the file is cut short or tells of fewer."""
    found = example_files.read(path, names)
    if found is None or any(values.ndim != 1 or (len(ids) and len(values) <= ids.max()) for values in found.values()):
        return None
    return {name: values[ids].astype(np.float64) for name, values in found.items()}
