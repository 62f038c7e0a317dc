"""Inputs that no output depends on: of a sequence, all but the first step."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fogline.data.source import cast, leaves, taken
from fogline.descent.copies import copied
from fogline.descent.objective import mode
from fogline.descent.randomness import private_randomness
from fogline.doctor.case import CPU, FAILURES
from fogline.doctor.examination import Examination
from fogline.doctor.finding import BODY, Evidence, Remedy, Suspicion
from fogline.doctor.standing import standing
from fogline.doctor.uncut import DropsLess, Within, answers

_ROWS, _PLACES = 8, 24
_FEWEST_PLACES = 3
_MOST = 0.5
"""Share of the places that must be seen: of the edges of a picture and of padding some never are."""


def unseen_inputs(exam: Examination) -> Suspicion | None:
    """A model that answers alike whatever stands in most places of its inputs, and could see the others.

    Such as one that takes the first state of a recurrent layer for the last. Asked of first weights, by putting what
    stands in a place of one row there in another: of those not a single output may change in a digit.
    """
    found = _looked_for(exam)
    return found if found is not None and found.remedies else None


def missed_inputs(exam: Examination) -> Suspicion | None:
    """The same wherever it lies, of a model that gets less than classical learners do, which see all places."""
    return _looked_for(exam) if standing(exam).short and standing(exam).known else None


def _looked_for(exam: Examination) -> Suspicion | None:
    if not exam.case.supervised or exam.anatomy.stage == "forward":
        return None
    inputs = exam.anatomy.batch[0]
    if not isinstance(inputs, Tensor) or inputs.ndim not in (2, 3) or len(inputs) < _ROWS:
        return None
    places = inputs.shape[1]
    if places < _FEWEST_PLACES or _slopes_reach_most(exam.anatomy.model, inputs[:_ROWS]):
        return None
    model, some = _precisely(copied(exam.anatomy.model).eval(), taken(inputs, torch.arange(_ROWS)))
    asked = sorted({round(place) for place in torch.linspace(0, places - 1, min(places, _PLACES)).tolist()})
    seen = _seen(model, some, asked)
    if seen is None or not any(seen.values()) or sum(seen.values()) >= _MOST * len(seen):
        return None
    share = sum(not found for found in seen.values()) / len(seen)
    where = [place for place, found in seen.items() if found]
    alone = {0: "the first", places - 1: "the last"}.get(where[0], "one") if len(where) == 1 else "a few"
    return Suspicion(
        "bottleneck",
        0.85,
        (
            Evidence("share of the places of a row that no output depends on", share, 0.0),
            Evidence("places that are seen, of those asked for", ", ".join(map(str, where)), "all"),
        ),
        f"Of what stands in a row of {places} places the outputs depend on {alone} alone: whatever stands in the "
        "others, the answer is the same to the last digit.",
        _later(model, some, asked, places),
        severity="fatal",
        advice="Look in forward() for an index, such as h[:, 0], which is the first state of a sequence and not the "
        "last, and for a state that is made anew in each step.",
    )


def _slopes_reach_most(model: nn.Module, inputs: Tensor) -> bool:
    """Whether the answers have a slope in most places, in a single pass; False of inputs that have none."""
    if not inputs.is_floating_point():
        return False
    given = inputs.detach().clone().requires_grad_()
    with private_randomness(CPU), torch.enable_grad(), mode(model, training=False):
        try:
            said = [leaf for leaf in leaves(model(given)) if leaf.requires_grad]
            (slope,) = torch.autograd.grad(sum(leaf.square().sum() for leaf in said), given)  # type: ignore[arg-type]
        except FAILURES:
            return False
    reached = (slope != 0).reshape(len(slope), slope.shape[1], -1).any(-1).any(0)
    return float(reached.double().mean()) >= _MOST


def _precisely(model: nn.Module, inputs: Tensor) -> tuple[nn.Module, Tensor]:
    """Model and inputs in double precision, so that columns of large numbers do not drown the others.

    Where the model makes tensors of its own in single precision, in that, and each column of size one.
    """
    double = cast(inputs, torch.float64)
    if _answer(copied(model).double(), double) is not None:
        return model.double(), double
    return model, inputs / inputs.std(0).clamp_min(1e-30) if inputs.is_floating_point() else inputs


def _seen(model: nn.Module, inputs: Tensor, places: list[int]) -> dict[int, bool] | None:
    """Whether any output changes with what stands in a place, of those where rows differ; None where it cannot be told.

    Args:
        inputs: (rows, places, ...).
    """
    as_it_is, others = _answer(model, inputs), _answer(model, inputs.roll(1, 0))
    if not as_it_is or not others or not _same(as_it_is, _answer(model, inputs)):
        return None
    alike = [(a == b).reshape(len(a), -1).all(1) for a, b in zip(as_it_is, others, strict=True) if a.shape == b.shape]
    if not all(bool(torch.isfinite(a).all()) for a in as_it_is) or all(
        float(rows.double().mean()) > _MOST for rows in alike
    ):
        return None  # what says the same of two rows says nothing of what it sees
    found = {}
    for place in places:
        other = inputs.clone()
        other[:, place] = inputs[:, place].roll(1, 0)
        if not torch.equal(other, inputs):
            found[place] = not _same(as_it_is, _answer(model, other))
    return found or None


def _answer(model: nn.Module, inputs: Tensor, within: TorchFunctionMode | None = None) -> list[Tensor] | None:
    found = answers(model, inputs, DropsLess() if within is None else within)
    return None if found is None else [leaf for leaf in found if isinstance(leaf, Tensor)]


def _same(first: list[Tensor], second: list[Tensor] | None) -> bool:
    return second is not None and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class LaterState(TorchFunctionMode):
    """Takes the last step of a sequence, or the mean of all, where the first is taken by ``h[:, 0]``.

    Args:
        length: of the sequence.
        mean: whether it is the mean.

    Attributes:
        calls: how often that was so.
    """

    def __init__(self, length: int, *, mean: bool = False) -> None:
        super().__init__()
        self.calls = 0
        self._length, self._mean = length, mean

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = args[0] if args else None
        if func is Tensor.__getitem__ and isinstance(given, Tensor) and given.ndim == 3 and given.is_floating_point():
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            axis = next((k for k, at in enumerate(index) if isinstance(at, int) and at == 0), None)
            whole = all(at == slice(None) for k, at in enumerate(index) if k != axis and isinstance(at, slice))
            if axis is not None and axis < 2 and whole and len(index) <= 3 and given.shape[axis] == self._length:
                self.calls += 1
                later = given.mean(axis) if self._mean else given.select(axis, -1)
                rest = tuple(at for k, at in enumerate(index) if k != axis)
                return later[rest] if rest else later
        return func(*args, **(kwargs or {}))


def _later(model: nn.Module, inputs: Tensor, asked: list[int], places: int) -> tuple[Remedy, ...]:
    """Other steps in the place of the first, where most places are seen then."""
    first = LaterState(places)
    if _answer(model, inputs, first) is None or not first.calls:
        return ()
    seen = _seen(Within(model, partial(LaterState, places)).eval(), inputs, asked)
    if seen is None or sum(seen.values()) < _MOST * len(seen):
        return ()
    return (
        Remedy(
            "take the last state in the place of the first",
            "h[:, -1]  # not h[:, 0]; of rows that are padded h[torch.arange(len(h)), lengths - 1]",
            on_model=lambda module: Within(module, partial(LaterState, places)),
            place="axes",
            order=BODY,
        ),
        Remedy(
            "take the mean of all states in the place of the first",
            "h.mean(1)  # not h[:, 0]",
            on_model=lambda module: Within(module, partial(LaterState, places, mean=True)),
            place="axes",
            order=BODY,
        ),
    )
