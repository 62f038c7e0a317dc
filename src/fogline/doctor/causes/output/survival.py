"""Risk sets of a partial likelihood: whom a loss of survival compares those with to whom something happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from fogline.data.source import leaves, rows_of, taken
from fogline.descent.copies import copied
from fogline.descent.randomness import private_randomness
from fogline.doctor.asked import Answer, Noting, with_leaves
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.causes.output.common import mismatched
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, Evidence, Remedy, Suspicion
from fogline.task import OnBatch, on_batch

_ROWS, _ASKED = 12, (3, 6, 8)
"""Rows with times of their own, and the places in the order of time that are asked about."""

Compared = Literal["later", "earlier", "rows before", "rows behind"]


@dataclass(frozen=True)
class _Survival:
    """A loss that is told when each row was last seen, and whether that was an event.

    Attributes:
        time, event: their places among what the loss is told.
        told: what it is told of a few rows.
        ask: the loss of what is said of these rows, (b,), and of what it is told instead, by place.
    """

    time: int
    event: int
    told: list[Tensor]
    ask: Callable[[Tensor, Mapping[int, Tensor]], Tensor]


def risk_sets(exam: Examination) -> Suspicion | None:
    """A partial likelihood (Cox 1972) that compares a row not with those who were at risk when its event came.

    Those are all that were seen for longer. Whom the loss compares it with shows where it is the only event there is:
    what is said of others has no slope.
    """
    survival = _survival(exam)
    if survival is None:
        return None
    compared = _compared(survival)
    if compared is None or compared == "later":
        return None
    every = _told(exam, exam.program.train)[survival.time]
    if compared != "earlier" and bool((every.diff() >= 0).all() or (every.diff() <= 0).all()):
        return None  # rows that lie in order
    turned = compared == "earlier"
    fault = (
        "those whose time was over before"
        if turned
        else "the rows that happen to stand before it in the batch, or behind it"
    )
    return replace(
        mismatched(
            exam,
            0.9,
            (Evidence("rows that an event is compared with", compared, "later: those seen at least as long"),),
            f"The partial likelihood compares a row whose event came with {fault}, and not with those who were still "
            "at risk. What it learns ranks risks the wrong way round, or not at all.",
            (_times_turned(exam, survival.time) if turned else _in_order(exam, survival.time, compared),),
            proof=True,
        ),
        advice="Sort by time, the longest first, before the sums over those at risk (torch.logcumsumexp) are taken.",
    )


def _survival(exam: Examination) -> _Survival | None:
    """How to ask; None where the loss is not told a time and an event of each row, and nothing else of that size."""
    anatomy, loss = exam.anatomy, exam.program.loss
    if anatomy.stage or (exam.case.supervised and exam.case.family != "unknown"):
        return None
    told = _told(exam, exam.program.train)
    events = [place for place, part in enumerate(told) if _is_event(part)]
    times = [place for place, part in enumerate(told) if _is_time(part)]
    if len(events) != 1 or len(times) != 1:
        return None
    rows = _apart(told[times[0]])
    if len(rows) < _ROWS:
        return None
    batch, model = taken(exam.program.train, rows), copied(anatomy.model).eval()
    try:
        with private_randomness(CPU), torch.no_grad():
            shape = _answered(exam, model, batch)
    except FAILURES:
        return None
    if shape is None or shape.numel() != _ROWS:
        return None

    def ask(said: Tensor, other: Mapping[int, Tensor]) -> Tensor:
        batch_then, said = _retold(exam, batch, other), said.reshape(shape)
        stand_in: Any = Answer(said, model)
        found = loss.function(stand_in, batch_then) if isinstance(loss, OnBatch) else loss(said, batch_then[1])
        return cast(Tensor, found.mean())

    return _Survival(times[0], events[0], _told(exam, batch), ask)


def _answered(exam: Examination, model: Any, batch: Any) -> torch.Size | None:
    """The shape of what a model says of a batch, if it is asked once."""
    if not isinstance(exam.program.loss, OnBatch):
        return torch.Size(model(batch[0]).shape)
    noting = Noting(model)
    exam.program.loss.function(noting, batch)
    once = len(noting.calls) == 1 and isinstance(noting.outputs, Tensor)
    return torch.Size(noting.outputs.shape) if once else None


def _told(exam: Examination, batch: Any) -> list[Tensor]:
    """All that may be one number a row, (n,) each; columns of targets, or tensors of a batch. Others are empty."""
    if exam.case.supervised:
        targets = batch[1]
        several = isinstance(targets, Tensor) and targets.ndim == 2 and targets.shape[1] == 2
        return list(targets.unbind(1)) if several else []
    count = rows_of(batch)
    return [leaf.reshape(-1) if leaf.numel() == count else leaf.new_empty(0) for leaf in leaves(batch)]


def _retold(exam: Examination, batch: Any, other: Mapping[int, Tensor]) -> Any:
    """A batch with other numbers in these places."""
    if exam.case.supervised:
        columns = [other.get(place, column) for place, column in enumerate(batch[1].unbind(1))]
        return batch[0], torch.stack([column.to(batch[1].dtype) for column in columns], 1)
    return with_leaves(batch, other)


def _is_event(part: Tensor) -> bool:
    return bool(part.numel()) and torch.equal(torch.unique(part.double()), torch.tensor([0.0, 1.0]).double())


def _is_time(part: Tensor) -> bool:
    """Numbers above zero, most of them different."""
    known = part.is_floating_point() and bool(part.numel()) and bool(torch.isfinite(part).all())
    return known and bool((part >= 0).all()) and len(torch.unique(part)) > len(part) / 2


def _apart(times: Tensor) -> Tensor:
    """Places of a few rows whose times are not the same, in no order of time."""
    seen: dict[float, int] = {}
    for place, time in enumerate(times[:1000].tolist()):
        seen.setdefault(time, place)
    places = torch.tensor(list(seen.values()), dtype=torch.long)
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:_ROWS]
    return places[order]


def _compared(survival: _Survival) -> Compared | None:
    """With whom the loss compares a row, if it is always the same of these; None where it is something else."""
    times = survival.told[survival.time]
    places, ranks = torch.arange(_ROWS), times.argsort()
    found: set[Compared] = {"later", "earlier", "rows before", "rows behind"}
    for rank in _ASKED:
        row = int(ranks[rank])
        said = torch.randn(_ROWS, generator=torch.Generator().manual_seed(1)).requires_grad_()
        alone = (places == row).to(survival.told[survival.event].dtype)
        try:
            with torch.enable_grad(), private_randomness(CPU):
                (slope,) = torch.autograd.grad(survival.ask(said, {survival.event: alone}), said)
        except FAILURES:
            return None
        heard = slope.abs() > 1e-6 * slope.abs().max()
        sets: dict[Compared, Tensor] = {
            "later": times >= times[row],
            "earlier": times <= times[row],
            "rows before": places <= row,
            "rows behind": places >= row,
        }
        among = heard.clone()
        among[row] = True
        found &= {name for name, rows in sets.items() if torch.equal(among, rows)}
    return found.pop() if len(found) == 1 else None


def _times_turned(exam: Examination, place: int) -> Remedy:
    def edit(loss: Any) -> Any:
        def again(batch: Any) -> Any:
            times = _told(exam, batch)[place]
            return _retold(exam, batch, {place: times.max() + times.min() - times})

        return _with(loss, again)

    return Remedy(
        "sort by time the other way round",
        "order = time.argsort(descending=True)  # the longest first: those before are still at risk\n"
        "risk, event = risk[order], event[order]",
        on_loss=edit,
        place="head",
        order=LOSS,
    )


def _in_order(exam: Examination, place: int, compared: Compared) -> Remedy:
    def edit(loss: Any) -> Any:
        def order(batch: Any) -> Tensor:
            return _told(exam, batch)[place].argsort(descending=compared == "rows before")

        def sorted_by_time(outputs: Tensor, targets: Tensor) -> Any:
            rows = order((None, targets))
            return loss(outputs[rows], targets[rows])

        if isinstance(loss, OnBatch):
            return on_batch(lambda model, batch: loss.function(model, taken(batch, order(batch))))
        return sorted_by_time

    longest = "True" if compared == "rows before" else "False"
    return Remedy(
        "sort the rows of each batch by time",
        f"order = time.argsort(descending={longest})\nrisk, time, event = risk[order], time[order], event[order]",
        on_loss=edit,
        place="head",
        order=LOSS,
    )


def _with(loss: Any, again: Callable[[Any], Any]) -> Any:
    """A loss that is told something else."""
    if isinstance(loss, OnBatch):
        return on_batch(lambda model, batch: loss.function(model, again(batch)))
    return lambda outputs, targets: loss(outputs, again((None, targets))[1])
