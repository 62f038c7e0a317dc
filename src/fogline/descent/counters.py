"""What a checkpoint keeps of a descent besides tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

from fogline.descent.schedules import PlateauState


@dataclass
class Counters:
    """What a checkpoint keeps besides tensors; plain JSON.

    ``rate_factor`` is what the learning rate is multiplied by since the guard went back or the rate was verified.
    """

    step: int = 0
    examples: int = 0
    seconds: float = 0.0
    refused: int = 0
    refused_in_a_row: int = 0
    validated: int = -1
    best_score: float | None = None
    best_step: int | None = None
    waited: int = 0
    parts: int = 1
    recompute: bool = False
    plateau: PlateauState = field(default_factory=PlateauState)
    rollbacks: int = 0
    rate_factor: float = 1.0
    verified: bool = False
