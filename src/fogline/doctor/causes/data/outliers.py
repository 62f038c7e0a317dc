"""Numeric targets of which a few lie so far off that a squared error sees little else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fogline.doctor.causes.data.common import kept_at, only, pair_of
from fogline.doctor.examination import Examination
from fogline.doctor.finding import ROWS, Evidence, Remedy, Rows, Suspicion
from fogline.doctor.reference import out_of_fold
from fogline.doctor.robust import robust
from fogline.doctor.standing import LEARNS, standing

_FAR = 6.0  # times the usual distance from what a learner says; of a normal distribution two in a thousand million
_FEWEST, _MOST = 3, 0.25
_CARRIED = 0.5  # of the squared error, by so few rows
_HEARD = 0.02  # of all that the targets differ: so much of it is heard by a network that learns the rest
_CLASSES = 16
_TO_A_DEVIATION = 1.4826  # from the median absolute value of a normal distribution


@dataclass(frozen=True)
class _FarOff:
    """Which of the rows that the classical learners read lie far off, (n,) bool; the usual distance of each column."""

    rows: Tensor
    far: Tensor
    usual: Tensor
    share: float
    carried: float
    of_held_out: Tensor | None


def _far_off(exam: Examination) -> _FarOff | None:
    """Training targets far from what a classical learner of the other rows says, which make up most of its error."""
    seen = exam.reference
    if pair_of(exam) is None or seen.rows is None or exam.case.yardstick.work != "regression":
        return None
    said = out_of_fold(exam.case, seen.learner, seen.rows)
    if said is None:
        return None
    missed = _missed(said[0], exam.case.train.targets[seen.rows])
    usual = _TO_A_DEVIATION * missed.abs().median(0).values.clamp_min(1e-300)
    far = (missed.abs() > _FAR * usual).any(1)
    share = float(far.double().mean())
    scaled = (missed / usual).square().sum(1)
    carried = float(scaled[far].sum() / scaled.sum().clamp_min(1e-300))
    if int(far.sum()) < _FEWEST or share > _MOST or carried < _CARRIED:
        return None
    wanted = exam.case.train.targets[seen.rows].double().reshape(len(missed), -1)
    if _numbers_of_classes(wanted):
        return None  # of which a learner takes one for another one now and then
    whole = (wanted - wanted.mean(0)).square().sum(0)
    if float((missed[far].square().sum(0) / whole.clamp_min(1e-300)).max()) < _HEARD:
        return None  # far off beside how near all others are, and not beside how the targets differ
    return _FarOff(seen.rows, far, usual, share, carried, said[1])


def _numbers_of_classes(targets: Tensor) -> bool:
    """Whether targets are a few whole numbers, each of which many rows have."""
    values, counts = torch.unique(targets, return_counts=True)
    whole = targets.shape[1] == 1 and bool((values == values.round()).all())
    return whole and len(values) <= _CLASSES and int(counts.min()) > len(targets) / _CLASSES**2


def has_far_off_targets(exam: Examination) -> bool:
    """Whether there are such targets, whatever the loss makes of them: then squared errors tell nothing of the rest."""
    return _far_off(exam) is not None


def far_off_targets(exam: Examination) -> Suspicion | None:
    """Such targets under a loss that they have a say in."""
    bounded = robust(exam.program.loss)
    if bounded is None or kept_at(exam, "loss") or kept_at(exam, "labels"):
        return None
    seen, found = exam.reference, _far_off(exam)
    if found is None:
        return None
    far, share, carried = found.far, found.share, found.carried
    names, held, said = found.rows[far], exam.case.valid, found.of_held_out
    outside = None
    if said is not None and held is not None:
        missed = _missed(said, held.targets[: len(said)])
        outside = float((missed.abs() > _FAR * found.usual).any(1).double().mean())
    error = math.sqrt(share * (1 - share) / len(far))
    expected = "0" if outside is None else f"{outside:.2g}, as held out"
    return Suspicion(
        "label_noise",
        0.7,
        (
            Evidence(f"share of training targets that lie far from what {seen.learner} says", share, expected),
            Evidence("share of its squared error that is theirs", carried, share),
            Evidence("the first of these rows", ", ".join(str(k) for k in sorted(names.tolist())[:5])),
        ),
        f"{share:.1%} of the training targets lie more than {_FAR:g} times as far as is usual from what other rows "
        f"teach, and {carried:.0%} of the squared error is theirs: the network learns them and little else.",
        (bounded, _without(names)),
        of_data=_learns_nothing(exam),
        proof=outside is not None and share - outside > max(4 * error, share / 2),
        advice="Look at the rows listed: a wrong unit, a missing value coded as a number, a slip of the decimal point?",
    )


def _missed(said: Tensor, targets: Tensor) -> Tensor:
    return targets.double().reshape(len(targets), -1) - said.reshape(len(targets), -1)


def _without(names: Tensor) -> Remedy:
    def edit(rows: Rows) -> Rows:
        return rows if rows.ids is None else only(rows, (~torch.isin(rows.ids, names)).nonzero().flatten())

    return Remedy(
        "leave out rows whose target lies far off",
        "X, y = X[~far], y[~far]",
        on_rows=edit,
        costs=True,
        place="labels",
        order=ROWS,
    )


def _learns_nothing(exam: Examination) -> bool:
    """Neither a classical learner nor the network: no trial can show what helps where as many held-out rows lie off."""
    best = max(exam.reference.score or 0.0, standing(exam).score if exam.observed is not None else LEARNS)
    return best <= LEARNS
