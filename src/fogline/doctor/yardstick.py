"""What trials are compared by: a score of outputs against targets that does not depend on the loss.

A loss can be wrong, so it cannot judge. Scores lie between -1 and 1: 0 is what the best constant prediction gets, 1 is
perfect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fogline.data import losses
from fogline.doctor.questions import (
    FAR_OFF,
    MOST_NUMBERS,
    asks_for_the_next,
    compares_columns,
    compares_rows,
    does_without,
    goes_round,
    is_distance,
    is_lopsided,
    of_any_length,
    of_any_level,
    prefers,
    reads_every_column,
    robust,
    takes_a_side,
    tells_columns_apart,
    tells_places_apart,
    wants_more_than_targets,
    weighs_rows,
)

Work = Literal["classes", "one_hot", "binary", "regression", "other"]
"""What the targets are: whole-number labels; rows of probabilities that sum to 1; numbers of which there are two
different ones (in any number of columns); other numbers; anything else, judged by its loss."""

NAMES = {
    "classes": "skill (balanced accuracy above chance)",
    "one_hot": "skill (balanced accuracy above chance)",
    "binary": "skill (ranking and balanced accuracy above chance)",
    "regression": "skill (share of variance explained)",
    "other": "skill (share of a constant answer's loss that is gone)",
}


_FEW_FAR_OFF = 0.1  # share of the rows
_FEWEST_TO_BOUND = 20  # rows
_TO_A_DEVIATION = 1.4826  # from the median absolute value of a normal distribution


def work_of(targets: Any, loss: Any) -> Work:
    """What kind of work the targets are for.

    >>> work_of(torch.tensor([0, 2, 1]), None), work_of(torch.tensor([[0.0], [1.0]]), None)
    ('classes', 'binary')
    """
    if losses.family(loss) == "on_batch" or not isinstance(targets, Tensor) or targets.is_complex():
        return "other"
    if not targets.is_floating_point():
        if losses.family(loss) in ("binary", "elementwise") and int(torch.unique(targets).numel()) > 2:
            return "regression"
        return "classes"
    found = targets[torch.isfinite(targets)]
    if not found.numel():
        return "regression"
    if targets.ndim == 2 and targets.shape[1] > 1 and _probabilities(targets):
        return "one_hot"
    return "binary" if int(torch.unique(found[:20_000]).numel()) == 2 and _two(found) else "regression"


def _probabilities(targets: Tensor) -> bool:
    sums = targets.sum(1)
    return bool((targets >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _two(values: Tensor) -> bool:
    low, high = values.min(), values.max()
    return bool(((values == low) | (values == high)).all())


@dataclass(frozen=True)
class Yardstick:
    """Scores the outputs of a model, in whatever form it gives them.

    Attributes:
        work: what the targets are.
        classes: how many there are in all the data, where they are labels.
        values: the two that there are, where there are but two.
        bounds: least and greatest number of each column that counts, where the loss hears a few that lie far off no
            louder than others: of squared errors those would be nearly all.
        counts: whether outputs above 0 are counted, of which there are as many as the grade: the loss takes thresholds
            between ordered classes. Of the work only that is known.
        several: whether the loss is a sum of losses that compare several targets, each of which counts as much as the
            others however large its loss is.
        logs: whether yes or no is answered by the logarithm of a probability, to a loss of one's own.
    """

    work: Work
    classes: int = 0
    values: tuple[float, float] = (0.0, 1.0)
    bounds: tuple[tuple[float, float], ...] = ()
    counts: bool = False
    several: bool = False
    logs: bool = False

    @classmethod
    def of(cls, targets: Any, loss: Any) -> Yardstick:
        """That of a task, from all its training targets."""
        work = work_of(targets, loss)
        if work == "classes":
            used = losses.labels_that_count(loss, targets)
            return cls(work, int(used.max()) + 1 if used.numel() else 0)
        if work == "one_hot":
            return cls(work, int(targets.shape[1]))
        if work == "binary":
            found = targets[torch.isfinite(targets)]
            return cls(work, 2, (float(found.min()), float(found.max())))
        return cls(work, bounds=_bounds(targets, loss) if work == "regression" else ())

    def for_outputs(self, outputs: Any, targets: Any, every: Any, loss: Any) -> Yardstick:
        """As a loss of one's own must mean it: whole numbers that a single number answers are counts, not labels.

        Args:
            outputs, targets: of a batch.
            every: the targets of all rows.
            loss: of one's own.
        """
        if self.work != "classes" or not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            return self
        single = outputs.numel() == targets.numel() and len(torch.unique(every)) > 2
        return Yardstick("regression", bounds=_bounds(every.double(), loss)) if single else self

    @property
    def name(self) -> str:
        if self.several:
            return "skill (halfway between the mean and the worst of its targets)"
        return NAMES["regression" if self.counts else self.work]

    @property
    def scores(self) -> bool:
        """Whether it tells from the outputs how good they are."""
        return self.work != "other" or self.counts

    def reads(self, outputs: Any, targets: Any, loss: Any) -> bool:
        """Whether these outputs say what the targets are; else only the loss can tell how good they are.

        That is asked of a loss of one's own only: it may take thresholds between ordered classes, compare the rows of a
        batch with one another, as those of survival and ranking do, or hear no scale.
        """
        if losses.family(loss) != "unknown" or not isinstance(targets, Tensor):
            return True
        if not isinstance(outputs, Tensor):
            return False  # a dict of outputs, of which only the loss knows what is for what
        if does_without(outputs.detach(), targets, loss):
            return False
        if self.work == "classes":
            laid, labels = _laid_out(outputs, targets)
            if laid.ndim == labels.ndim or laid.shape[1] == 1:
                return bool(laid.numel() == labels.numel())
            fit = laid.shape[1] >= self.classes and laid.shape[:1] + laid.shape[2:] == labels.shape
            if not fit or asks_for_the_next(outputs.detach(), laid.shape[1], targets, loss):
                return False
            known = takes_a_side(outputs.detach(), laid.shape[1], targets, loss)
            return known and (outputs.ndim > 2 or tells_columns_apart(outputs.detach(), targets, loss))
        if self.work == "binary":
            numbers, asked = outputs[:1].numel(), targets[:1].numel()
            pairs = outputs.ndim == 2 and numbers == 2 and asked == 1
            return (numbers == asked or pairs) and not is_distance(outputs, targets, loss)
        if self.work != "regression":
            return True
        said, asked = outputs[:1].numel(), targets[:1].numel()
        if said != asked and asked > 1:
            given = outputs.detach()
            if said > 1 or not reads_every_column(given, targets, loss) or weighs_rows(given, targets, loss):
                return False
        if said == asked > 1 and wants_more_than_targets(targets, loss):
            return False
        few = targets.ndim == 2 and 1 < targets.shape[1] <= MOST_NUMBERS and outputs.shape == targets.shape
        if few and not compares_columns(targets, loss):
            return False
        points = targets.ndim > 2 and targets.shape[1] > 1 and outputs.shape == targets.shape
        if points and not tells_places_apart(targets, loss):
            return False
        if said == asked and goes_round(targets, loss):
            return False
        one_number = asked == 1
        return not (compares_rows(outputs.detach(), targets, loss) or (one_number and of_any_length(targets, loss)))

    def counted(self, targets: Tensor) -> Tensor:
        """Which rows count, (n,) bool: those with labels that are none of the classes stand for no answer."""
        if self.work == "classes":
            return ((targets >= 0) & (targets < self.classes)).reshape(len(targets), -1).any(1)
        if not self.bounds:
            return torch.ones(len(targets), dtype=torch.bool)
        low, high = torch.tensor(self.bounds, dtype=torch.float64).unbind(1)
        wide = targets.double().reshape(len(targets), -1)
        return ((wide >= low) & (wide <= high)).all(1)

    def labels(self, targets: Any) -> Tensor | None:
        """The class of each row, (n,) int64; None where targets are no labels, or some are none."""
        if not isinstance(targets, Tensor) or self.work not in ("classes", "binary", "one_hot"):
            return None
        if self.work == "one_hot":
            return targets.argmax(1)
        if targets.numel() != len(targets):
            return None
        flat = targets.reshape(-1)
        if self.work == "binary":
            return (flat > sum(self.values) / 2).long()
        return flat.long() if bool((flat >= 0).all()) else None

    def __call__(self, outputs: Any, targets: Tensor, loss: Any) -> float:
        """The score of a batch of outputs; -1 where they cannot be read or are not finite.

        Args:
            outputs: (b, classes, ...) scores of labels; one or two columns for yes/no; numbers.
            targets: (b, ...).
            loss: tells logits from probabilities and from numbers; ``loss.turned`` gives the targets it is told where
                those are others.
        """
        targets = loss.turned(targets) if hasattr(loss, "turned") else targets
        if not isinstance(outputs, Tensor) or not bool(torch.isfinite(outputs).all()):
            return -1.0
        outputs = outputs.detach().float()
        if self.counts:
            return _explained((outputs > 0).sum(1, keepdim=True), targets)
        if self.work == "classes":
            return self._labels(outputs, targets, loss)
        if self.work == "one_hot":
            return self._labels(outputs, targets.argmax(1), loss)
        if self.work == "binary":
            return self._binary(outputs, targets, loss)
        if self.bounds and len(outputs) == len(targets):
            rows = self.counted(targets)
            outputs, targets = outputs[rows], targets[rows]
        if _is_log_rate(loss):
            outputs = outputs.exp()
        wide = outputs.reshape(len(outputs), -1)
        if losses.family(loss) == "unknown" and wide.shape[1] > 1 == targets[:1].numel() and not _whole(targets):
            # A loss of one's own, for more than one number: a mean and a variance, or quantiles. One of them answers.
            return max(_explained(wide[:, k : k + 1], targets) for k in range(min(MOST_NUMBERS, wide.shape[1])))
        if losses.family(loss) == "unknown" and outputs.shape == targets.shape and of_any_length(targets, loss):
            outputs = _as_long_as(targets, outputs)
        if losses.family(loss) == "unknown" and outputs.shape == targets.shape and of_any_level(targets, loss):
            outputs = outputs + (targets.to(outputs) - outputs).mean(1, keepdim=True)
        of_its_own = losses.family(loss) == "unknown" and outputs.numel() == targets.numel()
        if of_its_own and is_lopsided(targets, loss):  # what is wanted is above the mean, or below
            outputs = outputs + (targets.to(outputs) - outputs.reshape(targets.shape)).mean()
        explained = _explained(outputs, targets)
        # A loss of one's own may want outputs on a scale of their own: then their order tells.
        own_scale = losses.family(loss) == "unknown" and prefers(loss, outputs, targets)
        return max(explained, _ordered(outputs, targets)) if own_scale else explained

    def _labels(self, outputs: Tensor, labels: Tensor, loss: Any) -> float:
        outputs, labels = _laid_out(outputs, labels)
        counted = labels != getattr(loss, "ignore_index", -100)
        width = outputs.shape[1] if outputs.ndim > labels.ndim else 1
        if width == 1:  # one number for a label: yes/no, or the label itself
            flat = outputs.reshape(labels.shape)[counted]
            if self.classes == 2:
                return _ranked_and_right(flat, labels[counted] == 1, _threshold(flat, loss, (0.0, 1.0)))
            guessed = flat.round().clamp(0, self.classes - 1).long()
        else:
            if self.classes == 2 and width == 2:
                flat = (outputs[:, 1] - outputs[:, 0])[counted]
                return _ranked_and_right(flat, labels[counted] == 1, 0.0)
            guessed = outputs.argmax(1)[counted]
        _, inverse, sizes = torch.unique(labels[counted], return_inverse=True, return_counts=True)
        if not len(sizes):
            return -1.0
        right = torch.bincount(inverse[guessed == labels[counted]], minlength=len(sizes))
        chance = 1 / max(2, len(sizes))
        return (float((right / sizes).mean()) - chance) / (1 - chance)

    def _binary(self, outputs: Tensor, targets: Tensor, loss: Any) -> float:
        middle = sum(self.values) / 2
        wanted = targets.reshape(targets.shape[0], -1) > middle
        if outputs.ndim == 2 and outputs.shape[1] == 2 and wanted.shape[1] == 1:
            outputs = outputs[:, 1:] - outputs[:, :1]
            threshold = 0.0
        else:
            outputs = outputs.reshape(outputs.shape[0], -1)
            threshold = math.log(0.5) if self.logs else _threshold(outputs, loss, self.values)
        if outputs.shape != wanted.shape:
            return -1.0
        columns = [
            _ranked_and_right(outputs[:, k], wanted[:, k], threshold)
            for k in range(wanted.shape[1])
            if bool(wanted[:, k].any()) and not bool(wanted[:, k].all())
        ]
        return sum(columns) / len(columns) if columns else 0.0


def _laid_out(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs with the classes in their second place, and labels to match.

    A loss of one's own may take them with the classes last, (b, positions, classes), or all positions as rows.
    """
    if outputs.ndim == 2 and labels.ndim > 1 and len(outputs) == labels.numel() != len(labels):
        return outputs, labels.reshape(-1)
    if outputs.ndim > 2 and outputs.shape[:-1] == labels.shape and outputs.shape[2:] != labels.shape[1:]:
        return outputs.movedim(-1, 1), labels
    return outputs, labels


