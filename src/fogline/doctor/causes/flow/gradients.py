"""Gradients that fade or grow from layer to layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fogline.doctor.anatomy import Layer, rms
from fogline.doctor.causes.flow.activations import MOSTLY, dead_layers, relu_instead
from fogline.doctor.causes.flow.weights import (
    all_twins,
    drawn_again,
    drawn_anew,
    drawn_for_relu,
    drawn_orthogonal,
    gates_opened,
)
from fogline.doctor.closeup import (
    HE_GAIN,
    hidden,
    spreads,
    wide,
)
from fogline.doctor.examination import Examination
from fogline.doctor.finding import Evidence, Remedy, Suspicion
from fogline.doctor.standing import standing

_SWOLLEN = 10


def _slopes(layers: list[Layer]) -> list[tuple[str, float]]:
    """The norm of the gradient behind each layer: that of a number alone is the smaller the more of them there are."""
    found = ((layer.name, layer.gradient) for layer in layers)
    return [(name, rms(slope) * math.sqrt(slope.numel())) for name, slope in found if slope is not None]


def vanishing_gradient(exam: Examination) -> Suspicion | None:
    """The gradient shrinks from layer to layer on its way back, and the first layers hardly learn."""
    anatomy = wide(exam)
    if anatomy.stage or all_twins(exam) or not standing(exam).improvable:
        return None
    through_time = _fading(anatomy.layers)
    if through_time is not None:
        return through_time
    slopes = _slopes(anatomy.weighted)
    if len(slopes) < 4 or slopes[-1][1] <= 0:
        return None
    if any(layer.share > MOSTLY for layer in dead_layers(hidden(anatomy))):
        return None
    ratio = slopes[0][1] / slopes[-1][1]
    each = ratio ** (1 / (len(slopes) - 1))
    # PyTorch's own first weights and ReLU multiply a gradient by sqrt(1/6) a layer; a sigmoid by 1/4 of 1/sqrt(3).
    if each > math.sqrt(1 / 6) / 1.5 or ratio > 1e-2:
        return None
    names = [layer.name for layer in anatomy.weighted]
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
        (relu_instead(anatomy) or drawn_for_relu(names),),
    )


def _fading(layers: list[Layer]) -> Suspicion | None:
    """A recurrent layer whose last state hardly depends on what came first, beyond what its cell does anyway."""
    for layer in layers:
        module = layer.module
        if not isinstance(module, nn.RNNBase) or layer.received is None or layer.received.ndim != 3:
            continue
        kept, gated = _kept_by_a_step(module), module.mode in ("LSTM", "GRU")
        length = layer.received.shape[1 if module.batch_first else 0]
        # PyTorch's own weights have a norm of 2/sqrt(3), its gates are half open: at less than a third of that the
        # past is gone in a few steps.
        if kept < (1 / 2 if gated else 2 / math.sqrt(3)) / 3 and kept ** (length - 1) < 1e-2:
            what = "most that a gate keeps from one time step to the next" if gated else "largest factor of a step"
            return Suspicion(
                "vanishing_gradient",
                0.6,
                (Evidence(what, kept, "about 1", layer=layer.name),),
                "From one time step to the next this layer shrinks signal and gradient, so that the last "
                "state knows nothing of the beginning of the sequence.",
                (gates_opened(), drawn_orthogonal()) if gated else (drawn_orthogonal(),),
            )
    return None


def _kept_by_a_step(module: nn.RNNBase) -> float:
    """The largest factor of a plain layer; of gates that keep the past, the widest open one as its biases have it."""
    if module.mode not in ("LSTM", "GRU"):
        weights = [p.detach().double() for n, p in module.named_parameters() if n.startswith("weight_hh")]
        return float(max(torch.linalg.matrix_norm(weight, 2) for weight in weights))
    own = [(n, p.detach()) for n, p in module.named_parameters() if n.startswith("bias")]
    layers = {n.partition("_l")[2] for n, _ in own}
    kept = [torch.stack([p for n, p in own if n.endswith(f"_l{k}")]).sum(0) for k in layers]
    size = module.hidden_size
    return min((float(torch.sigmoid(bias[size : 2 * size]).max()) for bias in kept), default=1.0)


def _swollen(layer: Layer) -> float:
    """Size of the last state of a recurrent layer, over that of its first one times the steps: sums grow like these."""
    module, states = layer.module, layer.output
    if not isinstance(module, nn.RNNBase) or states is None or states.ndim != 3:
        return 1.0
    if not module.batch_first:
        states = states.transpose(0, 1)
    first = rms(states[:, 0]) * states.shape[1]
    return rms(states[:, -1]) / first if first > 0 else 1.0


def exploding_gradient(exam: Examination) -> Suspicion | None:
    """The gradient grows from layer to layer, or from time step to time step, on its way back."""
    anatomy = wide(exam)
    if anatomy.stage == "forward" or not standing(exam).improvable:
        return None
    # What a loss asks of several outputs comes in at each of them, and tells nothing of the way between.
    slopes = _slopes(hidden(anatomy)) if isinstance(anatomy.outputs, Tensor) else []
    heavy = [spread for spread in spreads(anatomy) if spread.excess > 0]
    recurrent = [s for s in heavy if isinstance(anatomy.model.get_submodule(s.name), nn.RNNBase)]
    swelling = [(layer.name, times) for layer in anatomy.layers if (times := _swollen(layer)) > _SWOLLEN]
    grown = slopes[0][1] / slopes[-1][1] if len(slopes) > 1 and slopes[-1][1] > 0 else 1.0
    steady = not math.isfinite(grown) or grown < 10 or grown ** (1 / (len(slopes) - 1)) < HE_GAIN
    if steady and not recurrent and not swelling:
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
    remedies = drawn_again(anatomy, names)
    if recurrent:
        remedies = drawn_orthogonal(), drawn_anew([spread.name for spread in recurrent])
        what = Evidence("gain from one time step to the next", recurrent[0].gain, "about 1", layer=recurrent[0].name)
    elif swelling:
        remedies = drawn_orthogonal(), drawn_anew([name for name, _ in swelling])
        what = Evidence(
            "size of the last state, as a multiple of that of as many first ones together",
            swelling[0][1], "1 or less", layer=swelling[0][0],
        )  # fmt: skip
    return Suspicion(
        "exploding_gradient",
        0.6,
        (what,),
        "On its way back from the loss the gradient grows at every "
        + ("time step" if recurrent or swelling else "layer")
        + ", so that a step that suits the last layer throws the first ones far away.",
        (*remedies, clip),
    )
