"""Causes that lie in the rows: their units, order, labels, gaps, and how they were split."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data import losses
from fogline.data.source import cast, leaves, map_tree
from fogline.descent.objective import mode
from fogline.descent.randomness import private_randomness
from fogline.doctor.case import taken
from fogline.doctor.examination import Examination
from fogline.doctor.finding import LOSS, RECIPE, ROWS, WRAP, Evidence, Remedy, Rows, Suspicion
from fogline.doctor.heads import FAILURES, reach, value
from fogline.doctor.reference import features
from fogline.doctor.scaling import (
    NORMS,
    Scales,
    as_received,
    first_layer,
    scaled_loss,
    scaled_outputs,
    scales_of,
)
from fogline.doctor.surgery import Wrapped

_FEWEST = 50
"""Rows below which a share or a score says too little."""
_LARGE, _SMALL, _UNEVEN = 5.0, 0.03, 10.0
"""First weights are drawn for inputs of size one, which leaves a factor of 5 to spare (pixels from 0 to 1 are 0.3);
columns whose sizes differ 10 times make the slopes along them differ 100 times."""


def _kept(exam: Examination, place: str) -> bool:
    return any(remedy.place == place for remedy in exam.kept)


def _pair(exam: Examination) -> tuple[Tensor, Tensor] | None:
    """Training inputs and targets where both are tensors."""
    if not exam.case.supervised:
        return None
    inputs, targets = exam.program.train
    return (inputs, targets) if isinstance(inputs, Tensor) and isinstance(targets, Tensor) else None


# Units


def unscaled_input(exam: Examination) -> Suspicion | None:
    """Inputs far from size one, or columns of different units.

    The slope with respect to a weight is proportional to its input. The loss is as many times steeper along the largest
    column than along the smallest as the ratio of their squares, and no learning rate suits both; and where all are
    large, the first units saturate or the first steps are far too long.
    """
    inputs = exam.program.train[0] if exam.case.supervised else exam.program.train
    if not isinstance(inputs, Tensor) or inputs.is_complex() or inputs.ndim < 1 or _kept(exam, "inputs"):
        return None
    first = first_layer(exam.anatomy)
    if first is not None and isinstance(first.module, (*NORMS, nn.Embedding, nn.EmbeddingBag)):
        return None
    given = exam.anatomy.batch[0] if exam.case.supervised else exam.anatomy.batch
    if not isinstance(given, Tensor) or not as_received(given, first):
        return None
    scales = scales_of(inputs, None if first is None else first.module)
    if not bool(scales.counted.any()):
        return None
    sizes, deviations = scales.size[scales.counted], scales.deviation[scales.counted]
    largest, middle = float(sizes.max()), float(deviations.median())
    overall, uneven = float(sizes.square().mean().sqrt()), largest / middle
    excess = max(overall / _LARGE, _SMALL / largest, uneven / _UNEVEN)
    if not excess > 1 or not math.isfinite(excess):
        return None
    return Suspicion(
        "unscaled_input",
        min(0.9, 0.35 + 0.25 * math.log10(excess)),
        (
            Evidence("root mean square of the inputs", overall, 1.0),
            Evidence("size of the largest column against the spread of a middle one", uneven, "about 1"),
            _worst(exam, scales),
        ),
        "The inputs are not scaled: they are far from the size of about one that first weights are made for, or their "
        "columns differ in size. The loss is then steep along large columns and flat along small ones, and no learning "
        "rate suits both.",
        (_standardised(scales, inputs),),
    )


def _worst(exam: Examination, scales: Scales) -> Evidence:
    at = int(torch.where(scales.counted, scales.size, -1.0).argmax())
    columns = exam.case.facts.columns
    name = columns[at] if columns and len(columns) == len(scales.size) else str(at)
    what = f"mean and deviation of input column {name}" if len(scales.size) > 1 else "mean and deviation of the inputs"
    return Evidence(what, f"{float(scales.mean[at]):.3g}, {float(scales.deviation[at]):.3g}", "0, 1")


def _standardised(scales: Scales, inputs: Tensor) -> Remedy:
    over = {2: "0", 3: "(0, 1)", 4: "(0, 2, 3)"}.get(inputs.ndim, "")
    keep = ", keepdim=True" if inputs.ndim == 4 else ""
    over = over if len(scales.mean) > 1 else ""
    code = f"mean, std = X.mean({over}{keep}), X.std({over}{keep}).clamp_min(1e-8)  # of the training data\n"
    code += "X = (X - mean) / std"
    return Remedy(
        "standardise the inputs",
        code + "  # and held-out data with the same numbers",
        on_model=lambda model: Wrapped(model, before=scales.module()),
        place="inputs",
        order=WRAP,
    )


def unscaled_target(exam: Examination) -> Suspicion | None:
    """Numbers to predict that are far from what the first weights give.

    The last layer has to grow to the size of the targets: an optimizer whose steps have the length of the learning rate
    needs (distance / rate) of them, and plain descent has gradients as large as the targets.
    """
    pair, outputs = _pair(exam), exam.anatomy.outputs
    if pair is None or exam.case.yardstick.work != "regression" or _kept(exam, "target"):
        return None
    targets = pair[1]
    if not targets.is_floating_point() or not isinstance(outputs, Tensor) or exam.anatomy.stage not in ("", "backward"):
        return None
    if not outputs.numel() or outputs.shape[1:].numel() != targets.shape[1:].numel() or not _homogeneous(exam):
        return None
    columns = targets.reshape(len(targets), -1).double()
    columns = columns[torch.isfinite(columns).all(1)]
    if len(columns) < 2 or columns.shape[1] > 64:
        return None
    mean, deviation = columns.mean(0), columns.std(0, correction=0)
    varies = deviation > 1e-9 * columns.abs().amax(0)
    if not bool(varies.any()):
        return None
    found = outputs.detach().double().reshape(len(outputs), -1)
    if not bool(torch.isfinite(found).all()):
        return None
    away = float(((found.mean(0) - mean).abs() / deviation)[varies].max())
    wide = float((found.std(0, correction=0) / deviation)[varies].max())
    far = max(away / 5, 0.02 / max(wide, 1e-30), wide / 10)
    near_one = float(deviation[varies].max()) < _LARGE and float(mean[varies].abs().max()) < _LARGE
    if far <= 1 or (near_one and float(deviation[varies].min()) > _SMALL):
        return None
    remedy = _target_scaled(exam, mean, torch.where(varies, deviation, torch.ones_like(deviation)), columns)
    return Suspicion(
        "unscaled_target",
        min(0.9, 0.35 + 0.25 * math.log10(far)),
        (
            Evidence("mean and deviation of the targets", f"{float(mean[0]):.3g}, {float(deviation[0]):.3g}", "0, 1"),
            Evidence("distance of the first outputs from the targets' mean, in their deviations", away, "a few"),
            Evidence("spread of the first outputs against that of the targets", wide, "about 1"),
        ),
        "The numbers to predict are not scaled: they are far from what a network with first weights puts out. Either "
        "the "
        "steps are far too short to get there, or the errors are so large that the gradients are too long for this "
        "learning rate.",
        () if remedy is None else (remedy,),
        advice="Train on (y - mean) / std and turn predictions back with * std + mean.",
    )


def _homogeneous(exam: Examination) -> bool:
    """Whether the loss of doubled outputs and targets is twice or four times the loss, so that units do not matter."""
    loss, outputs, targets = exam.program.loss, exam.anatomy.outputs, exam.anatomy.batch[1]
    if losses.family(loss) == "elementwise":
        return True
    if outputs.shape != targets.shape:
        return False
    once, twice = value(loss, outputs.detach(), targets), value(loss, 2 * outputs.detach(), 2 * targets)
    if not once or twice is None:
        return False
    return min(abs(twice / once - power) for power in (2, 4)) < 0.01


def _target_scaled(exam: Examination, mean: Tensor, deviation: Tensor, columns: Tensor) -> Remedy | None:
    """Model in units of the user, loss and layers in numbers near one; a bounded end is spread over the targets."""
    scale, shift = deviation, mean
    if exam.anatomy.head:
        bounds = reach(exam.anatomy)
        if bounds is None:
            return None
        low, high = bounds
        if low > -1e3 and high < 1e3 and high > low:
            least, most = columns.amin(0), columns.amax(0)
            scale = (most - least).clamp_min(1e-30) / (high - low)
            shift = least - low * scale
        elif low > -1e3:
            if bool((columns.amin(0) < 0).any()):
                return None
            scale, shift = columns.square().mean(0).sqrt(), torch.zeros_like(mean)
        elif high < 1e3:
            return None
    if exam.anatomy.outputs.ndim == 1:
        scale, shift, deviation = scale[0], shift[0], deviation[0]
    elif exam.anatomy.outputs.ndim > 2:
        scale, shift, deviation = scale.mean(), shift.mean(), deviation.mean()
    return Remedy(
        "scale the targets",
        "mean, std = y.mean(0), y.std(0)  # of the training data\ny = (y - mean) / std\n"
        "prediction = model(x) * std + mean",
        on_model=scaled_outputs(scale, shift),
        on_loss=lambda loss: scaled_loss(loss, deviation),
        place="target",
        order=WRAP,
    )


# Gaps and constants


def nan_in_data(exam: Examination) -> Suspicion | None:
    """Rows with NaN or infinity: one makes the loss of its whole batch NaN."""
    if not exam.case.supervised:
        return None
    inputs, targets = exam.program.train
    wrong = _unusable(inputs, targets)
    held = exam.case.valid
    wrong_held = None if held is None else _unusable(held.inputs, held.targets)
    count, count_held = int(wrong.sum()), 0 if wrong_held is None else int(wrong_held.sum())
    if count + (0 if _kept(exam, "gaps") else count_held) == 0 or _is_prepared(exam, wrong):
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


def _is_prepared(exam: Examination, wrong: Tensor) -> bool:
    """Whether model and loss make a finite number of such rows: gaps can be part of a design, as masks are."""
    if not bool(wrong.any()):
        return False
    rows = wrong.nonzero().flatten()[:32]
    inputs, targets = taken(exam.program.train, rows)
    model, loss = exam.anatomy.model, exam.program.loss
    floats = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
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
        return _only(rows, fine) if len(fine) else rows

    code = "fine = X.isfinite().all(1) & y.isfinite().reshape(len(y), -1).all(1)\nX, y = X[fine], y[fine]"
    return Remedy("drop the rows with NaN or infinity", code, on_rows=edit, also_valid=True, place="gaps", order=ROWS)


def _only(rows: Rows, index: Tensor) -> Rows:
    ids = None if rows.ids is None else rows.ids[index]
    return Rows(taken(rows.inputs, index), taken(rows.targets, index), ids)


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
        return _only(rows, fine) if len(fine) else rows

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


# Order and balance


def unshuffled_data(exam: Examination) -> Suspicion | None:
    """Rows sorted by target and taken in that order: each batch pulls to its own kind.

    Measured by the share of the targets' variance that lies between batches (eta squared), which is (k - 1) / (n - 1)
    for k batches of n rows in random order.
    """
    pair = _pair(exam)
    recipe, facts = exam.program.recipe, exam.case.facts
    by_loader = facts.shuffle is False and recipe.shuffle
    if pair is None or (recipe.shuffle and not by_loader) or _kept(exam, "order"):
        return None
    rows = min(exam.case.batch_size, len(pair[1]))
    share = _between(_coded(exam, pair[1]), rows)
    if share is None:
        return None
    size, batches = len(pair[1]), math.ceil(len(pair[1]) / rows)
    by_chance = (batches - 1) / (size - 1)
    error = math.sqrt(2 * (batches - 1)) / (size - 1)  # of a chi-squared with k - 1 degrees, over n - 1
    if share < by_chance + 6 * error or share < 2 * by_chance:
        return None
    return Suspicion(
        "unshuffled_data",
        min(0.95, 0.4 + share),
        (
            Evidence("share of the targets' variance that lies between batches", share, by_chance),
            Evidence("shuffling", "off", "on"),
        ),
        "The rows are taken in the order they are stored in, and that order follows the targets: each batch holds one "
        "kind of example, and each step unlearns what the last ones taught.",
        (_shuffled_once() if by_loader else _shuffled_always(),),
    )


def _coded(exam: Examination, targets: Tensor) -> Tensor:
    """Columns of numbers: one a class for labels."""
    if exam.case.yardstick.work == "classes" and targets.ndim == 1:
        return nn.functional.one_hot(targets.clamp_min(0).long()).double()
    return targets.reshape(len(targets), -1).double()


def _between(columns: Tensor, rows: int) -> float | None:
    size = len(columns)
    if rows >= size or rows < 1 or size < 8 or not bool(torch.isfinite(columns).all()):
        return None
    centred = columns - columns.mean(0)
    whole = float(centred.square().sum())
    groups = torch.split(centred, rows)
    between = sum(len(group) * float(group.mean(0).square().sum()) for group in groups)
    return between / whole if whole > 0 else None


def _shuffled_always() -> Remedy:
    return Remedy(
        "shuffle the rows in every epoch",
        "Recipe(..., shuffle=True)",
        on_recipe=lambda recipe: recipe.replace(shuffle=True),
        place="order",
        order=RECIPE,
    )


def _shuffled_once() -> Remedy:
    def edit(rows: Rows) -> Rows:
        size = len(leaves(rows.inputs)[0])
        return _only(rows, torch.randperm(size, generator=torch.Generator().manual_seed(0)))

    return Remedy(
        "shuffle the rows",
        "loader = DataLoader(data, batch_size=..., shuffle=True)",
        on_rows=edit,
        place="order",
        order=ROWS,
    )


def class_imbalance(exam: Examination) -> Suspicion | None:
    """Rare classes that the trained model does not find, while it finds the common ones.

    Rare is not a fault by itself; it is where what the model gets right of rare classes is below what it gets right of
    common ones by more than chance.
    """
    pair, observed = _pair(exam), exam.observed
    if pair is None or observed is None or observed.start is None or _kept(exam, "balance"):
        return None
    labels = _labels(exam, pair[1])
    if labels is None or len(labels) < 20:
        return None
    counts = torch.bincount(labels).double()
    present = counts > 0
    common = float(counts.max())
    rare = (counts * 4 < common) & present
    if not bool(rare.any()) or int(present.sum()) < 2:
        return None
    found = max(
        (gap for gap in (_gap(exam, *rows, rare) for rows in _looked_at(exam)) if gap is not None),
        key=lambda gap: gap[1] - gap[0],
        default=None,
    )
    if found is None:
        return None
    recall, usual = found
    weights = torch.where(present, counts.sum() / (present.sum() * counts.clamp_min(1)), torch.zeros_like(counts))
    ratio = common / float(counts[present].min())
    return Suspicion(
        "class_imbalance",
        min(0.9, 0.4 + 0.5 * (usual - recall)),
        (
            Evidence("rows of the most common class for one of the rarest", ratio, "about 1"),
            Evidence("share of the rare classes' rows that are recognised", recall, usual),
        ),
        f"Some classes have up to {ratio:.0f} times fewer rows than the most common one, and the model does not find "
        "them: "
        "ignoring a rare class costs the loss next to nothing. Weights make each class count the same.",
        tuple(_balanced(exam, weights.float(), counts)),
    )


def _labels(exam: Examination, targets: Tensor) -> Tensor | None:
    stick = exam.case.yardstick
    if stick.work == "classes" and targets.numel() == len(targets):
        flat = targets.reshape(-1)
        return flat.long() if bool((flat >= 0).all()) else None
    if stick.work == "one_hot":
        return targets.argmax(1)
    if stick.work == "binary" and targets.numel() == len(targets):
        return (targets.reshape(-1) > sum(stick.values) / 2).long()
    return None


def _looked_at(exam: Examination) -> list[tuple[Any, Tensor]]:
    found = []
    for inputs, targets in (exam.program.train, exam.program.held):
        if isinstance(targets, Tensor):
            index = torch.arange(min(len(targets), 4096)) * len(targets) // min(len(targets), 4096)
            found.append((taken(inputs, index), taken(targets, index)))
    return found


def _gap(exam: Examination, inputs: Any, targets: Tensor, rare: Tensor) -> tuple[float, float] | None:
    """Recall of the rare classes and of the others, where the first is below by more than three standard errors."""
    labels, guessed = _labels(exam, targets), _guessed(exam, inputs)
    if labels is None or guessed is None or len(guessed) != len(labels) or int(labels.max()) >= len(rare):
        return None
    is_rare = rare[labels]
    few, many = int(is_rare.sum()), int((~is_rare).sum())
    if few < 3 or many < 3:
        return None
    right = (guessed == labels).double()
    recall, usual = float(right[is_rare].mean()), float(right[~is_rare].mean())
    error = math.sqrt(0.25 / few + 0.25 / many)
    return (recall, usual) if usual - recall > max(0.1, 2 * error) else None


def _guessed(exam: Examination, inputs: Any) -> Tensor | None:
    """The class that the observed model gives each row."""
    assert exam.observed is not None
    assert exam.observed.start is not None
    model = exam.observed.start.objective.model
    weights = next(model.parameters())
    given = map_tree(lambda leaf: leaf.to(weights.device), cast(inputs, weights.dtype))
    try:
        with torch.no_grad(), mode(model, training=False), private_randomness(torch.device("cpu")):
            outputs = model(given)
    except FAILURES:
        return None
    if not isinstance(outputs, Tensor) or outputs.ndim > 2:
        return None
    outputs = outputs.cpu().float()
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return outputs.argmax(1)
    flat, loss, values = outputs.reshape(-1), exam.program.loss, exam.case.yardstick.values
    if losses.family(loss) == "elementwise":
        return (flat > sum(values) / 2).long()
    bounded = bool((flat >= 0).all()) and bool((flat <= 1).all())
    logits = losses.family(loss) == "binary" and not losses.on_probabilities(loss)
    return (flat > (0.5 if bounded and not logits else 0.0)).long()


def _balanced(exam: Examination, weights: Tensor, counts: Tensor) -> list[Remedy]:
    loss, found = exam.program.loss, []
    if isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) and loss.weight is None:
        code = f"loss = nn.{type(loss).__name__}(weight=len(y) / (classes * torch.bincount(y)))"
        found.append(_weighted("weight", weights, code))
    if isinstance(loss, nn.BCEWithLogitsLoss) and loss.pos_weight is None and len(counts) == 2:
        code = "loss = nn.BCEWithLogitsLoss(pos_weight=(y == 0).sum() / (y == 1).sum())"
        found.append(_weighted("pos_weight", counts[:1].float() / counts[1:].float().clamp_min(1), code))
    return [*found, _repeated(exam)]


def _weighted(name: str, weights: Tensor, code: str) -> Remedy:
    def edit(loss: Any) -> Any:
        if not isinstance(loss, nn.Module) or name not in loss._buffers:
            return loss
        changed = copy.deepcopy(loss)
        changed.register_buffer(name, weights.clone())
        return changed

    return Remedy("weight the classes by how rare they are", code, on_loss=edit, place="balance", order=LOSS)


def _repeated(exam: Examination) -> Remedy:
    def edit(rows: Rows) -> Rows:
        labels = _labels(exam, rows.targets)
        if labels is None:
            return rows
        counts = torch.bincount(labels)
        times = (counts.max() // counts.clamp_min(1)).clamp(1, 50)
        return _only(rows, torch.arange(len(labels)).repeat_interleave(times[labels]))

    code = (
        "sampler = WeightedRandomSampler(1 / torch.bincount(y)[y], len(y))\nloader = DataLoader(data, sampler=sampler)"
    )
    return Remedy("take rows of rare classes more often", code, on_rows=edit, place="balance", order=ROWS)


# Split


def train_valid_mismatch(exam: Examination) -> Suspicion | None:
    """Held-out rows of another kind than the training rows.

    Told by their units (mean and deviation of columns, far beyond the noise of samples), or by classical learners: what
    they learn from training rows holds for other training rows and not for the held-out ones, which can be learned
    within themselves.
    """
    held, pair = exam.case.valid, _pair(exam)
    if held is None or pair is None or _kept(exam, "split") or not isinstance(held.targets, Tensor):
        return None
    evidence, moved = _other_units(exam, pair, held)
    broken = _does_not_carry_over(exam)
    if broken:
        evidence += broken
    if not evidence:
        return None
    remedies = [r for r in (_same_units(pair, held, moved), _split_again(exam)) if r is not None]
    return Suspicion(
        "train_valid_mismatch",
        0.9 if broken else 0.6,
        tuple(evidence),
        "The held-out rows are of another kind than the training rows: prepared in another way, or from elsewhere. "
        "What is "
        "learned does not hold for them, and the score on them says nothing about the training.",
        tuple(remedies),
        proof=bool(broken) or any(word == "wholly" for word in moved.values()),
        advice="Prepare both parts by the same code with the same numbers, and split at random.",
    )


def _other_units(exam: Examination, pair: tuple[Tensor, Tensor], held: Rows) -> tuple[list[Evidence], dict[str, str]]:
    """Inputs or numeric targets whose columns have moved; "wholly" where nothing but other units explains it."""
    evidence, moved = [], {}
    parts = [("inputs", features(pair[0]) if _continuous(pair[0]) else None, features(held.inputs))]
    if exam.case.yardstick.work == "regression":
        parts.append(("targets", features(pair[1]), features(held.targets)))
    for name, train, other in parts:
        if train is None or other is None or train.shape[1] != other.shape[1] or min(len(train), len(other)) < 8:
            continue
        shift, ratio, counted = _moved(train, other)
        if counted < 1:
            continue
        far = (shift > 1) | (ratio > 2)
        utterly = (shift > 3) | (ratio > 5)
        if float(far.double().mean()) <= 0.5:
            continue
        moved[name] = "wholly" if float(utterly.double().mean()) > 0.5 else "partly"
        evidence.append(
            Evidence(
                f"shift of the {name} of held-out rows, in deviations of the training rows", float(shift.median()), 0.0
            )
        )
        evidence.append(Evidence(f"ratio of the deviations of their {name}", float(ratio.median()), 1.0))
    return evidence, moved


def _continuous(inputs: Tensor) -> bool:
    return inputs.is_floating_point() or inputs.dtype == torch.uint8


def _moved(train: Tensor, other: Tensor) -> tuple[Tensor, Tensor, int]:
    """Shift of the mean and ratio of the deviations by column, less four standard errors; of columns that vary."""
    train, other = train[torch.isfinite(train).all(1)], other[torch.isfinite(other).all(1)]
    if min(len(train), len(other)) < 8:
        return torch.zeros(0), torch.zeros(0), 0
    first, second = train.std(0, correction=0), other.std(0, correction=0)
    varies = first > 1e-7 * train.abs().amax(0)
    first, second = first[varies], second[varies]
    size = min(len(train), len(other))
    shift = (other.mean(0) - train.mean(0))[varies].abs() / first - 4 / math.sqrt(size)
    tails = ((train - train.mean(0))[varies[None].expand_as(train)].reshape(len(train), -1) / first).pow(4).mean(0)
    error = (tails.clamp_min(1) / (4 * size)).sqrt()  # of the logarithm of a deviation
    ratio = ((second / first).clamp_min(1e-12).log().abs() - 4 * error).clamp_min(0).exp()
    return shift.clamp_min(0), ratio, int(varies.sum())


def _error(rows: int, classes: int) -> float:
    """A generous standard error of a score on so many rows.

    An accuracy has at most 0.5 / sqrt(n), and the score stretches it by 1 / (1 - 1 / classes); half as much again for
    classes that are not equally common. The share of variance explained has about 1 / sqrt(n), more with long tails.
    """
    return (0.75 / (1 - 1 / classes) if classes > 1 else 1.5) / math.sqrt(max(1, rows))


def _does_not_carry_over(exam: Examination) -> list[Evidence]:
    seen, held = exam.reference, exam.case.valid
    if seen.score is None or seen.valid_score is None or seen.within_valid is None or held is None or seen.rows is None:
        return []
    classes = exam.case.yardstick.classes
    first = _error(len(seen.rows) // 5, classes)
    second = _error(min(len(leaves(held.inputs)[0]), 4000), classes)
    if seen.score - seen.valid_score < max(3 * math.hypot(first, second), 0.3 * seen.score):
        return []
    if seen.within_valid - seen.valid_score < max(2 * 1.5 * second, 0.2):
        return []
    return [
        Evidence(f"score of {seen.learner} on training rows it did not see", seen.score),
        Evidence("its score on the held-out rows", seen.valid_score, seen.score),
        Evidence("score where it learns from some held-out rows and is tried on others", seen.within_valid),
    ]


def _same_units(pair: tuple[Tensor, Tensor], held: Rows, moved: dict[str, str]) -> Remedy | None:
    if not moved:
        return None
    edits = {
        name: _onto(tree, getattr(held, name))
        for name, tree in zip(("inputs", "targets"), pair, strict=True)
        if name in moved
    }

    def edit(rows: Rows) -> Rows:
        if rows.ids is not None:  # training rows stay
            return rows
        return replace(rows, **{name: change(getattr(rows, name)) for name, change in edits.items()})

    what = " and ".join(moved)
    return Remedy(
        f"give the {what} of held-out rows the units of the training rows",
        "scaler.fit(X); X, Xv = scaler.transform(X), scaler.transform(Xv)  # the same numbers for both",
        on_rows=edit,
        also_valid=True,
        place="split",
        order=ROWS,
    )


def _onto(train: Tensor, other: Tensor) -> Callable[[Tensor], Tensor]:
    """Moves columns from the mean and deviation of one set of rows to those of another."""
    flat, away = train.reshape(len(train), -1).double(), other.reshape(len(other), -1).double()
    factor = flat.std(0, correction=0) / away.std(0, correction=0).clamp_min(1e-30)
    factor = torch.where(away.std(0, correction=0) > 0, factor, torch.ones_like(factor))
    shift = flat.mean(0) - away.mean(0) * factor

    def change(values: Tensor) -> Tensor:
        moved = values.reshape(len(values), -1).double() * factor + shift
        return moved.reshape(values.shape).to(train.dtype)

    return change


def _split_again(exam: Examination) -> Remedy | None:
    """Both parts are put together and divided at random, in the same numbers."""
    held, train = exam.case.valid, exam.case.train
    if held is None or not isinstance(train.inputs, Tensor) or not isinstance(held.inputs, Tensor):
        return None
    if train.inputs.shape[1:] != held.inputs.shape[1:] or train.targets.shape[1:] != held.targets.shape[1:]:
        return None
    size, count = len(train.inputs), len(held.inputs)
    order = torch.randperm(size + count, generator=torch.Generator().manual_seed(0))
    inputs = torch.cat([train.inputs, held.inputs.to(train.inputs.dtype)])
    targets = torch.cat([train.targets, held.targets.to(train.targets.dtype)])

    def edit(rows: Rows) -> Rows:
        mine = order[:size] if rows.ids is not None else order[size:]
        if len(rows.inputs) < len(mine):
            mine = mine[: len(rows.inputs)]
        return replace(rows, inputs=inputs[mine], targets=targets[mine])

    return Remedy(
        "put training and held-out rows together and split them at random",
        "X, Xv, y, yv = train_test_split(torch.cat([X, Xv]), torch.cat([y, yv]), test_size=len(Xv))",
        on_rows=edit,
        also_valid=True,
        place="split",
        order=ROWS,
    )


def duplicate_leak(exam: Examination) -> Suspicion | None:
    """Held-out rows that are copies of training rows: the score on them shows what was memorised.

    Values that repeat by themselves (few columns with few values) do so within the training rows too: the share of
    training rows that have a twin among the others is the share of copies that chance gives.
    """
    held, pair = exam.case.valid, _pair(exam)
    if held is None or pair is None or _kept(exam, "copies") or _kept(exam, "split"):
        return None
    if not isinstance(held.inputs, Tensor) or not isinstance(held.targets, Tensor):
        return None
    if pair[0].shape[1:] != held.inputs.shape[1:] or len(held.inputs) < 5:
        return None
    if _few_kinds(pair[0]):
        return None
    own, other = _hashes(pair[0], pair[1]), _hashes(held.inputs, held.targets)
    counts: dict[bytes, int] = {}
    for row in own:
        counts[row] = counts.get(row, 0) + 1
    copies = sum(row in counts for row in other)
    share, by_chance = copies / len(other), sum(c for c in counts.values() if c > 1) / len(own)
    error = math.sqrt((by_chance * (1 - by_chance) + 1 / len(own)) / len(other))
    if share < by_chance + 5 * error or share < max(0.02, 2 * by_chance):
        return None
    return Suspicion(
        "duplicate_leak",
        0.9,
        (
            Evidence("held-out rows that are copies of training rows", f"{copies} of {len(other)}", 0),
            Evidence("share of training rows that have a twin among themselves", by_chance),
        ),
        f"{copies} of {len(other)} held-out rows are in the training data too. The score on them says how well rows "
        "are "
        "remembered, not how well new ones are predicted: it is too good.",
        (_without_copies(exam),),
        proof=True,
        severity="serious" if share > 0.2 else "minor",
        advice="Split before rows are repeated or augmented, and by the thing they come from (a patient, a picture).",
    )


def _few_kinds(inputs: Tensor) -> bool:
    """Whether the columns have so few values that there are hardly more possible rows than rows."""
    flat = inputs.reshape(len(inputs), -1)
    kinds = 1.0
    for column in flat[:5000].unbind(1):
        kinds *= len(torch.unique(column))
        if kinds > 10 * len(flat):
            return False
    return flat.shape[1] > 1 or kinds < 0.5 * min(len(flat), 5000)


def _hashes(inputs: Tensor, targets: Tensor) -> list[bytes]:
    columns = [inputs.reshape(len(inputs), -1).double(), targets.reshape(len(targets), -1).double()]
    return [row.tobytes() for row in torch.cat(columns, 1).cpu().numpy()]


def _without_copies(exam: Examination) -> Remedy:
    held = exam.case.valid
    assert held is not None
    known = set(_hashes(held.inputs, held.targets))

    def edit(rows: Rows) -> Rows:
        if rows.ids is None:
            return rows
        fresh = [k for k, row in enumerate(_hashes(rows.inputs, rows.targets)) if row not in known]
        enough = len(fresh) >= max(2, len(rows.inputs) // 10)
        return _only(rows, torch.tensor(fresh, dtype=torch.int64)) if enough else rows

    code = "seen = {row.tobytes() for row in Xv.numpy()}\n"
    code += "fresh = [k for k, row in enumerate(X.numpy()) if row.tobytes() not in seen]"
    return Remedy(
        "leave out training rows that are held out too",
        code + "\nX, y = X[fresh], y[fresh]",
        on_rows=edit,
        place="copies",
        order=ROWS,
    )


# Labels


def shuffled_labels(exam: Examination) -> Suspicion | None:
    """Targets that do not belong to their rows, while those of the held-out rows do.

    A classical learner gets little from training rows for other training rows, and what it gets holds better for the
    held-out rows, or those can be learned within themselves: then it is the training targets that are wrong.
    """
    seen, held = exam.reference, exam.case.valid
    if seen.score is None or seen.within_valid is None or seen.valid_score is None or held is None or seen.rows is None:
        return None
    classes = exam.case.yardstick.classes
    rows, others = len(seen.rows) // 5, min(4000, len(leaves(held.inputs)[0]))
    if rows < 20 or others < 20:
        return None
    possible = max(seen.within_valid, seen.valid_score)
    error = math.hypot(_error(rows, classes), _error(others // 2, classes))
    if possible - seen.score < max(3 * error, 0.25) or seen.score > 0.5 * possible:
        return None
    return Suspicion(
        "shuffled_labels",
        0.9,
        (
            Evidence(f"score of {seen.learner} on training rows it did not see", seen.score, possible),
            Evidence("its score on the held-out rows", seen.valid_score),
            Evidence("score where it learns from some held-out rows and is tried on others", seen.within_valid),
        ),
        "The held-out rows can be learned, and the training rows cannot: most training targets do not belong to their "
        "rows. Usually inputs and targets were shuffled, sorted, filtered or joined apart from each other.",
        proof=True,
        severity="fatal",
        advice="Shuffle, sort and filter inputs and targets with one and the same index; look at a few rows by eye.",
    )


_BEYOND_OVERLAP = 0.3
"""Classes that overlap (two normal distributions, a logistic law, of any width) leave at most a quarter of such rows
with another label: where more would, neighbours do not agree."""


def label_noise(exam: Examination) -> Suspicion | None:
    """Labels that contradict what rows like theirs say, also far from the border between classes.

    Where classes overlap, labels disagree near the border; wrong labels are found everywhere. So rows are counted whose
    neighbours, and whose neighbours' neighbours, all point to one class, and that have another label.
    """
    pair, seen = _pair(exam), exam.reference
    if pair is None or seen.agreement is None or seen.guesses is None or seen.rows is None or _kept(exam, "labels"):
        return None
    ids = seen.rows
    labels = _labels(exam, exam.case.train.targets[ids])
    if labels is None or len(ids) < 2 * _FEWEST:
        return None
    wrong = seen.guesses != labels
    deep = _deep(exam, ids, seen.guesses) if float(wrong.double().mean()) > 0.03 else wrong[:0]
    count = int(deep.sum())
    if count < _FEWEST // 2:
        return None
    kinds = torch.bincount(seen.guesses[deep]).sort(descending=True).values
    if len(kinds) < 2 or int(kinds[1]) < max(5, count // 10):
        return None  # one class all over: its share is all that neighbours can say
    share = float(wrong[deep].double().mean())
    error = math.sqrt(share * (1 - share) / count)
    least, chance = share - 2 * error, 1 / max(2, exam.case.yardstick.classes)
    if least < 0.1 or 1 - share < chance + 3 * error:
        return None
    doubtful = wrong & (seen.agreement <= 0.25)
    names = ids[doubtful]
    return Suspicion(
        "label_noise",
        min(0.8, 0.3 + share),
        (
            Evidence("share of rows with another label than all rows around them", share, 0.0),
            Evidence("rows whose label is likely wrong", int(doubtful.sum()), 0),
            Evidence("the first of them", ", ".join(str(k) for k in sorted(names.tolist())[:5])),
        ),
        f"About {share:.0%} of the training rows have another label than all the rows like them, also far from the "
        "border between classes: likely these labels are wrong.",
        (_relabelled(exam, names, seen.guesses[doubtful]), _unlabelled(names)),
        proof=least > _BEYOND_OVERLAP,
        advice="Look at the rows listed by eye before anything is dropped.",
    )


def _deep(exam: Examination, ids: Tensor, guesses: Tensor) -> Tensor:
    """Rows whose nearest neighbours, and theirs, all have the same guess."""
    every = features(exam.case.train.inputs)
    assert every is not None
    rows = every[ids]
    scale = rows.std(0, correction=0)
    rows = ((rows - rows.mean(0)) / torch.where(scale > 0, scale, torch.ones_like(scale))).float()
    distance = torch.cdist(rows, rows)
    near = distance.topk(min(11, len(rows)), largest=False).indices
    alike = (guesses[near] == guesses[:, None]).all(1)
    return alike[near].all(1)


def _relabelled(exam: Examination, names: Tensor, guesses: Tensor) -> Remedy:
    work, values = exam.case.yardstick.work, exam.case.yardstick.values
    order = names.argsort()
    names, guesses = names[order], guesses[order]

    def edit(rows: Rows) -> Rows:
        if rows.ids is None:
            return rows
        place = torch.searchsorted(names, rows.ids).clamp_max(len(names) - 1)
        hit = names[place] == rows.ids
        targets, found = rows.targets.clone(), guesses[place][hit]
        if work == "one_hot":
            targets[hit] = nn.functional.one_hot(found, targets.shape[1]).to(targets.dtype)
        elif work == "binary":
            both = torch.tensor(values, dtype=targets.dtype)
            targets[hit] = both[found].reshape(targets[hit].shape)
        else:
            targets[hit] = found.to(targets.dtype).reshape(targets[hit].shape)
        return replace(rows, targets=targets)

    code = "y[doubtful] = label_of_most_neighbours[doubtful]  # after looking at them"
    return Remedy(
        "give doubtful rows the label of the rows around them", code, on_rows=edit, place="labels", order=ROWS
    )


def _unlabelled(names: Tensor) -> Remedy:
    def edit(rows: Rows) -> Rows:
        return rows if rows.ids is None else _only(rows, (~torch.isin(rows.ids, names)).nonzero().flatten())

    return Remedy(
        "leave out rows whose label is likely wrong",
        "X, y = X[~doubtful], y[~doubtful]",
        on_rows=edit,
        place="labels",
        order=ROWS,
    )


ON_ONE_BATCH = (
    nan_in_data, constant_target, unscaled_input, unscaled_target, unshuffled_data, train_valid_mismatch,
    duplicate_leak, shuffled_labels,
)  # fmt: skip
IN_MOTION = (class_imbalance, label_noise)
