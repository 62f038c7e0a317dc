"""Causes in what flows through the layers and what flows back: activations, first weights, widths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from fogline.doctor.anatomy import Anatomy, Layer, rms
from fogline.doctor.closeup import (
    DEFAULT_GAIN,
    HE_GAIN,
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
from fogline.doctor.reference import rebuilds
from fogline.doctor.standing import standing
from fogline.doctor.surgery import followed_by, he, orthogonal, reset, swapped, widened

_TENFOLD, _HUNDREDFOLD = math.log(10), math.log(100)
_NEAR_LIMIT = 0.01
"""A sigmoid or tanh this near to its limit, relative to its range, lets less than 4 % of its gradient through."""
_MOSTLY = 0.5
_HANDFUL = 4
_FEWEST_ROWS = 8
SATURATING: tuple[type[nn.Module], ...] = (nn.Sigmoid, nn.Tanh, nn.Softsign, nn.Hardsigmoid, nn.Hardtanh)
BENDING: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.LeakyReLU, nn.PReLU, nn.Softplus, nn.Mish, nn.Hardswish, *SATURATING,
)  # fmt: skip


def missing_activation(exam: Examination) -> Suspicion | None:
    """Layers with nothing that bends between them: two matrices in a row are one matrix."""
    anatomy = exam.anatomy
    if anatomy.stage or not anatomy.pairs:
        return None
    widths = {layer.name: _width(layer) for layer in anatomy.weighted}
    inputs = {layer.name: _inputs(layer) for layer in anatomy.weighted}
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


def _width(layer: Layer) -> int:
    return int(getattr(layer.module, "out_features", 0) or getattr(layer.module, "out_channels", 0))


def _inputs(layer: Layer) -> int:
    return int(getattr(layer.module, "in_features", 0) or getattr(layer.module, "in_channels", 0))


def symmetric_init(exam: Examination) -> Suspicion | None:
    """Units of a layer with the same weights and the same gradient: whatever the optimizer, they stay the same."""
    anatomy = wide(exam)
    if anatomy.stage:
        return None
    names = _twins(exam)
    if not names:
        return None
    weights = [name for name, p in anatomy.named_parameters() if p.ndim >= 2 and _constant(p)]
    again = sorted({name.rpartition(".")[0] for name in weights} | set(names))
    return Suspicion(
        "symmetric_init",
        0.95,
        tuple(Evidence("units with different first weights or gradients", 1, "all", layer=name) for name in names[:4]),
        "All units of a layer begin with the same weights and get the same gradient, so they take the same steps for "
        "ever: however wide the layer is, it does the work of a single unit.",
        (_reset(again), _he(again)),
        proof=True,
        severity="fatal",
    )


def _twins(exam: Examination) -> list[str]:
    """Layers of which all units are alike and remain so; not the last one, whose units have targets of their own."""
    anatomy = wide(exam)
    found = []
    last = anatomy.weighted[-1].name if anatomy.weighted else ""
    for name, module in anatomy.named_modules():
        if name == last or not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase)):
            continue
        gates = {"LSTM": 4, "GRU": 3}.get(getattr(module, "mode", ""), 1)
        for own, parameter in module.named_parameters(recurse=False):
            gradient = anatomy.gradients.get(f"{name}.{own}" if name else own)
            if own.startswith("weight") and gradient is not None and _all_alike(parameter, gradient, gates):
                found.append(name)
                break
    return found


def _all_alike(parameter: Tensor, gradient: Tensor, gates: int) -> bool:
    values, slopes = parameter.detach().flatten(1).chunk(gates), gradient.flatten(1).chunk(gates)
    if len(values[0]) < 2:
        return False
    same = all(bool((block == block[0]).all()) for block in values)
    scale = float(gradient.abs().max())
    # Rounding of sums in another order is all that may differ.
    return same and all(float((block - block[0]).abs().max()) <= 1e-5 * scale for block in slopes)


def _constant(value: Tensor) -> bool:
    return value.numel() > 1 and float(value.detach().max()) == float(value.detach().min())


def _reset(names: list[str]) -> Remedy:
    return Remedy(
        f"give {listed(names)} PyTorch's own first weights",
        "\n".join(f"{path_of(name)}.reset_parameters()" for name in names),
        on_model=lambda model: reset(model, names),
        place="init",
        order=BODY,
    )


def _he(names: list[str]) -> Remedy:
    lines = [
        f"nn.init.kaiming_normal_({path_of(name)}.weight, nonlinearity='relu'); nn.init.zeros_({path_of(name)}.bias)"
        for name in names
    ]
    return Remedy(
        f"give {listed(names)} He's first weights",
        "\n".join(lines),
        on_model=lambda model: he(model, names),
        place="init",
        order=BODY,
    )


def bad_init(exam: Examination) -> Suspicion | None:
    """First weights that multiply a signal by far more, or far less, than keeps it in size."""
    anatomy = wide(exam)
    if anatomy.stage == "forward" or not anatomy.layers or _twins(exam):
        return None
    found = spreads(anatomy)
    large = [spread for spread in found if spread.excess > 0]
    small = [spread for spread in found if spread.excess < 0]
    if not _signal_shrinks(anatomy, -sum(spread.excess for spread in small)):
        small = [s for s in small if isinstance(anatomy.model.get_submodule(s.name), nn.RNNBase)]
    up, down = sum(spread.excess for spread in large), -sum(spread.excess for spread in small)
    if max(up, down) < _TENFOLD:
        return None
    guilty = large if up >= down else small
    names = list(dict.fromkeys(spread.name for spread in guilty))
    strength = 0.7 if max(up, down) > _HUNDREDFOLD else 0.5
    evidence = [
        Evidence("gain of the first weights", spread.gain, f"{DEFAULT_GAIN:.2g} to {HE_GAIN:.2g}", layer=spread.name)
        for spread in guilty[:4]
    ]
    evidence.append(Evidence("all of them together, times what keeps a signal in size", math.exp(max(up, down)), "1"))
    size = (
        "large: every layer multiplies the signal, outputs and gradients begin enormous"
        if up >= down
        else (
            "small: every layer shrinks the signal, so that outputs hardly depend on the inputs and the first layers "
            "get almost no gradient"
        )
    )
    remedies = _fresh(anatomy, names)
    if any(isinstance(anatomy.model.get_submodule(name), nn.RNNBase) for name in names):
        remedies = (_orthogonal(), _reset(names))
    return Suspicion("bad_init", strength, tuple(evidence), f"The first weights are too {size}.", remedies)


def _signal_shrinks(anatomy: Anatomy, down: float) -> bool:
    """Whether small weights do make the signal small: beside a skip connection they do not."""
    layers = anatomy.weighted
    if len(layers) < 2:
        return False
    first, last = _variation(layers[0].received), _variation(layers[-1].received)
    return last < first * math.exp(-down / 2)


def _variation(value: Tensor | None) -> float:
    """Root mean square of what differs from row to row: biases are the same for all."""
    if value is None or not value.ndim:
        return 0.0
    value = value.detach().double()
    return rms(value - value.mean(0, keepdim=True))


def _fresh(anatomy: Anatomy, names: list[str]) -> tuple[Remedy, Remedy]:
    """First weights for these layers: in a deep ReLU network those that keep the gradient in size come first."""
    deep = sum(bend_before(layer) == "relu" for layer in anatomy.weighted) >= 3
    return (_he(names), _reset(names)) if deep else (_reset(names), _he(names))


def _orthogonal() -> Remedy:
    return Remedy(
        "give recurrent layers orthogonal first weights",
        "model.rnn.reset_parameters()\nnn.init.orthogonal_(model.rnn.weight_hh_l0)",
        on_model=orthogonal,
        place="init",
        order=BODY,
    )


@dataclass(frozen=True)
class _Dead:
    name: str
    share: float
    units: int


def _dead_layers(layers: list[Layer]) -> list[_Dead]:
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
    dead = [layer for layer in _dead_layers(hidden(anatomy)) if layer.share > _MOSTLY]
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
        (_reset(names), *leaks) if at_first else leaks,
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
    full = [(layer, kind, share) for layer, kind, share in _saturated(anatomy.weighted) if share > _MOSTLY]
    if not full:
        return None
    names = [layer.name for layer in anatomy.weighted]
    heavy = [spread.name for spread in spreads(anatomy) if spread.excess > 0]
    remedies = [_reset(heavy)] if heavy else []
    relu = _relu_instead(names)
    if any(isinstance(module, SATURATING) for module in anatomy.model.modules()):
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


def _relu_instead(names: list[str]) -> Remedy:
    """ReLU in hidden layers, with first weights made for it; a sigmoid or tanh at the very end stays."""

    def edit(model: nn.Module) -> nn.Module:
        model = swapped(model, SATURATING, nn.ReLU, keep=_at_the_end(model))
        return he(model, names)

    return Remedy(
        "use nn.ReLU between layers, with He's first weights",
        "replace nn.Sigmoid() and nn.Tanh() between layers by nn.ReLU(), and for each of these layers:\n"
        "nn.init.kaiming_normal_(layer.weight, nonlinearity='relu'); nn.init.zeros_(layer.bias)",
        on_model=edit,
        place="activation",
        order=BODY,
    )


def _at_the_end(model: nn.Module) -> list[str]:
    """Activations registered behind the last layer with weights: they give the outputs their range."""
    names: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            names = []
        elif isinstance(module, SATURATING):
            names.append(name)
    return names


def _slopes(layers: list[Layer]) -> list[tuple[str, float]]:
    return [(layer.name, rms(layer.gradient)) for layer in layers if layer.gradient is not None]


def vanishing_gradient(exam: Examination) -> Suspicion | None:
    """The gradient shrinks from layer to layer on its way back, and the first layers hardly learn."""
    anatomy = wide(exam)
    if anatomy.stage or _twins(exam) or not standing(exam).short:
        return None
    through_time = _fading(anatomy.layers)
    if through_time is not None:
        return through_time
    slopes = _slopes(anatomy.weighted)
    if len(slopes) < 4 or slopes[-1][1] <= 0:
        return None
    if any(layer.share > _MOSTLY for layer in _dead_layers(hidden(anatomy))):
        return None
    ratio = slopes[0][1] / slopes[-1][1]
    each = ratio ** (1 / (len(slopes) - 1))
    # PyTorch's own first weights and ReLU multiply a gradient by sqrt(1/6) a layer; a sigmoid by 1/4 of 1/sqrt(3).
    if each > math.sqrt(1 / 6) / 1.5 or ratio > 1e-2:
        return None
    names = [layer.name for layer in anatomy.weighted]
    saturating = any(
        isinstance(m, SATURATING) and n not in _at_the_end(anatomy.model) for n, m in anatomy.named_modules()
    )
    evidence = [
        Evidence(
            "gradient behind this layer, relative to the last one", slope / slopes[-1][1], "0.01 or more", layer=name
        )
        for name, slope in slopes[:3]
    ]
    return Suspicion(
        "vanishing_gradient",
        0.7 if ratio < 1e-4 else 0.5,
        (*evidence, Evidence("what each layer leaves of the gradient", each, "0.4 to 1")),
        "On its way back from the loss the gradient shrinks at every layer, and the product of many small numbers is "
        "almost nothing: the first layers stay as they were drawn and scramble the input for those that do learn.",
        (_relu_instead(names),) if saturating else (_he(names),),
    )


def _fading(layers: list[Layer]) -> Suspicion | None:
    """A plain recurrent layer whose last state hardly depends on what came first, beyond what tanh does anyway."""
    for layer in layers:
        module = layer.module
        if not isinstance(module, nn.RNN) or layer.received is None or layer.received.ndim != 3:
            continue
        first = float(
            max(
                torch.linalg.matrix_norm(p.detach().double(), 2)
                for n, p in module.named_parameters()
                if n.startswith("weight_hh")
            )
        )
        length = layer.received.shape[1 if module.batch_first else 0]
        # PyTorch's own weights have a norm of 2/sqrt(3); at less than a third of it the past is gone in a few steps.
        if first < 2 / math.sqrt(3) / 3 and first ** (length - 1) < 1e-2:
            return Suspicion(
                "vanishing_gradient",
                0.6,
                (Evidence("largest factor from one time step to the next", first, "about 1", layer=layer.name),),
                "From one time step to the next the recurrent weights shrink signal and gradient, so that the last "
                "state knows nothing of the beginning of the sequence.",
                (_orthogonal(),),
            )
    return None


def exploding_gradient(exam: Examination) -> Suspicion | None:
    """The gradient grows from layer to layer, or from time step to time step, on its way back."""
    anatomy = wide(exam)
    if anatomy.stage == "forward" or not standing(exam).short:
        return None
    slopes = _slopes(hidden(anatomy))
    heavy = [spread for spread in spreads(anatomy) if spread.excess > 0]
    recurrent = [s for s in heavy if isinstance(anatomy.model.get_submodule(s.name), nn.RNNBase)]
    grown = slopes[0][1] / slopes[-1][1] if len(slopes) > 1 and slopes[-1][1] > 0 else 1.0
    if not recurrent and (not math.isfinite(grown) or grown < 10 or grown ** (1 / (len(slopes) - 1)) < HE_GAIN):
        return None
    names = [layer.name for layer in anatomy.weighted]
    clip = Remedy(
        "clip the gradient to what is usual in this run",
        'fogline.Recipe(clip="adaptive"), or nn.utils.clip_grad_norm_(model.parameters(), 1.0) before optimizer.step()',
        on_recipe=lambda recipe: recipe.replace(clip="adaptive"),
        place="clip",
        order=60,
    )
    what = Evidence("gradient behind the first layer, relative to the last hidden one", grown, "about 1")
    if recurrent:
        what = Evidence("gain from one time step to the next", recurrent[0].gain, "about 1", layer=recurrent[0].name)
    return Suspicion(
        "exploding_gradient",
        0.6,
        (what,),
        "On its way back from the loss the gradient grows at every "
        + ("time step" if recurrent else "layer")
        + ", so that a step that suits the last layer throws the first ones far away.",
        (*((_orthogonal(), _reset([s.name for s in recurrent])) if recurrent else _fresh(anatomy, names)), clip),
    )


def bottleneck(exam: Examination) -> Suspicion | None:
    """A hidden layer too narrow for what has to pass through it."""
    anatomy = exam.anatomy
    layers = anatomy.weighted
    stands = standing(exam)
    if anatomy.stage or len(layers) < 2 or not exam.case.supervised or not (stands.short or stands.train_short):
        return None
    if rebuilds(exam.case):
        return None
    outputs = _width(layers[-1])
    needs = outputs - 1 if exam.case.yardstick.work in ("classes", "one_hot") else outputs
    widest = max(_width(layer) for layer in layers)
    narrow = [
        (first, second)
        for first, second in pairwise(layers)
        if (_width(first) < min(needs, _inputs(first)) or _width(first) == 1)
        and _width(first) < widest
        and _inputs(second) == _width(first)
    ]
    if not narrow:
        return None
    first, second = min(narrow, key=lambda pair: _width(pair[0]))
    width = max(8, 2 * outputs, min(_inputs(first), 64))
    remedy = Remedy(
        f"widen {first.name} from {_width(first)} to {width} units",
        f"let {path_of(first.name)} have {width} outputs and {path_of(second.name)} {width} inputs",
        on_model=lambda model: widened(model, first.name, second.name, width),
        place="width",
        order=BODY,
    )
    return Suspicion(
        "bottleneck",
        0.7,
        (Evidence("units", _width(first), f"at least {max(2, needs)}", layer=first.name),),
        f"Everything the network knows of an example has to pass through {_width(first)} "
        f"number{'s' if _width(first) > 1 else ''} in {first.name}, which is less than the {outputs} outputs need.",
        (remedy,),
    )


ON_ONE_BATCH = (symmetric_init, bad_init, dead_units, saturated_units, missing_activation)
IN_MOTION = (vanishing_gradient, exploding_gradient, dead_units, bottleneck)
