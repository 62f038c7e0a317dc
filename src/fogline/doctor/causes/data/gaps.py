"""Rows that cannot be used, and targets that are all the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fogline.data import losses
from fogline.data.source import cast, float_type, leaves, taken
from fogline.descent.objective import mode
from fogline.descent.randomness import private_randomness
from fogline.doctor.case import FAILURES, changed_rows
from fogline.doctor.causes.data.common import kept_at, only
from fogline.doctor.examination import Examination
from fogline.doctor.finding import ROWS, Evidence, Remedy, Rows, Suspicion
from fogline.doctor.heads import value


def nan_in_data(exam: Examination) -> Suspicion | None:
    """Rows with NaN or infinity: one makes the loss of its whole batch NaN."""
    if not exam.case.supervised:
        return None
    rows = changed_rows(exam.case.train, exam.kept)  # all of them: trials hold some out
    inputs, wrong = rows.inputs, _unusable(rows.inputs, rows.targets)
    held = exam.case.valid
    wrong_held = None if held is None else _unusable(held.inputs, held.targets)
    count, count_held = int(wrong.sum()), 0 if wrong_held is None else int(wrong_held.sum())
    if count + (0 if kept_at(exam, "gaps") else count_held) == 0 or _is_prepared(exam, rows, wrong):
        return None
    size = len(wrong)
    evidence = [Evidence("training rows with NaN or infinity", f"{count} of {size}", 0)]
    if count_held:
        evidence.append(Evidence("held-out rows with NaN or infinity", count_held, 0))
    if count:
        first = wrong.nonzero().flatten()[:3].tolist()
        evidence.append(Evidence("the first of them", ", ".join(str(row) for row in first)))
        evidence += _columns_with_gaps(exam, inputs, wrong)
    share = count / size
    hit = 1 - (1 - share) ** exam.case.batch_size
    remedies = [r for r in (_dropped(), _filled(inputs)) if r is not None]
    if share > 0.5:
        remedies.reverse()
    return Suspicion(
        "nan_in_data",
        0.97,
        tuple(evidence),
        f"{count} of {size} training rows hold NaN or infinity. One such row makes the loss and the gradient of its "
        "whole "
        f"batch NaN: {hit:.0%} of the batches are lost, or the weights are.",
        tuple(remedies),
        proof=True,
        blocks=count > 0,
        severity="fatal" if hit > 0.5 else "serious",
    )


def _unusable(inputs: Any, targets: Any) -> Tensor:
    """Rows with a number that is not finite."""
    every = [leaf for leaf in (*leaves(inputs), *leaves(targets)) if leaf.ndim]
    wrong = torch.zeros(len(every[0]), dtype=torch.bool)
    for leaf in every:
        if leaf.is_floating_point() and not bool(torch.isfinite(leaf.sum(dtype=torch.float64))):
            wrong |= ~torch.isfinite(leaf.reshape(len(leaf), -1)).all(1)
    return wrong


def _is_prepared(exam: Examination, given: Rows, wrong: Tensor) -> bool:
    """Whether model and loss make a finite number of such rows: gaps can be part of a design, as masks are."""
    if not bool(wrong.any()):
        return False
    rows = wrong.nonzero().flatten()[:32]
    inputs, targets = taken((given.inputs, given.targets), rows)
    model, loss = exam.anatomy.model, exam.program.loss
    floats = float_type(model)
    inputs, targets = cast(inputs, floats), cast(targets, floats)
    try:
        with torch.no_grad(), mode(model, training=False), private_randomness(torch.device("cpu")):
            return value(loss, model(inputs), targets) is not None
    except FAILURES:
        return False


def _columns_with_gaps(exam: Examination, inputs: Any, wrong: Tensor) -> list[Evidence]:
    if not isinstance(inputs, Tensor) or inputs.ndim != 2 or not inputs.is_floating_point():
        return []
    columns = (~torch.isfinite(inputs[wrong])).any(0).nonzero().flatten().tolist()
    if not columns:
        return [Evidence("where", "the targets")]
    names = exam.case.facts.columns
    said = [names[k] if names and len(names) == inputs.shape[1] else str(k) for k in columns[:5]]
    return [Evidence("input columns", ", ".join(said) + (", ..." if len(columns) > 5 else ""))]


def _dropped() -> Remedy:
    def edit(rows: Rows) -> Rows:
        fine = (~_unusable(rows.inputs, rows.targets)).nonzero().flatten()
        return only(rows, fine) if len(fine) else rows

    code = "fine = X.isfinite().all(1) & y.isfinite().reshape(len(y), -1).all(1)\nX, y = X[fine], y[fine]"
    return Remedy("drop the rows with NaN or infinity", code, on_rows=edit, also_valid=True, place="gaps", order=ROWS)


def _filled(inputs: Any) -> Remedy | None:
    """Gaps take the mean of their column; rows without a target go."""
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or bool(torch.isfinite(inputs).all()):
        return None
    flat = inputs.reshape(len(inputs), -1)
    finite = torch.isfinite(flat)
    mean = torch.where(finite, flat, 0.0).sum(0) / finite.sum(0).clamp_min(1)

    def edit(rows: Rows) -> Rows:
        flat = rows.inputs.reshape(len(rows.inputs), -1)
        filled = torch.where(torch.isfinite(flat), flat, mean.to(flat.dtype)).reshape(rows.inputs.shape)
        rows = replace(rows, inputs=filled)
        fine = (~_unusable(rows.inputs, rows.targets)).nonzero().flatten()
        return only(rows, fine) if len(fine) else rows

    code = "X = torch.where(X.isfinite(), X, X.nanmean(0))  # the means of the training data, also for held-out data"
    return Remedy(
        "fill gaps with the mean of their column", code, on_rows=edit, also_valid=True, place="gaps", order=ROWS
    )


def constant_target(exam: Examination) -> Suspicion | None:
    """All targets are the same: there is nothing to be learned."""
    if not exam.case.supervised or not isinstance(exam.case.train.targets, Tensor):
        return None
    targets = exam.program.train[1]
    if len(targets) < 2 or not targets.numel() or _ignores_targets(exam):
        return None
    flat = targets.reshape(len(targets), -1)
    if not bool((flat == flat[:1]).all()):
        return None
    said = f"always {flat[0, 0].item():g}" if flat.shape[1] == 1 else "the same row always"
    return Suspicion(
        "constant_target",
        0.98,
        (Evidence("targets of the training rows", said, "several values"),),
        f"Every one of the {len(flat)} training rows has the same target, so the best model ignores its inputs. "
        "Usually "
        "the wrong column was taken, a conversion turned all values into one (such as whole-number division), or a "
        "filter left one class.",
        proof=True,
        blocks=True,
        severity="fatal",
        advice="Look at how the targets are read and converted; print torch.unique(y) at each step.",
    )


def _ignores_targets(exam: Examination) -> bool:
    """Whether the loss does not look at the targets: then they are a dummy."""
    outputs, batch = exam.anatomy.outputs, exam.anatomy.batch
    if losses.family(exam.program.loss) != "unknown" or not isinstance(outputs, Tensor):
        return False
    if not isinstance(batch[1], Tensor) or not batch[1].is_floating_point():
        return False
    as_it_is, other = value(exam.program.loss, outputs, batch[1]), value(exam.program.loss, outputs, batch[1] + 1.0)
    return as_it_is is not None and as_it_is == other
