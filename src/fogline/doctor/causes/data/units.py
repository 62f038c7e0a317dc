"""Inputs and targets in units that first weights and learning rates are not made for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from fogline.data.source import Collated, leaves, map_tree
from fogline.doctor.anatomy import BENDS, Anatomy, Layer, same_numbers
from fogline.doctor.causes.data.common import kept_at, pair_of
from fogline.doctor.examination import Examination
from fogline.doctor.finding import WRAP, Evidence, Remedy, Suspicion
from fogline.doctor.heads import bend, reach
from fogline.doctor.reading import is_difference, several_for_one
from fogline.doctor.scaling import (
    NORMS,
    UNEVEN,
    Scales,
    as_received,
    first_layer,
    input_excess,
    scaled_loss,
    scaled_outputs,
    scales_of,
    target_excess,
    weighs,
)
from fogline.doctor.surgery import Wrapped


def unscaled_input(exam: Examination) -> Suspicion | None:
    """Inputs far from size one, or columns of different units.

    The slope with respect to a weight is proportional to its input. The loss is as many times steeper along the largest
    column than along the smallest as the ratio of their squares, and no learning rate suits both; and where all are
    large, the first units saturate or the first steps are far too long.
    """
    if kept_at(exam, "inputs"):
        return None
    parts = [(part, input_excess(part.scales)) for part in inputs_of(exam)]
    beyond = [pair for pair in parts if pair[1].times > 1]
    if _normalised_behind(exam.anatomy):  # one size that all share is gone there
        beyond = [pair for pair in beyond if pair[1].uneven > UNEVEN]
    if not beyond:
        return None
    worst, excess = max(beyond, key=lambda pair: pair[1].times)
    return Suspicion(
        "unscaled_input",
        min(0.9, 0.35 + 0.25 * math.log10(excess.times)),
        (
            Evidence("root mean square of the inputs", excess.overall, 1.0),
            Evidence("size of the largest column against the spread of a middle one", excess.uneven, "about 1"),
            _worst(exam, worst.scales),
        ),
        "The inputs are not scaled: they are far from the size of about one that first weights are made for, or their "
        "columns differ in size. The loss is then steep along large columns and flat along small ones, and no learning "
        "rate suits both.",
        (_standardised(exam, [part for part, _ in beyond]),),
    )


def _normalised_behind(anatomy: Anatomy) -> bool:
    """Whether what the first layer makes of the inputs is normalised at once."""
    first = first_layer(anatomy)
    if first is None or first.output is None:
        return False
    behind = [layer for layer in anatomy.layers if isinstance(layer.module, NORMS) and layer.received is not None]
    return any(same_numbers(layer.received, first.output) for layer in behind if layer.received is not None)


@dataclass(frozen=True)
class Part:
    """A tensor of the inputs that a layer gets as it is.

    Attributes:
        place: among all tensors of the inputs.
        key: its name or number in a dict or tuple of inputs; None where the inputs are one tensor.
        values: of all training rows.
        scales: of them.
    """

    place: int
    key: Any
    values: Tensor
    scales: Scales


def inputs_of(exam: Examination) -> list[Part]:
    """The tensors of the inputs that first weights are multiplied with; nothing that a layer normalises or looks up."""
    inputs = exam.program.train[0] if exam.case.supervised else exam.program.train
    given = exam.anatomy.batch[0] if exam.case.supervised else exam.anatomy.batch
    if isinstance(inputs, Tensor):
        fits = not inputs.is_complex() and inputs.ndim > 0 and isinstance(given, Tensor)
        first = first_layer(exam.anatomy)
        return _part(0, None, inputs, first) if fits and as_received(given, first) else []
    if isinstance(inputs, Collated):
        return []
    keys = list(inputs) if isinstance(inputs, dict) else list(range(len(leaves(inputs))))
    found: list[Part] = []
    for place, (values, some) in enumerate(zip(leaves(inputs), leaves(given), strict=True)):
        weighing = [layer for layer in exam.anatomy.layers if weighs(layer)]
        whole = next((layer for layer in weighing if as_received(some, layer)), None)
        receiver = whole or next((layer for layer in weighing if _among_columns(some, layer)), None)
        if receiver is not None and values.is_floating_point() and len(keys) == len(leaves(inputs)):
            found += _part(place, keys[place], values, receiver)
    # What a batch holds beside the inputs is for the loss; the model is taken to be given one tensor.
    return found if exam.case.supervised else found[:1]


def _among_columns(values: Tensor, layer: Layer) -> bool:
    """Whether a layer is given these (b, k) numbers beside others, put together by their columns."""
    given = layer.received
    if given is None or given.ndim != 2 or values.ndim != 2 or len(given) != len(values):
        return False
    width = values.shape[1]
    return any(torch.equal(given[:, k : k + width], values) for k in range(given.shape[1] - width + 1))


def _part(place: int, key: Any, values: Tensor, receiver: Layer | None) -> list[Part]:
    module = None if receiver is None else receiver.module
    if isinstance(module, (*NORMS, nn.Embedding, nn.EmbeddingBag)):
        return []
    return [Part(place, key, values, scales_of(values, module))]


class _Scaled(nn.Module):
    """Brings some tensors of a dict or tuple of inputs to units of their own, by their place."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, inputs: Any) -> Any:
        places = count()

        def scaled(leaf: Tensor) -> Tensor:
            place = str(next(places))
            return self.parts[place](leaf) if place in self.parts else leaf

        return map_tree(scaled, inputs)


