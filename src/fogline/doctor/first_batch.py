"""The first batch of a watched loop: what it would explain if the loop were not to learn."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fogline.data import losses
from fogline.doctor import task_findings
from fogline.doctor.finding import Finding
from fogline.doctor.scaling import NORMS, InputExcess, TargetExcess, input_excess, scales_of, target_excess
from fogline.doctor.series import ends, finite
from fogline.doctor.sorting import between_batches

LEARNS = 0.5
"""Of the loss of the best constant answer: a loop whose loss ends above it has learned little."""
NOTHING = 0.9
"""Above this share it has learned nothing to speak of."""
_FAR_FROM_ALL, _FAR_BEYOND = 0.2, 10.0
"""Above this share a loop has not learned all that most have to learn; where its numbers are so many times too large or
too uneven that is laid to them."""
_SORTED = 0.3
"""Of the targets' variance between batches; samplers that draw several rows of each of a few classes stay below it."""
_FEWEST_LABELS = 100
_CLOSE = 16
_SAME = 0.01
_FEW_CLASSES = 20
_OUTWEIGHS = 3.0  # times the loss that terms are added to
_FAR_OFF, _OF_A_NORMAL = 5.0, 0.6745  # deviations; the median distance from the middle, in them
_FEWEST_ROWS, _MOST_ROWS, _MOST_COLUMNS = 8, 512, 64


@dataclass(frozen=True)
class Added:
    """A loss to which a loop adds terms that do not depend on the outputs.

    Attributes:
        alone: the loss without them, at first.
        terms: what they added to it, at first.
        late: the loss without them, of the last steps that were looked at.
    """

    alone: float
    terms: float
    late: float


