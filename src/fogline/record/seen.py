"""What was seen of the steps of a loop that is not ours: it waits here until the device is asked for the numbers."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fogline.data.source import leaves
from fogline.record.signals import Recorder, numbers

_MOST_EVENTS = 20

Value = float | Tensor


@dataclass(slots=True)
class Seen:
    """What was seen of one step."""

    number: int = -1
    rows: int = 0  # that went forward for it, of one or several batches
    examples: int = 0
    seconds: float = 0.0
    logged: list[Value] = field(default_factory=list)
    observed: list[Value] = field(default_factory=list)  # by the loss module, or the first call of a closure
    rate: Value | None = None
    norm: Value | None = None
    skipped: Tensor | None = None  # on the device: not 0 where a fused optimizer left the weights alone
    has_row: bool = True  # False for a step between two rows that is only asked whether it was skipped
    taken: bool = True  # False where the optimizer was not even called
    earlier: tuple[int, int] = (0, 0)  # losses logged and observed before the latest forward pass

    def loss(self) -> Value | None:
        """What the loop logged, else what was observed; the mean of several."""
        values = self.logged or self.observed
        return sum(values[1:], values[0]) / len(values) if values else None

    def forward(self, rows: int) -> None:
        """So many rows go forward, for this step's first batch or for another."""
        self.rows += rows
        self.earlier = len(self.logged), len(self.observed)

    def forget(self) -> None:
        """Drop the losses from before the latest forward pass: their gradients came to nothing."""
        logged, observed = self.earlier
        self.logged, self.observed = self.logged[logged:], self.observed[observed:]


def is_single(value: object) -> bool:
    """Whether it is one number, on whatever device."""
    return value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, Real)


def value_of(name: str, value: object) -> Value:
    """A plain number, or a copy that stays on its device so that nothing waits.

    Raises:
        TypeError, ValueError: it is no number, or more than one.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"{name}: expected a single number, received a tensor of shape {tuple(value.shape)}; take its mean"
            )
        value = value.detach()
        return float(value) if value.device.type == "cpu" else value.reshape(()).clone()
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"{name}: expected a number or a scalar tensor, received {type(value).__name__}")


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all of them, a scalar on the device of the first; half precision is summed in float32."""
    dense = [g.detach().coalesce().values() if g.is_sparse else g.detach() for g in gradients]
    half = any(g.dtype in (torch.float16, torch.bfloat16) for g in dense)
    norms = torch._foreach_norm(dense, 2, torch.float32) if half else torch._foreach_norm(dense)
    device = norms[0].device
    norm: Tensor = torch.linalg.vector_norm(torch.stack([n if n.device == device else n.to(device) for n in norms]))
    return norm


def rate_of(optimizer: Optimizer) -> Value | None:
    rate = optimizer.param_groups[0].get("lr")
    return rate if isinstance(rate, float) else None if rate is None else value_of("lr", rate)


def rows_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Rows of the first tensor given to the model; a list is a batch of examples of different sizes.

    A dict is led by its largest tensor: beside the images of a batch lie the boxes of all of them, one after another.
    """
    first = args[0] if args else None
    if isinstance(first, list):
        return len(first)
    if isinstance(first, dict):
        first = max(leaves(first), key=Tensor.numel, default=None)
    if not isinstance(first, Tensor):
        first = next(iter(leaves((args, kwargs))), None)
    return int(first.shape[0]) if first is not None and first.ndim else 0


class Ledger:
    """Turns what waits into rows, and what went wrong into events: each stretch once, and not without end.

    Attributes:
        waiting: steps in their order; each becomes a row if it has one.
        scores: held-out scores that wait, with step and name.
        not_finite: numbers of the steps whose loss or gradient was not finite.
        skipped: how many a gradient scaler skipped; they are not counted as steps.
        last_rate: learning rate of the latest row.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.store = recorder, recorder.store
        self.waiting: list[Seen] = []
        self.scores: list[tuple[int, str, Value]] = []
        self.not_finite: array[int] = array("q")
        self.skipped = 0
        self.last_rate = math.nan
        self._was_finite = True

    @property
    def may_have_skipped(self) -> bool:
        """Whether a step was skipped, or one that waits may turn out to have been."""
        return self.skipped > 0 or any(seen.skipped is not None for seen in self.waiting)

    def suspect(self, step: int, skipped: Tensor) -> None:
        """A step that was not taken before this one, for a gradient scaler skipped it or for another reason."""
        self.waiting.append(Seen(step, skipped=skipped, has_row=False, taken=False))

    def skip(self, step: int) -> None:
        """A gradient scaler left out a step before this one."""
        self.skipped += 1
        if self.skipped <= _MOST_EVENTS:
            self.store.event(step, "amp_skip", f"the gradient scaler found infinity and skipped one before step {step}")

    def read(self) -> int:
        """Hand what waits to the recorder; gives how many of the steps were skipped although they were counted."""
        waiting, self.waiting = self.waiting, []
        scores, self.scores = self.scores, []
        read = iter(numbers([v for seen in waiting for v in (seen.loss(), seen.rate, seen.norm, seen.skipped)]))
        moved = 0
        for seen, loss, rate, norm, skipped in zip(waiting, read, read, read, read, strict=True):
            step = seen.number - moved
            if skipped:
                self.skip(step)
                moved += seen.taken
            elif seen.has_row:
                self._check(step, loss, norm)
                self.last_rate = math.nan if rate is None else rate
                self.recorder.row((step, math.nan, seen.examples, seen.seconds, loss, rate, norm))
        for (step, name, _), value in zip(scores, numbers([value for *_, value in scores]), strict=True):
            self.store.scores(step, "valid", {name: value})
        return moved

    def _check(self, step: int, loss: float | None, norm: float | None) -> None:
        """Look at the numbers of a step; None is one that was not seen."""
        wrong = [
            f"the {name} is {value}"
            for name, value in (("loss", loss), ("gradient norm", norm))
            if value is not None and not math.isfinite(value)
        ]
        if wrong:
            self.not_finite.append(step)
            if self._was_finite and len(self.not_finite) <= _MOST_EVENTS:
                self.store.event(step, "nonfinite", f"step {step}: {' and '.join(wrong)}")
        self._was_finite = not wrong