def _worst(exam: Examination, scales: Scales) -> Evidence:
    at = int(torch.where(scales.counted, scales.size, -1.0).argmax())
    columns = exam.case.facts.columns
    name = columns[at] if columns and len(columns) == len(scales.size) else str(at)
    what = f"mean and deviation of input column {name}" if len(scales.size) > 1 else "mean and deviation of the inputs"
    return Evidence(what, f"{float(scales.mean[at]):.3g}, {float(scales.deviation[at]):.3g}", "0, 1")


def _standardised(exam: Examination, parts: list[Part]) -> Remedy:
    name = f"X[{parts[0].key!r}]" if parts[0].key is not None else "X"
    over = {2: "0", 3: "(0, 1)", 4: "(0, 2, 3)"}.get(parts[0].values.ndim, "")
    keep = ", keepdim=True" if parts[0].values.ndim == 4 else ""
    over = over if len(parts[0].scales.mean) > 1 else ""
    code = f"mean, std = {name}.mean({over}{keep}), {name}.std({over}{keep}).clamp_min(1e-8)  # of the training data\n"
    code += f"{name} = ({name} - mean) / std"
    several = exam.case.supervised and parts[0].key is not None

    def before() -> nn.Module:
        scaled: dict[str, nn.Module] = {str(part.place): part.scales.module() for part in parts}
        return _Scaled(scaled) if several else next(iter(scaled.values()))

    return Remedy(
        "standardise the inputs",
        code + "  # and held-out data with the same numbers",
        on_model=lambda model: Wrapped(model, before=before()),
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
    fits = outputs.shape[1:].numel() == targets.shape[1:].numel() or several_for_one(outputs, targets)
    if not outputs.numel() or not fits or not is_difference(exam):
        return None
    columns = targets.reshape(len(targets), -1).double()
    columns = columns[torch.isfinite(columns).all(1)]
    if len(columns) < 2 or columns.shape[1] > 64:
        return None
    found = outputs.detach().double().reshape(-1, columns.shape[1])
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


def target_scaled(exam: Examination) -> Remedy | None:
    """The targets in numbers near one, whatever the loss makes of them; None where they are not numbers in columns."""
    pair = pair_of(exam)
    if pair is None or pair[1].ndim > 2 or not isinstance(exam.anatomy.outputs, Tensor):
        return None
    columns = pair[1].reshape(len(pair[1]), -1).double()
    columns = columns[torch.isfinite(columns).all(1)]
    mean, deviation = columns.mean(0), columns.std(0, correction=0)
    return _target_scaled(exam, mean, deviation, columns) if bool((deviation > 0).all()) else None


def _target_scaled(exam: Examination, mean: Tensor, deviation: Tensor, columns: Tensor) -> Remedy | None:
    """Model in units of the user, loss and layers in numbers near one; a bounded end is spread over the targets."""
    scale, shift = deviation, mean
    if exam.anatomy.head:
        bounds = reach(exam.anatomy)
        if bounds is None and bend(exam.anatomy) in BENDS.values():
            return None
        low, high = bounds or (-math.inf, math.inf)
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
    if exam.anatomy.outputs.ndim == 1 or len(scale) < exam.anatomy.outputs.shape[1]:
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