@dataclass(frozen=True)
class FirstBatch:
    """What one batch shows of inputs and targets, and a few more of targets.

    Attributes:
        loss_fn: the loss of the loop.
        inputs, targets: how far they are from what first weights are made for; None where that is unknown, or well.
        seen: the targets of this batch and of others, as far as they were looked at, by the step they were used in.
        ratio: of the recorded losses to those of ``loss_fn``; NaN where they have further terms.
        added: those terms, where they are known.
    """

    loss_fn: Any
    inputs: InputExcess | None
    targets: TargetExcess | None
    seen: Mapping[int, tuple[Tensor, ...]] = field(default_factory=dict)
    ratio: float = 1.0
    added: Added | None = None

    def and_also(self, step: int, targets: Tensor) -> FirstBatch:
        """With the targets of another batch; a step may be taken on several."""
        if not targets.ndim:
            return self
        return replace(self, seen={**self.seen, step: (*self.seen.get(step, ()), targets.detach()[:_MOST_ROWS].cpu())})

    @property
    def _batches(self) -> list[Tensor]:
        """The targets of each step; none where they are of several shapes."""
        alike = len({targets.shape[1:] for step in self.seen.values() for targets in step}) == 1
        return [torch.cat(list(step)) for step in self.seen.values()] if alike else []

    @property
    def numbers(self) -> bool:
        """Whether the loss compares number with number."""
        return losses.family(self.loss_fn) == "elementwise"

    def explains(
        self, step: int, recorded: NDArray[np.float64], *, chooses: bool, carries: bool = False
    ) -> Iterator[Finding]:
        """Findings for a loop that ended with these losses; but for the order of the rows, none where it learned.

        Args:
            step: its last one.
            recorded: the losses.
            chooses: the model answers rows, each by itself, and could tell them apart.
            carries: it is given what it said of the batch before, so that batches have to follow one another.
        """
        batches = self._batches
        kind = losses.family(self.loss_fn)
        if kind in ("classes", "binary") and chooses and sum(map(len, batches)) >= _FEWEST_LABELS:
            labels = torch.cat(batches)
            first = labels.flatten()[0]
            whole = not labels.is_floating_point() or (kind == "binary" and float(first) in (0.0, 1.0))
            if whole and bool((labels == first).all()):
                yield task_findings.constant_targets(step, len(labels))
        close = [k for k, at in enumerate(self.seen) if at < _CLOSE or not self.numbers]
        batches = [batches[k] for k in close] if batches else []  # numbers that a network makes itself drift
        sorted_by = between_batches([_columns(targets) for targets in batches]) if batches else None
        in_order = sorted_by is not None and sorted_by.share > _SORTED and not carries
        if sorted_by is not None and in_order and not self._learns_within(batches, recorded):
            yield task_findings.unshuffled(step, sorted_by)
        yield from self._outweighed(step, recorded)
        left = self.share_left(recorded)
        share = self._share_alone() if left is None else left
        if share is None or share <= _FAR_FROM_ALL:
            return
        if self.inputs is not None and (share > LEARNS or self.inputs.times > _FAR_BEYOND):
            yield task_findings.unscaled_input(step, self.inputs)
        if self.targets is not None and (share > LEARNS or self.targets.times > _FAR_BEYOND):
            yield task_findings.unscaled_target(step, self.targets)
        if share > NOTHING and self.numbers and any(_one_hot(targets) for targets in batches):
            yield task_findings.one_hot_numbers(step, losses.name(self.loss_fn), share)
        if left is not None and left > NOTHING and _reduction(self.loss_fn) == "sum":
            yield task_findings.summed(step, sum(map(len, batches)) / len(batches), left)

    def _learns_within(self, batches: Sequence[Tensor], recorded: NDArray[np.float64]) -> bool:
        """Whether the rows of a batch are told from one another, whatever the batches differ in.

        Of labels that is not known: batches of one class have a low loss that the next one undoes.
        """
        known = finite(recorded)
        if not self.numbers or not len(known):
            return False
        within = _constant(self.loss_fn, [t.double() - t.double().mean(0) for t in batches])
        late = ends(known)[1] / self.ratio
        return within is not None and late < LEARNS * within

    def _outweighed(self, step: int, recorded: NDArray[np.float64]) -> Iterator[Finding]:
        """Terms larger than the loss they are added to, which all of the descent went into."""
        added, left, known = self.added, self._share_alone(), finite(recorded)
        if added is None or left is None or not len(known):
            return
        terms = ends(known)[1] - added.late
        much = LEARNS if added.terms > _OUTWEIGHS * added.alone else NOTHING
        if left > much and added.terms > added.alone and terms < added.terms / 2:
            yield task_findings.outweighed(step, added.terms / added.alone, left)

    def _share_alone(self) -> float | None:
        """The same of a loss to which terms are added, without these."""
        constant = _constant(self.loss_fn, self._batches)
        if self.added is None or constant is None or not constant > 0:
            return None
        return _share(self.added.late, constant, _floor(self.loss_fn, self._batches))

    def rarest(self) -> tuple[float, int] | None:
        """How often the rarest class was seen, against one in k of the labels, and in how many rows.

        None where the targets are no labels.
        """
        labels = [t.reshape(-1) for t in self._batches]
        if losses.family(self.loss_fn) not in ("classes", "binary") or sum(map(len, labels)) < _FEWEST_LABELS:
            return None
        together = torch.cat(labels)
        values, counts = torch.unique(together, return_counts=True)
        whole = bool((values == values.round()).all())
        rows = int(counts.min())
        few = 1 < len(values) <= _FEW_CLASSES  # of more, as of words and letters, some are always rare
        return (rows * len(values) / len(together), rows) if whole and few else None

    def share_left(self, recorded: NDArray[np.float64]) -> float | None:
        """The last losses as a share of that of the best constant answer; None where one of them is unknown."""
        known = finite(recorded)
        batches = self._batches
        if self.numbers and batches and between_batches([_columns(targets) for targets in batches]) is not None:
            return None  # the targets move, as those of a network that learns from itself
        if batches and all(bool((targets == batches[0].reshape(-1)[0]).all()) for targets in batches):
            return None  # a constant answer is perfect, as of pairs of which the first is always to rank above
        constant = _constant(self.loss_fn, batches)
        if constant is None or not constant * self.ratio > 0 or not len(known):
            return None
        return _share(ends(known)[1] / self.ratio, constant, _floor(self.loss_fn, batches))

    @property
    def bounds_errors(self) -> bool:
        """Whether a mean loss of ln 2 is the least of answers that are all wrong: one label a row, none weighed."""
        loss_fn, shapes = self.loss_fn, {targets.shape[1:].numel() for step in self.seen.values() for targets in step}
        plain = getattr(loss_fn, "weight", None) is None and getattr(loss_fn, "pos_weight", None) is None
        smooth = bool(getattr(loss_fn, "label_smoothing", 0.0)) or _reduction(loss_fn) != "mean"
        labels = losses.family(loss_fn) in ("classes", "binary") and shapes == {1}
        return labels and plain and not smooth and abs(self.ratio - 1) < _SAME

    @property
    def known(self) -> bool:
        """Whether it is a loss whose best constant answer is known, and targets were seen."""
        return bool(self.seen) and losses.family(self.loss_fn) in ("classes", "binary", "elementwise")


