"""A constant added inside a model, beside which nothing is left of what rows differ in."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fogline.data.source import rows_of, taken
from fogline.descent.copies import copied
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, Evidence, Remedy, Suspicion
from fogline.doctor.uncut import Within, answers

_ROWS = 16
_LOUD, _HEARD = 10.0, 3.0
"""Sizes of what is the same for all rows, in those of what they differ in: after the sum, and at most before."""
_SUMS = {"add", "__add__", "__radd__", "add_", "__iadd__"}


class Sums(TorchFunctionMode):
    """Looks at every sum of two tensors, and makes some of their constants quieter.

    Args:
        quieter: by the number of the sum, which term is its constant, and what that is multiplied with.

    Attributes:
        loud: by the number of the sum, which term is a constant that drowns what rows differ in; its size, and theirs.
    """

    def __init__(self, quieter: dict[int, tuple[int, float]] | None = None) -> None:
        super().__init__()
        self.loud: dict[int, tuple[int, float, float]] = {}
        self._quieter, self._number = quieter or {}, 0
        self._results: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        pair = args[:2]
        if getattr(func, "__name__", "") not in _SUMS or not all(isinstance(term, Tensor) for term in pair) or kwargs:
            return func(*args, **kwargs)
        number, self._number = self._number, self._number + 1
        if number in self._quieter:
            place, factor = self._quieter[number]
            return pair[1 - place] + factor * pair[place]
        found = func(*args, **kwargs)
        if not self._quieter and isinstance(found, Tensor):
            self._look(number, *pair)
            self._results[number] = found
        return found

    def leave_out(self, outputs: list[Any]) -> None:
        """Leave out the sums that a model ends in, such as those that give its answers the units of the targets."""
        ends = {out.data_ptr() for out in outputs if isinstance(out, Tensor)}
        self.loud = {k: found for k, found in self.loud.items() if self._results[k].data_ptr() not in ends}

    def _look(self, number: int, first: Tensor, second: Tensor) -> None:
        for place, (constant, varies) in enumerate(((first, second), (second, first))):
            floats = varies.is_floating_point() and 2 <= varies.ndim >= constant.ndim
            if not floats or constant.requires_grad or _differs(constant, varies):
                continue
            told, common = _sizes(varies)
            size = float(constant.detach().double().square().mean().sqrt())
            if told > 0 and common <= _HEARD * told and size > _LOUD * told:
                self.loud[number] = place, size, told


def _sizes(values: Tensor) -> tuple[float, float]:
    """Root mean squares of what rows differ in, and of what they have in common."""
    known = values.detach().double()
    mean = known.mean(0)
    return float((known - mean).square().mean().sqrt()), float(mean.square().mean().sqrt())


def _differs(constant: Tensor, beside: Tensor) -> bool:
    """Whether a term is another one for each row."""
    a_row_each = constant.ndim == beside.ndim and len(constant) == len(beside) > 1
    return a_row_each and not bool((constant == constant[:1]).all())


def drowned(exam: Examination) -> Suspicion | None:
    """Such as numbers of positions that are added to embeddings as they are."""
    if not exam.case.supervised or exam.anatomy.stage == "forward" or rows_of(exam.anatomy.batch[0]) < _ROWS:
        return None
    seen = Sums()
    some = taken(exam.anatomy.batch[0], torch.arange(_ROWS))
    outputs = answers(copied(exam.anatomy.model).eval(), some, seen)
    if outputs is None or not seen.loud:
        return None
    seen.leave_out(outputs)
    if not seen.loud:
        return None
    _, size, told = max(seen.loud.values(), key=lambda found: found[1] / found[2])
    quieter = {number: (place, least / most) for number, (place, most, least) in seen.loud.items()}
    return Suspicion(
        "unscaled_input",
        0.7,
        (
            Evidence("size of a constant that is added inside the model", size, f"about {told:.2g}"),
            Evidence("size of what rows differ in, which it is added to", told),
        ),
        f"Inside the model a constant of size {size:.3g}, the same for all rows, is added to numbers in which rows "
        f"differ by {told:.3g}: nothing is left of them for what follows, a normalisation or an activation.",
        (
            Remedy(
                "make what is added as large as what it is added to",
                f"x = x + {told / size:.3g} * positions  # or a table of sines and cosines, or a learned one",
                on_model=partial(_quieter, quieter),
                place="constants",
                order=BODY,
            ),
        ),
        advice="Positions as numbers want to be divided by their largest, or a table of sines or learned rows.",
    )


def _quieter(quieter: dict[int, tuple[int, float]], model: nn.Module) -> nn.Module:
    return Within(model, partial(Sums, quieter))
