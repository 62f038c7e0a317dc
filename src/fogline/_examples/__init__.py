"""What each example did: label errors, rare ones, duplicates, slices, and questions in SQL.

The package has this name, and not that of its verb, because a module ``fogline.examples`` and the function
``fogline.examples`` would hide each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fogline._examples.dynamics import Record, open_record
from fogline._examples.query import QueryError
from fogline._examples.result import Examples, LabelErrors
from fogline.run import Run

if TYPE_CHECKING:
    from fogline.task import Task

__all__ = ["Examples", "LabelErrors", "QueryError", "Record", "examples", "open_record"]


def examples(
    run: Run | str | Path, task: Task | None = None, *, columns: Mapping[str, ArrayLike] | None = None
) -> Examples:
    """What every training example of a run did, from what was recorded while it trained.

    Args:
        run: a run or its folder.
        task: of a run that was opened without one. With it the data itself is looked at: neighbours, duplicates, leaks;
            and what some thousand examples look like is kept in the run, for the dashboard.
        columns: more columns of the table by name, a value for each training example.

    Returns:
        An :class:`Examples`: ``table``, ``label_errors()``, ``sql()``, ``neighbours()``.

    Raises:
        ValueError: nothing was recorded; columns of another length.
        TypeError: something else than a run.
    """
    run = Run.open(run, task=task) if isinstance(run, str | Path) else run
    if not isinstance(run, Run):
        raise TypeError(f"expected a run or its folder, received {type(run).__name__}")
    record = open_record(run)
    made: dict[str, NDArray[Any]] = {name: np.asarray(values) for name, values in (columns or {}).items()}
    for name, values in made.items():
        if values.shape != (record.count,):
            raise ValueError(f"expected the column {name!r} with {record.count} values, received shape {values.shape}")
    task = run.task or task
    if task is not None:
        from fogline._examples.looks import keep_if_missing

        keep_if_missing(run, task)
    return Examples(run, record, task, made)