def look(
    model: nn.Module, loss_fn: Any, given: Sequence[Any], outputs: Tensor, targets: Tensor | None, step: int,
    received: Tensor | None = None,
) -> FirstBatch:  # fmt: skip
    """Look at a batch before any step was taken on it.

    Args:
        given: positional arguments of the model.
        received: what its first layer was given; None where that was not seen.
        outputs: its answers, (b, ...).
        targets: what they are compared with; None where that is unknown.
    """
    numbers = targets is not None and losses.family(loss_fn) == "elementwise"
    excess = _targets(outputs, targets, loss_fn) if numbers and targets is not None else None
    inputs = _inputs(model, given[0], received) if given and isinstance(given[0], Tensor) else None
    found = FirstBatch(loss_fn, inputs, excess)
    return found if targets is None else found.and_also(step, targets)


def _inputs(model: nn.Module, inputs: Tensor, received: Tensor | None) -> InputExcess | None:
    """How far inputs are from what first weights are made for, unless the model brings them there by itself."""
    first = next((m for m in model.modules() if isinstance(m, NORMS) or any(True for _ in m.parameters(False))), None)
    if not inputs.is_floating_point() or len(inputs) < _FEWEST_ROWS or isinstance(first, (*NORMS, nn.Embedding)):
        return None
    known = [inputs] if received is None or not received.is_floating_point() else [inputs, received]
    seen = [input_excess(scales_of(one.detach()[:_MOST_ROWS].cpu(), first)) for one in known]
    return seen[0] if all(excess.times > 1 for excess in seen) else None


def _targets(outputs: Tensor, targets: Tensor, loss_fn: Any) -> TargetExcess | None:
    if outputs.shape != targets.shape or len(targets) < _FEWEST_ROWS or not targets.is_floating_point():
        return None
    found, wanted = (
        x.detach()[:_MOST_ROWS].reshape(min(len(x), _MOST_ROWS), -1).cpu().double() for x in (outputs, targets)
    )
    if wanted.shape[1] > _MOST_COLUMNS or not bool(torch.isfinite(found).all() & torch.isfinite(wanted).all()):
        return None
    if isinstance(loss_fn, (nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)):  # which hears the few far off no louder
        middle = wanted.median(0).values
        spread = (wanted - middle).abs().median(0).values / _OF_A_NORMAL
        reach = torch.where(spread > 0, _FAR_OFF * spread, torch.inf)
        wanted = wanted.clamp(middle - reach, middle + reach)
    excess = target_excess(wanted, found)
    return excess if excess is not None and excess.times > 1 else None


def _columns(targets: Tensor) -> Tensor:
    """Columns of numbers: one a class for labels."""
    if targets.is_floating_point():
        return targets.reshape(len(targets), -1)[:, :_MOST_COLUMNS]
    labels = targets.reshape(len(targets), -1)[:, 0]
    return (labels[:, None] == torch.arange(_MOST_COLUMNS)).float()


def _reduction(loss_fn: Any) -> str:
    return str(getattr(loss_fn, "reduction", "mean"))


