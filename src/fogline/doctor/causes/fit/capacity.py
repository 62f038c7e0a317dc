"""A network that learns by heart, or that cannot learn what there is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from fogline.doctor.anatomy import Layer
from fogline.doctor.causes.data.order import passed_over
from fogline.doctor.causes.data.split import train_valid_mismatch
from fogline.doctor.causes.flow.anew import also_done
from fogline.doctor.causes.flow.weights import bad_init
from fogline.doctor.causes.flow.width import THROUGH, inputs_of, width_of
from fogline.doctor.closeup import path_of
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, RATE, Evidence, Remedy, Suspicion
from fogline.doctor.remedies import smoothed_labels
from fogline.doctor.standing import motion, risen, standing, steps_of
from fogline.doctor.surgery import directions, has, replaced, widened

_WIDE, _CHANNELS = 64, 32
_KERNEL = 3
_SETTLED = 0.25
_MOSTLY = 0.5  # of all that the held-out loss moved
_ABOUT = 0.03
_FEW_ROWS = 40
_HANDFUL = 4
_DECAYS = (2.0, 0.1)
"""Far more than is usual in long runs on many rows, and what is usual in those on few."""


def overfitting(exam: Examination) -> Suspicion | None:
    """The rows are known by heart: the held-out loss turns up while the training loss goes on falling."""
    seen = exam.observed
    if seen is None or seen.error or not math.isfinite(seen.train_loss) or not exam.case.supervised:
        return None
    if exam.case.valid is None and not len(exam.case.held):
        return None
    stands = standing(exam)
    curve = [(step, loss) for step, _, loss in seen.looks if math.isfinite(loss)]
    if len(curve) < 4 or train_valid_mismatch(exam) is not None:
        return None  # held-out rows of another kind say nothing of what was learned by heart
    gap, share = stands.train_score - stands.score, risen(seen.looks)
    # On rows that were not learned from the score is a sample; on learned ones it is what was asked for.
    least = (2 if share > _MOSTLY else 4) * stands.error
    if gap < max(0.1, least) or stands.train_score < 0.5 or seen.train_loss > curve[-1][1]:
        return None
    # Where nothing can be learned of other rows, these being known by heart is what is left.
    something = max(stands.score, exam.reference.score or 0.0) > 0.1
    # Nor is by heart what a classical learner answers better without having seen it.
    better = not stands.known or stands.train_score > stands.goal - _ABOUT
    by_heart = gap > (0.25 if stands.scaled else 0.4) and stands.train_score > 0.9 and something and better
    if share < 0.1 and not by_heart:
        return None
    lowest = min(loss for _, loss in curve)
    at = next(step for step, loss in curve if loss == lowest)
    # Of a loss nobody knows what is perfect: there other rows have to be answered no better than by a constant.
    well = stands.train_score > 0.9 if stands.scaled else seen.score < 0.1
    turned = share > 0.2 and gap > 0.25 and well
    if not (stands.scaled or turned or by_heart):
        return None
    drawn = bad_init(exam) is not None  # large first weights fit any rows by what is drawn, and no others
    surely = (turned or (by_heart and stands.scaled)) and gap > least and not _only_rare_ones(exam, stands.train_score)
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
        (*smoothed, *map(_decaying, _DECAYS)),
        proof=surely and not drawn,
        follows=drawn,
        advice="more rows, augmentation, a smaller network or dropout; patience=5 saves steps",
    )


def _decaying(decay: float) -> Remedy:
    return Remedy(
        f"adamw with weight decay {decay:g}",
        f'fogline.Recipe(optimizer="adamw", weight_decay={decay:g})',
        on_recipe=lambda recipe: recipe.replace(optimizer="adamw", weight_decay=decay, options={}, lr="auto"),
        costs=True,
        place="rate",
        order=RATE,
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
    if not known or not stands.train_short or moves.refused:
        return None
    if (seeing := _one_place_at_a_time(anatomy.layers, stands.train_score, stands.goal)) is not None:
        return seeing
    if moves.fallen < 0.02:
        return None
    on_its_way = moves.slope > _SETTLED and moves.significance > 3
    if not steps.path > 0.5:
        return None
    layers = [layer for layer in anatomy.layers if isinstance(layer.module, THROUGH)]
    counted = sum(p.numel() for layer in layers for p in layer.module.parameters())
    weights = sum(p.numel() for p in anatomy.model.parameters())
    labels = exam.case.yardstick.work in ("classes", "one_hot")
    wanted = exam.program.rows * (1 if labels or not layers else width_of(layers[-1]))
    widths = [width_of(layer) for layer in layers[:-1]]
    # With as many weights as numbers to fit, rows can be learned by heart: then it is not the size. Only with a
    # handful of units may all of them stand where no slope leads on.
    handful = min(widths, default=0) <= _HANDFUL
    if not layers or counted < 0.9 * weights or ((weights > wanted or on_its_way) and not handful):
        return None
    remedy = more_units(layers)
    if remedy is None:
        return None
    return Suspicion(
        "underfitting",
        0.45 if on_its_way else 0.65,
        (
            Evidence("score on learned rows", stands.train_score, f"{stands.goal:.3g}, as classical learners get"),
            Evidence("units of the hidden layers", ", ".join(map(str, widths)) or "no hidden layer", "more"),
            Evidence("fall of the loss over as many steps again, relative to all it fell", moves.slope, "not near 0"),
        ),
        f"{'Not' if on_its_way else 'The loss has settled, but not'} even the rows that were learned from are answered "
        "well, although there is something to learn in them: the network is too small to express it.",
        (remedy,),
        simpler=also_done(layers),
    )


def _one_place_at_a_time(layers: Sequence[Layer], score: float, goal: float) -> Suspicion | None:
    """Convolutions that all have kernels of one place, on inputs of many: no form is seen, however wide they are."""
    found = [layer for layer in layers if isinstance(layer.module, _ConvNd) and not layer.module.transposed]
    names = [layer.name for layer in found if layer.received is not None and max(layer.received.shape[2:]) >= _KERNEL]
    if not names or any(max(_convolution(layer).kernel_size) > 1 for layer in found):
        return None
    return Suspicion(
        "underfitting",
        0.6,
        (
            Evidence("score on learned rows", score, f"{goal:.3g}, as classical learners get"),
            Evidence("largest kernel of a convolution", 1, "3 or more", layer=names[0]),
        ),
        "Every convolution looks at a single place: what lies beside what, which is all that a form is, is not seen.",
        (
            Remedy(
                f"kernels of {_KERNEL} places instead of one",
                "\n".join(f"let {path_of(name)} have kernel_size={_KERNEL}, padding={_KERNEL // 2}" for name in names),
                on_model=lambda model: _seeing_more(model, names),
                place="kernel",
                order=BODY,
            ),
        ),
    )


def _convolution(layer: Layer) -> _ConvNd:
    assert isinstance(layer.module, _ConvNd)
    return layer.module


def _seeing_more(model: nn.Module, names: Sequence[str]) -> nn.Module:
    for name in names:
        if has(model, name):
            model = replaced(model, name, _with_larger_kernel)
    return model


def _with_larger_kernel(module: nn.Module) -> nn.Module:
    assert isinstance(module, _ConvNd)
    with torch.random.fork_rng(devices=[]):
        kind: Any = type(module)
        made: nn.Module = kind(
            module.in_channels, module.out_channels, _KERNEL, stride=module.stride, padding=_KERNEL // 2,
            groups=module.groups, bias=module.bias is not None,
        )  # fmt: skip
    return made.to(module.weight.device, module.weight.dtype)


def more_units(layers: Sequence[Layer]) -> Remedy | None:
    """Wider hidden layers, or one where there is none; None where they are wide."""
    narrow = [
        (first.name, second.name, _wide(first))
        for first, second in pairwise(layers)
        if width_of(first) < _wide(first) and _reads(second, first)
    ]
    if narrow:
        return _wider(narrow)
    only = layers[0] if len(layers) == 1 else None
    return _deeper(only.name) if only is not None and isinstance(only.module, nn.Linear) else None


def _wide(layer: Layer) -> int:
    return _CHANNELS if isinstance(layer.module, (_ConvNd, nn.Embedding)) else _WIDE


def _reads(second: Layer, first: Layer) -> bool:
    """Whether a layer is given what another one gives, at each position or at all of them."""
    width, given = directions(first.module) * width_of(first), inputs_of(second)
    all_positions = isinstance(first.module, _ConvNd) and isinstance(second.module, nn.Linear)
    return given == width or (all_positions and given % width == 0)


def _wider(pairs: list[tuple[str, str, int]]) -> Remedy:
    def edit(model: nn.Module) -> nn.Module:
        for first, second, width in pairs:
            model = widened(model, first, second, width)
        return model

    widths = {width for _, _, width in pairs}
    wanted = " and ".join(map(str, sorted(widths)))
    return Remedy(
        f"widen the hidden layers to {wanted} units",
        "\n".join(
            f"let {path_of(first)} have {width} outputs, and {path_of(second)} as many inputs"
            for first, second, width in pairs
        ),
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
