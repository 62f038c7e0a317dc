"""Operations kept inside their domain, wherever in a program they stand: tried, not guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fogline.doctor.causes.number.hazards import broken, looked_at
from fogline.doctor.causes.output.common import passed_through
from fogline.doctor.closeup import some_rows
from fogline.doctor.examination import Examination
from fogline.doctor.finding import WRAP, Remedy
from fogline.doctor.uncut import Within, within

_LEAST, _MANY = 1e-3, 0.1
_SMALL, _WIDER = 1e-6, 1e-2
"""Numbers are kept this far from where a logarithm, a root or a quotient has no finite slope: so that most stay as they
are, or so that slopes stay moderate, too."""


def _kept_from_zero(value: Tensor, by: float) -> Tensor:
    sign = torch.where(value < 0, -torch.ones_like(value), torch.ones_like(value))
    return torch.where(value.abs() < by, by * sign, value)


def _above_zero(value: Tensor, by: float) -> Tensor:
    return value.clamp_min(by)


def _within_one(value: Tensor, by: float) -> Tensor:
    return value.clamp(by - 1, 1 - by)


_FIRST: dict[str, Callable[[Tensor, float], Tensor]] = {
    "log": _above_zero, "log2": _above_zero, "log10": _above_zero, "sqrt": _above_zero, "rsqrt": _above_zero,
    "log1p": lambda value, by: value.clamp_min(by - 1), "reciprocal": _kept_from_zero, "__rdiv__": _kept_from_zero,
    "__rtruediv__": _kept_from_zero, "exp": lambda value, _: value.clamp_max(80.0),
    **dict.fromkeys(("acos", "arccos", "asin", "arcsin", "atanh", "arctanh"), _within_one),
    **dict.fromkeys(("softmax", "log_softmax"), lambda value, _: value.clamp_min(-1e9)),
}  # fmt: skip
_LOGS_AND_ROOTS = {"log": 0.0, "log2": 0.0, "log10": 0.0, "log1p": -1.0, "sqrt": 0.0, "rsqrt": 0.0}
"""Functions of one number, and what it must be above."""
QUOTIENTS = ("div", "true_divide", "divide", "__truediv__")


class Guarded(TorchFunctionMode):
    """Gives logarithms, roots, quotients, arcs, powers and deviations numbers that they have a finite slope for.

    Args:
        by: how far numbers are kept from where there is none.
    """

    def __init__(self, by: float = _SMALL) -> None:
        super().__init__()
        self._by = by

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        first, second = (*args, None, None)[:2]
        if name in _FIRST and _floating(first):
            args = (_FIRST[name](first, self._by), *args[1:])
        elif name in QUOTIENTS and _floating(second):
            args = (first, _kept_from_zero(second, self._by), *args[2:])
        elif name in ("pow", "__pow__") and _floating(first) and isinstance(second, float) and second % 1:
            args = (_above_zero(first, self._by), *args[1:])
        elif name in ("std", "var") and _floating(first):
            spread = _variance(*args, **kwargs)
            return (spread + self._by**2).sqrt() if name == "std" else spread
        return func(*args, **kwargs)


class Positive(TorchFunctionMode):
    """Takes a smooth positive number for what goes into logarithms, roots and quotients and is often negative.

    Such as a variance that is a network's own answer: cut off at zero it would have no slope.

    Args:
        calls: numbers of the calls, of those in a pass that have a graph; None takes down which were given negative
            numbers, and changes nothing.

    Attributes:
        negative: by the number of the call, the share of negative numbers it was given.
    """

    def __init__(self, calls: frozenset[int] | None = None) -> None:
        super().__init__()
        self.negative: dict[int, float] = {}
        self._calls, self._count = calls, 0

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        at, above = (0, _LOGS_AND_ROOTS[name]) if name in _LOGS_AND_ROOTS else (1 if name in QUOTIENTS else None, 0.0)
        if at is not None and len(args) > at and _floating(args[at]) and (self._calls or args[at].requires_grad):
            self._count += 1
            value = args[at] - above
            if self._calls is None:
                self.negative[self._count] = float((value.detach() < 0).double().mean())
            elif self._count in self._calls:
                args = (*args[:at], F.softplus(value) + above + _LEAST, *args[at + 1 :])
        return func(*args, **(kwargs or {}))


def _variance(
    value: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: float | None = None
) -> Tensor:
    """As ``torch.var`` has it, but 0 of a single number."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    found = torch.var(value, dim, correction=0, keepdim=keepdim)
    count = value.numel() / max(1, found.numel())
    less = correction if correction is not None else float(unbiased)
    return found * (count / (count - less)) if count > less else found


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def made_positive(exam: Examination, *, at_once: bool) -> Iterator[Remedy]:
    """What makes numbers positive that go into logarithms, roots and quotients of the loss and are often negative."""
    seen = Positive()
    shares = seen.negative if passed_through(exam, seen) else {}
    often = frozenset(call for call, share in shares.items() if share > _MANY)
    smooth = Remedy(
        "take a softplus of what goes into logarithms, roots and quotients in the loss and is often negative",
        "variance = F.softplus(outputs[:, 1:]) + 1e-3",
        on_loss=lambda loss: within(loss, partial(Positive, often)),
        place="domain",
        order=WRAP,
    )
    if often and (not at_once or finite_with(exam, smooth)):
        yield smooth


def guards(exam: Examination, *, at_once: bool) -> Iterator[Remedy]:
    """The smallest edit with which loss and gradient of the first weights are finite: of the model, the loss, both.

    Where they are so at first anyway, both. Then the same with slopes that stay moderate.
    """
    places = [(True, False), (False, True)] if exam.case.supervised and at_once else []
    for in_model, in_loss in [*places, (exam.case.supervised, True)]:
        remedy = _guard(in_model, in_loss, _SMALL)
        if not at_once or finite_with(exam, remedy):
            yield remedy
            yield _guard(in_model, in_loss, _WIDER)
            return


def finite_with(exam: Examination, remedy: Remedy) -> bool:
    """Whether loss and gradient of the first weights are finite with a remedy."""
    return not broken(looked_at(exam.program_with(remedy), some_rows(exam)))


def _guard(in_model: bool, in_loss: bool, by: float) -> Remedy:
    where = " and ".join(name for name, there in (("the model", in_model), ("the loss", in_loss)) if there)
    mode = partial(Guarded, by)
    return Remedy(
        f"keep logarithms, roots and quotients in {where} inside their domain{f', by {by:g}' if by > _SMALL else ''}",
        f"torch.log(x.clamp_min({by:g})), torch.sqrt(x.clamp_min({by:g})), a / (b + {by:g})  # in {where}",
        on_model=(lambda module: Within(module, mode)) if in_model else None,
        on_loss=(lambda loss: within(loss, mode)) if in_loss else None,
        place="domain",
        order=WRAP,
    )