def _constant(loss_fn: Any, batches: Sequence[Tensor]) -> float | None:
    """Loss of the best constant answer to a batch, the variance or the entropy of the targets; None if unknown."""
    kind, reduction = losses.family(loss_fn), _reduction(loss_fn)
    if reduction not in ("mean", "sum") or sum(map(len, batches)) < _FEWEST_ROWS:
        return None
    targets = torch.cat(list(batches))
    times = targets.numel() / len(batches) if reduction == "sum" else 1.0
    if isinstance(loss_fn, nn.MSELoss):
        return times * float(targets.double().var(0).mean())
    if kind == "elementwise" and isinstance(loss_fn, nn.Module) and targets.is_floating_point():
        return times * _best_number(loss_fn, targets.double().reshape(len(targets), -1))
    if kind == "classes" and not targets.is_floating_point():
        return _entropy(loss_fn, targets.reshape(-1), times)
    if kind == "binary" and getattr(loss_fn, "weight", None) is None:
        raised = getattr(loss_fn, "pos_weight", None)
        share, more = targets.double().mean().clamp(1e-12, 1 - 1e-12), 1.0
        if raised is not None:
            if raised.numel() != 1:
                return None
            more = float(raised)
        said = more * share / (more * share + 1 - share)
        return times * float(-(more * share * said.log() + (1 - share) * (1 - said).log()))
    return None


def _share(loss: float, constant: float, floor: float) -> float | None:
    """A loss over that of the best constant answer, of what can be learned of it."""
    return (loss - floor) / (constant - floor) if constant - floor > _SAME * constant else None


def _floor(loss_fn: Any, batches: Sequence[Tensor]) -> float:
    """What the best answers get where targets are shares between no and yes, such as grey pixels: their entropy."""
    targets = torch.cat(list(batches)).double()
    if losses.family(loss_fn) != "binary" or not bool(((targets >= 0) & (targets <= 1)).all()):
        return 0.0
    times = targets.numel() / len(batches) if _reduction(loss_fn) == "sum" else 1.0
    if getattr(loss_fn, "pos_weight", None) is not None or getattr(loss_fn, "weight", None) is not None:
        return 0.0
    return times * float((torch.special.entr(targets) + torch.special.entr(1 - targets)).mean())


def _best_number(loss_fn: nn.Module, targets: Tensor) -> float:
    """Of a loss that compares number with number: the least that one and the same answer to all rows gets."""
    each = copy.copy(loss_fn)
    each.reduction = "none"  # type: ignore[assignment]
    answers = torch.cat([targets.quantile(torch.linspace(0, 1, 33, dtype=targets.dtype), dim=0), targets.mean(0)[None]])
    lost = [each(answer.expand_as(targets), targets).mean(0) for answer in answers]
    return float(torch.stack(lost).amin(0).mean())


def _entropy(loss_fn: Any, labels: Tensor, times: float) -> float | None:
    """Of the labels, as the loss weighs and smooths them."""
    weight, smooths = getattr(loss_fn, "weight", None), float(getattr(loss_fn, "label_smoothing", 0.0))
    if weight is not None and smooths:
        return None  # the best answer has no closed form that is worth its lines
    labels = labels[labels != getattr(loss_fn, "ignore_index", -100)]
    if not len(labels) or int(labels.min()) < 0:
        return None
    counts = torch.bincount(labels).double()
    if weight is not None:
        if times != 1.0 or len(weight) < len(counts):
            return None
        counts = counts * weight.detach().cpu().double()[: len(counts)]
    shares = counts / counts.sum()
    if smooths:
        shares = (1 - smooths) * shares + smooths / len(shares)
    return times * float(-(shares * shares.clamp_min(1e-12).log()).sum())


def _one_hot(targets: Tensor) -> bool:
    """Whether each row is a one among zeros."""
    rows = targets.reshape(len(targets), -1)
    return rows.shape[1] > 2 and bool(((rows == 0) | (rows == 1)).all() & (rows.sum(1) == 1).all())
