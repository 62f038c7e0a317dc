"""How a descent ended, each outcome with the sentence that says what to do next."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Verdict(Enum):
    """The outcome of a run. Its text is the message: ``str(Verdict.STALLED)`` says what it means and what to do.

    >>> str(Verdict.CONVERGED)
    'Converged: the run is at a minimum and nothing more is to be gained; use the model as it is.'
    """

    CONVERGED = "Converged: the run is at a minimum and nothing more is to be gained; use the model as it is."
    NOISE_FLOOR = (
        "Noise floor: steps of this length only jitter, and the loss falls no further; decay the learning rate to "
        "zero, average the weights, or take a larger batch to get lower."
    )
    IMPROVING = "Still improving: the budget ended first; train longer (resume with a longer duration)."
    STALLED = (
        "Stalled: the loss is not moving and this is not a minimum; the learning rate may be too small, "
        "or the gradient does not reach the weights."
    )
    DIVERGED = "Diverged: the loss ended above where it began; lower the learning rate (a tenth is a good first try)."
    NONFINITE = (
        "Non-finite: the loss or a gradient became NaN or infinite and those steps were refused; "
        "look at the module and rows named in the events."
    )
    OVERFIT = (
        "Overfit: the held-out loss turned upwards while the training loss fell; the best held-out weights were kept. "
        "More data, augmentation or weight decay would help."
    )
    INTERRUPTED = "Interrupted: the run was stopped from outside and saved; resume it and it goes on bit for bit."

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Judgement:
    """A verdict and the numbers it was decided from.

    Attributes:
        verdict: the outcome.
        evidence: the dimensionless statistics compared, by name; JSON-able.
    """

    verdict: Verdict
    evidence: dict[str, Any] = field(default_factory=dict)
