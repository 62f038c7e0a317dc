"""Losses of pairs that hold those for alike that lie apart: 0 and 1, or the places of a triple, the wrong way round."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data.source import leaves, rows_of, taken
from fogline.descent.randomness import private_randomness
from fogline.doctor.asked import with_leaves
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.causes.output.common import mismatched
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, ROWS, Evidence, Remedy, Rows, Suspicion
from fogline.doctor.heads import value
from fogline.doctor.reference import features
from fogline.task import OnBatch

_DRAWS = (0, 1, 2)
"""Seeds of first weights: what twins get by chance is not the same of all."""
_ROWS, _ASKED, _COMPARED = 8, 64, 2000
"""Rows that a loss of a batch is asked about one by one, and the model; and rows whose parts are compared."""
_FARTHER, _SURELY = 0.6, 4.0
"""How often pairs that are said to be alike must lie farther apart than others, and the standard errors beyond half."""
_ALIKE = 1e-3
"""Of the spread of all pairs, what twins may differ by."""


class Turned(nn.Module):
    """A loss that is told the one target where it was told the other: ``turned`` gives the targets it is told."""

    def __init__(self, loss: Any, total: float) -> None:
        super().__init__()
        self.loss, self.total = loss, total

    def turned(self, targets: Tensor) -> Tensor:
        return self.total - targets

    def forward(self, outputs: Any, targets: Tensor) -> Tensor:
        found: Tensor = self.loss(outputs, self.turned(targets))
        return found


@dataclass(frozen=True)
class _Pairs:
    """Pairs that a loss holds for alike or apart.

    Attributes:
        parts: the two inputs of all rows.
        targets: (n,) of two values.
        values: these two, in order.
        alike: the place among them of the one that the loss takes for alike.
        turned: an edit of the loss that tells it the one for the other.
    """

    parts: Sequence[Tensor]
    targets: Tensor
    values: Tensor
    alike: int
    turned: Callable[[Any], Any]


def alike_taken_for_apart(exam: Examination) -> Suspicion | None:
    """A loss of pairs that wants those near one another whose inputs lie farther apart than those of the others.

    Which target stands for "alike" the loss says itself, of an input and the same input again: such twins come out at
    one end of what pairs can come out at, whatever the weights. Labels that have nothing to do with how far inputs lie
    apart give no sign; ones that have are hardly ever the opposite of what they say.
    """
    pairs = _pairs(exam) if exam.case.supervised else _pairs_of_batches(exam)
    apart = None if pairs is None else _apart(pairs.parts)
    if pairs is None or apart is None:
        return None
    said = pairs.targets == pairs.values[pairs.alike]
    farther, error = _farther(apart[said], apart[~said])
    if not (farther > _FARTHER and farther - 0.5 > _SURELY * error):
        return None
    near, far = (float(pairs.values[k]) for k in (pairs.alike, 1 - pairs.alike))
    turned = f"{near + far:g} - targets"
    return replace(
        mismatched(
            exam,
            0.85,
            (
                Evidence("target that the loss takes for alike, as an input and itself are", near, far),
                Evidence("how often a pair with that target lies farther apart than one with the other", farther, 0.5),
            ),
            f"The loss brings pairs with target {near:g} together and pushes those with {far:g} apart, and it is those "
            f"with {near:g} whose inputs lie farther apart: the two targets are coded the other way round than it "
            "takes them.",
            (
                Remedy(
                    f"tell the loss {far:g} for {near:g} and {near:g} for {far:g}",
                    f"loss = lambda outputs, targets: loss_fn(outputs, {turned})",
                    on_loss=pairs.turned,
                    place="head",
                    order=LOSS,
                ),
            ),
        ),
        advice="Look up which target the loss takes for alike.",
    )


def _pairs(exam: Examination) -> _Pairs | None:
    """Of a task whose inputs are pairs."""
    targets, pair = exam.anatomy.batch[1], _parts(exam.anatomy.batch[0], 2)
    if exam.anatomy.stage or targets.numel() != len(targets) or pair is None:
        return None
    all_targets, all_pairs = exam.program.train[1].reshape(-1)[:_COMPARED], _parts(exam.program.train[0], 2)
    values = torch.unique(all_targets)
    if all_pairs is None or len(values) != 2:
        return None
    alike = _said_of_twins(exam, pair, targets, values)
    total = float(values.sum())
    return None if alike is None else _Pairs(all_pairs, all_targets, values, alike, lambda loss: Turned(loss, total))


def _pairs_of_batches(exam: Examination) -> _Pairs | None:
    """Of a loss of a batch with two inputs of one shape and a number of two values, whatever it asks the model."""
    batch, loss = exam.program.train, exam.program.loss
    if exam.anatomy.stage or not isinstance(loss, OnBatch):
        return None
    parts, count = leaves(batch), rows_of(batch)
    told = [place for place, part in enumerate(parts) if part.numel() == count and len(torch.unique(part)) == 2]
    rest = [place for place in range(len(parts)) if place not in told]
    if len(told) != 1 or len(rest) != 2 or parts[rest[0]].shape != parts[rest[1]].shape:
        return None
    values = torch.unique(parts[told[0]])
    alike = _said_of_twins_in_batches(exam, told[0], rest, values)
    total = float(values.double().sum())

    def turned(given: OnBatch) -> OnBatch:
        def function(model: nn.Module, batch: Any) -> Tensor:
            targets = leaves(batch)[told[0]]
            return given.function(model, with_leaves(batch, {told[0]: (total - targets.double()).to(targets.dtype)}))

        return OnBatch(function)

    if alike is None:
        return None
    targets = parts[told[0]].reshape(-1)[:_COMPARED]
    return _Pairs([parts[place] for place in rest], targets, values, alike, turned)


def _said_of_twins_in_batches(exam: Examination, told: int, inputs: Sequence[int], values: Tensor) -> int | None:
    """Which of the two values a loss of a batch takes for that of twins; None where they do not all cost the same."""
    function, said = exam.program.loss.function, set()
    few = taken(exam.program.train, torch.arange(min(_ROWS, rows_of(exam.program.train))))
    twins = with_leaves(few, {inputs[1]: leaves(few)[inputs[0]]})
    for seed in _DRAWS:
        costs = []
        try:
            with private_randomness(CPU), torch.no_grad():
                model = exam.program.new_model(seed).eval()
                for batch in (twins, few):
                    for one in values:
                        told_so = with_leaves(batch, {told: torch.full_like(leaves(batch)[told], one.item())})
                        rows = (taken(told_so, torch.tensor([row, row])) for row in range(rows_of(few)))
                        costs.append(torch.stack([function(model, row).double().mean() for row in rows]))
        except FAILURES:
            return None
        spread = max(float(cost.std()) for cost in costs[2:])
        if not spread > 0 or max(float(cost.std()) for cost in costs[:2]) > _ALIKE * spread:
            return None
        said.add(int(costs[1].mean() < costs[0].mean()))
    return said.pop() if len(said) == 1 else None


def positives_taken_for_negatives(exam: Examination) -> Suspicion | None:
    """A loss of triples that wants near the first that of the other two which lies farther from it.

    Which place it wants near it says itself, of triples in which one of the two is the first again.
    """
    parts, everything = _parts(exam.anatomy.batch[0], 3), _parts(exam.program.train[0], 3)
    if exam.anatomy.stage or parts is None or everything is None:
        return None
    near = _wanted_near(exam, parts)
    apart = [_apart((everything[0], other)) for other in everything[1:]]
    if near is None or apart[0] is None or apart[1] is None:
        return None
    wanted, other = apart[near - 1], apart[2 - near]
    assert wanted is not None
    assert other is not None
    farther = float(((wanted > other).double() + 0.5 * (wanted == other).double()).mean())
    if not (farther > _FARTHER and farther - 0.5 > _SURELY * 0.5 / math.sqrt(len(wanted))):
        return None
    places = "second", "third"
    return replace(
        mismatched(
            exam,
            0.85,
            (
                Evidence("place of a triple that the loss wants near the first", places[near - 1], places[2 - near]),
                Evidence("how often it lies farther from the first than the other", farther, "less than 0.5"),
            ),
            f"The loss brings the {places[near - 1]} of a triple to the first and pushes the {places[2 - near]} away, "
            f"and mostly the {places[2 - near]} is the nearer one: positives and negatives have changed places.",
            (
                Remedy(
                    "let the second and the third of each triple change places",
                    "X = X[:, [0, 2, 1]]",
                    on_rows=_changed_places,
                    also_valid=True,
                    place="places",
                    order=ROWS,
                ),
            ),
        ),
        advice="Look up which place the loss takes for the positive.",
    )


def _changed_places(rows: Rows) -> Rows:
    parts = _parts(rows.inputs, 3)
    return rows if parts is None else replace(rows, inputs=_put_together(rows.inputs, (parts[0], parts[2], parts[1])))


def _wanted_near(exam: Examination, parts: Sequence[Tensor]) -> int | None:
    """The place, 1 or 2, that the loss wants near the first of a triple; None where it says neither."""
    inputs, loss, said = exam.anatomy.batch[0], exam.program.loss, set()
    targets = exam.anatomy.batch[1][:_ASKED]
    first, second, third = (part[:_ASKED] for part in parts)
    for seed in _DRAWS:
        lost = []
        for asked in ((first, first, third), (first, second, first)):
            try:
                with private_randomness(CPU), torch.no_grad():
                    outputs = exam.program.new_model(seed).eval()(_put_together(inputs, asked))
            except FAILURES:
                return None
            lost.append(value(loss, outputs, targets))
        if lost[0] is None or lost[1] is None or abs(lost[0] - lost[1]) <= _ALIKE * abs(lost[0] + lost[1]):
            return None
        said.add(1 if lost[0] < lost[1] else 2)
    return said.pop() if len(said) == 1 else None


def _parts(inputs: Any, count: int) -> tuple[Tensor, ...] | None:
    """The inputs of every row that are compared: (n, count, ...), or as many tensors of one shape."""
    if isinstance(inputs, Tensor):
        return tuple(inputs.unbind(1)) if inputs.ndim > 2 and inputs.shape[1] == count else None
    found = leaves(inputs)
    alike = len({(leaf.shape, leaf.dtype) for leaf in found}) == 1
    return tuple(found) if isinstance(inputs, (tuple, list)) and alike and len(found) == count else None


def _put_together(like: Any, parts: Sequence[Tensor]) -> Any:
    return torch.stack(list(parts), 1) if isinstance(like, Tensor) else type(like)(parts)


def _said_of_twins(exam: Examination, pair: Sequence[Tensor], targets: Tensor, values: Tensor) -> int | None:
    """Which of the two targets the loss takes for that of twins; None where they come out in no place of their own."""
    inputs, loss, said = exam.anatomy.batch[0], exam.program.loss, set()
    first, second = pair[0][:_ASKED], pair[1][:_ASKED]
    for seed in _DRAWS:
        try:
            with private_randomness(CPU), torch.no_grad():
                model = exam.program.new_model(seed).eval()
                twins, others = (leaves(model(_put_together(inputs, (first, other)))) for other in (first, second))
        except FAILURES:
            return None
        if not _stand_out(twins, others):
            return None
        outputs: Any = twins[0] if len(twins) == 1 else tuple(twins)
        lost = [value(loss, outputs, torch.full_like(targets[: len(first)], float(one))) for one in values]
        if lost[0] is None or lost[1] is None or lost[0] == lost[1]:
            return None
        said.add(int(lost[1] < lost[0]))
    return said.pop() if len(said) == 1 else None


def _stand_out(twins: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether all twins come out alike and at one end of all pairs; or, of two tensors, the one as the other."""
    if len(twins) == 2:
        return twins[0].shape == twins[1].shape and torch.allclose(twins[0], twins[1], rtol=1e-4, atol=1e-6)
    if len(twins) != 1 or twins[0].numel() != len(twins[0]) or not others[0].is_floating_point():
        return False
    same, other = twins[0].double().reshape(-1), others[0].double().reshape(-1)
    spread = float(other.std(correction=0))
    level = float(same.mean())
    one_end = level <= float(other.min()) or level >= float(other.max())
    return one_end and spread > 0 and float(same.std(correction=0)) <= _ALIKE * spread


def _apart(pair: Sequence[Tensor]) -> Tensor | None:
    """How far the two inputs of each row lie apart, each column in its own deviations, (n,)."""
    found = [features(part[:_COMPARED]) for part in pair]
    if found[0] is None or found[1] is None or found[0].shape != found[1].shape:
        return None
    scale = torch.cat([found[0], found[1]]).std(0, correction=0)
    seen = scale > 0
    apart: Tensor = ((found[0] - found[1])[:, seen] / scale[seen]).square().mean(1)
    return apart if bool(torch.isfinite(apart).all()) else None


def _farther(those: Tensor, others: Tensor) -> tuple[float, float]:
    """How often one of those is more than one of the others, and its standard error if it were chance (Mann 1947)."""
    if not len(those) or not len(others):
        return 0.5, math.inf
    ordered = others.sort().values
    below, upto = (torch.searchsorted(ordered, those, right=right) for right in (False, True))
    share = float((below + upto).double().mean()) / 2 / len(others)
    return share, math.sqrt((len(those) + len(others) + 1) / 12 / len(those) / len(others))
