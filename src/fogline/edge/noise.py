"""Which layers suffer from being rounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fogline.edge.quantize import Quantized, signal_to_noise

_TRIED = 3  # layers that are left out in turn


@dataclass(frozen=True)
class LayerNoise:
    """What rounding one layer does to the outputs of the model.

    Attributes:
        name, kind: of the layer.
        signal_to_noise: decibels in the outputs when its inputs and weights alone are rounded.
        gain: decibels in the outputs when all but this layer is rounded, above those when all is; None where not tried.
    """

    name: str
    kind: str
    signal_to_noise: float
    gain: float | None = None


@torch.no_grad()
def noise_of(model: Quantized, inputs: Tensor, outputs: nn.Module | None = None) -> list[LayerNoise]:
    """Signal-to-noise of every layer, and what leaving out each of the noisiest would bring; the noisiest first.

    Args:
        model: calibrated; left as it is.
        inputs: of some examples, (b, ...).
        outputs: the part of it whose outputs count; the model itself by default.
    """
    whole = (model if outputs is None else outputs).eval()
    everything = model.roundings
    try:
        model.round(())
        exact = _outputs(whole, inputs)
        alone = []
        for layer in model.layers:
            model.round((layer.weight, layer.inputs))
            alone.append((signal_to_noise(exact, _outputs(whole, inputs)), layer))
        alone.sort(key=lambda pair: pair[0])
        model.round(everything)
        all_rounded = signal_to_noise(exact, _outputs(whole, inputs))
        gains: dict[str, float] = {}
        for _, layer in alone[:_TRIED]:
            model.round(item for item in everything if item is not layer.weight and item is not layer.inputs)
            gains[layer.name] = signal_to_noise(exact, _outputs(whole, inputs)) - all_rounded
    finally:
        model.round(everything)
    return [LayerNoise(layer.name, layer.kind, value, gains.get(layer.name)) for value, layer in alone]


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    leaves = [leaf for leaf in pytree.tree_leaves(model(inputs)) if leaf.is_floating_point()]
    return torch.cat([leaf.flatten() for leaf in leaves])
