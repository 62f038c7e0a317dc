"""Causes in what was learned: too much of these rows, too little of any, or something other than what is reported."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data.source import cast
from fogline.descent.randomness import private_randomness
from fogline.doctor.case import CPU, FAILURES, Case
from fogline.doctor.causes.data.order import passed_over
from fogline.doctor.causes.data.split import train_valid_mismatch
from fogline.doctor.closeup import path_of, some_rows, spreads, wide
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, RATE, Evidence, Remedy, Suspicion
from fogline.doctor.remedies import smoothed_labels
from fogline.doctor.standing import motion, resolved, standing, steps_of
from fogline.doctor.surgery import has, replaced, reset, widened
from fogline.lanczos import lanczos

_WIDE = 64
_SETTLED = 0.25
_EXCHANGES = 5
_FEWEST_ROWS, _FEW_ROWS = 16, 40
_HANDFUL = 4


def overfitting(exam: Examination) -> Suspicion | None:
    """The rows are known by heart: the held-out loss turns up while the training loss goes on falling."""
    seen = exam.observed
    if seen is None or seen.error or not math.isfinite(seen.train_loss) or not exam.case.supervised:
        return None
    if exam.case.yardstick.work == "other" or (exam.case.valid is None and not len(exam.case.held)):
        return None
    stands = standing(exam)
    curve = [(step, loss) for step, _, loss in seen.looks if math.isfinite(loss)]
    if len(curve) < 4 or train_valid_mismatch(exam) is not None:
        return None  # held-out rows of another kind say nothing of what was learned by heart
    lowest = min(loss for _, loss in curve)
    fell, rise = curve[0][1] - lowest, curve[-1][1] - lowest
    gap = stands.train_score - stands.score
    # On rows that were not learned from the score is a sample; on learned ones it is what was asked for.
    if gap < max(0.1, 4 * stands.error) or stands.train_score < 0.5 or seen.train_loss > curve[-1][1]:
        return None
    share = max(0.0, rise) / (fell + rise) if fell + rise > 0 else 0.0
    # Where nothing can be learned of other rows, these being known by heart is what is left.
    by_heart = gap > 0.25 and stands.train_score > 0.9 and max(stands.score, exam.reference.score or 0.0) > 0.1
    if share < 0.1 and not by_heart:
        return None
    at = next(step for step, loss in curve if loss == lowest)
    turned = share > 0.2 and gap > 0.25 and stands.train_score > 0.9
    surely = (by_heart or turned) and gap > 4 * stands.error and not _only_rare_ones(exam, stands.train_score)
    decay = Remedy(
        "adamw with weight decay 0.1",
        'fogline.Recipe(optimizer="adamw", weight_decay=0.1)',
        on_recipe=lambda recipe: recipe.replace(optimizer="adamw", weight_decay=0.1, options={}, lr="auto"),
        costs=True,
        place="rate",
        order=RATE,
    )
    smoothed = [] if (remedy := smoothed_labels(exam)) is None else [replace(remedy, costs=True)]
    return Suspicion(
        "overfitting",
        0.7 if surely else 0.5,
        (
            Evidence("score on learned rows, on held-out rows", f"{stands.train_score:.3g}, {stands.score:.3g}"),
            Evidence("held-out loss: lowest, at the end", f"{lowest:.3g}, {curve[-1][1]:.3g}", "the same", step=at),
            Evidence("rise of the held-out loss, as a share of all it moved", share, "near 0"),
        ),
        "The network learns these rows by heart: what it answers right of them it gets wrong of others"
        + (f", and the held-out loss rises from step {at} on. " if share >= 0.1 else ". ")
        + f"{exam.program.rows} rows are few for what it can remember.",
        (*smoothed, decay),
        proof=surely,
        advice="more rows, augmentation, a smaller network or dropout; patience=5 saves steps",
    )


def _only_rare_ones(exam: Examination, train_score: float) -> bool:
    """Whether it is but rare classes that are known by heart, and the others' rows are answered well, held out too."""
    missed = passed_over(exam)
    if missed is None:
        return False
    chance = 1 / max(2, exam.case.yardstick.classes)
    return train_score - (missed[1] - chance) / (1 - chance) <= 0.25