def error_of(rows: int, classes: int) -> float:
    """A generous standard error of a score on so many rows.

    An accuracy has at most 0.5 / sqrt(n), and the score stretches it by 1 / (1 - 1 / classes); half as much again for
    classes that are not equally common. The share of variance explained has about 1 / sqrt(n), more with long tails.
    """
    return (0.75 / (1 - 1 / classes) if classes > 1 else 1.5) / math.sqrt(max(1, rows))


def _threshold(outputs: Tensor, loss: Any, values: tuple[float, float]) -> float:
    family = losses.family(loss)
    if family == "elementwise":
        return sum(values) / 2
    if losses.on_probabilities(loss):
        return 0.5
    if family != "unknown":
        return 0.0
    within = bool((outputs >= 0).all()) and bool((outputs <= 1).all())
    return 0.5 if within and values[0] >= 0 else 0.0


def _ranked_and_right(outputs: Tensor, wanted: Tensor, threshold: float) -> float:
    """The mean of two scores: how well yes is ranked above no, and how often the right side is taken."""
    yes, no = int(wanted.sum()), int((~wanted).sum())
    if not yes or not no:
        return 0.0
    ranks = _ranks(outputs)
    area = (float(ranks[wanted].sum()) - yes * (yes + 1) / 2) / (yes * no)
    chosen = outputs > threshold
    balanced = (float(chosen[wanted].float().mean()) + float((~chosen[~wanted]).float().mean())) / 2
    return (2 * area - 1 + 2 * balanced - 1) / 2


