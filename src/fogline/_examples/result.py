"""What every example did: the table, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fogline._examples.dynamics import Record, summarise
from fogline._examples.edits import Edits, Label, edit_columns
from fogline._examples.export import cleanlab_table, write_fiftyone, write_table
from fogline._examples.kept import keep_ranking, kept_ranking
from fogline._examples.label_errors import LabelErrors as LabelErrors
from fogline._examples.query import query
from fogline._examples.ranking import Ranking, rank_labels
from fogline.record.store import Table
from fogline.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from fogline._examples.retrain import Retrained
    from fogline._examples.spaces import Spaces
    from fogline.recipe import Recipe
    from fogline.task import Task

# PyTorch is imported by what looks at the data: the record of a run is read without.

_NEIGHBOURS = 10
_MOST_CLUSTERS = 20


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
        self.spaces: Spaces | None = None
        if task is not None:
            from fogline._examples.spaces import Spaces

            self.spaces = Spaces(run, record, task)

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
        found = rank_labels(self.record, self.near, self.near[-1] if self.spaces.inputs else None)
        keep_ranking(self.run.folder, found)
        return found

    @cached_property
    def near(self) -> list[NDArray[np.int64]]:
        """The ten nearest of each training example in each space there is, (N, 10); [] without a task."""
        if self.spaces is None:
            return []
        from fogline._examples.neighbours import nearest

        return [nearest(rows, k=_NEIGHBOURS)[0] for rows in self.spaces.spaces()]

    @cached_property
    def table(self) -> Table:
        """One row an example."""
        count = len(self)
        found: dict[str, NDArray[Any]] = {"example": np.arange(count)}
        targets = self.record.targets
        if targets is not None and targets.ndim == 1:
            found["target"] = targets
        found |= summarise(self.record)
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
        return LabelErrors.of(self._ranked())

    def sql(self, text: str) -> Table:
        """Answer a ``select`` over the table ``examples``: :attr:`table`, and in ``edit`` and ``edit_label`` what was
        decided about each.

        Raises:
            ValueError: it is no select, or names what is not there.
        """
        return query({**self.table.columns, **edit_columns(self.edits.table, len(self))}, text)

    def neighbours(self, example: int, k: int = 10) -> Table:
        """The training examples nearest to one of them by what the model makes of them, nearest first.

        Args:
            example: which.
            k: how many.

        Returns:
            ``example`` and ``distance``, from 0 (the same) to 2 (opposite).

        Raises:
            IndexError: there is no such example.
            ValueError: the run has no task.
        """
        if not 0 <= example < len(self):
            raise IndexError(f"expected an example from 0 to {len(self) - 1}, received {example}")
        from fogline._examples.neighbours import nearest

        rows = self._first_space()
        near, far = nearest(rows[example : example + 1], rows, k + 1)
        other = near[0] != example
        return Table({"example": near[0][other][:k], "distance": far[0][other][:k]})

    def outliers(self) -> Table:
        """Examples by how far they lie from all others, the loneliest first.

        Returns:
            ``example`` and ``score``: the mean distance to the ten nearest, over what that is for those ten; about 1 is
            usual (a simplified local outlier factor, Breunig et al., 2000).

        Raises:
            ValueError: the run has no task.
        """
        from fogline._examples.neighbours import nearest

        near, far = nearest(self._first_space(), k=_NEIGHBOURS)
        mean = far.mean(1)
        score = mean / np.maximum(mean[near].mean(1), 1e-12)
        order = np.argsort(-score, kind="stable")
        return Table({"example": order, "score": score[order]})

    def duplicates(self, within: float | None = None) -> Table:
        """Pairs of training examples that are nearly the same, the nearest first.

        Args:
            within: the largest distance, in units of the distance that is usual around the two; by default such that
                one example of a thousand has a neighbour so near by chance.

        Returns:
            ``first``, ``second`` and ``distance``; ``same_label``, where there are labels: a pair without has a wrong
            one.

        Raises:
            ValueError: the run has no task.
        """
        from fogline._examples.duplicates import near_by_chance, pairs

        spaces = self._spaces()
        rows, labels = spaces.looks["train"], spaces.labels("train")
        found = pairs(rows, None, near_by_chance(rows) if within is None else within)
        if labels is None:
            return found
        return Table({**found.columns, "same_label": labels[found["first"]] == labels[found["second"]]})

    def leaks(self, within: float | None = None, series: bool = False) -> Table:
        """Pairs of a training and a held-out example that show the same, the nearest first.

        Args:
            within: the largest distance, in units of the distance that is usual around the two; by default such that
                one example of a thousand has a neighbour so near by chance, and 1 in series. Larger values find more,
                and err more.
            series: pictures come in series, of eight or more frames of each thing: as :meth:`groups` says.

        Returns:
            ``train``, ``valid`` (positions in the two sets) and ``distance``. Where there are labels, pairs of one
            label alone are looked for.

        Raises:
            ValueError: the run has no task, or the task holds nothing out.
        """
        from fogline._examples.crossing import across
        from fogline._examples.duplicates import RARELY

        count, found = across(self._spaces(), within, RARELY, series=series)
        crossing = (found["first"] < count) & (found["second"] >= count)
        return Table(
            {
                "train": found["first"][crossing],
                "valid": found["second"][crossing] - count,
                "distance": found["distance"][crossing],
            }
        )

    def groups(self, within: float | None = None, series: bool = False) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The groups that nearly the same examples form, over both sets: a split should not cut through one.

        Args:
            within: the largest distance of a link, in units of what is usual; by default such that one example of two
                has a link by chance: what is joined wrongly does a split no harm, what is not joined does. In series 1.
            series: pictures come in series, of eight or more frames of each thing, as from a moving camera. Then how
                frames of one thing differ is learned from the pictures themselves, and what is far apart is joined over
                what lies between. Of copies in twos and threes, or among many single pictures, it joins far too much.
                Where hardly any example has company at all, nothing is learned.

        Returns:
            The number of the group of each training example, (N,), and of each held-out one, (M,).

        Raises:
            ValueError: the run has no task, or the task holds nothing out.
        """
        from fogline._examples.crossing import across
        from fogline._examples.duplicates import OFTEN, groups

        count, found = across(self._spaces(), within, OFTEN, series=series)
        total = count + len(self._spaces().looks["valid"])
        number = groups(total, found)
        return number[:count], number[count:]

    def slices(self, level: float = 0.05) -> Table:
        """Parts of the data that do worse than the rest by more than chance: by class, by column, by where they lie.

        What is compared is the share of the epochs before memorisation in which the prediction was wrong; of a
        regression the size of the residual, else the loss, in the mean over all epochs.

        Args:
            level: the share of slices found by chance among those returned is at most this.

        Returns:
            ``column``, ``value``, ``count``, ``mean``, ``rest`` (the mean of the rest) and ``p``, corrected for how
            many slices were tested; the surest first. Slices may overlap.
        """
        from fogline._examples.slices import badness, clusters, worse_slices

        columns: dict[str, NDArray[Any]] = dict(self.columns)
        judged = self.record.kind == "classification" and self.record.targets is not None
        if self.record.kind == "classification" and "target" in self.table.columns:
            named = "target_class" if "target_class" in self.table.columns else "target"
            columns["target"] = self.table[named]
        if self.spaces is not None:
            columns |= self.spaces.columns()
            if spaces := self.spaces.spaces():
                columns["cluster"] = clusters(spaces[0], min(_MOST_CLUSTERS, max(2, len(self) // 100)))
        return worse_slices(badness(self.record, self.ranking if judged else None), columns, level)

    def turning(self) -> Table:
        """Examples by how much of the gradient was theirs, the largest share first.

        The gradient is that of the example's own loss by the weights and biases of the last linear layer, its norm
        |p - y| sqrt(|h|^2 + 1) taken at the step that saw it, where h went into the layer and p - y is what
        cross-entropy sends back. It says who pulled, not whether the pull helped: wrong labels pull hardest.

        Returns:
            ``example``, ``gradient_norm`` (its mean over the epochs), ``share`` of the sum over all examples.

        Raises:
            ValueError: it was not recorded.
        """
        if not self.record.has("gradient_norm"):
            raise ValueError("expected a run that recorded gradient norms; the model has no last linear layer")
        norms = self.table["gradient_norm"].astype(np.float64)
        known = np.where(np.isfinite(norms), norms, 0.0)
        order = np.argsort(-known, kind="stable")
        return Table(
            {"example": order, "gradient_norm": norms[order], "share": known[order] / max(known.sum(), 1e-300)}
        )

    def export(self, path: str | Path) -> Path:
        """Write the table as ``.parquet``, ``.csv``, ``.tsv`` or ``.json`` (a row a line); returns the path.

        Raises:
            ValueError: another ending.
            OSError: it cannot be written.
        """
        return write_table(self.table, Path(path))

    def to_pandas(self) -> Any:
        """The table as a ``pandas.DataFrame``; pandas must be installed."""
        return self.table.to_pandas()

    def to_polars(self) -> Any:
        """The table as a ``polars.DataFrame``; polars must be installed."""
        import polars

        return polars.DataFrame(dict(self.table.columns))

    def to_cleanlab(self) -> Table:
        """The table that cleanlab's ``get_label_issues`` gives; ``.to_pandas()`` of it is its frame.

        Returns:
            ``is_label_issue``, ``label_quality``, ``given_label``, ``predicted_label``: a row an example.

        Raises:
            ValueError: the run was no classification.
        """
        ranked = self._ranked()
        return cleanlab_table(self.table["target"], ranked.likely, ranked.probability)

    def to_fiftyone(self, folder: str | Path, ids: ArrayLike | None = None) -> Path:
        """Write pictures and what is known of them as FiftyOne's ``FiftyOneImageClassificationDataset``.

        Args:
            folder: a new one; ``fiftyone.Dataset.from_dir`` reads it.
            ids: the examples to write; all by default.

        Raises:
            ValueError: the run has no task, or its inputs are no pictures of 1 or 3 channels.
            FileExistsError: the folder holds something.
        """
        pictures = self._spaces().pictures.get("train")
        if pictures is None or pictures.shape[1] not in (1, 3):
            raise ValueError("expected a task of pictures with 1 or 3 channels, received other inputs; use export()")
        chosen = np.arange(len(self)) if ids is None else np.asarray(ids, dtype=np.int64)
        names = self.record.classes or [str(k) for k in range(int(self.table["target"].max()) + 1)]
        return write_fiftyone(Path(folder), pictures, self.table, names, chosen)

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

    def _ranked(self) -> Ranking:
        if self.record.kind != "classification":
            raise ValueError(f"expected a run of a classification, received one of {self.record.kind}")
        return self.ranking

    def _first_space(self) -> Tensor:
        spaces = self._spaces().spaces()
        if not spaces:
            raise ValueError("expected a model with a linear layer, or inputs that are small arrays; received neither")
        return spaces[0]

    def _spaces(self) -> Spaces:
        if self.spaces is None:
            raise ValueError(
                "expected a run with its task, received one that was only opened; give it as "
                "fogline.examples(run, task=task)"
            )
        return self.spaces
