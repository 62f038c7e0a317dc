"""The labels of a run by how likely they are wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fogline._examples.dynamics import Floats
from fogline._examples.ranking import Ranking


@dataclass(frozen=True)
class LabelErrors:
    """Labels by how likely they are wrong, the likeliest first.

    Attributes:
        ids: (N,) examples.
        probability: (N,) that the label is wrong.
        likely: (N,) the label that is right if this one is wrong; -1 where there is no other candidate.
        count: how many labels are wrong.
        interval: that number is within, nineteen times in twenty.
        cut: how many stand before the probability falls under one half.
    """

    ids: NDArray[np.int64]
    probability: Floats
    likely: NDArray[np.int64]
    count: float
    interval: tuple[float, float]
    cut: int

    @property
    def precision(self) -> Floats:
        """(N,) of the first 1, 2, 3, ... of them, the share that is expected to be wrong."""
        return np.cumsum(self.probability, dtype=np.float64) / np.arange(1, len(self.probability) + 1)

    @property
    def recall(self) -> Floats:
        """(N,) the share of all wrong labels that is expected among the first 1, 2, 3, ..."""
        total = max(float(self.probability.sum(dtype=np.float64)), 1e-12)
        return np.cumsum(self.probability, dtype=np.float64) / total

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, ranked: Ranking) -> LabelErrors:
        """Those of a ranking."""
        order = np.argsort(-ranked.score, kind="stable")
        cut = int((ranked.probability > 0.5).sum())
        return cls(order, ranked.probability[order], ranked.likely[order], ranked.count, ranked.interval, cut)