def _whole(values: Tensor) -> bool:
    return not values.is_floating_point() or bool((values == values.round()).all())


def _explained(outputs: Tensor, targets: Tensor) -> float:
    wanted = targets.float().reshape(targets.shape[0], -1)
    found = outputs.reshape(outputs.shape[0], -1)
    if found.shape[1] > 1 and wanted.shape[1] == 1:  # scores of classes for whole numbers
        found = found.argmax(1, keepdim=True).float()
    if found.shape != wanted.shape:
        return -1.0
    finite = torch.isfinite(wanted).all(1)
    wanted, found = wanted[finite].double(), found[finite].double()
    if len(wanted) < 2:
        return -1.0
    squares, variance = (found - wanted).square().mean(0), wanted.var(0, correction=0)
    varied = variance > 0
    if not bool(varied.any()):
        return 0.0
    return float((1 - squares[varied] / variance[varied]).clamp(min=-1.0).mean())


def _bounds(targets: Tensor, loss: Any) -> tuple[tuple[float, float], ...]:
    """Between which numbers all but a few lie, where these few have most of the variance and the loss is robust."""
    wide = targets.detach().double().reshape(len(targets), -1)
    wide = wide[torch.isfinite(wide).all(1)]
    if len(wide) < _FEWEST_TO_BOUND or not wide.shape[1]:
        return ()
    middle = wide.median(0).values
    usual = _TO_A_DEVIATION * (wide - middle).abs().median(0).values
    if not bool((usual > 0).all()):
        return ()
    distance = (wide - middle) / usual
    farthest = distance.abs().amax(1)
    far, twice = farthest > FAR_OFF, int((farthest > 2 * FAR_OFF).sum())
    a_tail = 2 * twice <= int(far.sum())  # which thins out, as that of incomes; rows that are wrong lie apart
    carried = float(distance[far].square().sum() / distance.square().sum())
    few = 0 < int(far.sum()) <= _FEW_FAR_OFF * len(wide)
    if not few or a_tail or carried < 0.5 or not robust(targets, usual, loss):
        return ()
    low, high = middle - FAR_OFF * usual, middle + FAR_OFF * usual
    return tuple(zip(low.tolist(), high.tolist(), strict=True))


