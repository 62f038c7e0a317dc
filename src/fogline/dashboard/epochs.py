"""What a run recorded of its examples: the means of each epoch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from fogline.dashboard.markup import section
from fogline.record import example_files
from fogline.tables import rows_table
from fogline.words import number

_EPOCHS = 200


def epochs_table(run: Path) -> str:
    """The mean of each column by epoch as an HTML section; nothing where no example was recorded."""
    if example_files.folder_of(run).is_symlink():
        return ""
    files = example_files.files(run)
    means = [(path.stem, *_means(path, path.stat().st_mtime_ns)) for path in files[-_EPOCHS:]]
    if not means:
        return ""
    columns = list(dict.fromkeys(name for _, _, values in means for name in values))
    rows = [
        [stem, number(count), *(number(values[name]) if name in values else "" for name in columns)]
        for stem, count, values in means
    ]
    words = "<p>The mean over all examples, epoch by epoch.</p>"
    return section(
        "epochs", "By epoch", words + rows_table("By epoch", ["epoch", "examples", *columns], rows, numbers=True)
    )


@lru_cache(maxsize=4 * _EPOCHS)  # a file is never written again, and those of a million examples take a while to read
def _means(path: Path, _: int) -> tuple[int, dict[str, float]]:
    """How many examples a file tells of, and the mean of each of its columns over those that were seen."""
    columns = example_files.read(path) or {}
    columns.pop("predicted", None)
    count = max((len(values) for values in columns.values() if values.ndim), default=0)
    found: dict[str, float] = {}
    for name, values in columns.items():
        seen = np.isfinite(values)
        if values.ndim == 1 and seen.any():
            found[name] = float(values[seen].mean(dtype=np.float64))
    return count, found
