"""Targets that belong to the rows before or behind their own, all by the same number of places."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fogline.data.source import taken
from fogline.doctor.examination import Examination
from fogline.doctor.finding import ROWS, Evidence, Remedy, Rows
from fogline.doctor.reference import features, score_of
from fogline.doctor.standing import LEARNS
from fogline.doctor.yardstick import error_of

_FARTHEST = 3  # places
_FEWEST = 100  # rows
_A_COPY = 0.999


def moved_targets(exam: Examination) -> tuple[Remedy, tuple[Evidence, ...]] | None:
    """How far the targets have to be moved for classical learners to make something of them, which they else do not.

    Where a column is the target of another row, as in a series with its own past for inputs, that is no mistake.
    """
    case, seen, ours = exam.case, exam.reference, exam.case.train
    inputs = features(ours.inputs)
    if inputs is None or len(inputs) < _FEWEST or seen.score is None or not case.in_memory:
        return None
    if not bool(torch.isfinite(inputs).all()) or not bool(torch.isfinite(ours.targets.double()).all()):
        return None
    places = [k for far in range(1, _FARTHEST + 1) for k in (far, -far)]
    scores = {k: score_of(*_moved(inputs, ours.targets, k), case.yardstick) for k in places}
    place = max(scores, key=lambda k: scores[k])
    others = max(score for k, score in scores.items() if k != place)
    sure = 3 * error_of(min(len(inputs), 1000) // 5, case.yardstick.classes)
    if scores[place] - max(others, seen.score) < max(sure, 2 * LEARNS) or _has_its_past(inputs, ours.targets, place):
        return None
    also = _held_out_too(exam, inputs, place)
    words = f"{abs(place)} row{'s' if abs(place) > 1 else ''} {'up' if place > 0 else 'down'}"
    evidence = Evidence(f"score of classical learners where targets are moved {words}", scores[place], seen.score)
    return _remedy(place, words, also=also), (evidence,)


def _moved(inputs: Tensor, targets: Tensor, place: int) -> tuple[Tensor, Tensor]:
    """Rows with the target of the row ``place`` further on; the rows at the end that have none go."""
    return (inputs[:-place], targets[place:]) if place > 0 else (inputs[-place:], targets[:place])


def _has_its_past(inputs: Tensor, targets: Tensor, place: int) -> bool:
    """Whether a column is a copy of the moved targets."""
    rows, wanted = _moved(inputs, targets, place)
    columns, other = (values.double().reshape(len(rows), -1) for values in (rows, wanted))
    columns, other = columns - columns.mean(0), other - other.mean(0)
    lengths = columns.norm(dim=0)[:, None] * other.norm(dim=0)
    return bool(((columns.mT @ other).abs() > _A_COPY * lengths.clamp_min(1e-300)).any())


def _held_out_too(exam: Examination, inputs: Tensor, place: int) -> bool:
    """Whether the targets of held-out rows have moved as well."""
    case, held = exam.case, exam.case.valid
    other = None if held is None else features(held.inputs)
    if held is None or other is None or other.shape[1] != inputs.shape[1] or len(other) <= 2 * _FARTHEST:
        return held is None
    as_is = score_of(other, held.targets, case.yardstick)
    return score_of(*_moved(other, held.targets, place), case.yardstick) > as_is


def _remedy(place: int, words: str, *, also: bool) -> Remedy:
    def edit(rows: Rows) -> Rows:
        size = len(rows.targets)
        if size <= abs(place):
            return rows
        index = torch.arange(max(0, -place), size - max(0, place))
        ids = None if rows.ids is None else rows.ids[index]
        return replace(rows, inputs=taken(rows.inputs, index), targets=rows.targets[index + place], ids=ids)

    code = f"X, y = X[:-{place}], y[{place}:]" if place > 0 else f"X, y = X[{-place}:], y[:{place}]"
    title = f"move the targets {words}"
    return Remedy(title, code, on_rows=edit, also_valid=also, place="labels", order=ROWS)
