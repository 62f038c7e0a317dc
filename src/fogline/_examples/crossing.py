"""Nearly the same examples over the training and the held-out data together."""

from __future__ import annotations

import numpy as np
import torch

from fogline._examples.duplicates import near_by_chance, pairs
from fogline._examples.linkage import joined
from fogline._examples.series import in_series
from fogline._examples.spaces import Spaces
from fogline.record.store import Table


def across(spaces: Spaces, within: float | None, chance: float, *, series: bool) -> tuple[int, Table]:
    """Pairs over both sets, numbered from the first of the training data on, and how many that has.

    Args:
        spaces: what the model makes of the examples.
        within: the largest distance, in units of what is usual.
        chance: where none is given, such that an example has so many neighbours within it by chance.
        series: whether pictures may come in series.

    Raises:
        ValueError: the task holds nothing out.
    """
    if "valid" not in spaces.looks:
        raise ValueError("expected a task with held-out data, received one without; give it as Task(..., valid=...)")
    rows = torch.cat([spaces.looks["train"], spaces.looks["valid"]])
    count = len(spaces.looks["train"])
    labels = [spaces.labels(split) for split in ("train", "valid")]
    known = None if labels[0] is None or labels[1] is None else np.concatenate([labels[0], labels[1]])
    if series and spaces.pictures and in_series(rows, known):
        return count, joined(len(rows), spaces.links(known), 1.0 if within is None else within)
    return count, pairs(rows, known, near_by_chance(rows, chance) if within is None else within)