def underfitting(exam: Examination) -> Suspicion | None:
    """The descent has settled, and even the rows it learned from are answered worse than classical learners do."""
    seen = exam.observed
    anatomy = exam.anatomy
    if seen is None or seen.error or anatomy.stage or not anatomy.weighted or not exam.case.supervised:
        return None
    stands, moves, steps = standing(exam), motion(exam), steps_of(exam)
    known = stands.known or exam.program.rows < _FEW_ROWS  # so few can always be answered well
    if not known or not stands.train_short or moves.refused or moves.fallen < 0.02:
        return None
    if (moves.slope > _SETTLED and moves.significance > 3) or not steps.path > 0.5:
        return None
    layers = [(layer.name, layer.module) for layer in anatomy.weighted if isinstance(layer.module, nn.Linear)]
    counted = sum(p.numel() for _, module in layers for p in module.parameters())
    weights = sum(p.numel() for p in anatomy.model.parameters())
    labels = exam.case.yardstick.work in ("classes", "one_hot")
    wanted = exam.program.rows * (1 if labels or not layers else layers[-1][1].out_features)
    widths = [module.out_features for _, module in layers[:-1]]
    # With as many weights as numbers to fit, rows can be learned by heart: then it is not the size. Only with a
    # handful of units may all of them stand where no slope leads on.
    if not layers or counted < 0.9 * weights or (weights > wanted and min(widths, default=0) > _HANDFUL):
        return None
    narrow = [
        (first, second)
        for (first, a), (second, b) in pairwise(layers)
        if a.out_features < _WIDE and b.in_features == a.out_features
    ]
    if len(layers) > 1 and not narrow:
        return None
    remedy = _wider(narrow) if narrow else _deeper(layers[-1][0])
    return Suspicion(
        "underfitting",
        0.65,
        (
            Evidence("score on learned rows", stands.train_score, f"{stands.goal:.3g}, as classical learners get"),
            Evidence("units of the hidden layers", ", ".join(map(str, widths)) or "no hidden layer", "more"),
            Evidence("fall of the loss over as many steps again, relative to all it fell", moves.slope, "not near 0"),
        ),
        "The loss has settled, but not even the rows that were learned from are answered well, although there is "
        "something to learn in them: the network is too small to express it.",
        (remedy,),
    )


def _wider(pairs: list[tuple[str, str]]) -> Remedy:
    def edit(model: nn.Module) -> nn.Module:
        for first, second in pairs:
            model = widened(model, first, second, _WIDE)
        return model

    names = ", ".join(path_of(first) for first, _ in pairs)
    return Remedy(
        f"widen the hidden layers to {_WIDE} units",
        f"let {names} have {_WIDE} outputs, and the layers after them as many inputs",
        on_model=edit,
        place="width",
        order=BODY,
    )


def _deeper(name: str) -> Remedy:
    def edit(model: nn.Module) -> nn.Module:
        if not has(model, name):
            return model
        with torch.random.fork_rng(devices=[]):
            return replaced(model, name, _with_hidden)

    return Remedy(
        f"put a hidden layer of {_WIDE} units before the last one",
        f"{path_of(name)} = nn.Sequential(nn.Linear(inputs, {_WIDE}), nn.ReLU(), nn.Linear({_WIDE}, outputs))",
        on_model=edit,
        place="width",
        order=BODY,
    )


def _with_hidden(last: nn.Module) -> nn.Module:
    assert isinstance(last, nn.Linear)
    made = nn.Sequential(nn.Linear(last.in_features, _WIDE), nn.ReLU(), nn.Linear(_WIDE, last.out_features))
    return made.to(last.weight.device, last.weight.dtype)


