"""Pictures whose numbers were dealt out anew: colours last in memory, and read as if they came first."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, Evidence, Remedy, Suspicion
from fogline.doctor.surgery import Wrapped

_COLOURS = (2, 3, 4)
_LOOKED_AT = 256
_ROUGHER = 0.7
"""Of the roughness of what is given, that of what is meant: a picture is smooth beside its numbers in another order."""


def dealt_out(exam: Examination) -> Suspicion | None:
    """Pictures (n, height, width, colours) that were reshaped to (n, colours, height, width), where axes were meant.

    The shape is right and each colour holds numbers of all, so that what is beside a pixel is not its neighbour. Told
    by how much neighbours differ, as it is and with the axes moved.
    """
    inputs = exam.program.train[0] if exam.case.supervised else None
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or inputs.shape[1] not in _COLOURS:
        return None
    if not inputs.is_floating_point() or min(inputs.shape[2:]) < 8:
        return None
    some = inputs[:: max(1, len(inputs) // _LOOKED_AT)][:_LOOKED_AT]
    given, meant = _roughness(some), _roughness(_colours_first(some))
    if not 0 < meant < _ROUGHER * given:
        return None
    return Suspicion(
        "shape_broadcast",
        0.85,
        (
            Evidence("mean difference of neighbours, in deviations", given),
            Evidence("the same of x.reshape(n, height, width, colours)", meant, "no less than as it is"),
        ),
        "The pictures have their colours last in memory and were reshaped to have them first, where the axes were to "
        "be moved. The shape is right, but each channel holds numbers of all colours, and no pixel is beside its own "
        "neighbours.",
        (
            Remedy(
                "move the colours to the front instead of reshaping",
                "x = x.reshape(n, height, width, colours).permute(0, 3, 1, 2)  # or permute in the first place",
                on_model=lambda model: Wrapped(model, before=ColoursFirst()),
                place="axes",
                order=BODY,
            ),
        ),
        proof=True,
        severity="fatal",
    )


def _roughness(pictures: Tensor) -> float:
    """Mean absolute difference of neighbours, relative to the standard deviation of all, of (n, c, h, w)."""
    steps = [pictures.diff(dim=dim).abs().mean() for dim in (2, 3)]
    return float(sum(steps) / pictures.std().clamp_min(torch.finfo(pictures.dtype).tiny))


def _colours_first(pictures: Tensor) -> Tensor:
    colours, height, width = pictures.shape[1:]
    return pictures.reshape(-1, height, width, colours).permute(0, 3, 1, 2).contiguous()


class ColoursFirst(nn.Module):
    """Reads pictures (n, colours, height, width) as if (n, height, width, colours), and moves the colours there."""

    def forward(self, pictures: Tensor) -> Tensor:
        """The same numbers, each where it belongs, of the same shape."""
        return _colours_first(pictures)
