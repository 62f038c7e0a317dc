"""What every example did: the table, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fogline._examples.dynamics import Floats, Record, summarise
from fogline._examples.edits import Edits, Label, edit_columns
from fogline._examples.kept import keep_ranking, kept_ranking
from fogline._examples.query import query
from fogline._examples.ranking import Ranking, rank_labels
from fogline.record.store import Table
from fogline.run import Run

if TYPE_CHECKING:
    from fogline._examples.retrain import Retrained
    from fogline._examples.spaces import Spaces
    from fogline.recipe import Recipe
    from fogline.task import Task

# What looks at the data is imported where it does: the record is read without PyTorch.

_NEIGHBOURS = 10


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


class Examples:
    """What every example of a run did; made by :func:`fogline.examples`.

    Attributes:
        run: the run.
        task: what it was trained on, or None: then nothing that looks at the data itself can be asked.
        record: the recorded epochs.
    """

    def __init__(
        self, run: Run, record: Record, task: Task | None, columns: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        self.run, self.record, self.task = run, record, task
        self.columns = dict(columns or {})
        self.spaces = None if task is None else _spaces(run, record, task)

    def __len__(self) -> int:
        return self.record.count

    def __repr__(self) -> str:
        return f"Examples({str(self.run.folder)!r}, {len(self):,} examples, {len(self.record.epochs)} epochs)"

    @cached_property
    def ranking(self) -> Ranking:
        """The ranking of the labels; with a task the neighbours of each example have a say.

        That ranking is kept in the run, and is the one without a task from then on, until more epochs are recorded.
        """
        if self.spaces is None:
            return kept_ranking(self.run.folder) or rank_labels(self.record)
        from fogline._examples.neighbours import nearest

        found = rank_labels(self.record, [nearest(rows, k=_NEIGHBOURS)[0] for rows in self.spaces.train()])
        keep_ranking(self.run.folder, found)
        return found

    @cached_property
    def table(self) -> Table:
        """One row an example."""
        count = len(self)
        found: dict[str, NDArray[Any]] = {"example": np.arange(count)}
        targets = self.record.targets
        if targets is not None and targets.ndim == 1:
            found["target"] = targets
        found |= summarise(self.record).columns
        if self.record.kind == "classification" and "target" in found:
            ranked = self.ranking
            flagged = ranked.probability > 0.5
            found |= {
                "margin": ranked.margin,
                "wrong": ranked.wrong,
                "label_error": ranked.probability,
                "likely": np.where(flagged & (ranked.likely >= 0), ranked.likely, found["target"]),
                "rare": ranked.rare,
            }
            if self.record.classes:
                names = np.array([*self.record.classes, None], dtype=object)
                found |= {f"{name}_class": names[found[name]] for name in ("target", "predicted", "likely")}
        return Table(found | self.columns)

    def label_errors(self) -> LabelErrors:
        """Labels by how likely they are wrong, how many are, and what they should be.

        Raises:
            ValueError: the run was no classification.
        """
        if self.record.kind != "classification":
            raise ValueError(f"expected a run of a classification, received one of {self.record.kind}")
        ranked = self.ranking
        order = np.argsort(-ranked.score, kind="stable")
        return LabelErrors(
            order,
            ranked.probability[order],
            ranked.likely[order],
            ranked.count,
            ranked.interval,
            int((ranked.probability > 0.5).sum()),
        )

    def sql(self, text: str) -> Table:
        """Answer a ``select`` over the table ``examples``: :attr:`table`, and in ``edit`` and ``edit_label`` what was
        decided about each.

        Raises:
            ValueError: it is no select, or names what is not there.
        """
        return query({**self.table.columns, **edit_columns(self.edits.table, len(self))}, text)

    def neighbours(self, example: int, k: int = 10) -> Table:
        """The training examples nearest to one of them: ``example``, ``distance``, nearest first.

        Raises:
            IndexError: there is no such example.
            ValueError: the run has no task.
        """
        if not 0 <= example < len(self):
            raise IndexError(f"expected an example from 0 to {len(self) - 1}, received {example}")
        from fogline._examples.neighbours import nearest

        rows = self._spaces().train()[0]
        near, far = nearest(rows[example : example + 1], rows, k + 1)
        other = near[0] != example
        return Table({"example": near[0][other][:k], "distance": far[0][other][:k]})

    @property
    def edits(self) -> Edits:
        """What was decided about examples: relabelled, left out, kept; the data itself is never changed."""
        return Edits(self.run.folder)

    def edit(self, ids: Iterable[int], action: str, labels: Label | Sequence[Label] | None = None) -> None:
        """Decide about examples: "relabel" with labels, "drop" or "keep"; ``examples.edits.undo()`` takes it back.

        Args:
            ids: their positions in the training data.
            action: "relabel", "drop" (left out when retraining) or "keep" (looked at, and right as it is).
            labels: to relabel, one for all or one for each: class names or numbers, or numbers to predict.

        Raises:
            ValueError, TypeError: examples, labels or an action that there are not.
        """
        self.edits.edit(ids, action, labels)

    def retrain(
        self, task: Task | None = None, recipe: Recipe | None = None, seeds: int | Sequence[int] = 3
    ) -> Retrained:
        """Train with the edits and without, from the same seeds, and compare the held-out scores.

        Args:
            task: by default the one of the run.
            recipe: by default that of the run with its resolved values: nothing is measured again.
            seeds: how many, or which; twice as many runs are trained.

        Returns:
            ``differences`` with their intervals, and a sentence for each as text.

        Raises:
            ValueError: nothing was edited, no task is at hand, nothing is held out, or the data is not that of the run.
        """
        from fogline._examples.retrain import retrain

        return retrain(self.run, task or self.task, recipe, seeds)

    def _spaces(self) -> Spaces:
        if self.spaces is None:
            raise ValueError(
                "expected a run with its task, received one that was only opened; give it as "
                "fogline.examples(run, task=task)"
            )
        return self.spaces


def _spaces(run: Run, record: Record, task: Task) -> Spaces:
    from fogline._examples.spaces import Spaces

    return Spaces(run, record, task)
