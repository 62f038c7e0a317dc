"""A loss in two parts, and how hard each of them pulls at the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fogline.doctor.anatomy import Anatomy


@dataclass(frozen=True)
class Pull:
    """Of a part of a loss.

    Attributes:
        part: its share of the loss.
        pull, slope: norm of its gradient, and of the gradient of the rest.
    """

    part: float
    pull: float
    slope: float


def told_apart(whole: Anatomy, rest: Anatomy) -> Pull | None:
    """What a loss has beyond the rest of it; None where either cannot be computed.

    Of first weights: at the last ones the two gradients cancel, however light a part is.
    """
    if whole.stage or rest.stage or not whole.loss or rest.loss is None:
        return None
    pull = slope = 0.0
    for name, gradient in whole.gradients.items():
        other = rest.gradients.get(name)
        if gradient is not None and other is not None:
            pull += float((gradient - other).double().square().sum())
            slope += float(other.double().square().sum())
    return Pull(1 - rest.loss / whole.loss, math.sqrt(pull), math.sqrt(slope))