def _as_long_as(targets: Tensor, outputs: Tensor) -> Tensor:
    """The outputs in their own directions, row by row."""
    wanted, found = (rows.float().reshape(len(rows), -1).norm(dim=1) for rows in (targets, outputs))
    times: Tensor = wanted / found.clamp_min(1e-30)
    return outputs * times.reshape(-1, *[1] * (outputs.ndim - 1))


def _is_log_rate(loss: Any) -> bool:
    if isinstance(loss, nn.PoissonNLLLoss):
        return bool(loss.log_input)
    return loss is F.poisson_nll_loss


def _ordered(outputs: Tensor, targets: Tensor) -> float:
    """The squared rank correlation of one number an example, negative where the order is the reverse."""
    wanted, found = targets.double().reshape(len(targets), -1), outputs.double().reshape(len(outputs), -1)
    if wanted.shape != found.shape or wanted.shape[1] != 1 or len(wanted) < 2:
        return -1.0
    ranks = [_ranks(values[:, 0]) for values in (wanted, found)]
    centred = [rank - rank.mean() for rank in ranks]
    lengths = float(centred[0].norm() * centred[1].norm())
    correlation = float(centred[0] @ centred[1]) / lengths if lengths > 0 else 0.0
    return correlation * abs(correlation)


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1 on; ties share the mean of theirs."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = counts.cumsum(0).double() - (counts.double() - 1) / 2
    return ranks[inverse]
