"""What a model cuts off at zero, and its loss takes the logarithm of: made positive by a curve instead."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fogline.descent.copies import copied
from fogline.doctor.anatomy import same_numbers
from fogline.doctor.causes.number.guard import QUOTIENTS, finite_with
from fogline.doctor.causes.output.common import passed_through
from fogline.doctor.examination import Examination
from fogline.doctor.finding import WRAP, Remedy
from fogline.doctor.uncut import Within, answers

_LEAST = 1e-3
_DOMAIN = {"log", "log2", "log10", "rsqrt", "reciprocal", "__rdiv__", "__rtruediv__"}


class Cut(TorchFunctionMode):
    """Keeps what rectifiers give; of some calls a softplus stands in their place.

    Args:
        soft: numbers of these calls.

    Attributes:
        given: by the number of the call, what it gave.
    """

    def __init__(self, soft: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.given: list[Tensor] = []
        self._soft = soft

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") not in ("relu", "relu_") or not args:
            return func(*args, **(kwargs or {}))
        soft = len(self.given) in self._soft
        found: Tensor = F.softplus(args[0]) + _LEAST if soft else func(*args, **(kwargs or {}))
        self.given.append(found)
        return found


class Zeros(TorchFunctionMode):
    """Keeps what logarithms and quotients are given that holds a zero."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor] = []

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        at = 0 if name in _DOMAIN else 1 if name in QUOTIENTS else None
        value = args[at] if at is not None and len(args) > at else None
        if isinstance(value, Tensor) and value.is_floating_point() and bool((value == 0).any()):
            self.given.append(value.detach())
        return func(*args, **(kwargs or {}))


def softened(exam: Examination, *, at_once: bool) -> Iterator[Remedy]:
    """A softplus for the rectifiers whose zeros reach a logarithm or a quotient of the loss as they are.

    Such as the deviation that a network answers with beside a mean. Kept a little above zero it would have no slope
    where it was cut off, and would stay there.
    """
    zeros, cut = Zeros(), Cut()
    if not exam.case.supervised or not passed_through(exam, zeros) or not zeros.given:
        return
    if answers(copied(exam.anatomy.model), exam.anatomy.batch[0], cut) is None:
        return
    calls = frozenset(
        call for call, given in enumerate(cut.given) if any(same_numbers(given, other) for other in zeros.given)
    )
    remedy = Remedy(
        "take a softplus in the place of the rectifier whose zeros the loss takes the logarithm of",
        "deviation = F.softplus(self.deviation(h)) + 1e-3  # in the place of relu",
        on_model=lambda model: Within(model, partial(Cut, calls)),
        place="domain",
        order=WRAP,
    )
    if calls and (not at_once or finite_with(exam, remedy)):
        yield remedy
