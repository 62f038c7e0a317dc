"""Inputs and targets in units that first weights and learning rates are not made for."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from fogline.doctor.causes.data.common import kept_at, pair_of
from fogline.doctor.examination import Examination
from fogline.doctor.finding import WRAP, Evidence, Remedy, Suspicion
from fogline.doctor.gains import is_difference
from fogline.doctor.heads import reach
from fogline.doctor.scaling import (
    NORMS,
    Scales,
    as_received,
    first_layer,
    input_excess,
    scaled_loss,
    scaled_outputs,
    scales_of,
    target_excess,
)
from fogline.doctor.surgery import Wrapped


def unscaled_input(exam: Examination) -> Suspicion | None:
    """Inputs far from size one, or columns of different units.

    The slope with respect to a weight is proportional to its input. The loss is as many times steeper along the largest
    column than along the smallest as the ratio of their squares, and no learning rate suits both; and where all are
    large, the first units saturate or the first steps are far too long.
    """
    inputs = exam.program.train[0] if exam.case.supervised else exam.program.train
    if not isinstance(inputs, Tensor) or inputs.is_complex() or inputs.ndim < 1 or kept_at(exam, "inputs"):
        return None
    first = first_layer(exam.anatomy)
    if first is not None and isinstance(first.module, (*NORMS, nn.Embedding, nn.EmbeddingBag)):
        return None
    given = exam.anatomy.batch[0] if exam.case.supervised else exam.anatomy.batch
    if not isinstance(given, Tensor) or not as_received(given, first):
        return None
    scales = scales_of(inputs, None if first is None else first.module)
    excess = input_excess(scales)
    if not excess.times > 1:
        return None
    return Suspicion(
        "unscaled_input",
        min(0.9, 0.35 + 0.25 * math.log10(excess.times)),
        (
            Evidence("root mean square of the inputs", excess.overall, 1.0),
            Evidence("size of the largest column against the spread of a middle one", excess.uneven, "about 1"),
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
    pair, outputs = pair_of(exam), exam.anatomy.outputs
    if pair is None or exam.case.yardstick.work != "regression" or kept_at(exam, "target"):
        return None
    targets = pair[1]
    if not isinstance(outputs, Tensor) or exam.anatomy.stage not in ("", "backward"):
        return None
    if not outputs.numel() or outputs.shape[1:].numel() != targets.shape[1:].numel() or not is_difference(exam):
        return None
    columns = targets.reshape(len(targets), -1).double()
    columns = columns[torch.isfinite(columns).all(1)]
    if len(columns) < 2 or columns.shape[1] > 64:
        return None
    found = outputs.detach().double().reshape(len(outputs), -1)
    excess = target_excess(columns, found) if bool(torch.isfinite(found).all()) else None
    if excess is None or not excess.times > 1:
        return None
    mean, deviation = excess.mean, excess.deviation
    remedy = _target_scaled(exam, mean, deviation, columns)
    return Suspicion(
        "unscaled_target",
        min(0.9, 0.35 + 0.25 * math.log10(excess.times)),
        (
            Evidence("mean and deviation of the targets", f"{float(mean[0]):.3g}, {float(deviation[0]):.3g}", "0, 1"),
            Evidence("distance of the first outputs from the targets' mean, in their deviations", excess.away, "a few"),
            Evidence("spread of the first outputs against that of the targets", excess.wide, "about 1"),
        ),
        "The numbers to predict are not scaled: they are far from what a network with first weights puts out. Either "
        "the "
        "steps are far too short to get there, or the errors are so large that the gradients are too long for this "
        "learning rate.",
        () if remedy is None else (remedy, _with_measured_rate(remedy)),
        advice="Train on (y - mean) / std and turn predictions back with * std + mean.",
    )


def _with_measured_rate(remedy: Remedy) -> Remedy:
    """A rate that suits gradients as large as the targets does not suit those of the scaled ones."""
    return replace(
        remedy,
        title=f"{remedy.title} and measure the learning rate",
        patch=f'{remedy.patch}\nlr = "auto"',
        on_recipe=lambda recipe: recipe.replace(lr="auto"),
    )


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
