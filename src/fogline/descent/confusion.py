"""How often each class of the held-out data is taken for which, counted while it is scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fogline.data.losses import family, on_probabilities

MOST_CLASSES = 1000
"""Of more classes (the words of a language, say) no counts are kept."""


class Confusion:
    """Counts predictions by target, batch after batch.

    Args:
        loss: of the task; it says what the outputs mean.
        labels: whether the targets are known to be labels of classes where the loss does not say so.
    """

    def __init__(self, loss: Any, *, labels: bool = False) -> None:
        self.loss, self.labels = loss, labels
        self._counts: Tensor | None = None

    def add(self, outputs: Any, targets: Any) -> None:
        """Count a batch; one that is no classification adds nothing."""
        found = predictions(self.loss, outputs, targets, labels=self.labels)
        if found is None:
            return
        expected, predicted, classes = found
        counts = torch.bincount(expected * classes + predicted, minlength=classes * classes)
        self._counts = counts if self._counts is None else self._counts + counts

    def rows(self) -> list[tuple[int, int, int]]:
        """(target, predicted, count) of the pairs that occurred."""
        if self._counts is None:
            return []
        counts = self._counts.cpu()
        classes = round(len(counts) ** 0.5)
        return [(k // classes, k % classes, int(counts[k])) for k in counts.nonzero().flatten().tolist()]


def added_up(tables: Iterable[Iterable[Iterable[int]]]) -> list[tuple[int, int, int]]:
    """The sum of what :meth:`Confusion.rows` gave of several parts of the data.

    >>> added_up([[(0, 0, 2)], [(0, 0, 1), (0, 1, 4)]])
    [(0, 0, 3), (0, 1, 4)]
    """
    counts: Counter[tuple[int, int]] = Counter()
    for table in tables:
        for target, predicted, count in table:
            counts[target, predicted] += count
    return [(target, predicted, count) for (target, predicted), count in sorted(counts.items())]


def predictions(loss: Any, outputs: Any, targets: Any, *, labels: bool = False) -> tuple[Tensor, Tensor, int] | None:
    """The classes that were expected and predicted, flat, and how many classes there are; None where there are none.

    Args:
        loss: says what the outputs mean: scores of classes, logits or probabilities of one class.
        outputs: of shape (batch, classes, ...), or (batch,) or (batch, 1) for two classes.
        targets: labels of shape (batch, ...), or 0 and 1 in the shape of the outputs.
        labels: whether the targets are known to be labels where the loss does not say so.

    >>> expected, predicted, classes = predictions(
    ...     torch.nn.BCEWithLogitsLoss(), torch.tensor([[-1.0], [2.0]]), torch.tensor([[1.0], [1.0]])
    ... )
    >>> expected.tolist(), predicted.tolist(), classes
    ([1, 1], [0, 1], 2)
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return None
    kind = family(loss)
    if kind == "binary":
        single = outputs.shape == targets.shape and outputs.ndim > 0 and outputs.numel() == outputs.shape[0]
        if not single or not bool(((targets == 0) | (targets == 1)).all()):
            return None
        return targets.flatten().long(), (outputs.flatten() > (0.5 if on_probabilities(loss) else 0.0)).long(), 2
    if kind != "classes" and not (kind == "unknown" and labels):
        return None
    fits = outputs.ndim > 1 and targets.shape == (outputs.shape[0], *outputs.shape[2:])
    if not fits or targets.is_floating_point() or not 1 < outputs.shape[1] <= MOST_CLASSES:
        return None
    classes = outputs.shape[1]
    expected, predicted = targets.flatten().long(), outputs.argmax(1).flatten()
    count = (expected >= 0) & (expected < classes) & (expected != getattr(loss, "ignore_index", -100))
    return expected[count], predicted[count], classes