def metric_mismatch(exam: Examination) -> Suspicion | None:
    """A reported figure that does not tell right answers from wrong ones."""
    seen = exam.observed
    metrics: Mapping[str, Any] = exam.case.task.metrics or {}
    if not metrics or seen is None or seen.start is None or not exam.case.supervised:
        return None
    model = seen.start.objective.model
    weights = next(model.parameters())
    inputs, targets = cast(exam.program.held, weights.dtype)
    if not isinstance(targets, Tensor) or len(targets) < _FEWEST_ROWS or not isinstance(inputs, Tensor):
        return None
    with private_randomness(CPU), seen.start.objective.without_learning():
        try:
            outputs = model(inputs[:512].to(weights.device)).cpu()
        except FAILURES:  # told by other causes
            return None
    targets = targets[:512]
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
        return place * 0.9 + 0.05 if within else place * 12 - 6
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
        return (outputs > threshold).flatten().long(), (targets > (low + high) / 2).flatten().long()
    labels = targets if case.yardstick.work == "classes" else targets.argmax(1)
    if outputs.ndim != 2 or labels.ndim != 1 or outputs.shape[1] < 2:
        return None, None
    return outputs.argmax(1), labels


def saddle(exam: Examination) -> Suspicion | None:
    """The descent begins next to a saddle point: flat in all directions but with a way down that is hardly a slope."""
    anatomy, seen = wide(exam), exam.observed
    if seen is None or seen.error or anatomy.stage or len(anatomy.weighted) < 2:
        return None
    moves, stands = motion(exam), standing(exam)
    small = [spread for spread in spreads(anatomy) if spread.excess < 0]
    # Products of small numbers: at the saddle, where all of them are 0, every gradient is 0 as well.
    if -sum(spread.excess for spread in small) < math.log(10) or moves.refused:
        return None
    plateau = moves.fallen < 0.1 or stands.short
    if not plateau or resolved(exam).optimizer not in ("gd", "sgd", "momentum", "nesterov"):
        return None
    values = _curvatures(exam)
    if values is None or not values[0] < 0:
        return None
    lowest, highest = values
    names = list(dict.fromkeys(spread.name for spread in small))
    fresh = Remedy(
        "begin further away: PyTorch's own first weights",
        "\n".join(f"{path_of(name)}.reset_parameters()" for name in names),
        on_model=lambda model: reset(model, names),
        place="init",
        order=BODY,
    )
    adaptive = Remedy(
        "use adamw, its learning rate measured",
        'fogline.Recipe(optimizer="adamw", lr="auto")',
        on_recipe=lambda recipe: recipe.replace(optimizer="adamw", lr="auto", options={}),
        place="rate",
        order=RATE,
    )
    return Suspicion(
        "saddle",
        0.5,
        (
            Evidence(
                "lowest and highest curvature at the first weights", f"{lowest:.3g}, {highest:.3g}", "none below 0"
            ),
            Evidence("share of the loss that is gone", moves.fallen),
        ),
        "The first weights are next to a saddle: each layer's gradient is multiplied by the others' small weights, so "
        "the slope is almost zero although there is a way down. Plain steps need very long to find it.",
        (fresh, adaptive),
    )


def _curvatures(exam: Examination) -> tuple[float, float] | None:
    """Lowest and highest eigenvalue of the Hessian at first weights, about, by Lanczos iteration."""
    from fogline.descent.objective import Objective

    model = exam.program.new_model(exam.case.recipe.seed)
    floats = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with private_randomness(CPU), torch.enable_grad():
        try:
            loss = Objective(model, exam.program.loss)(cast(some_rows(exam, 128), floats))
            gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
            used = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None and g.requires_grad]
            if not used:
                return None

            def product(vector: Tensor) -> Tensor:
                pieces = torch.split(vector, [p.numel() for p, _ in used])
                found = torch.autograd.grad(
                    [g for _, g in used],
                    [p for p, _ in used],
                    [v.to(p).view_as(p) for v, (p, _) in zip(pieces, used, strict=True)],
                    retain_graph=True,
                    allow_unused=True,
                )
                flat = [torch.zeros_like(p) if h is None else h for h, (p, _) in zip(found, used, strict=True)]
                return torch.cat([piece.flatten().double() for piece in flat])

            size = sum(p.numel() for p, _ in used)
            start = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            _, values, _ = lanczos(product, start, min(10, size))
        except FAILURES:  # an operation without a second derivative
            return None
    return (float(values[0]), float(values[-1])) if len(values) else None


ON_ONE_BATCH = ()
IN_MOTION = (overfitting, underfitting, metric_mismatch, saddle)
