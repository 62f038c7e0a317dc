"""A metric that does not say what it is taken for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data.source import cast, float_type, part
from fogline.descent.randomness import private_randomness
from fogline.doctor.case import CPU, FAILURES, Case
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Evidence, Suspicion
from fogline.doctor.others import placed

_EXCHANGES = 5
_FEWEST_ROWS, _MOST_ROWS = 16, 512


def metric_mismatch(exam: Examination) -> Suspicion | None:
    """A reported figure that does not tell right answers from wrong ones."""
    seen = exam.observed
    metrics: Mapping[str, Any] = exam.case.task.metrics or {}
    if not metrics or seen is None or seen.start is None or not exam.case.supervised:
        return None
    model = seen.start.objective.model
    weights = next(model.parameters())
    inputs, targets = cast(exam.program.held, float_type(model))
    if not isinstance(targets, Tensor) or len(targets) < _FEWEST_ROWS:
        return None
    with private_randomness(CPU), seen.start.objective.without_learning():
        try:
            outputs = model(placed(part(inputs, 0, _MOST_ROWS), weights.device)).cpu()
        except FAILURES:  # told by other causes
            return None
    targets = targets[:_MOST_ROWS]
    right = _right_answers(exam.case, outputs, targets)
    if right is None:
        return None
    for name, metric in metrics.items():
        found = _blind(metric, right, targets) or _misleading(
            name, metric, exam.case, (outputs, right.roll(1, 0)), targets
        )
        if found is not None:
            return _misreported(name, found)
    return None


def metrics_want_probabilities(exam: Examination) -> bool:
    """Whether a metric of yes or no calls right answers all right as probabilities, and not as logits."""
    targets, metrics = exam.anatomy.batch[1], exam.case.task.metrics or {}
    if exam.case.yardstick.work != "binary":
        return False
    yes = (targets > sum(exam.case.yardstick.values) / 2).float()
    likely, logits = 0.1 + 0.8 * yes, 0.3 * (2 * yes - 1)
    return any(_value(m, likely, targets) == 1 != _value(m, logits, targets) for m in metrics.values())


def _misreported(name: str, found: tuple[Evidence, ...]) -> Suspicion:
    return Suspicion(
        "metric_mismatch",
        0.9,
        found,
        f"The metric {name!r} does not measure how good the answers are: it hardly changes, or not in the right "
        "direction, when right answers are exchanged for wrong ones. The training may be fine; the figure is not.",
        proof=True,
        severity="minor",
        advice="for labels: (outputs.argmax(1) == targets).float().mean(); for logits: "
        "((outputs > 0) == (targets > 0.5)).float().mean() with outputs and targets of one shape; for numbers: the "
        "mean absolute error",
    )


def _right_answers(case: Case, outputs: Any, targets: Tensor) -> Tensor | None:
    """Outputs as a very good model of the same kind would give them, far from any limit."""
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or not bool(torch.isfinite(outputs).all()):
        return None
    work = case.yardstick.work
    within = float(outputs.min()) >= 0 and float(outputs.max()) <= 1
    if work in ("classes", "one_hot"):
        labels = targets if work == "classes" else targets.argmax(1)
        if outputs.ndim != 2 or labels.ndim != 1 or outputs.shape[1] <= int(labels.max()) or int(labels.min()) < 0:
            return None
        hot = nn.functional.one_hot(labels.long(), outputs.shape[1]).float()
        return hot * 0.9 + 0.1 / outputs.shape[1] if within else hot * 12 - 6
    if outputs.numel() != targets.numel():
        return None
    wanted = targets.reshape(outputs.shape).float()
    if work == "binary":
        low, high = case.yardstick.values
        place = (wanted - low) / (high - low)
        likely = place * 0.9 + 0.05
        return likely.log() if case.yardstick.logs else likely if within else place * 12 - 6
    return wanted if work == "regression" else None


def _value(metric: Callable[[Any, Any], Any], outputs: Tensor, targets: Tensor) -> float | None:
    try:
        with torch.no_grad(), private_randomness(CPU):
            return float(metric(outputs, targets))
    except FAILURES:  # the user's own function
        return None


def _blind(metric: Callable[[Any, Any], Any], right: Tensor, targets: Tensor) -> tuple[Evidence, ...] | None:
    """Whether right answers get no other figure than the same answers given to other rows.

    Numbers are never right to the last digit, so they are tried with a hundredth of their deviation added.
    """
    if (
        targets.is_floating_point()
        and len(set(targets.flatten()[:4096].tolist())) > 2
        and right.shape[1:].numel() == targets.shape[1:].numel()
    ):
        noise = torch.randn(right.shape, generator=torch.Generator().manual_seed(0))
        right = right + 0.01 * right.std(0, correction=0) * noise
    best = _value(metric, right, targets)
    # In an order drawn by chance: rows that are sorted by class would get as many right answers by a mere shift.
    mixed = [torch.randperm(len(right), generator=torch.Generator().manual_seed(k)) for k in range(_EXCHANGES)]
    exchanged = [_value(metric, right[order], targets) for order in mixed]
    others = [value for value in exchanged if value is not None and math.isfinite(value)]
    if best is None or not math.isfinite(best) or len(others) < _EXCHANGES:
        return None
    mean = sum(others) / len(others)
    spread = math.sqrt(sum((value - mean) ** 2 for value in others) / (len(others) - 1))
    if abs(best - mean) > 3 * spread + 1e-3 * max(abs(best), abs(mean)):
        return None
    if float(right.std(0, correction=0).max()) == 0:
        return None  # all rows have the same answer: exchanging them changes nothing
    if not _depends_on_targets(metric, right, targets, best):
        return None  # a monitor, such as the mean output
    return (Evidence("metric of right answers, of the same given to other rows", f"{best:.3g}, {mean:.3g}", "unlike"),)


def _depends_on_targets(metric: Callable[[Any, Any], Any], right: Tensor, targets: Tensor, best: float) -> bool:
    """Whether other targets give another figure: one and the same for all rows, or, for numbers, the outputs."""
    others = [targets[:1].expand_as(targets)]
    if targets.is_floating_point() and right.numel() == targets.numel():
        others += [right.reshape(targets.shape), right.reshape(targets.shape).round()]
    return any(_value(metric, right, other) != best for other in others)


def _misleading(
    name: str, metric: Callable[[Any, Any], Any], case: Case, tried: tuple[Tensor, ...], targets: Tensor
) -> tuple[Evidence, ...] | None:
    """Something called accuracy that is far from the share of right answers, also of those averaged by class.

    It is asked about the model's own answers and about mostly wrong ones.
    """
    if (
        "acc" not in name.lower()
        or "top" in name.lower()
        or case.yardstick.work not in ("classes", "one_hot", "binary")
    ):
        return None
    for outputs in tried:
        chosen, wanted = _choices(case, outputs, targets)
        reported = _value(metric, outputs, targets)
        if chosen is None or wanted is None or reported is None:
            return None
        right = (chosen == wanted).float()
        plain = float(right.mean())
        balanced = float(torch.stack([right[wanted == label].mean() for label in set(wanted.tolist())]).mean())
        shares = [plain, balanced]
        if case.yardstick.work == "binary" and len(right) > len(targets):  # yes or no to several things at once
            shares.append(float(right.reshape(len(targets), -1).all(1).float().mean()))
        reported = reported / 100 if reported > 1 else reported
        error = math.sqrt(max(plain * (1 - plain), 1 / len(right)) / len(right))
        if min(abs(reported - share) for share in shares) > max(0.1, 3 * error):
            return (Evidence("metric, share of right answers", f"{reported:.3g}, {plain:.3g}", "the same"),)
    return None


def _choices(case: Case, outputs: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor | None]:
    if case.yardstick.work == "binary":
        if outputs.numel() != targets.numel():
            return None, None
        low, high = case.yardstick.values
        within = float(outputs.min()) >= 0 and float(outputs.max()) <= 1
        threshold = 0.5 if within else (low + high) / 2 if low < 0 else 0.0
        threshold = math.log(0.5) if case.yardstick.logs else threshold
        return (outputs > threshold).flatten().long(), (targets > (low + high) / 2).flatten().long()
    labels = targets if case.yardstick.work == "classes" else targets.argmax(1)
    if outputs.ndim != 2 or labels.ndim != 1 or outputs.shape[1] < 2:
        return None, None
    return outputs.argmax(1), labels
