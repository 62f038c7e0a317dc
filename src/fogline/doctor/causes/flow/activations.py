"""Activations that are missing, dead or saturated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from fogline.doctor.anatomy import Anatomy, Layer
from fogline.doctor.causes.flow.weights import drawn_again, drawn_anew
from fogline.doctor.causes.flow.width import inputs_of, width_of
from fogline.doctor.closeup import (
    bend_before,
    hidden,
    listed,
    path_of,
    spreads,
    times_used,
    units_of,
    wide,
    wide_trained,
)
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, Evidence, Remedy, Suspicion
from fogline.doctor.standing import standing
from fogline.doctor.surgery import followed_by, he, swapped
from fogline.doctor.uncut import FirstByRelu, Within

_NEAR_LIMIT = 0.01
"""A sigmoid or tanh this near to its limit, relative to its range, lets less than 4 % of its gradient through."""
MOSTLY = 0.5
_HANDFUL = 4
_FEWEST_ROWS = 8
SATURATING: tuple[type[nn.Module], ...] = (nn.Sigmoid, nn.Tanh, nn.Softsign, nn.Hardsigmoid, nn.Hardtanh)


def missing_activation(exam: Examination) -> Suspicion | None:
    """Layers with nothing that bends between them: two matrices in a row are one matrix."""
    anatomy = exam.anatomy
    if anatomy.stage or not anatomy.pairs:
        return None
    widths = {layer.name: width_of(layer) for layer in anatomy.weighted}
    inputs = {layer.name: inputs_of(layer) for layer in anatomy.weighted}
    # A narrow middle is a factorised matrix, or the code of an autoencoder, which people leave linear on purpose.
    # So is a convolution that is taken apart, one by channel and one across channels.
    grouped = {layer.name for layer in anatomy.weighted if getattr(layer.module, "groups", 1) > 1}
    # What a skip connection reads as well is a stream, into which the layers behind it put their bends.
    streams = {layer.name for layer in anatomy.weighted if times_used(anatomy, layer) > 1}
    pairs = [
        (a, b)
        for a, b in anatomy.pairs
        if widths[a] >= min(inputs[a], widths[b]) and not grouped.intersection((a, b)) and a not in streams
    ]
    everything = len(anatomy.pairs) == len(anatomy.weighted) - 1
    if not pairs or (everything and not exam.case.supervised):
        return None
    like = _own_activation(anatomy.model)
    names = [first for first, _ in dict.fromkeys(pairs)]
    remedies = [_inserted(names, like)]
    if everything:
        remedies.append(_inserted(names, nn.Tanh))
    evidence = tuple(Evidence("operations that bend between", f"{a} and {b}: none", "one") for a, b in pairs[:4])
    return Suspicion(
        "missing_activation",
        0.75 if everything else 0.6,
        evidence,
        "Between these layers nothing bends: a linear layer of a linear layer is again one linear layer, so that the "
        + (
            "whole network can only learn a straight line, however deep it is."
            if everything
            else "second adds nothing."
        ),
        tuple(remedies),
    )


def _inserted(names: list[str], activation: Callable[[], nn.Module]) -> Remedy:
    kind = type(activation()).__name__
    code = "\n".join(f"{path_of(name)} = nn.Sequential({path_of(name)}, nn.{kind}())" for name in names)
    return Remedy(
        f"insert nn.{kind} behind {listed(names)}",
        code,
        on_model=lambda model: followed_by(model, names, activation),
        place="activation",
        order=BODY,
    )


def _own_activation(model: nn.Module) -> Callable[[], nn.Module]:
    """The activation that the model uses elsewhere, the last of a head aside; ReLU where it uses none."""
    kinds = [
        type(module) for module in model.modules() if isinstance(module, (nn.ReLU, nn.GELU, nn.SiLU, nn.LeakyReLU))
    ]
    tanh = [type(module) for module in model.modules() if isinstance(module, nn.Tanh)]
    return max(set(kinds), key=kinds.count) if kinds else nn.Tanh if len(tanh) > 1 else nn.ReLU


@dataclass(frozen=True)
class _Dead:
    name: str
    share: float
    units: int


def dead_layers(layers: list[Layer]) -> list[_Dead]:
    """Share of units that are below zero on every row and get a gradient from none: a ReLU behind them is shut."""
    found = []
    for layer in layers:
        if layer.output is None or layer.gradient is None or layer.output.shape != layer.gradient.shape:
            continue
        output, gradient = units_of(layer, layer.output), units_of(layer, layer.gradient)
        if len(layer.output) < _FEWEST_ROWS or not bool(torch.isfinite(output).all()):
            continue
        shut = (output < 0).all(0) & (gradient == 0).all(0)
        found.append(_Dead(layer.name, float(shut.float().mean()), len(shut)))
    return found


def dead_units(exam: Examination) -> Suspicion | None:
    """ReLU units that are zero on every row: no gradient passes, so they never come back."""
    anatomy = wide(exam) if exam.observed is None else wide_trained(exam)
    if anatomy is None or anatomy.stage:
        return None
    dead = [layer for layer in dead_layers(hidden(anatomy)) if layer.share > MOSTLY]
    if not dead:
        return None
    wholly = any(layer.share == 1 for layer in dead)
    if exam.observed is not None and not wholly and not standing(exam).short:
        return None
    evidence = tuple(
        Evidence("share of units that are zero on every row", layer.share, "below 0.5", layer=layer.name)
        for layer in dead[:4]
    )
    names = [layer.name for layer in anatomy.weighted]
    leaky = Remedy(
        "replace nn.ReLU by nn.LeakyReLU(0.1)",
        "use nn.LeakyReLU(0.1) in place of nn.ReLU()",
        on_model=lambda model: swapped(model, (nn.ReLU,), lambda: nn.LeakyReLU(0.1)),
        place="activation",
        order=BODY,
    )
    has_relu = any(isinstance(module, nn.ReLU) for module in anatomy.model.modules())
    leaks = (leaky,) if has_relu else ()
    at_first = exam.observed is None
    narrow = all(layer.units <= _HANDFUL for layer in dead)  # of one or two units all are soon dead
    return Suspicion(
        "dead_units",
        0.85 if wholly and at_first else 0.5,
        evidence,
        ("Before training has begun, " if at_first else "After training, ")
        + "most units of a layer are below zero for every example. A ReLU passes neither signal nor gradient there: "
        "what such a unit has learned is lost, and it cannot learn anything else.",
        (*drawn_again(anatomy, names), *leaks) if at_first else leaks,
        proof=wholly and at_first and not narrow,
        follows=narrow or not at_first,
        severity="fatal" if wholly else "serious",
        advice="" if leaks or at_first else "replace relu by leaky_relu, and take a lower learning rate",
    )


def _saturated(layers: list[Layer]) -> list[tuple[Layer, str, float]]:
    """Layers that read a sigmoid or tanh, with the share of its values that are at a limit."""
    found = []
    for layer in layers[1:]:
        kind = bend_before(layer)
        if kind not in ("sigmoid", "tanh") or layer.received is None:
            continue
        values = layer.received.detach().float()
        low, reach = (0.0, 1.0) if kind == "sigmoid" else (-1.0, 2.0)
        if not bool(torch.isfinite(values).all()) or not len(values):
            continue
        place = (values - low) / reach  # dropout in between scales some beyond 1
        at_limit = (place <= _NEAR_LIMIT) | (place >= 1 - _NEAR_LIMIT)
        found.append((layer, kind, float(at_limit.float().mean())))
    return found


def saturated_units(exam: Examination) -> Suspicion | None:
    """Sigmoid or tanh units that begin at their limits, where their slope, and with it the gradient, is almost zero."""
    anatomy = wide(exam)
    if anatomy.stage == "forward":
        return None
    full = [(layer, kind, share) for layer, kind, share in _saturated(anatomy.weighted) if share > MOSTLY]
    if not full:
        return None
    heavy = [spread.name for spread in spreads(anatomy) if spread.excess > 0]
    remedies = [drawn_anew(heavy)] if heavy else []
    relu = relu_instead(anatomy)
    if relu is not None:
        remedies.append(relu)
    return Suspicion(
        "saturated_units",
        0.7 if heavy else 0.45,
        tuple(
            Evidence(
                f"share of {kind} outputs at their limits before the first step", share, "below 0.5", layer=layer.name
            )
            for layer, kind, share in full[:4]
        ),
        "Most hidden units begin at the flat ends of their sigmoid or tanh: they answer almost the same to every "
        "example and pass almost no gradient back, because "
        + ("the first weights are too large." if heavy else "what comes in is too large."),
        tuple(remedies),
        advice="" if remedies else "use relu in place of sigmoid or tanh between layers, or standardise the inputs",
    )


def relu_instead(anatomy: Anatomy) -> Remedy | None:
    """ReLU in hidden layers, with first weights made for it; a sigmoid or tanh at the very end stays.

    Called as functions, those are taken for ReLU that layers read: as many as come before the last of them. None where
    there are neither.
    """
    names, at_end = [layer.name for layer in anatomy.weighted], at_the_end(anatomy.model)
    modules = any(isinstance(m, SATURATING) and n not in at_end for n, m in anatomy.named_modules())
    calls = sum(bend_before(layer) in ("sigmoid", "tanh") for layer in anatomy.weighted)
    if not modules and not calls:
        return None

    def edit(model: nn.Module) -> nn.Module:
        if not modules:
            return Within(he(model, names), partial(FirstByRelu, calls))
        return he(swapped(model, SATURATING, nn.ReLU, keep=at_the_end(model)), names)

    wanted = "nn.Sigmoid() and nn.Tanh() between layers by nn.ReLU()" if modules else "sigmoid and tanh by F.relu"
    return Remedy(
        "use nn.ReLU between layers, with He's first weights",
        f"replace {wanted}, and for each of these layers:\n"
        "nn.init.kaiming_normal_(layer.weight, nonlinearity='relu'); nn.init.zeros_(layer.bias)",
        on_model=edit,
        place="activation",
        order=BODY,
    )


def at_the_end(model: nn.Module) -> list[str]:
    """Activations registered behind the last layer with weights: they give the outputs their range."""
    names: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            names = []
        elif isinstance(module, SATURATING):
            names.append(name)
    return names
